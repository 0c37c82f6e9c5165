"""Tiny GGUF files, written by the `gguf` package's own writer from models of transformers.

Names, facts and the order of rows are llama.cpp's, written here from its converter and not through the table that the
loader reads names by.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

NAMES = {
    "model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output",
    "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
    "transformer.wte": "token_embd", "transformer.wpe": "position_embd", "transformer.ln_f": "output_norm",
    "ln_1": "attn_norm", "ln_2": "ffn_norm", "attn.c_attn": "attn_qkv", "attn.c_proj": "attn_output",
    "mlp.c_fc": "ffn_up", "mlp.c_proj": "ffn_down",
}  # fmt: skip
GEMMA = {
    "post_attention_layernorm": "post_attention_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}
SMALL: dict[str, Any] = {
    "vocab_size": 96, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 128, "tie_word_embeddings": False,
}  # fmt: skip
WIDE = {**SMALL, "head_dim": 256, "num_attention_heads": 2, "num_key_value_heads": 1, "tie_word_embeddings": True}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaForCausalLM", {**SMALL, "rope_theta": 500.0}),
    "qwen2": ("Qwen2ForCausalLM", SMALL),
    "qwen3": ("Qwen3ForCausalLM", {**SMALL, "head_dim": 16}),
    "gemma2": ("Gemma2ForCausalLM", {**WIDE, "sliding_window": 4, "attn_logit_softcapping": 2.0}),
    "gemma3": ("Gemma3ForCausalLM", {**WIDE, "sliding_window": 4, "num_hidden_layers": 6, "rope_theta": 2e6}),
    "gpt2": ("GPT2LMHeadModel", {"vocab_size": 96, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 1024}),
}


def model(architecture: str) -> Any:
    """A random model of the class, with no trivial weights."""
    import transformers

    from interp.zoo.families import stir

    name, config = MODELS[architecture]
    cls = getattr(transformers, name)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = cls(cls.config_class(**config))
        stir(module)
    return module.eval()


def facts(architecture: str, config: Any) -> dict[str, Any]:
    """What llama.cpp's converter writes about the architecture."""
    said: dict[str, Any] = {
        "block_count": config.num_hidden_layers,
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "attention.head_count": config.num_attention_heads,
    }
    if architecture == "gpt2":
        return said | {"feed_forward_length": 4 * config.n_embd, "attention.layer_norm_epsilon": 1e-5}
    said |= {
        "feed_forward_length": config.intermediate_size,
        "attention.head_count_kv": config.num_key_value_heads,
        "attention.layer_norm_rms_epsilon": config.rms_norm_eps,
    }
    if architecture.startswith("gemma"):
        width = {"attention.key_length": config.head_dim, "attention.value_length": config.head_dim}
        said |= {**width, "attention.sliding_window": config.sliding_window}
    if architecture == "qwen3":
        said |= {"attention.key_length": config.head_dim, "attention.value_length": config.head_dim}
    if architecture == "gemma2":
        caps = ("attn_logit_softcapping", "final_logit_softcapping")
        return said | {name: float(getattr(config, name)) for name in caps}
    rope = config.rope_parameters
    said["rope.freq_base"] = float(rope.get("full_attention", rope)["rope_theta"])
    return said | ({"rope.dimension_count": 8, "vocab_size": config.vocab_size} if architecture == "llama" else {})


def tensors(architecture: str, module: Any) -> dict[str, np.ndarray]:
    """Every weight under the file's name, laid out as the file has it."""
    names = {**NAMES, **(GEMMA if architecture.startswith("gemma") else {})}
    found = {}
    for name, value in module.named_parameters():
        owner, leaf = name.rsplit(".", 1)
        layer, part = _split(owner)
        said = f"{f'blk.{layer}.' if layer else ''}{names[part]}.{leaf}"
        found[said] = _laid_out(architecture, said, value.detach().float(), module.config).numpy()
    return found


def _split(owner: str) -> tuple[str, str]:
    """The layer's number, if any, and the rest."""
    for start in ("model.layers.", "transformer.h."):
        if owner.startswith(start):
            layer, _, part = owner.removeprefix(start).partition(".")
            return layer, part
    return "", owner


def _laid_out(architecture: str, name: str, value: torch.Tensor, config: Any) -> torch.Tensor:
    if architecture == "llama" and ("attn_q." in name or "attn_k." in name):
        heads = config.num_attention_heads if "attn_q." in name else config.num_key_value_heads
        return (
            value.reshape(heads, 2, value.shape[0] // heads // 2, -1).swapaxes(1, 2).reshape(value.shape).contiguous()
        )
    if architecture.startswith("gemma") and name.endswith("norm.weight"):
        return value + 1
    if architecture == "gpt2" and name.endswith(".weight") and value.dim() == 2 and "_embd" not in name:
        return value.T.contiguous()
    return value


def write(
    path: Path,
    architecture: str,
    said: Mapping[str, Any],
    weights: Mapping[str, np.ndarray],
    *,
    kind: str = "F32",
    tokenizer: Callable[[Any], None] | None = None,
    more: Mapping[str, Any] | None = None,
) -> Path:
    """A GGUF file; `kind` is how matrices are packed, `more` are facts under their whole key."""
    import gguf

    writer = gguf.GGUFWriter(path, architecture)
    for key, value in {**{f"{architecture}.{key}": value for key, value in said.items()}, **(more or {})}.items():
        _add(writer, key, value)
    if tokenizer is not None:
        tokenizer(writer)
    packed = gguf.GGMLQuantizationType[kind]
    for name, value in weights.items():
        matrix = value.ndim > 1 and packed != gguf.GGMLQuantizationType.F32
        data = gguf.quantize(value, packed) if matrix else value
        writer.add_tensor(name, data, raw_dtype=packed if matrix else None)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _add(writer: Any, key: str, value: Any) -> None:
    adders = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}
    adders.get(type(value), writer.add_array)(key, value)


def saved(path: Path, architecture: str = "llama", **how: Any) -> Any:
    """A random model in a file, and the model."""
    module = model(architecture)
    write(path, architecture, facts(architecture, module.config), tensors(architecture, module), **how)
    return module


def vocabulary(
    kind: str, tokens: Sequence[str], *, kinds: Sequence[int] | None = None, **said: Any
) -> Callable[[Any], None]:
    """What writes a tokenizer; `said` are facts under `tokenizer.ggml.` (or `chat_template`)."""

    def add(writer: Any) -> None:
        writer.add_tokenizer_model(kind)
        writer.add_token_list(list(tokens))
        writer.add_token_types(list(kinds) if kinds is not None else [1] * len(tokens))
        for key, value in said.items():
            _add(writer, f"tokenizer.{'' if key == 'chat_template' else 'ggml.'}{key}", value)

    return add
