"""One head on one card: what it is like, what its weights say, how it attends, what it does, where it looks.

A composition of `head_roles`, `head_circuits`, `sinks`, `m.attention`, `direct_effect` and `patch`, each by its own
definition and with its own limits; what has no meaning for the head is named on the card with the reason. Of roles the
head's place among all heads of its tower is told as well, and what it looks at and writes is described in words
(`interp/heads/kinds/plainly.py`), whatever kind it is or is not. Without a metric the head is judged by the logit of
what the model says at the end over that of its next choice. Cost: about a dozen forward passes over the data, and those
of the head's weights (one over as many tokens as the model is wide). Limits: effects are of the head alone; ablation by
the mean and by zero says what the answer loses, not that no other head could do the same.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from interp.finite import finite
from interp.heads.head_roles import head_roles
from interp.heads.kinds.plainly import Said, looked, wrote
from interp.heads.kinds.reading import head_sites, page_of, read_heads
from interp.heads.weights.head_circuits import head_circuits
from interp.hooks.errors import CheckFailed, InputsError, SiteError
from interp.hooks.head_names import heads_at
from interp.hooks.inputs.inputs import Inputs
from interp.hooks.run.tape import tower_inputs
from interp.hooks.run.weights import Rows
from interp.hooks.sites import Site
from interp.kernels.errors import InterpError
from interp.metrics.judge import Metric
from interp.metrics.named import metric_name
from interp.metrics.reading import on
from interp.metrics.shipped import LogitDifference, Reading
from interp.patching.direct_effect import direct_effect
from interp.patching.patch import patch
from interp.provenance import about, name_of
from interp.records import Method, register
from interp.results.card import HeadCard, Look, Number
from interp.results.intervals import mean_interval
from interp.sink.sinks import sinks
from interp.tasks.task import Task

if TYPE_CHECKING:
    from interp.model import Model

SHOWN = 256
"""Patterns of longer examples are not on the card; their largest weights are."""
LOOKS = 12
STATS = ("entropy", "max", "distance")


def head(
    model: Model, site: str, data: Any, *, metric: Metric | None = None, examples: int = 2, seed: int = 0
) -> HeadCard:
    """Everything known about one head, "L5.H3" or "vision.L0.H1", on some data: texts, inputs, or a task, whose metric
    is then used."""
    place = _place(model, site)
    task = (
        data if isinstance(data, Task) and data.model is model else data.on(model) if isinstance(data, Task) else None
    )
    x = model.inputs(data) if task is None else task.clean
    card = HeadCard(str(place), name_of(model.module), meta={**about(model.module, x), "method": "head card"})
    made = _Making(model, place, x, card)
    made.add("roles", lambda: _roles(model, place, x, seed))
    made.add("weights", lambda: _weights(model, place))
    made.add("sink", lambda: _sink(model, place, x))
    made.add("attention", lambda: _attention(model, place, x))
    chosen = on(model, metric) if metric is not None else None if task is None else task.metric
    answers = _answers(chosen)
    made.add("what it looks at", lambda: _said(looked(model, place, x, answers), "attention"))
    made.judge(chosen)
    made.add("what it writes", lambda: _said(wrote(model, place, x, answers), "effects"))
    made.add("looks", lambda: _looks(model, place, x, examples))
    return made.card


def _place(model: Model, site: str) -> Site:
    found = head_sites(model, site)
    if len(found) != 1 or found[0].heads is None or len(found[0].heads) != 1:
        raise SiteError(f"{site!r} means more than one head: name one, such as {heads_at(found[0], (0,))[0]!r}.")
    return found[0]


class _Making:
    """A card in the making: each part is added, or why it is not there."""

    def __init__(self, model: Model, place: Site, x: Inputs, card: HeadCard) -> None:
        self.model, self.place, self.x, self.card = model, place, x, card

    def add(self, name: str, part: Callable[[], dict[str, Any]]) -> None:
        """Some fields; what the part refuses is said on the card."""
        try:
            found = part()
        except CheckFailed:
            raise
        except InterpError as why:
            found = {"left_out": {name: str(why)}}
        left_out = {**self.card.left_out, **found.pop("left_out", {})}
        more: dict[str, Any] = {field: (*getattr(self.card, field), *values) for field, values in found.items()}
        self.card = replace(self.card, left_out=left_out, **more)

    def judge(self, metric: Metric | None) -> None:
        """What the head does to the answer."""
        model, place, x = self.model, self.place, self.x
        try:
            chosen = metric if metric is not None else _first_over_second(model, x)
        except InterpError as why:
            self.card = replace(self.card, left_out={**self.card.left_out, "effects": str(why)})
            return
        self.card = replace(self.card, meta={**self.card.meta, "metric": metric_name(chosen)})
        self.add("direct effect", lambda: _direct(model, place, x, chosen))
        for source in ("mean", "zero"):
            self.add(f"{source} ablation", lambda source=source: _ablated(model, place, x, chosen, source))  # type: ignore[misc]


def _number(name: str, values: Tensor, **more: Any) -> Number:
    """A number from its values per example."""
    finite(values, f"numbers of {name!r}")
    low, high = (float(one) for one in mean_interval(values.double().cpu()[None]))
    return Number(name, float(values.double().mean()), low, high, len(values), **more)


def _roles(model: Model, place: Site, x: Inputs, seed: int) -> dict[str, Any]:
    prefix = "" if place.tower is None else f"{place.tower}."
    found = head_roles(model, x, heads=f"{prefix}L*", seed=seed)
    at = found.sites.index(str(place))
    numbers = []
    for kind, values in found.values.items():
        mean = found.of(kind)
        rank, note = int((mean > mean[at]).sum()) + 1, found.notes.get(kind, ("",) * len(mean))[at]
        numbers.append(_number(kind, values[at], rank=rank, of=len(mean), note=note))
    ordered = sorted(numbers, key=lambda one: (one.name == "copying", -one.value))
    return {"roles": ordered, "left_out": dict(found.left_out)}


def _weights(model: Model, place: Site) -> dict[str, Any]:
    found = head_circuits(model, str(place))
    numbers = [
        Number(name, float(value[0]), float(value[0]), float(value[0]), 0) for name, value in found.scores.items()
    ]
    left_out = {name: why for name, why in found.left_out.items() if name != "composition"}
    if not found.pairs:
        return {"weights": numbers, "left_out": left_out}
    table = found.tokens(str(place))
    told = {
        field: [(row.source, row.target, float(row.logit)) for row in table[table["sign"] == sign].itertuples()]
        for sign, field in (("promoted", "promotes"), ("suppressed", "suppresses"))
    }
    return {"weights": numbers, **told, "left_out": left_out}


def _sink(model: Model, place: Site, x: Inputs) -> dict[str, Any]:
    found = sinks(model, x, heads=str(place), activations=False)
    return {"attention": [_number("weight on the first token (sink)", found.first[0])]}


def _attention(model: Model, place: Site, x: Inputs) -> dict[str, Any]:
    found = model.attention(x, stats=list(STATS), heads=str(place))
    valid = tower_inputs(x, place).valid.cpu().double()
    values = next(iter(found.values.values()))
    return {
        "attention": [
            _number(name, (values[name][:, 0].cpu().double() * valid).sum(1) / valid.sum(1)) for name in STATS
        ]
    }


def _said(found: Said, where: str) -> dict[str, Any]:
    return {where: [_number(name, values) for name, values in found.numbers.items()], "says": found.sentences}


def _answers(metric: Metric | None) -> dict[str, Any]:
    """The words that a metric holds against each other, where it knows some."""
    sides = {"the right answer": getattr(metric, "answers", None), "the wrong answer": getattr(metric, "wrong", None)}
    return {name: ids for name, ids in sides.items() if ids is not None and isinstance(metric, Reading)}


def _first_over_second(model: Model, x: Inputs) -> Metric:
    """What the model says at the end over its next choice."""
    tape = model.run(x)
    if "logits" not in tape:
        raise InputsError(f"{type(model.module).__name__} has no logits, so there is no answer to judge by.")
    logits = tape["logits"]
    last = logits if logits.ndim == 2 else logits[x.mask("last").to(logits.device)]
    best = last.topk(2, -1).indices.tolist()
    return LogitDifference(tuple((a,) for a, _ in best), tuple((b,) for _, b in best))


def _direct(model: Model, place: Site, x: Inputs, metric: Metric) -> dict[str, Any]:
    found = direct_effect(model, x, metric=metric)
    name = str(Site(place.tower, place.layer, "result", place.heads))
    if name not in found.sites:
        raise InputsError(f"{place} does not write to the logits directly: they are made from another tower.")
    return {"effects": [_number("direct effect", found.values[found.sites.index(name)])]}


def _ablated(model: Model, place: Site, x: Inputs, metric: Metric, source: Any) -> dict[str, Any]:
    name = str(Site(place.tower, place.layer, "z", place.heads))
    found = patch(model, base=x, source=source, metric=metric, sites=name)
    return {"effects": [_number(f"{source} ablation", found.values[0], note=f"noise floor {found.noise_floor:.1g}")]}


def _looks(model: Model, place: Site, x: Inputs, examples: int) -> dict[str, Any]:
    """The largest weights on real tokens, and whole patterns of the first examples where they are short."""
    page, mine = page_of(model, [place], x), tower_inputs(x, place)
    count = max(0, min(examples, mine.batch))
    kept: list[tuple[float, int, int, int]] = []
    pieces: list[Tensor] = []

    def read(rows: Rows) -> None:
        p = rows.weights[:count, 0].double().cpu()
        if page.length <= SHOWN:
            pieces.append(p)
        kept.extend(_largest(p, rows.at.cpu(), page.valid[:count], page.first[:count]))

    read_heads(model, [place], x, read, page=page)
    names = [_names(mine, row) for row in range(count)]
    best = sorted(kept, reverse=True)[:LOOKS]
    looks = [Look(b, i, names[b][i], j, names[b][j], value) for value, b, i, j in best]
    whole = torch.cat(pieces, 1) if pieces else torch.zeros(0)
    real = [page.valid[b].nonzero().flatten() for b in range(len(whole))]
    patterns = [tuple(map(tuple, whole[b][at][:, at].tolist())) for b, at in enumerate(real)]
    tokens = [tuple(names[b][i] for i in at.tolist()) for b, at in enumerate(real)]
    return {"looks": looks, "examples": tokens, "patterns": patterns}


def _largest(p: Tensor, at: Tensor, valid: Tensor, first: Tensor) -> list[tuple[float, int, int, int]]:
    """(weight, example, row, key), the first token as a key and a token's own weight left out."""
    if not len(p):
        return []
    keys = torch.arange(p.shape[2])
    allowed = valid[:, at, None] & (keys[None, None] != first[:, None, None]) & (keys[None, None] != at[None, :, None])
    flat = p.masked_fill(~allowed, -1.0).flatten()
    values, index = flat.topk(min(LOOKS, len(flat)))
    rows, n = len(at), p.shape[2]
    return [
        (value, i // (rows * n), int(at[i // n % rows]), i % n)
        for value, i in zip(values.tolist(), index.tolist(), strict=True)
        if value > 0
    ]


def _names(x: Inputs, row: int) -> list[str]:
    """What each position is called: its token, else what it is."""
    return [x.roles.label(row, i) if x.tokens is None else x.tokens[row][i] for i in range(x.length)]


register(
    Method(
        "interp.head",
        number="all of a head on one card, each number in the unit of its method",
        shown="page",
        needs=("metric",),
        made_of=(
            "interp.head_roles",
            "interp.heads.head_circuits",
            "interp.patching.direct_effect",
            "interp.patch",
            "interp.sinks",
        ),
        passes=lambda t: 16 + 6 * t.turned + 6 * t.layers,
        values=None,
        example=lambda t: head(t.model, f"{t.tower}L1.H1", t.base, metric=t.metric),
    )
)
