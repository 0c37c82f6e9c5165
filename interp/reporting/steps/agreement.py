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

from interp.attribution.verify import pearson, ranks
from interp.heads.rows import direction
from interp.hooks.head_names import head_of, is_head
from interp.results.effects import Effects

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
    draw = torch.Generator().manual_seed(seed)
    drawn = []
    for _ in range(DRAWS if prompts > 1 else 0):
        picks = torch.randint(prompts, (prompts,), generator=draw)
        drawn.append(_agree(first[:, picks].mean(1), second[:, picks].mean(1), k))
    rho, shared = _agree(first.mean(1), second.mean(1), k)
    rhos = [one for one, _ in drawn if one is not None]
    return {"first": a, "second": b, "heads": len(heads), "spearman": rho, **_ends("spearman", rhos), "k": k,
            "overlap": shared, **_ends("overlap", [one for _, one in drawn])}  # fmt: skip


def _ends(name: str, values: list[float]) -> dict[str, float | None]:
    if not values:
        return {f"{name} low": None, f"{name} high": None}
    low, high = torch.quantile(torch.tensor(values).double(), torch.tensor([0.025, 0.975]).double()).tolist()
    return {f"{name} low": low, f"{name} high": high}


def _agree(a: Tensor, b: Tensor, k: int) -> tuple[float | None, float]:
    same = torch.ones(len(a), dtype=torch.float64)
    large = [set(one.abs().topk(k).indices.tolist()) for one in (a, b)]
    return pearson(ranks(a, same), ranks(b, same), same), len(large[0] & large[1]) / k
