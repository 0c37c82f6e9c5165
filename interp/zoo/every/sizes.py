"""Configs made small: each number whose name says what it counts becomes a small one, in a config and those inside it.

`SIZES` says the small number by name, `LISTED` the same of numbers by stage, `EMPTY` what is filled in where a config
leaves it to its checkpoints. What a head's size follows from is worked out after that: latent attention (`_latent`),
rotary positions of three axes (`_rotate`), layers of several kinds. A backbone that a package has to build by name
becomes a small ResNet of transformers' own.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

SIZES: tuple[tuple[str, int], ...] = (
    (r"vocab_size(_.*)?|.*_vocab_size|n_words", 99),
    (r"(.*_)?(key_value|kv)_(heads|groups)|n_kv_heads|multi_query_group_num", 2),
    (r".*(attention_heads|num_heads|n_heads?|decoder_heads|encoder_heads|attn_heads)", 4),
    (r".*(num_hidden_layers|num_layers|n_layers?|encoder_layers|decoder_layers|num_blocks|depth)", 2),
    (r"num_hidden_.*layers", 2),
    (r"mamba_d_head|mamba_head_?dim", 16),
    (r"mamba_d_ssm", 64),
    (r"(mamba_)?n_groups", 2),
    (r"(text_|vision_|swa_)?head_dim|v_head_dim|qk_nope_head_dim|d_kv|kv_channels|attention_head_dim", 8),
    (r"qk_rope_head_dim|rotary_dim|rope_head_dim", 4),
    (r"(kv|q|o)_lora_rank", 16),
    (r"(.*_)?(hidden_size|hidden_dim|d_model|emb(ed)?_dim|n_embd|embedding_size|projection_dim|model_dim)", 32),
    (r"(.*_)?hidden_channels|dim|width|pooler_output_size|word_embed_proj_dim|proj_codevector_dim", 32),
    (r"embedding_dim|lru_width|intra_bottleneck_size", 32),
    (r"(.*_)?(intermediate_size|ffn_dim|d_ff|n_inner|ffn_hidden_size|mlp_dim|feed_?forward_size)(_.*)?", 48),
    (r"(.*_)?(intermediate_dim|d_inner)(_.*)?", 48),
    (r"(num_)?(local_)?(routed_)?experts|num_local_experts|n_routed_experts|moe_num_experts", 4),
    (r"num_experts_per_tok(en)?|moe_(k|topk)|top_k_experts|experts_per_token|num_selected_experts", 2),
    (r"n_shared_experts|num_shared_experts|n_group|topk_group", 1),
    (r"max_(position|target_position|source_position|seq|text)\w*|n_positions|n_ctx|max_sequence_length", 64),
    (r"image_size|input_size", 32),
    (r"patch_size", 8),
    (r"num_mel_bins|num_features|feat_extract_dim", 16),
    (r"num_labels|num_classes", 3),
    (r"num_codebooks|num_quantizers", 2),
    (r"num_filters", 4),
    (r"num_queries|num_query_tokens|num_latents|max_num_tiles", 4),
)  # fmt: skip
"""What a number counts, by its name, and what it becomes where it is larger."""
TOKENS: Mapping[str, int] = {
    "image": 90, "video": 91, "audio": 92, "vision_start": 93, "vision_end": 94, "image_start": 95, "image_end": 96,
    "boi": 95, "eoi": 96, "video_start": 97, "video_end": 98,
}  # fmt: skip
"""Ids of tokens with a special meaning, by what their name begins with; others are counted on from `OTHER`."""
OTHER = 60
LISTED: tuple[tuple[str, Callable[[int], list[int]]], ...] = (
    (r"depths|layers|num_layers|num_blocks", lambda n: [1] * n),
    (r"num_heads|num_attention_heads", lambda n: [2] * n),
    (r"hidden_sizes|embed_dims?|dims|stage_channels", lambda n: [16 * (k + 1) for k in range(n)]),
)  # fmt: skip
"""The same of numbers by stage; there stay as many stages."""
EMPTY: tuple[tuple[str, Callable[[Any], int]], ...] = (
    (SIZES[0][0], lambda config: 99),
    (r"head_dim", lambda config: config.hidden_size // config.num_attention_heads),
    (r"num_key_value_heads", lambda config: int(config.num_attention_heads)),
    (r"n_routed_experts", lambda config: 4),
    (r"num_experts_per_tok", lambda config: 2),
    (r"n_shared_experts", lambda config: 1),
)  # fmt: skip
"""What a number becomes that a config leaves to its checkpoints."""
RESNET: Mapping[str, Any] = {
    "model_type": "resnet", "embedding_size": 16, "hidden_sizes": [16, 32, 48, 64], "depths": [1, 1, 1, 1],
    "layer_type": "basic", "out_features": ["stage2", "stage3", "stage4"],
}  # fmt: skip
"""The backbone of detectors."""


def shrink(config: Any) -> None:
    """A config and those inside it, made small in place."""
    given = dict(TOKENS)
    for one in _with_inner(config):
        _shrink(one)
        _number_tokens(one, given)


def _with_inner(config: Any) -> Iterator[Any]:
    """A config and those inside it."""
    from transformers import AutoConfig, PreTrainedConfig

    yield config
    for name, value in list(vars(config).items()):
        if not isinstance(value, PreTrainedConfig):
            continue
        if value.model_type == "timm_backbone":
            setattr(config, name, AutoConfig.for_model(**RESNET))
        else:
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
    for key in [key for key, value in vars(config).items() if value is None]:
        if (fill := _first(EMPTY, key)) is not None:
            setattr(config, key, fill(config))
    _latent(config)
    _rotate(config)
    count = getattr(config, "num_hidden_layers", None)
    if before and isinstance(count, int) and before > count and "layer_types" in vars(config):
        kinds = list(config.layer_types)
        config.layer_types = (list(dict.fromkeys(kinds)) * count)[:count]  # each kind once, where there is room


def _number_tokens(config: Any, given: dict[str, int]) -> None:
    """Ids inside the small vocabulary, each name its own, the same in every config that has the name."""
    for key in ("pad_token_id", "eos_token_id", "bos_token_id", "decoder_start_token_id"):
        if isinstance(value := getattr(config, key, None), int) and value >= 99:
            setattr(config, key, {"pad_token_id": 0, "bos_token_id": 1}.get(key, 2))
    for key, value in list(vars(config).items()):
        named = re.fullmatch(r"(.*)_token_(id|index)", key)
        if named and isinstance(value, int) and value >= TOKENS["image"]:
            setattr(config, key, given.setdefault(named[1], OTHER + len(given)))


def _latent(config: Any) -> None:
    """Latent attention: keys of every head, whose rotary part has the size that the config calls a head's."""
    if any(getattr(config, name, None) is None for name in ("qk_rope_head_dim", "qk_nope_head_dim")):
        return
    config.head_dim, config.num_key_value_heads = config.qk_rope_head_dim, config.num_attention_heads
    config.qk_head_dim = config.qk_nope_head_dim + config.qk_rope_head_dim


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
