"""Sizes of denoisers of pictures."""

from __future__ import annotations

from interp.zoo.denoisers.said import FOUR, Said

PICTURES: Said = {
    "AuraFlowTransformer2DModel": {
        **FOUR, "sample_size": 8, "in_channels": 4, "out_channels": 4, "num_mmdit_layers": 2,
        "num_single_dit_layers": 2, "joint_attention_dim": 12, "caption_projection_dim": 16,
        "pos_embed_max_size": 64,
    },
    "BriaFibo2Transformer2DModel": {
        "in_channels": 4, "patch_size": 2, "dim": 16, "n_layers": 2, "n_refiner_layers": 1, "n_heads": 2,
        "cap_feat_dim": 12, "injection_layer_ids": (1,), "perceiver_num_layers": 1, "min_num_gist_tokens": 4,
        "max_num_gist_tokens": 8, "gist_step": 2, "gist_min_text_len": 4, "gist_max_text_len": 16,
        "axes_dims": (4, 2, 2), "axes_lens": (64, 32, 32),
    },
    "BriaFiboTransformer2DModel": {
        **FOUR, "joint_attention_dim": 12, "axes_dims_rope": (2, 2, 4), "in_channels": 4, "num_layers": 2,
        "num_single_layers": 2, "text_encoder_dim": 6,
    },
    "BriaTransformer2DModel": {
        **FOUR, "joint_attention_dim": 12, "axes_dims_rope": (2, 2, 4), "in_channels": 4, "num_layers": 2,
        "num_single_layers": 2,
    },
    "ChromaTransformer2DModel": {
        **FOUR, "joint_attention_dim": 12, "axes_dims_rope": (2, 2, 4), "in_channels": 4, "num_layers": 2,
        "num_single_layers": 2, "approximator_num_channels": 8, "approximator_hidden_dim": 16,
        "approximator_layers": 1,
    },
    "CogView3PlusTransformer2DModel": {
        **FOUR, "in_channels": 4, "out_channels": 4, "num_layers": 2, "text_embed_dim": 12, "time_embed_dim": 8,
        "condition_dim": 4, "pos_embed_max_size": 8, "sample_size": 8,
    },
    "CogView4Transformer2DModel": {
        **FOUR, "in_channels": 4, "out_channels": 4, "num_layers": 2, "text_embed_dim": 12, "time_embed_dim": 8,
        "condition_dim": 4, "sample_size": 8, "rope_axes_dim": (8, 8),
    },
    "DiTTransformer2DModel": {
        **FOUR, "in_channels": 4, "num_layers": 2, "sample_size": 8, "norm_num_groups": 2,
        "num_embeds_ada_norm": 10,
    },
    "ErnieImageTransformer2DModel": {
        "hidden_size": 16, "num_attention_heads": 2, "num_layers": 2, "ffn_hidden_size": 24, "in_channels": 4,
        "out_channels": 4, "text_in_dim": 12, "rope_axes_dim": (2, 2, 4),
    },
    "Flux2Transformer2DModel": {
        **FOUR, "joint_attention_dim": 12, "axes_dims_rope": (2, 2, 2, 2), "in_channels": 4, "num_layers": 2,
        "num_single_layers": 2, "timestep_guidance_channels": 8,
    },
    "Flux3Transformer2DModel": {
        **FOUR, "joint_attention_dim": 12, "axes_dims_rope": (2, 2, 2, 2), "in_channels": 4, "cond_in_channels": 4,
        "num_layers": 2, "num_single_layers": 2, "timestep_channels": 8,
    },
    "FluxTransformer2DModel": {
        **FOUR, "in_channels": 4, "num_layers": 2, "num_single_layers": 2, "joint_attention_dim": 12,
        "pooled_projection_dim": 10, "axes_dims_rope": (2, 2, 4), "guidance_embeds": True,
    },
    "GlmImageTransformer2DModel": {
        **FOUR, "in_channels": 4, "out_channels": 4, "num_layers": 2, "text_embed_dim": 12, "time_embed_dim": 8,
        "condition_dim": 4, "prior_vq_quantizer_codebook_size": 20,
    },
    "HunyuanDiT2DModel": {
        **FOUR, "in_channels": 4, "patch_size": 2, "sample_size": 8, "hidden_size": 16, "num_layers": 4,
        "cross_attention_dim": 12, "cross_attention_dim_t5": 8, "pooled_projection_dim": 10, "text_len": 7,
        "text_len_t5": 5,
    },
    "HunyuanImageTransformer2DModel": {
        **FOUR, "in_channels": 4, "out_channels": 4, "num_layers": 2, "num_single_layers": 2,
        "num_refiner_layers": 1, "text_embed_dim": 12, "rope_axes_dim": (4, 4),
    },
    "Ideogram4Transformer2DModel": {
        **FOUR, "in_channels": 4, "num_layers": 2, "intermediate_size": 24, "adaln_dim": 8, "llm_features_dim": 12,
        "mrope_section": (2, 1, 1),
    },
    "Krea2Transformer2DModel": {
        **FOUR, "in_channels": 4, "num_layers": 2, "num_key_value_heads": 1, "intermediate_size": 24,
        "timestep_embed_dim": 8, "text_hidden_dim": 12, "num_text_layers": 2, "text_num_attention_heads": 2,
        "text_num_key_value_heads": 2, "text_intermediate_size": 16, "num_layerwise_text_blocks": 1,
        "num_refiner_text_blocks": 1, "axes_dims_rope": (4, 2, 2),
    },
    "LongCatImageTransformer2DModel": {
        **FOUR, "joint_attention_dim": 12, "axes_dims_rope": (2, 2, 4), "in_channels": 4, "num_layers": 2,
        "num_single_layers": 2, "pooled_projection_dim": 10,
    },
    "Lumina2Transformer2DModel": {
        "sample_size": 8, "in_channels": 4, "hidden_size": 24, "num_layers": 2, "num_refiner_layers": 1,
        "num_attention_heads": 3, "num_kv_heads": 1, "axes_dim_rope": (4, 2, 2), "axes_lens": (32, 32, 32),
        "cap_feat_dim": 12,
    },
    "LuminaNextDiT2DModel": {
        "sample_size": 8, "in_channels": 4, "hidden_size": 16, "num_layers": 2, "num_attention_heads": 2,
        "num_kv_heads": 2, "multiple_of": 4, "cross_attention_dim": 12,
    },
    "NucleusMoEImageTransformer2DModel": {
        **FOUR, "joint_attention_dim": 12, "axes_dims_rope": (2, 2, 4), "in_channels": 16, "out_channels": 4,
        "num_layers": 4, "num_experts": 4, "moe_intermediate_dim": 8,
    },
    "OmniGenTransformer2DModel": {
        "hidden_size": 16, "num_attention_heads": 2, "num_key_value_heads": 1, "intermediate_size": 24,
        "num_layers": 2, "pad_token_id": 0, "vocab_size": 30, "max_position_embeddings": 64,
        "original_max_position_embeddings": 64,
        "rope_scaling": {"short_factor": [1.0, 1.0, 1.0, 1.0], "long_factor": [1.0, 1.0, 1.0, 1.0], "type": "su"},
        "pos_embed_max_size": 8, "time_step_dim": 8,
    },
    "OvisImageTransformer2DModel": {
        **FOUR, "joint_attention_dim": 12, "axes_dims_rope": (2, 2, 4), "in_channels": 4, "out_channels": 4,
        "num_layers": 2, "num_single_layers": 2,
    },
    "PRXTransformer2DModel": {
        "in_channels": 4, "context_in_dim": 12, "hidden_size": 16, "num_heads": 2, "depth": 2, "axes_dim": (4, 4),
    },
    "PixArtTransformer2DModel": {
        **FOUR, "in_channels": 4, "out_channels": 8, "num_layers": 2, "cross_attention_dim": 16, "sample_size": 8,
        "caption_channels": 12, "norm_num_groups": 2, "use_additional_conditions": False,
    },
    "PriorTransformer": {
        **FOUR, "num_layers": 2, "embedding_dim": 12, "num_embeddings": 7,
    },
    "QwenImage21Transformer2DModel": {
        **FOUR, "in_channels": 4, "out_channels": 4, "num_layers": 2, "context_in_dim": 12,
        "axes_dims_rope": (2, 2, 4),
    },
    "QwenImageTransformer2DModel": {
        **FOUR, "in_channels": 4, "out_channels": 1, "num_layers": 2, "joint_attention_dim": 12,
        "axes_dims_rope": (2, 2, 4),
    },
    "SD3Transformer2DModel": {
        **FOUR, "sample_size": 8, "in_channels": 4, "out_channels": 4, "num_layers": 3, "joint_attention_dim": 12,
        "caption_projection_dim": 16, "pooled_projection_dim": 10, "pos_embed_max_size": 8, "qk_norm": "rms_norm",
    },
    "SanaTransformer2DModel": {
        **FOUR, "in_channels": 4, "out_channels": 4, "num_layers": 2, "num_cross_attention_heads": 2,
        "cross_attention_head_dim": 8, "cross_attention_dim": 16, "caption_channels": 12, "sample_size": 6,
    },
    "Transformer2DModel": {
        **FOUR, "in_channels": 16, "num_layers": 2, "norm_num_groups": 4, "cross_attention_dim": 12,
    },
    "UNet2DConditionModel": {
        "sample_size": 8, "block_out_channels": (16, 32), "layers_per_block": 1, "norm_num_groups": 4,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"), "cross_attention_dim": 12,
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"), "attention_head_dim": (2, 4),
        "addition_embed_type": "text_time", "addition_time_embed_dim": 4,
        "projection_class_embeddings_input_dim": 34, "transformer_layers_per_block": (1, 2),
        "use_linear_projection": True,
    },
    "UNet2DModel": {
        "sample_size": 8, "in_channels": 4, "out_channels": 4,
        "down_block_types": ("DownBlock2D", "AttnDownBlock2D"), "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
        "block_out_channels": (16, 32), "layers_per_block": 1, "attention_head_dim": 8, "norm_num_groups": 4,
    },
}  # fmt: skip
