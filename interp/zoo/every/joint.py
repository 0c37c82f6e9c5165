"""What is said by name of models that read pictures and words, and of those that hear: the parts have to fit."""

from __future__ import annotations

from collections.abc import Mapping

from interp.zoo.every.said import Said, inside
from interp.zoo.every.words import AXES, DOTS3, FULL, INDEXED

VQ: Said = {"base_channels": 32, "channel_multiplier": [1, 1], "num_res_blocks": 1}
BROAD: Said = {"hidden_size": 128, "intermediate_size": 48}
GRIDS = [[32, 64], [64, 32], [64, 64]]
SEEN: Said = {"vision_start_token_id": 93, "vision_end_token_id": 94}
MIMI: Said = {
    "upsample_groups": 32, "codebook_dim": 32, "vector_quantization_hidden_dimension": 32, "codebook_size": 16,
}  # fmt: skip
SERIES: Said = {"prediction_length": 4, "context_length": 8}
GIVEN_JOINT: Mapping[str, Said] = {
    "blip-2": {"image_token_index": 90, "image_token_id": 90},
    "instructblip": {"image_token_index": 90, "image_token_id": 90},
    "instructblipvideo": {"video_token_index": 91},
    "paddleocr_vl": inside("text_config", AXES),
    "dots3_note": {
        "text_config": DOTS3,
        "vision_config": {"adapter_out_dim": 32},
        "audio_config": {"adapter_out_dim": 32},
    },
}
JOINT: Mapping[str, Said] = {
    "bridgetower": {**BROAD, **inside("text_config", BROAD), **inside("vision_config", BROAD)},
    "chameleon": {
        "vocabulary_map": {"<image>": 90, **{f"IMGIMG{letter}Z": 10 + k for k, letter in enumerate("ABCDEFGH")}},
        "image_token_id": 90,
        **inside("vq_config", {**VQ, "num_embeddings": 8, "latent_channels": 32, "resolution": 32}),
    },
    "cohere_compass": inside("text_config", FULL),
    "deepseek_ocr2": {
        "text_config.mlp_layer_types": ["dense", "sparse"],
        **inside(
            "vision_config.sam_config",
            {"output_channels": 32, "downsample_channels": [32, 32], "global_attn_indexes": [1], "window_size": 2},
        ),
    },
    "dots3_note": {
        "vision_config.adapter_in_dim": 32,
        **inside("audio_config", {"adapter_input_size": 32, "downsample_hidden_size": 8, "conv_output_size": 128}),
    },
    "emu3": {
        "vocabulary_map": {
            "<image>": 90,
            "<|extra_200|>": 89,
            **{f"<|visual token {k:06d}|>": 10 + k for k in range(8)},
        },
        "image_token_id": 90,
        **inside("vq_config", {**VQ, "codebook_size": 8}),
    },
    "ernie4_5_vl_moe": inside(
        "text_config", {"moe_intermediate_size": [48, 48], "rope_parameters.mrope_section": [1, 1, 2]}
    ),
    "gemma3": {"mm_tokens_per_image": 4},
    "glm4v_moe": inside("text_config", {**AXES, "head_dim": 16}),
    "granite4_vision": {
        "deepstack_layer_map": [[-1, 0], [0, 1]],
        "downsample_rate": "1/2",
        "spatial_target_layers": [1],
        "image_grid_pinpoints": GRIDS,
    },
    "janus": {
        "vision_config.num_image_tokens": 16,
        **inside("vq_config", {**VQ, "num_embeddings": 8, "latent_channels": 32}),
    },
    "llava_next": {"image_grid_pinpoints": GRIDS},
    "mllama": {
        "text_config.cross_attention_layers": [1],
        "vision_config.intermediate_layers_indices": [0, 1],
        "vision_config.vision_output_dim": 96,
    },
    "neomme": {"rope_parameters.full_attention.partial_rotary_factor": 0.5},
    "qwen2_5_omni_thinker": {**SEEN, **inside("text_config", AXES)},
    "qwen3_omni_moe_thinker": SEEN,
    "qwen4_exp": inside("text_config", INDEXED),
    "step3p7": {"text_config.sliding_window": 4},
    **dict.fromkeys(
        ("glm46v", "glm4v", "glm_image", "glm_ocr", "glmga", "hunyuan_vl", "qwen2_5_vl", "qwen2_vl", "qwen3_vl"),
        inside("text_config", AXES),
    ),
}
"""Pictures and words."""
SOUND: Mapping[str, Said] = {
    "clap": inside("audio_config", {"num_mel_bins": 64, "spec_size": 64, "window_size": 2, "hidden_size": 256}),
    "clvp": {**inside("text_config", BROAD), **inside("speech_config", BROAD)},
    "csm": inside("codec_config", MIMI),
    "dia": {"decoder_config.num_channels": 1, "delay_pattern": [0]},
    "fastspeech2_conformer_with_hifigan": inside(
        "vocoder_config", {"upsample_initial_channel": 16, "model_in_dim": 16}
    ),
    "kyutai_speech_to_text": inside("codec_config", MIMI),
    "mimi": MIMI,
    "mimi_decoder": MIMI,
    "nemotron3_5_transcribe_asr_audio": {"num_key_value_heads": 4},
    "nemotron3_diarization_audio": {"num_key_value_heads": 4},
    "nemotron3_5_transcribe_audio": {
        "asr_config.num_key_value_heads": 4,
        "diarization_config.audio_config.num_key_value_heads": 4,
    },
    "nemotron3_diarization": {"audio_config.num_key_value_heads": 4},
    "moonshine": {"encoder_num_key_value_heads": 4, "decoder_num_key_value_heads": 4},
    "granite_speech5_encoder": {"num_key_value_heads": 4, "num_mel_bins": 32, "context_size": 16},
    "granite_speech5_ctc": inside("encoder_config", {"num_key_value_heads": 4, "num_mel_bins": 32, "context_size": 16}),
    "nemotron3_5_transcribe_word_timestamp": {"num_key_value_heads": 4},
    "moonshine_streaming": {"num_key_value_heads": 4},
    "pocket_tts_audio_tokenizer": {"upsample_groups": 32},
    "pocket_tts_audio_tokenizer_decoder": {"upsample_groups": 32},
    "autoformer": {**SERIES, "label_length": 4},
    "informer": SERIES,
    "time_series_transformer": SERIES,
}
"""Sound, and series of numbers."""
