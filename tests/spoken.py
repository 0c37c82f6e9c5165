"""Tiny models that listen, of real Hugging Face classes, with their extractors and a tokenizer made by code."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import torch
import transformers as hf
from tokens import bpe

RATE = 16000
SPOKEN = ("<|startoftranscript|>", "<|en|>", "<|de|>", "<|translate|>", "<|transcribe|>", "<|notimestamps|>")
SMALL = {
    "d_model": 16, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 2, "vocab_size": 440,
    "decoder_attention_heads": 2, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32, "bos_token_id": 0, "eos_token_id": 1,
    "pad_token_id": 2,
}  # fmt: skip
WAVES = {
    "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32, "vocab_size": 30,
    "conv_dim": (8, 8), "conv_kernel": (10, 3), "conv_stride": (5, 2), "num_feat_extract_layers": 2,
    "num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 2,
}  # fmt: skip


@cache
def whisper() -> tuple[Any, Any]:
    """A Whisper that hears one second, 50 positions of 0.02 s, and its processor."""
    torch.manual_seed(0)
    processor = hf.WhisperProcessor(hf.WhisperFeatureExtractor(feature_size=8, chunk_length=1), bpe(more=SPOKEN))
    start = processor.tokenizer.convert_tokens_to_ids(SPOKEN[0])
    config = hf.WhisperConfig(**SMALL, max_source_positions=50, max_target_positions=32, num_mel_bins=8,
                              decoder_start_token_id=start, suppress_tokens=None,
                              begin_suppress_tokens=None)  # fmt: skip
    return hf.WhisperForConditionalGeneration(config).eval(), processor


@cache
def wav2vec(norm: str = "layer") -> tuple[Any, Any]:
    """A Wav2Vec2 with a step of 10 samples; one with group norm is trained without masks."""
    torch.manual_seed(0)
    config = hf.Wav2Vec2Config(**WAVES, feat_extract_norm=norm, do_stable_layer_norm=norm == "layer")
    return hf.Wav2Vec2ForCTC(config).eval(), hf.Wav2Vec2FeatureExtractor(return_attention_mask=norm == "layer")


def tone(seconds: float, *, pitch: float = 300.0, seed: int = 0) -> np.ndarray:
    """A noisy tone."""
    time = np.arange(int(seconds * RATE)) / RATE
    noise = np.random.default_rng(seed).normal(size=len(time)) * 0.05
    return (0.4 * np.sin(2 * np.pi * pitch * time) + noise).clip(-1, 1).astype(np.float32)
