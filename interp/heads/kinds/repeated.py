"""Random tokens, said several times and once: what heads are tried on so that only repetition can be looked for."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from interp.hooks.anatomy.lengths import longest
from interp.hooks.errors import InputsError
from interp.prompts.draw import stream
from interp.tasks.induction import bos, words

if TYPE_CHECKING:
    from interp.hooks.inputs.inputs import Inputs
    from interp.model import Model

LEAST = 4


def random_tokens(model: Model, n: int, length: int, repeats: int, seed: int) -> tuple[Inputs, Inputs]:
    """`n` rows of `length` different words said `repeats` times, and the same rows said once."""
    if n < 1 or length < 2 or repeats < 1:
        raise InputsError(f"expected n >= 1, length >= 2 and repeats >= 1; got {n}, {length}, {repeats}.")
    opening, pool = bos(model), words(model)
    fits = min(length, (room(model) - len(opening)) // repeats, len(pool))
    if fits < min(length, LEAST):
        raise InputsError(
            f"this model reads {room(model)} tokens and has {len(pool)} words, too few for {repeats} times {LEAST}"
            " random ones: use fewer repeats=."
        )
    rng = stream("head roles", seed, "train")
    rows = [rng.sample(pool, fits) for _ in range(n)]
    several, once = ([[*opening, *row * times] for row in rows] for times in (repeats, 1))
    return _inputs(model, several), _inputs(model, once)


def room(model: Model) -> int:
    """How many positions the model has; a large number where its config does not say."""
    return longest(model.config) or 1 << 30


def _inputs(model: Model, rows: list[list[int]]) -> Inputs:
    ids = torch.tensor(rows)
    return model.inputs({"input_ids": ids, "attention_mask": torch.ones_like(ids)})
