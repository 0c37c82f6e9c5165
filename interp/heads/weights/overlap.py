"""Which heads read and write in the same directions: the overlap of the spaces of their weights.

The projection kernel of two spaces with orthonormal bases U and W is the sum of the squared cosines of their principal
angles,

    PK = |U^T W|_F^2,    from 0 to the smaller rank,

whatever bases were chosen (a standard kernel of subspaces; on heads it is used by TransformerLens). The spaces of a
head are the columns of W_Q, W_K and W_V, in which it reads, and the rows of W_O, in which it writes. Here PK is divided
by the square root of the ranks' product, so that equal spaces have 1; two random spaces of ranks r and s in d
dimensions have sqrt(r s) / d on average, which the result also has. `space` says which are compared: "oq" a head's
writes with later heads' queries (where composition can happen at all), "ok", "ov", or the same space of all pairs,
"oo", "qq", "kk", "vv". Cost: the weights as `interp/heads/weights/matrices.py` asks for them, then products of d x
d_head by pair. Limits: all directions of a space count alike, however little the head makes of some; composition scores
(`head_circuits`) weigh them. Norm gains are folded into what is read. Query heads of one kv head share k and v.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from torch import Tensor

from interp.heads.weights.spaces import HeadWeights, basis, weights_of
from interp.hooks.errors import InputsError
from interp.provenance import about
from interp.records import Method, register
from interp.results.figures.figure import Figure
from interp.results.figures.marks import Heatmap
from interp.results.saved import Saved

if TYPE_CHECKING:
    from interp.model import Model

Space = Literal["oq", "ok", "ov", "oo", "qq", "kk", "vv"]


@dataclass(frozen=True, eq=False)
class HeadOverlap(Saved):
    """`values` [sender, receiver], 0 to 1; NaN where the receiver is not in a later layer, or a head with itself."""

    STEM = "overlap"

    sites: tuple[str, ...]
    """The heads, such as "L5.H3"."""
    values: Tensor
    """[sender, receiver]: 0 to 1; NaN for pairs that are not compared."""
    baseline: Tensor
    """What random spaces of these ranks have."""
    ranks: tuple[tuple[int, int], ...]
    """By head, of its first and its second space."""
    space: str
    """Which spaces are compared, the sender's first: "oq", "ok", "ov", "oo", "qq", "kk" or "vv"."""
    meta: Mapping[str, Any] = field(default_factory=dict)

    def to_frame(self) -> Any:
        """One row per pair: sender, receiver, overlap, baseline, excess; the largest excess first."""
        import pandas

        pairs = (~self.values.isnan()).nonzero().tolist()
        symmetric = self.space[0] == self.space[1]
        rows = [
            {"sender": self.sites[a], "receiver": self.sites[b], "overlap": float(self.values[a, b]),
             "baseline": float(self.baseline[a, b]), "excess": float(self.values[a, b] - self.baseline[a, b])}
            for a, b in pairs if not symmetric or a < b
        ]  # fmt: skip
        frame = pandas.DataFrame(rows, columns=["sender", "receiver", "overlap", "baseline", "excess"])
        return frame.sort_values("excess", ascending=False, kind="stable", ignore_index=True)

    def top(self, n: int = 10) -> Any:
        """The n pairs that overlap most beyond random spaces."""
        return self.to_frame().head(n)

    def _figure(self) -> Figure:
        """Overlap beyond random spaces, senders by receivers."""
        values = (self.values - self.baseline).numpy()
        return Figure([Heatmap(values, self.sites, self.sites, x="receiver", y="sender", name="beyond random")])

    def __repr__(self) -> str:
        rows = [f"{r.sender} and {r.receiver} {r.overlap:.2f}" for r in self.top(3).itertuples()]
        return f"HeadOverlap ({self.space}) of {len(self.sites)} heads: {', '.join(rows) or 'no pairs'}"


def head_overlap(model: Model, heads: str = "L*", *, space: str = "oq") -> HeadOverlap:
    """The normalised projection kernel of every pair of heads that a pattern means."""
    if space not in get_args(Space):
        raise InputsError(f"space is one of {', '.join(get_args(Space))}, got {space!r}.")
    _, every = weights_of(model, heads)
    first, second = ([basis(_columns(one, side)) for one in every] for side in space)
    between = torch.stack([torch.stack([_kernel(a, b) for b in second]) for a in first])
    width = every[0].v.shape[0]
    ranks = tuple((a.shape[1], b.shape[1]) for a, b in zip(first, second, strict=True))
    chance = torch.tensor([[math.sqrt(a * b) / width for _, b in ranks] for a, _ in ranks]).double()
    layers = torch.tensor([one.layer for one in every])
    same = torch.eye(len(every), dtype=torch.bool)
    left_out = same if space[0] == space[1] else layers[:, None] >= layers[None]
    names = tuple(one.name for one in every)
    meta = {**about(model.module, None), "method": "projection kernel", "space": space}
    return HeadOverlap(names, between.masked_fill(left_out, torch.nan), chance, ranks, space, meta)


def _columns(head: HeadWeights, side: str) -> Tensor:
    """What spans the space [d, n]."""
    if side == "o":
        return head.o.mT
    if side == "v":
        return head.v
    q, k = head.qk()
    return q if side == "q" else k


def _kernel(a: Tensor, b: Tensor) -> Tensor:
    rank = math.sqrt(a.shape[1] * b.shape[1])
    return (a.mT @ b).square().sum() / rank if rank else torch.zeros((), dtype=torch.double)


register(
    Method(
        "interp.heads.head_overlap",
        number="share of two spaces of weights that is common, 0 to 1, with that of random spaces",
        shown="map",
        papers=(),
        passes=lambda t: 4 * t.turned + 6 * t.layers,
        values=None,
        example=lambda t: head_overlap(t.model, f"{t.tower}L*"),
    )
)
