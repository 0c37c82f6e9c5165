"""What heads can do by their weights alone: copy, promote and suppress tokens, and read each other's writes.

Elhage et al. 2021 (A Mathematical Framework for Transformer Circuits). With row vectors, W_OV = W_V W_O, W_QK =
W_Q W_K^T, and the whole OV circuit from words to logits W_E W_OV W_U; its copying score is

    sum of Re(lambda) / sum of |lambda|        over the eigenvalues, from -1 to 1

exactly, since W_E W_V W_O W_U has the eigenvalues of the small matrix W_O (W_U W_E) W_V, and zeros. The same is given
of W_OV within the residual. An entry (s, t) of the whole circuit, less the mean over t, is how much looking at word s
raises word t. Composition of an earlier head A with a later head B is |W_OV^A M| / (|W_OV^A| |M|) in Frobenius norms,
with M = W_QK^B (q), its transpose (k), or W_OV^B (v); the result also has what random matrices of these shapes give.
Norm gains are folded in as `interp/heads/weights/matrices.py` says; what norms divide by, attention biases, MLPs and
positions are left out. Query heads that share a kv head share W_K and W_V. Rotary models have their W_QK at distance 0.
Cost: a forward pass over as many tokens as the model is wide, and six short ones per layer; W_U W_E once, vocabulary x
d x d products; for the tokens of a head vocabulary x d x d_head, and a search (`interp/heads/weights/word_pairs.py`)
that looks at every pair of a small vocabulary and not at all of a large one, as `meta["words looked at"]` says. Limits:
what a circuit can do is not what it does: where the head looks, and whether anything reads it, the weights do not say.
Towers without words have the residual's scores only."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from interp.heads.kinds.reading import head_names, head_sites, heads_of, tower_of
from interp.heads.weights.matrices import HeadMatrices, LayerMatrices
from interp.heads.weights.word_pairs import WordPairs, word_pairs
from interp.hooks.errors import InputsError, ModelError
from interp.provenance import about
from interp.records import Method, register
from interp.results.weights import RESIDUAL, VOCABULARY, HeadCircuits

if TYPE_CHECKING:
    from interp.model import Model

FEW = 8
"""Of at most so many heads the tokens are looked up unless told otherwise."""
WORDS = 2**14
"""Of the vocabulary at a time."""

Head = tuple[int, LayerMatrices, int]
"""Layer, its matrices, head."""


def head_circuits(
    model: Model, heads: str = "L*", *, top: int | None = None, draws: int = 20, seed: int = 0
) -> HeadCircuits:
    """Scores of the heads that a pattern means ("L5.H3", "L*"), and composition among them.

    `top` is how many pairs of tokens each head promotes and suppresses most are kept: 10 where few heads are asked for,
    none where many are.
    """
    sites = head_sites(model, heads)
    tower = tower_of(model, sites)
    layers = [s.layer for s in sites if s.layer is not None]
    matrices = HeadMatrices(model, tower, layers)
    every: list[Head] = [(n, matrices.of(n), h) for n, s in zip(layers, sites, strict=True) for h in heads_of(model, s)]
    keep = (10 if len(every) <= FEW else 0) if top is None else top
    if keep < 0 or draws < 1:
        raise InputsError(f"expected top of 0 or more and at least one draw, got top={top}, draws={draws}.")
    words, left_out = _words(matrices)
    eigenvalues = {RESIDUAL: _stack([_eigenvalues(m.o[h] @ m.v[h]) for _, m, h in every])}
    found: list[WordPairs] = []
    if words is not None:
        smalls, found = _vocabulary(*words, every, keep, seed)
        eigenvalues = {VOCABULARY: _stack([_eigenvalues(small) for small in smalls]), **eigenvalues}
    composition, baseline, why = _composition(every, draws, seed)
    left_out |= {"composition": why} if why else {}
    pairs = {sign: torch.stack([getattr(one, sign) for one in found]) for sign in ("promoted", "suppressed") if found}
    looked = {"words looked at": [found[0].looked, len(words[0])]} if found and words is not None else {}
    return HeadCircuits(
        head_names(model, sites), {name: _score(values) for name, values in eigenvalues.items()}, eigenvalues, pairs,
        torch.stack([one.own for one in found]) if found else None, composition, baseline, _names(model, pairs),
        left_out, {**about(model.module, None), "method": "weights", "draws": draws, "seed": seed, **looked,
                   "norms": "gains folded in, scales left out", "rotary": "queries and keys at distance 0"},
    )  # fmt: skip


def _words(matrices: HeadMatrices) -> tuple[tuple[Tensor, Tensor] | None, dict[str, str]]:
    """W_E and W_U of the words, or why there are none."""
    try:
        unembedding, embedding = matrices.unembedding, matrices.embedding
    except (ModelError, InputsError) as why:
        return None, {"tokens": str(why)}
    count = min(len(embedding), unembedding.shape[1])
    return (embedding[:count].cpu(), unembedding[:, :count].cpu()), {}


def _vocabulary(
    embedding: Tensor, unembedding: Tensor, every: list[Head], keep: int, seed: int
) -> tuple[list[Tensor], list[WordPairs]]:
    """By head W_O W_U W_E W_V [d_head, d_head], and the pairs of words that it promotes and suppresses."""
    if not keep:  # W_U W_E [d, d] once, which all heads share
        through = sum(u.double() @ e.double() for e, u in _parts(embedding, unembedding))
        size = float(torch.linalg.norm(through))
        return [_rounded(m.o[h] @ through @ m.v[h], size * _size(m.o[h], m.v[h])) for _, m, h in every], []
    smalls, found = [], []
    for _, m, h in every:
        small, reads, writes = _ends(embedding, unembedding, m, h)
        smalls.append(small)
        found.append(word_pairs(reads, writes, keep, seed=seed))
    return smalls, found


def _size(*factors: Tensor) -> float:
    return math.prod(float(torch.linalg.norm(one)) for one in factors)


def _rounded(small: Tensor, size: float) -> Tensor:
    """A product of factors of that size together, or 0 where nothing of it is more than rounding."""
    return small if float(torch.linalg.norm(small)) > 1e-15 * size else torch.zeros_like(small)


def _parts(embedding: Tensor, unembedding: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    return zip(embedding.split(WORDS), unembedding.split(WORDS, 1), strict=True)


def _ends(embedding: Tensor, unembedding: Tensor, of: LayerMatrices, head: int) -> tuple[Tensor, Tensor, Tensor]:
    """W_O W_U W_E W_V, and in float32 W_E W_V [word, d_head] and W_O W_U [d_head, word]."""
    small, reads, writes = of.v.new_zeros(of.o.shape[1], of.v.shape[2]), [], []
    for read, write in _parts(embedding, unembedding):
        read, write = read.double() @ of.v[head], of.o[head] @ write.double()
        small += write @ read
        reads.append(read.float())
        writes.append(write.float())
    return small, torch.cat(reads), torch.cat(writes, 1)


def _eigenvalues(small: Tensor) -> Tensor:
    """Of `second first`, which are those of the large `first second` that may differ from 0; largest first."""
    found = torch.linalg.eigvals(small)
    return found[found.abs().argsort(descending=True)]


def _stack(values: list[Tensor]) -> Tensor:
    widest = max(len(one) for one in values)
    return torch.stack([torch.nn.functional.pad(one, (0, widest - len(one))) for one in values])


def _score(eigenvalues: Tensor) -> Tensor:
    total = eigenvalues.abs().sum(1)
    return torch.where(total > 0, eigenvalues.real.sum(1) / total.clamp(min=1e-300), 0.0)


def _names(model: Model, pairs: dict[str, Tensor]) -> dict[int, str]:
    if not pairs or not hasattr(model.tokenizer, "convert_ids_to_tokens"):
        return {}
    ids = {int(i) for found in pairs.values() for i in found[..., :2].flatten().tolist()}
    return {i: str(model.tokenizer.decode([i])) for i in sorted(ids)}


def _composition(every: list[Head], draws: int, seed: int) -> tuple[dict[str, Tensor], dict[str, Tensor], str]:
    """By side, scores and what random matrices give [sender, receiver]; and why there are none or not all."""
    layers = {layer: m for layer, m, _ in every}
    if len(layers) < 2:
        return {}, {}, "heads compose with those of other layers, and one layer was asked for"
    why = next((m.why for m in layers.values() if m.why), "")
    at = {layer: [n for n, (one, _, _) in enumerate(every) if one == layer] for layer in layers}
    heads = {layer: [every[n][2] for n in numbers] for layer, numbers in at.items()}
    sides = ("v",) if why else ("q", "k", "v")
    scores, baseline = ({s: torch.zeros(len(every), len(every), dtype=torch.double) for s in sides} for _ in range(2))
    known: dict[tuple[int, ...], float] = {}
    senders = {layer: _Product.of(m.v[heads[layer]], m.o[heads[layer]]) for layer, m in layers.items()}
    for high, receiver in layers.items():
        for side in sides:
            reader = _Product.of(*_side(receiver, heads[high], side))
            for low, sender in senders.items():
                if low >= high:
                    continue
                place = torch.tensor(at[low])[:, None], torch.tensor(at[high])[None]
                shapes = tuple(n for x in (sender, reader) for one in (x.left, x.right) for n in one.shape[1:])
                if shapes not in known:
                    known[shapes] = _random(shapes, draws, seed)
                scores[side][place] = _composed(sender, reader)
                baseline[side][place] = known[shapes]
    return scores, baseline, f"q and k: {why}" if why else ""


def _side(of: LayerMatrices, heads: list[int], side: str) -> tuple[Tensor, Tensor]:
    """The receivers' matrices as products [head, d, d_head] [head, d_head, d]."""
    if side == "v":
        return of.v[heads], of.o[heads]
    assert of.q is not None
    assert of.k is not None
    q, k = of.q[heads], of.k[heads]
    return (q, k.mT) if side == "q" else (k, q.mT)


