"""What is read from a block of scores after its softmax, and where results are written."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from threading import Lock

import torch
from torch import Tensor

from interp.kernels.cpu.sweep_edits import HIDDEN
from interp.kernels.errors import known
from interp.kernels.request import Found, Request
from interp.kernels.stats import Stat, ratio


@dataclass(eq=False)
class Outputs:
    """Where results are written."""

    made: Request
    z: Tensor | None
    lse: Tensor
    stats: Found = field(default_factory=dict)
    blind: int = 0
    unmoved: int = 0
    lock: Lock = field(default_factory=Lock)

    def count(self, blind: int, unmoved: int) -> None:
        with self.lock:
            self.blind += blind
            self.unmoved += unmoved

    def _room(self, name: str, shape: tuple[int, ...], like: Tensor) -> Tensor:
        with self.lock:
            if name not in self.stats:
                self.stats[name] = torch.zeros(shape, dtype=like.dtype, device=like.device)
            return self.stats[name]

    def put(self, name: str, b: int, heads: slice, at: slice, value: Tensor) -> None:
        shape = (self.made.batch, self.made.heads, len(self.made.rows), *value.shape[2:])
        self._room(name, shape, value)[b, heads, at] = value

    def add(self, name: str, b: int, heads: slice, low: int, value: Tensor) -> None:
        shape = (self.made.batch, self.made.heads, self.made.keys)
        self._room(name, shape, value)[b, heads, low : low + value.shape[-1]] += value

    def finished(self) -> Found:
        """The statistics asked for, under their names; keys of rows that see nothing are -1."""
        blind, found = self.lse == -torch.inf, {}
        for s in self.made.stats:
            mean = s.kind == "received_mean"
            found[s.name] = ratio(self.stats["received"], self.stats["seen"]) if mean else self.stats[s.name]
            if s.kind == "topk":
                found[s.name + ".keys"] = self.stats[s.name + ".keys"].masked_fill(blind.unsqueeze(-1), -1)
        return found

    def counts(self) -> Found:
        return {"blind": torch.tensor(self.blind), "unmoved": torch.tensor(self.unmoved)}


@dataclass(frozen=True)
class Place:
    """Example, kv head, and which of the rows asked for."""

    b: int
    kv: int
    at: slice

    def heads(self, group: int) -> slice:
        return slice(self.kv * group, (self.kv + 1) * group)


@dataclass(frozen=True, eq=False)
class Softmax:
    """Of the rows of a block: what normalises e, and what was found on the way."""

    lse: Tensor
    sink: Tensor
    share: Tensor
    factor: Tensor
    total: Tensor
    argmax: Tensor | None
    largest: Tensor
    blind: Tensor
    moved: bool


@dataclass(frozen=True, eq=False)
class ReadBlock:
    """Scores t less a number per row, e = exp(t) before its factor, [row of a head, key], keys from `low` on."""

    made: Request
    place: Place
    low: int
    t: Tensor
    e: Tensor
    row: Softmax

    @property
    def rows(self) -> int:
        return self.place.at.stop - self.place.at.start

    @property
    def positions(self) -> Tensor:
        return self.made.positions[self.place.at]

    def keys(self, keys: Tensor) -> Tensor:
        """Which keys of the block are in the set, in the dtype of e."""
        found = keys.to(self.e.device)[self.place.b if len(keys) > 1 else 0, self.low : self.low + self.e.shape[1]]
        return found.to(self.e.dtype)


def _argmax(s: Stat, of: ReadBlock) -> Tensor:
    assert of.row.argmax is not None
    return of.row.argmax.masked_fill(of.row.blind, -1)


def _entropy(s: Stat, of: ReadBlock) -> Tensor:
    """Overwrites t."""
    row, t = of.row, of.t
    if row.moved:
        return torch.special.entr(torch.mul(of.e, row.factor.unsqueeze(-1), out=t), out=t).sum(-1)
    log = row.total.log() - row.share
    return (row.share.exp() * log - row.factor * t.mul_(of.e).sum(-1)).masked_fill(row.blind, 0.0)


def _distance(s: Stat, of: ReadBlock) -> Tensor:
    i, j = of.positions, torch.arange(of.low, of.low + of.e.shape[1], device=of.e.device)
    if of.made.places is None:
        far = (i[:, None] - j[None, :]).abs()
    else:
        places = of.made.places.to(j.device)
        far = torch.cdist(places[i], places[j], compute_mode="donot_use_mm_for_euclid_dist")
    return (of.e.unflatten(0, (-1, of.rows)) * far.to(of.e.dtype)).sum(-1).flatten() * of.row.factor


def _on_first(s: Stat, of: ReadBlock) -> Tensor:
    assert of.made.first is not None
    return _on_key(of, of.made.first[of.place.b].expand(of.rows))


def _on_key(of: ReadBlock, at: Tensor) -> Tensor:
    """The weight of one key per row, 0 where it is not in the block."""
    heads = len(of.e) // of.rows
    inside = (at >= of.low) & (at < of.low + of.e.shape[1])
    column = (at - of.low).clamp(0, of.e.shape[1] - 1).repeat(heads)
    return of.e.gather(1, column[:, None]).squeeze(1) * inside.repeat(heads) * of.row.factor


ROWWISE: dict[str, Callable[[Stat, ReadBlock], Tensor]] = {
    "lse": lambda s, of: of.row.lse,
    "sink": lambda s, of: of.row.sink,
    "max": lambda s, of: of.row.largest,
    "argmax": _argmax,
    "distance": _distance,
    "first": _on_first,
    "previous": lambda s, of: _on_key(of, of.positions - 1),
    "self": lambda s, of: _on_key(of, of.positions),
    "mass": lambda s, of: of.e @ of.keys(of.made.key_sets[s.argument]) * of.row.factor,
    "entropy": _entropy,
}
SUMS = {"received": ("received",), "seen": ("seen",), "received_mean": ("received", "seen")}
"""What is added up over blocks, by statistic."""

STATS = frozenset({*ROWWISE, *SUMS, "topk"})


def summed(made: Request) -> set[str]:
    """All that must be added up over blocks."""
    return {name for s in made.stats if s.per_key for name in known(SUMS, s.kind, "statistic")}


def put_rows(out: Outputs, of: ReadBlock) -> None:
    """Write all statistics that have a number per row; entropy last, which overwrites the scores."""
    heads, at = of.place.heads(of.made.group), of.place.at
    for s in sorted(of.made.stats, key=lambda s: s.kind == "entropy"):
        if s.kind == "topk":
            for name, value in _topk(s, of).items():
                out.put(name, of.place.b, heads, at, value.unflatten(0, (-1, of.rows)))
        elif not s.per_key:
            value = known(ROWWISE, s.kind, "statistic")(s, of)
            out.put(s.name, of.place.b, heads, at, value.view(-1, of.rows))


def _topk(s: Stat, of: ReadBlock) -> Found:
    """By score; a row that sees nothing has t = 0 everywhere and is wiped by its factor, its keys in the end."""
    values, at = of.t.topk(min(s.k, of.t.shape[-1]), dim=-1)
    found = torch.where(values > HIDDEN / 2, of.e.gather(-1, at), 0.0) * of.row.factor[:, None]
    at = (at + of.low).masked_fill(values <= HIDDEN / 2, -1)
    pad = (0, s.k - at.shape[-1])
    return {
        s.name: torch.nn.functional.pad(found, pad),
        s.name + ".keys": torch.nn.functional.pad(at, pad, value=-1),
    }
