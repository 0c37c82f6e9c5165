"""Which architectures are read from a GGUF file: one row each, every row compared with transformers' class by a test.

A row names the class, what the file's facts are called in its config, what must hold of facts that the config has no
place for, and how a tensor is turned back into the class's own layout. A fact that no row knows is refused by name
(`config.py`), since a file says less than a config and a default in its place may be wrong without a sign.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from interp.loading.gguf.header import Header

Numbers = np.ndarray[Any, np.dtype[np.float32]]
Mend = Callable[[str, Numbers, Any], Numbers]


def as_stored(_name: str, tensor: Numbers, _config: Any) -> Numbers:
    """Nothing to turn back."""
    return tensor


def unpermuted(name: str, tensor: Numbers, config: Any) -> Numbers:
    """Rows of Llama's q and k: the file has the two rotary halves of a head interleaved, transformers in sequence."""
    heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}.get(name.split(".")[-2])
    if heads is None:
        return tensor
    return tensor.reshape(heads, -1, 2, *tensor.shape[1:]).swapaxes(1, 2).reshape(tensor.shape)


def minus_one(name: str, tensor: Numbers, _config: Any) -> Numbers:
    """Gemma's norms: the file has the factor, transformers the factor less one."""
    return tensor - np.float32(1) if name.endswith("norm.weight") else tensor


def transposed(name: str, tensor: Numbers, _config: Any) -> Numbers:
    """GPT-2's `Conv1D`, which has the input first."""
    return tensor.T if name.split(".")[-2] in ("attn_qkv", "attn_output", "ffn_up", "ffn_down") else tensor


LLAMA = {
    "block_count": "num_hidden_layers",
    "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "rope.freq_base": "rope_theta",
}
GPT2 = {
    "block_count": "n_layer",
    "context_length": "n_positions",
    "embedding_length": "n_embd",
    "feed_forward_length": "n_inner",
    "attention.head_count": "n_head",
    "attention.layer_norm_epsilon": "layer_norm_epsilon",
}
WINDOW = {"attention.sliding_window": "sliding_window", "final_logit_softcapping": "final_logit_softcapping"}
OPTIONAL = {"attention.head_count_kv", "rope.freq_base", "final_logit_softcapping", "attn_logit_softcapping"}
"""Facts a file may leave out; the format gives them a meaning then (`config.py`)."""
HEAD_DIM = ("attention.key_length", "rope.dimension_count", "attention.value_length")
"""Facts that all say the width of a head."""
NOTHING = {
    "attention.causal": True,
    "expert_count": 0,
    "expert_used_count": 0,
    "rope.scaling.type": "none",
}
"""Facts that change nothing when they have this value."""


@dataclass(frozen=True)
class Architecture:
    """How one architecture of GGUF becomes a class of transformers."""

    cls: str
    keys: Mapping[str, str]
    mend: Mend = as_stored
    must: Mapping[str, Any] = field(default_factory=dict)
    """Facts with the one value that that the class's default has."""
    refused: Callable[[Header], str | None] = lambda _header: None
    """What the file leaves out of this particular model, as the end of a sentence."""


def gemma_width(header: Header) -> str | None:
    """Gemma's scale of scores is not in the file; it is the width of a head where that is 256."""
    width = header.facts.get(f"{header.architecture}.attention.key_length")
    return None if width == 256 else f"the scale of scores (query_pre_attn_scalar) for heads of width {width}"


def gemma3_size(header: Header) -> str | None:
    """From 4 B on (34 layers), global layers have a scaled rope, which files do not always say."""
    layers = header.facts.get("gemma3.block_count", 0)
    if isinstance(layers, int) and layers >= 34:
        return "the rope scaling of the global layers of Gemma-3 of 4 B and more"
    return gemma_width(header)


ARCHITECTURES: Mapping[str, Architecture] = {
    "llama": Architecture("LlamaForCausalLM", LLAMA, unpermuted),
    "qwen2": Architecture("Qwen2ForCausalLM", LLAMA),
    "qwen3": Architecture("Qwen3ForCausalLM", LLAMA),
    "gemma2": Architecture(
        "Gemma2ForCausalLM",
        {**LLAMA, **WINDOW, "attn_logit_softcapping": "attn_logit_softcapping"},
        minus_one,
        refused=gemma_width,
    ),
    "gemma3": Architecture(
        "Gemma3ForCausalLM",
        {**LLAMA, **WINDOW},
        minus_one,
        {"rope.freq_base_swa": 10000.0, "attention.sliding_window_pattern": 6},
        gemma3_size,
    ),
    "gpt2": Architecture("GPT2LMHeadModel", GPT2, transposed),
}
PACKED = ("qwen35", "qwen35moe", "lfm2")
"""Architectures that transformers keeps as packed blocks, which no method on weights can read."""
