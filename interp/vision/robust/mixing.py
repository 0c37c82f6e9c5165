"""How an answer changes when parts of other pictures replace parts of this one, and how much heads look at them.

The readout of Patch Mixing (Lee et al. 2023, arXiv 2306.17848), which trains and tests networks on pictures with
patches of others pasted in. Here nothing is trained: in each picture a share of the cells, drawn at random among those
that `keep` leaves, is taken from another picture at the same place. `values` is metric(mixed) - metric(whole); `looks`
the share of a head's looks on foreign cells, compared with `expected`, their share of the cells, which is what it would
be if heads treated all cells alike. Numbers and the draw are ours. Cost: one pass a share and draw, one more. Limits: a
foreign patch can bring the answer with it (the thing asked about may be in the other picture).
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
from interp.metrics.judge import Metric, judged
from interp.metrics.named import metric_name
from interp.provenance import about
from interp.records import NO_PICTURE, Method, register
from interp.results.heads_table import HeadResult, HeadTable
from interp.vision.maps.trial import pictures_of
from interp.vision.robust.spoiling import Place, Questioned, Watching, cells_of, grid_of, looked_at, spoilt

if TYPE_CHECKING:
    from interp.hooks.inputs.inputs import Inputs
    from interp.model import Model


@dataclass(frozen=True, eq=False)
class Mixed(HeadResult):
    """What foreign cells do, by their share."""

    STEM, TITLE = "mixed", "share of looks on foreign patches"

    sites: tuple[str, ...]
    values: Tensor
    """[share, example]: effect on the metric, mean over draws."""
    base: Tensor
    """[example]: the metric of the whole picture."""
    looks: Tensor
    """[share, head, example]: of a head's looks, the share on foreign cells; NaN where tokens have no place."""
    expected: Tensor
    """[share, example]: foreign tokens among all tokens of the picture."""
    shares: tuple[float, ...]
    """The shares of cells that are replaced, in the order of `values`."""
    meta: Mapping[str, Any] = field(default_factory=dict)

    def tables(self) -> Sequence[HeadTable]:
        """Looks on foreign cells above what their number lets expect, mean over shares; below 0: passed over."""
        return (HeadTable(self.sites, (self.looks - self.expected[:, None]).mean(0), "foreign looks"),)

    def curve(self) -> Any:
        """One row a share: the mean effect."""
        import pandas

        return pandas.DataFrame({"share": self.shares, "effect": self.values.mean(1).numpy()})

    def __repr__(self) -> str:
        said = ", ".join(f"{s:.0%} {float(v):+.3g}" for s, v in zip(self.shares, self.values.mean(1), strict=True))
        return f"Mixed: foreign parts in {len(self.base)} pictures; effect by share {said}"


