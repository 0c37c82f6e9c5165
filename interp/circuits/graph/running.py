"""A circuit run for real: every receiver reads the circuit's own writes along its edges and ablated ones elsewhere.

`in_v = ablated residual at v + sum over edges u -> v of (write_u now - write_u ablated)`, receiver by receiver: q, k
and v of each head from a residual of its own, through the model's own norm and projections, then its attention, then
its MLP, block by block, biases staying as they are. This is the edge-level interchange of EAP-IG and MIB (2403.17806,
2504.13151). Ablated writes are another run's, their mean over its real positions, or zeros. With every edge it is the
base run, with none the ablated one, both to rounding. A circuit of nodes keeps every edge out of its nodes. Heads and
MLPs that the circuit does not listen to are not computed. Cost: per circuit about one forward pass, and the projections
of q, k and v once per different residual that its receivers read. A norm behind the attention is recomputed.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

from interp.circuits.graph.changes import GraphPair, Written, filled
from interp.hooks.drive.recording import Recording
from interp.hooks.drive.tail import Tail
from interp.hooks.edits.edits import Set
from interp.hooks.errors import InputsError

Ablation = Literal["resample", "mean", "zero"]
Embed = Literal["whole", "tokens"]
"""What of the embedding is ablated: all of it, or what tokens give, learned positions staying as they are."""


@dataclass(eq=False)
class State:
    """What the circuit's senders write beyond what is ablated, up to some layer."""

    embed: Tensor
    z: dict[int, Tensor] = field(default_factory=dict)
    mlp: dict[int, Tensor] = field(default_factory=dict)

    def below(self, layer: int) -> State:
        """The part that was made before a layer."""
        return State(self.embed, *({n: x for n, x in some.items() if n < layer} for some in (self.z, self.mlp)))


