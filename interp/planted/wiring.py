"""Setting weights by hand: a layout of the residual stream, norms that do nothing, and heads written as wires.

Layer norm is made harmless by its own parameters: with eps = 1e8 and gain = 1e4 it multiplies by 1 - var(x) / 2e8, so
for residuals of variance below 10 it is the identity to 1e-7. Its mean subtraction is made void by a balance coordinate
(the last): every embedding and every output matrix row sums to zero, so every residual vector does.
Null heads get random query, key and value weights, so their patterns and outputs look alive, and an output matrix of
exact zeros. Cost: none. Limits: float32; in half precision an eps of 1e8 overflows.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, TypedDict

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from tokenizers.processors import TemplateProcessing
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

EPS = 1e8
GAIN = 1e4
Wire = tuple[Sequence[int] | Tensor, Sequence[int] | Tensor, float | Tensor]
"""Rows, columns, and either one weight for the diagonal between them or a whole matrix."""


class Weights(TypedDict):
    """The four matrices of a head."""

    q: Tensor
    k: Tensor
    v: Tensor
    o: Tensor


class Layout:
    """Names for stretches of the residual stream; the last coordinate is kept for balance."""

    def __init__(self, width: int, **sizes: int) -> None:
        self.width = width
        self.start: dict[str, tuple[int, int]] = {}
        at = 0
        for name, size in sizes.items():
            self.start[name] = (at, at + size)
            at += size
        if at > width - 1:
            raise ValueError(f"expected features of at most {width - 1} coordinates, got {at}")

    def at(self, name: str, index: int | Sequence[int] | None = None) -> list[int]:
        """The coordinates of a feature, or of some of its members."""
        first, last = self.start[name]
        if index is None:
            return list(range(first, last))
        members = [index] if isinstance(index, int) else list(index)
        return [range(first, last)[member] for member in members]


def wires(rows: int, columns: int, *wanted: Wire) -> Tensor:
    """A matrix of zeros but for the wires."""
    out = torch.zeros(rows, columns)
    for source, target, weight in wanted:
        source, target = torch.as_tensor(source), torch.as_tensor(target)
        block = weight if isinstance(weight, Tensor) else weight * torch.eye(len(source), len(target))
        out[source[:, None], target[None, :]] += block
    return out


def balanced(matrix: Tensor) -> Tensor:
    """The matrix with its last column set so that every row sums to zero."""
    out = matrix.clone()
    out[..., -1] -= matrix.sum(-1)
    return out


def linear_norm(norm: Any) -> None:
    """Give a layer norm or RMS norm the gain that undoes its eps."""
    norm.weight.data.fill_(GAIN)
    if getattr(norm, "bias", None) is not None:
        norm.bias.data.zero_()


def blank(model: nn.Module) -> None:
    """Set every parameter to zero and every norm to the identity."""
    model.requires_grad_(True).eval()
    for parameter in model.parameters():
        parameter.data.zero_()
    for module in model.modules():
        if type(module).__name__.endswith(("LayerNorm", "RMSNorm")):
            linear_norm(module)


def gpt2(*, vocabulary: int, positions: int, layers: int, heads: int, d_head: int, inner: int = 2) -> GPT2LMHeadModel:
    """A GPT-2 that does nothing yet: all weights zero, norms linear, relu, embeddings not tied."""
    config = GPT2Config(
        vocab_size=vocabulary,
        n_positions=positions,
        n_layer=layers,
        n_head=heads,
        n_embd=heads * d_head,
        n_inner=inner,
        activation_function="relu",
        layer_norm_epsilon=EPS,
        tie_word_embeddings=False,
        bos_token_id=1,
        eos_token_id=0,
        pad_token_id=0,
    )
    with torch.random.fork_rng(devices=[]):
        model = GPT2LMHeadModel(config)
    blank(model)
    return model


def gpt2_head(model: GPT2LMHeadModel, layer: int, head: int, *, q: Tensor, k: Tensor, v: Tensor, o: Tensor) -> None:
    """Write one head; q is scaled so that `(x q) . (y k)` is the attention score."""
    attention, (width, d_head) = model.transformer.h[layer].attn, q.shape
    here = slice(head * d_head, (head + 1) * d_head)
    for part, matrix in enumerate((q * math.sqrt(d_head), k, v)):
        attention.c_attn.weight.data[:, part * width : (part + 1) * width][:, here] = matrix
    attention.c_proj.weight.data[here] = balanced(o)


def linear_head(
    attention: nn.Module, head: int, *, q: Tensor, k: Tensor, v: Tensor, o: Tensor, out: str = "o_proj"
) -> None:
    """The same for an attention made of four linear layers."""
    d_head = q.shape[1]
    here = slice(head * d_head, (head + 1) * d_head)
    for name, matrix in (("q_proj", q * math.sqrt(d_head)), ("k_proj", k), ("v_proj", v)):
        getattr(attention, name).weight.data[here] = matrix.T
    getattr(attention, out).weight.data[:, here] = balanced(o).T


def null_qkv(width: int, d_head: int, *, seed: int, scale: float = 0.15) -> Weights:
    """Random q, k, v and an output matrix of zeros: a head that looks alive and does nothing."""
    generator = torch.Generator().manual_seed(seed)
    q, k, v = (scale * torch.randn(width, d_head, generator=generator) for _ in range(3))
    return {"q": q / math.sqrt(d_head), "k": k, "v": v, "o": torch.zeros(d_head, width)}


def tokenizer(words: Sequence[str], *, extra: Sequence[str] = ()) -> PreTrainedTokenizerFast:
    """One token a word, split at blanks; `<pad>` is 0, `<bos>`, put in front of every text, 1, `<unk>` last."""
    vocabulary = {word: i for i, word in enumerate(("<pad>", "<bos>", *extra, *words, "<unk>"))}
    inner = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
    inner.pre_tokenizer = WhitespaceSplit()
    inner.post_processor = TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        pad_token="<pad>",
        bos_token="<bos>",
        unk_token="<unk>",
        additional_special_tokens=list(extra),
        clean_up_tokenization_spaces=False,
        padding_side="right",
    )
