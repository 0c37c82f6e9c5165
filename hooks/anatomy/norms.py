"""A norm with its scale held: the linear map that it was in one run.

`norm(x) = scale(x) gain * (x - mean(x)) + shift`, without the mean for RMS norms. With `scale` taken from a run the
norm is linear, so what it does to a sum is the sum of what it does to the parts. Gain, shift and whether the mean is
taken away are read off the module by asking it (a vector of +-1, zero, a constant added), so any layer norm, RMS norm
or plain multiplication will do, whatever its class is called; anything else is refused.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from interp.hooks.errors import ModelError

Norm = Callable[[Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class Frozen:
    """`scale gain * (x - mean(x)) + shift` with the scale [..., 1] of one run, in float64."""

    gain: Tensor
    scale: Tensor
    shift: Tensor
    centred: bool

    def linear(self, x: Tensor) -> Tensor:
        """What it does to a part of its input: everything but the shift."""
        return self.scale * self.gain * _centred(x.double().to(self.scale.device), self.centred)

    def __call__(self, x: Tensor) -> Tensor:
        return (self.linear(x) + self.shift).to(x.dtype)

    def at(self, *index: Tensor) -> Frozen:
        """The same with the scales of some rows and positions."""
        return replace(self, scale=self.scale[index])


def identity(x: Tensor) -> Frozen:
    """No norm at all, for inputs like x."""
    one = torch.ones((), dtype=torch.float64, device=x.device)
    return Frozen(one.expand(x.shape[-1]), one.expand(*x.shape[:-1], 1), torch.zeros_like(one), False)


def frozen(norm: Norm, x: Tensor, *, name: str = "this norm") -> Frozen:
    """The norm as the linear map that it is at x [..., d]."""
    with torch.no_grad():
        y, shift = norm(x).double(), norm(torch.zeros_like(x)).double()
        x = x.to(y.device)
        size = x.double().square().mean().sqrt().clamp(min=1e-12).to(x.dtype)
        moved = norm(x + size)
        centred = bool((moved.double() - y).abs().max() < 1e-3 * (y - shift).abs().max())
        probe = size * (1 - 2 * (torch.arange(x.shape[-1], device=x.device) % 2)).to(x.dtype)
        answer = (norm(probe.expand(x.shape)).double() - shift).reshape(-1, x.shape[-1])[0]
    gain = answer / _centred(probe.double(), centred)
    shift = shift.reshape(-1, x.shape[-1])[0]
    raw = gain * _centred(x.double(), centred)
    scale = ((y - shift) * raw).sum(-1, keepdim=True) / raw.square().sum(-1, keepdim=True).clamp(min=1e-300)
    found = Frozen(gain, scale, shift, centred)
    bound = 256 * torch.finfo(x.dtype).eps * max(1.0, float(y.abs().max()))
    gap = float((found.linear(x) + shift - y).abs().max())
    if not gap <= bound:
        raise ModelError(f"{name} is neither a layer norm nor an RMS norm (off by {gap:.3g}): it cannot be held fixed.")
    return found


def _centred(x: Tensor, centred: bool) -> Tensor:
    return x - x.mean(-1, keepdim=True) if centred else x
