"""A two-layer attention-only transformer, small enough to read in one sitting.

Each block reads the residual stream, lets every head attend to the tokens before it, and adds what the heads found.
There is nothing else: no MLP and by default no layer norm, so that what a head does can be followed by hand (Elhage et
al. 2021, "A Mathematical Framework for Transformer Circuits", studies such models).
Limits: no key-value cache, no dropout, no grouped queries; at most `context` tokens where positions are learned.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from interp.hooks.errors import InputsError
from interp.hooks.sealed import damaged, loaded, parsed, understood


@dataclass(frozen=True)
class AttentionOnlyConfig:
    """Sizes; `positions` learns an embedding per position, `norm` puts a layer norm before each block and the end."""

    vocab: int = 128
    d_model: int = 32
    heads: int = 4
    d_head: int = 8
    layers: int = 2
    context: int = 64
    positions: bool = True
    norm: bool = False


@dataclass(frozen=True, eq=False)
class Output:
    """What the model returns: logits [batch, position, vocab]."""

    logits: Tensor


class Attention(nn.Module):
    """Heads side by side: q and k decide where to look, v and o decide what to move."""

    def __init__(self, config: AttentionOnlyConfig) -> None:
        super().__init__()
        self.heads, self.d_head = config.heads, config.d_head
        width = config.heads * config.d_head
        self.q = nn.Linear(config.d_model, width, bias=False)
        self.k = nn.Linear(config.d_model, width, bias=False)
        self.v = nn.Linear(config.d_model, width, bias=False)
        self.o = nn.Linear(width, config.d_model, bias=False)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """Attend within `mask`, which is True where a query may look."""
        sides = (side(x).unflatten(-1, (self.heads, self.d_head)) for side in (self.q, self.k, self.v))
        q, k, v = (side.transpose(1, 2) for side in sides)
        z = scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.o(z.transpose(1, 2).flatten(2))


class Block(nn.Module):
    """One layer: the residual plus what its heads write."""

    def __init__(self, config: AttentionOnlyConfig) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(config.d_model) if config.norm else nn.Identity()
        self.attn = Attention(config)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """Read, attend, add."""
        return x + self.attn(self.norm(x), mask)


class AttentionOnly(nn.Module):
    """Token embedding, attention blocks, unembedding."""

    def __init__(self, config: AttentionOnlyConfig) -> None:
        super().__init__()
        self.config = config
        self.embed = nn.Embedding(config.vocab, config.d_model)
        self.positions = nn.Embedding(config.context, config.d_model) if config.positions else None
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.norm = nn.LayerNorm(config.d_model) if config.norm else nn.Identity()
        self.unembed = nn.Linear(config.d_model, config.vocab, bias=False)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Output:
        """Logits of the next token; `attention_mask` [batch, position] is 0 where the batch is padded."""
        valid = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        x = self.embed(input_ids)
        if self.positions is not None:
            if input_ids.shape[-1] > self.config.context:
                raise InputsError(f"this model reads at most {self.config.context} tokens, got {input_ids.shape[-1]}.")
            x = x + self.positions((valid.cumsum(-1) - 1).clamp(min=0))
        mask = visible(valid)
        for block in self.blocks:
            x = block(x, mask)
        return Output(self.unembed(self.norm(x)))


def visible(valid: Tensor) -> Tensor:
    """Where a query may look, [batch, 1, query, key]: at itself and at valid keys before it."""
    length = valid.shape[-1]
    causal = torch.ones(length, length, dtype=torch.bool, device=valid.device).tril()
    itself = torch.eye(length, dtype=torch.bool, device=valid.device)
    return (causal & valid.bool()[:, None, :] | itself)[:, None]


def read(folder: Path) -> AttentionOnly:
    """The model that `config.json` and `model.safetensors` of a folder describe, in float32 and eval mode."""
    config = configured(folder)
    with understood(folder / "config.json"):
        model = AttentionOnly(config)
    weights = loaded(folder / "model.safetensors")
    with understood(folder / "model.safetensors"):
        model.load_state_dict({name: value.float() for name, value in weights.items()})
    return model.eval()


def configured(folder: Path) -> AttentionOnlyConfig:
    """The sizes in the `config.json` of a folder."""
    config = parsed(folder / "config.json")
    names = [part.name for part in fields(AttentionOnlyConfig) if part.name in config]
    if not all(type(config[name]) is type(getattr(AttentionOnlyConfig, name)) for name in names):
        raise damaged(folder / "config.json", "its sizes are no whole numbers")
    with understood(folder / "config.json"):
        return AttentionOnlyConfig(**{name: config[name] for name in names})
