"""What example inputs are asked of: a model, its sizes, random words and pixels; and an image's place in a row."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from interp.hooks.errors import ModelError


def text_config(config: Any) -> Any:
    """The config of the language side, of the side that reads where another one answers (MusicGen)."""
    inner = getattr(config, "get_text_config", None)
    if not callable(inner):
        return config
    two = hasattr(config, "text_encoder") and hasattr(config, "decoder")
    return inner(encoder=True) if two else inner()


@dataclass(frozen=True, eq=False)
class Ask:
    """What is wanted, and of whom."""

    module: nn.Module
    batch: int
    length: int
    padding: str | None
    random: torch.Generator

    @cached_property
    def config(self) -> Any:
        return getattr(self.module, "config", None)

    @cached_property
    def text(self) -> Any:
        """The config of the language side."""
        return text_config(self.config)

    @cached_property
    def accepts(self) -> frozenset[str]:
        """The arguments forward names."""
        return frozenset(inspect.signature(self.module.forward).parameters)

    @property
    def device(self) -> torch.device:
        """The device of the first weight that has one; offloaded ones are on meta."""
        return next((p.device for p in self.module.parameters() if p.device.type != "meta"), torch.device("cpu"))

    @property
    def dtype(self) -> torch.dtype:
        return next((p.dtype for p in self.module.parameters() if p.is_floating_point()), torch.float32)

    @cached_property
    def words(self) -> Tensor:
        """Ids that are plain words: none that a config gives a special meaning."""
        vocabulary = getattr(self.text, "vocab_size", None) or _embedding(self.module).num_embeddings
        special = torch.tensor(sorted(special_in(self.config) | special_in(self.text)), dtype=torch.long)
        ids = torch.arange(vocabulary)
        return ids[~torch.isin(ids, special)]

    @property
    def pad(self) -> int:
        return next(
            (p for p in (getattr(c, "pad_token_id", None) for c in (self.text, self.config)) if p is not None), 0
        )

    def noise(self, *shape: int) -> Tensor:
        """Pixels or mel bins."""
        return torch.randn(shape, generator=self.random)

    def draw(self, count: int) -> list[int]:
        """So many random words."""
        return self.words[torch.randint(len(self.words), (count,), generator=self.random)].tolist()

    def lengths(self, longest: int) -> list[int]:
        """Words per row: all the same, or when padded unlike, with one padded row even in a batch of one."""
        if self.padding is None:
            return [longest] * self.batch
        step = max(1, longest // 4)
        return [max(1, longest - step * ((row + (self.batch == 1)) % 3)) for row in range(self.batch)]

    def stack(self, rows: Sequence[list[int]], longest: int) -> tuple[Tensor, Tensor]:
        """Ids and mask of rows filled up to the longest on the side that was asked for."""
        ids = torch.full((len(rows), longest), self.pad)
        mask = torch.zeros_like(ids)
        for index, row in enumerate(rows):
            where = slice(longest - len(row), None) if self.padding == "left" else slice(0, len(row))
            ids[index, where] = torch.tensor(row)
            mask[index, where] = 1
        return ids, mask


@dataclass(frozen=True, eq=False)
class Picture:
    """An image's place in a row: the ids that mark it, and what the image tower is given."""

    ids: list[int]
    tensors: dict[str, Tensor]
    first: bool = False
    """Whether the image is at the start of the row and not between words."""
    extra: Callable[[Ask, Tensor, Tensor], dict[str, Tensor]] = field(default=lambda ask, ids, mask: {})
    """Further arguments, from the ids and the mask of the finished rows."""


def no_example(module: nn.Module, why: str) -> ModelError:
    kind = getattr(getattr(module, "config", None), "model_type", None)
    called = type(module).__name__ + (f" (model type {kind!r})" if kind else "")
    return ModelError(
        f"no example inputs are known for {called}: {why}. Pass example={{name: tensor, ...}}, a valid call."
    )


def _embedding(module: nn.Module) -> nn.Embedding:
    found = next((part for part in module.modules() if isinstance(part, nn.Embedding)), None)
    if found is None:
        raise no_example(module, "it has neither config.vocab_size nor an nn.Embedding to read the vocabulary from")
    return found


def special_in(config: Any) -> set[int]:
    """Every id that a config names."""
    found: set[int] = set()
    for name, value in getattr(config, "__dict__", {}).items():
        if name.endswith(("_token_id", "_token_index")):
            found |= {i for i in (value if isinstance(value, (list, tuple)) else [value]) if isinstance(i, int)}
    return found


def sides(value: Any) -> tuple[int, int]:
    """Height and width of a size given as one number or two."""
    return (value, value) if isinstance(value, int) else (int(value[0]), int(value[1]))


def pixels_for(ask: Ask, vision: Any, *lead: int) -> Tensor:
    """Noise of the size a tower expects, [*lead, channel, height, width]."""
    return ask.noise(*lead, getattr(vision, "num_channels", 3), *sides(vision.image_size))


def patches(vision: Any) -> tuple[int, int]:
    """Rows and columns of patches."""
    (height, width), (down, across) = sides(vision.image_size), sides(vision.patch_size)
    return height // down, width // across


def cells(vision: Any) -> int:
    rows, columns = patches(vision)
    return rows * columns


def placeholders(ask: Ask, count: int) -> list[int]:
    return [ask.config.image_token_id] * count


def is_image(ask: Ask, ids: Tensor) -> Tensor:
    return (ids == ask.config.image_token_id).long()
