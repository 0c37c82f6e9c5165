"""A metric, and the time of a forward pass, against the number of heads kept: by scores, at random, by magnitude.

Magnitude is the norm of a head's part of the output projection. Random is the mean over draws, with the lowest and
highest draw as its interval; the others have a bootstrap interval over examples. Times are of one forward pass over all
the data, the least of some rounds in which the whole model and the pruned one take turns; only cutting makes a model
faster, and at how many threads and on what machine is not for a curve to say.
Cost: per point and draw one pass over the data, and twice the rounds for its time; of the random ones only the first
draw is timed.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from interp.hooks.errors import InputsError
from interp.hooks.inputs.inputs import Inputs
from interp.metrics.ids import Ids
from interp.metrics.judge import Metric, judged
from interp.metrics.named import metric_name
from interp.metrics.reading import reading
from interp.metrics.shipped import Accuracy
from interp.pruning.choose import best, every, labels, means, units
from interp.pruning.cut import cut, masks
from interp.pruning.owners import output_axis
from interp.pruning.remains import remains
from interp.results.figures.figure import Figure
from interp.results.figures.marks import Lines
from interp.results.figures.plots import line_of
from interp.results.intervals import mean_interval
from interp.results.saved import Saved
from interp.tasks.task import Task

if TYPE_CHECKING:
    from interp.model import Model

SHARES = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1)
Parts = Sequence[tuple[Inputs, Metric]]


@dataclass(frozen=True, eq=False)
class Curve(Saved):
    """Rows: order ("scores", "random", "magnitude"), kept, share, metric, low, high, seconds, ratio."""

    STEM, TABLE, TENSORS = "curve", "csv", False

    rows: tuple[Mapping[str, Any], ...]
    meta: Mapping[str, Any] = field(default_factory=dict)

    def to_frame(self) -> Any:
        """The rows; `ratio` is the pruned model's time over the whole one's, taken in turn."""
        import pandas

        return pandas.DataFrame(self.rows)

    def _figure(self) -> Figure:
        """The metric against heads kept, one line an order."""
        groups = self.to_frame().groupby("order", sort=False)
        lines = [line_of(str(order), part, "kept", "metric") for order, part in groups]
        return Figure([Lines(lines, x="heads kept", y=str(self.meta.get("metric", "metric")))])

    def __repr__(self) -> str:
        frame = self.to_frame()
        ours = frame[frame["order"] == "scores"]
        half = ours.iloc[(ours["share"] - 0.5).abs().argmin()]
        return f"Curve of {len(frame)} points; with {half['kept']} heads kept the metric is {half['metric']:.4g}"


def curve(
    model: Model,
    scores: Mapping[str, float],
    data: Any,
    metric: Metric | None = None,
    *,
    cutting: bool = True,
    fractions: Sequence[float] = SHARES,
    random: int = 5,
    rounds: int = 3,
    batch: int = 50,
    seed: int = 0,
) -> Curve:
    """`data` is a task (judged by accuracy unless a metric of one batch is given), or inputs with a metric."""
    if not fractions or not all(0 <= share <= 1 for share in fractions):
        raise InputsError(f"fractions= are shares of the heads that stay, from 0 to 1; got {list(fractions)}.")
    groups = units(model.anatomy, scores, shared=cutting)
    scores = means(scores, groups)
    parts, draws = _parts(model, data, metric, batch), torch.Generator().manual_seed(seed)
    orders: list[tuple[str, Mapping[str, float]]] = [("scores", scores), ("magnitude", magnitude(model, scores))]
    orders += [("random", dict(zip(scores, torch.rand(len(scores), generator=draws).tolist(), strict=True)))
               for _ in range(random)]  # fmt: skip
    rows = []
    for share in fractions:
        found = [
            (name, _point(model, every(best(order, share), groups), parts, cutting, rounds if n < 3 else 0))
            for n, (name, order) in enumerate(orders)
        ]
        for name in ("scores", "random", "magnitude"):
            mine = [point for order, point in found if order == name]
            if mine:
                kept = round(share * len(scores))
                rows.append({"order": name, "kept": kept, "share": kept / len(scores), **_summed(mine, seed)})
    meta = {"metric": "accuracy" if metric is None else metric_name(metric), "random": random, "rounds": rounds,
            "seed": seed, "examples": sum(x.batch for x, _ in parts), "cut": cutting,
            "threads": torch.get_num_threads()}  # fmt: skip
    return Curve(tuple(rows), meta)


def magnitude(model: Model, heads: Mapping[str, float]) -> dict[str, float]:
    """The Frobenius norm of each head's part of the output projection."""
    found, places = {}, labels(model.anatomy)
    for name in heads:
        tower, index, head = places[name]
        layer = model.anatomy.towers[tower].layer(index)
        weight = model.module.get_parameter(f"{layer.out}.weight").detach()
        part = weight.narrow(output_axis(model.module, layer), head * layer.d_value, layer.d_value)
        found[name] = float(part.double().norm())
    return found


