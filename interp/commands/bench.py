"""`interp bench MODEL`: what looking costs on this machine, with your model: ratios, each against its plain form.

Sides take turns, so that what else the machine does falls on both; the median of each side's times is compared.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from statistics import median
from typing import Any

from interp.commands import options as common
from interp.hooks.head_names import head_name, head_place

BENCH = """examples:
  interp bench zoo:ioi
  interp bench ./my-checkpoint --task ioi -n 8 --repeats 9 --json"""


def add(commands: common.Commands) -> None:
    """The command."""
    parser = common.command(commands, "bench", "what recording and patching cost with your model here", BENCH, run)
    common.about_model(parser)
    common.about_task(parser)
    parser.add_argument("--repeats", type=int, default=5, help="times each side is run")


def run(options: argparse.Namespace) -> int:
    """Four ratios."""
    from interp.commands.opening import model_of, task_of

    model = model_of(options)
    options.n = options.n or (None if "planted" in options.model else 8)
    found = measured(model, task_of(model, options), max(1, options.repeats))
    lines = [f"{row['what']:<44} {row['ratio']:7.2f}   ({row['plain']})" for row in found]
    common.answer(options, "\n".join(["ratio of medians", *lines]), rows=found)
    return 0


def measured(model: Any, task: Any, repeats: int) -> list[dict[str, Any]]:
    """Rows: what, plain form, seconds of both, their ratio."""
    import torch

    x = task.clean
    kwargs = model.called_with(x.kwargs)
    every = [f"{name}.L*.z" if len(model.ready().towers) > 1 else "L*.z" for name in model.towers]

    def bare() -> None:
        with torch.no_grad():
            model.module(**kwargs)

    heads, loop = _sweeps(model, task)
    pairs = [
        ("m.run with nothing recorded", "bare forward pass", lambda: model.run(x), bare),
        ("recording every z", "bare forward pass", lambda: model.run(x, record=every), bare),
        ("all heads patched at once", "a loop of full passes, one a head", heads, loop),
    ]
    return [_pair(what, plain, one, other, repeats) for what, plain, one, other in pairs]


def _sweeps(model: Any, task: Any) -> tuple[Callable[[], Any], Callable[[], Any]]:
    """The heads of the tower that answers, patched by replay and by a full pass each."""
    from interp.hooks.edits.edits import Set
    from interp.patching.patch import patch

    name = model.anatomy.main or next(iter(model.towers))
    tower = None if len(model.towers) == 1 else name
    prefix = "" if tower is None else f"{tower}."
    sites = [f"{head_name(tower, layer.index, h)}.z" for layer in model.towers[name].layers for h in range(layer.heads)]
    tape = model.run(task.clean, record=f"{prefix}L*.z")

    def replayed() -> Any:
        return patch(model, base=task.corrupt, source=task.clean, metric=task.metric, sites=sites)

    def looped() -> Any:
        for site in sites:
            _, layer, head = head_place(site)
            value = tape[f"{prefix}L{layer}.z"][:, :, head : head + 1]
            task.metric(model.run(task.corrupt, edits=[Set(site, value=value)])["logits"], task.corrupt)

    return replayed, looped


def _pair(what: str, plain: str, one: Callable[[], Any], other: Callable[[], Any], repeats: int) -> dict[str, Any]:
    from tqdm import tqdm

    times: tuple[list[float], list[float]] = ([], [])
    for turn in tqdm(range(repeats + 1), desc=what, unit=" rounds", delay=2, leave=False, disable=None):
        for side, work in zip(times, (one, other), strict=True):
            start = time.perf_counter()
            work()
            if turn:  # the first turn warms up
                side.append(time.perf_counter() - start)
    mine, theirs = median(times[0]), median(times[1])
    return {"what": what, "plain": plain, "seconds": mine, "plain_seconds": theirs, "ratio": mine / theirs}
