"""Which heads act together: sets whose joint effect is not the sum of its members', by exact patching.

Attention-head superposition (Jermyn et al. 2023, Transformer Circuits updates) is a feature of attention that no single
head holds: one head at a time shows a part of it, or nothing, or several times the same. The check is by intervention:
of the heads asked for every one and every pair is patched, and what a pair does beyond the sum of its two,

    I(a, b) = effect(a and b) - effect(a) - effect(b)

is more than 0 of an effect that needs both and less where one does for the other. Then a set grows greedily: it starts
with the single head or pair of the largest effect, in the direction of the whole, and takes on the head that makes the
joint effect largest, step by step; each set is compared with the sum of its members' single effects, and with random
sets of as many other heads. Sets of one effect that no step leads to, since three are needed at once, are not found.
Cost: exact patching of n heads and n (n - 1) / 2 pairs, and at most n cells for each step, `draws` more for each size.
Limits: exact for this source, direction and metric; the greedy set is a set that suffices, not the smallest.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from interp.heads.kinds.reading import head_names, head_sites
from interp.hooks.errors import InputsError
from interp.metrics.judge import Metric
from interp.metrics.reading import hands_over
from interp.patching.patch import patch
from interp.records import Method, Trial, register
from interp.results.effects import AND, Effects
from interp.results.figures.figure import Figure
from interp.results.figures.marks import Lines, Trace
from interp.results.saved import Saved

if TYPE_CHECKING:
    from interp.model import Model

FEW = 12
"""Of more heads the ones with the largest single effects are taken, unless they are named."""


@dataclass(frozen=True, eq=False)
class Together(Saved):
    """Single and joint effects [head or pair, example], and the set that grew."""

    STEM = "together"

    sites: tuple[str, ...]
    """The heads, such as "L5.H3"."""
    single: Tensor
    """[head, example]: the effect of each head alone."""
    pairs: tuple[tuple[int, int], ...]
    """The two heads of each pair, as numbers in `sites`."""
    joint: Tensor
    """[pair, example]: the effect of the two heads together."""
    order: tuple[tuple[str, ...], ...]
    """The heads that each step added."""
    grown: Tensor
    """The effect of the set after each step [step, example]."""
    random: Tensor
    """[step, draw]: mean effects of random sets of as many heads."""
    gap: float | None
    """What the whole source does, where it is a run."""
    meta: Mapping[str, Any] = field(default_factory=dict)
    """How it was computed, by name: method, metric, model, settings."""

    def interactions(self) -> Any:
        """One row a pair, the largest interaction first, with the interval of its mean."""
        import pandas

        from interp.results.intervals import mean_interval

        first, second = (torch.tensor([pair[n] for pair in self.pairs], dtype=torch.long) for n in (0, 1))
        beyond = self.joint - self.single[first] - self.single[second]
        low, high = mean_interval(beyond) if len(beyond) else (torch.zeros(0), torch.zeros(0))
        frame = pandas.DataFrame(
            {"a": [self.sites[a] for a, _ in self.pairs], "b": [self.sites[b] for _, b in self.pairs],
             "effect_a": self.single[first].mean(1), "effect_b": self.single[second].mean(1),
             "joint": self.joint.mean(1), "interaction": beyond.mean(1), "low": low, "high": high}
        )  # fmt: skip
        return frame.sort_values("interaction", key=abs, ascending=False, kind="stable", ignore_index=True)

    def to_frame(self) -> Any:
        """One row a step: the heads added, the effect of the set, the sum of its members', random sets, share."""
        import pandas

        rows: list[dict[str, Any]] = []
        members: list[str] = []
        alone = dict(zip(self.sites, self.single.mean(1).tolist(), strict=True))
        for n, added in enumerate(self.order):
            members += added
            effect = float(self.grown[n].mean())
            drawn = float(self.random[n].mean()) if self.random.numel() else float("nan")
            rows.append(
                {"heads": len(members), "added": AND.join(added), "effect": effect, "random": drawn,
                 "sum of single": sum(alone[one] for one in members),
                 "share": effect / self.gap if self.gap else float("nan")}
            )  # fmt: skip
        return pandas.DataFrame(rows)

    def _figure(self) -> Figure:
        """The growing set's effect, the sum of its members', random sets."""
        frame = self.to_frame()
        heads = frame["heads"].tolist()
        lines = [Trace(name, heads, frame[name].tolist()) for name in ("effect", "sum of single", "random")]
        return Figure([Lines(lines, x="heads in the set", y="effect")])

    def __repr__(self) -> str:
        last = self.to_frame().iloc[-1]
        best = self.interactions().head(1)
        said = [f"; {r.a} and {r.b} do {r.interaction:+.3g} beyond their sum" for r in best.itertuples()]
        return (
            f"Together of {len(self.sites)} heads: {int(last['heads'])} have {last['effect']:+.3g}, their single"
            f" effects add up to {last['sum of single']:+.3g}{''.join(said)}"
        )


