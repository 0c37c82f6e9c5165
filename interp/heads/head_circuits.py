"""What heads can do by their weights alone: copy, promote and suppress tokens, and read each other's writes.

Elhage et al. 2021 (A Mathematical Framework for Transformer Circuits). With row vectors, W_OV = W_V W_O, W_QK =
W_Q W_K^T, and the whole OV circuit from words to logits W_E W_OV W_U; its copying score is

    sum of Re(lambda) / sum of |lambda|        over the eigenvalues, from -1 to 1

exactly, since W_E W_V W_O W_U has the eigenvalues of the small matrix (W_O W_U) (W_E W_V), and zeros. The same is given
of W_OV within the residual. An entry (s, t) of the whole circuit, less the mean over t, is how much looking at word s
raises word t. Composition of an earlier head A with a later head B is |W_OV^A M| / (|W_OV^A| |M|) in Frobenius norms,
with M = W_QK^B (q), its transpose (k), or W_OV^B (v); beside it stands what random matrices of these shapes give. Norm
gains are folded in as `interp/heads/matrices.py` says; what norms divide by, attention biases, MLPs and positions are
left out. Query heads that share a kv head share W_K and W_V. Rotary models have their W_QK at distance 0.
Cost: a forward pass over as many tokens as the model is wide, and six short ones per layer; for the tokens of a head
one product of vocabulary x d_head x vocabulary. Limits: what a circuit can do is not what it does: where the head
looks, and whether anything reads it, the weights do not say. Towers without words have the residual's scores only.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from interp.heads.kinds.reading import head_names, head_sites, heads_of, tower_of
from interp.heads.matrices import HeadMatrices, LayerMatrices
from interp.hooks.errors import InputsError, ModelError
from interp.provenance import about
from interp.records import Method, register
from interp.results.weights import RESIDUAL, VOCABULARY, HeadCircuits

if TYPE_CHECKING:
    from interp.model import Model

FEW = 8
"""Of at most so many heads the tokens are looked up unless told otherwise."""
ROWS = 512

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
    matrices = HeadMatrices(model, tower, [int(s.layer or 0) for s in sites])
    every: list[Head] = [
        (int(s.layer or 0), matrices.of(int(s.layer or 0)), h) for s in sites for h in heads_of(model, s)
    ]
    keep = (10 if len(every) <= FEW else 0) if top is None else top
    if keep < 0 or draws < 1:
        raise InputsError(f"expected top of 0 or more and at least one draw, got top={top}, draws={draws}.")
    words, left_out = _words(matrices)
    eigenvalues = {RESIDUAL: _stack([_eigenvalues(m.o[h], m.v[h]) for _, m, h in every])}
    found: list[tuple[Tensor, Tensor, Tensor]] = []
    if words is not None:
        ends = [_ends(*words, m, h) for _, m, h in every]
        eigenvalues = {VOCABULARY: _stack([_eigenvalues(w, r) for r, w in ends]), **eigenvalues}
        found = [_tokens(reads, writes, keep) for reads, writes in ends] if keep else []
    composition, baseline, why = _composition(every, draws, seed)
    left_out |= {"composition": why} if why else {}
    pairs = {sign: torch.stack([one[n] for one in found]) for n, sign in enumerate(("promoted", "suppressed")) if found}
    return HeadCircuits(
        head_names(model, sites), {name: _score(values) for name, values in eigenvalues.items()}, eigenvalues, pairs,
        torch.stack([own for _, _, own in found]) if found else None, composition, baseline, _names(model, pairs),
        left_out, {**about(model.module, None), "method": "weights", "draws": draws, "seed": seed,
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


def _ends(embedding: Tensor, unembedding: Tensor, of: LayerMatrices, head: int) -> tuple[Tensor, Tensor]:
    """W_E W_V [word, d_head] and W_O W_U less its mean over words [d_head, word]."""
    reads = torch.cat([part.double() @ of.v[head] for part in embedding.split(2**14)])
    writes = torch.cat([of.o[head] @ part.double() for part in unembedding.split(2**14, 1)], 1)
    return reads, writes


def _eigenvalues(second: Tensor, first: Tensor) -> Tensor:
    """Those of `first second` that may differ from 0, largest first: `second first` is small."""
    found = torch.linalg.eigvals(second @ first)
    return found[found.abs().argsort(descending=True)]


def _stack(values: list[Tensor]) -> Tensor:
    widest = max(len(one) for one in values)
    return torch.stack([torch.nn.functional.pad(one, (0, widest - len(one))) for one in values])


def _score(eigenvalues: Tensor) -> Tensor:
    total = eigenvalues.abs().sum(1)
    return torch.where(total > 0, eigenvalues.real.sum(1) / total.clamp(min=1e-300), 0.0)


def _tokens(reads: Tensor, writes: Tensor, keep: int) -> tuple[Tensor, Tensor, Tensor]:
    """Promoted and suppressed (source, target, logit) [rank, 3], and the share of words that raise themselves most."""
    writes = (writes - writes.mean(1, keepdim=True)).float()
    best = {1: torch.zeros(0, 3, dtype=torch.double), -1: torch.zeros(0, 3, dtype=torch.double)}
    own = 0
    for start in range(0, len(reads), ROWS):
        some = reads[start : start + ROWS].float() @ writes
        at = torch.arange(start, start + len(some))
        own += int(((some.argmax(1) == at) & (some.amax(1) > 0)).sum())
        for sign, held in best.items():
            values, flat = (sign * some).flatten().topk(min(keep, some.numel()))
            places = (at[flat // some.shape[1]], flat % some.shape[1], sign * values)
            both = torch.cat([held, torch.stack([one.double() for one in places], 1)])
            best[sign] = both[(sign * both[:, 2]).argsort(descending=True, stable=True)[:keep]]
    return best[1], best[-1], torch.tensor(own / len(reads), dtype=torch.double)


def _names(model: Model, pairs: dict[str, Tensor]) -> dict[int, str]:
    if not pairs or not hasattr(model.tokenizer, "convert_ids_to_tokens"):
        return {}
    ids = {int(i) for found in pairs.values() for i in found[..., :2].flatten().tolist()}
    return {i: str(model.tokenizer.decode([i])) for i in sorted(ids)}


def _composition(every: list[Head], draws: int, seed: int) -> tuple[dict[str, Tensor], dict[str, Tensor], str]:
    """By side, scores and what random matrices give [sender, receiver]; and why there are none or not all."""
    if len({layer for layer, _, _ in every}) < 2:
        return {}, {}, "heads compose with those of other layers, and one layer was asked for"
    why = next((m.why for _, m, _ in every if m.why), "")
    scores: dict[str, Tensor] = {}
    baseline: dict[str, Tensor] = {}
    known: dict[tuple[int, ...], float] = {}
    for side in ("v",) if why else ("q", "k", "v"):
        scores[side], baseline[side] = (torch.zeros(len(every), len(every), dtype=torch.double) for _ in range(2))
        for a, (low, sender, h) in enumerate(every):
            for b, (high, receiver, g) in enumerate(every):
                if low < high:
                    left, right = _side(receiver, g, side)
                    shapes = (*sender.v[h].shape, *sender.o[h].shape, *left.shape, *right.shape)
                    scores[side][a, b] = _composed(sender.v[h], sender.o[h], left, right)
                    if shapes not in known:
                        known[shapes] = _random(shapes, draws, seed)
                    baseline[side][a, b] = known[shapes]
    return scores, baseline, f"q and k: {why}" if why else ""


def _side(of: LayerMatrices, head: int, side: str) -> tuple[Tensor, Tensor]:
    """The receiver's matrix as a product [d, d_head] [d_head, d]."""
    if side == "v":
        return of.v[head], of.o[head]
    assert of.q is not None
    assert of.k is not None
    return (of.q[head], of.k[head].T) if side == "q" else (of.k[head], of.q[head].T)


