"""Every model type of the installed transformers, tiny and random, from its config class alone.

The config a type comes with is shrunk: each number whose name says what it counts (`SIZES`) becomes a small one, in the
config and in those inside it. The class is the first of transformers' own lists that has the type. Nothing is
downloaded, and no type has a row of its own but those in `OWN`, whose numbers depend on each other in a way that their
names do not say. Cost: a tenth of a second to two seconds a type.
Limits: a type that cannot be built so says why; that says nothing about the type.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import nn

from interp.hooks.errors import ModelError

LISTS = (
    "MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES", "MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING_NAMES",
    "MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES", "MODEL_FOR_MASKED_LM_MAPPING_NAMES",
    "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES", "MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES", "MODEL_MAPPING_NAMES",
)  # fmt: skip
"""transformers' lists of classes by model type, the first that has a type says its class."""
LARGEST = 20_000_000
"""Parameters above which a type counts as not made small."""
SIZES: tuple[tuple[str, int], ...] = (
    (r"vocab_size(_.*)?|.*_vocab_size|n_words", 99),
    (r"(num_)?(key_value|kv)_(heads|groups)|num_key_value_heads|n_kv_heads|multi_query_group_num|num_kv_heads", 2),
    (r".*(attention_heads|num_heads|n_heads?|decoder_heads|encoder_heads|attn_heads)", 4),
    (r".*(num_hidden_layers|num_layers|n_layers?|encoder_layers|decoder_layers|num_blocks|depth)", 2),
    (r"num_hidden_.*layers", 2),
    (r"(text_|vision_)?head_dim|v_head_dim|qk_nope_head_dim|d_kv|kv_channels|attention_head_dim", 8),
    (r"qk_rope_head_dim|rotary_dim|rope_head_dim", 4),
    (r"(kv|q|o)_lora_rank", 16),
    (r"(.*_)?(hidden_size|hidden_dim|d_model|embed_dim|n_embd|embedding_size|projection_dim|model_dim)", 32),
    (r"(.*_)?hidden_channels|dim|width|pooler_output_size|word_embed_proj_dim|proj_codevector_dim", 32),
    (r"(.*_)?(intermediate_size|ffn_dim|d_ff|n_inner|ffn_hidden_size|mlp_dim|feedforward_size)(_.*)?", 48),
    (r"(.*_)?(intermediate_dim|d_inner)(_.*)?", 48),
    (r"(num_)?(local_)?(routed_)?experts|num_local_experts|n_routed_experts|moe_num_experts", 4),
    (r"num_experts_per_tok(en)?|moe_k|top_k_experts|experts_per_token|num_selected_experts", 2),
    (r"n_shared_experts|num_shared_experts|n_group|topk_group", 1),
    (r"max_(position|target_position|source_position|seq|text)\w*|n_positions|n_ctx|max_sequence_length", 64),
    (r"image_size|input_size", 32),
    (r"patch_size", 8),
    (r"num_mel_bins|num_features|feat_extract_dim", 16),
    (r"num_labels|num_classes", 3),
    (r"num_codebooks|num_quantizers", 2),
    (r"num_queries|num_query_tokens|num_latents|max_num_tiles", 4),
    (r"(image|video|audio)_token_(id|index)|vision_(start|end)_token_id", 90),
)  # fmt: skip
"""What a number counts, by its name, and what it becomes where it is larger."""
LISTED: tuple[tuple[str, Callable[[int], list[int]]], ...] = (
    (r"depths|layers|num_layers|num_blocks", lambda n: [1] * n),
    (r"num_heads|num_attention_heads", lambda n: [2] * n),
    (r"hidden_sizes|embed_dims?|dims|stage_channels", lambda n: [16 * (k + 1) for k in range(n)]),
)  # fmt: skip
"""The same of numbers by stage; there stay as many stages."""
STAGES = {"embed_dim": 16, "depths": [1, 1], "num_heads": [2, 4], "window_size": 4, "image_size": 32, "patch_size": 4}
LATENT = {"qk_rope_head_dim": 4, "qk_nope_head_dim": 8, "v_head_dim": 8, "head_dim": 4, "num_key_value_heads": 4}
"""Latent attention: keys of every head, whose rotary part has the size that the config calls a head's."""
OWN: Mapping[str, Mapping[str, Any]] = {
    "swin": STAGES, "swinv2": STAGES, "donut-swin": STAGES,
    "bloom": {"n_head": 4, "hidden_size": 32, "n_layer": 2, "vocab_size": 99},
    **dict.fromkeys(
        ("axk1", "axk2", "bailing_hybrid", "deepseek_v2", "deepseek_v3", "deepseek_v32", "glm4_moe_lite", "glm_moe_dsa",
         "mistral4", "minicpm3"), LATENT,
    ),
}  # fmt: skip


