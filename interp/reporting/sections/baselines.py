"""Does switching off the heads that were found hurt more than switching off others: with random heads and large writes.

On prompts that were not used to find the heads, z of k heads together takes its value from the corrupt prompts; what is
plotted is the share of the gap between clean and corrupt that is lost. `found` are the heads whose score speaks most
for the answer, `random` sets of k other heads of like layer and output norm (`interp/heads/sets.py`; at half of a
tower's heads or less), `magnitude` the heads that write most. Intervals of `found`
and `magnitude` are over prompts, of `random` the 2.5th to 97.5th percentile of sets.
Cost: less than one forward pass for each of (2 + draws) sets at each size, and one for the norms. Limits: one tower at
a time; held-out prompts that cannot judge (`interp/reporting/steps/prompts.py`) are not asked.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch

from interp.heads.rows import direction
from interp.heads.sets import matched, output_norms
from interp.hooks.head_names import head_of
from interp.hooks.sites import Site
from interp.patching.patch import patch
from interp.reporting.drawing.figures import drawn
from interp.reporting.sections.estimates import primary
from interp.reporting.sections.scores import BUDGET
from interp.reporting.steps.gathered import FEW, Gathered
from interp.reporting.steps.section import Section
from interp.reporting.steps.steps import Answer, Steps
from interp.reporting.steps.subject import FIXED, SPLITS, TOGETHER, Subject
from interp.results.effects import Effects
from interp.results.intervals import interval

SIZES = (1, 2, 4, 8, 16, 32, 64)
PROMPTS = 16
REACH, SHARE, LEAST = 1.4, 0.25, 4
"""How much of the model a set reaches, the part of what is left of the budget, and the fewest random sets."""


def ablation(subject: Subject, effects: Effects, tower: str) -> Answer:
    """The curves of one tower, ranked by `effects`."""
    heads = [head_of(site) for site in effects.sites]
    order = [heads[n] for n in importance(effects).argsort(descending=True, stable=True)]
    sizes = _sizes(len(order))
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


def _sizes(heads: int) -> list[int]:
    return [k for k in SIZES if k <= max(1, heads // 2)]


def importance(effects: Effects) -> Any:
    """Mean effects, signed so that positive speaks for the better run."""
    return -effects.mean if direction(effects) == "noise" else effects.mean


def _sets(subject: Subject, tower: str, order: list[str], sizes: list[int]) -> list[tuple[str, int, list[str]]]:
    norms = _norms(subject, tower)
    large = sorted(order, key=lambda head: (-norms[head], head))
    draws, made = subject.amount(f"ablation-{tower}", subject.wanted.draws), []
    for k in sizes:
        made += [("found", k, order[:k]), ("magnitude", k, large[:k])]
        like = matched(order[:k], norms, draws=draws, seed=subject.wanted.seed).sets if 2 * k <= len(order) else ()
        made += [("random", k, list(one)) for one in like]
    return made


def _norms(subject: Subject, tower: str) -> dict[str, float]:
    """The mean norm of what each head writes on clean prompts."""
    x = subject.task.take(range(min(PROMPTS, len(subject.task)))).clean
    sites = [
        Site(tower if subject.stacks[tower] else None, layer.index, "z")
        for layer in subject.model.anatomy.towers[tower].layers
    ]
    return output_norms(subject.model, x, sites)


def _gathered(rows: list[dict[str, Any]], sizes: list[int]) -> list[dict[str, Any]]:
    """Random sets of one size as one row."""
    kept = [row for row in rows if row["name"] != "random"]
    for k in sizes:
        drawn = torch.tensor([row["share"] for row in rows if row["name"] == "random" and row["k"] == k]).double()
        if len(drawn):
            low, high = map(float, interval(drawn, n=len(drawn)))
            kept.append(
                {"name": "random", "k": k, "share": float(drawn.mean()), "low": low, "high": high, "draws": len(drawn)}
            )
    return kept


LINES = {"found": "heads found", "magnitude": "heads that write most", "random": "random heads like these"}


def ablation_curve(one: dict[str, Any]) -> dict[str, Any]:
    """Share of the gap that is lost over the number of heads switched off."""
    lines = []
    for name, title in LINES.items():
        rows = [row for row in one["rows"] if row["name"] == name]
        if rows:
            lines.append({"name": title, "x": [r["k"] for r in rows], "y": [r["share"] for r in rows],
                          "low": [r["low"] for r in rows], "high": [r["high"] for r in rows],
                          "kind": "line" if name == "found" else "baseline"})  # fmt: skip
    return {
        "title": f"Heads switched off, {one['tower']}",
        "about": f"Values of corrupt prompts put into k heads of clean ones: {SPLITS[one['split']]}, n = {one['n']}.",
        "x_title": "heads", "y_title": "share of the gap lost", "log_x": True, "lines": lines,
        "levels": [("all of it", 1.0), ("nothing", 0.0)],
    }  # fmt: skip


def _plan(subject: Subject) -> None:
    """A set reaches down to its lowest head, so most are nearly whole; only what clean and corrupt differ in moves."""
    for tower in subject.stacks:
        heads = sum(layer.heads for layer in subject.model.anatomy.towers[tower].layers)
        one = REACH * subject.moved * TOGETHER * len(subject.heldout) / len(subject.task)
        each = one * len(_sizes(heads))
        said = f"Sets of random heads of {tower} to compare with the heads found"
        subject.budget.some(
            f"ablation-{tower}", each, subject.wanted.draws, said, base=2 * each + FIXED, least=LEAST, share=SHARE
        )


def _measure(made: Gathered, subject: Subject, steps: Steps) -> None:
    if made.checks and (made.checks["heldout"]["why"] or made.checks["doubt"]):
        return
    found = []
    for tower in subject.stacks:
        ranks = primary(made, tower)
        if ranks is not None and subject.amount(f"ablation-{tower}", subject.wanted.draws):
            answer = steps.attempt(f"ablation-{tower}", partial(ablation, subject, ranks, tower))
            if "refused" in answer:
                made.refused.append(str(answer["refused"]))
            else:
                found.append(answer)
    if found:
        made.answers["ablation"] = found
        made.said.append(_said(found))


def _said(found: list[Answer]) -> str:
    """What the finding says of the tower that loses most."""
    one = max(found, key=lambda a: max(r["share"] for r in a["rows"] if r["name"] == "found"))
    k = max(size for size in one["sizes"] if size <= FEW)
    shares = {row["name"]: row["share"] for row in one["rows"] if row["k"] == k}
    where = "held-out prompts" if one["split"] == "heldout" else "the same prompts"
    heads = f"the first {k} heads" if k > 1 else "that head"
    return (
        f"Without {heads} {where} lose {shares['found']:.0%} of their gap; without the {k} that write most"
        f" {shares['magnitude']:.0%}, without {k} random ones of like layer and norm {shares['random']:.0%}."
    )


SECTION = Section(
    "ablation",
    40,
    _measure,
    plan=_plan,
    page=lambda made: {"curves": [ablation_curve(one) for one in made.answers.get("ablation", ())]},
    figures=lambda made: [
        (f"ablation-{one['tower']}", drawn(ablation_curve(one))) for one in made.answers.get("ablation", ())
    ],
)