def _composed(v: Tensor, o: Tensor, left: Tensor, right: Tensor) -> float:
    """|v o left right| / (|v o| |left right|), by matrices of d_head x d_head."""
    a, b, c, d = _small(v), _small(o.T), _small(left), _small(right.T)
    size = torch.linalg.norm(a @ b.T) * torch.linalg.norm(c @ d.T)
    return float(torch.linalg.norm(a @ (o @ left) @ d.T) / size) if float(size) > 0 else 0.0


def _small(tall: Tensor) -> Tensor:
    """R of a QR decomposition: the same lengths and angles between columns."""
    return torch.linalg.qr(tall, mode="r").R


def _random(shapes: tuple[int, ...], draws: int, seed: int) -> float:
    """The mean over random matrices of these shapes."""
    random = torch.Generator().manual_seed(seed)

    def one() -> float:
        parts = [torch.randn(shapes[n], shapes[n + 1], generator=random, dtype=torch.double) for n in (0, 2, 4, 6)]
        return _composed(*parts)

    return sum(one() for _ in range(draws)) / draws


register(
    Method(
        "interp.heads.head_circuits",
        number="scores of the weights alone, most of them from -1 to 1; beside them those of random matrices",
        shown="map",
        passes=lambda t: 4 * t.turned + 6 * t.layers,
        values=None,
        example=lambda t: head_circuits(t.model, f"{t.tower}L*", draws=2),
    )
)