def _parts(model: Model, data: Any, metric: Metric | None, batch: int) -> Parts:
    if not isinstance(data, Task):
        if metric is None:
            raise InputsError("inputs need a metric; a task brings its own.")
        return [(model.inputs(data), metric)]
    task = data if data.model is model else data.on(model)
    rows = [task.take(range(n, min(n + batch, len(task)))) for n in range(0, len(task), batch)]
    if metric is not None and len(rows) > 1:
        raise InputsError(f"a metric is for one batch: batch= has to be at least {len(task)}.")
    return [(part.clean, metric or _accuracy(part)) for part in rows]


def _accuracy(part: Task) -> Metric:
    if part.whole or part.score == "similarity":
        return part.metric
    among: Ids | None = None
    if all(part.wrong):
        among = tuple(a + b for a, b in zip(part.answer_ids, part.wrong_ids, strict=True))
    return Accuracy(part.answer_ids, among)


@dataclass(frozen=True, eq=False)
class _Point:
    values: Tensor
    seconds: float
    ratio: float


def _point(model: Model, gone: list[str], parts: Parts, cutting: bool, rounds: int) -> _Point:
    edits = masks(model, gone)
    own = cut(model, remains(model, gone), edits) if cutting and gone else model
    edits = () if cutting else edits
    values = [_judged(own, x, metric, edits) for x, metric in parts]
    times = [(_seconds(model, parts, ()), _seconds(own, parts, edits)) for _ in range(rounds)]
    whole, ours = (min((one[n] for one in times), default=torch.nan) for n in (0, 1))
    return _Point(torch.cat(values).double().cpu(), ours, ours / whole)


def _judged(own: Model, x: Inputs, metric: Metric, edits: Sequence[Any]) -> Tensor:
    with reading(own, metric) as metric:
        return judged(metric, x, own.run(x, edits=edits)["logits"])


def _seconds(own: Model, parts: Parts, edits: Sequence[Any]) -> float:
    with own.edited(edits), torch.no_grad():
        _wait(own)
        start = time.perf_counter()
        for x, _ in parts:
            own.module(**own.called_with(x.kwargs))
        _wait(own)
        return time.perf_counter() - start


def _wait(own: Model) -> None:
    """A GPU answers before it is done."""
    if own.device.type == "cuda":
        torch.cuda.synchronize(own.device)


def _summed(points: Sequence[_Point], seed: int) -> dict[str, float]:
    means = torch.stack([point.values.mean() for point in points])
    if len(points) > 1:
        low, high = means.min(), means.max()
    else:
        low, high = mean_interval(points[0].values[None], seed=seed)
    mean, times = float(means.mean()), {"seconds": points[0].seconds, "ratio": points[0].ratio}
    return {"metric": mean, "low": float(low), "high": float(high), **times}
