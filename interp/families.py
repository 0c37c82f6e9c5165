"""Tiny random models of every supported family, built from configs without a download.

Each family is data: a transformers class, a config of two or three narrow layers, and what cannot be asked of it with the
reason. Weights are drawn anew so that nothing is trivial: norms are not one, biases not zero, gates open, layer scales,
sinks and relative position biases all differ, and scores are wide enough that attention is far from uniform. A mistake in a
check then shows as a number. Sizes are unlike on purpose (text 4 heads over 2 kv heads, vision 3 heads; some heads wider
than width / heads). Cost: 5 to 100 ms a model after the first import of its class.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal

import torch
from torch import Tensor, nn

from interp.hooks.errors import ModelError

Attn = Literal["sdpa", "eager"]
Config = Mapping[str, Any]

VOCAB, IMAGE, VIDEO, START, END = 160, 151, 152, 153, 154
SPECIAL = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}

NO_PADDING = {"padding": "an image tower sees every patch: there is no padding"}
NO_SDPA = {"sdpa": "the class declares no sdpa: scores are soft-capped or have sinks"}
OWN_EAGER = {"sdpa": "the class has one attention of its own and ignores the setting"}
OWN_SDPA = {"eager": "the module calls torch's sdpa itself and ignores the setting"}

TEXT: Config = {
    **SPECIAL,
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
}
WIDE: Config = {**TEXT, "head_dim": 16}
SLIDING: Config = {
    **WIDE,
    "num_hidden_layers": 3,
    "sliding_window": 4,
    "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
}
CAPPED: Config = {**SLIDING, "query_pre_attn_scalar": 12}
NO_GROUPS: Config = {key: value for key, value in TEXT.items() if key != "num_key_value_heads"}
GPT: Config = {**SPECIAL, "vocab_size": VOCAB, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128}
OPT: Config = {**NO_GROUPS, "ffn_dim": 48, "word_embed_proj_dim": 32}
BART: Config = {
    **SPECIAL,
    "vocab_size": VOCAB,
    "d_model": 32,
    "max_position_embeddings": 128,
    "decoder_start_token_id": 2,
    **{f"{side}_{name}": size for side in ("encoder", "decoder") for name, size in (("layers", 2), ("ffn_dim", 48))},
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 2,
}
T5: Config = {
    **SPECIAL,
    "vocab_size": VOCAB,
    "d_model": 32,
    "d_kv": 16,
    "d_ff": 48,
    "num_layers": 2,
    "num_heads": 4,
    "relative_attention_num_buckets": 8,
    "relative_attention_max_distance": 16,
    "decoder_start_token_id": 0,
}
WHISPER: Config = {
    **BART,
    "num_mel_bins": 8,
    "max_source_positions": 12,
    "max_target_positions": 64,
    "decoder_start_token_id": 1,
    "suppress_tokens": [],
    "begin_suppress_tokens": [],
}
VISION: Config = {
    "hidden_size": 48,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 3,
    "image_size": 24,
    "patch_size": 8,
    "num_channels": 3,
}
BERT: Config = {**NO_GROUPS, "type_vocab_size": 2}
CLIP_VISION: Config = {**VISION, "model_type": "clip_vision_model", "projection_dim": 32}
SIGLIP_VISION: Config = {**VISION, "model_type": "siglip_vision_model", "vision_use_head": False}
LLAMA: Config = {**TEXT, "model_type": "llama"}
QWEN_IDS: Config = {
    "image_token_id": IMAGE,
    "video_token_id": VIDEO,
    "vision_start_token_id": START,
    "vision_end_token_id": END,
}
MROPE: Config = {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1]}}
QWEN_VISION: Config = {
    "depth": 3,
    "num_heads": 3,
    "in_channels": 3,
    "patch_size": 4,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
    "hidden_size": 48,
    "intermediate_size": 64,
    "out_hidden_size": 32,
}
QFORMER: Config = {
    **{key: value for key, value in NO_GROUPS.items() if key not in ("bos_token_id", "eos_token_id")},
    "hidden_size": 24,
    "num_attention_heads": 3,
    "encoder_hidden_size": 48,
    "cross_attention_frequency": 2,
}


@dataclass(frozen=True)
class Tiny:
    """One row of the matrix: the class, its config as data, and what it is n/a for, each with the reason."""

    name: str
    cls: str
    config: Config = field(default_factory=dict)
    na: Mapping[str, str] = field(default_factory=dict)
    """Reasons under `padding`, `sdpa`, `eager`: things this family does not have and no check should claim."""
    builder: str = "transformers"

    def attentions(self) -> tuple[Attn, ...]:
        """The attention settings that mean something here."""
        return tuple(attn for attn in ("sdpa", "eager") if attn not in self.na)

    def paddings(self) -> tuple[Literal["left", "right"] | None, ...]:
        """The paddings that mean something here."""
        return (None,) if "padding" in self.na else (None, "left", "right")


def _text() -> list[Tiny]:
    deepseek = {
        **{**NO_GROUPS, "num_key_value_heads": 4, "q_lora_rank": 16, "kv_lora_rank": 12},
        **{"qk_rope_head_dim": 4, "qk_nope_head_dim": 8, "v_head_dim": 6, "first_k_dense_replace": 1},
        **{"n_routed_experts": 4, "n_group": 2, "topk_group": 1, "num_experts_per_tok": 2, "moe_intermediate_size": 16},
    }
    return [
        Tiny("gpt2", "GPT2LMHeadModel", GPT),
        Tiny("gpt_neox", "GPTNeoXForCausalLM", {**NO_GROUPS, "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5}}),
        Tiny("opt", "OPTForCausalLM", OPT),
        Tiny("llama", "LlamaForCausalLM", TEXT),
        Tiny("mistral", "MistralForCausalLM", {**TEXT, "sliding_window": 4}),
        Tiny("qwen2", "Qwen2ForCausalLM", TEXT),
        Tiny("qwen3", "Qwen3ForCausalLM", WIDE),
        Tiny("gemma2", "Gemma2ForCausalLM", {**CAPPED, "attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0}, NO_SDPA),
        Tiny("gemma3", "Gemma3ForCausalLM", CAPPED),
        Tiny("phi3", "Phi3ForCausalLM", TEXT),
        Tiny("gpt_oss", "GptOssForCausalLM", {**SLIDING, "num_local_experts": 4, "num_experts_per_tok": 2}, NO_SDPA),
        Tiny("deepseek_v3", "DeepseekV3ForCausalLM", deepseek),
        Tiny("falcon", "FalconForCausalLM", {**NO_GROUPS, "num_kv_heads": 2, "new_decoder_architecture": True}),
        Tiny("gptj", "GPTJForCausalLM", {**GPT, "rotary_dim": 4}, OWN_EAGER),
        Tiny("bloom", "BloomForCausalLM", {**SPECIAL, "vocab_size": VOCAB, "hidden_size": 32, "n_layer": 2, "n_head": 4}, OWN_EAGER),
        Tiny("bert", "BertForMaskedLM", BERT),
        Tiny("roberta", "RobertaForMaskedLM", {**BERT, "pad_token_id": 3}),
        Tiny("t5", "T5ForConditionalGeneration", T5),
        Tiny("bart", "BartForConditionalGeneration", BART),
        Tiny("whisper", "WhisperForConditionalGeneration", WHISPER),
        Tiny("plain", "AttentionOnly", {"vocab": VOCAB}, OWN_SDPA, builder="plain"),
        Tiny("transformer_bridge", "TransformerBridge", GPT, OWN_EAGER, builder="bridge"),
    ]  # fmt: skip


def _vision() -> list[Tiny]:
    scaled = {**VISION, "layerscale_value": 0.7}
    beit = {**VISION, "vocab_size": 32, "use_relative_position_bias": True, "use_absolute_position_embeddings": True, "drop_path_rate": 0.0}
    swin = {"image_size": 32, "patch_size": 4, "embed_dim": 12, "depths": [2, 2], "num_heads": [2, 3], "window_size": 4, "drop_path_rate": 0.0}
    return [
        Tiny("vit", "ViTForImageClassification", {**VISION, "image_size": (24, 32)}, NO_PADDING),
        Tiny("deit", "DeiTForImageClassification", VISION, NO_PADDING),
        Tiny("dinov2", "Dinov2ForImageClassification", scaled, NO_PADDING),
        Tiny("dinov2_with_registers", "Dinov2WithRegistersForImageClassification", {**scaled, "num_register_tokens": 2}, NO_PADDING),
        Tiny("dinov3_vit", "DINOv3ViTModel", {**scaled, "num_register_tokens": 2}, NO_PADDING),
        Tiny("beit", "BeitForImageClassification", beit, NO_PADDING),
        Tiny("swin", "SwinForImageClassification", swin, NO_PADDING),
    ]  # fmt: skip


def _pairs() -> list[Tiny]:
    clip_text = {**NO_GROUPS, "projection_dim": 32, "eos_token_id": 3}
    siglip_text = {**NO_GROUPS, "max_position_embeddings": 64, "projection_size": 48}
    return [
        Tiny("clip", "CLIPModel", {"text_config": clip_text, "vision_config": CLIP_VISION, "projection_dim": 32}),
        Tiny("siglip", "SiglipModel", {"text_config": siglip_text, "vision_config": {**SIGLIP_VISION, "vision_use_head": True}}),
    ]  # fmt: skip


def _multimodal() -> list[Tiny]:
    llava = {"vision_config": CLIP_VISION, "text_config": LLAMA, "image_token_index": IMAGE, "image_seq_length": 9}
    idefics = {"vision_config": {**VISION, "image_size": 32}, "text_config": LLAMA, "image_token_id": IMAGE, "scale_factor": 2}
    gemma = {**SIGLIP_VISION, "image_size": 32}
    intern = {**VISION, "image_size": (32, 32), "patch_size": (8, 8), "layer_scale_init_value": 0.7, "use_qk_norm": True}
    qwen_text = {**TEXT, **MROPE}
    blip = {
        "vision_config": {**VISION, "image_size": 24, "initializer_range": 0.02},
        "qformer_config": QFORMER,
        "text_config": {**OPT, "model_type": "opt"},
        "num_query_tokens": 5,
        "image_token_index": IMAGE,
    }
    mllama_text = {**TEXT, "vocab_size": IMAGE, "num_hidden_layers": 4, "cross_attention_layers": [1, 3], "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}}
    mllama_vision = {**VISION, "attention_heads": 3, "num_global_layers": 2, "max_num_tiles": 2, "intermediate_layers_indices": [0, 1], "vision_output_dim": 144, "supported_aspect_ratios": [[1, 1], [1, 2], [2, 1]]}
    qwen2_vision = {**{key: value for key, value in QWEN_VISION.items() if "hidden" not in key and "intermediate" not in key}, "embed_dim": 48, "hidden_size": 32, "mlp_ratio": 2}
    return [
        Tiny("llava", "LlavaForConditionalGeneration", llava),
        Tiny("llava_next", "LlavaNextForConditionalGeneration", {**llava, "image_grid_pinpoints": [[24, 48], [48, 24]]}),
        Tiny("qwen2_vl", "Qwen2VLForConditionalGeneration", {**QWEN_IDS, "text_config": qwen_text, "vision_config": qwen2_vision}),
        Tiny("qwen2_5_vl", "Qwen2_5_VLForConditionalGeneration", {**QWEN_IDS, "text_config": qwen_text, "vision_config": {**QWEN_VISION, "window_size": 16, "fullatt_block_indexes": [1]}}),
        Tiny("qwen3_vl", "Qwen3VLForConditionalGeneration", {**QWEN_IDS, "text_config": {**qwen_text, "head_dim": 8, "num_hidden_layers": 3}, "vision_config": {**QWEN_VISION, "num_position_embeddings": 16, "deepstack_visual_indexes": [0, 1]}}),
        Tiny("internvl", "InternVLForConditionalGeneration", {"vision_config": intern, "text_config": {**TEXT, "model_type": "qwen2"}, "image_token_id": IMAGE, "image_seq_length": 4}),
        Tiny("paligemma", "PaliGemmaForConditionalGeneration", {"vision_config": {**SIGLIP_VISION, "projection_dim": 32}, "text_config": {**WIDE, "model_type": "gemma"}, "image_token_index": IMAGE, "projection_dim": 32, "hidden_size": 32}),
        Tiny("smolvlm", "SmolVLMForConditionalGeneration", idefics),
        Tiny("idefics3", "Idefics3ForConditionalGeneration", idefics),
        Tiny("blip2", "Blip2ForConditionalGeneration", blip),
        Tiny("instructblip", "InstructBlipForConditionalGeneration", blip),
        Tiny("mllama", "MllamaForConditionalGeneration", {"vision_config": mllama_vision, "text_config": mllama_text, "image_token_index": IMAGE}),
        Tiny("gemma3_multimodal", "Gemma3ForConditionalGeneration", {"vision_config": gemma, "text_config": {**CAPPED, "model_type": "gemma3_text"}, "mm_tokens_per_image": 4, "boi_token_index": START, "eoi_token_index": END, "image_token_index": IMAGE}),
    ]  # fmt: skip


FAMILIES: Mapping[str, Tiny] = MappingProxyType(
    {family.name: family for family in (*_text(), *_vision(), *_pairs(), *_multimodal())}
)


def tiny(name: str, *, attn: Attn = "sdpa", dtype: torch.dtype = torch.float32, seed: int = 0) -> nn.Module:
    """A tiny model of the family, in eval mode, the same for the same seed; its weights in bfloat16 are those in float32, rounded."""
    if name not in FAMILIES:
        raise ModelError(f"no tiny family {name!r}; there are {', '.join(FAMILIES)}.")
    family = FAMILIES[name]
    if attn in family.na and attn == "sdpa" and family.na is NO_SDPA:
        raise ModelError(f"{name} cannot run with sdpa: {family.na['sdpa']}. Use attn='eager'.")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = _BUILDERS[family.builder](family, attn, dtype)
    return model.eval()


def _transformers(family: Tiny, attn: Attn, dtype: torch.dtype) -> nn.Module:
    import transformers

    cls = getattr(transformers, family.cls)
    config = cls.config_class(**_plain(family.config))
    model = cls._from_config(config, attn_implementation=attn, dtype=dtype)
    stir(model)
    return model


def _attention_only(family: Tiny, attn: Attn, dtype: torch.dtype) -> nn.Module:
    from interp.plain import AttentionOnly, AttentionOnlyConfig

    model = AttentionOnly(AttentionOnlyConfig(**family.config)).to(dtype)
    stir(model)
    return model


def _bridge(family: Tiny, attn: Attn, dtype: torch.dtype) -> nn.Module:
    from transformer_lens.model_bridge.sources._bridge_builder import build_bridge_from_module

    inner = _transformers(FAMILIES["gpt2"], "eager", dtype).eval()
    return build_bridge_from_module(inner, "GPT2LMHeadModel", hf_config=inner.config)


_BUILDERS = {"transformers": _transformers, "plain": _attention_only, "bridge": _bridge}


def _plain(data: Any) -> Any:
    """The same data in fresh dicts and lists, since configs keep and change what they are given."""
    if isinstance(data, Mapping):
        return {key: _plain(value) for key, value in data.items()}
    return [_plain(item) for item in data] if isinstance(data, list) else data


@torch.no_grad()
def stir(model: nn.Module) -> None:
    """Draw every parameter anew, so that none keeps a trivial value."""
    for parameter in model.parameters():
        if parameter.is_floating_point():
            parameter.copy_(_drawn(parameter.float()))


def _drawn(old: Tensor) -> Tensor:
    """Near its constant where it was one (norms, biases, scales), open where it is a single gate, else of unit gain."""
    noise = torch.randn(old.shape)
    if bool((old == old.flatten()[0]).all()):
        return old + (0.5 + 0.1 * noise if old.numel() == 1 else 0.2 * noise)
    return noise * min(0.2, old.shape[-1] ** -0.5) if old.dim() > 1 else 0.5 * noise
