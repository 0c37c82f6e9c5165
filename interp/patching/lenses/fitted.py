"""Lenses that are fitted: per residual an affine map to where the logits are read, kept with how well it does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from torch import Tensor

from interp.hooks.drive.tail import Tail, last_tower
from interp.hooks.errors import InputsError, SiteError
from interp.hooks.inputs.inputs import Positions
from interp.hooks.sites import Site
from interp.patching.lenses.said import Lens, LensReader, places_of
from interp.results.figures.figure import Figure
from interp.results.figures.marks import Lines, Trace
from interp.results.saved import Saved

if TYPE_CHECKING:
    from interp.hooks.anatomy.towers import Tower
    from interp.model import Model


@dataclass(frozen=True, eq=False)
class FittedLens(Saved):
    """A residual h [d] is read as `h @ matrices[place] + biases[place]` in the place of the last one."""

    STEM = "fitted_lens"

    sites: tuple[str, ...]
    """The residuals that the lens is fitted at, such as "L3.resid_post"."""
    matrices: Tensor
    """[place, d, d]."""
    biases: Tensor
    """[place, d]."""
    kl: Tensor
    """Nats from the model's own next word on rows that were not fitted on [place, seed]; empty where none was kept."""
    plain: Tensor
    """The same of the logit lens."""
    meta: Mapping[str, Any] = field(default_factory=dict)

    def read(
        self, model: Model, inputs: Any, *, positions: Positions = "last", answers: Any = None, top: int = 5
    ) -> Lens:
        """What each place says through this lens, as `interp.lens` gives it."""
        stack = last_tower(model.ready(), None)
        if stack.width != self.matrices.shape[-1]:
            raise InputsError(f"this lens is of width {self.matrices.shape[-1]}, and the model's is {stack.width}.")
        x = model.inputs(inputs)
        places = [model.anatomy.one(site) for site in self.sites]
        end = last_residual(places[0], stack)
        tape = model.run(x, record=[*places, end])
        reader = LensReader.of(model, x, tape, end, stack, positions=positions, answers=answers, top=top)
        normed = (reader.tail.normed(self.carried(n, tape[site]), "final") for n, site in enumerate(places))
        return reader.lens(model, self.sites, normed, {**tape.meta, "method": self.meta["method"], "norm": "final"})

    def carried(self, place: int, residual: Tensor) -> Tensor:
        """Residuals in the basis of the last one."""
        matrix, bias = (one[place].to(residual) for one in (self.matrices, self.biases))
        return residual @ matrix + bias

    def to_frame(self) -> Any:
        """One row a place: what its lens and the logit lens lose on rows kept back, and the range of seeds."""
        import pandas

        rows = []
        for n, site in enumerate(self.sites):
            row: dict[str, Any] = {"site": site}
            if self.kl.numel():
                kl, plain = self.kl[n], self.plain[n]
                row |= {"kl": float(kl.mean()), "low": float(kl.min()), "high": float(kl.max()),
                        "logit lens": float(plain.mean())}  # fmt: skip
            rows.append(row)
        return pandas.DataFrame(rows)

    def _figure(self) -> Figure:
        """What the lens and the logit lens lose, by place."""
        if not self.kl.numel():
            raise InputsError("nothing was kept back to judge this lens by: fit it with held_out > 0.")
        parts = (("this lens", self.kl), ("logit lens", self.plain))
        lines = [Trace(name, range(len(self.sites)), one.mean(1).tolist()) for name, one in parts]
        return Figure([Lines(lines, x="place", y="KL to the model's own logits (nats)", names=self.sites)])

    def __repr__(self) -> str:
        kind, said = str(self.meta.get("method", "lens")), ""
        if self.kl.numel():
            ours, plain = float(self.kl.mean()), float(self.plain.mean())
            said = f": {ours:.3g} nats from the model's own, the logit lens {plain:.3g}"
        return f"FittedLens ({kind}) at {len(self.sites)} places{said}"


def last_residual(place: Site, tower: Tower) -> Site:
    """Where the logits are made from."""
    return Site(place.tower, tower.layers[-1].index, "resid_post")


def residuals(model: Model, tower: Tower, spelled: str | Sequence[str]) -> list[Site]:
    """The residuals that a lens is fitted at: those before the last one."""
    every = places_of(model, tower, [spelled] if isinstance(spelled, str) else list(spelled))
    wrong = [site for site in every if not site.component.startswith("resid")]
    if wrong:
        raise SiteError(f"{wrong[0]} is no residual: a lens is fitted at resid_pre, resid_mid or resid_post.")
    found = [site for site in every if site != last_residual(every[0], tower)]
    if not found:
        raise SiteError(f"{spelled!r} is the last residual, which needs no fitted lens: name earlier ones.")
    return found


def finish(model: Model, tower: Tower, tape: Any, end: Site, kwargs: Any) -> Tail:
    """From a residual to the logits of every position; refused where they are not made position by position."""
    tail = Tail(model.module, tower, model.called_with(kwargs), left=tape[end], logits=tape["logits"])
    if not tail.by_position:
        raise InputsError(
            f"the logits of {type(model.module).__name__} are not made position by position from its last residual, so"
            " a lens cannot be fitted to them."
        )
    return tail
