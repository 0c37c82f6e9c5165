"""Grids of image cells, the part of the picture they cover, and the order a vision tower holds its patches in.

A `Block` is one grid as a list of tokens: each is a cell (frame, row, column) or something without a cell (a CLS token,
a register, a newline). Sizes come from the pixel tensor and the config, so that pictures need not be square. Limits:
Swin gives the grid of its first stage; masked pretraining (ViTMAE drops and shuffles patches) is refused.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from interp.hooks.errors import InputsError, UnknownPositions

Area = tuple[float, float, float, float]
WHOLE: Area = (0.0, 0.0, 1.0, 1.0)


LEADS: dict[str, tuple[str, ...]] = {
    "vit": ("cls",), "vit_msn": ("cls",), "ijepa": (), "deit": ("cls", "distillation"), "beit": ("cls",),
    "data2vec-vision": ("cls",), "dinov2": ("cls",), "dinov2_with_registers": ("cls", "register"),
    "dinov3_vit": ("cls", "register"), "clip_vision_model": ("cls",), "chinese_clip_vision_model": ("cls",),
    "metaclip_2_vision_model": ("cls",), "siglip_vision_model": (), "internvl_vision": ("cls",),
    "idefics3_vision": (), "smolvlm_vision": (), "blip_2_vision_model": ("cls",),
    "instructblip_vision_model": ("cls",), "swin": (), "swinv2": (),
}  # fmt: skip
"""Tokens before the patches, by model type; `register` means `config.num_register_tokens` of them."""


@dataclass(frozen=True)
class View:
    """The part of a picture a grid covers: tile k of an arrangement, fractions (x0, y0, x1, y1), or what a `Fit` keeps.

    `picture` is the picture's number in the batch. `side` is that of a tile in pixels where the picture is fitted into
    the upper left corner of its tiles and the rest is padding; elsewhere it fills them.
    """

    tile: int = 0
    tiles: tuple[int, int] | int | None = None
    area: Area | None = None
    picture: int = 0
    known: bool = True
    side: int | None = None

    @property
    def by_fit(self) -> bool:
        """Whether only a `Fit` says what it covers."""
        return self.known and self.area is None and self.tiles is None

    def fractions(self, size: tuple[int, int], fit: Fit | None) -> Area:
        """Fractions of the picture's width and height."""
        if not self.known:
            raise InputsError("it is not known where in the picture this family's tiles are, so there are no boxes")
        if self.area is not None:
            return self.area
        if self.tiles is None:
            return _fitted(fit).area(size)
        rows, cols = arrange(self.tiles, size) if isinstance(self.tiles, int) else self.tiles
        row, col = divmod(self.tile, cols)
        high, wide = (rows, cols) if self.side is None else in_corner(size, (rows, cols), self.side)
        return col / wide, row / high, (col + 1) / wide, (row + 1) / high


def _fitted(fit: Fit | None) -> Fit:
    if fit is None:
        raise InputsError(
            "this family's image processor may crop the picture: prepare the inputs with the processor, "
            "or pass fit=Fit.of(image_processor) (Fit() if the whole picture is resized to the tower's size)"
        )
    return fit