class Runner:
    """Circuits of one pair: the base is what the circuit computes on, the source what is put in its place elsewhere."""

    def __init__(self, pair: GraphPair, ablation: Ablation = "resample", embed: Embed = "whole") -> None:
        self.pair, self.graph, self.blocks, self.carries = pair, pair.graph, pair.blocks, pair.carries
        self.there, self.source = pair.written()
        own = Written(torch.empty(0))
        self.passed = self._base(own)
        self.own = own
        if ablation != "resample":
            self.there = self._filled(ablation, embed)
        self.out: dict[int, Tensor] = {}
        self.before: dict[int, Tensor] = {}
        """The ablated residual before each layer's attention."""
        self.middle: dict[int, Tensor] = {}
        self.left = self._residuals()
        model = pair.model
        self.tail = Tail(
            model.module, self.blocks.tower, pair.kwargs(), left=self.passed.left, logits=self.passed.logits
        )
        self.judges = pair.judges(self.passed)
        self.count = 0

    def _base(self, own: Written) -> Recording:
        total: list[Tensor] = []

        def take(layer: int, part: str, value: Tensor) -> None:
            if part in ("attn_out", "attn_write"):
                self.carries.look(layer, part, value)
            else:
                (own.z if part == "z" else own.mlp)[layer] = value.clone()
            if part in ("attn_write", "mlp_write"):
                total[:] = [value.double() if not total else total[0] + value.to(total[0].device)]

        passed = self.blocks.record(self.pair.kwargs(), take=take, wanted=("z", "attn_out", "attn_write", "mlp_write"))
        own.embed = passed.entered[self.blocks.layers[0]]
        self.pair.check(total[0] + own.embed.to(total[0].device), passed.left)
        return passed

    def _filled(self, ablation: Literal["mean", "zero"], embed: Embed) -> Written:
        valid, there = self.pair.valid, self.there
        z, mlp = (
            {n: filled(ablation, x, valid) for n, x in part.items()} for part in (there.z, there.mlp)
        )  # fmt: skip
        kept = self._positions() if embed == "tokens" else torch.zeros_like(there.embed)
        return Written(filled(ablation, there.embed - kept, valid) + kept, z, mlp)

    def _positions(self) -> Tensor:
        """What the embedding has in addition to its tokens' rows of the table: the same in both runs, or it is not
        known."""
        find = getattr(self.pair.model.module, "get_input_embeddings", lambda: None)
        table, source = find(), self.pair.source
        ids = [x.ids for x in (self.pair.base, source) if not isinstance(x, str) and x.ids is not None]
        if table is None or len(ids) < 2:
            raise InputsError(
                "embed='tokens' needs a table of token embeddings, and none was found: use embed='whole'."
            )
        with torch.no_grad():
            rest = [x - table(i.to(x.device)) for x, i in zip((self.own.embed, self.there.embed), ids, strict=True)]
        if not torch.allclose(rest[0], rest[1], atol=1e-4 * float(self.own.embed.abs().max())):
            raise InputsError(
                "embed='tokens' takes the rest of the embedding, without the table's rows of its tokens, as positions;"
                " in this model that rest depends on the tokens (they are scaled, or normalised): use embed='whole'."
            )
        return rest[0]

    def _residuals(self) -> Tensor:
        """The residuals of a run whose every write is ablated; returns the last."""
        with torch.no_grad():
            now = self.there.embed
            for layer in self.blocks.layers:
                self.before[layer] = now
                self.out[layer] = self.carries.output(layer, self.there.z[layer]).reshape(now.shape)
                write = self.carries.write(layer, self.out[layer])
                now = now.to(write.device) + write
                self.middle[layer] = now
                if layer in self.there.mlp:
                    now = now + self.there.mlp[layer].to(now.device)
        return now

    @cached_property
    def full(self) -> State:
        """What the whole model writes beyond what is ablated."""
        z = {n: x - self.there.z[n] for n, x in self.own.z.items()}
        mlp = {n: x - self.there.mlp[n] for n, x in self.own.mlp.items()}
        return State(self.own.embed - self.there.embed, z, mlp)

    @cached_property
    def base(self) -> Tensor:
        """The metric of the base, per row."""
        return self.pair.judge([self.passed]).double().cpu()

    def __call__(self, mask: Tensor, *, start: int | None = None) -> Tensor:
        """The metric [row] of the circuit with these edges [sender, receiver]. Below `start` it is known to compute
        what the whole model does."""
        with torch.no_grad():
            left = self.logits_in(mask & self.graph.exists, start)
            read = self.tail.logits(self.tail.normed(left, "final"), self.judges.reads)
        self.count += 1
        return self.judges(read)[""].double().cpu()

    def logits_in(self, mask: Tensor, start: int | None = None) -> Tensor:
        """The last residual as the logits read it."""
        heard = mask.any(1)
        state = State(self.full.embed) if start is None else self.full.below(start)
        for layer in self.blocks.layers:
            if start is not None and layer < start:
                continue
            shape, heads = self.graph.by_index[layer], self.graph.heads_of(layer)
            live = heard[heads].nonzero()[:, 0].tolist()
            if live:
                state.z[layer] = self._heads(layer, live, mask, state)
            if shape.mlp and bool(heard[self.graph.mlp_of(layer)]):
                state.mlp[layer] = self._mlp(layer, mask, state)
        return self._reads(self.left, mask[:, -1], state)

    def _reads(self, ablated: Tensor, column: Tensor, state: State) -> Tensor:
        """The residual that a receiver with these incoming edges reads."""
        made = ablated
        if bool(column[0]):
            made = made + state.embed.to(made.device)
        for layer, change in state.z.items():
            kept = column[self.graph.heads_of(layer)]
            if bool(kept.any()):
                made = made + self._write(layer, change * kept[:, None].to(change)).to(made.device)
        for layer, change in state.mlp.items():
            if bool(column[self.graph.mlp_of(layer)]):
                made = made + change.to(made.device)
        return made

    def _write(self, layer: int, change: Tensor) -> Tensor:
        """What an attention writes beyond what is ablated, for a change of z."""
        more = self.carries.project(layer, change)
        if self.carries.linear(layer):
            return self.carries.write(layer, more)
        out = self.out[layer]
        return self.carries.write(layer, out + more) - self.carries.write(layer, out)

    def _heads(self, layer: int, live: list[int], mask: Tensor, state: State) -> Tensor:
        """z of the heads that are listened to, beyond what is ablated; the others' is 0."""
        shape, group = self.graph.by_index[layer], 0
        group = shape.heads // shape.kv_heads
        kv = list(dict.fromkeys(head // group for head in live))
        wanted = [("q", h) for h in live] + [(part, g) for part in "kv" for g in kv]
        first = self.receiver(layer, "q", 0)
        columns = [
            mask[:, first + {"q": 0, "k": shape.heads, "v": shape.heads + shape.kv_heads}[p] + h] for p, h in wanted
        ]
        different, which = torch.unique(torch.stack(columns), dim=0, return_inverse=True)
        hidden = torch.cat([self._reads(self.before[layer], column, state) for column in different])
        at = self.blocks.run(self.passed, layer, hidden, record=["q", "k", "v"], until="qkv").at
        rows = self.passed.rows
        edits = []
        for part in "qkv":
            whole = at[part].unflatten(0, (-1, rows))
            value = whole[0].clone()
            for (name, head), n in zip(wanted, which.tolist(), strict=True):
                if name == part:
                    value[:, :, head] = whole[n, :, :, head]
            edits.append(Set(str(self.blocks.site(layer, part)), value))
        called = self.blocks.run(self.passed, layer, self.before[layer], edits=edits, record=["z"], until="z")
        kept = torch.zeros(shape.heads, dtype=torch.bool)
        kept[live] = True
        return (called.at["z"] - self.there.z[layer]) * kept[:, None].to(called.at["z"])

    def receiver(self, layer: int, part: str, head: int) -> int:
        """The number of a head's q, k or v as receiver."""
        site = next(
            s for s in self.graph.receivers if (s.layer, s.component, s.heads) == (layer, f"{part}_in", (head,))
        )
        return self.graph.receiver_at[site]

    def mlp_receiver(self, layer: int) -> int:
        """The number of a layer's MLP as receiver."""
        return self.graph.receiver_at[self.blocks.site(layer, "mlp_in")]

    def _mlp(self, layer: int, mask: Tensor, state: State) -> Tensor:
        shape = self.graph.by_index[layer]
        column = mask[:, self.mlp_receiver(layer)]
        if shape.parallel:
            hidden, edits = self._reads(self.before[layer], column, state), []
        else:
            read = self._reads(self.middle[layer], column, state)
            hidden, edits = self.before[layer], [Set(str(self.blocks.site(layer, "resid_mid")), read)]
        called = self.blocks.run(self.passed, layer, hidden, edits=edits, record=["mlp_write"])
        return called.at["mlp_write"].reshape(hidden.shape) - self.there.mlp[layer]
