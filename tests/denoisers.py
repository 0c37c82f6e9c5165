"""Tiny random denoisers of diffusers, both generations of its attention, from configs: nothing is downloaded."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn

HEADS = 2
FOUR: Mapping[str, Any] = {"num_attention_heads": HEADS, "attention_head_dim": 8}
"""Two heads of eight numbers each."""
TINY: Mapping[str, Mapping[str, Any]] = {
    "FluxTransformer2DModel": {
        **FOUR, "in_channels": 4, "num_layers": 2, "num_single_layers": 2, "joint_attention_dim": 12,
        "pooled_projection_dim": 10, "axes_dims_rope": (2, 2, 4), "guidance_embeds": True,
    },
    "QwenImageTransformer2DModel": {
        **FOUR, "in_channels": 4, "out_channels": 1, "num_layers": 2, "joint_attention_dim": 12,
        "axes_dims_rope": (2, 2, 4),
    },
    "SD3Transformer2DModel": {
        **FOUR, "sample_size": 8, "in_channels": 4, "out_channels": 4, "num_layers": 3, "joint_attention_dim": 12,
        "caption_projection_dim": 16, "pooled_projection_dim": 10, "pos_embed_max_size": 8, "qk_norm": "rms_norm",
    },
    "AuraFlowTransformer2DModel": {
        **FOUR, "sample_size": 8, "in_channels": 4, "out_channels": 4, "num_mmdit_layers": 2,
        "num_single_dit_layers": 2, "joint_attention_dim": 12, "caption_projection_dim": 16, "pos_embed_max_size": 64,
    },
    "PixArtTransformer2DModel": {
        **FOUR, "in_channels": 4, "out_channels": 8, "num_layers": 2, "cross_attention_dim": 16, "sample_size": 8,
        "caption_channels": 12, "norm_num_groups": 2, "use_additional_conditions": False,
    },
    "DiTTransformer2DModel": {
        **FOUR, "in_channels": 4, "num_layers": 2, "sample_size": 8, "norm_num_groups": 2, "num_embeds_ada_norm": 10,
    },
    "SanaTransformer2DModel": {
        **FOUR, "in_channels": 4, "out_channels": 4, "num_layers": 2, "num_cross_attention_heads": HEADS,
        "cross_attention_head_dim": 8, "cross_attention_dim": 16, "caption_channels": 12, "sample_size": 6,
    },
    "UNet2DConditionModel": {
        "sample_size": 8, "block_out_channels": (16, 32), "layers_per_block": 1, "norm_num_groups": 4,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"), "cross_attention_dim": 12,
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"), "attention_head_dim": (2, 4),
        "addition_embed_type": "text_time", "addition_time_embed_dim": 4, "projection_class_embeddings_input_dim": 34,
        "transformer_layers_per_block": (1, 2), "use_linear_projection": True,
    },
    "WanTransformer3DModel": {
        **FOUR, "in_channels": 4, "out_channels": 4, "text_dim": 12, "freq_dim": 16, "ffn_dim": 24, "num_layers": 2,
        "rope_max_seq_len": 32, "patch_size": (1, 2, 2),
    },
    "LTXVideoTransformer3DModel": {
        **FOUR, "in_channels": 4, "out_channels": 4, "cross_attention_dim": 16, "num_layers": 2, "caption_channels": 12,
    },
    "CogVideoXTransformer3DModel": {
        **FOUR, "in_channels": 4, "out_channels": 4, "time_embed_dim": 8, "text_embed_dim": 12, "num_layers": 2,
        "sample_width": 8, "sample_height": 8, "sample_frames": 5, "max_text_seq_length": 7,
    },
    "HunyuanVideoTransformer3DModel": {
        **FOUR, "in_channels": 4, "out_channels": 4, "num_layers": 1, "num_single_layers": 2, "num_refiner_layers": 1,
        "patch_size": 2, "text_embed_dim": 12, "pooled_projection_dim": 10, "rope_axes_dim": (2, 2, 4),
    },
    "MochiTransformer3DModel": {
        **FOUR, "in_channels": 4, "num_layers": 2, "pooled_projection_dim": 10, "text_embed_dim": 16,
        "time_embed_dim": 6, "max_sequence_length": 8,
    },
    "CogView4Transformer2DModel": {
        **FOUR, "in_channels": 4, "out_channels": 4, "num_layers": 2, "text_embed_dim": 12, "time_embed_dim": 8,
        "condition_dim": 4, "sample_size": 8, "rope_axes_dim": (8, 8),
    },
    "Lumina2Transformer2DModel": {
        "sample_size": 8, "in_channels": 4, "hidden_size": 24, "num_layers": 2, "num_refiner_layers": 1,
        "num_attention_heads": 3, "num_kv_heads": 1, "axes_dim_rope": (4, 2, 2), "axes_lens": (32, 32, 32),
        "cap_feat_dim": 12,
    },
}  # fmt: skip
"""By class: what its config says other than by default."""


def library() -> Any:
    """diffusers; whoever asks is skipped where it is not installed."""
    return pytest.importorskip("diffusers", reason="diffusers is not installed (the extra diffusion)")


def denoiser(name: str, *, seed: int = 0, **changes: Any) -> nn.Module:
    """A random one of this class."""
    home = library()
    torch.manual_seed(seed)
    made: nn.Module = getattr(home, name)(**{**TINY[name], **changes}).eval()
    for parameter in made.parameters():  # gates and last layers start at zero
        torch.nn.init.normal_(parameter, std=0.2)
    return made


WITHOUT = ("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2", "text_encoder_3", "tokenizer_3", "vae")
ROWS, COLUMNS, WORDS = 4, 6, 7
DDIM = ("DiTPipeline", "PixArtSigmaPipeline", "PixArtSigmaPAGPipeline", "StableDiffusionXLPipeline",
        "StableDiffusionXLPAGPipeline", "CogVideoXPipeline")  # fmt: skip
"""Pipelines that predict noise; the others follow flows."""


def pipeline(kind: str, transformer: nn.Module, **parts: Any) -> Any:
    """A pipeline of diffusers around a denoiser; words come as vectors, pictures leave as latents."""
    home = library()
    made = getattr(home, kind)
    scheduler = getattr(home, "DDIMScheduler" if kind in DDIM else "FlowMatchEulerDiscreteScheduler")()
    takes = made.__init__.__annotations__ if hasattr(made.__init__, "__annotations__") else {}
    own = "unet" if "unet" in takes else "transformer"
    missing = {name: None for name in WITHOUT if name in takes}
    pipe = made(**{**missing, own: transformer, "scheduler": scheduler, **parts})
    pipe.set_progress_bar_config(disable=True)
    return pipe


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def sd3(pipe: Any, *, steps: int = 4, guidance: float = 3.0, batch: int = 2, **more: Any) -> Tensor:
    """Latents of a run of Stable Diffusion 3."""
    made: Tensor = pipe(
        prompt_embeds=noise(batch, WORDS, 12), negative_prompt_embeds=noise(batch, WORDS, 12, seed=1),
        pooled_prompt_embeds=noise(batch, 10), negative_pooled_prompt_embeds=noise(batch, 10, seed=1),
        height=64, width=96, num_inference_steps=steps, output_type="latent", generator=seeded(),
        guidance_scale=guidance, **more,
    ).images  # fmt: skip
    return made


def flux(pipe: Any, *, steps: int = 3, true: float = 1.0, batch: int = 2) -> Tensor:
    """Latents of a run of Flux, under guidance in calls of their own where `true` is above 1."""
    negative = {"negative_prompt_embeds": noise(batch, WORDS, 12, seed=1),
                "negative_pooled_prompt_embeds": noise(batch, 10, seed=1)}  # fmt: skip
    made: Tensor = pipe(
        prompt_embeds=noise(batch, WORDS, 12), pooled_prompt_embeds=noise(batch, 10), height=64, width=96,
        num_inference_steps=steps, output_type="latent", generator=seeded(), true_cfg_scale=true,
        **(negative if true > 1 else {}),
    ).images  # fmt: skip
    return made


def pixart(pipe: Any, *, steps: int = 3, guidance: float = 3.0, batch: int = 2, **more: Any) -> Tensor:
    """Latents of a run of PixArt."""
    masks = torch.ones(batch, WORDS, dtype=torch.long)
    made: Tensor = pipe(
        negative_prompt=None, prompt_embeds=noise(batch, WORDS, 12),
        negative_prompt_embeds=noise(batch, WORDS, 12, seed=1), prompt_attention_mask=masks,
        negative_prompt_attention_mask=masks, height=64, width=96, num_inference_steps=steps, output_type="latent",
        generator=seeded(), guidance_scale=guidance, use_resolution_binning=False, **more,
    ).images  # fmt: skip
    return made


def sdxl(pipe: Any, *, steps: int = 3, guidance: float = 3.0, **more: Any) -> Tensor:
    """Latents of a run of a U-Net."""
    made: Tensor = pipe(
        prompt_embeds=noise(2, WORDS, 12), negative_prompt_embeds=noise(2, WORDS, 12, seed=1),
        pooled_prompt_embeds=noise(2, 10), negative_pooled_prompt_embeds=noise(2, 10, seed=1), height=64, width=96,
        num_inference_steps=steps, output_type="latent", generator=seeded(), guidance_scale=guidance, **more,
    ).images  # fmt: skip
    return made


def wan(pipe: Any, *, steps: int = 2, guidance: float = 3.0) -> Tensor:
    """Latents of a run of Wan, guided in calls of their own."""
    made: Tensor = pipe(
        prompt_embeds=noise(1, WORDS, 12), negative_prompt_embeds=noise(1, WORDS, 12, seed=1), height=64, width=96,
        num_frames=9, num_inference_steps=steps, output_type="latent", generator=seeded(), guidance_scale=guidance,
    ).frames  # fmt: skip
    return made


def _masked(batch: int) -> dict[str, Tensor]:
    """Words with and without the prompt, all of them real."""
    real = torch.ones(batch, WORDS, dtype=torch.long)
    return {"prompt_embeds": noise(batch, WORDS, 12), "negative_prompt_embeds": noise(batch, WORDS, 12, seed=1),
            "prompt_attention_mask": real, "negative_prompt_attention_mask": real}  # fmt: skip


def aura(pipe: Any) -> Tensor:
    """Latents of a run of AuraFlow."""
    how = {"height": 64, "width": 96, "num_inference_steps": 3, "output_type": "latent", "generator": seeded()}
    made: Tensor = pipe(**_masked(2), **how, guidance_scale=3.0).images
    return made


def ltx(pipe: Any) -> Tensor:
    """Latents of a run of LTX, three frames."""
    how = {"height": 128, "width": 192, "num_inference_steps": 2, "output_type": "latent", "generator": seeded()}
    made: Tensor = pipe(**_masked(1), **how, num_frames=17, guidance_scale=3.0).frames
    return made


def cog(pipe: Any) -> Tensor:
    """Latents of a run of CogVideoX, two frames."""
    made: Tensor = pipe(
        prompt_embeds=noise(1, WORDS, 12), negative_prompt_embeds=noise(1, WORDS, 12, seed=1), height=64, width=64,
        num_frames=5, num_inference_steps=2, output_type="latent", generator=seeded(), guidance_scale=3.0,
    ).frames  # fmt: skip
    return made
