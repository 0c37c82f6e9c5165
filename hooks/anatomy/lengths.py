"""How many positions a model has, as its config says: the one list of names for it."""

from __future__ import annotations

from typing import Any

from interp.hooks.errors import InputsError

LEARNED = ("n_positions", "context")
"""Of embeddings that are looked up, which end somewhere."""
NAMES = (*LEARNED, "max_position_embeddings", "max_sequence_length")
"""What configs call the length they were made for; rotary embeddings go on beyond it."""


def longest(config: Any, *, learned: bool = False) -> int | None:
    """The positions that the config names, the smallest number where there are several; None where it names none.
    `learned` looks only for positions beyond which a model cannot read."""
    found = [getattr(config, name, None) for name in (LEARNED if learned else NAMES)]
    return min((one for one in found if isinstance(one, int) and one > 0), default=None)


def length_read(config: Any, max_tokens: int | None) -> int | None:
    """How many tokens of a text are read: no more than there are positions, and no more than asked for."""
    limit = longest(config)
    if max_tokens is not None and (max_tokens < 2 or (limit is not None and max_tokens > limit)):
        raise InputsError(f"max_tokens is from 2 to the model's {limit} positions, got {max_tokens}.")
    return max_tokens if max_tokens is not None else limit
