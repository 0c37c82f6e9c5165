"""Which direction says yes: difference of means, exchange, steering and alignment search beside random controls.

    python experiments/yes_direction.py [--model zoo:shapes-lvlm] [--site text.L3.resid_pre] [--n 64] [--out DIR]

Pairs of pictures, one with the shape that is asked for and one without, at the last token of one residual. Directions
are found on one half of the pairs and judged on the other.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import interp
from interp import directions
from interp.tasks.task import Task


def main() -> None:
    given = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    given.add_argument("--model", default="zoo:shapes-lvlm")
    given.add_argument("--site", default="text.L3.resid_pre")
    given.add_argument("--n", type=int, default=64)
    given.add_argument("--out", type=Path, default=Path("runs/yes_direction"))
    args = given.parse_args()
    torch.set_num_threads(1)
    m = interp.load(args.model)
    found, judged = (pairs(m, args.n, split) for split in ("train", "heldout"))
    direction = directions.mean_difference(m, found.clean, found.corrupt, site=args.site)
    how: dict[str, Any] = {"base": judged.corrupt, "source": judged.clean, "metric": judged.metric, "site": args.site}
    swap = directions.exchange(m, basis=direction, **how)
    print(swap.to_frame().round(3).to_string(index=False))

    controls = directions.random_like(direction, 20)
    steered = {"direction": said(m, judged, args.site, direction)}
    steered["random"] = sum(said(m, judged, args.site, control) for control in controls) / len(controls)

    labels = [" yes"] * len(found)
    search = {
        dim: directions.das(
            m, base=found.corrupt, source=found.clean, site=args.site, dim=dim, labels=labels, steps=150, rate=2e-2
        )
        for dim in (1, 4)
    }
    for das in search.values():
        print(das)
    basis = search[1].bases[0]
    trained = directions.exchange(m, basis=basis, controls=0, **how)

    args.out.mkdir(parents=True, exist_ok=True)
    swap.to_frame().to_csv(args.out / "exchange.csv", index=False)
    for dim, das in search.items():
        das.to_frame().to_csv(args.out / f"das-{dim}.csv", index=False)
    print(json.dumps({
        "experiment": "yes_direction",
        "model": args.model,
        "site": args.site,
        "pairs": {"found_on": len(found), "judged_on": len(judged)},
        "share_inside": part(swap.inside, swap.whole),
        "share_outside": part(swap.outside, swap.whole),
        "largest_random_share": part(swap.random[swap.random.mean(1).abs().argmax()], swap.whole),
        "yes_after_adding": {name: round(value, 3) for name, value in steered.items()},
        "das_heldout": {dim: [round(float(v), 3) for v in das.heldout] for dim, das in search.items()},
        "das_random": {dim: round(float(das.random.mean()), 3) for dim, das in search.items()},
        "das_share_inside": part(trained.inside, trained.whole),
        "cosine_of_das_and_direction": round(abs(float(torch.cosine_similarity(basis[:, 0], direction, dim=0))), 3),
        "out": str(args.out),
    }))  # fmt: skip


def pairs(m: interp.Model, n: int, split: Any) -> Task:
    """Pairs where the shape is there on the clean side only, answered right on both."""
    task = interp.tasks.shapes(m, n=2 * n, style="yes_no", split=split)
    task = task.take([i for i, row in enumerate(task.rows) if row.meta["answer"] == "yes"])
    sides = [task.metric(m.run(inputs)["logits"], inputs) for inputs in (task.clean, task.corrupt)]
    return task.take(((sides[0] > 0) & (sides[1] < 0)).nonzero().flatten().tolist())


def said(m: interp.Model, task: Task, site: str, direction: Tensor) -> float:
    """How often the answer is yes without the shape, once the direction is added at the last token."""
    logits = m.run(task.corrupt, edits=[interp.Add(site, direction, positions="last")])["logits"]
    return float((task.metric(logits, task.corrupt) > 0).double().mean())


def part(effect: Tensor, whole: Tensor) -> float:
    return round(float(effect.mean() / whole.mean()), 3)


if __name__ == "__main__":
    main()
