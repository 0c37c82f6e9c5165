"""A patch that is made to spoil the answer: pixels in a box that follow the gradient of the metric downwards.

After "Are Vision Transformers Robust to Patch Perturbations?" (arXiv 2111.10659), whose remedy is a temperature in the
attention of the vision tower; only its abstract was available, so steps, rates and temperatures are ours. With v the
pixels as the model is given them, in the box alone:

    v <- clip(v - rate (high - low) sign(d metric / d v)),     low, high: the values of black and white pixels

Which values of a family's pixels are in the box, and how far they may go, is read off its own processor: it is given
the picture with a black and with a white box. The control is random pixels in the same box, the best of as many draws
as there are steps. `remedies` are temperatures T that the finished patch and the whole picture are judged under.
Cost: a forward and a backward pass a step, a pass a draw, two a temperature. Limits: pixels of the model's own input,
so what comes out need not be a picture that a processor could give where pixels are merged from several.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from interp.finite import finite
from interp.hooks.edits.edits import Edit, Temperature
from interp.hooks.errors import InputsError
from interp.hooks.inputs.inputs import Inputs
from interp.hooks.stand.output import logits_of, no_logits
from interp.metrics.judge import Metric, judged
from interp.metrics.named import metric_name
from interp.provenance import about
from interp.records import NO_PICTURE, Method, register
from interp.results.figures.figure import Figure
from interp.results.figures.marks import Lines, Trace
from interp.results.intervals import mean_interval
from interp.results.saved import Saved
from interp.vision.maps.trial import pictures_of
from interp.vision.robust.spoiling import Place, Questioned, spoilt

if TYPE_CHECKING:
    from interp.model import Model


@dataclass(frozen=True, eq=False)
class Adversarial(Saved):
    """The metric step by step, compared with random patches, and under temperatures."""

    STEM = "adversarial"

    curve: Tensor
    """[step, example]: the metric; step 0 is the whole picture."""
    random: Tensor
    """[draw, example]: with random pixels in the box."""
    remedied: Tensor
    """[temperature, 2, example]: of the whole picture and of the patched one."""
    remedies: tuple[float, ...]
    """The temperatures of attention, in the order of `remedied`."""
    boxes: tuple[Place, ...]
    """The box that is changed in each picture, in pixels (left, top, right, bottom)."""
    pixels: Tensor
    """What the model is given with the patch of the best step."""
    meta: Mapping[str, Any] = field(default_factory=dict)

    @property
    def best(self) -> int:
        """The step whose metric is the lowest on average: its patch is kept."""
        return int(self.curve.mean(1).argmin())

    @property
    def values(self) -> Tensor:
        """[example]: the metric with the patch of the best step, minus that of the whole picture."""
        return self.curve[self.best] - self.curve[0]

    def to_frame(self) -> Any:
        """The metric of the whole picture, of the patch, of the worst random one, and of both at each temperature."""
        import pandas

        rows = [("whole", self.curve[0]), ("patch", self.curve[self.best]), ("random patch", self.random.amin(0))]
        for value, (whole, patched) in zip(self.remedies, self.remedied, strict=True):
            rows += [(f"whole, temperature {value:g}", whole), (f"patch, temperature {value:g}", patched)]
        low, high = mean_interval(torch.stack([one for _, one in rows]))
        means = [float(one.mean()) for _, one in rows]
        return pandas.DataFrame({"shown": [name for name, _ in rows], "metric": means, "low": low, "high": high})

    def _figure(self) -> Figure:
        """The metric by step."""
        curve = self.curve.mean(1).tolist()
        levels = [("random patch", float(self.random.amin(0).mean()))]
        return Figure([Lines([Trace("patch", range(len(curve)), curve)], x="step", y="metric", levels=levels)])

    def __repr__(self) -> str:
        return (
            f"Adversarial patches in {len(self.boxes)} pictures: metric {float(self.curve[0].mean()):.3g} to"
            f" {float(self.curve[self.best].mean()):.3g}; random patches {float(self.random.amin(0).mean()):.3g}"
        )


@torch.enable_grad()
def adversarial(
    model: Model,
    images: Any,
    questions: Any = None,
    *,
    metric: Metric,
    boxes: Place | Sequence[Place],
    steps: int = 20,
    rate: float = 0.1,
    remedies: Sequence[float] = (),
    seed: int = 0,
    chat: Any = None,
) -> Adversarial:
    """One picture (PIL) a row, with a question each where the model reads text; `boxes` (left, top, right, bottom) in
    pixels, one or one a picture."""
    asked = Questioned.of(model, images, questions, chat)
    if steps < 1 or not rate > 0 or any(not value > 0 for value in remedies):
        raise InputsError(f"steps= is at least 1, rate= and remedies= above 0; got {steps}, {rate}, {remedies}.")
    places = _places(asked, boxes)
    x, low, high = asked.inputs(), *_bounds(asked, places)
    where, start = (low != high), x.kwargs["pixel_values"].detach()
    now, found, best = start.clone(), [], start
    for step in range(steps + 1):
        score, slope = _slope(model, x, now, metric)
        found.append(score)
        if step == 0 or float(score.mean()) < float(torch.stack(found[:-1]).mean(1).min()):
            best = now
        moved = now - rate * (high - low) * slope.sign()
        now = torch.where(where, moved.clamp(low, high), start) if step < steps else now
    random = np.random.default_rng(seed)
    draws = []
    for _ in range(steps):
        pictures = [spoilt(one, box, "noise", random) for one, box in zip(asked.pictures, places, strict=True)]
        draws.append(_score(model, x, asked.inputs(pictures).kwargs["pixel_values"], metric))
    remedied = [[_score(model, x, pixels, metric, temperature=t) for pixels in (start, best)] for t in remedies]
    under = torch.stack([torch.stack(one) for one in remedied]) if remedied else torch.empty(0, 2, x.batch).double()
    meta = {
        **about(model.module, x),
        "method": "adversarial",
        "metric": metric_name(metric),
        "steps": steps,
        "rate": rate,
    }
    curve = finite(torch.stack(found), "metrics of patched pictures")
    return Adversarial(curve, torch.stack(draws), under, tuple(map(float, remedies)), tuple(places), best.cpu(), meta)


def _places(asked: Questioned, boxes: Any) -> list[Place]:
    given = [boxes] * len(asked.pictures) if np.ndim(boxes[0]) == 0 else list(boxes)
    if len(given) != len(asked.pictures):
        raise InputsError(f"{len(given)} boxes for {len(asked.pictures)} pictures: give one, or one each.")
    for (left, top, right, bottom), (height, width) in zip(given, asked.sizes, strict=True):
        if not (0 <= left < right <= width and 0 <= top < bottom <= height):
            raise InputsError(f"a box is (left, top, right, bottom) inside {width} x {height} pixels; got {boxes}.")
    return [tuple(int(edge) for edge in box) for box in given]  # type: ignore[misc]


def _bounds(asked: Questioned, places: Sequence[Place]) -> tuple[Tensor, Tensor]:
    """The pixels with the boxes black and white, ordered; they differ in the boxes alone."""
    random, ends = np.random.default_rng(0), []
    for value in (0, 255):

        def filled(part: np.ndarray, value: int = value) -> np.ndarray:
            return np.full_like(part, value)

        pictures = [spoilt(one, box, filled, random) for one, box in zip(asked.pictures, places, strict=True)]
        ends.append(asked.inputs(pictures).kwargs["pixel_values"])
    if bool((ends[0] == ends[1]).all()):
        raise InputsError("the model sees nothing of these boxes: its processor crops or shrinks them away.")
    return torch.minimum(*ends), torch.maximum(*ends)


def _slope(model: Model, x: Inputs, pixels: Tensor, metric: Metric) -> tuple[Tensor, Tensor]:
    """The metric [example] and the slope of its sum at the pixels."""
    given = pixels.detach().clone().requires_grad_()
    with torch.enable_grad():
        logits = logits_of(model.module(**model.called_with({**x.kwargs, "pixel_values": given})))
        if logits is None:
            raise no_logits(model.module)
        score = judged(metric, x, logits)
        (slope,) = torch.autograd.grad(score.sum(), given)
    return score.detach().double().cpu(), slope


def _score(model: Model, x: Inputs, pixels: Tensor, metric: Metric, temperature: float | None = None) -> Tensor:
    edits: list[Edit] = []
    if temperature is not None:
        name = "" if x.main == "vision" else "vision."
        edits = [Temperature(f"{name}L*.H*", temperature)]
    y = model.inputs({**x.kwargs, "pixel_values": pixels.to(x.kwargs["pixel_values"])})
    return judged(metric, x, model.run(y, edits=edits)["logits"]).double().cpu()


def _example(t: Any) -> Adversarial:
    how: dict[str, Any] = {"metric": t.metric, "boxes": (0, 0, 8, 8), "remedies": [1.5]}
    return adversarial(t.model, *pictures_of(t), steps=2, **how)


register(
    Method(
        "interp.vision.adversarial",
        number="the metric with a patch that follows its gradient down, minus that of the whole picture",
        shown="curve",
        needs=("metric",),
        papers=("2111.10659",),
        unfit=NO_PICTURE,
        passes=lambda t: 14,
        example=_example,
    )
)
