"""Where heads rest, and what happens when they cannot: sinks, outlying tokens, knock-out beside random tokens, ACT.

    python experiments/sinks.py [--model zoo:needle] [--n 40] [--epsilon 0.3] [--out runs/sinks]

Models with a tokenizer answer needles of 128 tokens, image models name shapes. Sinks are found and hidden on the task,
the first token and later ones apart; heads are calibrated on it and judged on its held-out part. Where no head gives
such a token more than epsilon, the largest step below it that some head passes is taken, and said. Results and tables
go to the report directory.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch

import interp
from interp.kernels.errors import InterpError
from interp.results.sinks import Sinks
from interp.sink.act import Act
from interp.sink.sink_knockout import SinkKnockout
from interp.tasks.needle import DEPTHS
from interp.tasks.task import Task

CURVE = [n / 10 for n in range(1, 10)]


def main() -> None:
    given = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    given.add_argument("--model", default="zoo:needle")
    given.add_argument("--n", type=int, default=40, help="prompts or pictures")
    given.add_argument("--epsilon", type=float, default=0.3)
    given.add_argument("--draws", type=int, default=50)
    given.add_argument("--out", type=Path, default=Path("runs/sinks"))
    args = given.parse_args()
    torch.set_num_threads(1)
    m = interp.load(args.model)
    task = asked(m, args.n)
    out = args.out / args.model.replace(":", "-").replace("/", "-")

    found = interp.sinks(m, task.clean)
    show("heads that rest on the first token", found.top(10))
    show("tokens of outlying norm", found.outliers().head(10))
    kinds = found.by_kind().groupby("kind", sort=False)[["tokens", "share", "even"]].mean()
    show("what kinds of tokens draw, all heads", kinds.reset_index())

    hidden = {which: knocked_out(m, task, found, which, args) for which in ("first", "later")}
    for which, one in hidden.items():
        show(f"metric with tokens hidden, {which} sinks above {one.meta['epsilon']}", one.to_frame())
    calibrated = filtered(m, task, args.draws)
    if calibrated is not None:
        show("heads calibrated, held out", calibrated.judged())

    found.save(out / "sinks")
    for which, one in hidden.items():
        one.save(out / f"knockout-{which}")
        one.to_frame().to_csv(out / f"knockout-{which}.csv", index=False)
    found.to_frame().to_csv(out / "sinks.csv", index=False)
    found.outliers().to_csv(out / "outliers.csv", index=False)
    found.plot().write_html(out / "sinks.html", config={"displaylogo": False})
    if calibrated is not None:
        calibrated.save(out / "act")
        calibrated.judged().to_csv(out / "act.csv", index=False)
    print(json.dumps({
        "experiment": "sinks",
        "model": args.model,
        "examples": len(task),
        "length": found.meta["length"],
        "heads": len(found.sites),
        "sink_metric": {epsilon: round(found.metric(epsilon), 3) for epsilon in CURVE},
        "strongest": {row.site: round(row.estimate, 3) for row in found.top(3).itertuples()},
        "later_sinks": len(found.later(args.epsilon)),
        "massive": len(found.massive()),
        "outliers": outliers(found),
        "kinds": {row.Index: [round(row.share, 3), round(row.even, 3)] for row in kinds.itertuples()},
        "knockout": {which: said(one) for which, one in hidden.items()},
        "act": None if calibrated is None else {
            "kept": int(calibrated.kept.sum()),
            "before": round(float(calibrated.before.mean()), 3),
            **{row.heads: interval(row) for row in calibrated.judged().itertuples()},
        },
        "out": str(out),
    }))  # fmt: skip


def asked(m: interp.Model, n: int) -> Task:
    """Needles for what reads text, shapes for what looks."""
    if not hasattr(m.tokenizer, "convert_ids_to_tokens"):
        return interp.tasks.shapes(m, n=n, style="label")
    return interp.tasks.needle(m, lengths=(128,), n=max(1, n // len(DEPTHS)))


def knocked_out(m: interp.Model, task: Task, found: Sinks, which: Any, args: argparse.Namespace) -> SinkKnockout:
    """At the threshold, or the largest step below it that some head passes."""
    alpha = found.first if which == "first" else found.received.where(~at_first(found), 0.0)
    steps = [args.epsilon, *(e for e in reversed(CURVE) if e < args.epsilon), 0.05, 0.02, 0.0]
    epsilon = next(e for e in steps if bool((alpha > e).any()))
    return interp.sink.sink_knockout(
        m, task.clean, metric=task.metric, sinks=found, which=which, epsilon=epsilon, draws=args.draws
    )


def at_first(found: Sinks) -> torch.Tensor:
    return found.start[None, :, None] == torch.arange(found.received.shape[2])


def said(hidden: SinkKnockout) -> dict[str, Any]:
    """One knock-out in numbers; weights and effects of sinks, then of random tokens."""
    return {
        "epsilon": hidden.meta["epsilon"],
        "heads": len(hidden.heads),
        "tokens": round(hidden.tokens, 2),
        "weight": [round(w, 3) for w in hidden.weight],
        "base": round(float(hidden.base.mean()), 3),
        "effect": [round(float(hidden.sinks.mean()), 3), round(float(hidden.random.mean()), 3)],
        "difference": interval(hidden.to_frame().iloc[2]),
        "share_of_draws": round(hidden.share, 3),
    }


def filtered(m: interp.Model, task: Task, draws: int) -> Act | None:
    """ACT, where any head has something to calibrate."""
    try:
        return interp.sink.act(m, task, draws=draws)
    except InterpError as reason:
        print(f"\nACT: {reason}")
        return None


def show(title: str, frame: Any) -> None:
    print(f"\n{title}\n{frame.round(3).to_string(index=False)}")


def outliers(found: Sinks) -> dict[str, int]:
    """How many tokens of each kind have a norm that stands apart, over all layers and examples."""
    return {str(kind): int(n) for kind, n in found.outliers()["kind"].value_counts().items()}


def interval(row: Any) -> list[float]:
    """Estimate, low, high."""
    return [round(float(value), 3) for value in (row.estimate, row.low, row.high)]


if __name__ == "__main__":
    main()
