"""The edge graph of a tower: who writes into the residual, who reads it, and in which order.

Senders are `embed`, heads `L2.H3` and MLPs `L2.mlp_write`; receivers are `L2.H3.q_in`, `L2.K1.k_in`, `L2.K1.v_in` (one
per kv head, so grouped queries have fewer of these), `L2.mlp_in` and `logits`. An edge goes from a sender to any
receiver that reads later. MIB's and EAP-IG's graphs are the same but for kv heads, which they copy per query head.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from interp.hooks.anatomy.towers import Anatomy, Tower
from interp.hooks.errors import ModelError, SiteError
from interp.hooks.run.writes import spelled
from interp.hooks.sites import Site, nearest


@dataclass(frozen=True)
class LayerShape:
    """One layer as the graph sees it."""

    index: int
    heads: int
    kv_heads: int
    mlp: bool
    parallel: bool
    """The MLP reads what the attention reads, so that heads of its layer do not reach it."""


@dataclass(frozen=True)
class Graph:
    """Nodes and edges of a tower with these layers."""

    tower: str | None
    layers: tuple[LayerShape, ...]
    width: int | None = field(default=None, compare=False)
    """Of its residual, where it is known; files of others name it."""

    @classmethod
    def of(cls, anatomy: Anatomy, tower: Tower) -> Graph:
        """The graph of a model's tower; raises where its writes are not known."""
        found = []
        for layer in tower.layers:
            mlp = layer.missing.get("mlp_write") != "it has no MLP"
            for part in ("attn_write", *(("mlp_write", "mlp_in") if mlp else ())):
                if part not in layer.ports:
                    why = layer.missing.get(part, "it was not found in its block")
                    raise ModelError(f"{tower.name} layer {layer.index} has no {part}: {why}; it has no edges.")
            parallel = mlp and "resid_mid" not in layer.ports
            found.append(LayerShape(layer.index, layer.heads, layer.kv_heads, mlp, parallel))
        return cls(spelled(anatomy, tower), tuple(found), int(tower.width))

    @cached_property
    def senders(self) -> tuple[Site, ...]:
        """In the order they write."""
        found = [Site(self.tower, None, "embed")]
        for layer in self.layers:
            found += [Site(self.tower, layer.index, "attention", (head,)) for head in range(layer.heads)]
            found += [Site(self.tower, layer.index, "mlp_write")] if layer.mlp else []
        return tuple(found)

    @cached_property
    def receivers(self) -> tuple[Site, ...]:
        """In the order they read; the logits last."""
        found = []
        for layer in self.layers:
            for part, count in (("q_in", layer.heads), ("k_in", layer.kv_heads), ("v_in", layer.kv_heads)):
                found += [Site(self.tower, layer.index, part, (head,)) for head in range(count)]
            found += [Site(self.tower, layer.index, "mlp_in")] if layer.mlp else []
        return (*found, Site(None, None, "logits"))

    @cached_property
    def sender_at(self) -> Mapping[Site, int]:
        """The number of a sender."""
        return {site: n for n, site in enumerate(self.senders)}

    @cached_property
    def receiver_at(self) -> Mapping[Site, int]:
        """The number of a receiver."""
        return {site: n for n, site in enumerate(self.receivers)}

    @cached_property
    def by_index(self) -> Mapping[int, LayerShape]:
        """A layer by its number."""
        return {layer.index: layer for layer in self.layers}

    @cached_property
    def exists(self) -> Tensor:
        """[sender, receiver], whether there is such an edge."""
        return torch.tensor([[self._before(u, v) for v in self.receivers] for u in self.senders])

    def _before(self, sender: Site, receiver: Site) -> bool:
        if receiver.layer is None or sender.layer is None:
            return True
        within = receiver.component == "mlp_in" and not self.by_index[receiver.layer].parallel
        return sender.layer < receiver.layer or (within and sender.layer == receiver.layer and sender.heads is not None)

    @cached_property
    def feeds(self) -> Tensor:
        """[receiver, sender], whether what the receiver reads goes into what the sender writes."""
        return torch.tensor([[self._within(v, u) for u in self.senders] for v in self.receivers])

    def _within(self, receiver: Site, sender: Site) -> bool:
        if receiver.layer is None or receiver.layer != sender.layer:
            return False
        if receiver.heads is None or sender.heads is None:
            return receiver.heads is None and sender.heads is None
        layer = self.by_index[receiver.layer]
        group = 1 if receiver.component == "q_in" else layer.heads // layer.kv_heads
        return sender.heads[0] // group == receiver.heads[0]

    @cached_property
    def edges(self) -> tuple[tuple[int, int], ...]:
        """Every edge as (sender, receiver), receiver by receiver."""
        return tuple((int(u), int(v)) for v, u in self.exists.T.nonzero().tolist())

    def receivers_of(self, layer: int) -> list[Site]:
        """Everything that reads in a layer."""
        return [site for site in self.receivers if site.layer == layer]

    def heads_of(self, layer: int) -> slice:
        """The senders that are this layer's heads."""
        first = self.sender_at[Site(self.tower, layer, "attention", (0,))]
        return slice(first, first + self.by_index[layer].heads)

    def mlp_of(self, layer: int) -> int:
        """The sender that is this layer's MLP."""
        return self.sender_at[Site(self.tower, layer, "mlp_write")]

    def name(self, edge: tuple[int, int]) -> str:
        """`sender->receiver`."""
        return f"{self.senders[edge[0]]}->{self.receivers[edge[1]]}"

    def edge(self, sender: str, receiver: str) -> tuple[int, int]:
        """The edge of these two names."""
        names = {str(site): n for n, site in enumerate(self.senders)}, {str(s): n for n, s in enumerate(self.receivers)}
        for name, known, what in ((sender, names[0], "sender"), (receiver, names[1], "receiver")):
            if name not in known:
                raise SiteError(f"no {what} {name!r} in this graph.{nearest(name, known)}")
        u, v = names[0][sender], names[1][receiver]
        if not bool(self.exists[u, v]):
            raise SiteError(f"{sender} does not come before {receiver}, so there is no such edge.")
        return u, v

    def mask(self, edges: Iterable[tuple[int, int]]) -> Tensor:
        """[sender, receiver] with these edges."""
        found = torch.zeros_like(self.exists)
        pairs = torch.tensor(list(edges), dtype=torch.long).reshape(-1, 2)
        found[pairs[:, 0], pairs[:, 1]] = True
        return found

    def pruned(self, mask: Tensor) -> Tensor:
        """The edges that are on a path from the embedding to the logits."""
        kept, feeds = mask.clone(), self.feeds
        while True:
            read, written = kept.any(0), kept.any(1)
            alive = (feeds & read[:, None]).any(0)
            alive[0] = True
            useful = (feeds & (written & alive)[None]).any(1)
            useful[-1] = True
            new = kept & alive[:, None] & useful[None]
            if torch.equal(new, kept):
                return kept
            kept = new

    def described(self) -> dict[str, Any]:
        """As JSON holds it."""
        layers = [asdict(layer) for layer in self.layers]
        return {"tower": self.tower, "layers": layers, "width": self.width}

    @classmethod
    def read(cls, said: Mapping[str, Any]) -> Graph:
        """What `described` said."""
        layers: Sequence[Mapping[str, Any]] = said["layers"]
        return cls(said["tower"], tuple(LayerShape(**layer) for layer in layers), said.get("width"))
