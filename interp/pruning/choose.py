"""Which heads stay: scores by head from whatever has them, and the best of them, in all or layer by layer."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from interp.hooks.anatomy.towers import Anatomy
from interp.hooks.errors import InputsError
from interp.hooks.head_names import head_name, heads_at, layer_name
from interp.hooks.run.writes import spelled
from interp.hooks.sites import layer_of, parse
from interp.results.effects import Effects

if TYPE_CHECKING:
    from interp.model import Model

Scores = Mapping[str, float] | Any
"""By site, or a result with a table of heads, or a callable from a model to either."""
Rescore = Callable[["Model"], Any]


def labels(anatomy: Anatomy) -> dict[str, tuple[str, int, int]]:
    """Every head there is, with its tower, layer and number."""
    return {
        head_name(spelled(anatomy, tower), layer.index, head): (name, layer.index, head)
        for name, tower in anatomy.towers.items()
        for layer in tower.layers
        for head in range(layer.heads)
    }


def scored(anatomy: Anatomy, scores: Scores) -> dict[str, float]:
    """A number per head, larger for what shall stay; heads without one are no candidates."""
    found: dict[str, float] = {}
    for text, value in _pairs(scores).items():
        spelled_out = f"{text}.z" if parse(text).component == "attention" else text
        for site in anatomy.sites(spelled_out):
            heads = anatomy.layer(site).heads_of(site) if site.layer is not None else ()
            if len(heads) != 1 or heads_at(site, heads)[0] in found:
                raise InputsError(f"scores are one number a head; {text!r} is not one head, or is there twice.")
            if not math.isfinite(value):
                raise InputsError(f"the score of {text} is {value}: every score has to be a finite number.")
            found[heads_at(site, heads)[0]] = float(value)
    if not found:
        raise InputsError("there are no scores.")
    return found


def units(anatomy: Anatomy, scores: Mapping[str, float], *, shared: bool) -> dict[str, tuple[str, ...]]:
    """What goes together, by its first name: each head alone or, where it is removed from the `shared` weights, with
    all passes of its layer, which then all need a score."""
    if not shared:
        return {name: (name,) for name in scores}
    passes: dict[tuple[str, int, int], list[str]] = {}
    for name, (tower, index, head) in labels(anatomy).items():
        passes.setdefault((tower, layer_of(index), head), []).append(name)
    found = {names[0]: tuple(names) for names in passes.values() if not scores.keys().isdisjoint(names)}
    for names in found.values():
        for lost in (name for name in names if name not in scores):
            raise InputsError(
                f"{lost} has no score, and other passes of the same head have one: they share its weights, so it is cut"
                " out of all of them. Give each a score, or one to all without naming a pass, as 'L0.H1'."
            )
    return found


def means(scores: Mapping[str, float], groups: Mapping[str, Sequence[str]]) -> dict[str, float]:
    """The mean score of each unit."""
    return {first: sum(scores[name] for name in names) / len(names) for first, names in groups.items()}


def every(firsts: Sequence[str], groups: Mapping[str, Sequence[str]]) -> list[str]:
    """All names in some units."""
    return [name for first in firsts for name in groups[first]]


def _pairs(scores: Scores) -> dict[str, float]:
    if isinstance(scores, Mapping):
        return {name: float(value) for name, value in scores.items()}
    methods = getattr(scores, "methods", None)
    if methods is not None and hasattr(scores, "scores"):
        if len(methods) != 1:
            raise InputsError(f"{len(methods)} measures were taken ({', '.join(methods)}): give scores.scores(one).")
        return dict(scores.scores(methods[0]))
    if not hasattr(scores, "to_frame"):
        raise InputsError(
            "scores are a mapping from site to number, a result with to_frame(), or a function of a model that gives"
            f" one of these; got {type(scores).__name__}."
        )
    frame = scores.to_frame()
    if not {"site", "estimate"} <= set(frame.columns):
        raise InputsError(f"{type(scores).__name__} has no estimate per site: give a mapping from site to number.")
    if "method" in frame.columns and frame["method"].nunique() > 1:
        raise InputsError(f"several methods ({', '.join(frame['method'].unique())}): give the scores of one.")
    numbers = frame["estimate"].abs() if isinstance(scores, Effects) else frame["estimate"]
    return dict(zip(frame["site"], numbers.tolist(), strict=True))


def wanted(count: int, keep_fraction: float | None, keep: int | None) -> float:
    """The share of `count` heads that stays."""
    if (keep is None) == (keep_fraction is None):
        raise InputsError("say how many heads stay: either keep_fraction= or keep=.")
    share = keep_fraction if keep_fraction is not None else (keep or 0) / count
    if not 0 <= share <= 1:
        raise InputsError(f"{share * count:g} of {count} heads cannot stay: give keep= or keep_fraction= within that.")
    return share


def shares(share: float, schedule: int | Sequence[float] | None) -> list[float]:
    """The shares that stay along a schedule: so many equal steps, or those listed; the last is the one asked for."""
    if schedule is None:
        return [share]
    if isinstance(schedule, int):
        if schedule < 1:
            raise InputsError(f"a schedule has at least one step; got {schedule}.")
        return [1 - (1 - share) * (n + 1) / schedule for n in range(schedule)]
    found = [*map(float, schedule), share]
    if any(b > a for a, b in pairwise([1.0, *found])):
        raise InputsError(f"shares along a schedule go down from 1 to {share:g}; got {list(schedule)}.")
    return list(dict.fromkeys(found))


def best(scores: Mapping[str, float], share: float, gone: Sequence[str] = ()) -> list[str]:
    """The heads that go: all but the best, those that are gone already first."""
    order = sorted(scores, key=lambda name: (name not in gone, scores[name]))
    return order[: len(scores) - round(share * len(scores))]


def even(anatomy: Anatomy, scores: Mapping[str, float], share: float, gone: Sequence[str] = ()) -> list[str]:
    """The heads that go where every layer keeps as many kv groups, at least one; a group counts as its heads' mean."""
    found, places = [], labels(anatomy)
    by_layer: dict[tuple[str, int], list[str]] = {}
    for name in scores:
        by_layer.setdefault(places[name][:2], []).append(name)
    for (tower, index), names in by_layer.items():
        layer = anatomy.towers[tower].layer(index)
        if len(names) != layer.heads:
            raise InputsError(f"uniform=True chooses among all heads of a layer; {layer_name(names[0])} has"
                              f" scores for {len(names)} of {layer.heads}.")  # fmt: skip
        groups = [[n for n in names if places[n][2] // layer.group == g] for g in range(layer.kv_heads)]
        groups.sort(key=lambda group: (group[0] not in gone, sum(scores[n] for n in group)))
        keep = max(1, round(share * layer.kv_heads))
        found += [n for group in groups[: layer.kv_heads - keep] for n in group]
    return found
