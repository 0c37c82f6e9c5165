"""Tiny random models of every supported family, built from configs without a download.

Each family is data: a transformers class, a config of two or three narrow layers, and what cannot be asked of it with
the reason. Weights are drawn anew so that nothing is trivial: norms are not one, biases not zero, gates open, layer
scales, sinks and position biases all differ, and attention is far from uniform. A mistake in a check then shows as a
number. Sizes are different on purpose: text has 4 heads over 2 kv heads, vision 3; some heads exceed width / heads.
Cost: 5 to 100 ms a model after the first import of its class. Limits: random weights know nothing; a mistake that only
large activations or long inputs bring out does not show here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal

import torch
from torch import Tensor, nn

from interp.hooks.errors import ModelError

Attn = Literal["sdpa", "eager"]
Config = Mapping[str, Any]


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


def _without(config: Config, *names: str) -> Config:
    return {key: value for key, value in config.items() if key not in names}


def _rope(**more: Any) -> Config:
    return {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, **more}}


NO_PADDING = {"padding": "an image tower sees every patch: there is no padding"}
NO_SDPA = {"sdpa": "the class declares no sdpa: its scores are capped or have a sink"}
OWN = {"sdpa": "the class has its own attention, and the setting does not change it"}
LENS = {"sdpa": "TransformerLens puts its own eager attention into the model"}
OWN_SDPA = {"eager": "the module calls torch's sdpa itself and has no setting"}

# Tables, several entries to a line: the formatter would give each number a line of its own.
# fmt: off
IMAGE, VIDEO, START, END = 151, 152, 153, 154
VOCAB: Config = {"vocab_size": 160, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
SMALL: Config = {
    **VOCAB, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "max_position_embeddings": 128,
}
TEXT: Config = {**SMALL, "num_key_value_heads": 2}
WIDE: Config = {**TEXT, "head_dim": 16}
SLIDING: Config = {
    **WIDE, "num_hidden_layers": 3, "sliding_window": 4,
    "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
}
GEMMA: Config = {**SLIDING, "query_pre_attn_scalar": 12}
GPT: Config = {**VOCAB, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128}
OPT: Config = {**SMALL, "ffn_dim": 48, "word_embed_proj_dim": 32}
DEEPSEEK: Config = {
    **SMALL, "num_key_value_heads": 4, "q_lora_rank": 16, "kv_lora_rank": 12, "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 8, "v_head_dim": 6, "first_k_dense_replace": 1, "n_routed_experts": 4, "n_group": 2,
    "topk_group": 1, "num_experts_per_tok": 2, "moe_intermediate_size": 16,
}
BART: Config = {
    **VOCAB, "d_model": 32, "max_position_embeddings": 128, "decoder_start_token_id": 2,
    "encoder_layers": 2, "encoder_attention_heads": 4, "encoder_ffn_dim": 48,
    "decoder_layers": 2, "decoder_attention_heads": 2, "decoder_ffn_dim": 48,
}
WHISPER: Config = {
    **BART, "num_mel_bins": 8, "max_source_positions": 12, "max_target_positions": 64, "decoder_start_token_id": 1,
    "begin_suppress_tokens": [],
}
T5: Config = {
    **VOCAB, "d_model": 32, "d_kv": 16, "d_ff": 48, "num_layers": 2, "num_heads": 4, "decoder_start_token_id": 0,
    "relative_attention_num_buckets": 8, "relative_attention_max_distance": 16,
}

VISION: Config = {
    "hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 3,
    "image_size": 24, "patch_size": 8, "num_channels": 3,
}
DINO: Config = {**VISION, "layerscale_value": 0.7}
BEIT: Config = {
    **VISION, "vocab_size": 32, "use_relative_position_bias": True, "use_absolute_position_embeddings": True,
    "drop_path_rate": 0.0,
}
SWIN: Config = {
    "image_size": 32, "patch_size": 4, "embed_dim": 12, "depths": [2, 2], "num_heads": [2, 3], "window_size": 4,
    "drop_path_rate": 0.0,
}
CLIP_VISION: Config = {**VISION, "model_type": "clip_vision_model", "projection_dim": 32}
SIGLIP_VISION: Config = {**VISION, "model_type": "siglip_vision_model", "vision_use_head": False}
QWEN_VISION: Config = {
    "depth": 3, "num_heads": 3, "in_channels": 3, "patch_size": 4, "spatial_merge_size": 2, "temporal_patch_size": 2,
    "hidden_size": 48, "intermediate_size": 64, "out_hidden_size": 32,
}
QWEN2_VISION: Config = {
    **_without(QWEN_VISION, "intermediate_size", "out_hidden_size"), "embed_dim": 48, "hidden_size": 32, "mlp_ratio": 2,
}
INTERN_VISION: Config = {
    **VISION, "image_size": (32, 32), "patch_size": (8, 8), "layer_scale_init_value": 0.7, "use_qk_norm": True,
}
MLLAMA_VISION: Config = {
    **VISION, "attention_heads": 3, "num_global_layers": 2, "max_num_tiles": 2, "intermediate_layers_indices": [0, 1],
    "vision_output_dim": 144, "supported_aspect_ratios": [[1, 1], [1, 2], [2, 1]],
}

LLAMA: Config = {**TEXT, "model_type": "llama"}
QWEN_TEXT: Config = {**TEXT, **_rope(mrope_section=[2, 1, 1])}
QWEN: Config = {
    "image_token_id": IMAGE, "video_token_id": VIDEO, "vision_start_token_id": START, "vision_end_token_id": END,
    "text_config": QWEN_TEXT,
}
LLAVA: Config = {
    "vision_config": CLIP_VISION, "text_config": LLAMA, "image_token_index": IMAGE, "image_seq_length": 9,
}
IDEFICS: Config = {
    "vision_config": {**VISION, "image_size": 32}, "text_config": LLAMA, "image_token_id": IMAGE, "scale_factor": 2,
}
QFORMER: Config = {
    **_without(SMALL, "bos_token_id", "eos_token_id"), "hidden_size": 24, "num_attention_heads": 3,
    "encoder_hidden_size": 48, "cross_attention_frequency": 2,
}
BLIP: Config = {
    "vision_config": {**VISION, "initializer_range": 0.02}, "qformer_config": QFORMER, "num_query_tokens": 5,
    "text_config": {**OPT, "model_type": "opt"}, "image_token_index": IMAGE,
}

TEXTS = (
    Tiny("gpt2", "GPT2LMHeadModel", GPT),
    Tiny("gpt_neox", "GPTNeoXForCausalLM", {**SMALL, **_rope(partial_rotary_factor=0.5)}),
    Tiny("opt", "OPTForCausalLM", OPT),
    Tiny("llama", "LlamaForCausalLM", TEXT),
    Tiny("mistral", "MistralForCausalLM", {**TEXT, "sliding_window": 4}),
    Tiny("qwen2", "Qwen2ForCausalLM", TEXT),
    Tiny("qwen3", "Qwen3ForCausalLM", WIDE),
    Tiny("gemma2", "Gemma2ForCausalLM",
         {**GEMMA, "attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0}, NO_SDPA),
    Tiny("gemma3", "Gemma3ForCausalLM", GEMMA),
    Tiny("phi3", "Phi3ForCausalLM", TEXT),
    Tiny("gpt_oss", "GptOssForCausalLM",
         {**SLIDING, "num_local_experts": 4, "num_experts_per_tok": 2,
          **_rope(rope_type="yarn", factor=2.0, original_max_position_embeddings=64)}, NO_SDPA),
    Tiny("deepseek_v3", "DeepseekV3ForCausalLM", DEEPSEEK),
    Tiny("falcon", "FalconForCausalLM", {**SMALL, "num_kv_heads": 2, "new_decoder_architecture": True}),
    Tiny("gptj", "GPTJForCausalLM", {**GPT, "rotary_dim": 4}, OWN),
    Tiny("bloom", "BloomForCausalLM", {**VOCAB, "hidden_size": 32, "n_layer": 2, "n_head": 4}, OWN),
    Tiny("bert", "BertForMaskedLM", SMALL),
    Tiny("roberta", "RobertaForMaskedLM", {**SMALL, "pad_token_id": 3}),
    Tiny("t5", "T5ForConditionalGeneration", T5),
    Tiny("bart", "BartForConditionalGeneration", BART),
    Tiny("whisper", "WhisperForConditionalGeneration", WHISPER),
    Tiny("plain", "AttentionOnly", {"vocab": 160}, OWN_SDPA, builder="plain"),
    Tiny("transformer_bridge", "TransformerBridge", GPT, LENS, builder="bridge"),
)
IMAGES = (
    Tiny("vit", "ViTForImageClassification", {**VISION, "image_size": (24, 32)}, NO_PADDING),
    Tiny("deit", "DeiTForImageClassification", VISION, NO_PADDING),
    Tiny("dinov2", "Dinov2ForImageClassification", DINO, NO_PADDING),
    Tiny("dinov2_with_registers", "Dinov2WithRegistersForImageClassification",
         {**DINO, "num_register_tokens": 2}, NO_PADDING),
    Tiny("dinov3_vit", "DINOv3ViTModel", {**DINO, "num_register_tokens": 2}, NO_PADDING),
    Tiny("beit", "BeitForImageClassification", BEIT, NO_PADDING),
    Tiny("swin", "SwinForImageClassification", SWIN, NO_PADDING),
)
BOTH = (
    Tiny("clip", "CLIPModel",
         {"vision_config": CLIP_VISION, "projection_dim": 32,
          "text_config": {**SMALL, "projection_dim": 32, "eos_token_id": 3}}),
    Tiny("siglip", "SiglipModel",
         {"vision_config": {**SIGLIP_VISION, "vision_use_head": True},
          "text_config": {**SMALL, "projection_size": 48}}),
    Tiny("llava", "LlavaForConditionalGeneration", LLAVA),
    Tiny("llava_next", "LlavaNextForConditionalGeneration", {**LLAVA, "image_grid_pinpoints": [[24, 48], [48, 24]]}),
    Tiny("qwen2_vl", "Qwen2VLForConditionalGeneration", {**QWEN, "vision_config": QWEN2_VISION}),
    Tiny("qwen2_5_vl", "Qwen2_5_VLForConditionalGeneration",
         {**QWEN, "vision_config": {**QWEN_VISION, "window_size": 16, "fullatt_block_indexes": [1]}}),
    Tiny("qwen3_vl", "Qwen3VLForConditionalGeneration",
         {**QWEN, "text_config": {**QWEN_TEXT, "head_dim": 8, "num_hidden_layers": 3},
          "vision_config": {**QWEN_VISION, "num_position_embeddings": 16, "deepstack_visual_indexes": [0, 1]}}),
    Tiny("internvl", "InternVLForConditionalGeneration",
         {"vision_config": INTERN_VISION, "text_config": {**TEXT, "model_type": "qwen2"}, "image_token_id": IMAGE,
          "image_seq_length": 4}),
    Tiny("paligemma", "PaliGemmaForConditionalGeneration",
         {"vision_config": {**SIGLIP_VISION, "projection_dim": 32}, "text_config": {**WIDE, "model_type": "gemma"},
          "image_token_index": IMAGE, "projection_dim": 32, "hidden_size": 32}),
    Tiny("smolvlm", "SmolVLMForConditionalGeneration", IDEFICS),
    Tiny("idefics3", "Idefics3ForConditionalGeneration", IDEFICS),
    Tiny("blip2", "Blip2ForConditionalGeneration", BLIP),
    Tiny("instructblip", "InstructBlipForConditionalGeneration", BLIP),
    Tiny("mllama", "MllamaForConditionalGeneration",
         {"vision_config": MLLAMA_VISION, "image_token_index": IMAGE,
          "text_config": {**TEXT, **_rope(), "vocab_size": IMAGE, "num_hidden_layers": 4,
                          "cross_attention_layers": [1, 3]}}),
    Tiny("gemma3_multimodal", "Gemma3ForConditionalGeneration",
         {"vision_config": {**SIGLIP_VISION, "image_size": 32}, "text_config": {**GEMMA, "model_type": "gemma3_text"},
          "mm_tokens_per_image": 4, "boi_token_index": START, "eoi_token_index": END, "image_token_index": IMAGE}),
)
# fmt: on

FAMILIES: Mapping[str, Tiny] = MappingProxyType({family.name: family for family in (*TEXTS, *IMAGES, *BOTH)})


def tiny(name: str, *, attn: Attn | None = None, dtype: torch.dtype = torch.float32, seed: int = 0) -> nn.Module:
    """A tiny model of the family in eval mode, the same for the same seed.

    `attn=None` takes the first setting the family has; bfloat16 weights are the float32 ones up to rounding.
    """
    if name not in FAMILIES:
        raise ModelError(f"no tiny family {name!r}; there are {', '.join(FAMILIES)}.")
    family = FAMILIES[name]
    attn = family.attentions()[0] if attn is None else attn
    if attn not in family.attentions():
        raise ModelError(f"{name} has no {attn}: {family.na.get(attn, 'there are sdpa and eager')}. Pass attn=None.")
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
    from interp.zoo.plain import AttentionOnly, AttentionOnlyConfig

    model = AttentionOnly(AttentionOnlyConfig(**family.config)).to(dtype)
    stir(model)
    return model


def _bridge(family: Tiny, attn: Attn, dtype: torch.dtype) -> nn.Module:
    from transformer_lens.model_bridge.sources._bridge_builder import build_bridge_from_module

    inner = _transformers(FAMILIES["gpt2"], "eager", dtype).eval()
    return build_bridge_from_module(inner, "GPT2LMHeadModel", hf_config=inner.config)


_BUILDERS: Mapping[str, Callable[[Tiny, Attn, torch.dtype], nn.Module]] = {
    "transformers": _transformers,
    "plain": _attention_only,
    "bridge": _bridge,
}


def _plain(data: Any) -> Any:
    """The same data in fresh dicts and lists, since configs keep and change what they are given."""
    if isinstance(data, Mapping):
        return {key: _plain(value) for key, value in data.items()}
    return [_plain(item) for item in data] if isinstance(data, list) else data


@torch.no_grad()
def stir(model: nn.Module) -> None:
    """Draw every parameter anew, so that none keeps a trivial value."""
    tables = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    for parameter in model.parameters():
        if parameter.is_floating_point():
            parameter.copy_(
                0.7 * torch.randn(parameter.shape) if id(parameter) in tables else _drawn(parameter.float())
            )


def _drawn(old: Tensor) -> Tensor:
    """Near its constant where it was one (norms, biases, scales), open where it is a single gate, else wide."""
    noise = torch.randn(old.shape)
    if bool((old == old.flatten()[0]).all()):
        return old + (0.5 + 0.1 * noise if old.numel() == 1 else 0.2 * noise)
    if old.dim() == 1:
        return 0.5 * noise
    fan = old[0].numel() if old.dim() > 3 else min(old.shape[-2:])
    return 1.5 * fan**-0.5 * noise
