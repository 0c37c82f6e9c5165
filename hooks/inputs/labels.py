"""The labels of a tower's positions, as tensors: what `roles.py` makes and everything else reads.

`image` counts the images (or videos) of a row, `tile` indexes that row's `grids`, `frame row col` is the cell in it.
`tags` are yes-or-no marks in addition to the kind: `newline separator cls register distillation query filler
continuation`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from interp.hooks.errors import InputsError
from interp.hooks.pictures.grids import Fit, View

KINDS = ("bos", "system", "user", "assistant", "template", "text", "image", "video", "audio", "pad", "special")
CODE = {name: code for code, name in enumerate(KINDS)}
WORDS = ("system", "user", "assistant", "text")
TAGS = ("newline", "separator", "cls", "register", "distillation", "query", "filler", "continuation")
FIELDS = ("kind", "image", "tile", "frame", "row", "col")


@dataclass(frozen=True, eq=False, repr=False)
class Roles:
    """Labels of one tower's positions; every tensor is [batch, position], -1 meaning "none"."""

    kind: Tensor
    """[batch, position]: what a token is ("text", "image", "pad" ...), as its place in `KINDS`."""
    image: Tensor
    """[batch, position]: the number of its image or video; -1 for none."""
    tile: Tensor
    """[batch, position]: which of the row's `grids` it is in; -1 for none."""
    frame: Tensor
    """[batch, position]: the frame of its cell in that grid; -1 for none."""
    row: Tensor
    """[batch, position]: the row of its cell in that grid; -1 for none."""
    col: Tensor
    """[batch, position]: the column of its cell in that grid; -1 for none."""
    tags: Mapping[str, Tensor] = field(default_factory=dict)
    """By name, such as "newline" or "cls", Bool [batch, position]: the tokens with that mark."""
    grids: tuple[tuple[tuple[int, int, int], ...], ...] = ()
    """By row of the batch, (frames, rows, columns) of each grid."""
    views: tuple[tuple[View, ...], ...] = ()
    """By row of the batch, which part of a picture each grid covers."""
    sizes: tuple[tuple[int, int], ...] | None = None
    """(height, width) of each original picture in pixels; None where it is not known."""
    fit: Fit | None = None
    """How the image processor resized and cropped pictures; None where it is not known."""
    seconds: float | None = None
    """Of sound: the time of a position; position n begins at `n * seconds`."""

    @property
    def newline(self) -> Tensor:
        """Tokens that end a row of patches and are no patch."""
        return self.tags.get("newline", torch.zeros_like(self.patch))

    @property
    def separator(self) -> Tensor:
        """Tokens inside or around an image that are not image tokens: tile tags, timestamps, start and end marks."""
        return self.tags.get("separator", torch.zeros_like(self.patch))

    @property
    def patch(self) -> Tensor:
        """Positions that are a cell of a grid."""
        return self.row >= 0

    def names(self) -> tuple[str, ...]:
        """Every name `where` understands."""
        return tuple(dict.fromkeys((*KINDS, "patch", "newline", "separator", *self.tags)))

    def where(self, name: str) -> Tensor:
        """The positions of a role, none where these inputs have no such token; `text` is every word of text whoever
        speaks, `template` is not."""
        if name == "text":
            return torch.isin(self.kind, torch.tensor([CODE[word] for word in WORDS], device=self.kind.device))
        if name in CODE:
            return self.kind == CODE[name]
        if name == "patch":
            return self.patch
        if name not in (*TAGS, *self.tags):
            raise InputsError(f"no role {name!r}; there are {', '.join(dict.fromkeys((*self.names(), *TAGS)))}")
        return self.tags.get(name, torch.zeros_like(self.patch))

    def label(self, row: int, position: int) -> str:
        """One position in words: `image 0 (3,4)`."""
        at = (row, position)
        words = [KINDS[int(self.kind[at])], *(tag for tag, mask in self.tags.items() if bool(mask[at]))]
        if self.image[at] >= 0:
            words.append(str(int(self.image[at])))
        if self.tile[at] >= 0 and len(self.grids[row]) > 1:
            words.append(f"grid {int(self.tile[at])}")
        if self.seconds is not None and int(self.kind[at]) == CODE["audio"]:
            words.append(f"{position * self.seconds:.2f} s")
        return " ".join(words) + (f" ({int(self.row[at])},{int(self.col[at])})" if self.row[at] >= 0 else "")

    def during(self, start: float, end: float) -> tuple[int, int]:
        """The positions of sound that a stretch of seconds touches, as first and one past the last."""
        if self.seconds is None:
            raise InputsError("how long these positions last is not known: attach the model with its processor.")
        first, last = int(start / self.seconds + 1e-6), math.ceil(end / self.seconds - 1e-6)
        if not 0 <= start < end or first >= self.kind.shape[1]:
            raise InputsError(
                f"no stretch from {start} to {end} s: there are {self.kind.shape[1] * self.seconds:.2f} s."
            )
        return first, min(last, self.kind.shape[1])

    def boxes(self, image_sizes: Sequence[tuple[int, int]] | None = None, *, fit: Fit | None = None) -> Tensor:
        """[batch, position, 4] of (left, top, right, bottom) in pixels of the original pictures; NaN where none.

        `image_sizes` are the pictures' (height, width): all images in the order they were given, then all videos.
        `prepare` knows them, and `fit` (how the processor resized and cropped).
        """
        sizes = self.sizes if image_sizes is None else image_sizes
        if sizes is None:
            raise InputsError("boxes need the (height, width) of each original picture: pass image_sizes=")
        out = torch.full((*self.kind.shape, 4), math.nan)
        for row, views in enumerate(self.views):
            for tile, view in enumerate(views):
                if view.picture >= len(sizes):
                    raise InputsError(f"picture {view.picture} has no size; image_sizes has {len(sizes)} entries")
                self._box(out[row], (row, tile), sizes[view.picture], self.fit if fit is None else fit)
        return out

    def _box(self, out: Tensor, at: tuple[int, int], size: tuple[int, int], fit: Fit | None) -> None:
        """Fill in the boxes of one grid, clipped to the picture."""
        row, tile = at
        here = ((self.tile[row] == tile) & (self.row[row] >= 0)).cpu()
        if not here.any():
            return
        (height, width), (_, rows, cols) = size, self.grids[row][tile]
        left, top, right, bottom = self.views[row][tile].fractions((int(height), int(width)), fit)
        down, across = self.row[row].cpu()[here], self.col[row].cpu()[here]
        x, y = (right - left) / cols, (bottom - top) / rows
        xs = [((left + x * (across + step)) * width).clamp(0, width) for step in (0, 1)]
        ys = [((top + y * (down + step)) * height).clamp(0, height) for step in (0, 1)]
        boxes = torch.stack([xs[0], ys[0], xs[1], ys[1]], -1).float()
        boxes[(boxes[:, :2] >= boxes[:, 2:]).any(-1)] = math.nan  # a cell of padding shows nothing
        out[here] = boxes

    def to(self, device: torch.device | str) -> Roles:
        """The same labels on another device."""
        moved = {name: getattr(self, name).to(device) for name in FIELDS}
        return replace(self, tags={name: mask.to(device) for name, mask in self.tags.items()}, **moved)

    def __repr__(self) -> str:
        counts = {name: int((self.kind == code).sum()) for name, code in CODE.items()}
        return "Roles(" + ", ".join(f"{name} {count}" for name, count in counts.items() if count) + ")"
