"""Is a circuit found again: on other prompts, on other templates, by the same search.

Searches give a score per prompt, so circuits of some prompts are cut from the same scores: no pass more. Overlap is
Jaccard's (shared edges over all edges of either), agreement of scores Spearman's rank correlation over all edges.

    halves     the two halves of the prompts, drawn `draws` times
    templates  each template's prompts against all the others
    new        prompts with other names and templates (the task's held-out part), searched anew

Cost: the searches. Limits: circuits of half as many prompts differ more than those of all would.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch

from interp.circuits.found.circuit import Circuit
from interp.circuits.found.edge_scores import Edges
from interp.circuits.real.verdict import Line
from interp.results.intervals import spearman
from interp.tasks.task import Task

ENOUGH = 0.5
"""Jaccard from which a circuit counts as the same one: a convention; results give the number too."""
Find = Callable[[Task], Edges]
Cut = Callable[[Edges], Circuit]


def stability(circuit: Circuit, scores: Edges, cut: Cut, groups: Sequence[str], *, draws: int, seed: int) -> list[Line]:
    """Lines of halves and templates."""
    found = [_pairs("halves of the prompts", scores, cut, _halves(scores, draws, seed))]
    names = list(dict.fromkeys(groups))
    if 1 < len(names) < len(groups):
        apart = [[n for n, one in enumerate(groups) if one == name] for name in names]
        pairs = [(some, [n for n in range(len(groups)) if n not in set(some)]) for some in apart]
        found.append(_pairs("a template against the others", scores, cut, pairs))
    else:
        found.append(Line("stability", "a template against the others", why=f"{len(names)} template(s) known"))
    again = float(circuit.meta.get("stability", "nan"))
    if again == again:
        found.append(Line("stability", "seeds of learning: Jaccard", again, holds=again >= ENOUGH))
    return found


def elsewhere(what: str, of: str, circuit: Circuit, own: Edges, scores: Edges, cut: Cut) -> list[Line]:
    """How alike a circuit and its scores are to what the same search finds on other prompts."""
    other = cut(scores)
    jaccard, rank = circuit.compare(other).jaccard, float(spearman(own.importance, scores.importance))
    n = scores.values.shape[1]
    return [Line(what, f"{of}: Jaccard", jaccard, holds=jaccard >= ENOUGH, n=n),
            Line(what, f"{of}: rank correlation", rank, holds=rank > 0, n=n)]  # fmt: skip


def _halves(scores: Edges, draws: int, seed: int) -> list[tuple[list[int], list[int]]]:
    count, random = scores.values.shape[1], torch.Generator().manual_seed(seed)
    orders = [torch.randperm(count, generator=random).tolist() for _ in range(draws)] if count > 1 else []
    return [(order[: count // 2], order[count // 2 :]) for order in orders]


def _pairs(of: str, scores: Edges, cut: Cut, pairs: list[tuple[list[int], list[int]]]) -> Line:
    if not pairs:
        return Line("stability", of, why="one prompt")
    sides = [(_some(scores, a), _some(scores, b)) for a, b in pairs]
    overlaps = torch.tensor([cut(a).compare(cut(b)).jaccard for a, b in sides])
    ranks = torch.stack([spearman(a.importance, b.importance) for a, b in sides])
    mean = float(overlaps.mean())
    return Line("stability", f"{of}: Jaccard", mean, float(overlaps.min()), float(overlaps.max()), None,
                mean >= ENOUGH, len(pairs), f"rank correlation of scores {float(ranks.mean()):.2f}")  # fmt: skip


def _some(scores: Edges, rows: list[int]) -> Edges:
    source = None if scores.source is None else scores.source[rows]
    return replace(scores, values=scores.values[:, rows], base=scores.base[rows], source=source)
