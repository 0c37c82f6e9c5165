"""Tiny decoders of text that denoise, written in the way of remote code: plain modules of transformers' base class that
call torch's fused attention themselves, without a mask and in both directions."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutput, MaskedLMOutput

MASK, WORDS = 4, 40


class DenoisingConfig(PretrainedConfig):
    model_type = "tiny_denoising_text"

    def __init__(self, *, kv_heads: int = 4, **kwargs: Any) -> None:
        super().__init__(vocab_size=WORDS, mask_token_id=MASK, **kwargs)
        self.hidden_size, self.num_hidden_layers, self.num_attention_heads = 32, 2, 4
        self.num_key_value_heads = kv_heads


def turned(x: Tensor) -> Tensor:
    """Rotary positions."""
    half = x.shape[-1] // 2
    angles = torch.arange(x.shape[-2])[:, None] / 100.0 ** (torch.arange(half) / half)
    a, b = x[..., :half], x[..., half:]
    return torch.cat([a * angles.cos() - b * angles.sin(), a * angles.sin() + b * angles.cos()], -1)


class Norm(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * x * (x.square().mean(-1, keepdim=True) + 1e-6).rsqrt()


class Block(nn.Module):
    """Attention and a gated MLP, projections and call in one module, as LLaDA's code has them."""

    def __init__(self, config: DenoisingConfig) -> None:
        super().__init__()
        width, self.heads, self.kv_heads = config.hidden_size, config.num_attention_heads, config.num_key_value_heads
        self.attn_norm, self.ff_norm = Norm(width), Norm(width)
        self.q_proj = nn.Linear(width, width, bias=False)
        self.k_proj, self.v_proj = (nn.Linear(width, width // self.heads * self.kv_heads, bias=False) for _ in "kv")
        self.attn_out = nn.Linear(width, width, bias=False)
        self.ff_proj, self.up_proj, self.ff_out = (
            nn.Linear(a, b, bias=False) for a, b in ((width, 48), (width, 48), (48, width))
        )

    def forward(self, x: Tensor) -> Tensor:
        h = self.attn_norm(x)
        q = turned(self.q_proj(h).unflatten(-1, (self.heads, -1)).transpose(1, 2))
        k = turned(self.k_proj(h).unflatten(-1, (self.kv_heads, -1)).transpose(1, 2))
        v = self.v_proj(h).unflatten(-1, (self.kv_heads, -1)).transpose(1, 2)
        k, v = (t.repeat_interleave(self.heads // self.kv_heads, 1) for t in (k, v))
        z = F.scaled_dot_product_attention(q, k, v, attn_mask=None, dropout_p=0.0, is_causal=False)
        x = x + self.attn_out(z.transpose(1, 2).flatten(2))
        h = self.ff_norm(x)
        return x + self.ff_out(F.silu(self.ff_proj(h)) * self.up_proj(h))


class Denoising(PreTrainedModel):
    """LLaDA's kind: logits at a masked position are of that position."""

    config_class = DenoisingConfig

    def __init__(self, config: DenoisingConfig) -> None:
        super().__init__(config)
        self.wte = nn.Embedding(WORDS, config.hidden_size)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.num_hidden_layers))
        self.ln_f, self.ff_out = Norm(config.hidden_size), nn.Linear(config.hidden_size, WORDS, bias=False)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, (nn.Linear, nn.Embedding)):
            nn.init.normal_(module.weight, std=0.3)

    def logits(self, input_ids: Tensor) -> Tensor:
        x = self.wte(input_ids)
        for block in self.blocks:
            x = block(x)
        made: Tensor = self.ff_out(self.ln_f(x))
        return made

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> CausalLMOutput:
        return CausalLMOutput(logits=self.logits(input_ids))


class Shifted(Denoising):
    """Dream's kind: made from a causal model, so logits are of the next position."""

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> MaskedLMOutput:
        return MaskedLMOutput(logits=self.logits(input_ids))


def denoising(kind: type[Denoising], *, seed: int = 0, **how: Any) -> Denoising:
    torch.manual_seed(seed)
    return kind(DenoisingConfig(**how)).eval()
