"""The tree of tokens that a pattern draws: each token hangs on one that it looks at, and one token on none.

DependencyViT (arXiv 2304.03282) reads dependencies of patches off reversed attention, summed over heads. Here the tree
is the one of the largest total log weight among all trees (Chu and Liu 1965, Edmonds 1967), so that it has no circle,
which each token's own largest weight may have. What a token gives to itself counts for its being the root.
"""

from __future__ import annotations

import math

from jaxtyping import Float
from torch import Tensor

from interp.hooks.errors import InputsError

LEAST = 1e-12
"""Weights below this count as this."""


def dependency_tree(pattern: Float[Tensor, "row key"], *, root: int | None = None) -> list[int]:
    """For each token its parent in the tree, -1 for the root; `pattern` is of one head, or of several added up."""
    n = pattern.shape[0]
    if pattern.shape[1] != n or n == 0 or not bool((pattern >= 0).all()):
        raise InputsError(
            f"a tree is of tokens that look at each other: expected weights of at least 0, [token, token], got"
            f" {list(pattern.shape)} from {float(pattern.min()) if pattern.numel() else math.nan:.3g} on."
        )
    if root is not None and not 0 <= root < n:
        raise InputsError(f"root is one of {n} tokens, counted from 0, got {root}.")
    scores = pattern.double().clamp(min=LEAST).log().tolist()
    worst = -2 * n * (abs(math.log(LEAST)) + max(max(map(abs, row)) for row in scores))
    for v in range(n):
        allowed = root is None or v == root
        scores[v] = [-math.inf if u == v else scores[v][u] for u in range(n)] + [
            scores[v][v] + worst if allowed else -math.inf
        ]
    found = _arborescence([*scores, [-math.inf] * (n + 1)], n)
    return [-1 if parent == n else parent for parent in found[:n]]


def _arborescence(scores: list[list[float]], root: int) -> list[int]:
    """The parents of the tree of the largest total score; `scores[v][u]` of v hanging on u."""
    n = len(scores)
    parent = [root if v == root else max(range(n), key=scores[v].__getitem__) for v in range(n)]
    circle = _circle(parent, root)
    if circle is None:
        return parent
    outside = [v for v in range(n) if v not in circle]
    leaves = [max(circle, key=scores[v].__getitem__) for v in outside]
    gain = {u: {v: scores[v][u] - scores[v][parent[v]] for v in circle} for u in outside}
    enters = [max(circle, key=gain[u].__getitem__) for u in outside]
    small = [[scores[v][u] for u in outside] + [scores[v][leaf]] for v, leaf in zip(outside, leaves, strict=True)]
    small.append([gain[u][v] for u, v in zip(outside, enters, strict=True)] + [-math.inf])
    inner = _arborescence(small, outside.index(root))
    for at, v in enumerate(outside):
        if v != root:
            parent[v] = leaves[at] if inner[at] == len(outside) else outside[inner[at]]
    parent[enters[inner[-1]]] = outside[inner[-1]]
    return parent


def _circle(parent: list[int], root: int) -> list[int] | None:
    for start in range(len(parent)):
        path: list[int] = []
        v = start
        while v != root and v not in path:
            path.append(v)
            v = parent[v]
        if v != root:
            return path[path.index(v) :]
    return None