def mixing(
    model: Model,
    images: Any,
    questions: Any = None,
    *,
    others: Any,
    metric: Metric,
    shares: Sequence[float] = (0.1, 0.3, 0.5),
    keep: Sequence[Place | Sequence[Place]] | None = None,
    grid: tuple[int, int] | None = None,
    draws: int = 4,
    edits: Sequence[Edit] = (),
    seed: int = 0,
    chat: Any = None,
) -> Mixed:
    """`others` is a picture for each picture, from which parts are taken; `keep` are boxes that stay, a row."""
    asked = Questioned.of(model, images, questions, chat)
    foreign = Questioned.of(model, others, None).pictures
    if len(foreign) != len(asked.pictures):
        raise InputsError(f"others= is a picture for each of {len(asked.pictures)}; got {len(foreign)}.")
    if draws < 1 or not shares or any(not 0 < share <= 1 for share in shares):
        raise InputsError(f"shares= must be above 0 and at most 1, and draws= at least 1; got {shares} and {draws}.")
    x = asked.inputs()
    watching, shape = Watching.of(model, x), grid or grid_of(x)
    places = [_free(cells_of(size, shape), None if keep is None else keep[n]) for n, size in enumerate(asked.sizes)]
    base = judged(metric, x, watching.run(x, edits)[0]).double().cpu()
    random, found = np.random.default_rng(seed), []
    for share in shares:
        tries = []
        for _ in range(draws):
            taken = [_drawn(free, share, shape, random) for free in places]
            pictures = [_pasted(*one, random) for one in zip(asked.pictures, foreign, taken, strict=True)]
            y = asked.inputs(pictures)
            logits, looks = watching.run(y, edits)
            inside = _inside(y, taken)
            expected = inside.sum(1) / looked_at(y).sum(1)
            on = (looks * inside).sum(-1) / looks.sum(-1).clamp(min=1e-12)
            tries.append((judged(metric, y, logits).double().cpu() - base, on, expected))
        found.append([torch.stack(some).mean(0) for some in zip(*tries, strict=True)])
    values, on, expected = (torch.stack(some) for some in zip(*found, strict=True))
    meta = {**about(model.module, x), "method": "mixing", "metric": metric_name(metric), "draws": draws, "seed": seed}
    return Mixed(
        watching.sites, finite(values, "effects of foreign parts"), base, on.double(), expected.double(),
        tuple(float(one) for one in shares), meta,
    )  # fmt: skip


def _free(cells: list[Place], keep: Any) -> list[Place]:
    """Cells that touch no box that is kept."""
    boxes = [] if keep is None else [keep] if len(keep) and not isinstance(keep[0], (list, tuple)) else list(keep)
    free = [
        one
        for one in cells
        if not any(min(one[2], b[2]) > max(one[0], b[0]) and min(one[3], b[3]) > max(one[1], b[1]) for b in boxes)
    ]
    if not free:
        raise InputsError("keep= leaves no cell that may be foreign.")
    return free


def _drawn(free: list[Place], share: float, grid: tuple[int, int], random: np.random.Generator) -> list[Place]:
    count = min(len(free), max(1, round(share * grid[0] * grid[1])))
    return [free[int(n)] for n in random.permutation(len(free))[:count]]


def _pasted(one: Any, other: Any, boxes: list[Place], random: np.random.Generator) -> Any:
    foreign = np.array(other.resize(one.size))
    for left, top, right, bottom in boxes:
        part = foreign[top:bottom, left:right]

        def put(_: np.ndarray, part: np.ndarray = part) -> np.ndarray:
            return part

        one = spoilt(one, (left, top, right, bottom), put, random)
    return one


def _inside(x: Inputs, taken: Sequence[Sequence[Place]]) -> Tensor:
    """Tokens whose middle is in a foreign cell [example, position]; NaN where tokens have no place."""
    if x.roles.sizes is None or not bool(x.roles.patch.any()):
        return torch.full(x.valid.shape, float("nan"), dtype=torch.float64)
    cells = x.roles.boxes().double()
    middle, out = (cells[..., :2] + cells[..., 2:]) / 2, torch.zeros(x.valid.shape, dtype=torch.float64)
    for row, boxes in enumerate(taken):
        corners = torch.tensor(boxes).double()[:, None]
        inside = (middle[row] >= corners[..., :2]).all(-1) & (middle[row] < corners[..., 2:]).all(-1)
        out[row] = inside.any(0).double()
    return out * looked_at(x)


def _example(t: Any) -> Mixed:
    pictures, questions = pictures_of(t)
    how: dict[str, Any] = {"others": pictures[::-1], "metric": t.metric, "grid": (2, 2)}
    return mixing(t.model, pictures, questions, shares=[0.5], draws=2, **how)


register(
    Method(
        "interp.vision.mixing",
        number="effect on the metric of foreign parts in the picture; and the looks that heads give them",
        shown="map",
        label="foreign looks",
        needs=("metric",),
        papers=("2306.17848",),
        unfit=NO_PICTURE,
        passes=lambda t: 4,
        example=_example,
    )
)