@hands_over
def together(
    model: Model,
    *,
    base: Any,
    source: Any,
    metric: Metric,
    heads: str | Sequence[str] = "L*",
    most: int = 4,
    draws: int = 10,
    seed: int = 0,
) -> Together:
    """Pairs among some heads, and the set that grows to `most` of them; effects are those of `interp.patch`."""
    named = not isinstance(heads, str)
    names = list(head_names(model, head_sites(model, heads))) if isinstance(heads, str) else list(heads)
    how: dict[str, Any] = {"base": base, "source": source, "metric": metric}
    if not 2 <= most <= len(names) or draws < 0:
        raise InputsError(f"a set grows to 2 to {len(names)} heads, with draws of 0 or more; got {most} and {draws}.")
    single = patch(model, sites=[f"{name}.z" for name in names], **how)
    kept = list(range(len(names)))
    if not named and len(names) > FEW:
        kept = single.mean.abs().topk(max(FEW, most)).indices.sort().values.tolist()
    sites, alone = [names[n] for n in kept], single.values[kept]
    pairs = [(a, b) for a in range(len(sites)) for b in range(a + 1, len(sites))]
    both = _joint(model, [(sites[a], sites[b]) for a, b in pairs], how)
    order, grown = _grow(model, sites, alone, pairs, both.values, most, how)
    drawn = _drawn(model, names, order, draws, seed, how)
    gap = None if single.source is None else float((single.source - single.base).double().mean())
    meta = {**single.meta, "method": "heads together", "seed": seed}
    return Together(tuple(sites), alone, tuple(pairs), both.values, order, grown, drawn, gap, meta)


def _joint(model: Model, sets: Sequence[Sequence[str]], how: dict[str, Any]) -> Effects:
    """One effect a set, also where sets are the same."""
    different = list(dict.fromkeys(frozenset(one) for one in sets))
    found = patch(model, cells=[[f"{name}.z" for name in sorted(one)] for one in different], **how)
    index = [different.index(frozenset(one)) for one in sets]
    return replace(found, sites=tuple(found.sites[n] for n in index), values=found.values[index])


def _grow(
    model: Model, sites: list[str], alone: Tensor, pairs: list[tuple[int, int]], both: Tensor, most: int,
    how: dict[str, Any],
) -> tuple[tuple[tuple[str, ...], ...], Tensor]:  # fmt: skip
    """The heads that each step adds, and the set's effect after it."""
    ones, twos = alone.mean(1), both.mean(1)
    sign = 1.0 if float(torch.cat([ones, twos]).sum()) >= 0 else -1.0
    best, pair = int((sign * ones).argmax()), int((sign * twos).argmax())
    inside, values = [sites[best]], [alone[best]]
    order: list[tuple[str, ...]] = [(sites[best],)]
    if float(sign * ones[best]) <= 0.5 * float(sign * twos[pair]) and best not in pairs[pair]:
        inside = [sites[n] for n in pairs[pair]]
        order, values = [tuple(inside)], [both[pair]]
    while len(inside) < most:
        others = [one for one in sites if one not in inside]
        found = _joint(model, [[*inside, one] for one in others], how)
        at = int((sign * found.mean).argmax())
        inside.append(others[at])
        order.append((others[at],))
        values.append(found.values[at])
    return tuple(order), torch.stack(values)


def _drawn(
    model: Model, names: list[str], order: tuple[tuple[str, ...], ...], draws: int, seed: int, how: dict[str, Any]
) -> Tensor:
    """[step, draw]: mean effects of random sets of other heads; none where too few are left."""
    whole = [name for added in order for name in added]
    others, rng = [name for name in names if name not in whole], random.Random(seed)
    if not draws or len(others) < len(whole):
        return torch.zeros(0)
    sizes = [sum(len(added) for added in order[: n + 1]) for n in range(len(order))]
    sets = [rng.sample(others, size) for size in sizes for _ in range(draws)]
    return _joint(model, sets, how).mean.reshape(len(sizes), draws)


def _trial(t: Trial) -> Together:
    return together(t.model, base=t.base, source=t.source, metric=t.metric, heads=t.names[:3], most=2, draws=1)


register(
    Method(
        "interp.heads.together",
        number="effect on the metric of heads patched together, and what that is beyond the sum of their own",
        shown="curve",
        needs=("metric", "source"),
        made_of=("interp.patch",),
        passes=lambda t: 24 + t.sweep,
        values="joint",
        papers=(),
        example=_trial,
    )
)
