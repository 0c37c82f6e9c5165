"""What a made-up call of a denoiser is made of: how many of each thing, and numbers looked up in its config."""

from __future__ import annotations

from collections.abc import Mapping
from inspect import Parameter, signature
from typing import Any

import torch
from torch import Tensor, nn

ROWS, COLUMNS, FRAMES, WORDS = 4, 6, 3, 7
Made = dict[str, Any]
TEXT_WIDTH = ("joint_attention_dim", "text_embed_dim", "text_dim", "caption_channels", "cap_feat_dim", "in_text_dim",
              "context_in_dim", "text_in_dim", "text_hidden_dim", "dit_text_dim", "cond_token_dim", "encoder_hid_dim",
              "cross_attention_input_dim", "cross_attention_dim")  # fmt: skip
"""What the width of a word is called, the first that a config has."""


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

    def film(self, channels: int) -> Tensor:
        """Noise in the shape of a film, its channels before its frames."""
        return self.noise(self.batch, channels, FRAMES, ROWS * self.patch, COLUMNS * self.patch)

    def frames(self, channels: int) -> Tensor:
        """The same with its frames first."""
        return self.film(channels).transpose(1, 2)

    def whole(self, *shape: int) -> Tensor:
        """A mask that hides nothing."""
        return torch.ones(self.batch, *shape, dtype=torch.long)


def cells(axes: int = 3) -> Tensor:
    """Numbers for each cell of the picture: nothing, its row, its column, and nothing again."""
    where = torch.zeros(ROWS, COLUMNS, axes)
    where[..., 1] += torch.arange(ROWS)[:, None]
    where[..., 2] += torch.arange(COLUMNS)
    return where.flatten(0, 1)
