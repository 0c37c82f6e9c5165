"""Weights of single entries, one or a few keys per row, by torch operators on gathered keys: gradients flow through."""

from __future__ import annotations

import torch
from torch import Tensor

from interp.kernels.gpu.operands import HIDDEN_BIAS, TritonCall

STEP = 64
NUMBERS = 2**26


def sees(call: TritonCall, at: Tensor) -> Tensor:
    """Whether each row sees the key at [1 or batch, row] under the mask: Bool [1 or batch, 1 or head, row]."""
    made = call.made
    inside = ((at >= 0) & (at < made.keys))[:, None]
    if call.run_of_keys is not None:
        low, high = call.run_of_keys
        return inside & ((at >= low) & (at < high))[:, None]
    found = []
    for n in range(0, len(made.rows), STEP):
        i, j = made.positions[n : n + STEP], at[:, n : n + STEP].clamp(0, made.keys - 1)
        rows = [made.mask.visible(i, keys) for keys in j]
        own = [x.expand(-1, -1, len(i), -1).diagonal(dim1=-2, dim2=-1) for x in rows]
        found.append(
            torch.cat([x[b : b + 1] if len(x) > 1 else x for b, x in enumerate(own)]) if len(own) > 1 else own[0]
        )
    return inside & torch.cat(found, -1)


def hidden(call: TritonCall, at: Tensor) -> Tensor:
    """Whether an edit hides the key at [batch, 1, row, n]."""
    if call.table is None:
        return torch.zeros_like(at, dtype=torch.bool)
    return call.table.bias[call.table.which.long().unsqueeze(-1), at] < HIDDEN_BIAS / 2


def scores(call: TritonCall, at: Tensor) -> Tensor:
    """The edited scores [batch, head, row, n] of keys [batch, head or 1, row, n]."""
    made = call.made
    s = _products(call, at) * made.scale
    if made.softcap is not None:
        s = made.softcap * torch.tanh(s / made.softcap)
    if call.temper is not None:
        s = s * call.temper.unsqueeze(-1)
    if call.table is not None:
        row = call.table.which.long().unsqueeze(-1)
        s = s + call.table.bias[row, at].clamp(min=HIDDEN_BIAS / 2)
        s = s * torch.where(s > 0, call.table.up[row, at], call.table.down[row, at])
    return s


def _products(call: TritonCall, at: Tensor) -> Tensor:
    """q k in fp32, so many rows at a time that no copy of keys grows large."""
    made, (batch, kv, _, d) = call.made, call.k.shape
    found, step = [], max(1, NUMBERS // (batch * made.heads * at.shape[-1] * d))
    q = call.q.unflatten(1, (kv, made.group))
    for n in range(0, len(made.rows), step):
        here = at[:, :, n : n + step]
        here = here.expand(-1, kv, -1, -1).unsqueeze(2) if at.shape[1] == 1 else here.unflatten(1, (kv, made.group))
        k = call.k.gather(2, here.flatten(2).unsqueeze(-1).expand(-1, -1, -1, d)).view(*here.shape, d)
        found.append((q[:, :, :, n : n + step].float().unsqueeze(4) * k.float()).sum(-1).flatten(1, 2))
    return torch.cat(found, 2)


def weights(call: TritonCall, at: Tensor, exponent: Tensor, seen: Tensor) -> Tensor:
    """exp(s + exponent) where seen, else 0, of keys [batch, head or 1, row, n]."""
    return torch.where(seen, scores(call, at) + exponent, -torch.inf).exp()
