"""What each position of a run is: text, padding, a patch of an image, and where in the image it lies.

Idea: a tower's positions are labelled from the ids, the mask and the shapes the model itself is called with, never from
a square root or an assumed contiguous span. Image tokens are found by id equality; the order of the cells comes from
the family's layout (`layouts.py`), and a count that does not fit is an error. Cost: no forward pass.
Limits: `system user assistant template` are known only where `prepare` rendered the chat; elsewhere those tokens are
`text`. Families without a layout get text roles only, and their image tokens (if any) no grid.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

KINDS = ("bos", "system", "user", "assistant", "template", "text", "image", "video", "audio", "pad", "special")
CODE = {name: code for code, name in enumerate(KINDS)}
WORDS = ("system", "user", "assistant", "text")


@dataclass(frozen=True, eq=False, repr=False)
class Roles:
    """Labels of one tower's positions; every tensor is [batch, position], -1 meaning "none"."""

    kind: Tensor
    image: Tensor
    tile: Tensor
    frame: Tensor
    row: Tensor
    col: Tensor
    tags: Mapping[str, Tensor] = field(default_factory=dict)
    grids: tuple[tuple[tuple[int, int, int], ...], ...] = ()

    @property
    def newline(self) -> Tensor:
        """Tokens that end a row of patches and stand for no patch."""
        return self.tags.get("newline", torch.zeros_like(self.kind, dtype=torch.bool))

    @property
    def separator(self) -> Tensor:
        """Tokens inside or around an image that are not image tokens: tile tags, timestamps, start and end marks."""
        return self.tags.get("separator", torch.zeros_like(self.kind, dtype=torch.bool))

    @property
    def patch(self) -> Tensor:
        """Positions that stand for a cell of a grid."""
        return self.row >= 0

    def names(self) -> tuple[str, ...]:
        """Every name `where` understands."""
        return (*KINDS, "patch", "newline", "separator", *(tag for tag in self.tags if tag not in SEPARATE))

    def where(self, name: str) -> Tensor:
        """The positions of a role; `text` is every word of text whoever speaks, `template` is not."""
        if name == "text":
            return torch.isin(self.kind, torch.tensor([CODE[word] for word in WORDS], device=self.kind.device))
        if name in CODE:
            return self.kind == CODE[name]
        return self.patch if name == "patch" else self.tags.get(name, torch.zeros_like(self.patch))

    def label(self, row: int, position: int) -> str:
        """One position in words: `image 0 (3,4)`."""
        at = (row, position)
        marks = [tag for tag, mask in self.tags.items() if bool(mask[at])]
        name = " ".join([KINDS[int(self.kind[at])], *marks])
        if self.image[at] < 0:
            return name
        cell = f" ({int(self.row[at])},{int(self.col[at])})" if self.row[at] >= 0 else ""
        return f"{name} {int(self.image[at])}{cell}"

    def to(self, device: torch.device | str) -> Roles:
        """The same labels on another device."""
        moved = {name: getattr(self, name).to(device) for name in ("kind", "image", "tile", "frame", "row", "col")}
        return replace(self, tags={name: mask.to(device) for name, mask in self.tags.items()}, **moved)

    def __repr__(self) -> str:
        counts = {name: int((self.kind == code).sum()) for name, code in CODE.items()}
        return "Roles(" + ", ".join(f"{name} {count}" for name, count in counts.items() if count) + ")"


SEPARATE = ("newline", "separator")


def plain(valid: Tensor, kind: str = "text") -> Roles:
    """Roles of a tower about which only the padding is known."""
    kinds = torch.where(valid, CODE[kind], CODE["pad"])
    none = torch.full_like(kinds, -1)
    return Roles(kinds, none, none.clone(), none.clone(), none.clone(), none.clone(), {}, ((),) * len(valid))


def special_ids(config: Any = None, tokenizer: Any = None) -> tuple[set[int], set[int]]:
    """The ids that open a sequence, and every id that is not a word."""
    bos, special = _ids(tokenizer, "bos_token_id"), set(getattr(tokenizer, "all_special_ids", None) or ())
    bos = bos or _ids(tokenizer, "cls_token_id") or _config_ids(config, "bos_token_id")
    for name in ("bos_token_id", "eos_token_id", "sep_token_id", "cls_token_id"):
        special |= _config_ids(config, name)
    return bos, special | bos


def _ids(holder: Any, name: str) -> set[int]:
    value = getattr(holder, name, None)
    if value is None:
        return set()
    return set(value) if isinstance(value, Sequence) else {int(value)}


def _config_ids(config: Any, name: str) -> set[int]:
    text = config.get_text_config() if hasattr(config, "get_text_config") else None
    return _ids(config, name) or _ids(text, name)


def text_kinds(ids: Tensor, valid: Tensor, bos: set[int], special: set[int]) -> Tensor:
    """`bos` (at the start of a sequence only), `special`, `pad` and `text`, from the ids and the mask."""
    kind = torch.full_like(ids, CODE["text"])
    kind[torch.isin(ids, torch.tensor(sorted(special), dtype=ids.dtype, device=ids.device))] = CODE["special"]
    opening = torch.isin(ids, torch.tensor(sorted(bos), dtype=ids.dtype, device=ids.device)) & valid
    first = valid & (valid.cumsum(-1) == 1)
    kind[opening & first] = CODE["bos"]
    kind[~valid] = CODE["pad"]
    return kind


def roles(
    config: Any,
    kwargs: Mapping[str, Tensor],
    *,
    tokenizer: Any = None,
    valid: Tensor | None = None,
    tower: str | None = None,
) -> Roles:
    """The roles of a tower's positions (`tower=None`: the main one) under the arguments the model is called with."""
    ids = kwargs.get("input_ids")
    if ids is None:
        raise NotImplementedError("image towers arrive with the next commit")
    valid = torch.ones_like(ids, dtype=torch.bool) if valid is None else valid
    return replace(plain(valid), kind=text_kinds(ids, valid, *special_ids(config, tokenizer)))
