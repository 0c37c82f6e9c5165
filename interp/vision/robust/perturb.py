"""Which part of a picture, spoilt how, moves the answer, and how far heads then look elsewhere.

After "Are Vision Transformers Robust to Patch Perturbations?" (arXiv 2111.10659), which finds that attention is drawn
to spoilt patches and smooths it by a temperature; only its abstract was available, and the sweep, the distance and
every number here are ours. Each cell of a grid is spoilt alone (`spoiling.py` says how):

    effect = metric(spoilt) - metric(whole)             [way, cell, example]
    moved  = total variation between a head's looks     [head, example], mean over ways and cells; 0 same, 1 elsewhere
    drawn  = its share of looks on the spoilt cell, spoilt minus whole, likewise

The remedy is an edit: `edits=[interp.edits.Temperature("vision.L*.H*", 1.5)]` runs everything at temperature T (scores
over T; T above 1 smooths), and two results are compared. The paper's T is not known to us.
Cost: one pass a way and cell, one more. Limits: cells of the picture, which need not be the model's patches.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from interp.finite import finite
from interp.hooks.edits.edits import Edit
from interp.hooks.errors import InputsError
from interp.hooks.inputs.inputs import Inputs
from interp.metrics.judge import Metric, judged
from interp.metrics.named import metric_name
from interp.provenance import about
from interp.records import NO_PICTURE, Method, register
from interp.results.heads_table import HeadResult, HeadTable
from interp.vision.maps.trial import pictures_of
from interp.vision.robust.spoiling import (
    How,
    Place,
    Questioned,
    Watching,
    cells_of,
    distance,
    grid_of,
    looked_at,
    spoilt,
)

if TYPE_CHECKING:
    from interp.model import Model


@dataclass(frozen=True, eq=False)
class Perturbed(HeadResult):
    """What spoilt cells do."""

    STEM, TITLE = "perturbed", "how far looks move"

    sites: tuple[str, ...]
    values: Tensor
    """[way, cell, example]: effect on the metric."""
    base: Tensor
    """[example]: the metric of the whole picture."""
    moved: Tensor
    """[head, example]: how far looks move when a cell is spoilt, mean over ways and cells; 0 same, 1 elsewhere."""
    drawn: Tensor
    """[head, example]: the head's share of looks on the spoilt cell, spoilt minus whole, mean over ways and cells; NaN
    where tokens have no place in the picture."""
    ways: tuple[str, ...]
    """How cells are spoilt: "grey", "black", "noise", "shuffle", or the name of a function."""
    grid: tuple[int, int]
    """Rows and columns of cells."""
    meta: Mapping[str, Any] = field(default_factory=dict)

    def map(self, way: str | None = None, example: int = 0) -> Tensor:
        """Effects of one way by cell [row, column]."""
        name = self.ways[0] if way is None else way
        if name not in self.ways:
            raise InputsError(f"no way {name!r}; there are {', '.join(self.ways)}.")
        return self.values[self.ways.index(name), :, example].reshape(self.grid)

    def tables(self) -> Sequence[HeadTable]:
        """How far each head's looks move, and how much they are drawn."""
        return (HeadTable(self.sites, self.moved, "moved looks", more={"drawn": self.drawn.mean(1)}),)

    def __repr__(self) -> str:
        worst = self.values.mean(2).amin(1)
        said = ", ".join(f"{way} {float(one):+.3g}" for way, one in zip(self.ways, worst, strict=True))
        return (
            f"Perturbed: {self.grid[0]} x {self.grid[1]} cells of {len(self.base)} pictures; worst cell {said}; looks"
            f" move {float(self.moved.mean()):.2g} on average"
        )


def perturb(
    model: Model,
    images: Any,
    questions: Any = None,
    *,
    metric: Metric,
    how: How | Sequence[How] = ("grey", "noise"),
    grid: tuple[int, int] | None = None,
    edits: Sequence[Edit] = (),
    seed: int = 0,
    chat: Any = None,
) -> Perturbed:
    """One picture (PIL) a row, with a question each where the model reads text. `grid` is rows and columns of cells, by
    default those of the model's first grid of image tokens; `edits` are on in every run."""
    asked = Questioned.of(model, images, questions, chat)
    ways = [how] if isinstance(how, str) or callable(how) else list(how)
    if not ways:
        raise InputsError("how= is at least one way of spoiling a cell.")
    x = asked.inputs()
    watching, shape = Watching.of(model, x), grid or grid_of(x)
    places = [cells_of(size, shape) for size in asked.sizes]
    logits, looks = watching.run(x, edits)
    base = judged(metric, x, logits).double().cpu()
    effects, moved, drawn = [], torch.zeros(looks.shape[:2]).double(), torch.zeros(looks.shape[:2]).double()
    random, count = np.random.default_rng(seed), len(ways) * shape[0] * shape[1]
    for way in ways:
        for cell in range(shape[0] * shape[1]):
            boxes = [mine[cell] for mine in places]
            pictures = [spoilt(one, box, way, random) for one, box in zip(asked.pictures, boxes, strict=True)]
            y = asked.inputs(pictures)
            logits, other = watching.run(y, edits)
            effects.append(judged(metric, y, logits).double().cpu() - base)
            moved += distance(looks, other) / count
            drawn += (_on(y, other, boxes) - _on(x, looks, boxes)) / count
    values = finite(torch.stack(effects), "effects of spoilt cells").reshape(len(ways), -1, len(base))
    names = tuple(way if isinstance(way, str) else getattr(way, "__name__", "function") for way in ways)
    meta = {**about(model.module, x), "method": "perturb", "metric": metric_name(metric), "seed": seed,
            "edits": [repr(edit) for edit in edits]}  # fmt: skip
    return Perturbed(watching.sites, values, base, moved, drawn, names, shape, meta)


def _on(x: Inputs, looks: Tensor, boxes: Sequence[Place]) -> Tensor:
    """The share of a head's looks on tokens whose middle is in a box [head, example]; NaN where none has a place."""
    if x.roles.sizes is None or not bool(x.roles.patch.any()):
        return torch.full(looks.shape[:2], float("nan"), dtype=torch.float64)
    cells = x.roles.boxes().double()
    middle, corners = (cells[..., :2] + cells[..., 2:]) / 2, torch.tensor(boxes).double()[:, None]
    inside = (middle >= corners[..., :2]).all(-1) & (middle < corners[..., 2:]).all(-1) & looked_at(x)
    return (looks * inside).sum(-1) / looks.sum(-1).clamp(min=1e-12)


def _example(t: Any) -> Perturbed:
    return perturb(t.model, *pictures_of(t), metric=t.metric, how="grey", grid=(2, 2))


register(
    Method(
        "interp.vision.perturb",
        number="effect on the metric of a spoilt part of the picture, and how far a head's attention moves with it",
        shown="map",
        label="moved looks",
        needs=("metric",),
        papers=("2111.10659",),
        unfit=NO_PICTURE,
        passes=lambda t: 6,
        example=_example,
    )
)
