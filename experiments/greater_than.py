"""How a model continues "from the year 1732 to the year 17": Hanna et al. 2023 (arXiv 2305.00586) on a local GPT-2.

    python experiments/greater_than.py --model DIRECTORY [--n 48] [--out runs/greater_than]

Needs a model whose tokenizer splits years into century and two digits, as GPT-2's does; others are refused with the
reason, which is then all that is printed. Base is the prompt whose start year ends in 01, source the true one, the
metric the probability of later years minus that of earlier ones. Heads and MLPs are patched, and followed by paths into
the logits and into the MLPs that matter.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch

import interp
from interp.prompts.vocabulary import TaskError


def main() -> None:
    given = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    given.add_argument("--model", default="zoo:ioi")
    given.add_argument("--n", type=int, default=48)
    given.add_argument("--out", type=Path, default=Path("runs/greater_than"))
    args = given.parse_args()
    torch.set_num_threads(1)
    m = interp.load(args.model)
    try:
        task = interp.tasks.greater_than(m, n=args.n)
    except TaskError as reason:
        print(f"{args.model}: {reason}")
        print(json.dumps({"experiment": "greater_than", "model": args.model, "ran": False, "why": str(reason)}))
        return
    print(json.dumps({"experiment": "greater_than", "model": args.model, "ran": True, **study(m, task, args.out)}))


def study(m: interp.Model, task: Any, out: Path) -> dict[str, Any]:
    """Total effects, paths into the logits, and paths from heads into the MLPs on those paths."""
    how: dict[str, Any] = {"base": task.corrupt, "source": task.clean, "metric": task.metric}
    total = interp.patch(m, sites=["L*.H*.z", "L*.mlp_out"], **how)
    paths = interp.path_patch(m, senders=["L*.H*", "L*.mlp_write"], receivers="logits", freeze="all", **how)
    mlps = [site.replace("mlp_write", "mlp_in") for site in paths.only("mlp_write").top(3)["site"] if above(site)]
    tables = {"total": total, "paths": paths}
    if mlps:
        tables["into-mlps"] = interp.path_patch(m, receivers=mlps, **how)
    for name, effects in tables.items():
        effects.save(out / name)
        print(f"\n{name}\n{effects.top(6)[['site', 'estimate', 'low', 'high']].round(4).to_string(index=False)}")
    return {
        "rows": len(task),
        "right": round(float(torch.tensor(task.right()).double().mean()), 3),
        "metric": {"base": mean(total.base), "source": mean(total.source)},
        "heads": list(total.only("z").top(5)["site"]),
        "mlps": list(total.only("mlp_out").top(3)["site"]),
        "paths": list(paths.top(5)["site"]),
        "into_mlps": list(tables["into-mlps"].top(5)["site"]) if mlps else [],
        "out": str(out),
    }


def above(site: str) -> bool:
    """Whether a head can come before that MLP's block."""
    return not site.startswith("L0.")


def mean(values: torch.Tensor | None) -> float | None:
    return None if values is None else round(float(values.mean()), 4)


if __name__ == "__main__":
    main()
