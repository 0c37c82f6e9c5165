"""Calls on which operators are tried, and the loop that holds them against a definition for one head.

A definition is a function of one head of one example, in float64 and without any of ours: q [n, d], k [m, d], v [m,
dv], what rows see [n, m] Bool, the scale, and which head and example it is; it gives the weights [n, m], or z where
there are none.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from interp.hooks.stand.part import Part
from interp.kernels.masks.symbols import Causal, Dense, Full, Mask, Window

QUERIES, KEYS, D = 11, 11, 4


def padded(side: str, queries: int, keys: int, lengths: tuple[int, ...] = (11, 6), causal: bool = True) -> Mask:
    """A Bool mask as transformers builds it: rows of padding see nothing."""
    at = torch.arange(keys)
    i = torch.arange(queries) + keys - queries
    real = torch.stack([at < n if side == "right" else at >= keys - n for n in lengths])
    seen = real[:, None, None, :] & ((at <= i[:, None]) if causal else (at >= 0).expand(queries, -1))
    return Dense(seen)


CALLS: dict[str, tuple[int, int, Callable[[int, int], Mask | None]]] = {
    "full": (11, 11, lambda n, m: None),
    "causal": (11, 11, lambda n, m: Causal()),
    "a step": (1, 11, lambda n, m: Causal()),
    "cached": (4, 11, lambda n, m: Causal()),
    "left": (11, 11, lambda n, m: padded("left", n, m)),
    "right": (11, 11, lambda n, m: padded("right", n, m)),
    "padded pictures": (11, 11, lambda n, m: padded("right", n, m, causal=False)),
    "window": (11, 11, lambda n, m: Causal() & Window(3)),
    "cross": (5, 11, lambda n, m: Full()),
    "short cross": (11, 5, lambda n, m: Full()),
    "one": (1, 1, lambda n, m: Causal()),
}
"""Queries, keys, and what they see."""


def part(name: str, *, heads: int = 4, kv: int = 2, d: int = D, dtype: torch.dtype = torch.float64, seed: int = 0,
         size: float = 1.0) -> Part:  # fmt: skip
    """Two examples of a call."""
    queries, keys, mask = CALLS[name]
    random = torch.Generator().manual_seed(seed)
    made = [torch.randn(2, n, length, width, generator=random, dtype=torch.float64) * size
            for n, length, width in ((heads, queries, d), (kv, keys, d), (kv, keys, d + 1))]  # fmt: skip
    q, k, v = (x.to(dtype) for x in made)
    return Part(q, k, v, mask(queries, keys), d**-0.5, None, None, None, tuple(range(heads)))


@dataclass(frozen=True)
class One:
    """One head of one example, for a definition."""

    q: Tensor
    k: Tensor
    v: Tensor
    seen: Tensor
    scale: float
    head: int
    example: int
    part: Part


def each(p: Part, define: Callable[[One], Tensor]) -> Tensor:
    """What a definition gives for all heads of all examples, [example, head, ...]."""
    queries, keys = p.q.shape[2], p.k.shape[2]
    seen = torch.ones(queries, keys, dtype=torch.bool) if p.mask is None else p.mask.dense(queries, keys)
    seen = seen.expand(p.q.shape[0], p.q.shape[1], queries, keys)
    return torch.stack([
        torch.stack([
            define(One(p.q[b, h].double(), p.k[b, h // p.group].double(), p.v[b, h // p.group].double(), seen[b, h],
                       p.scale, h, b, p))
            for h in range(p.q.shape[1])
        ])
        for b in range(p.q.shape[0])
    ])  # fmt: skip


def check(operator: Any, p: Part, define: Callable[[One], Tensor], *, near: float = 1e-9) -> Tensor:
    """Hold the pattern against the definition and z against the pattern; the pattern of some rows against all."""
    want = each(p, define)
    pattern = operator.pattern(p)
    torch.testing.assert_close(pattern.double(), want, atol=near, rtol=near)
    torch.testing.assert_close(operator.z(p).double(), want @ p.values.double(), atol=near, rtol=near)
    rows = torch.arange(p.q.shape[2])[::2]
    torch.testing.assert_close(operator.pattern(replace(p, rows=rows)), pattern[:, :, ::2])
    return want


def differentiable(operator: Any, p: Part) -> None:
    """Gradients of z by finite differences, through q, k and v."""
    q, k, v = (x.clone().requires_grad_() for x in (p.q, p.k, p.v))
    assert torch.autograd.gradcheck(
        lambda q, k, v: operator.z(replace(p, q=q, k=k, v=v)), (q, k, v), atol=1e-6, rtol=1e-4, fast_mode=True
    )


def softmax_of(one: One) -> Tensor:
    """The weights of the model's own attention."""
    s = (one.q @ one.k.T * one.scale).masked_fill(~one.seen, -torch.inf)
    return torch.softmax(s, -1).nan_to_num(0.0)


def normal(a: Tensor, seen: Tensor) -> Tensor:
    """Rows divided by their sums over what they see."""
    a = a * seen
    return (a / a.sum(-1, keepdim=True)).nan_to_num(0.0)


class Numbers(TorchDispatchMode):
    """All numbers that operations give, views left out, and the most of one tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.total = self.largest = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        taken = {x.untyped_storage().data_ptr() for x in args if isinstance(x, Tensor)}
        for x in out if isinstance(out, tuple | list) else [out]:
            if isinstance(x, Tensor) and x.untyped_storage().data_ptr() not in taken:
                self.total += x.untyped_storage().nbytes() // x.element_size()
                self.largest = max(self.largest, x.untyped_storage().nbytes() // x.element_size())
        return out
