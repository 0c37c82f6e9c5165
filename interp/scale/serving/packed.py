"""Which tokens of a packed batch belong to which request.

An engine runs the tokens of all its running requests as one row without a batch axis: those of request r are at

    query_start_loc[r] .. query_start_loc[r + 1] - 1        and are in its text at    starts[r], starts[r] + 1, ...

A prompt may come in several steps (chunked prefill), then a token a step; a request that was preempted comes once more
from its first token. So each request keeps how many of its positions were taken (`Taken.done`): what is recorded is
taken once, however often it is computed, while edits act each time.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from interp.hooks.errors import EditError

Where = Literal["all", "prompt", "last", "generated"] | tuple[int, ...]
"""Positions of a request: all, its prompt's, its prompt's last, those generated after it, or numbers; negative ones
count from the end of the prompt."""


class PackedError(EditError):
    """An engine's batch that does not say which token is whose."""


@dataclass
class Taken:
    """A request that something is asked of: its row in the plan, its prompt's length, which set of edits it has (None
    for none), and how many of its positions were taken so far."""

    row: int
    prompt: int
    edits: int | None = None
    done: int = 0


@dataclass(frozen=True)
class Segment:
    """The tokens of one request in a step: rows `low` to `high` of the packed batch, the first at position `start`."""

    held: Taken
    low: int
    high: int
    start: int

    def positions(self, device: torch.device) -> Int[Tensor, " token"]:
        """Where its tokens are in the request."""
        return torch.arange(self.start, self.start + self.high - self.low, device=device)


def segments(
    held: Sequence[Taken | None], starts: Sequence[int], bounds: Sequence[int], tokens: int
) -> Iterator[Segment]:
    """The requests of a step that are ours, in the order of the batch; None for those of others.

    `bounds` is `query_start_loc`; raises where it does not fit the requests or the `tokens` of the batch.
    """
    count = len(held)
    if len(starts) != count or len(bounds) < count + 1:
        raise PackedError(f"the engine's batch names {count} requests, {len(starts)} starts and {len(bounds)} bounds.")
    ends = list(bounds[: count + 1])
    if ends[0] != 0 or any(a > b for a, b in pairwise(ends)) or ends[-1] > tokens:
        raise PackedError(f"bounds {ends} of the engine's batch do not cut its {tokens} tokens into requests.")
    for one, start, (low, high) in zip(held, starts, pairwise(ends), strict=True):
        if one is not None and high > low:
            yield Segment(one, low, high, int(start))


def chosen(where: Where, positions: Int[Tensor, " token"], prompt: int) -> Bool[Tensor, " token"]:
    """Which of these positions are meant in a request whose prompt has so many tokens."""
    if where == "all":
        return torch.ones_like(positions, dtype=torch.bool)
    if where == "prompt":
        return positions < prompt
    if where == "last":
        return positions == prompt - 1
    if where == "generated":
        return positions >= prompt
    if isinstance(where, tuple):
        wanted = [n if n >= 0 else prompt + n for n in where]
        return torch.isin(positions, torch.tensor(wanted, dtype=positions.dtype, device=positions.device))
    raise PackedError(f"positions are 'all', 'prompt', 'last', 'generated' or numbers, got {where!r}.")


def last_wanted(where: Where, prompt: int) -> int | None:
    """The last position that can be meant; None where it is not known beforehand."""
    if isinstance(where, tuple):
        return max((n if n >= 0 else prompt + n for n in where), default=-1)
    return prompt - 1 if where in ("prompt", "last") else None


@dataclass(frozen=True)
class PackedRows:
    """Tokens of a packed batch: their rows in it, the plan's row of each one's request, and their positions there."""

    index: Int[Tensor, " n"]
    owner: Int[Tensor, " n"]
    position: Int[Tensor, " n"]

    def __len__(self) -> int:
        return len(self.index)


def gathered(found: Sequence[Segment], where: Where, device: torch.device, *, fresh: bool = True) -> PackedRows:
    """The tokens at `where` of all these requests; with `fresh` only those that were not taken before."""
    index, owner, position = [], [], []
    for one in found:
        at = one.positions(device)
        keep = chosen(where, at, one.held.prompt)
        if fresh:
            keep &= at >= one.held.done
        kept = at[keep]
        index.append(kept - one.start + one.low)
        owner.append(torch.full_like(kept, one.held.row))
        position.append(kept)
    if not index:
        none = torch.empty(0, dtype=torch.long, device=device)
        return PackedRows(none, none, none)
    return PackedRows(torch.cat(index), torch.cat(owner), torch.cat(position))
