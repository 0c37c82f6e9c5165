"""Which heads are worth perturbing: HeadHunter's greedy choice, for any objective of what is sampled.

HeadHunter (arXiv 2506.10978) adds heads to a set S one round after the other. A round samples once for every head h
that is left, guided away from S and h looking at themselves (`perturbed`), and takes the k heads with the highest mean
objective. The paper's k, rounds, amount and weight are not known: here they are parameters, and 1, 3, 1 and 3 are ours.
Every sample of every round must start from the same noise, or heads are compared by luck; `sample` is called once
without guidance and twice over to see that it does. Cost: 2 + heads + (heads - k) + ... runs of the pipeline, each with
a perturbed row more. Limits: a head is chosen on the samples it is measured on; judge the set on other prompts and
seeds, and compared with random sets of its size.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from interp.diffusion.denoiser import NOT_HERE, refuse_other
from interp.diffusion.perturbed import perturbed
from interp.hooks.errors import InputsError
from interp.hooks.head_names import head_name
from interp.provenance import about
from interp.records import Method, register
from interp.results.heads_table import HeadResult, HeadTable

if TYPE_CHECKING:
    from interp.model import Model


@dataclass(frozen=True, eq=False)
class Hunt(HeadResult):
    """What each head adds to the objective, round by round, and the heads that were taken."""

    STEM, TITLE = "hunt", "gain"

    sites: tuple[str, ...]
    values: Tensor
    """[round, head, example]: the objective with the set so far and this head; a head of the set has the set's own."""
    base: Tensor
    """[example]: the objective without guidance by heads."""
    chosen: tuple[tuple[str, ...], ...]
    """The heads taken in each round."""
    meta: Mapping[str, Any] = field(default_factory=dict)

    @property
    def heads(self) -> tuple[str, ...]:
        """All heads that were taken, for `perturbed`."""
        return tuple(head for some in self.chosen for head in some)

    def tables(self) -> tuple[HeadTable, ...]:
        """What each head alone adds, in the first round, and the round it was taken in (-1: never)."""
        taken = {head: n for n, some in enumerate(self.chosen) for head in some}
        rounds = [taken.get(site, -1) for site in self.sites]
        return (HeadTable(self.sites, self.values[0] - self.base, "hunt", more={"round": rounds}),)

    def __repr__(self) -> str:
        return (
            f"Hunt: {len(self.heads)} of {len(self.sites)} heads in {len(self.chosen)} rounds; the objective goes from"
            f" {float(self.base.mean()):.4g} to {float(self._last.mean()):.4g}"
        )

    @property
    def _last(self) -> Tensor:
        """The best head of the last round, with the set before it."""
        return self.values[-1][self.values[-1].mean(1).argmax()]


def hunt(
    model: Model,
    sample: Callable[[], Any],
    objective: Callable[[Any], Tensor],
    *,
    heads: str | None = None,
    k: int = 1,
    rounds: int = 3,
    amount: float = 1.0,
    weight: float = 3.0,
    steps: int | str | None = None,
) -> Hunt:
    """Choose heads whose perturbation raises `objective(sample())`, which gives a number per example, high for good."""
    refuse_other(model)
    if k < 1 or rounds < 1:
        raise InputsError(f"k= heads are taken in each of rounds=, both at least 1; got {k} and {rounds}.")
    names = _heads(model, heads)
    if len(names) < k * rounds:
        raise InputsError(f"{rounds} rounds of {k} heads are more than the {len(names)} there are.")
    base = _scores(objective, sample())
    if not torch.equal(base, _scores(objective, sample())):
        raise InputsError(
            "sample() gave another objective the second time: let it seed its own generator, so that heads are compared"
            " on the same noise."
        )
    how: dict[str, Any] = {"amount": amount, "weight": weight, "steps": steps}
    taken: list[tuple[str, ...]] = []
    values: list[Tensor] = []
    own = base
    for _ in range(rounds):
        so_far = [head for some in taken for head in some]
        found = torch.stack(
            [own if name in so_far else _with(model, sample, objective, [*so_far, name], how) for name in names]
        )
        left = [n for n, name in enumerate(names) if name not in so_far]
        best = sorted(left, key=lambda n: (-float(found[n].mean()), n))[:k]
        taken.append(tuple(names[n] for n in best))
        values.append(found)
        own = found[best[0]] if k == 1 else _with(model, sample, objective, [*so_far, *taken[-1]], how)
    meta = {**about(model.module, None), "method": "hunt", "k": k, **how}
    return Hunt(tuple(names), torch.stack(values), base, tuple(taken), meta)


def _heads(model: Model, heads: str | None) -> list[str]:
    """The heads that a pattern means, else every head that looks at its own sequence."""
    anatomy = model.ready()
    pattern = heads or (f"{anatomy.main}.L*" if len(anatomy.towers) > 1 else "L*")
    sites = anatomy.sites(f"{pattern.removesuffix('.z')}.z")
    found = []
    for site in sites:
        assert site.layer is not None
        numbers = site.heads or range(anatomy.layer(site).heads)
        found += [head_name(site.tower, site.layer, head) for head in numbers]
    return list(dict.fromkeys(found))


def _with(
    model: Model, sample: Callable[[], Any], objective: Callable[[Any], Tensor], heads: list[str], how: dict[str, Any]
) -> Tensor:
    with perturbed(model, heads, **how):
        return _scores(objective, sample())


def _scores(objective: Callable[[Any], Tensor], made: Any) -> Tensor:
    found = objective(made)
    if not torch.is_tensor(found) or found.ndim != 1 or not bool(torch.isfinite(found).all()):
        came = f"{list(found.shape)}" if torch.is_tensor(found) else type(found).__name__
        raise InputsError(f"objective(sample()) is one finite number per example, a tensor [example]; got {came}.")
    return found.detach().float().cpu()


register(
    Method(
        name="interp.diffusion.hunt",
        number="objective of the samples, guided by a set of heads and one more; higher is better",
        example=lambda t: hunt(t.model, lambda: t.model.run(t.base)["logits"], lambda x: x.flatten(1).mean(1)),
        passes=lambda t: 2 + 3 * t.count,
        shown="map",
        values=None,
        made_of=("interp.diffusion.perturbed",),
        unfit=NOT_HERE,
    )
)
