"""Edge scores by contextual decomposition: what of the metric came from a sender, through one receiver.

Hsu et al. 2024, CD-T (arXiv 2407.00886). Every activation of the base is a sum of a relevant part beta and the rest
gamma, and every layer has a rule that makes parts of its output from parts of its input (`parts.py`): matrices and
norms are linear once the norm's scale is held, and share their constants by size; attention keeps the pattern it has;
an activation's relevant part is act(beta + gamma) - act(gamma). Here one receiver v reads

    beta = write_u(base) - write_u(source),    gamma = in_v - beta

everything else in the base being irrelevant, and the parts are taken on through all that follows; the score is
`metric(gamma at the logits) - metric(base)`, which for a difference of logits is minus that of beta. No other run than
the base is computed on: the source only says what is relevant, as the mean over prompts does in the paper's code (here
"mean" or a run; with "zero" all that a sender writes is). Where norms, patterns and constants do not move, the score is
the exact effect. Ours: the paper scores heads at positions by all that came from them at the logits or at a head that
was found before; edges by the same rules, at all positions, are what this graph asks for. The paper's code also gives
the sum of two numbers of opposite sign to the larger one, which hides whatever the rest outweighs: left out. The bias
of the matrix behind the last norm, where there is one, stays with the rest. Cost: two recorded passes, and per edge
into a value, an MLP or the logits the blocks from its receiver on, twice, since both parts go through them: on a GPT-2
of four layers about twice the time of exact patching of all edges. Memory: q and k of every layer, and `TOGETHER`
senders at a time. Limits: patterns are held, so edges into queries and keys have 0 and whoever selects is missed;
constants count as caused by what they are added to; there is no rule for products of two parts, so gated MLPs and
experts are refused, and so is whatever does not let the parts add up.
"""

from __future__ import annotations

import torch
from torch import Tensor

from interp.circuits.discovery.parts import apart, check, joined, refuse_rules, shares
from interp.circuits.graph import estimates
from interp.circuits.graph.changes import GraphPair, Written
from interp.circuits.graph.exact import change_of
from interp.circuits.graph.slopes import Scored
from interp.hooks.drive.tail import Tail
from interp.hooks.edits.edits import Set
from interp.hooks.sites import Site
from interp.records import Variant, register

TOGETHER = 16
"""Senders whose parts are taken on side by side."""


def contextual(pair: GraphPair, steps: int) -> Scored:
    """The score of every edge into a value, an MLP or the logits; 0 into queries and keys."""
    for layer in pair.blocks.tower.layers:
        refuse_rules(pair.model.module, layer, mlp=pair.graph.by_index[layer.index].mlp)
    more, score, other = pair.changes()
    with torch.no_grad():
        found = _Contextual(pair, more).scores()
    return estimates.by_edge(pair.graph, found), score, other, {}


