"""Effects of patches: labelled, per example, with intervals, and with what they mean written beside them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from interp.hooks.sites import parse
from interp.kernels.errors import InterpError
from interp.results.intervals import mean_interval
from interp.saving import read, write

FORMAT = 1
PLACELESS = ("bias", "remainder")
"""Parts of a sum that are at no one place in the model."""
AND = " + "
"""Between the places of a cell that has several."""


@dataclass(frozen=True, eq=False)
class Effects:
    """`values` [cell, example] = metric(patched) - metric(base); cells are sites, or sites times positions."""

    sites: tuple[str, ...]
    positions: tuple[int, ...] | None
    values: Tensor
    base: Tensor
    """The metric of the base run, per example."""
    source: Tensor | None
    """The metric of the source run, per example, where the source is a run."""
    noise_floor: float
    """How far unchanged rows are from the plain run in these batch shapes: smaller effects are not effects."""
    meta: Mapping[str, Any] = field(default_factory=dict)
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
            raise InterpError("zero and mean sources have no run to normalise by: use .mean.")
        gap = float((self.source - self.base).double().mean())
        if abs(gap) <= max(self.noise_floor, 1e-12):
            raise InterpError(
                f"the metric of source and base differs by {gap:.3g}, which is within the noise floor: nothing to"
                " normalise by."
            )
        return self.mean / gap

    def interval(self, level: float = 0.95, *, draws: int = 1000, seed: int = 0) -> tuple[Tensor, Tensor]:
        """Bootstrap interval of the mean over examples."""
        return mean_interval(self.values, level, draws=draws, seed=seed)

    def to_frame(self) -> Any:
        """One row per cell: tower, layer, head, position, estimate, low, high, noise floor."""
        import pandas

        (low, high), mean = self.interval(), self.mean
        per_site = len(self.positions) if self.positions is not None else 1
        rows = []
        for n, site in enumerate(self.sites):
            position = self.positions[n % per_site] if self.positions is not None else None
            rows.append(
                {
                    "site": site,
                    **_place(site),
                    "position": position,
                    "n": self.values.shape[1],
                    "estimate": float(mean[n]),
                    "low": float(low[n]),
                    "high": float(high[n]),
                    "noise_floor": self.noise_floor,
                }
            )
        return pandas.DataFrame(rows)

    def interactions(self) -> Any:
        """What each pair of cells does beyond the sum of the two, `joint - a - b`, per example: its mean and interval.

        Negative where one takes over when the other is missing (a backup), positive where both are needed.
        """
        import pandas

        alone = {site: n for n, site in enumerate(self.sites)}
        pairs = [(site, *site.split(AND)) for site in self.sites if site.count(AND) == 1]
        known = [(joint, a, b) for joint, a, b in pairs if a in alone and b in alone]
        if not known or self.positions is not None:
            raise InterpError("no pairs beside their members here: patch with pairs=True and without a position axis.")
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
        frame = self.to_frame()
        axes = [name for name in ("layer", "head", "position") if frame[name].notna().any()]
        if not axes or frame[axes].isna().any(axis=None) or frame.duplicated(axes).any():  # groups share no axes
            axes = ["site", "position"] if self.positions is not None else ["site"]
        return frame.set_index(axes)["estimate"].to_xarray()

    def top(self, n: int = 10, *, by: Literal["abs", "high", "low"] = "abs") -> Any:
        """The n cells with the largest effects, positive or negative ones only if asked."""
        frame = self.to_frame()
        order = {"abs": frame["estimate"].abs(), "high": frame["estimate"], "low": -frame["estimate"]}[by]
        return frame.loc[order.sort_values(ascending=False, kind="stable").index].head(n)

    def plot(self) -> Any:
        """A map of the effects, on a scale that is the same on both sides of 0, or bars where there is one axis
        (plotly)."""
        from interp.results.plots import figure_of

        return figure_of(self)

    def over_image(self, inputs: Any, picture: Any = None, **which: int) -> Any:
        """The effects of image tokens as a heat map over their picture (plotly): `row=` of the batch, `image=` of the
        row, `site=` of these; needs positions='each'."""
        from interp.results.over_image import plot_over_image

        return plot_over_image(self, inputs, picture, **which)

    def __repr__(self) -> str:
        best = int(self.mean.abs().argmax())
        return (
            f"Effects of {len(self.values)} cells on {self.values.shape[1]} examples; largest {self.sites[best]}"
            f" {float(self.mean[best]):+.4g} (base {float(self.base.mean()):.4g}, noise floor {self.noise_floor:.2g};"
            f" {self.meta.get('metric', '')})"
        )

    def save(self, directory: str | Path) -> Path:
        """Write `effects.safetensors`, `effects.parquet` and `run.json`; read back with `Effects.load`."""
        tensors = {"values": self.values, "base": self.base} | ({} if self.source is None else {"source": self.source})
        about = {
            "format": FORMAT,
            "sites": self.sites,
            "positions": self.positions,
            "noise_floor": self.noise_floor,
            "meta": dict(self.meta),
        }
        if self.reverse is not None:
            self.reverse.save(Path(directory) / "reverse")
        return write(directory, tensors, about, names=("effects.safetensors", "run.json"), table=self.to_frame())

    @classmethod
    def load(cls, directory: str | Path) -> Effects:
        """Read what `save` wrote."""
        about, tensors = read(directory, ("effects.safetensors", "run.json"), FORMAT)
        back = Path(directory) / "reverse"
        positions = None if about["positions"] is None else tuple(about["positions"])
        return cls(
            tuple(about["sites"]),
            positions,
            tensors["values"],
            tensors["base"],
            tensors.get("source"),
            about["noise_floor"],
            about["meta"],
            cls.load(back) if (back / "run.json").exists() else None,
        )


def _place(label: str) -> dict[str, Any]:
    """Tower, layer (of a window the first), head and component of a cell, each where all of its places share it."""
    parts = label.split(AND)
    found = [parse("embed" if part in PLACELESS else part.partition("[")[0]) for part in parts]
    layers = {None if place.layers is None else int(place.layers.split("-")[0]) for place in found}
    heads = {None if place.heads is None else int(place.heads) for place in found}
    towers, components = {place.tower for place in found}, {place.component for place in found}
    component = label if label in PLACELESS else _shared(components)
    return {"tower": _shared(towers), "layer": _shared(layers), "head": _shared(heads), "component": component}


def _shared(values: set[Any]) -> Any:
    return next(iter(values)) if len(values) == 1 else None
