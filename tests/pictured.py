"""Tiny vision-language and vision models with random weights, to the measure of the processors in `tokens.py`."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
import transformers as hf
from tokens import PINPOINTS, SIDE, TAGS, processor

TEXT = {
    "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 2, "max_position_embeddings": 512, "head_dim": 8,
}  # fmt: skip
VISION = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}


def _id(name: str, token: str) -> int:
    return int(processor(name).tokenizer.convert_tokens_to_ids(token))


def _text(name: str, kind: Any = hf.LlamaConfig, **more: Any) -> Any:
    tokenizer = processor(name).tokenizer
    ids = {key: getattr(tokenizer, key) for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
    return kind(vocab_size=len(tokenizer) + 4, **ids, **{**TEXT, **more})


def _clip(kind: Any = hf.CLIPVisionConfig, **more: Any) -> Any:
    return kind(image_size=SIDE, patch_size=7, **{**VISION, **more})


def llava() -> Any:
    image, both = _id("llava", "<image>"), {"vision_config": _clip(), "text_config": _text("llava")}
    config = hf.LlavaConfig(**both, image_token_index=image, vision_feature_layer=-1)
    return hf.LlavaForConditionalGeneration(config)


def llava_next() -> Any:
    image = _id("llava_next", "<image>")
    both = {"vision_config": _clip(), "text_config": _text("llava_next")}
    config = hf.LlavaNextConfig(
        **both, image_token_index=image, vision_feature_layer=-1, image_grid_pinpoints=PINPOINTS
    )
    return hf.LlavaNextForConditionalGeneration(config)


def _qwen_ids(name: str) -> dict[str, int]:
    return {
        "image_token_id": _id(name, "<|image_pad|>"), "video_token_id": _id(name, "<|video_pad|>"),
        "vision_start_token_id": _id(name, "<|vision_start|>"), "vision_end_token_id": _id(name, "<|vision_end|>"),
    }  # fmt: skip


QWEN = {"depth": 1, "num_heads": 2, "patch_size": 7, "temporal_patch_size": 2, "spatial_merge_size": 2}
ROPE = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10000.0}


def qwen2_vl() -> Any:
    config = hf.Qwen2VLConfig(
        text_config=_text("qwen2_vl", dict, rope_parameters=ROPE),
        vision_config={**QWEN, "embed_dim": 16, "hidden_size": 16, "mlp_ratio": 2},
        **_qwen_ids("qwen2_vl"),
    )
    return hf.Qwen2VLForConditionalGeneration(config)


def qwen2_5_vl() -> Any:
    vision = {**QWEN, "hidden_size": 16, "out_hidden_size": 16, "intermediate_size": 32, "window_size": 28}
    config = hf.Qwen2_5_VLConfig(
        text_config=_text("qwen2_5_vl", dict, rope_parameters=ROPE),
        vision_config={**vision, "fullatt_block_indexes": []},
        **_qwen_ids("qwen2_5_vl"),
    )
    return hf.Qwen2_5_VLForConditionalGeneration(config)


def qwen3_vl() -> Any:
    vision = {**QWEN, "hidden_size": 16, "out_hidden_size": 16, "intermediate_size": 32, "num_position_embeddings": 16}
    config = hf.Qwen3VLConfig(
        text_config=_text("qwen3_vl", dict, rope_parameters={**ROPE, "mrope_interleaved": True}),
        vision_config={**vision, "deepstack_visual_indexes": [0]},
        **_qwen_ids("qwen3_vl"),
    )
    return hf.Qwen3VLForConditionalGeneration(config)


def internvl() -> Any:
    vision = hf.InternVLVisionConfig(image_size=[SIDE, SIDE], patch_size=[7, 7], **VISION)
    both = {"vision_config": vision, "text_config": _text("internvl")}
    config = hf.InternVLConfig(**both, image_token_id=_id("internvl", "<IMG_CONTEXT>"), image_seq_length=4)
    return hf.InternVLForConditionalGeneration(config)


def paligemma() -> Any:
    text = _text("paligemma", hf.GemmaConfig)
    image = _id("paligemma", "<image>")
    vision = _clip(hf.SiglipVisionConfig, projection_dim=16)
    config = hf.PaliGemmaConfig(vision_config=vision, text_config=text, image_token_index=image, projection_dim=16)
    return hf.PaliGemmaForConditionalGeneration(config)


def _idefics(kind: Any, vision: Any) -> Any:
    return kind(
        vision_config=vision(image_size=SIDE, patch_size=7, **VISION),
        text_config=_text("idefics3"), image_token_id=_id("idefics3", "<image>"), scale_factor=2,
    )  # fmt: skip


def idefics3() -> Any:
    return hf.Idefics3ForConditionalGeneration(_idefics(hf.Idefics3Config, hf.Idefics3VisionConfig))


def smolvlm() -> Any:
    return hf.SmolVLMForConditionalGeneration(_idefics(hf.SmolVLMConfig, hf.SmolVLMVisionConfig))


def _opt(name: str) -> Any:
    tokenizer = processor(name).tokenizer
    return hf.OPTConfig(
        vocab_size=len(tokenizer) + 4, hidden_size=16, ffn_dim=32, num_hidden_layers=2, num_attention_heads=2,
        word_embed_proj_dim=16, max_position_embeddings=512, bos_token_id=0, eos_token_id=1, pad_token_id=2,
    )  # fmt: skip


QFORMER = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}


def blip_2() -> Any:
    qformer = hf.Blip2QFormerConfig(**QFORMER, encoder_hidden_size=16)
    config = hf.Blip2Config(
        vision_config=_clip(hf.Blip2VisionConfig), qformer_config=qformer,
        text_config=_opt("blip-2"), num_query_tokens=5, image_token_index=_id("blip-2", "<image>"),
    )  # fmt: skip
    return hf.Blip2ForConditionalGeneration(config)


def instructblip() -> Any:
    qformer = hf.InstructBlipQFormerConfig(**QFORMER, encoder_hidden_size=16, vocab_size=400)
    config = hf.InstructBlipConfig(
        vision_config=_clip(hf.InstructBlipVisionConfig), qformer_config=qformer, text_config=_opt("instructblip"),
        num_query_tokens=5, image_token_index=_id("instructblip", "<image>"),
    )  # fmt: skip
    return hf.InstructBlipForConditionalGeneration(config)


def gemma3() -> Any:
    text = _text("gemma3", hf.Gemma3TextConfig, sliding_window=64)
    config = hf.Gemma3Config(
        text_config=text, vision_config=_clip(hf.SiglipVisionConfig, vision_use_head=False), mm_tokens_per_image=4,
        image_token_index=_id("gemma3", "<image_soft_token>"), boi_token_index=_id("gemma3", "<start_of_image>"),
        eoi_token_index=_id("gemma3", "<end_of_image>"),
    )  # fmt: skip
    model = hf.Gemma3ForConditionalGeneration(config)
    torch.nn.init.normal_(model.model.multi_modal_projector.mm_input_projection_weight)  # zero when new
    return model


def mllama() -> Any:
    vision = hf.MllamaVisionConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_global_layers=1, attention_heads=2,
        image_size=SIDE, patch_size=7, vision_output_dim=32, intermediate_layers_indices=[0], max_num_tiles=4,
        supported_aspect_ratios=[[1, 1], [1, 2], [1, 3], [1, 4], [2, 1], [2, 2], [3, 1], [4, 1]],
    )  # fmt: skip
    image = _id("mllama", "<|image|>")
    size = len(processor("mllama").tokenizer)
    text = hf.MllamaTextConfig(
        vocab_size=size, cross_attention_layers=[1], rope_parameters={"rope_type": "default", "rope_theta": 1e4},
        **{key: value for key, value in TEXT.items() if key != "head_dim"},
        bos_token_id=0, eos_token_id=1, pad_token_id=2,
    )  # fmt: skip
    return hf.MllamaForConditionalGeneration(
        hf.MllamaConfig(vision_config=vision, text_config=text, image_token_index=image)
    )


def clip() -> Any:
    text = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    ids = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2, "vocab_size": len(processor("clip").tokenizer)}
    return hf.CLIPModel(hf.CLIPConfig(text_config={**text, **ids}, vision_config=_clip().to_dict(), projection_dim=16))


MODELS: dict[str, Callable[[], Any]] = {
    "llava": llava, "llava_next": llava_next, "qwen2_vl": qwen2_vl, "qwen2_5_vl": qwen2_5_vl, "qwen3_vl": qwen3_vl,
    "internvl": internvl, "paligemma": paligemma, "idefics3": idefics3, "smolvlm": smolvlm, "blip-2": blip_2,
    "instructblip": instructblip, "gemma3": gemma3, "mllama": mllama, "clip": clip,
}  # fmt: skip
PROCESSOR = {"smolvlm": "idefics3"}
assert TAGS


@cache
def pictured(name: str) -> tuple[Any, Any]:
    """A family's tiny model in eval mode and its processor."""
    torch.manual_seed(0)
    return MODELS[name]().eval(), processor(PROCESSOR.get(name, name))
