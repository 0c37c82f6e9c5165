"""What requests to a served engine brought: the text, and what their heads did."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, overload

import torch
from torch import Tensor

from interp.hooks.errors import InputsError

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, eq=False)
class Answer:
    """One request.

    `z` is by layer ("L5"): [position, head, d] at `positions`, or reduced over them: [head, d] for "mean" and "sum",
    [head] for "norm". `stats` is by name and layer: [head, row, ...] at the same positions, [head, key] for those of
    keys, [head] where reduced. `heads` and `stat_heads` say by layer which heads these are; `count` is the number of
    positions that were read. Where `logprobs=True` was asked, `logprobs` [token] and `likeliest` are of the prompt's
    tokens after the first: the log-probability of each, and the token that the model would have said there.
    """

    text: str
    ids: tuple[int, ...]
    prompt: tuple[int, ...]
    z: Mapping[str, Tensor] = field(default_factory=dict)
    stats: Mapping[str, Mapping[str, Tensor]] = field(default_factory=dict)
    heads: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    stat_heads: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    positions: tuple[int, ...] = ()
    count: int = 0
    logprobs: Tensor | None = None
    likeliest: tuple[int, ...] = ()

    def at(self, head: str) -> Tensor:
        """z of one head, "L5.H3": [position, d], or as it was reduced."""
        layer, _, number = head.partition(".H")
        if layer not in self.z or not number.isdecimal() or int(number) not in self.heads[layer]:
            raise InputsError(f"no z of {head!r} here; there is {_spelled(self.heads)}.")
        place = self.heads[layer].index(int(number))
        value = self.z[layer]
        return value[:, place] if value.ndim == 3 else value[place]

    def __repr__(self) -> str:
        return f"Answer({self.text!r:.60}, {len(self.prompt)} + {len(self.ids)} tokens, {self.count} positions read)"


class Answers(Sequence[Answer]):
    """What was asked of an engine in one call, a request each, in the order of the prompts."""

    def __init__(self, found: Sequence[Answer], meta: Mapping[str, Any]) -> None:
        self._found, self.meta = tuple(found), dict(meta)

    def __len__(self) -> int:
        return len(self._found)

    @overload
    def __getitem__(self, at: int) -> Answer: ...
    @overload
    def __getitem__(self, at: slice) -> Answers: ...
    def __getitem__(self, at: int | slice) -> Answer | Answers:
        return Answers(self._found[at], self.meta) if isinstance(at, slice) else self._found[at]

    def __iter__(self) -> Iterator[Answer]:
        return iter(self._found)

    def __repr__(self) -> str:
        heads = self._found[0].heads or self._found[0].stat_heads if self._found else {}
        return f"Answers({len(self)} requests, {_spelled(heads)})"

    def z(self, layer: str) -> Tensor:
        """Reduced z of all requests: [request, head, d] or [request, head]."""
        if self.meta.get("reduce") is None:
            raise InputsError("z was kept at every position, so requests differ in length: read answers[n].z.")
        return torch.stack([one.z[layer] for one in self._found])

    def to_frame(self) -> pd.DataFrame:
        """A row for each request, head and statistic that is one number: reduced statistics, and norms."""
        import pandas as pd

        rows: list[dict[str, Any]] = []
        for n, one in enumerate(self._found):
            norms = {"norm": one.z} if self.meta.get("reduce") == "norm" else {}
            for name, layers in {**one.stats, **norms}.items():
                for layer, values in layers.items():
                    heads = (one.heads if name == "norm" else one.stat_heads)[layer]
                    if values.ndim == 1:
                        rows += [{"request": n, "head": f"{layer}.H{h}", "statistic": name, "value": float(v)}
                                 for h, v in zip(heads, values, strict=True)]  # fmt: skip
        return pd.DataFrame(rows, columns=["request", "head", "statistic", "value"])


def _spelled(heads: Mapping[str, Sequence[int]]) -> str:
    return ", ".join(f"{layer}.H{','.join(map(str, some))}" for layer, some in heads.items()) or "no heads"
