"""Types that are not built, and why: a package that is not installed here, a fault that no config of theirs avoids."""

from __future__ import annotations

from collections.abc import Mapping

ALL_REUSED = "every layer of it reuses the keys of another model, and its own layers refuse such a config"
CANNOT: Mapping[str, str] = {
    "gemma4_assistant": ALL_REUSED,
    "gemma4_unified_assistant": ALL_REUSED,
    "voxtral_realtime_text": "transformers lists a class for it, VoxtralRealtimeTextModel, that it does not have",
}
"""Reasons in transformers itself, for every config."""
NEEDS: Mapping[str, tuple[str, ...]] = {
    "dinat": ("natten",),
    "higgs_audio_v2_tokenizer": ("torchaudio",),
    "inkling_mm_model": ("scipy",),
    "layoutlmv2": ("detectron2",),
    **dict.fromkeys(
        ("edgetam", "edgetam_vision_model", "fast_vlm", "gemma3n", "gemma3n_vision", "pe_audio_video",
         "pe_audio_video_encoder", "pe_video", "pe_video_encoder", "perception_lm", "timm_backbone", "timm_wrapper"),
        ("timm", "torchvision"),
    ),
}  # fmt: skip
"""Packages without which a type's class cannot be made."""