def types() -> list[str]:
    """Every model type that has a class of its own to be built."""
    every: dict[str, None] = {}
    for name in LISTS:
        every |= dict.fromkeys(_list(name))
    return sorted(every)


def class_of(model_type: str) -> type[nn.Module]:
    """The class that is built of a type."""
    import transformers

    for name in LISTS:
        found = _list(name).get(model_type)
        if found is not None:
            found = found if isinstance(found, str) else found[0]
            made: type[nn.Module] = getattr(transformers, found)
            return made
    raise ModelError(f"no class of transformers has the model type {model_type!r}.")


def _list(name: str) -> Mapping[str, Any]:
    from transformers.models.auto import modeling_auto

    return dict(getattr(modeling_auto, name))


def config_of(model_type: str) -> Any:
    """The config of a type, shrunk."""
    from transformers import AutoConfig

    config = AutoConfig.for_model(model_type)
    for one in _with_inner(config):
        _shrink(one)
    for key, value in OWN.get(model_type, {}).items():
        setattr(config, key, value)
    return config


def _with_inner(config: Any) -> Iterator[Any]:
    """A config and those inside it."""
    from transformers import PreTrainedConfig

    yield config
    for value in list(vars(config).values()):
        if isinstance(value, PreTrainedConfig):
            yield from _with_inner(value)


def _shrink(config: Any) -> None:
    before = len(getattr(config, "layer_types", None) or ())
    for key, value in list(vars(config).items()):
        if isinstance(value, bool) or key.startswith("_"):
            continue
        if isinstance(value, int) and (small := _first(SIZES, key)) is not None and value > small:
            setattr(config, key, small)
        listed = isinstance(value, (list, tuple)) and bool(value) and all(isinstance(x, int) for x in value)
        if listed and (few := _first(LISTED, key)) is not None:
            setattr(config, key, few(len(value)))
        if value is None and re.fullmatch(SIZES[0][0], key):
            setattr(config, key, SIZES[0][1])
    _rotate(config)
    count = getattr(config, "num_hidden_layers", None)
    if before and isinstance(count, int) and before > count and "layer_types" in vars(config):
        kinds = list(config.layer_types)
        config.layer_types = (list(dict.fromkeys(kinds)) * count)[:count]  # each kind once, where there is room
    for key in ("pad_token_id", "eos_token_id", "bos_token_id", "decoder_start_token_id"):
        if isinstance(value := getattr(config, key, None), int) and value >= 99:
            setattr(config, key, {"pad_token_id": 0, "bos_token_id": 1}.get(key, 2))


def _rotate(config: Any) -> None:
    """Rotary positions of three axes share a head's size: a quarter, and two times three eighths."""
    rope = getattr(config, "rope_parameters", None)
    if not isinstance(rope, dict) or "mrope_section" not in rope:
        return
    heads = getattr(config, "num_attention_heads", 4)
    size = getattr(config, "head_dim", None) or config.hidden_size // heads
    half = int(size * rope.get("partial_rotary_factor", 1.0)) // 2
    if len(rope["mrope_section"]) == 3:
        rope["mrope_section"] = [half - 2 * (3 * half // 8), 3 * half // 8, 3 * half // 8]


def _first(table: Any, key: str) -> Any:
    return next((small for pattern, small in table if re.fullmatch(pattern, key)), None)


def build(model_type: str, *, seed: int = 0) -> nn.Module:
    """A tiny random model of a type, in eval mode; raises what transformers raises where it cannot be built so."""
    cls, config = class_of(model_type), config_of(model_type)
    with torch.device("meta"):
        size = sum(p.numel() for p in cls(config).parameters())
    if size > LARGEST:
        raise ModelError(f"{size:,} parameters are left of {model_type!r}: its config was not made small.")
    torch.manual_seed(seed)
    made: nn.Module = cls(config).eval()
    return made
