"""Which tokens of a denoiser are words and which are cells of the picture, and in which order they are.

Joint attention reads both in one sequence, words first or cells first by class (`WORDS_FIRST`, `CELLS_FIRST`);
elsewhere cells attend to each other and, in a second attention, to the words (`APART`). Cells are patches of the latent
picture in row-major order, frame by frame; sizes come from the call and the config, never from a square root. Learned
tokens that a class puts before everything are `register`. Limits: reference pictures count as further frames; a
U-Net's cells are its latents, most of its layers attend over smaller pictures; classes of no table here have no
positions, and say so.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from interp.hooks.errors import InputsError, UnknownPositions

WORDS_FIRST = ("AuraFlow", "BriaFiboTransformer", "BriaTransformer", "Chroma", "CogVideoX", "CogView3", "CogView4",
               "ConsisID", "EasyAnimate", "Flux", "GlmImage", "Krea2", "LongCatImage", "Lumina2", "Ovis",
               "QwenImage")  # fmt: skip
CELLS_FIRST = ("HunyuanImage", "HunyuanVideoTransformer", "JoyImageEditTransformer", "Mochi", "Motif", "SD3")
APART = ("Allegro", "AnyFlowTransformer", "AudioLDM2", "ChronoEdit", "Cosmos", "DiT", "I2VGenXL", "LTX2Video",
         "LTXVideo", "Latte", "PixArt", "SanaTransformer", "SanaVideo", "SkyReels", "Transformer2D", "UNet2D", "UNet3D",
         "UNetMotion", "UNetSpatioTemporal", "WanTransformer", "WanVACE")  # fmt: skip
FRAMES_FIRST = ("AnyFlow", "CogVideoX", "ConsisID", "UNetSpatioTemporal")
"""By the start of the class' name."""


@dataclass(frozen=True, eq=False)
class Layout:
    """The tokens of one call."""

    runs: tuple[tuple[str, int], ...]
    """Runs of the sequence that attends, in order: `register`, `words`, `cells`, and how many."""
    cells: Tensor
    """[cell, 3]: the frame, row and column of each cell."""
    shape: tuple[int, int, int]
    """Frames, rows and columns."""
    batch: int
    words: Tensor | None
    """Bool [row, word]: which words are real; None where the call has none."""

    @property
    def apart(self) -> bool:
        """Whether words are not in the sequence that attends."""
        return all(kind != "words" for kind, _ in self.runs)

    @property
    def length(self) -> int:
        """Tokens of that sequence."""
        return sum(count for _, count in self.runs)


def joint(module: nn.Module) -> bool:
    """Whether words are in the sequence that cells attend in; refused where the class is in no table."""
    kind = type(module).__name__
    if not kind.startswith((*WORDS_FIRST, *CELLS_FIRST, *APART)):
        known = ", ".join((*WORDS_FIRST, *CELLS_FIRST, *APART))
        raise UnknownPositions(
            f"the order of {kind}'s tokens is not known (known: {known}); q, k, v, z and patterns are recorded and"
            " edited without it, positions and roles are not."
        )
    return kind.startswith((*WORDS_FIRST, *CELLS_FIRST))


def layout(module: nn.Module, call: Mapping[str, Any]) -> Layout:
    """The tokens of a call; refused where the class is in no table."""
    kind, config = type(module).__name__, cast("Mapping[str, Any]", module.config)
    joint(module)
    latents = call.get("hidden_states", call.get("sample"))
    if not torch.is_tensor(latents):
        raise InputsError(
            f"a call of {kind} needs its latents by name (hidden_states or sample), got {', '.join(call)}."
        )
    cells, shape = _cells(kind, config, call, latents)
    words = _words(call)
    runs = [("cells", len(cells))]
    if words is not None and kind.startswith(WORDS_FIRST):
        runs = [("words", words.shape[1]), *runs]
    if words is not None and kind.startswith(CELLS_FIRST):
        runs = [*runs, ("words", words.shape[1])]
    registers = getattr(module, "register_tokens", None)
    if torch.is_tensor(registers):
        runs = [("register", int(registers.shape[1])), *runs]
    return Layout(tuple(runs), cells, shape, len(latents), words)


def _words(call: Mapping[str, Any]) -> Tensor | None:
    """Which words are real."""
    embedded = call.get("encoder_hidden_states")
    if not torch.is_tensor(embedded):
        return None
    for name in ("encoder_attention_mask", "encoder_hidden_states_mask"):
        if torch.is_tensor(mask := call.get(name)) and mask.shape == embedded.shape[:2]:
            return mask.bool()
    return torch.ones(embedded.shape[:2], dtype=torch.bool, device=embedded.device)


def _cells(
    kind: str, config: Mapping[str, Any], call: Mapping[str, Any], latents: Tensor
) -> tuple[Tensor, tuple[int, int, int]]:
    """Frame, row and column of each cell, and how many of each there are."""
    if torch.is_tensor(ids := call.get("img_ids", _krea(kind, call, latents))):
        where = (ids[0] if ids.ndim == 3 else ids)[:, :3].long().cpu()
        found = where.amax(0) + 1
        return where, (int(found[0]), int(found[1]), int(found[2]))
    shapes = _pictures(call) or [_shape(kind, config, call, latents)]
    parts, frames = [], 0
    for shape in shapes:
        axes = torch.meshgrid(*(torch.arange(size) for size in shape), indexing="ij")
        parts.append(torch.stack(axes, -1).reshape(-1, 3) + torch.tensor([frames, 0, 0]))
        frames += shape[0]
    rows, columns = (max(shape[axis] for shape in shapes) for axis in (1, 2))
    return torch.cat(parts), (frames, rows, columns)


def _krea(kind: str, call: Mapping[str, Any], latents: Tensor) -> Tensor | None:
    """Krea's ids are of words and cells."""
    ids = call.get("position_ids")
    return ids[len(ids) - latents.shape[1] :] if kind.startswith("Krea2") and torch.is_tensor(ids) else None


def _pictures(call: Mapping[str, Any]) -> list[tuple[int, int, int]]:
    """Frames, rows and columns of the picture that is made and of those it is made from, where the call says so."""
    said = call.get("img_shapes")
    if not said:
        return []
    first = said[0]
    every = [first] if isinstance(first[0], int) else first
    return [(int(frames), int(rows), int(columns)) for frames, rows, columns in every]


def _shape(kind: str, config: Mapping[str, Any], call: Mapping[str, Any], latents: Tensor) -> tuple[int, int, int]:
    if latents.ndim == 3:
        frames, rows, columns = (call.get(name) for name in ("num_frames", "height", "width"))
        if frames is None or rows is None or columns is None:
            raise UnknownPositions(f"{kind} is called with tokens and without num_frames, height and width.")
        return int(frames), int(rows), int(columns)
    time, down, across = patch(kind, config)
    height, width = latents.shape[-2:]
    frames = 1 if latents.ndim == 4 else latents.shape[1 if kind.startswith(FRAMES_FIRST) else 2]
    return frames // time, height // down, width // across


def patch(kind: str, config: Mapping[str, Any]) -> tuple[int, int, int]:
    """Frames, rows and columns of latents in one cell; a U-Net's cells are those of its attention at full size."""
    found = config.get("patch_size")
    if isinstance(found, (list, tuple)):
        time, down, across = (1, *found)[-3:]
        return int(time), int(down), int(across)
    side = 1 if found is None else int(found)
    return int(config.get("patch_size_t") or 1), side, side
