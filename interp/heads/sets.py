"""Sets of heads: named, masked by edits, and random ones to hold them against, of like layers and output norm.

For each head of the set, in random order, one is drawn from the 8 cheapest of those that are left, by

    cost = |layers apart| + |log2(norm / norm of the head)|

so that one layer away counts as much as twice the norm, a layer that has no others left is not the end of it, and draws
differ. Norms are means of |z W_O| over the rows that are masked. `Draws` says how far the draws are from the set, since
with few heads they cannot be near. Cost: one forward pass for the norms, which records z of every layer; one more each
time these fill `ROOM` bytes.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from interp.hooks.edits.edits import Edit, UniformAttention, Zero
from interp.hooks.errors import InputsError, SiteError
from interp.hooks.head_names import by_layer, head_place, heads_at, spelled_together
from interp.hooks.inputs.inputs import Inputs, Positions
from interp.hooks.run.keeper import Wish
from interp.hooks.run.size import estimate
from interp.hooks.run.tape import tower_inputs
from interp.hooks.sites import Site
from interp.hooks.stand.ports import head_results

if TYPE_CHECKING:
    from interp.model import Model

How = Literal["uniform", "zero"]
AMONG = 8
"""How many of the cheapest are drawn from."""
ROOM = 2**28
"""Bytes of z that one pass for norms records."""


@dataclass(frozen=True)
class Draws:
    """Sets of heads drawn for one set, and how near they are to it."""

    sets: tuple[tuple[str, ...], ...]
    distinct: int
    norm_ratio: float
    """Mean output norm of the drawn heads over that of the set."""
    same_layer: float
    """The share of drawn heads that are in the layer of the head they replace."""


def known(heads: Sequence[str], names: Sequence[str]) -> tuple[str, ...]:
    """Heads of this model by name, each once."""
    strange = [head for head in heads if head not in names]
    if strange or not heads or len(set(heads)) < len(heads):
        raise SiteError(
            f"heads= takes heads of this model by name, each once, such as {names[0]!r}; got"
            f" {strange or list(heads)!r}."
        )
    return tuple(heads)


def mask_edits(heads: Sequence[str], how: How) -> list[Edit]:
    """The heads looking at all they see alike (`uniform`), or writing nothing (`zero`): one edit a layer."""
    sites = [spelled_together(*some) for some in by_layer(heads).items()]
    return [UniformAttention(site) if how == "uniform" else Zero(f"{site}.z") for site in sites]


def output_norms(
    model: Model, inputs: Any, sites: Sequence[Site], *, positions: Positions | None = None
) -> dict[str, float]:
    """Mean length of what each head writes, |z W_O|, at these positions; unless said at all real ones of all rows."""
    found: dict[str, float] = {}
    x = model.inputs(inputs)
    for some in _together(model, x, sites, positions):
        tape = model.run(x, record=some, positions=positions)
        for place in some:
            lengths = _lengths(model, place, tape[str(place)])
            valid = torch.ones_like(lengths[..., 0], dtype=torch.bool)
            if positions is None:
                valid = tower_inputs(x, place).valid.to(lengths.device)
            means = lengths[valid].mean(0).tolist()
            found |= dict(zip(heads_at(place, range(len(means))), means, strict=True))
    return found


def _together(model: Model, x: Inputs, sites: Sequence[Site], positions: Positions | None) -> Iterator[list[Site]]:
    """The sites' layers in stretches whose z keep within the room."""
    some: list[Site] = []
    for place in dict.fromkeys(Site(site.tower, site.layer, "z") for site in sites):
        wish = Wish([*some, place], positions=positions)
        if some and estimate(model.ready(), wish, x, dtype=model.dtype) > ROOM:
            yield some
            some = []
        some.append(place)
    if some:
        yield some


def _lengths(model: Model, place: Site, z: Tensor) -> Tensor:
    """[row, position, head], head by head, so that no more than one write is held."""
    layer = model.anatomy.layer(place)
    if layer.out is None:
        raise SiteError(
            f"{place}: the output projection of this layer was not found, so what heads write is not known."
        )
    out = model.module.get_submodule(layer.out)
    with torch.no_grad():
        writes = (head_results(out, z, (head,))[..., 0, :] for head in range(layer.heads))
        return torch.stack([write.float().norm(dim=-1) for write in writes], -1)


def matched(heads: Sequence[str], norms: Mapping[str, float], *, draws: int, seed: int = 0) -> Draws:
    """`draws` sets of as many heads, none of them of the set."""
    others = [head for head in norms if head not in heads]
    if draws and len(others) < len(heads):
        raise InputsError(
            f"{len(heads)} heads leave {len(others)} others, too few to draw as many at random: mask fewer, or draws=0."
        )
    rng = random.Random(seed)
    pairs = [_one(heads, others, norms, rng) for _ in range(draws)]
    sets = tuple(tuple(sorted(pair.values())) for pair in pairs)
    total = sum(norms[head] for head in heads) * max(1, draws)
    ratio = sum(norms[head] for one in sets for head in one) / total if total else math.nan
    same = [head_place(head).layer == head_place(other).layer for pair in pairs for head, other in pair.items()]
    return Draws(sets, len(set(sets)), ratio, sum(same) / max(1, len(same)))


def _one(heads: Sequence[str], others: Sequence[str], norms: Mapping[str, float], rng: random.Random) -> dict[str, str]:
    """By head, the one that replaces it."""
    left, found = list(others), {}
    for head in rng.sample(list(heads), len(heads)):
        cost = {other: _cost(head, other, norms) for other in left}
        found[head] = rng.choice(sorted(left, key=lambda other: (cost[other], other))[:AMONG])
        left.remove(found[head])
    return found


def _cost(head: str, other: str, norms: Mapping[str, float]) -> float:
    apart = abs(head_place(head).layer - head_place(other).layer)
    return apart + abs(math.log2(max(norms[other], 1e-30) / max(norms[head], 1e-30)))
