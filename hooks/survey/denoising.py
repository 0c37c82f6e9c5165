"""The towers of a denoiser: its stacks are one sequence of layers, whatever lists they are written in.

Joint and single blocks of one sequence (Flux, AuraFlow, HunyuanVideo) are one tower `denoiser`, numbered as they run;
so are all levels of a U-Net. Attention to words from cells is `cross`; layers that see words alone, before the denoiser
reads them, are `text`. Whatever attends over another part of the tokens (a second attention over cells alone) is a
tower of its own.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from interp.hooks.denoisers.layout import Layout, layout
from interp.hooks.errors import UnknownPositions
from interp.hooks.survey.attending import Seen


def stacks_of(root: nn.Module, seen: Sequence[Seen], inputs: Mapping[str, Any]) -> dict[str, list[Seen]]:
    """The members of each tower by its name, of what was seen in the order it ran."""
    sizes = "UNet" in type(root).__name__  # attends at several sizes of one picture
    groups: dict[tuple[bool, int | None], list[Seen]] = {}
    for one in seen:
        groups.setdefault((one.cross, None if sizes else one.length), []).append(one)
    tokens = _tokens(root, inputs)
    found: dict[str, list[Seen]] = {}
    for (cross, length), members in sorted(groups.items(), key=lambda item: -len(item[1])):
        for part in _apart(members):
            found[_free(_called(tokens, length, cross=cross), found)] = part
    return found


def _tokens(root: nn.Module, inputs: Mapping[str, Any]) -> Layout | None:
    """The tokens of the traced call, where they are known."""
    try:
        return layout(root, inputs)
    except UnknownPositions:
        return None


def _called(tokens: Layout | None, length: int | None, *, cross: bool) -> str:
    """What layers over so many tokens are called."""
    words = None if tokens is None or tokens.apart else tokens.words
    if words is not None and length is not None and length <= words.shape[1]:
        return "text"
    return "cross" if cross else "denoiser"


def _apart(members: Sequence[Seen]) -> list[list[Seen]]:
    """Attentions of one block one beside the other are different stacks."""
    count: Counter[str] = Counter()
    parts: list[list[Seen]] = []
    for one in members:
        block = one.name.rpartition(".")[0]
        count[block] += 1
        if len(parts) < count[block]:
            parts.append([])
        parts[count[block] - 1].append(one)
    return parts


def _free(name: str, taken: Mapping[str, Any]) -> str:
    return name if name not in taken else f"{name}{sum(t.rstrip('0123456789') == name for t in taken) + 1}"
