"""Pruning heads: the ones with the lowest scores masked, or cut out of the weights.

Michel et al. 2019 (arXiv 1905.10650) and Voita et al. 2019 (arXiv 1905.09418): most heads can go, if the right ones do.
`scores` say which: any number per head, larger for what shall stay, whoever found it. Masking makes a head write zero
by an edit, in any model. Cutting takes its rows and columns out of a copy of the weights, which then is smaller and
faster (`interp/pruning/cut.py`), and is compared with the masked model each time. With `schedule=` a callable scores
what is left again after every step.
Cost: masking none; cutting a copy of the model, three forward passes, a backward pass into one attention per head, and
the checks of first use on the copy; a schedule one copy of the model and one scoring a step.
Limits: a kv group is cut only when all heads that read it go, and in every layer one group stays; heads that should
have gone there are silent, not cut. A layer that runs several times has one set of weights: a cut and a schedule take a
head out of all its passes, by the mean of their scores, and say so; a mask may act in one pass. A score from single
heads does not see that two of them can replace each other: see `.curve(...)`, which compares it with random and
magnitude baselines.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, get_args

from interp.hooks.errors import InputsError
from interp.provenance import about
from interp.pruning.choose import Rescore, Scores, best, even, every, means, scored, shares, units, wanted
from interp.pruning.cut import cut, masks, silenced
from interp.pruning.pruned import How, Pruned
from interp.pruning.remains import remains
from interp.records import Method, register

if TYPE_CHECKING:
    from interp.model import Model


def prune(
    model: Model,
    scores: Scores | Rescore,
    *,
    keep_fraction: float | None = None,
    keep: int | None = None,
    how: How = "mask",
    uniform: bool = False,
    schedule: int | Sequence[float] | None = None,
) -> Pruned:
    """Keep the best `keep` or `keep_fraction` of the heads that have scores; the model itself stays as it is.

    `scores` is a mapping from site to number, a result of `interp.importance`, `gates`, `patch` (by magnitude) and so
    on, or a function of a model that gives one of these. With `schedule` (a number of steps, or the shares kept along
    the way) the function is called before each step, on a copy in which the heads gone so far write nothing.
    `uniform=True` keeps equally many kv groups in each layer, so that the cut model is one that transformers can load.
    """
    if how not in get_args(How):
        raise InputsError(f"how is one of {', '.join(map(repr, get_args(How)))}, got {how!r}.")
    if schedule is not None and not callable(scores):
        raise InputsError("a schedule scores heads again at each step: give a function of a model as scores.")
    anatomy = model.ready()
    found = scored(anatomy, scores(model) if callable(scores) else scores)
    groups = units(anatomy, found, shared=how == "cut" or schedule is not None)
    _say_passes(groups)
    gone: list[str] = []
    steps: list[dict[str, Any]] = []
    for share in shares(wanted(len(groups), keep_fraction, keep), schedule):
        if steps and callable(scores):
            found = scored(anatomy, scores(silenced(model, remains(model, every(gone, groups)))))
        mean = means(found, groups)
        gone = even(anatomy, mean, share, gone) if uniform else best(mean, share, gone)
        steps.append({"kept": len(groups) - len(gone), "gone": sorted(every(gone, groups))})
    found = {name: mean[first] for first, names in groups.items() for name in names}
    gone = every(gone, groups)
    rests = remains(model, gone)
    made = cut(model, rests, masks(model, gone)) if how == "cut" else model
    meta = {**about(model.module, None), "method": "prune", "how": how, "uniform": uniform, "steps": steps}
    return Pruned(model, made, how, found, tuple(name for name in found if name in gone), rests, meta)


def _say_passes(groups: Mapping[str, Sequence[str]]) -> None:
    """Heads whose weights serve several passes go from all of them."""
    several = next((names for names in groups.values() if len(names) > 1), None)
    if several is not None:
        warnings.warn(
            f"{several[0]} to {several[-1]} are {len(several)} passes of one head and share its weights: a head is"
            " removed from all passes of its layer, by the mean of their scores.",
            stacklevel=3,
        )


register(
    Method(
        "interp.prune",
        number="which heads go; kept and cut are counted in heads, kv groups and parameters",
        shown="curve",
        needs=("result",),
        passes=lambda t: 0,
        values=None,
        example=lambda t: prune(t.model, {name: float(n) for n, name in enumerate(t.names)}, keep_fraction=0.5),
    )
)
