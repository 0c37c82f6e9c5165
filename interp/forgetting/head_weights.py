"""The weights of each head, as places in parameters, and the squared gradients of a loss there.

A head's weights are its rows of W_Q (biases too), those of its kv head in W_K and W_V, and its columns of W_O, found by
asking the model (`interp/pruning/owners.py`). Heads of a group share their kv head's rows, which count for each.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from interp.heads.measures.asked import Asked
from interp.hooks.anatomy.towers import Layer, Tower
from interp.hooks.errors import InputsError, ModelError
from interp.hooks.head_names import head_name
from interp.hooks.sites import Site
from interp.metrics.judge import judged
from interp.metrics.reading import reading
from interp.pruning.owners import Split, output_axis, owners
from interp.tasks.task import Task

if TYPE_CHECKING:
    from interp.model import Model

Places = Sequence[tuple[str, int, Tensor]]
"""Parameter, axis, and the indices along it."""


@dataclass(frozen=True, eq=False)
class WeightsByHead:
    """Where the weights of the heads are, by head."""

    places: Mapping[str, Places]

    @classmethod
    def of(cls, model: Model, sites: Sequence[Site]) -> WeightsByHead:
        """Of the heads that sites of z name, in their order."""
        by_layer: dict[tuple[str, int], list[Site]] = {}
        for site in sites:
            tower = model.anatomy.tower(site.tower, text=str(site)).name
            by_layer.setdefault((tower, site.layer or 0), []).append(site)
        splits = _splits(model, list(by_layer))
        found = {}
        for (name, index), mine in by_layer.items():
            layer = model.anatomy.towers[name].layer(index)
            for site in mine:
                (head,) = site.heads or (0,)
                label = head_name(site.tower, index, head)
                found[label] = _places(model.module, layer, splits[name, index], head)
        return cls(found)

    def names(self) -> list[str]:
        """Every parameter that a head has weights in, once."""
        return list(dict.fromkeys(name for places in self.places.values() for name, _, _ in places))

    def sums(self, values: Mapping[str, Tensor]) -> Tensor:
        """[head], a quantity per weight summed over each head's."""
        return torch.stack([sum((part.sum() for part in self.parts(head, values)), torch.zeros(()).double())
                            for head in self.places])  # fmt: skip

    def parts(self, head: str, values: Mapping[str, Tensor]) -> Iterator[Tensor]:
        """A head's weights' part of a quantity per weight, on the CPU."""
        for name, axis, index in self.places[head]:
            yield values[name].index_select(axis, index.to(values[name].device)).double().cpu()


def _splits(model: Model, layers: Sequence[tuple[str, int]]) -> dict[tuple[str, int], list[Split]]:
    found: dict[tuple[str, int], list[Split]] = {}
    for name in dict.fromkeys(tower for tower, _ in layers):
        tower: Tower = model.anatomy.towers[name]
        mine = [tower.layer(index) for known, index in layers if known == name]
        try:
            found |= {(name, index): one for index, one in owners(model, tower, mine).items()}
        except ModelError as why:
            raise ModelError(
                f"the weights of single heads cannot be told apart: {why} interp.importance(by='fisher-ratio') asks"
                " the same of gates on heads, which need no weights."
            ) from why
    return found


def _places(root: nn.Module, layer: Layer, splits: Sequence[Split], head: int) -> Places:
    group = head // layer.group
    mine = {("q", head), ("k", group), ("v", group)}
    found = []
    for split in splits:
        index = [n for n, unit in enumerate(split.owner) if unit in mine]
        if index:
            found.append((split.name, split.axis, torch.tensor(index)))
    width = layer.d_value
    axis = output_axis(root, layer)
    return [*found, (f"{layer.out}.weight", axis, torch.arange(head * width, (head + 1) * width))]


@contextmanager
def asking(parameters: Sequence[nn.Parameter]) -> Iterator[None]:
    """These parameters take gradients while inside, and are then as they were."""
    before = [p.requires_grad for p in parameters]
    try:
        for p in parameters:
            p.requires_grad_()
        yield
    finally:
        for p, wanted in zip(parameters, before, strict=True):
            p.requires_grad_(wanted)


def squared(asked: Asked, named: Mapping[str, nn.Parameter], batch: int) -> Iterator[dict[str, Tensor]]:
    """For each `batch` rows of the data the squared gradient of their mean loss, minus log p of the right answer."""
    held = list(named.values())
    with asking(held):
        for loss, more in _losses(asked, batch):
            if not bool(torch.isfinite(loss)):
                raise InputsError("the loss of the right answers is not finite: nothing can be said of its gradient.")
            if not loss.requires_grad:
                raise InputsError("the likelihood has no gradient: give answers that are read off the model's logits.")
            slopes = torch.autograd.grad(loss, held, retain_graph=more, allow_unused=True)
            yield {name: torch.zeros_like(p, dtype=torch.float64) if slope is None else slope.double().square()
                   for (name, p), slope in zip(named.items(), slopes, strict=True)}  # fmt: skip


def _losses(asked: Asked, batch: int) -> Iterator[tuple[Tensor, bool]]:
    """Mean losses of some rows at a time, and whether more follow from one run. Rows of a task are run one by one;
    inputs are run once, since rows of pictures and words cannot be taken apart in general."""
    if isinstance(asked.data, Task):
        parts = [asked.data.take(range(n, min(n + batch, len(asked.data)))) for n in range(0, len(asked.data), batch)]
        for n, part in enumerate(parts):
            rows = range(n * batch, n * batch + len(part))
            yield _values(asked, part.clean, rows).mean(), False
        return
    values = _values(asked, asked.x, range(asked.x.batch))
    for n in range(0, len(values), batch):
        yield values[n : n + batch].mean(), n + batch < len(values)


def _values(asked: Asked, x: Any, rows: range) -> Tensor:
    metric = asked.likelihood()
    taken = metric.take(rows) if len(rows) < asked.x.batch and hasattr(metric, "take") else metric
    with reading(asked.model, taken):
        tape = asked.model.run(x, grad=True)
    return -judged(taken, x, tape["logits"])
