"""Tiny random denoisers of diffusers, both generations of its attention, from configs: nothing is downloaded."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from interp.zoo.denoisers import SIZES, build

HEADS = 2
KINDS = (
    "FluxTransformer2DModel", "QwenImageTransformer2DModel", "SD3Transformer2DModel", "AuraFlowTransformer2DModel",
    "PixArtTransformer2DModel", "DiTTransformer2DModel", "SanaTransformer2DModel", "UNet2DConditionModel",
    "WanTransformer3DModel", "LTXVideoTransformer3DModel", "CogVideoXTransformer3DModel",
    "HunyuanVideoTransformer3DModel", "MochiTransformer3DModel", "CogView4Transformer2DModel",
    "Lumina2Transformer2DModel",
)  # fmt: skip
TINY = {name: SIZES[name] for name in KINDS}
"""By class: what its config says other than by default."""


def library() -> Any:
    """diffusers; whoever asks is skipped where it is not installed."""
    return pytest.importorskip("diffusers", reason="diffusers is not installed (the extra diffusion)")


def denoiser(name: str, *, seed: int = 0, **changes: Any) -> nn.Module:
    """A random one of this class."""
    library()
    torch.manual_seed(seed)
    return build(name, **changes)


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
