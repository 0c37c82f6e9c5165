"""What the Triton kernels are told about a mask: one run of keys per row, or lists of the blocks that must be visited.

A list names, for each tile of rows, the blocks of keys that some row sees, and for those seen in part a tile of bits;
the key-major kernels get the same lists by tile of keys. Blocks outside are never loaded. Memory is one byte per query
and key of blocks seen in part: linear in the number of tokens for masks that are local or made of spans.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from interp.kernels.request import Request

BYTES = 2**28


def run_of_keys(made: Request) -> tuple[Tensor, Tensor] | None:
    """The keys [low, high) of each row, [1 or batch, row], where every row of every head sees one run of keys."""
    return made.mask.interval(made.positions, made.keys)


def limits(made: Request) -> str | None:
    """Why the mask cannot be told."""
    if run_of_keys(made) is not None:
        return None
    bits = sum(high - low for low, high in _spans(made, 64)) * 64 * _copies(made)
    if bits <= BYTES:
        return None
    name = type(made.mask).__name__
    return f"mask {name} is not one run of keys per row, and its blocks may need {bits >> 20} MB of bits"


def _copies(made: Request) -> int:
    one = made.positions[:1]
    shape = made.mask.visible(one, one.clamp(0, made.keys - 1)).shape
    return shape[0] * shape[1]


def _spans(made: Request, step: int) -> list[tuple[int, int]]:
    """The keys [low, high) that each tile of rows can reach."""
    found = []
    for part in made.positions.split(step):
        low, high = made.mask.reach(int(part[0]), int(part[-1]), made.keys)
        found.append((max(0, low), max(0, low, min(high, made.keys))))
    return found


@dataclass(frozen=True, eq=False)
class Lists:
    """Class of each block, 0 where no row sees any key, and which tile of bits it has (-1: none, seen in full)."""

    visited: Tensor
    part: Tensor
    bits: Tensor

    def by_rows(self) -> dict[str, Tensor | int]:
        return self._listed(self.visited, self.part)

    def by_keys(self) -> dict[str, Tensor | int]:
        return self._listed(self.visited.transpose(2, 3), self.part.transpose(2, 3))

    def _listed(self, visited: Tensor, part: Tensor) -> dict[str, Tensor | int]:
        count = visited.sum(-1)
        most = max(1, int(count.max()))
        order = (~visited).int().sort(dim=-1, stable=True).indices[..., :most]
        batch, heads, tiles = count.shape
        tensors = {"COUNT": count, "INDEX": order, "PART": part.gather(-1, order)}
        listed: dict[str, Tensor | int] = {n: x.int().contiguous() for n, x in tensors.items()}
        return listed | {
            "BITS": self.bits, "most": most, "table_batch": heads * tiles if batch > 1 else 0,
            "table_head": tiles if heads > 1 else 0,
        }  # fmt: skip


def lists(made: Request, rows: int, keys: int) -> Lists:
    """The blocks of `rows` x `keys` that must be visited."""
    blocks = -(-made.keys // keys)
    visited, parts, bits, held = [], [], list[Tensor](), 0
    for part, (low, high) in zip(made.positions.split(rows), _spans(made, rows), strict=True):
        first, last = low // keys, -(-high // keys)
        seen = _seen(made, part, first * keys, min(last * keys, made.keys))
        seen = (
            pad(seen, (0, (last - first) * keys - seen.shape[-1])).unflatten(-1, (last - first, keys)).transpose(2, 3)
        )
        some = seen.flatten(3).any(-1)
        real = torch.arange(first * keys, last * keys, device=seen.device).view(-1, 1, keys) < made.keys
        partial = some & ~(seen | ~real).flatten(3).all(-1)
        at = torch.where(partial, partial.flatten().cumsum(0).view_as(partial) - 1 + held, -1)
        bits.append(pad(seen[partial], (0, 0, 0, rows - len(part))).byte())
        held += len(bits[-1])
        visited.append(pad(some, (first, blocks - last)))
        parts.append(pad(at, (first, blocks - last), value=-1))
    one = torch.zeros(1, rows, keys, dtype=torch.uint8, device=made.q.device)
    return Lists(torch.stack(visited, 2), torch.stack(parts, 2), torch.cat([*bits, one]).contiguous())


def _seen(made: Request, i: Tensor, low: int, high: int) -> Tensor:
    return made.mask.visible(i, torch.arange(low, high, device=i.device)).expand(-1, -1, len(i), -1)


def first_and_last(low: Tensor, high: Tensor, rows: int, keys: int, total: int) -> dict[str, Tensor | int]:
    """For each tile of keys the tiles of rows from the first to the last that see some of it."""
    tiles, blocks = -(-low.shape[1] // rows), -(-total // keys)
    more = (0, tiles * rows - low.shape[1])
    some = high > low
    begin = pad(torch.where(some, low, total), more, value=total).unflatten(1, (tiles, rows)).amin(2)
    end = pad(torch.where(some, high, 0), more).unflatten(1, (tiles, rows)).amax(2)
    at = torch.arange(blocks, device=low.device) * keys
    touched = ((end[..., None] > at) & (begin[..., None] < at + keys)).int()
    last = torch.where(touched.any(1), tiles - touched.flip(1).argmax(1), 0)
    return {
        "COUNT": last.int().contiguous(), "INDEX": touched.argmax(1).int().contiguous(), "most": 1,
        "table_batch": blocks if len(low) > 1 else 0, "table_head": 0,
    }  # fmt: skip