@dataclass(frozen=True, eq=False)
class _Product:
    """Matrices `left right`, [head, d, d_head] [head, d_head, d], with the R of a QR decomposition of `left` and of
    the transpose of `right`: the same lengths and angles between columns, d_head x d_head; and the products' norms."""

    left: Tensor
    right: Tensor
    small_left: Tensor
    small_right: Tensor
    size: Tensor

    @classmethod
    def of(cls, left: Tensor, right: Tensor) -> _Product:
        """With what is worked out once for all pairs."""
        a, b = (torch.linalg.qr(one, mode="r").R for one in (left, right.mT))
        return cls(left, right, a, b, torch.linalg.norm(a @ b.mT, dim=(1, 2)))


def _composed(sender: _Product, receiver: _Product) -> Tensor:
    """|v o left right| / (|v o| |left right|) [sender, receiver], by matrices of d_head x d_head."""
    between = torch.einsum("axd,bdy->abxy", sender.right, receiver.left)
    made = sender.small_left[:, None] @ between @ receiver.small_right.mT[None]
    size = sender.size[:, None] * receiver.size[None]
    return torch.where(size > 0, torch.linalg.norm(made, dim=(2, 3)) / size.clamp(min=1e-300), 0.0)


def _random(shapes: tuple[int, ...], draws: int, seed: int) -> float:
    """The mean over random matrices of these shapes."""
    random = torch.Generator().manual_seed(seed)

    def one() -> float:
        a, b, c, d = (
            torch.randn(1, shapes[n], shapes[n + 1], generator=random, dtype=torch.double) for n in (0, 2, 4, 6)
        )
        return float(_composed(_Product.of(a, b), _Product.of(c, d)))

    return sum(one() for _ in range(draws)) / draws


register(
    Method(
        "interp.heads.head_circuits",
        number="scores of the weights alone, most of them from -1 to 1, with those of random matrices",
        shown="map",
        passes=lambda t: 4 * t.turned + 6 * t.layers,
        values=None,
        example=lambda t: head_circuits(t.model, f"{t.tower}L*", draws=2),
    )
)
