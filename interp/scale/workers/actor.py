"""What runs in a worker's process: it makes the work once, then computes cells of it and hands the numbers back.

The class that Ray is given is defined inside a function, so that it travels by its code: a worker that has no `interp`,
or another version of it, can say so in words.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from interp.cells.work import Finished, Work
from interp.hooks.errors import BudgetError, ModelError
from interp.hooks.run.session import edits_on
from interp.provenance import code, model_hash, versions
from interp.scale.workers.pieces import joined
from interp.scale.workers.transport import unpacked


def worker_class() -> type:
    """The class of Ray's actors."""

    class Worker:
        def start(self, said: Any, path: list[str], pickled: bytes, refs: list[Any], *how: Any) -> None:
            import os
            import sys

            import ray

            sys.path += [folder for folder in path if folder not in sys.path and os.path.isdir(folder)]
            from interp.scale.workers import actor

            self.work = actor.made(said, pickled, ray.get(refs), *how)

        def compute(self, low: int, high: int) -> Any:
            from interp.scale.workers import actor

            return actor.computed(self.work, low, high)

    return Worker


def said() -> dict[str, str]:
    """What has to be the same on both sides for a pickle to mean the same."""
    return {**dict(versions()), **code()}


def made(said_there: Mapping[str, str], pickled: bytes, arrays: Sequence[Any], on_device: bool, threads: int) -> Work:
    """The work, once its model has been laid over the shared memory; the same as the driver's, or an error."""
    mine = said()
    other = {name: (said_there[name], mine.get(name)) for name in said_there if said_there[name] != mine.get(name)}
    if other:
        listed = ", ".join(f"{name} {a} there and {b} here" for name, (a, b) in other.items())
        raise ModelError(f"a worker has other versions than the program that called it: {listed}. Install the same.")
    torch.set_num_threads(threads)
    to = torch.accelerator.current_accelerator() if on_device else torch.device("cpu")
    if to is None:
        raise ModelError("Ray gave a worker part of a device, and torch sees no accelerator there: install that build.")
    recipe, model, theirs = unpacked(pickled, arrays, to)
    if to.type != "cpu" and model.device.type == "cpu":
        model.module.to(to)
    work: Work = recipe.make(model)
    _must_be_the_same(facts(work), theirs)
    return work


def facts(work: Work) -> dict[str, Any]:
    """What tells a work from others, as far as another process may have it differ: the model, first of all."""
    edits = [edit.written for edit in edits_on(work.model.module)]
    return {"model": model_hash(work.model.module), "edits": edits, "cells": work.count, "names": dict(work.names),
            "products": work.product}  # fmt: skip


def _must_be_the_same(mine: Mapping[str, Any], theirs: Mapping[str, Any]) -> None:
    other = next((name for name in theirs if theirs[name] != mine[name]), None)
    if other is not None:
        raise ModelError(
            f"a worker has other work than the program that called it: its {other} is {mine[other]!r:.200}, the"
            f" caller's {theirs[other]!r:.200}. A model that a worker loads by name has to be the one that was given,"
            " and edits around the call (m.edited) do not reach a worker."
        )


def computed(work: Work, low: int, high: int) -> Finished:
    """Cells of the work; where memory runs out, one half and then the other."""
    if (found := _within(work, low, high)) is not None:
        return found
    if high - low == 1:
        raise BudgetError(f"memory ran out on the single cell {low}: fewer examples, or a larger machine for a worker.")
    middle = (low + high) // 2
    halves = [computed(work, low, middle), computed(work, middle, high)]
    return joined((low, high), {one[0]: (one[1], one[2], one[3]) for one in halves})


def _within(work: Work, low: int, high: int) -> Finished | None:
    try:
        return low, high, *work.compute(low, high)
    except MemoryError as why:
        if isinstance(why, BudgetError):
            raise  # somebody halved already
    except RuntimeError as why:
        if not isinstance(why, torch.OutOfMemoryError) and "can't allocate memory" not in str(why):
            raise
    if torch.accelerator.is_available():
        torch.accelerator.memory.empty_cache()
    return None
