"""A circuit whose edges are open by degrees, differentiable by how far they are.

`in_v = ablated residual at v + sum over u of m_uv (write_u now - write_u ablated)` with real m, receiver by receiver,
as `running.py` has it for edges that are in or out: with zeros and ones both give the same numbers. What a receiver
reads of a closed edge can also be noise, given per sender: then `(1 - m_uv) noise_u` is also read. Parameters are
frozen; a gradient goes to m alone. Cost: a forward pass with its graph in which each layer's q, k and v are computed
once per receiver, heads + 2 kv heads times. Memory: that graph, and one write [row, position, d] per sender.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from interp.circuits.graph.running import Runner
from interp.hooks.edits.edits import Set
from interp.hooks.slopes.gradients import frozen, refuse_rounding

Noise = Callable[[int, Tensor], Tensor]
"""From the number of the first of some senders and what they write beyond the ablated run [sender, row, position, d] to
what is read in their place where an edge is closed."""


@dataclass(eq=False)
class _Layer:
    """What one group of senders writes [sender, row, position, d], and what is read where they are closed."""

    start: int
    writes: Tensor
    instead: Tensor | None
    layer: int | None = None
    """The attention that they are heads of, where something that is not linear is behind it."""


@dataclass(eq=False)
class Soft:
    """Soft circuits of a pair; `gates` [sender, receiver], or [sender, receiver, row, position], say how far each edge
    is open."""

    runner: Runner
    noise: Noise | None = None
    written: list[_Layer] = field(default_factory=list)

    def __post_init__(self) -> None:
        refuse_rounding(self.runner.pair.model.module)

    def __call__(self, gates: Tensor) -> Tensor:
        """The metric [row], with a graph to the gates."""
        runner = self.runner
        self.gates = gates * runner.graph.exists.to(gates).reshape(*runner.graph.exists.shape, *[1] * (gates.ndim - 2))
        self.written = []
        with torch.enable_grad(), frozen(runner.pair.model.module):
            self._wrote(0, runner.full.embed[None])
            for layer in runner.blocks.layers:
                self._layer(layer)
            last = torch.tensor([len(runner.graph.receivers) - 1])
            read = self._reads(last, runner.left)[0]
            made = runner.judges(runner.tail.logits(runner.tail.normed(read, "final"), runner.judges.reads))[""]
        runner.count += 1
        return made

    def _layer(self, layer: int) -> None:
        runner, shape = self.runner, self.runner.graph.by_index[layer]
        z = self._heads(layer) - runner.there.z[layer]
        start, linear = runner.graph.heads_of(layer).start, runner.carries.linear(layer)
        by_head = runner.carries.by_head(layer, z, runner.pair.model.dtype)
        self._wrote(start, runner.carries.write(layer, by_head) if linear else by_head, None if linear else layer)
        if shape.mlp:
            self._wrote(runner.graph.mlp_of(layer), self._mlp(layer)[None])

    def _wrote(self, start: int, writes: Tensor, layer: int | None = None) -> None:
        instead = None if self.noise is None else self.noise(start, writes)
        self.written.append(_Layer(start, writes, instead, layer))

    def _reads(self, receivers: Tensor, ablated: Tensor) -> Tensor:
        """The residual that each of these receivers reads [receiver, row, position, d]."""
        made = ablated.expand(len(receivers), *ablated.shape)
        for one in self.written:
            senders = slice(one.start, one.start + len(one.writes))
            gates = self.gates[senders][:, receivers].to(one.writes)
            more = _mixed(gates, one.writes)
            if one.instead is not None:
                more = more + _mixed(1 - gates, one.instead)
            made = made + (more if one.layer is None else self._carried(one.layer, more)).to(made)
        return made

    def _carried(self, layer: int, more: Tensor) -> Tensor:
        """What a norm behind the attention makes of more of it."""
        out, carries = self.runner.out[layer], self.runner.carries
        return carries.write(layer, out + more) - carries.write(layer, out)

    def _heads(self, layer: int) -> Tensor:
        """z of every head, each from what its own q, k and v read."""
        runner, shape = self.runner, self.runner.graph.by_index[layer]
        counts = {"q": shape.heads, "k": shape.kv_heads, "v": shape.kv_heads}
        first = runner.receiver(layer, "q", 0)
        every = torch.arange(first, first + sum(counts.values()))
        hidden = self._reads(every, runner.before[layer]).flatten(0, 1)
        at = runner.blocks.run(runner.passed, layer, hidden, record=["q", "k", "v"], until="qkv", grad=True).at
        edits, start = [], 0
        for part, count in counts.items():
            own = torch.arange(count)
            whole = at[part].unflatten(0, (-1, runner.passed.rows))[start : start + count]
            value = whole.movedim(3, 1)[own, own].movedim(0, 2)
            edits.append(Set(str(runner.blocks.site(layer, part)), value))
            start += count
        run = runner.blocks.run(runner.passed, layer, runner.before[layer], edits=edits, record=["z"], until="z",
                                grad=True)  # fmt: skip
        return run.at["z"]

    def _mlp(self, layer: int) -> Tensor:
        runner, shape = self.runner, self.runner.graph.by_index[layer]
        receiver = torch.tensor([runner.mlp_receiver(layer)])
        if shape.parallel:
            hidden, edits = self._reads(receiver, runner.before[layer])[0], []
        else:
            read = self._reads(receiver, runner.middle[layer])[0]
            hidden, edits = runner.before[layer], [Set(str(runner.blocks.site(layer, "resid_mid")), read)]
        called = runner.blocks.run(runner.passed, layer, hidden, edits=edits, record=["mlp_write"], grad=True)
        return called.at["mlp_write"].reshape(hidden.shape) - runner.there.mlp[layer]


def _mixed(gates: Tensor, writes: Tensor) -> Tensor:
    """[receiver, row, position, d], each sender's write as far as it is let through."""
    if gates.ndim == 2:
        return torch.einsum("uv,ubpd->vbpd", gates, writes)
    return torch.einsum("uvbp,ubpd->vbpd", gates, writes)
