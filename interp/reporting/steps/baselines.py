"""Does switching off the heads that were found hurt more than switching off others: with random heads and large writes.

On prompts that were not used to find the heads, z of k heads together takes its value from the corrupt prompts; what is
plotted is the share of the gap between clean and corrupt that is lost. `found` are the heads whose score speaks most
for the answer, `random` sets of k heads of the same tower, `magnitude` the heads that write most. Intervals of `found`
and `magnitude` are over prompts, of `random` the 2.5th to 97.5th percentile of sets.
Cost: less than one forward pass for each of (2 + draws) sets at each size. Limits: one tower at a time.
"""

from __future__ import annotations

import random
from typing import Any

import torch

from interp.heads.rows import direction
from interp.hooks.head_names import head_of, heads_at
from interp.hooks.run.tape import tower_inputs
from interp.patching.patch import patch
from interp.reporting.steps.scores import BUDGET
from interp.reporting.steps.steps import Answer
from interp.reporting.steps.subject import Subject
from interp.results.effects import Effects
from interp.results.intervals import interval

SIZES = (1, 2, 4, 8, 16, 32, 64)
PROMPTS = 16


def ablation(subject: Subject, effects: Effects, tower: str) -> Answer:
    """The curves of one tower, ranked by `effects`."""
    heads = [head_of(site) for site in effects.sites]
    order = [heads[n] for n in importance(effects).argsort(descending=True, stable=True)]
    sizes = [k for k in SIZES if k <= max(1, len(order) // 2)]
    sets = _sets(subject, tower, order, sizes)
    cells = list(dict.fromkeys(tuple(sorted(one)) for _, _, one in sets))
    task = subject.heldout
    found = patch(
        subject.model, base=task.clean, source=task.corrupt, metric=task.metric, budget=BUDGET,
        cells=[[f"{head}.z" for head in cell] for cell in cells], seed=subject.wanted.seed,
    )  # fmt: skip
    assert found.source is not None
    gap = float((found.source - found.base).double().mean())
    low, high = found.interval()
    shares = (found.mean / gap).tolist()
    ends = torch.stack([low, high]).div(gap).sort(0).values.tolist()
    at = {cell: n for n, cell in enumerate(cells)}
    rows = []
    for name, k, heads_off in sets:
        n = at[tuple(sorted(heads_off))]
        rows.append({"name": name, "k": k, "share": shares[n], "low": ends[0][n], "high": ends[1][n]})
    return {"tower": tower, "split": subject.split, "n": len(task), "heads": len(order), "gap": gap, "sizes": sizes,
            "found": order[: sizes[-1]], "rows": _gathered(rows, sizes)}  # fmt: skip


def importance(effects: Effects) -> Any:
    """Mean effects, signed so that positive speaks for the better run."""
    return -effects.mean if direction(effects) == "noise" else effects.mean


def _sets(subject: Subject, tower: str, order: list[str], sizes: list[int]) -> list[tuple[str, int, list[str]]]:
    draw = random.Random(subject.wanted.seed)
    large = _by_size(subject, tower, order)
    made = []
    for k in sizes:
        made += [("found", k, order[:k]), ("magnitude", k, large[:k])]
        made += [("random", k, draw.sample(order, k)) for _ in range(subject.wanted.draws)]
    return made


def _by_size(subject: Subject, tower: str, heads: list[str]) -> list[str]:
    """Heads by the mean norm of what they write on clean prompts, the largest first."""
    x = subject.task.take(range(min(PROMPTS, len(subject.task)))).clean
    prefix = subject.stacks[tower]
    norms: dict[str, float] = {}
    for layer in subject.model.anatomy.towers[tower].layers:
        site = f"{prefix}L{layer.index}.result"
        size, place = subject.model.run(x, record=site)[site].float().norm(dim=-1), subject.model.anatomy.one(site)
        means = size[tower_inputs(x, place).valid.to(size.device)].mean(0).tolist()
        norms |= dict(zip(heads_at(place, range(len(means))), means, strict=True))
    return sorted(heads, key=lambda head: (-norms[head], head))


def _gathered(rows: list[dict[str, Any]], sizes: list[int]) -> list[dict[str, Any]]:
    """Random sets of one size as one row."""
    kept = [row for row in rows if row["name"] != "random"]
    for k in sizes:
        drawn = torch.tensor([row["share"] for row in rows if row["name"] == "random" and row["k"] == k]).double()
        if len(drawn):
            low, high = map(float, interval(drawn, n=len(drawn)))
            kept.append({"name": "random", "k": k, "share": float(drawn.mean()), "low": low, "high": high})
    return kept
