"""Activation patching: run the base, put in what the source had at one place, and see how the answer moves.

`effect = metric(patched) - metric(base)`. Denoising is `base=corrupt, source=clean`, noising the other way round;
there is no default. Exact for the site, direction, corruption and metric named in the result (Vig et al. 2020, arXiv
2004.12265; Zhang and Nanda 2024, arXiv 2309.16042, on what these choices do to the answer). Cost: one recorded pass of
base and source each, then only what each patch can reach (`hooks/drive/replay.py`): a sweep over all heads of a
12-layer model comes to a few dozen forward passes instead of 144. Three cells are checked against a full pass every
time. Limits: k and v are per kv head; windows and groups amplify and are not sums of their members.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, overload

from interp.cells.shards import Asked, ShardDone, asked, part
from interp.hooks.errors import InputsError
from interp.hooks.inputs.inputs import Positions
from interp.metrics.judge import Metric
from interp.metrics.reading import hands_over
from interp.patching.alignment import How, Reduce
from interp.patching.cells import Group, targets
from interp.patching.exact import Question, is_run
from interp.patching.sources import Source
from interp.patching.swept import effects, shard_of
from interp.records import Method, register
from interp.results.effects import Effects

if TYPE_CHECKING:
    from interp.model import Model


@overload
def patch(model: Model, *, base: Any, source: Source, metric: Metric, **how: Any) -> Effects: ...
@overload
def patch(
    model: Model, *, base: Any, source: Source, metric: Mapping[str, Metric], **how: Any
) -> dict[str, Effects]: ...


@hands_over  # type: ignore[misc]  # the overloads spell the metric out, and leave the rest to this
def patch(
    model: Model,
    *,
    base: Any,
    source: Source,
    metric: Metric | Mapping[str, Metric],
    sites: str | Iterable[str] = (),
    cells: Sequence[Group] = (),
    window: int = 1,
    pairs: bool = False,
    positions: Literal["joint", "each"] | Positions = "joint",
    align: How | None = None,
    reduce: Reduce | None = None,
    source_model: Model | None = None,
    both: bool = False,
    out: str | Path | None = None,
    budget: int | None = None,
    seed: int = 0,
    shard: Asked = None,
    engine: Any = None,
) -> Effects | dict[str, Effects] | ShardDone:
    """The effect of every cell: `L*.H*.z` has one per layer and head, `L*.resid_pre` one per layer.

    `positions="joint"` patches all positions of a site together, "each" makes the position an axis, anything else says
    which ones. `cells` are groups patched together, `[["L1.H2.z", "L3.H0.z"], ("L2.neurons", 17)]`, a pair of site and
    indices being some units of it; `window=3` patches three neighbouring layers together, and `pairs=True` adds every
    pair of cells (`Effects.interactions()` is what they do beyond their sum).
    `source` is another input of the same shape, a tape, "zero", "mean" (over the base's real positions), "noise", or
    `interp.patching.Average(dataset)`, `interp.patching.Noise(...)`. For inputs that do not line up give `align=` and
    `reduce=` (`interp/patching/alignment.py`). `source_model` runs the source in another model of the same shape. Give
    several metrics as a dict by name; the result is then a dict too. `both=True` also patches the base into the source;
    that is `Effects.reverse`. `out=` is a directory for the sweep: if the call is killed, make it again to continue.
    `budget` is the largest number of bytes of one chunk. `shard=(0, 4)` computes the first of four parts of the chunks,
    in its own directory, and returns how much was done; `interp.scale.merge` makes the result of all four. `engine`
    says what computes the chunks (`interp/cells/work.py`).
    """
    mine = asked(shard, out)
    model.ready()
    chosen = targets(model, sites, cells, window, pairs=pairs)
    question = Question(model, chosen, positions, align, reduce, source_model, seed, out, budget)
    metrics = dict(metric) if isinstance(metric, Mapping) else {"": metric}
    if not metrics:
        raise InputsError("no metric was given.")
    if both and (source_model is not None or not is_run(source)):
        raise InputsError("both=True turns base and source around: it needs a source that is inputs to this model.")
    x = model.inputs(base)
    y: Any = model.inputs(source) if both else source
    if mine is not None:
        done = shard_of(mine, question, x, y, metrics, engine)
        if both:
            shard_of(mine, question.turned(), y, x, metrics, engine)
        return part(done.folder, done.call, mine) if both else done
    found = effects(question, x, y, metrics, engine)
    if both:
        back = effects(question.turned(), y, x, metrics, engine)
        found = {name: replace(one, reverse=back[name]) for name, one in found.items()}
    return found if isinstance(metric, Mapping) else found[""]


register(
    Method(
        "interp.patch",
        number="exact: the head's z of the other run put into this one; effect on the metric",
        shown="map",
        needs=("metric", "source"),
        label="patch",
        papers=("2004.12265", "2309.16042"),
        passes=lambda t: 5 + t.sweep,
        example=lambda t: patch(t.model, base=t.base, source=t.source, metric=t.metric, sites=f"{t.heads}.z"),
    )
)