class _Contextual:
    def __init__(self, pair: GraphPair, more: Written) -> None:
        self.pair, self.graph, self.blocks, self.more = pair, pair.graph, pair.blocks, more
        self.passed = pair.blocks.record(pair.kwargs(), take=pair.carries.take, wanted=pair.carries.wanted)
        self.judges, left = pair.judges(self.passed), self.passed.left
        module, tower = pair.model.module, pair.blocks.tower
        self.tail = Tail(module, tower, pair.kwargs(), left=left, logits=self.passed.logits)
        self.base = self._metric(left)
        self.seen = {layer: self._look(layer) for layer in self.blocks.layers}
        """What each block of the base has at q, k, v, and where its MLP reads and writes."""

    def _look(self, layer: int) -> dict[str, Tensor]:
        shape = self.graph.by_index[layer]
        mlp = [] if not shape.mlp else ["mlp_write"] if shape.parallel else ["resid_mid", "mlp_write"]
        called = self.blocks.run(self.passed, layer, self.passed.entered[layer], record=["q", "k", "v", *mlp])
        return dict(called.at)

    def scores(self) -> Tensor:
        """[row, sender, receiver]."""
        counts = len(self.graph.senders), len(self.graph.receivers)
        found = torch.zeros(self.pair.base.batch, *counts, dtype=torch.float64)
        for v, receiver in enumerate(self.graph.receivers):
            if receiver.component in ("q_in", "k_in"):
                continue
            senders = self.graph.exists[:, v].nonzero()[:, 0]
            for some in senders.split(TOGETHER):
                found[:, some, v] = self._effects(receiver, some.tolist()).T
        return found

    def _effects(self, receiver: Site, senders: list[int]) -> Tensor:
        """[sender, row], the effect of each sender through one receiver."""
        left, last = self.passed.left, self.blocks.layers[-1]
        changes = [change_of(self.pair, self.more, u, left.dtype).to(left.device) for u in senders]
        beta = -torch.cat(changes)
        if receiver.layer is None:
            return self._judged(joined(beta, left))
        layer = receiver.layer
        parts = self._mlp(layer, beta) if receiver.heads is None else self._value(layer, receiver.heads[0], beta)
        for later in range(layer + 1, last + 1):
            parts = self._through(later, parts, [])
        return self._judged(parts)

    def _value(self, layer: int, head: int, beta: Tensor) -> Tensor:
        """The parts of a block's output when the values of one kv head alone read beta."""
        entered, v = self.passed.entered[layer], self.seen[layer]["v"]
        with apart(self.pair.model.module, self.blocks.tower.by_index[layer]):
            parts = joined(beta.to(entered.device), entered)
            made = self.blocks.run(self.passed, layer, parts, record=["v"], until="qkv").at["v"]
        check(made, v, f"the values of layer {layer}")
        only = torch.zeros_like(made.chunk(2)[0])
        only[:, :, head] = made.chunk(2)[0][:, :, head]
        nothing = torch.zeros_like(parts.chunk(2)[0])
        return self._through(layer, joined(nothing, entered), [Set(str(self.blocks.site(layer, "v")), joined(only, v))])

    def _mlp(self, layer: int, beta: Tensor) -> Tensor:
        """The parts of a block's output when its MLP alone reads beta."""
        entered, seen, edits = self.passed.entered[layer], self.seen[layer], []
        parts = joined(beta.to(entered.device), entered)
        if not self.graph.by_index[layer].parallel:
            edits = [Set(str(self.blocks.site(layer, "resid_mid")), joined(beta.to(entered.device), seen["resid_mid"]))]
        with apart(self.pair.model.module, self.blocks.tower.by_index[layer]):
            made = self.blocks.run(self.passed, layer, parts, edits=edits, record=["mlp_write"]).at["mlp_write"]
        made, write = made.reshape(parts.shape), seen["mlp_write"].reshape(entered.shape)
        check(made, write, f"what the MLP of layer {layer} writes")
        return joined(made.chunk(2)[0], self._after(layer))

    def _through(self, layer: int, parts: Tensor, edits: list[Set]) -> Tensor:
        """The parts of a block's output, for those of its input, with the base's pattern."""
        times = len(parts) // self.passed.rows
        held = [Set(str(self.blocks.site(layer, part)), self.seen[layer][part].repeat(times, 1, 1, 1)) for part in "qk"]
        parts = parts.to(self.passed.entered[layer].device)
        with apart(self.pair.model.module, self.blocks.tower.by_index[layer]):
            made = self.blocks.run(self.passed, layer, parts, edits=[*held, *edits]).whole
        check(made, self._after(layer), f"the residual behind layer {layer}")
        return made

    def _after(self, layer: int) -> Tensor:
        """The residual of the base behind a layer."""
        return self.passed.entered.get(layer + 1, self.passed.left)

    def _judged(self, parts: Tensor) -> Tensor:
        """[version, row], what the metric of the irrelevant part is beyond that of the base."""
        rest = parts.chunk(2)[1].unflatten(0, (-1, self.passed.rows))
        constant = shares(parts.double()).chunk(2)[1].unflatten(0, (-1, self.passed.rows))
        final = self.tail.frozen
        normed = [final.linear(one) + share * final.shift for one, share in zip(rest, constant, strict=True)]
        return torch.stack([self._read(one.to(parts.dtype)) - self.base for one in normed])

    def _metric(self, left: Tensor) -> Tensor:
        return self._read(self.tail.normed(left, "frozen"))

    def _read(self, normed: Tensor) -> Tensor:
        return self.judges(self.tail.logits(normed, self.judges.reads))[""].double().cpu()


register(
    Variant(
        "interp.edges", "cd-t", number="part of the metric that a sender gives through a receiver, patterns held fixed",
        run=contextual, order=7, papers=("2407.00886",), how={"alone": False},
        passes=lambda t: 2 * t.edges + 3 * t.layers + 5,
        unfit={
            "decoder": "the MLPs of this one are gated, and there is no rule for a product of two parts",
            "encoder-decoder": "the blocks of its decoder have several attentions",
        },
    )
)  # fmt: skip
