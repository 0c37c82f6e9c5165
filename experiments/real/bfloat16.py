"""Whether a sweep over all heads of a real model says in bfloat16 what it says in float32.

    python experiments/real/bfloat16.py [--model gemma3] [--quick]

The model is loaded twice. IOI, every head's z patched, and the estimates atp and relp, in both; the noise floor is what
patches that change nothing give in the same batch shapes. Sums of estimates are float32 whatever the model is
(`tests/floor3_interp/attribution/test_bfloat16.py`), so what is left is the model's own rounding. Cost: two sweeps of
about 25 passes, six passes more.

Predicted for SmolLM2-135M, before any run:
 1. The noise floor is 0.05 to 0.5 logits in bfloat16 and under 0.001 in float32.
 2. Over all heads ranks agree at 0.8 or more; over heads above the floor at 0.95 or more; of the first ten at least
    nine are the same.
 3. relp agrees with itself at 0.95 or more, atp at 0.9 or more.

Measured (SmolLM2-135M, 16 prompts):
 1. Yes: 0.19 and 1e-5.
 2. Nearly: 0.79 over all heads, most of which do nothing that could be ordered; 1.00 over the 16 above the floor, and
    the first ten are the same. No head's mean is off by more than 0.03, so the floor, a largest difference of single
    prompts, is on the safe side.
 3. Yes: relp 0.999, atp 0.997: better than the exact effects, whose small ones are differences of two rounded logits.
"""

from __future__ import annotations

from typing import Any

import torch
from _real import by_head, finish, largest, load, options, overlap, spearman

import interp
from interp.reporting.drawing.figures import curves

METHODS = ("patch", "atp", "relp")
SHOWN = 24


def main() -> None:
    chosen = options(__doc__)
    n = 6 if chosen.quick else 16
    wide, found_wide = measured(load(chosen, dtype=torch.float32), n)
    narrow, found_narrow = measured(load(chosen, dtype=torch.bfloat16), n)
    exact, rough = wide["patch"], narrow["patch"]
    floor = found_narrow.noise_floor
    above = [site for site, value in exact.items() if abs(value) > floor]
    first = list(largest(exact, SHOWN))
    made = {
        "prompts": n, "gap": [gap(found_wide), gap(found_narrow)],
        "noise_floor": [found_wide.noise_floor, floor], "above_floor": len(above), "heads": len(exact),
        "spearman": {name: agree(wide[name], narrow[name], list(exact)) for name in METHODS},
        "spearman_above_floor": {name: agree(wide[name], narrow[name], above) for name in METHODS},
        "first_ten_shared": {name: overlap(wide[name], narrow[name], 10) for name in METHODS},
        "largest_difference": max(abs(exact[site] - rough[site]) for site in exact),
        "relp_and_patch": [agree(one["relp"], one["patch"], list(exact)) for one in (wide, narrow)],
    }  # fmt: skip
    places = list(range(1, SHOWN + 1))
    finish(chosen, "bfloat16", made, {
        "bfloat16": curves(
            [{"name": "float32", "x": places, "y": [exact[site] for site in first]},
             {"name": "bfloat16", "x": places, "y": [rough[site] for site in first], "kind": "points"}],
            f"IOI: the {SHOWN} heads with the largest effects, in two precisions", x_title="head, by float32",
            y_title="effect on the logit difference", log_x=False,
            levels=[("noise floor of bfloat16", floor), ("", -floor)]),
    })  # fmt: skip


def measured(m: interp.Model, n: int) -> tuple[dict[str, dict[str, float]], Any]:
    """Every head's effect by each method, and the exact sweep."""
    task = interp.tasks.ioi(m, n=n)
    how: dict[str, Any] = {"base": task.corrupt, "source": task.clean, "metric": task.metric, "sites": "L*.H*.z"}
    exact = interp.patch(m, **how)
    estimates = {name: by_head(interp.attribute(m, method=name, verify=0, **how)) for name in METHODS[1:]}
    return {"patch": by_head(exact), **estimates}, exact


def gap(found: Any) -> float:
    return float((found.source - found.base).double().mean())


def agree(a: dict[str, float], b: dict[str, float], sites: list[str]) -> float:
    return spearman(*(torch.tensor([one[site] for site in sites]) for one in (a, b)))


if __name__ == "__main__":
    main()
