"""Effects of patches: labelled, per example, with intervals and a description of what they mean."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from interp.hooks.head_names import columns_of, layer_index
from interp.hooks.inputs.inputs import Inputs
from interp.hooks.sites import Pattern, parse
from interp.kernels.errors import InterpError
from interp.results.figures.figure import Figure
from interp.results.figures.over_image import figure_over_image
from interp.results.figures.plots import bars, map_of_effects
from interp.results.heads_table import By, labelled, largest
from interp.results.intervals import mean_interval
from interp.results.saved import Saved

PLACELESS = ("bias", "remainder")
"""Parts of a sum that are at no one place in the model."""
AND = " + "
"""Between the places of a cell that has several."""


@dataclass(frozen=True, eq=False)
class Effects(Saved):
    """`values` [cell, example] = metric(patched) - metric(base); cells are sites, or sites times positions."""

    STEM, ABOUT = "effects", "run.json"

    sites: tuple[str, ...]
    """The patched site of each cell."""
    positions: tuple[int, ...] | None
    """The patched position of each cell; None where all positions were patched together."""
    values: Tensor
    """[cell, example]: the metric of the patched run less that of the base run."""
    base: Tensor
    """The metric of the base run, per example."""
    source: Tensor | None
    """The metric of the source run, per example, where the source is a run."""
    noise_floor: float
    """How far unchanged rows are from the plain run in these batch shapes: smaller effects are not effects."""
    meta: Mapping[str, Any] = field(default_factory=dict)
    """How it was computed, by name: method, metric, model, settings."""
    reverse: Effects | None = None
    """The base patched into the source, where both directions were asked for."""

    @property
    def mean(self) -> Tensor:
        """Mean effect per cell."""
        return self.values.mean(1)

    @property
    def normalised(self) -> Tensor:
        """Mean effect over the mean difference of source and base; not clipped."""
        if self.source is None:
            raise InterpError(
                "effects of zero and mean sources cannot be normalised, since there is no source run: use .mean."
            )
        gap = float((self.source - self.base).double().mean())
        if abs(gap) <= max(self.noise_floor, 1e-12):
            raise InterpError(
                f"the metric of source and base differs by {gap:.3g}, which is within the noise floor, so effects"
                " cannot be divided by it: use .mean."
            )
        return self.mean / gap

    def interval(self, level: float = 0.95, *, draws: int = 1000, seed: int = 0) -> tuple[Tensor, Tensor]:
        """Bootstrap interval of the mean over examples."""
        return mean_interval(self.values, level, draws=draws, seed=seed)

    def to_frame(self) -> Any:
        """One row per cell: tower, layer, head, position, estimate, low, high, noise floor."""
        import pandas

        low, high = self.interval()
        axis = None if self.positions is None else list(self.positions) * (len(self.sites) // len(self.positions))
        return pandas.DataFrame(
            {"site": self.sites, **_places(self.sites), "position": axis, "n": self.values.shape[1],
             "estimate": self.mean, "low": low, "high": high, "noise_floor": self.noise_floor}
        )  # fmt: skip

    def interactions(self) -> Any:
        """What each pair of cells does beyond the sum of the two, `joint - a - b`, per example: its mean and interval.

        Negative where one takes over when the other is missing (a backup), positive where both are needed.
        """
        import pandas

        alone = {site: n for n, site in enumerate(self.sites)}
        pairs = [(site, *site.split(AND)) for site in self.sites if site.count(AND) == 1]
        known = [(joint, a, b) for joint, a, b in pairs if a in alone and b in alone]
        if not known or self.positions is not None:
            raise InterpError("no pairs with their members here: patch with pairs=True and without a position axis.")
        index = torch.tensor([[alone[name] for name in three] for three in known])
        joint, first, second = (self.values[index[:, i]] for i in range(3))
        beyond = replace(self, sites=tuple(joint for joint, _, _ in known), values=joint - first - second)
        low, high = beyond.interval()
        return pandas.DataFrame(
            {"a": [a for _, a, _ in known], "b": [b for _, _, b in known], "effect_a": first.mean(1),
             "effect_b": second.mean(1), "joint": joint.mean(1), "interaction": beyond.mean, "low": low, "high": high}
        )  # fmt: skip

    def only(self, component: str) -> Effects:
        """The cells of one component, such as "result" or "mlp_write"."""
        kept = [n for n, name in enumerate(self.to_frame()["component"]) if name == component]
        if not kept:
            raise InterpError(f"no effects of {component!r}; there are {', '.join(dict.fromkeys(self.sites))}.")
        return replace(self, sites=tuple(self.sites[n] for n in kept), values=self.values[kept])

    def to_array(self) -> Any:
        """Mean effects as a labelled array (xarray): [layer, head], [layer], or with a position axis; cells without
        such axes in common are listed by name."""
        return labelled(self.to_frame(), outer=())

    to_xarray = to_array

    def top(self, n: int = 10, *, by: By = "abs") -> Any:
        """The n cells with the largest effects, positive or negative ones only if asked."""
        return largest(self.to_frame(), n, by=by)

    def _figure(
        self, *, tokens: bool | Inputs | Sequence[str] = True, n: int | None = None, name: str = "effect"
    ) -> Figure:
        """A map of the effects, on a scale that is the same on both sides of 0, or bars where there is one axis.

        Signs are written where the interval leaves out 0 and the effect is beyond the noise floor. Positions are named
        by the tokens of example 0 unless `tokens=False`; `n` draws the n largest cells as bars.
        """
        array, frame = self.to_array(), self.to_frame()
        words = self._tokens(tokens)
        if n is None and array.ndim > 1:
            sure = labelled(frame.assign(estimate=self._clear(frame).astype(float)), outer=()) > 0.5
            return map_of_effects(array, name=name, sure=sure, tokens=words)
        rows = frame if n is None else largest(frame, n)
        names = rows["site"] if self.positions is None else [_at(row, words) for row in rows.to_dict("records")]
        return bars(rows, names, unit=name)

    def _clear(self, frame: Any) -> Any:
        """Which cells have a sign: their interval does not contain 0, and their size is above the noise floor."""
        beside = (frame["low"] > 0) | (frame["high"] < 0) | frame["low"].isna()
        return beside & (frame["estimate"].abs() > self.noise_floor)

    def _tokens(self, asked: bool | Inputs | Sequence[str]) -> Sequence[str]:
        """The names of positions, as far as they are known."""
        if isinstance(asked, bool):
            return tuple(self.meta.get("tokens") or ()) if asked else ()
        if not isinstance(asked, Inputs):
            return tuple(asked)
        if asked.tokens is None:
            raise InterpError("these inputs have no tokens: prepare them with the model's tokenizer, or tokens=False.")
        return asked.tokens[0]

    def over_image(self, inputs: Any, picture: Any = None, **which: int) -> Figure:
        """The effects of image tokens as a map over their picture: `row=` of the batch, `image=` of the row, `site=` of
        these; needs positions='each'."""
        return figure_over_image(self, inputs, picture, **which)

    def __repr__(self) -> str:
        best = int(self.mean.abs().argmax())
        return (
            f"Effects of {len(self.values)} cells on {self.values.shape[1]} examples; largest {self.sites[best]}"
            f" {float(self.mean[best]):+.4g} (base {float(self.base.mean()):.4g}, noise floor {self.noise_floor:.2g};"
            f" {self.meta.get('metric', '')})"
        )

    def facts(self) -> dict[str, Any]:
        """Without the other direction, which has a directory of its own."""
        return {name: value for name, value in super().facts().items() if name != "reverse"}

    def save(self, directory: str | Path) -> Path:
        """Write `effects.safetensors`, `effects.parquet` and `run.json`, and `reverse/` where both directions were
        asked for; read back with `interp.open`."""
        if self.reverse is not None:
            self.reverse.save(Path(directory) / "reverse")
        return super().save(directory)

    @classmethod
    def load(cls, directory: str | Path) -> Effects:
        """Read what `save` wrote."""
        found, back = super().load(directory), Path(directory) / "reverse"
        return replace(found, reverse=cls.load(back)) if (back / cls.ABOUT).exists() else found

    @classmethod
    def restored(cls, facts: dict[str, Any], tensors: dict[str, Tensor]) -> Effects:
        """There need not be a source."""
        return super().restored({"source": None, **facts}, tensors)


def _at(row: Mapping[str, Any], tokens: Sequence[str]) -> str:
    """A cell with its position, as bars name it."""
    position = int(row["position"])
    word = f" {tokens[position]}" if position < len(tokens) else ""
    return f"{row.get('site', '')} @ {position}{word}".strip()


def _places(labels: Sequence[str]) -> dict[str, list[Any]]:
    """Tower, layer, head and component of cells, as columns."""
    found = [_place(label) for label in labels]
    tower, head, component = ([one[name] for one in found] for name in ("tower", "head", "component"))
    return {"tower": tower, **columns_of(one["layer"] for one in found), "head": head, "component": component}


def _place(label: str) -> dict[str, Any]:
    """Tower, layer (of a window the first), head and component of a cell, each where all of its places share it."""
    parts = label.split(AND)
    found = [parse("embed" if part in PLACELESS else part.partition("[")[0]) for part in parts]
    layers = {None if place.layers is None else _first(place) for place in found}
    heads = {None if place.heads is None else int(place.heads) for place in found}
    towers, components = {place.tower for place in found}, {place.component for place in found}
    component = label if label in PLACELESS else _shared(components)
    return {"tower": _shared(towers), "layer": _shared(layers), "head": _shared(heads), "component": component}


def _first(place: Pattern) -> int:
    """The layer that a window begins with, or the pass of one."""
    layer, passes = str(place.layers).split("-")[0], str(place.passes or "").split("-")[0]
    return layer_index(f"{layer}@{passes}" if passes else layer)


def _shared(values: set[Any]) -> Any:
    return next(iter(values)) if len(values) == 1 else None