def arrange(tiles: int, size: tuple[int, int]) -> tuple[int, int]:
    """The arrangement of a known number of tiles that is nearest to the picture's aspect ratio."""
    options = [(tiles // cols, cols) for cols in range(1, tiles + 1) if tiles % cols == 0]
    return min(options, key=lambda option: abs(size[1] / size[0] - option[1] / option[0]))


def in_corner(size: tuple[int, int], tiles: tuple[int, int], side: int) -> tuple[float, float]:
    """How many tiles (down, across) a picture fills that keeps its shape, grows to one tile where it can, and is no
    larger than all of them."""
    targets = [min(max(size[i], side), tiles[i] * side) for i in (0, 1)]
    scales = [targets[i] / size[i] for i in (0, 1)]
    tight = 1 if scales[1] < scales[0] else 0
    fitted = [min(math.floor(size[i] * scales[tight]) or 1, targets[i]) for i in (0, 1)]
    fitted[tight] = targets[tight]
    return fitted[0] / side, fitted[1] / side


@dataclass(frozen=True)
class Fit:
    """How a picture was brought to the tower's size: padded to a square, resized, cropped at its centre."""

    square: bool = False
    shortest: int | None = None
    resize: tuple[int, int] | None = None
    crop: tuple[int, int] | None = None

    @classmethod
    def of(cls, processor: Any) -> Fit:
        """Read the settings of an image processor."""
        size, crop = getattr(processor, "size", None) or {}, getattr(processor, "crop_size", None) or {}
        resizes, crops = getattr(processor, "do_resize", False), getattr(processor, "do_center_crop", False)
        square = bool(getattr(processor, "do_pad", False)) and callable(getattr(processor, "pad_to_square", None))
        return cls(
            square,
            size["shortest_edge"] if resizes and _has(size, "shortest_edge") else None,
            (size["height"], size["width"]) if resizes and _has(size, "height") else None,
            (crop["height"], crop["width"]) if crops and _has(crop, "height") else None,
        )

    def area(self, size: tuple[int, int]) -> Area:
        """The part of a picture of (height, width) that is seen; beyond [0, 1] where padding is seen."""
        height, width = (max(size), max(size)) if self.square else size
        out_height, out_width = self._resized(height, width)
        seen_height, seen_width = self.crop or (out_height, out_width)
        down, right = (1 - seen_height / out_height) / 2, (1 - seen_width / out_width) / 2
        x, y = _unpad((right, 1 - right), width, size[1]), _unpad((down, 1 - down), height, size[0])
        return x[0], y[0], x[1], y[1]

    def _resized(self, height: int, width: int) -> tuple[float, float]:
        if self.resize is not None:
            return float(self.resize[0]), float(self.resize[1])
        scale = self.shortest / min(height, width) if self.shortest else 1.0
        return height * scale, width * scale


def _has(size: Any, key: str) -> bool:
    return key in size and size[key] is not None


def _unpad(edges: tuple[float, float], padded: int, real: int) -> tuple[float, float]:
    before = (padded - real) / 2
    return (edges[0] * padded - before) / real, (edges[1] * padded - before) / real


@dataclass(frozen=True, eq=False)
class Block:
    """Consecutive tokens of one grid; `cells[n]` is (frame, row, column), all -1 for a token that is no cell."""

    shape: tuple[int, int, int]
    cells: Tensor
    tags: Mapping[str, Tensor] = field(default_factory=dict)
    view: View = View()

    def __len__(self) -> int:
        return len(self.cells)

    @property
    def fills(self) -> bool:
        """Whether it only fills up a row."""
        return "filler" in self.tags and bool(self.tags["filler"].all())

    def drop_first(self) -> Block:
        """Without the first token, whatever it is (`vision_feature_select_strategy="default"`)."""
        return replace(self, cells=self.cells[1:], tags={name: mask[1:] for name, mask in self.tags.items()})


def grid(shape: tuple[int, int, int], *, lead: Sequence[str] = (), newline: bool = False, view: View = View()) -> Block:
    """A grid in row-major order, with tokens before it and a newline after each row if asked."""
    axes = [torch.arange(size) for size in shape]
    cells = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1)
    if newline:
        cells = torch.cat([cells, torch.full((*shape[:2], 1, 3), -1)], 2)
    cells = torch.cat([torch.full((len(lead), 3), -1), cells.reshape(-1, 3)])
    tags = {name: torch.tensor([name == tag for tag in lead] + [False] * (len(cells) - len(lead))) for name in lead}
    if newline:
        tags["newline"] = (cells[:, 0] < 0) & (torch.arange(len(cells)) >= len(lead))
    return Block(shape, cells, tags, view)


def tokens(count: int, tag: str | None = None) -> Block:
    """Image tokens without a grid."""
    return Block((0, 0, 0), torch.full((count, 3), -1), {tag: torch.ones(count).bool()} if tag else {})


def merged(shape: tuple[int, int, int], merge: int) -> Tensor:
    """The cells of a grid in the order of a tower that keeps merge x merge neighbours together."""
    frames, rows, cols = shape
    if rows % merge or cols % merge:
        raise InputsError(f"a patch grid of {rows}x{cols} cannot be merged by {merge}; check image_grid_thw")
    cells = grid(shape).cells.view(frames, rows // merge, merge, cols // merge, merge, 3)
    return cells.permute(0, 1, 3, 2, 4, 5).reshape(-1, 3)


def windows(shape: tuple[int, int, int], window: int) -> Tensor:
    """Where each cell of a grid is found when its windows are listed one after another, frame by frame."""
    cells = grid(shape).cells
    frame, row, col = cells.unbind(1)
    across = -(-shape[2] // window)
    return torch.argsort((frame * shape[1] + row // window) * across + col // window, stable=True)


def pair(value: Any) -> tuple[int, int]:
    """(height, width) of a size given as one number or two."""
    return (int(value[0]), int(value[1])) if isinstance(value, Sequence) else (int(value), int(value))


def pixels_in(kwargs: Mapping[str, Any]) -> Tensor | None:
    """The pictures a call is given: under transformers' name, else the one tensor [batch, channel, row, column]."""
    if "pixel_values" in kwargs:
        found: Tensor = kwargs["pixel_values"]
        return found
    fits = [value for value in kwargs.values() if isinstance(value, Tensor) and value.ndim == 4]
    return fits[0] if len(fits) == 1 and fits[0].is_floating_point() else None


@dataclass(frozen=True)
class Patches:
    """What a model without a config says of its pictures, in timm's names, as a config would."""

    image_size: tuple[int, int]
    patch_size: tuple[int, int]
    channels: int
    lead: tuple[str, ...]
    model_type: str = "timm"


def patches_of(module: Any) -> Patches | None:
    """The same of a module; None where it is no tower of timm's kind: patches in one sequence after some tokens."""
    windowed = type(module).__name__.startswith("SwinTransformer")
    embed, before = getattr(module, "patch_embed", None), getattr(module, "num_prefix_tokens", 0 if windowed else None)
    size, image = getattr(embed, "patch_size", None), getattr(embed, "img_size", None)
    if size is None or image is None or not isinstance(before, int):
        return None
    registers = int(getattr(module, "num_reg_tokens", 0))
    lead = ("cls",) * (before - registers) + ("register",) * registers
    convolved = getattr(embed, "proj", None)
    return Patches(pair(image), pair(size), int(getattr(convolved, "in_channels", 3)), lead)


def picture_size(module: Any) -> tuple[int, int, int] | None:
    """Channels, height and width of the pictures that a model without a config takes, where it says so in timm's
    names."""
    said = (getattr(module, "pretrained_cfg", None) or {}).get("input_size")
    embed = getattr(module, "patch_embed", None)
    image = getattr(embed, "img_size", None) or (said and said[1:])
    if image is None:
        return None
    channels = getattr(getattr(embed, "proj", None), "in_channels", None) or (said and said[0]) or 3
    return int(channels), *pair(image)


def patch_grid(config: Any, pixels: Tensor | None) -> tuple[int, int]:
    """Rows and columns of patches, from the pixels where there are any; Swin pads to whole patches."""
    height, width = pixels.shape[-2:] if pixels is not None else pair(config.image_size)
    rows, cols = pair(config.patch_size)
    if config.model_type in ("swin", "swinv2"):
        return -(-height // rows), -(-width // cols)
    return height // rows, width // cols


def lead_of(config: Any) -> tuple[str, ...]:
    """The tokens before the patches of a vision config."""
    if isinstance(config, Patches):
        return config.lead
    if config.model_type not in LEADS:
        known = ", ".join(sorted(LEADS))
        raise UnknownPositions(
            f"the token order of image model {config.model_type!r} is not known (known: {known}); "
            f"if it is one sequence of patches after some tokens, add it to interp.hooks.pictures.grids.LEADS"
        )
    lead = []
    for name in LEADS[config.model_type]:
        lead += [name] * (config.num_register_tokens if name == "register" else 1)
    return tuple(lead)


def picture(config: Any, pixels: Tensor | None) -> Block:
    """One picture as a ViT-like tower holds it."""
    lead = lead_of(config)  # first, because it knows which families are known
    return grid((1, *patch_grid(config, pixels)), lead=lead)
