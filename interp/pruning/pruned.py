"""What pruning gives: the model with fewer heads, which went, what that comes to in heads, groups and parameters."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from interp.hooks.edits.edits import Edit
from interp.hooks.sealed import sealed, understood, unsealed
from interp.hooks.sites import layer_of, pass_of, plain_layer
from interp.pruning.choose import labels, scored
from interp.pruning.cut import masks
from interp.pruning.remains import Rest, remains
from interp.results.figures.drawn import Drawn
from interp.results.figures.figure import Figure
from interp.results.figures.plots import map_of_heads
from interp.results.heads_table import largest
from interp.saving import renamed

if TYPE_CHECKING:
    from interp.metrics.judge import Metric
    from interp.model import Model
    from interp.pruning.curve import Curve

How = Literal["mask", "cut"]
FORMAT = 1
FILE = "prune.json"


@dataclass(frozen=True, eq=False)
class Pruned(Drawn):
    """`model` under `edits` is the pruned model."""

    original: Model
    """The model before pruning; it is not changed."""
    model: Model
    """The cut copy; the original where heads are masked."""
    how: How
    """"mask" (heads are switched off) or "cut" (their weights are removed)."""
    scores: Mapping[str, float]
    """By head, the last that were taken: larger stays."""
    gone: tuple[str, ...]
    """The heads that went."""
    rests: Mapping[str, list[Rest]]
    """What stays of every layer, by tower, in the original's numbers."""
    meta: Mapping[str, Any] = field(default_factory=dict)
    """How it was computed, by name: method, metric, model, settings."""

    @cached_property
    def edits(self) -> tuple[Edit, ...]:
        """What takes the heads out of `model`: masks, or nothing where they were cut."""
        return masks(self.original, self.gone) if self.how == "mask" else ()

    @property
    def silent(self) -> tuple[str, ...]:
        """Heads that went, and whose weights are there all the same."""
        if self.how == "mask":
            return self.gone
        quiet = {
            (tower, one.layer.index, h) for tower, found in self.rests.items() for one in found for h in one.silent
        }
        return tuple(name for name, place in labels(self.original.anatomy).items() if place in quiet)

    @cached_property
    def counts(self) -> dict[str, tuple[int, int]]:
        """Heads that write, kv groups and parameters, before and after."""
        cut = self.how == "cut"  # all passes of a layer are cut at once
        layers = [one for found in self.rests.values() for one in found if one.first or not cut]
        heads, groups = (sum(getattr(one.layer, n) for one in layers) for n in ("heads", "kv_heads"))
        left = groups if self.how == "mask" else sum(len(one.groups) for one in layers)
        sizes = [sum(p.numel() for p in model.module.parameters()) for model in (self.original, self.model)]
        return {"heads": (heads, heads - self._gone(cut)), "groups": (groups, left), "parameters": (sizes[0], sizes[1])}

    def _gone(self, cut: bool) -> int:
        places = [place for name, place in labels(self.original.anatomy).items() if name in self.gone]
        return len({(tower, layer_of(index), head) for tower, index, head in places}) if cut else len(self.gone)

    def run(self, inputs: Any, *, edits: Sequence[Edit] = (), **how: Any) -> Any:
        """`Model.run` of the pruned model; sites are those of `model`, in which cut heads have no number."""
        return self.model.run(inputs, edits=[*self.edits, *edits], **how)

    def to_frame(self) -> Any:
        """One row per head: site, tower, layer, head, method, estimate (its score), kept, silent, and its number in
        the pruned model."""
        import pandas

        new = {(tower, one.layer.index, h): n for tower, found in self.rests.items() for one in found
               for n, h in enumerate(one.heads)}  # fmt: skip
        rows = [
            {"site": name, "tower": place[0], "layer": layer_of(place[1]), "head": place[2], "method": "prune",
             "estimate": self.scores.get(name), "low": math.nan, "high": math.nan, "n": None,
             "kept": name not in self.gone, "silent": name in self.silent,
             "number": place[2] if self.how == "mask" else new.get(place)}
            for name, place in labels(self.original.anatomy).items()
        ]  # fmt: skip
        passes = [pass_of(place[1]) for place in labels(self.original.anatomy).values()]
        for row, nth in zip(rows, passes, strict=True):
            row |= {"pass": nth} if any(one is not None for one in passes) else {}
        return pandas.DataFrame(rows).astype({"number": "Int64", "estimate": float})

    def top(self, n: int = 10) -> Any:
        """The n heads with the highest scores."""
        return largest(self.to_frame(), n, by="high")

    def _figure(self) -> Figure:
        """Which heads stay (1), as a map of layers x heads."""
        frame = self.to_frame()
        return map_of_heads(frame.assign(estimate=frame["kept"].astype(float)), "kept")

    def curve(self, data: Any, metric: Metric | None = None, **how: Any) -> Curve:
        """The metric and the time of a forward pass against the heads kept, by these scores, at random and by
        magnitude; see `interp/pruning/curve.py`."""
        from interp.pruning.curve import curve

        return curve(self.original, self.scores, data, metric, cutting=self.how == "cut", **how)

    def save(self, directory: str | Path) -> Path:
        """A cut model as a directory that `interp.load` reads (and `AutoModel`, where its class allows it); of a masked
        one the list of heads, which `load` reads."""
        about = {"scores": dict(self.scores), "gone": self.gone, "silent": self.silent, "counts": self.counts,
                 "meta": dict(self.meta)}  # fmt: skip
        if self.how == "cut":
            from interp.pruning.directory import save

            heads = {
                tower: {plain_layer(one.layer.index): one.heads for one in found} for tower, found in self.rests.items()
            }
            return save(self.model, directory, {**about, "heads": heads})
        folder = Path(directory)
        folder.mkdir(parents=True, exist_ok=True)
        renamed(folder / FILE, sealed({"format": FORMAT, **about}))
        return folder

    @classmethod
    def load(cls, directory: str | Path, model: Model) -> Pruned:
        """The masks that `save` wrote, on a model."""
        file = Path(directory) / FILE
        about, _ = unsealed(file, FORMAT)
        anatomy = model.ready()
        with understood(file):
            scores, gone = scored(anatomy, about["scores"]), tuple(about["gone"])
            return cls(model, model, "mask", scores, gone, remains(model, gone), about["meta"])

    def __repr__(self) -> str:
        said = ", ".join(f"{after:,} of {before:,} {what}" for what, (before, after) in self.counts.items())
        quiet = f"; {len(self.silent)} of those gone are silent, not cut" if self.how == "cut" and self.silent else ""
        return f"Pruned ({self.how}): {said} stay{quiet}"
