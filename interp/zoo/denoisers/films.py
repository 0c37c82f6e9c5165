"""Sizes of denoisers of films."""

from __future__ import annotations

from interp.zoo.denoisers.said import FOUR, Said

FILMS: Said = {
    "AllegroTransformer3DModel": {
        **FOUR, "num_layers": 2, "cross_attention_dim": 16, "sample_height": 8, "sample_width": 12,
        "sample_frames": 3, "caption_channels": 12,
    },
    "AnyFlowTransformer3DModel": {
        **FOUR, "in_channels": 4, "out_channels": 4, "text_dim": 12, "freq_dim": 16, "ffn_dim": 24, "num_layers": 2,
        "rope_max_seq_len": 32, "patch_size": (1, 2, 2),
    },
    "ChronoEditTransformer3DModel": {
        **FOUR, "in_channels": 4, "out_channels": 4, "text_dim": 12, "freq_dim": 16, "ffn_dim": 24, "num_layers": 2,
        "rope_max_seq_len": 32, "patch_size": (1, 2, 2),
    },
    "CogVideoXTransformer3DModel": {
        **FOUR, "in_channels": 4, "out_channels": 4, "time_embed_dim": 8, "text_embed_dim": 12, "num_layers": 2,
        "sample_width": 8, "sample_height": 8, "sample_frames": 5, "max_text_seq_length": 7,
    },
    "ConsisIDTransformer3DModel": {
        **FOUR, "in_channels": 4, "out_channels": 4, "time_embed_dim": 8, "text_embed_dim": 12, "num_layers": 2,
        "sample_width": 8, "sample_height": 8, "sample_frames": 5, "max_text_seq_length": 7,
    },
    "CosmosTransformer3DModel": {
        "num_attention_heads": 2, "attention_head_dim": 24, "in_channels": 4, "out_channels": 4, "num_layers": 2,
        "text_embed_dim": 12, "adaln_lora_dim": 4, "max_size": (4, 16, 16), "concat_padding_mask": False,
        "extra_pos_embed_type": None,
    },
    "EasyAnimateTransformer3DModel": {
        "num_attention_heads": 2, "attention_head_dim": 16, "in_channels": 4, "out_channels": 4, "patch_size": 2,
        "sample_width": 8, "sample_height": 8, "num_layers": 2, "mmdit_layers": 2, "time_embed_dim": 8,
        "text_embed_dim": 12,
    },
    "HeliosTransformer3DModel": {
        **FOUR, "in_channels": 4, "out_channels": 4, "text_dim": 12, "freq_dim": 16, "ffn_dim": 24, "num_layers": 2,
        "rope_dim": (4, 2, 2), "has_multi_term_memory_patch": False,
    },
    "HunyuanVideo15Transformer3DModel": {
        **FOUR, "in_channels": 4, "out_channels": 4, "num_layers": 2, "num_refiner_layers": 1, "text_embed_dim": 12,
        "text_embed_2_dim": 6, "image_embed_dim": 8, "rope_axes_dim": (2, 2, 4), "task_type": "t2v",
    },
    "HunyuanVideoTransformer3DModel": {
        **FOUR, "in_channels": 4, "out_channels": 4, "num_layers": 1, "num_single_layers": 2,
        "num_refiner_layers": 1, "patch_size": 2, "text_embed_dim": 12, "pooled_projection_dim": 10,
        "rope_axes_dim": (2, 2, 4),
    },
    "I2VGenXLUNet": {
        "sample_size": 8, "block_out_channels": (16, 32), "layers_per_block": 1, "norm_num_groups": 4,
        "cross_attention_dim": 12, "down_block_types": ("CrossAttnDownBlock3D", "DownBlock3D"),
        "up_block_types": ("UpBlock3D", "CrossAttnUpBlock3D"), "num_attention_heads": None, "attention_head_dim": 8,
    },
    "JoyImageEditTransformer3DModel": {
        "in_channels": 4, "hidden_size": 16, "num_attention_heads": 2, "text_dim": 12, "num_layers": 2,
        "rope_dim_list": (2, 2, 4),
    },
    "Kandinsky5Transformer3DModel": {
        "in_text_dim": 12, "in_text_dim2": 10, "time_dim": 8, "model_dim": 16, "ff_dim": 24, "num_text_blocks": 2,
        "num_visual_blocks": 2, "axes_dims": (4, 2, 2),
    },
    "Kandinsky6Transformer3DModel": {
        "in_visual_dim": 4, "out_visual_dim": 4, "in_text_dim": 12, "in_text_dim2": 10, "time_dim": 8,
        "model_dim": 16, "ff_dim": 24, "num_text_blocks": 2, "num_visual_blocks": 2, "axes_dims": (4, 2, 2),
        "visual_cond": False,
    },
    "LTX2VideoTransformer3DModel": {
        **FOUR, "in_channels": 4, "out_channels": 4, "cross_attention_dim": 16, "audio_in_channels": 4,
        "audio_out_channels": 4, "audio_num_attention_heads": 2, "audio_attention_head_dim": 4,
        "audio_cross_attention_dim": 8, "num_layers": 2, "caption_channels": 12,
    },
    "LTXVideoTransformer3DModel": {
        **FOUR, "in_channels": 4, "out_channels": 4, "cross_attention_dim": 16, "num_layers": 2,
        "caption_channels": 12,
    },
    "LatteTransformer3DModel": {
        **FOUR, "in_channels": 4, "out_channels": 4, "num_layers": 2, "cross_attention_dim": 16, "sample_size": 8,
        "patch_size": 2, "caption_channels": 12, "norm_type": "ada_norm_single", "video_length": 3,
    },
    "MochiTransformer3DModel": {
        **FOUR, "in_channels": 4, "num_layers": 2, "pooled_projection_dim": 10, "text_embed_dim": 16,
        "time_embed_dim": 6, "max_sequence_length": 8,
    },
    "MotifVideoTransformer3DModel": {
        **FOUR, "in_channels": 4, "out_channels": 4, "num_layers": 2, "num_single_layers": 2, "text_embed_dim": 12,
        "rope_axes_dim": (2, 2, 4),
    },
    "SanaVideoTransformer3DModel": {
        **FOUR, "in_channels": 4, "out_channels": 4, "num_layers": 2, "num_cross_attention_heads": 2,
        "cross_attention_head_dim": 8, "cross_attention_dim": 16, "caption_channels": 12, "sample_size": 6,
        "rope_max_seq_len": 32,
    },
    "SkyReelsV2Transformer3DModel": {
        **FOUR, "in_channels": 4, "out_channels": 4, "text_dim": 12, "freq_dim": 16, "ffn_dim": 24, "num_layers": 2,
        "rope_max_seq_len": 32, "patch_size": (1, 2, 2),
    },
    "StableAudio3DiTModel": {
        "io_channels": 4, "embed_dim": 16, "depth": 2, "num_heads": 2, "cond_token_dim": 12, "global_cond_dim": 10,
        "local_add_cond_dim": 0, "timestep_features_dim": 8, "num_memory_tokens": 2,
    },
    "UNet3DConditionModel": {
        "sample_size": 8, "block_out_channels": (16, 32), "layers_per_block": 1, "norm_num_groups": 4,
        "cross_attention_dim": 12, "down_block_types": ("CrossAttnDownBlock3D", "DownBlock3D"),
        "up_block_types": ("UpBlock3D", "CrossAttnUpBlock3D"), "attention_head_dim": 8,
    },
    "UNetSpatioTemporalConditionModel": {
        "sample_size": 8, "in_channels": 4, "out_channels": 4,
        "down_block_types": ("CrossAttnDownBlockSpatioTemporal", "DownBlockSpatioTemporal"),
        "up_block_types": ("UpBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal"),
        "block_out_channels": (32, 64), "addition_time_embed_dim": 4, "projection_class_embeddings_input_dim": 12,
        "layers_per_block": 1, "cross_attention_dim": 12, "num_attention_heads": (2, 4), "num_frames": 3,
    },
    "WanTransformer3DModel": {
        **FOUR, "in_channels": 4, "out_channels": 4, "text_dim": 12, "freq_dim": 16, "ffn_dim": 24, "num_layers": 2,
        "rope_max_seq_len": 32, "patch_size": (1, 2, 2),
    },
    "WanVACETransformer3DModel": {
        **FOUR, "in_channels": 4, "out_channels": 4, "text_dim": 12, "freq_dim": 16, "ffn_dim": 24, "num_layers": 2,
        "rope_max_seq_len": 32, "patch_size": (1, 2, 2), "vace_layers": [0], "vace_in_channels": 4,
    },
}  # fmt: skip
