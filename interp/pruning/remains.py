"""What stays of every layer when some heads go: a kv group goes when all its query heads go, and one group stays."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING

from interp.hooks.anatomy.towers import Layer
from interp.pruning.choose import labels

if TYPE_CHECKING:
    from interp.model import Model


@dataclass(frozen=True)
class Rest:
    """What stays of one layer."""

    layer: Layer
    heads: tuple[int, ...]
    """Query heads whose weights stay."""
    silent: tuple[int, ...]
    """Those of them that write nothing."""

    @property
    def first(self) -> bool:
        """Whether it is the first pass of its layer: the others have the same weights."""
        return self.layer.nth is None or self.layer.nth.number == 0

    @property
    def groups(self) -> tuple[int, ...]:
        """kv heads that stay."""
        return tuple(dict.fromkeys(head // self.layer.group for head in self.heads))


def rest(layer: Layer, gone: Collection[int]) -> Rest:
    """What stays when these heads shall go."""
    groups = {h // layer.group for h in range(layer.heads) if h not in gone} or {0}
    heads = tuple(h for h in range(layer.heads) if h // layer.group in groups)
    return Rest(layer, heads, tuple(h for h in heads if h in gone))


def remains(model: Model, gone: Collection[str]) -> dict[str, list[Rest]]:
    """What stays of every layer, by tower."""
    heads: dict[tuple[str, int], set[int]] = {}
    for name, (tower, layer, head) in labels(model.anatomy).items():
        if name in gone:
            heads.setdefault((tower, layer), set()).add(head)
    return {
        name: [rest(layer, heads.get((name, layer.index), ())) for layer in tower.layers]
        for name, tower in model.anatomy.towers.items()
    }
