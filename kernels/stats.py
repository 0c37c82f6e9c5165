"""The names of attention statistics, and what can be done to their results.

Per row i with final weights p (after all edits but the gate) over visible keys, shape [batch, head, row]:

lse          natural log-sum-exp of the edited scores, without the learned sink; -inf where nothing is visible
entropy      -sum p ln p
max, argmax  the largest weight and its key, the lowest key on ties, -1 where nothing is visible
topk:K       the K largest [batch, head, row, K]; with it `topk:K.keys`; weight 0 and key -1 past the visible ones
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

A new one is a `Kind` in `KINDS` and its definition in `reference.STATS`; a fast implementation that has it as well says
so in its own `STATS`, and until then refuses it by name.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from interp.kernels.errors import AttentionError, known

Reduction = Literal["sum", "mean", "max"]


@dataclass(frozen=True)
class Kind:
    """A statistic there is: its name, what each number is of, what follows the colon, what it reads of a request in
    addition to the weights, and of one per key whether the numbers of chunks of queries add up.
    """

    name: str
    per: Literal["row", "key"] = "row"
    argument: str = ""
    reads: tuple[str, ...] = ()
    adds: bool = False


_ALL = (
    Kind("lse"), Kind("entropy"), Kind("max"), Kind("argmax"), Kind("topk", argument="K"),
    Kind("distance", reads=("places",)), Kind("first", reads=("first",)), Kind("previous"), Kind("self"), Kind("sink"),
    Kind("mass", argument="NAME", reads=("key_sets",)), Kind("received", "key", adds=True),
    Kind("seen", "key", adds=True), Kind("received_mean", "key"),
)  # fmt: skip
KINDS: dict[str, Kind] = {k.name: k for k in _ALL}


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
        return known(KINDS, self.kind, "statistic").per == "key"

    @property
    def k(self) -> int:
        return int(self.argument)

    def reads(self, part: str) -> bool:
        """Whether it is computed from this part of a request: `places`, `first` or `key_sets`."""
        return part in known(KINDS, self.kind, "statistic").reads


def parse(name: str | Stat) -> Stat:
    """`entropy`, `topk:8`, `mass:image` as a Stat."""
    if isinstance(name, Stat):
        return name
    kind, _, argument = name.partition(":")
    if kind not in KINDS:
        near = difflib.get_close_matches(kind, KINDS, n=1)
        raise AttentionError(
            f"no statistic {name!r}; there are {', '.join(KINDS)}" + (f". Meant {near[0]}?" if near else "")
        )
    wanted = KINDS[kind].argument
    if bool(wanted) != bool(argument):
        raise AttentionError(
            f"statistic {name!r}: "
            + (f"such names need `:argument`: {kind}:{wanted}" if wanted else "takes no argument")
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
    reduce = known(_REDUCTIONS, how, "reduce_groups")
    indices = [n for n in stats if not stats[n].is_floating_point() and n != "seen"]
    if indices:
        raise AttentionError(f"{', '.join(indices)}: indices of keys cannot be reduced over heads; leave them out")
    return {n: reduce(x.unflatten(1, (kv_heads, -1))) for n, x in stats.items()}


_REDUCTIONS: dict[Reduction, Callable[[Tensor], Tensor]] = {
    "sum": lambda x: x.sum(2),
    "mean": lambda x: x.mean(2) if x.is_floating_point() else x.sum(2),
    "max": lambda x: x.amax(2),
}


def concat(parts: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Statistics of consecutive chunks of queries (a chunked prefill) as those of one run, exactly.

    A later chunk may know more keys than an earlier one. `received_mean` needs `seen` in every part.
    """
    names = set(parts[0])
    if any(set(p) != names for p in parts):
        raise AttentionError(f"chunks carry different statistics: {[sorted(p) for p in parts]}")
    if "received_mean" in names and not {"received", "seen"} <= names:
        raise AttentionError("`received_mean` is merged over chunks from `received` and `seen`; ask for these as well")
    merged = {n: _merged(n, [p[n] for p in parts]) for n in parts[0] if n != "received_mean"}
    if "received_mean" in names:
        merged["received_mean"] = ratio(merged["received"], merged["seen"])
    return merged


def _merged(name: str, parts: Sequence[Tensor]) -> Tensor:
    kind = KINDS[parse(name.removesuffix(".keys")).kind]
    if kind.per == "row":
        return torch.cat(list(parts), dim=2)
    if not kind.adds:
        raise AttentionError(f"`{name}` of chunks of queries does not add up to that of the whole; ask for one run")
    keys = max(p.shape[-1] for p in parts)
    return torch.stack([torch.nn.functional.pad(p, (0, keys - p.shape[-1])) for p in parts]).sum(0)


def ratio(total: Tensor, count: Tensor) -> Tensor:
    """total / count, 0 where nothing was counted."""
    return torch.where(count > 0, total / count.clamp(min=1), torch.zeros_like(total))
