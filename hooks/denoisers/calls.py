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

ROWS, COLUMNS, FRAMES, WORDS = 4, 6, 3, 7
Made = dict[str, Any]
TEXT_WIDTH = ("joint_attention_dim", "text_embed_dim", "text_dim", "caption_channels", "cap_feat_dim",
              "cross_attention_dim")  # fmt: skip
"""What the width of a word is called, the first that a config has."""


def denoises(module: nn.Module) -> bool:
    """Whether a module is a denoiser of diffusers: one of its models that is told a time."""
    homes = {base.__module__.partition(".")[0] for base in type(module).__mro__}
    return "diffusers" in homes and "timestep" in signature(module.forward).parameters


class Wanted:
    """What a call is made of."""

    def __init__(self, module: nn.Module, batch: int, random: torch.Generator) -> None:
        self.config: Any = module.config
        self.batch, self.random = batch, random
        self.named: Mapping[str, Parameter] = signature(module.forward).parameters
        self.kind = type(module).__name__

    def number(self, *names: str, otherwise: int = 1) -> int:
        """The first of these that the config has as a number; of several numbers the first."""
        for name in names:
            found = self.config.get(name)
            found = found[0] if isinstance(found, (list, tuple)) and found else found
            if isinstance(found, int) and not isinstance(found, bool):
                return found
        return otherwise

    def noise(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self.random)

    @property
    def patch(self) -> int:
        """The side of a patch."""
        found = self.config.get("patch_size")
        return int(found[-1]) if isinstance(found, (list, tuple)) else int(found or 1)

    @property
    def text(self) -> int:
        return self.number(*TEXT_WIDTH)


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


def _cells() -> Tensor:
    """Three numbers for a cell of the picture: nothing, its row, its column."""
    where = torch.zeros(ROWS, COLUMNS, 3)
    where[..., 1] += torch.arange(ROWS)[:, None]
    where[..., 2] += torch.arange(COLUMNS)
    return where.flatten(0, 1)


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
    "img_ids": lambda w: _cells(),
    "txt_ids": lambda w: torch.zeros(WORDS, 3),
    "img_shapes": lambda w: [[(1, ROWS, COLUMNS)]] * w.batch,
    "added_cond_kwargs": _added,
    "num_frames": lambda w: FRAMES,
    "height": lambda w: ROWS,
    "width": lambda w: COLUMNS,
}
"""By the name of an argument."""


def _framed(make: Callable[[Wanted], Any]) -> Callable[[Wanted], Any]:
    """What Wan wants where a first frame is given: 512 words, as many as it takes off the end of words and frame."""
    return lambda w: make(w) if w.config.get("image_dim") else MAKERS["encoder_hidden_states"](w)


def _frame(w: Wanted) -> Tensor | None:
    """The tokens of a first frame, where there is one."""
    width = w.config.get("image_dim")
    return None if width is None else w.noise(w.batch, 5, int(width))


def _size(*numbers: float) -> Callable[[Wanted], Tensor]:
    return lambda w: torch.tensor([numbers] * w.batch)


OWN: Mapping[str, Mapping[str, Callable[[Wanted], Any]]] = {
    "CogVideoXTransformer3DModel": {
        "hidden_states": lambda w: w.noise(w.batch, FRAMES, w.number("in_channels"), ROWS * w.patch, COLUMNS * w.patch)
    },
    "WanTransformer3DModel": {
        "encoder_hidden_states": _framed(lambda w: w.noise(w.batch, 512, w.text)),
        "encoder_hidden_states_image": _frame,
    },
    "CogView4Transformer2DModel": dict.fromkeys(("original_size", "target_size"), _size(64.0, 96.0))
    | {"crop_coords": _size(0.0, 0.0)},
    "Flux2Transformer2DModel": {
        "img_ids": lambda w: torch.cat([_cells(), torch.zeros(ROWS * COLUMNS, 1)], 1),
        "txt_ids": lambda w: torch.zeros(WORDS, 4),
    },
    "DiTTransformer2DModel": {
        "hidden_states": lambda w: w.noise(w.batch, w.number("in_channels"), ROWS * w.patch, ROWS * w.patch),
        "timestep": lambda w: torch.full((w.batch,), 3),
    },
}
"""By class, what it calls or shapes otherwise."""
