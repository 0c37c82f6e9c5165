"""A valid call of a denoiser that nobody gave us inputs for: noise, random words of random meaning, a time.

Idea: diffusers calls the same things the same in most classes, so arguments are made by their names, with widths from
the config; what a class calls otherwise is a row of its own. Pictures are 4 x 6 cells of a patch, not square, video has
three frames, words are seven, so that no two lengths agree by chance. Cost: no forward pass. Limits: ControlNet,
IP-Adapter and reference pictures are left out, as a call may leave them out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from inspect import Parameter, signature
from typing import Any

import torch
from torch import Tensor, nn

from interp.hooks.denoisers.own import OWN
from interp.hooks.denoisers.wanted import COLUMNS, FRAMES, ROWS, WORDS, Made, Wanted, cells


def denoises(module: nn.Module) -> bool:
    """Whether a module is a denoiser of diffusers: one of its models that is told a time."""
    homes = {base.__module__.partition(".")[0] for base in type(module).__mro__}
    return "diffusers" in homes and "timestep" in signature(module.forward).parameters


def call_of(module: nn.Module, *, batch: int, random: torch.Generator) -> Made:
    """Keyword arguments for one forward pass."""
    wanted = Wanted(module, batch, random)
    made: Made = {name: make(wanted) for name, make in MAKERS.items() if name in wanted.named}
    made |= {name: make(wanted) for name, make in OWN.get(wanted.kind, {}).items()}
    return {name: value for name, value in made.items() if value is not None}


def _latents(w: Wanted) -> Tensor:
    """Noise in the axes that the class takes it in."""
    channels = w.number("in_channels")
    rows, columns = ROWS * w.patch, COLUMNS * w.patch
    if "img_ids" in w.named or "img_shapes" in w.named:
        return w.noise(w.batch, ROWS * COLUMNS, channels)
    if "num_frames" in w.named:
        return w.noise(w.batch, FRAMES * ROWS * COLUMNS, channels)
    if "3D" in w.kind:
        return w.noise(w.batch, channels, FRAMES, rows, columns)
    return w.noise(w.batch, channels, rows, columns)


def _mask(w: Wanted) -> Tensor | None:
    """Every word is one; left out where a call may leave it out."""
    needed = w.named["encoder_attention_mask"].default is Parameter.empty
    return torch.ones(w.batch, WORDS, dtype=torch.long) if needed else None


def _guidance(w: Wanted) -> Tensor | None:
    return torch.full((w.batch,), 3.0) if w.config.get("guidance_embeds") else None


def _labels(w: Wanted) -> Tensor | None:
    classes = w.config.get("num_class_embeds") if "num_class_embeds" in w.config else w.number("num_embeds_ada_norm")
    return None if classes is None else torch.arange(w.batch) % int(classes)


def _added(w: Wanted) -> Made | None:
    """What SDXL and PixArt say of sizes and crops."""
    if w.config.get("addition_embed_type") == "text_time":
        times = 6 * w.number("addition_time_embed_dim")
        pooled = w.number("projection_class_embeddings_input_dim") - times
        return {"text_embeds": w.noise(w.batch, pooled), "time_ids": torch.ones(w.batch, 6)}
    if w.kind.startswith("PixArt"):
        sizes = {"resolution": torch.full((w.batch, 2), 64.0), "aspect_ratio": torch.ones(w.batch, 1)}
        return sizes if w.config.get("use_additional_conditions") else dict.fromkeys(sizes)
    return None


MAKERS: Mapping[str, Callable[[Wanted], Any]] = {
    "hidden_states": _latents,
    "sample": _latents,
    "timestep": lambda w: torch.full((w.batch,), 3 if "sample" in w.named or "class_labels" in w.named else 0.5),
    "encoder_hidden_states": lambda w: w.noise(w.batch, WORDS, w.text),
    "pooled_projections": lambda w: w.noise(w.batch, w.number("pooled_projection_dim")),
    "encoder_attention_mask": _mask,
    "encoder_hidden_states_mask": lambda w: None,
    "guidance": _guidance,
    "class_labels": _labels,
    "img_ids": lambda w: cells(),
    "txt_ids": lambda w: torch.zeros(WORDS, 3),
    "img_shapes": lambda w: [[(1, ROWS, COLUMNS)]] * w.batch,
    "added_cond_kwargs": _added,
    "num_frames": lambda w: FRAMES,
    "height": lambda w: ROWS,
    "width": lambda w: COLUMNS,
}
"""By the name of an argument."""
