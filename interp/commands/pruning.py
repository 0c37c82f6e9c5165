"""`interp prune`: switch off or cut away the heads that matter least, judge what is left, and save it."""

from __future__ import annotations

import argparse
from contextlib import nullcontext
from typing import Any

from interp.commands import options as common
from interp.commands import places
from interp.hooks.head_names import head_of

PRUNE = """examples:
  interp prune zoo:shapes-vit --keep-fraction 0.5 --out runs/half     # a smaller model, saved
  interp prune zoo:ioi --keep-fraction 0.7 --how mask --scores runs/ioi"""


def add(commands: common.Commands) -> None:
    """The command."""
    parser = common.command(commands, "prune", "remove the heads that matter least", PRUNE, run)
    common.about_model(parser)
    common.about_task(parser)
    parser.add_argument("--scores", metavar="DIR", help="rank heads by the report in DIR instead of patching now")
    parser.add_argument("--keep-fraction", type=float, default=0.7, help="share of heads that stay")
    parser.add_argument("--how", choices=common.Words("interp.pruning.pruned:How"), default="cut", metavar="HOW",
                        help="switch heads off, or cut their weights, one of: %(choices)s")  # fmt: skip
    parser.add_argument("--uniform", action="store_true", help="as many in each layer, so that AutoModel can load it")
    places.about_out(parser, "save the smaller model here")


def run(options: argparse.Namespace) -> int:
    """Score, prune, judge on held-out prompts, save."""
    from interp.commands.opening import model_of, saved, task_of, where
    from interp.pruning.prune import prune

    if options.how == "cut":
        places.empty(options.out)
    reported = _reported(options.scores) if options.scores else None
    model = model_of(options)
    task = task_of(model, options, 2 if reported is not None else 2 + _heads(model))
    scores = _patched(model, task, options.seed) if reported is None else reported
    made = prune(model, scores, keep_fraction=options.keep_fraction, how=options.how, uniform=options.uniform)
    held = task if task.recipe is None else task.heldout
    before, after = _accuracy(held, model, ()), _accuracy(held, made.model, made.edits)
    found = saved(made, options.out)
    prompts = f"{len(held)} {'prompts' if task.recipe is None else 'held-out prompts'}"
    text = f"{made!r}\nright answers on {prompts}: {before:.1%} before, {after:.1%} after{where(found)}"
    counts = {what: list(pair) for what, pair in made.counts.items()}
    common.answer(options, text, counts=counts, gone=list(made.gone), before=before, after=after, **found)
    return 0


def _reported(folder: str) -> dict[str, float]:
    """The size of each head's effect, by what its report ranks by."""
    from interp.heads.rows import read_rows
    from interp.reporting.steps.gathered import Gathered

    ranked = Gathered("", "", "", read_rows(folder), {}).ranked
    return {site: abs(value) for site, value in zip(ranked["site"], ranked["estimate"], strict=True)}


def _patched(model: Any, task: Any, seed: int) -> dict[str, float]:
    """The size of each head's effect, patched now in every tower."""
    from interp.cost import cost
    from interp.patching.patch import patch

    towers = model.ready().towers
    common.say(str(cost(model, task.clean, _heads(model) + 2)))
    found: dict[str, float] = {}
    for name in towers:
        sites = "L*.H*.z" if len(towers) == 1 else f"{name}.L*.H*.z"
        one = patch(model, base=task.clean, source=task.corrupt, metric=task.metric, sites=sites, seed=seed)
        found |= {head_of(site): abs(float(value)) for site, value in zip(one.sites, one.mean, strict=True)}
    return found


def _heads(model: Any) -> int:
    return sum(layer.heads for tower in model.ready().towers.values() for layer in tower.layers)


def _accuracy(task: Any, model: Any, edits: Any) -> float:
    """The share of right answers of the model under the edits."""
    with model.edited(edits) if edits else nullcontext():
        right = (task if task.model is model else task.on(model)).right()
    return sum(right) / len(right)
