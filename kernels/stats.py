"""The names of attention statistics, and what can be done to their results.

Per row i with final weights p (after all edits but the gate) over visible keys, shape [batch, head, row]:

lse          natural log-sum-exp of the edited scores, without the learned sink; -inf where nothing is visible
entropy      -sum p ln p
max, argmax  the largest weight and its key, the lowest key on ties, -1 where nothing is visible
topk:K       the K largest [batch, head, row, K]; beside it `topk:K.keys`; weight 0 and key -1 past the visible ones
distance     sum p |i - j|, or the Euclidean distance of the places on a grid where they are given
first        weight on the first non-pad key
previous     weight on key i - 1
self         weight on key i
sink         the learned sink's own probability; rows then sum to 1 - sink (rows that see nothing: 1)
mass:NAME    weight on a named key set

Per key j, shape [batch, head, key]:

received       sum over rows of p_ij
seen           number of rows that see j
received_mean  their ratio, 0 where no row sees j

All are reduced in fp32 (fp64 for fp64 input). Rows that see nothing give 0, and `Attended.counts["blind"]` counts them.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from interp.kernels.errors import AttentionError

ROW = ("lse", "entropy", "max", "argmax", "topk", "distance", "first", "previous", "self", "sink", "mass")
KEY = ("received", "seen", "received_mean")
ARGUMENT = ("topk", "mass")
Reduction = Literal["sum", "mean", "max"]


@dataclass(frozen=True)
class Stat:
    """A parsed name."""

    kind: str
    argument: str = ""

    @property
    def name(self) -> str:
        return f"{self.kind}:{self.argument}" if self.argument else self.kind

    @property
    def per_key(self) -> bool:
        return self.kind in KEY

    @property
    def k(self) -> int:
        return int(self.argument)


def parse(name: str | Stat) -> Stat:
    """`entropy`, `topk:8`, `mass:image` as a Stat."""
    if isinstance(name, Stat):
        return name
    kind, _, argument = name.partition(":")
    if kind not in ROW + KEY:
        near = difflib.get_close_matches(kind, ROW + KEY, n=1)
        raise AttentionError(
            f"no statistic {name!r}; there are {', '.join(ROW + KEY)}" + (f". Meant {near[0]}?" if near else "")
        )
    if (kind in ARGUMENT) != bool(argument):
        raise AttentionError(
            f"statistic {name!r}: "
            + ("`topk` and `mass` need `:argument`" if kind in ARGUMENT else "takes no argument")
        )
    if kind == "topk" and not (argument.isdecimal() and int(argument) >= 1):
        raise AttentionError(f"statistic {name!r}: `topk:K` needs a whole number of at least 1")
    return Stat(kind, argument)


def parse_all(names: Iterable[str | Stat] | str | None) -> tuple[Stat, ...]:
    """The statistics asked for, once each."""
    given = (names,) if isinstance(names, str) else tuple(names or ())
    return tuple(dict.fromkeys(parse(n) for n in given))


def reduce_groups(stats: Mapping[str, Tensor], kv_heads: int, how: Reduction) -> dict[str, Tensor]:
    """The query heads of each kv head taken together: [batch, kv head, ...]."""
    if how not in ("sum", "mean", "max"):
        raise AttentionError(f"reduce_groups is 'sum', 'mean' or 'max'; got {how!r}")
    indices = [n for n in stats if not stats[n].is_floating_point() and n != "seen"]
    if indices:
        raise AttentionError(f"{', '.join(indices)}: indices of keys cannot be reduced over heads; leave them out")
    return {n: _grouped(x.unflatten(1, (kv_heads, -1)), how) for n, x in stats.items()}


def _grouped(x: Tensor, how: Reduction) -> Tensor:
    if how == "max":
        return x.amax(2)
    return x.sum(2) if how == "sum" or not x.is_floating_point() else x.mean(2)


def concat(parts: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Statistics of consecutive chunks of queries (a chunked prefill) as those of one run, exactly.

    A later chunk may know more keys than an earlier one. `received_mean` needs `seen` in every part.
    """
    names = set(parts[0])
    if any(set(p) != names for p in parts):
        raise AttentionError(f"chunks carry different statistics: {[sorted(p) for p in parts]}")
    if "received_mean" in names and not {"received", "seen"} <= names:
        raise AttentionError("`received_mean` is merged over chunks from `received` and `seen`; ask for these as well")
    merged = {n: _merged(n, [p[n] for p in parts]) for n in parts[0]}
    if "received_mean" in names:
        merged["received_mean"] = ratio(merged["received"], merged["seen"])
    return merged


def _merged(name: str, parts: Sequence[Tensor]) -> Tensor:
    if not parse(name.removesuffix(".keys")).per_key:
        return torch.cat(list(parts), dim=2)
    keys = max(p.shape[-1] for p in parts)
    return torch.stack([torch.nn.functional.pad(p, (0, keys - p.shape[-1])) for p in parts]).sum(0)


def ratio(total: Tensor, count: Tensor) -> Tensor:
    """total / count, 0 where nothing was counted."""
    return torch.where(count > 0, total / count.clamp(min=1), torch.zeros_like(total))
