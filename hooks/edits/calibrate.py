"""Edits that look at a call before they change it: weight taken off sinks, and heads that keep sinks and the latest.

`Calibrate` is ACT (Yu et al. 2024, arXiv 2406.15765), on heads chosen by `interp.sink.act`. With m_j the mean of A[i,
j] over the rows i that see key j, the sinks of a head in an example are S = {j : m_j > threshold} but for the first
token, and in every row

    A[i, s] <- keep A[i, s]  for s in S,        A[i, t] <- A[i, t] (1 + (1 - keep) A[i, S] / A[i, not S])  otherwise

so that rows sum to what they did. The column means come from the kernels in one pass and the change in a second, both
without A. The authors' code has threshold 0.1 and keep 0.4, and spares the first sink it finds, which is the first
token where that is one. It counts keys that hardly any row sees, such as the last token; `least` leaves those out.

`Streaming` hides everything but the first and the latest keys, as StreamingLLM's cache does (Xiao et al. 2024, arXiv
2309.17453), in time and memory linear in length. Positions stay those of the text; that paper counts them anew in the
cache.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from interp.hooks.edits.edits import AtHeads, AttentionEdit, Phase, Place
from interp.hooks.errors import EditError
from interp.hooks.stand.call import Call, received
from interp.hooks.stand.near import Near
from interp.hooks.stand.softmax import Changes, Fused, Streamed
from interp.kernels import edits as kernel
from interp.kernels.attention import attend
from interp.kernels.masks.symbols import Dense, as_mask
from interp.kernels.stats import ratio


@dataclass(frozen=True, eq=False, repr=False)
class Calibrate(AttentionEdit):
    """ACT: sinks other than the first token keep `keep` of their weight, the rest goes to the other keys.

    In the prefill unless `phase` says more: a decoding step has one row, whose weights are then its column means.
    """

    by_head = True

    threshold: float = 0.1
    """A key is a sink if its mean weight is above this."""
    keep: float = 0.4
    """The share of its weight that a sink keeps, from 0 to 1."""
    least: int = 1
    """Keys seen by fewer rows are no sinks."""
    phase: Phase = field(default="prefill", kw_only=True)
    """"prefill" only in the prompt, "decode" only for new tokens, "both" in both."""

    def __post_init__(self) -> None:
        if not (0 <= self.threshold <= 1 and 0 <= self.keep <= 1 and self.least >= 1):
            raise EditError(f"{self!r}: threshold and keep are in [0, 1], least is at least 1.")

    def programs(self, call: Call, place: Place) -> Sequence[AtHeads]:
        """A redistribution for each head that has sinks."""
        found = self.sinks(call, place)
        edits = [
            (head, kernel.Redistribute(found[:, n], ~found[:, n], 1 - self.keep, (head,), place.rows))
            for n, head in enumerate(place.heads)
            if bool(found[:, n].any())
        ]
        return [((head,), Fused(Changes(edits=(edit,)))) for head, edit in edits]

    def sinks(self, call: Call, place: Place) -> Tensor:
        """Bool [example, head, key]: the sinks of the model's own pattern."""
        part, real = received(call, place.heads), place.real()
        arguments = dict(part.arguments)
        if real is not None:
            rows = real.to(part.q.device)[:, None, :, None].expand(-1, -1, -1, part.k.shape[2])
            arguments["mask"] = as_mask(part.mask) & Dense(rows)
        with torch.no_grad():
            stats = attend(part.q, part.k, None, stats=["received", "seen"], **arguments).stats
        return resting(stats["received"], stats["seen"], place.first(), threshold=self.threshold, least=self.least)


def resting(received: Tensor, seen: Tensor, first: Tensor, *, threshold: float, least: int) -> Tensor:
    """Bool [example, head, key]: keys whose mean weight over the rows that see them is above the threshold, the first
    real one [example] left out."""
    spared = torch.arange(seen.shape[-1], device=seen.device) == first.to(seen.device)[:, None]
    return (ratio(received, seen) > threshold) & (seen >= least) & ~spared[:, None]


@dataclass(frozen=True, eq=False, repr=False)
class Streaming(AttentionEdit):
    """Heads see the first `first` tokens and the last `recent` ones, the own token among these, and nothing between."""

    by_head = True

    first: int = 4
    """How many tokens at the start stay visible."""
    recent: int = 512
    """How many of the latest tokens stay visible, the own one among them."""

    def __post_init__(self) -> None:
        if not (self.first >= 0 and self.recent >= 1):
            raise EditError(f"{self!r}: first is at least 0 tokens, recent at least 1, the own one.")

    def programs(self, call: Call, place: Place) -> Sequence[AtHeads]:
        near = Near(place.first() + self.first, self.recent, place.heads, place.rows)
        return [(place.heads, Streamed(Changes(nears=(near,)), near=near))]
