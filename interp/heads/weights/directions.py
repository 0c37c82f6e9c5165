"""What each direction of a head reads and writes, in words: the singular vectors of its weights.

Millidge and Black 2022 (The singular value decompositions of transformer weight matrices are highly interpretable): the
matrix that a head moves information by, W_OV = W_V W_O = U S V^T, is a sum of rank-one maps. Map i reads along u_i and
writes along v_i, s_i times; taken to the vocabulary, W_E u_i are the words that set it off and v_i W_U those it raises.
Of W_QK = W_Q W_K^T map i scores s_i (x u_i)(y v_i): words that ask, and words that are found. The sign of a pair is
free, so each end is shown both ways: positive with positive, negative with negative (of both, words together on one
side are raised or found, on opposite sides lowered). The share of a direction is s_i^2 over the sum of squares. Cost:
the weights, a decomposition of d_head x d_head matrices, and words x d products for the words shown. Limits: a
direction with a small share says little, and neighbours of nearly equal size mix freely; norm gains are folded in,
scales and positions are left out, and rotary models have their W_QK at distance 0. Towers without words have directions
without words."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from interp.heads.weights.matrices import HeadMatrices
from interp.heads.weights.spaces import HeadWeights, product, weights_of
from interp.hooks.errors import InputsError, ModelError
from interp.provenance import about
from interp.records import Method, register
from interp.results.figures.figure import Figure
from interp.results.figures.marks import Heatmap
from interp.results.saved import Saved

if TYPE_CHECKING:
    from interp.model import Model


@dataclass(frozen=True, eq=False)
class HeadDirections(Saved):
    """The first directions of each head, largest first."""

    STEM = "directions"

    sites: tuple[str, ...]
    """The head of each row, such as "L5.H3"."""
    circuit: str
    """"ov" for what a head moves, "qk" for what it looks for."""
    sizes: Tensor
    """Singular values [head, direction]."""
    shares: Tensor
    """[head, direction]: the squared singular value over the sum of all squared ones, 0 to 1."""
    reads: Tensor
    """[head, direction, d]; of "qk" what the query reads."""
    writes: Tensor
    """[head, direction, d]; of "qk" what the key reads."""
    words: Tensor
    """Ids by head, direction, end (0 reads, 1 writes), side (0 positive, 1 negative) and rank; empty without words."""
    names: Mapping[int, str] = field(default_factory=dict)
    """By id, the text of the words; empty without a tokenizer."""
    why: str = ""
    """Why there are no words."""
    meta: Mapping[str, Any] = field(default_factory=dict)

    def to_frame(self) -> Any:
        """One row per head and direction: share, and the words at both ends."""
        import pandas

        rows: list[dict[str, Any]] = []
        for n, site in enumerate(self.sites):
            for i in range(self.sizes.shape[1]):
                row = {"site": site, "direction": i, "size": float(self.sizes[n, i]), "share": float(self.shares[n, i])}
                if self.words.numel():
                    row |= {f"{end} {side}": self._said(self.words[n, i, a, b]) for a, end in enumerate(self._ends)
                            for b, side in enumerate("+-")}  # fmt: skip
                rows.append(row)
        return pandas.DataFrame(rows)

    @property
    def _ends(self) -> tuple[str, str]:
        return ("reads", "writes") if self.circuit == "ov" else ("asks", "finds")

    def _said(self, ids: Tensor) -> list[str]:
        return [self.names.get(int(i), str(int(i))) for i in ids]

    def _figure(self) -> Figure:
        """The shares, heads by directions."""
        return Figure([Heatmap(self.shares.numpy(), self.sites, x="direction", y="head", name="share", scale="size")])

    @classmethod
    def restored(cls, facts: dict[str, Any], tensors: dict[str, Tensor]) -> HeadDirections:
        """Words by number again."""
        return super().restored({**facts, "names": {int(i): n for i, n in facts["names"].items()}}, tensors)

    def __repr__(self) -> str:
        at = int(self.shares[:, 0].argmax())
        return (
            f"HeadDirections ({self.circuit}) of {len(self.sites)} heads: the first of {self.sites[at]} has"
            f" {float(self.shares[at, 0]):.0%} of it"
        )


def head_directions(
    model: Model, heads: str, *, circuit: str = "ov", directions: int = 3, top: int = 8
) -> HeadDirections:
    """The first directions of W_OV or W_QK of the heads that a pattern means, with `top` words at each end."""
    if circuit not in ("ov", "qk"):
        raise InputsError(f"circuit is 'ov' or 'qk', got {circuit!r}.")
    matrices, every = weights_of(model, heads)
    most = min(every[0].o.shape[0], every[0].o.shape[1])
    if not 1 <= directions <= most:
        raise InputsError(f"a head of these has 1 to {most} directions, got directions={directions}.")
    parts = [_decomposed(one, circuit) for one in every]
    reads, sizes, writes = (torch.stack([part[n] for part in parts])[:, :directions] for n in range(3))
    whole = torch.stack([part[1].square().sum() for part in parts])[:, None]
    shares = sizes.square() / whole.clamp(min=1e-300)
    words, why = _words(matrices, circuit, reads, writes, top)
    meta = {**about(model.module, None), "method": "singular vectors of weights", "circuit": circuit}
    return HeadDirections(
        tuple(one.name for one in every), circuit, sizes, shares, reads.float(), writes.float(), words,
        _names(model, words), why, meta,
    )  # fmt: skip


def _decomposed(head: HeadWeights, circuit: str) -> tuple[Tensor, Tensor, Tensor]:
    """What is read [direction, d], sizes, what is written [direction, d]; the largest read positive."""
    left, right = (head.v, head.o) if circuit == "ov" else (head.qk()[0], head.qk()[1].mT)
    u, sizes, vt = product(left, right)
    sign = u.gather(0, u.abs().argmax(0, keepdim=True))[0].sign()
    return (u * sign).mT, sizes, vt * sign[:, None]


def _words(matrices: HeadMatrices, circuit: str, reads: Tensor, writes: Tensor, top: int) -> tuple[Tensor, str]:
    try:
        embedding = matrices.embedding.double().cpu()
        spoken = matrices.unembedding.double().cpu() if circuit == "ov" else embedding.mT
    except (ModelError, InputsError) as why:
        return torch.zeros(0, dtype=torch.long), str(why)
    if not 1 <= top <= len(embedding):
        raise InputsError(f"top is 1 to {len(embedding)} words, got {top}.")
    ends = []
    for values in (reads @ embedding.mT, writes @ spoken):
        values = values - values.mean(-1, keepdim=True)
        ends.append(torch.stack([(sign * values).topk(top, -1).indices for sign in (1, -1)], 2))
    return torch.stack(ends, 2), ""


def _names(model: Model, words: Tensor) -> dict[int, str]:
    if not words.numel() or not hasattr(model.tokenizer, "convert_ids_to_tokens"):
        return {}
    return {int(i): str(model.tokenizer.decode([int(i)])) for i in torch.unique(words)}


register(
    Method(
        "interp.heads.head_directions",
        number="share of a head's map that one direction makes, 0 to 1, with the words at its ends",
        shown="table",
        passes=lambda t: 4 * t.turned + 6 * t.layers,
        values=None,
        example=lambda t: head_directions(t.model, f"{t.tower}L*", directions=2, top=2),
    )
)
