"""Relevance propagated through a whole forward pass by the rules of Chefer et al. 2021 (arXiv 2012.09838).

Inside `with Relprop():` torch's operators keep their values, and what autograd carries back is relevance, not gradient:
start it from the class's one-hot. With R the relevance of an output,

    linear, convolution  alpha-beta rule with alpha 1: R_i = sum_j (x+ w+ + x- w-) R_j / sum_i (x+ w+ + x- w-)
    matrix product       each factor x * d(z, R / z), then half to each
    addition             in proportion to the summands, then rescaled to shares |sum a| : |sum b| of what came in
    GELU, softmax, norms, scaling   R passes as it is
    reshaping, selecting   R goes where the number came from

Limits: the operators a plain ViT or BERT is made of; another one that changes numbers is refused by name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from interp.hooks.errors import ModelError

TINY = 1e-9


def divided(a: Tensor, b: Tensor) -> Tensor:
    """a / b, and 0 where b is 0."""
    sign = torch.where(b >= 0, 1.0, -1.0).to(b.dtype)
    return torch.where(b == 0, 0.0, a / (b + TINY * sign))


def _wide(*tensors: Tensor) -> Iterator[Tensor]:
    """In float32 or better: what comes in is as narrow as the model, what is summed of it is not."""
    return (x.to(torch.promote_types(x.dtype, torch.float32)) for x in tensors)


class _Passed(torch.autograd.Function):
    """Another value, the same relevance."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, value: Tensor) -> Tensor:
        return value.clone()

    @staticmethod
    def backward(ctx: Any, relevance: Tensor) -> tuple[Tensor, None]:
        return relevance, None


class _AlphaBeta(torch.autograd.Function):
    """A linear map without its bias: positive and negative parts of x and w each with their own sign."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, value: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return value.clone()

    @staticmethod
    def backward(ctx: Any, relevance: Tensor) -> tuple[Tensor, None, None]:
        x, w, relevance = _wide(*ctx.saved_tensors, relevance)
        up, down, plus, minus = x.clamp(min=0), x.clamp(max=0), w.clamp(min=0), w.clamp(max=0)
        share = divided(relevance, up @ plus.T + down @ minus.T)
        return (up * (share @ plus) + down * (share @ minus)).to(ctx.saved_tensors[0].dtype), None, None


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor) -> Tensor:
        ctx.save_for_backward(a, b)
        return a @ b

    @staticmethod
    def backward(ctx: Any, relevance: Tensor) -> tuple[Tensor, Tensor]:
        a, b, relevance = _wide(*ctx.saved_tensors, relevance)
        share = divided(relevance, a @ b)
        made = a * (share @ b.transpose(-1, -2)) / 2, b * (a.transpose(-1, -2) @ share) / 2
        return made[0].to(ctx.saved_tensors[0].dtype), made[1].to(ctx.saved_tensors[1].dtype)


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor) -> Tensor:
        z = a + b
        ctx.save_for_backward(a.expand_as(z), b.expand_as(z))
        ctx.shapes = a.shape, b.shape
        return z

    @staticmethod
    def backward(ctx: Any, relevance: Tensor) -> tuple[Tensor, Tensor]:
        a, b, relevance = _wide(*ctx.saved_tensors, relevance)
        share = divided(relevance, a + b)
        parts = [a * share, b * share]
        axes = tuple(range(1, a.ndim))
        sizes = [p.sum(axes, keepdim=True) for p in parts]
        whole = sizes[0].abs() + sizes[1].abs()
        total = relevance.sum(axes, keepdim=True)
        made = [p * divided(divided(s.abs(), whole) * total, s) for p, s in zip(parts, sizes, strict=True)]
        summed = [m.sum_to_size(shape) for m, shape in zip(made, ctx.shapes, strict=True)]
        first, second = (m.to(x.dtype) for m, x in zip(summed, ctx.saved_tensors, strict=True))
        return first, second


PASSED = {
    F.gelu, F.layer_norm, F.softmax, F.relu, F.silu, F.dropout, torch.softmax, torch.layer_norm, torch.tanh, F.tanh,
    torch.nn.functional.gelu, Tensor.softmax, Tensor.tanh, torch._C._nn.gelu,
}  # fmt: skip
SUMS = {torch.add, Tensor.add, Tensor.__add__, Tensor.__radd__, Tensor.__iadd__, Tensor.add_}
PRODUCTS = {torch.matmul, Tensor.matmul, Tensor.__matmul__, torch.bmm}
SCALES = {torch.mul, Tensor.mul, Tensor.__mul__, Tensor.__rmul__, torch.div, Tensor.div, Tensor.__truediv__}
MOVES = frozenset(
    """__get__ __getitem__ __setitem__ view reshape view_as transpose permute flatten unflatten contiguous expand
    expand_as unsqueeze squeeze cat stack split chunk select narrow clone to float type_as detach requires_grad_
    masked_fill size dim movedim swapaxes index_select gather unbind repeat_interleave""".split()
)
"""What only moves numbers around."""


class Relprop(TorchFunctionMode):
    """Inside, autograd carries relevance."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        tensors = [a for a in args if torch.is_tensor(a) and a.is_floating_point()]
        if not any(t.requires_grad for t in tensors):
            return func(*args, **kwargs)
        if func in (F.linear, torch._C._nn.linear):
            return _AlphaBeta.apply(args[0], args[1].detach(), func(*args, **kwargs).detach())
        if func in PASSED:
            return _Passed.apply(args[0], func(*args, **kwargs).detach())
        if func in SUMS:
            return _added(func, args, kwargs)
        if func in PRODUCTS:
            return _Product.apply(args[0], args[1])
        if func in SCALES:
            return _scaled(func, args, kwargs)
        result = func(*args, **kwargs)
        if torch.is_tensor(result) and result.requires_grad and func.__name__ not in MOVES:
            raise ModelError(f"relevance propagation has no rule for {func.__name__}: use method='chefer-generic'.")
        return result


def _added(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    a, b = args[0], args[1]
    if not torch.is_tensor(b) or not torch.is_tensor(a) or not (a.requires_grad and b.requires_grad):
        x = a if torch.is_tensor(a) and a.requires_grad else b
        made: Tensor = _Passed.apply(x, func(*args, **kwargs).detach())
        return made
    found: Tensor = _Sum.apply(a, b)
    return found


def _scaled(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    a, b = args[0], args[1]
    if torch.is_tensor(a) and torch.is_tensor(b) and a.requires_grad and b.requires_grad:
        raise ModelError("relevance propagation has no rule for a gate (a product of two activations).")
    x = a if torch.is_tensor(a) and a.requires_grad else b
    made: Tensor = _Passed.apply(x, func(*args, **kwargs).detach())
    return made
