"""How far the methods of one report agree about its heads: ranks and the first ten, with intervals over prompts.

Spearman's correlation is over all heads that both methods scored, by signed importance; the overlap is the share of
the k largest by magnitude that both name (k is ten, or a third of the heads where there are fewer than thirty).
Intervals draw the prompts again, the same ones for both. Cost: no forward pass.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations
from typing import Any

import torch
from torch import Tensor

from interp.heads.rows import direction
from interp.hooks.head_names import head_of, is_head
from interp.reporting.drawing.figures import agreement_map
from interp.reporting.steps.gathered import Gathered
from interp.reporting.steps.section import Section
from interp.results.effects import Effects
from interp.results.intervals import apart, interval, overlap, spearman, weights

DRAWS = 200


def scores_by_method(found: Mapping[str, Effects], towers: list[str]) -> dict[str, dict[str, Tensor]]:
    """By method, every head's importance per example; both directions of patching are methods."""
    made: dict[str, dict[str, Tensor]] = {}
    for name, effects in found.items():
        method = name
        for tower in towers:
            method = method.removesuffix(f" {tower}")
        for one in (effects, effects.reverse):
            if one is not None:
                label = f"{method} ({direction(one)})" if method == "patch" else method
                made.setdefault(label, {}).update(_heads(one))
    return made


def _heads(effects: Effects) -> dict[str, Tensor]:
    sign = -1.0 if direction(effects) == "noise" else 1.0
    return {
        head_of(site): sign * values.double()
        for site, values in zip(effects.sites, effects.values, strict=True)
        if is_head(site)
    }


def agreement(found: Mapping[str, Effects], towers: list[str], *, seed: int = 0) -> list[dict[str, Any]]:
    """One row per pair of methods that scored at least three heads in common."""
    methods = scores_by_method(found, towers)
    return [row for a, b in combinations(methods, 2) if (row := _pair(methods, a, b, seed)) is not None]


def _pair(methods: Mapping[str, Mapping[str, Tensor]], a: str, b: str, seed: int) -> dict[str, Any] | None:
    heads = [head for head in methods[a] if head in methods[b]]
    if len(heads) < 3:
        return None
    first, second = (torch.stack([methods[name][head] for head in heads]) for name in (a, b))
    if first.shape != second.shape:
        return None
    k = min(10, max(1, len(heads) // 3))
    prompts = first.shape[1]
    drawn = weights(apart(prompts), draws=DRAWS, seed=seed)
    one, other = ((drawn @ side.T) for side in (first, second))
    rho, shared = _agree(first.mean(1), second.mean(1), k)
    rhos, overlaps = _agree(one, other, k)
    return {"first": a, "second": b, "heads": len(heads), "spearman": known(rho), **_ends("spearman", rhos, prompts),
            "k": k, "overlap": known(shared), **_ends("overlap", overlaps, prompts)}  # fmt: skip


def _agree(a: Tensor, b: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Over the last axis, of heads."""
    return spearman(a, b), overlap(a.abs(), b.abs(), k)


def _ends(name: str, drawn: Tensor, prompts: int) -> dict[str, float | None]:
    low, high = interval(drawn, n=prompts)
    return {f"{name} low": known(low), f"{name} high": known(high)}


def known(value: Tensor) -> float | None:
    """A number as JSON has it: nothing where it is not defined."""
    return None if bool(value.isnan()) else float(value)


def _close(made: Gathered, seed: int) -> None:
    made.answers["agreement"] = agreement(made.effects, [tower["name"] for tower in made.towers], seed=seed)


def _page(made: Gathered) -> Mapping[str, Any]:
    about = "Spearman over heads and overlap of the first k, with intervals over prompts."
    rows = made.answers.get("agreement")
    return {"tables": [{"title": "Agreement of methods", "about": about, "rows": rows}]} if rows else {}


SECTION = Section(
    "agreement",
    80,
    close=_close,
    page=_page,
    figures=lambda made: (
        [("agreement", agreement_map(rows, "Spearman correlation of methods"))]
        if (rows := made.answers.get("agreement"))
        else []
    ),
)
