"""Sizes of denoisers of sound."""

from __future__ import annotations

from interp.zoo.denoisers.said import FOUR, Said

SOUNDS: Said = {
    "AceStepTransformer1DModel": {
        "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2,
        "num_key_value_heads": 1, "head_dim": 8, "in_channels": 12, "audio_acoustic_hidden_dim": 4,
        "sliding_window": 4,
    },
    "AudioLDM2UNet2DConditionModel": {
        "sample_size": 8, "block_out_channels": (16, 32), "layers_per_block": 1, "norm_num_groups": 4,
        "cross_attention_dim": 12, "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"), "attention_head_dim": (2, 4),
    },
    "LongCatAudioDiTTransformer": {
        "dit_dim": 16, "dit_depth": 2, "dit_heads": 2, "dit_text_dim": 12, "latent_dim": 4,
    },
    "MiniMaxMusic3Transformer1DModel": {
        **FOUR, "in_channels": 4, "condition_dim": 12, "num_layers": 2, "ff_inner_dim": 24, "rotary_dim": 4,
        "fourier_embedding_dim": 8,
    },
    "StableAudio3DiTModel": {
        "io_channels": 4, "embed_dim": 16, "depth": 2, "num_heads": 2, "cond_token_dim": 12, "global_cond_dim": 10,
        "local_add_cond_dim": 0, "timestep_features_dim": 8, "num_memory_tokens": 2,
    },
    "StableAudioDiTModel": {
        **FOUR, "sample_size": 24, "in_channels": 4, "num_layers": 2, "num_key_value_attention_heads": 1,
        "out_channels": 4, "cross_attention_dim": 16, "time_proj_dim": 8, "global_states_input_dim": 10,
        "cross_attention_input_dim": 12,
    },
}  # fmt: skip
