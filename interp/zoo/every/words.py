"""What is said of language models by name: layers of several kinds, recurrences in addition to attention, groups of
experts."""

from __future__ import annotations

from collections.abc import Mapping

from interp.zoo.every.said import Said, inside

AXES: Said = {"rope_parameters.mrope_section": [2, 1, 1]}
"""Rotary positions of three axes, where a config leaves their shares to its checkpoints."""
FULL: Said = {"rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 1e4}}}
INDEXED: Said = {
    "indexer_n_heads": 4, "indexer_kv_heads": 1, "indexer_head_dim": 8, "indexer_budget": 4,
    "indexer_compress_ratio": 2,
}  # fmt: skip
SHARED: Said = {
    "layers_block_type": ["linear_attention", "hybrid", "hybrid"], "num_hidden_layers": 3,
    "attention_hidden_size": 64, "attention_head_dim": 16, "num_key_value_heads": 4,
}  # fmt: skip
HEADS: Said = {
    "num_attention_heads": 4, "num_key_value_heads": 4, "head_dim": 12, "qk_nope_head_dim": 8, "v_head_dim": 8,
    "qk_rope_head_dim": 4, "kv_lora_rank": 16, "q_lora_rank": 16,
}  # fmt: skip
DOTS3: Said = {
    **HEADS, **{f"swa_{name}": value for name, value in HEADS.items()}, "num_hidden_layers": 3, "hidden_size": 32,
    "index_head_dim": 8, "index_n_heads": 2,
}  # fmt: skip
"""Its sizes by layer are checked while the config is made."""
GIVEN_WORDS: Mapping[str, Said] = {"dots3_note_text": DOTS3}
WORDS: Mapping[str, Said] = {
    "bamba": {"attn_layer_indices": [1]},
    "bloom": {"n_head": 4, "hidden_size": 32, "n_layer": 2, "vocab_size": 99},
    "blt": {
        "encoder_hash_byte_group_vocab": 99,
        "num_hidden_layers": 2,
        "global_config.hidden_size": 64,
        "global_config.head_dim": 16,
        "encoder_config.hidden_size_global": 64,
        "decoder_config.hidden_size_global": 64,
    },
    "bros": {
        "hidden_size": 128,
        "dim_bbox_sinusoid_emb_2d": 32,
        "dim_bbox_sinusoid_emb_1d": 4,
        "dim_bbox_projection": 32,
    },
    "cohere_compass_text": FULL,
    "dbrx": {"attn_config.rope_theta": 1e4, "attn_config.clip_qkv": 8.0},
    "diffusion_gemma": inside("text_config", {"moe_intermediate_size": 48, "num_experts": 4, "top_k_experts": 2}),
    "esm": {"pad_token_id": 1, "mask_token_id": 32},
    "esmc": {"num_key_value_heads": 4},
    "falcon_h1": {"mamba_d_head": 16},
    "gemma3n_text": {
        "num_hidden_layers": 4,
        "num_kv_shared_layers": 2,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
    },
    "granitemoehybrid": {"layer_types": ["linear_attention", "full_attention"]},
    "hrm_text": {"num_layers_per_stack": 2, "num_hidden_layers": 16},
    "jamba": {"attn_layer_offset": 1, "attn_layer_period": 2, "expert_layer_offset": 1},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"], "num_dense_layers": 1},
    "lilt": {"hidden_size": 48},
    "mamba2": {"head_dim": 16},
    "perceiver": {"d_latents": 32, "num_self_attends_per_block": 2},
    "qwen4_exp_text": INDEXED,
    "recurrent_gemma": {"num_hidden_layers": 3, "num_key_value_heads": 4},
    "reformer": {
        "axial_pos_embds_dim": (8, 24),
        "axial_pos_shape": (8, 8),
        "attention_head_size": 8,
        "local_attn_chunk_length": 4,
        "lsh_attn_chunk_length": 4,
        "hash_seed": 0,
    },
    "t5gemma2_encoder": {"text_config.dropout_rate": 0.0},
    "xlstm": {"hidden_size": 128, "embedding_dim": 128},
    "xmod": {"default_language": "en_XX"},
    "zamba": SHARED,
    "zamba2": {**SHARED, "hybrid_layer_ids": [1, 2], "num_query_groups": 4, "n_mamba_heads": 4},
    **dict.fromkeys(
        ("glm4v_text", "glm_image_text", "glm_ocr_text", "hunyuan_vl_text", "qwen2_5_vl_text", "qwen2_vl_text"), AXES
    ),
    "glm4v_moe_text": {**AXES, "head_dim": 16},
}
