"""What happens to weights after the kernel: sinks, redistributions, blends, and parts of the keys put together.

The kernel gives the softmax over some of the keys. With w_c = exp(lse_c - lse) the weight of part c, everything linear
in the weights is a sum of w_c times that of the part, and the entropy sum_c w_c (H_c - ln w_c). A redistribution
multiplies the weights of its source and of its target by a number per row, so with keys in cells (source, target, rest)
it multiplies w_c. A blend leaves a share `keep` of every weight, and adds `even`, spread over the visible keys, and
`own`, on the own key.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from interp.kernels import edits as E
from interp.kernels.errors import known
from interp.kernels.gpu.operands import TritonCall
from interp.kernels.request import Found, Request

NOWHERE = -1.0e30


@dataclass(frozen=True, eq=False)
class Cell:
    """Keys [1 or batch, key] that all redistributions treat alike: by edit 0 (neither), 1 (source) or 2 (target)."""

    keys: Tensor | None
    roles: tuple[int, ...]


def redistributions(made: Request) -> tuple[E.Redistribute, ...]:
    return E.only(made.moving_edits, E.Redistribute)


def blends(made: Request) -> tuple[E.Blend, ...]:
    return E.only(made.weight_edits, E.Blend)


def untouched(made: Request) -> bool:
    """Whether the weights are those of the kernel, and z its z."""
    return made.sinks is None and not (made.moving_edits + made.weight_edits + made.output_edits)


def cells(made: Request) -> list[Cell]:
    """The cells, and one of all keys where nothing is redistributed."""
    edits = redistributions(made)
    if not edits:
        return [Cell(None, ())]
    code = torch.zeros(1, made.keys, dtype=torch.long, device=made.q.device)
    for n, edit in enumerate(edits):
        source, target = (E.key_set("a key set", x).to(code.device).long() for x in edit.sets())
        code = code + 3**n * (source + 2 * target)
    return [Cell(code == c, tuple(c // 3**n % 3 for n in range(len(edits)))) for c in code.unique().tolist()]


def total(lse: Tensor) -> Tensor:
    """The log-sum-exp [part, ...] of all parts."""
    finite = lse.clamp(min=NOWHERE)
    return torch.where((lse > -torch.inf).any(0), finite.logsumexp(0), -torch.inf)


def shares(lse: Tensor, whole: Tensor) -> Tensor:
    """ln w_c of each part; -1e30 for parts that see nothing."""
    real = lse > -torch.inf
    return torch.where(real, torch.where(real, lse, 0.0) - torch.where(whole > -torch.inf, whole, 0.0), NOWHERE)


def merged(parts: Found, logs: Tensor) -> Found:
    """The parts [part, ...] as one, from ln w_c."""
    w = logs.exp()
    found: Found = {n: _sum(w, parts[n]) for n in ("distance", "z", "mass") if n in parts}
    if "entropy" in parts:
        found["entropy"] = _sum(w, parts["entropy"] - logs)
        found["max"], best = (w * parts["max"]).max(0)
        found["argmax"] = parts["argmax"].gather(0, best[None])[0]
    if "topk" in parts:
        found["topk"], found["topk.keys"] = _best(w.unsqueeze(-1) * parts["topk"], parts["topk.keys"])
    return found


def _sum(w: Tensor, x: Tensor) -> Tensor:
    """Over parts; one part without another copy of it."""
    w = w.unsqueeze(-1) if x.dim() > w.dim() else w
    return w[0] * x[0] if len(x) == 1 else (w * x).sum(0)


def _best(values: Tensor, keys: Tensor) -> tuple[Tensor, Tensor]:
    """Of [part, ..., k] the k largest, lower keys first among equals."""
    k = values.shape[-1]
    values, keys = (x.movedim(0, -2).flatten(-2) for x in (values, keys))
    last = torch.iinfo(keys.dtype).max
    keys, order = torch.where(keys < 0, last, keys).sort(dim=-1, stable=True)
    ranked = torch.where(keys == last, -1.0, values.gather(-1, order))
    order = ranked.sort(dim=-1, descending=True, stable=True).indices[..., :k]
    values, keys = ranked.gather(-1, order), keys.gather(-1, order)
    return values.clamp(min=0.0), torch.where(keys == last, -1, keys)


def joined(parts: Sequence[Found]) -> Found:
    """All parts with an axis [part] in front."""
    return {n: torch.stack([p[n] for p in parts]) if len(parts) > 1 else x[None] for n, x in parts[0].items()}


def sink(made: Request, lse: Tensor) -> tuple[Tensor, Tensor]:
    """The learned sink's own probability, and the logarithm of what it leaves."""
    if made.sinks is None:
        return torch.zeros_like(lse), torch.zeros_like(lse)
    sees = lse > -torch.inf
    above = made.sinks.to(lse)[None, :, None] - torch.where(sees, lse, 0.0)
    return torch.where(sees, above.sigmoid(), 1.0), torch.nn.functional.logsigmoid(-above)


def touched(edit: E.Edit, made: Request, like: Tensor) -> Tensor:
    """Bool [batch, head, row]."""
    found = edit.where(torch.arange(made.heads, device=like.device), made.rows)
    return torch.ones_like(like, dtype=torch.bool) if found is None else found.squeeze(-1).expand_as(like)


def redistributed(made: Request, parts: Sequence[Cell], logs: Tensor, sees: Tensor) -> tuple[Tensor, Tensor]:
    """What each cell's ln w [part, batch, head, row] becomes, and how many rows could not be moved.

    In logarithms, so that a target of next to no weight takes what it is given without a number overflowing.
    """
    unmoved = torch.zeros((), dtype=torch.long, device=logs.device)
    for n, edit in enumerate(redistributions(made)):
        role = torch.tensor([c.roles[n] for c in parts], device=logs.device)[:, None, None, None]
        source, target = (torch.where(role == x, logs, NOWHERE).logsumexp(0) for x in (1, 2))
        asked, able = touched(edit, made, target), target > NOWHERE / 2
        unmoved = unmoved + (asked & sees & ~able).sum()
        gained = torch.logaddexp(target, (source + _log(edit.fraction)).clamp(min=NOWHERE)) - target
        new = torch.where(role == 2, logs + gained, logs)
        new = torch.where(role == 1, (logs + _log(1 - edit.fraction)).clamp(min=NOWHERE), new)
        logs = torch.where(asked & able, new, logs)
    return logs, unmoved


def _log(x: float) -> float:
    return math.log(x) if x > 0 else NOWHERE


BLENDS: dict[E.Form, tuple[float, float]] = {(E.Blend, "uniform"): (1.0, 0.0), (E.Blend, "identity"): (0.0, 1.0)}
"""How much of what is taken is spread over the visible keys, and put on the own key."""


@dataclass(frozen=True, eq=False)
class Blended:
    """Shares [batch, head, row]: kept of every weight, spread over visible keys, put on the own key."""

    keep: Tensor
    even: Tensor
    own: Tensor
    unmoved: Tensor


def blended(made: Request, share: Tensor, sees: Tensor, sees_own: Tensor) -> Blended:
    """All blends in order, where `share` is what the learned sink leaves."""
    keep, even, own = torch.ones_like(share), torch.zeros_like(share), torch.zeros_like(share)
    unmoved = torch.zeros((), dtype=torch.long, device=share.device)
    for edit in blends(made):
        spread, put = known(BLENDS, edit.form, "edit")
        able = sees & sees_own if put else sees
        asked = touched(edit, made, share) & sees
        unmoved = unmoved + (asked & ~able).sum()
        u = torch.where(asked & able, edit.amount, 0.0)
        keep, even, own = keep * (1 - u), even * (1 - u) + spread * u * share, own * (1 - u) + put * u * share
    return Blended(keep, even, own, unmoved)


def gated(made: Request, z: Tensor) -> Tensor:
    heads = torch.arange(made.heads, device=z.device)
    for edit in E.only(made.output_edits, E.Gate):
        where, new = edit.where(heads, made.rows), z * E.per_head(edit.value, heads, z)
        z = new if where is None else torch.where(where, new, z)
    return z


def cell_of_key(call: TritonCall, parts: Sequence[Cell]) -> Tensor:
    """Which cell each key is in, [batch, key]."""
    found = torch.zeros(call.made.batch, call.made.keys, dtype=torch.uint8, device=call.q.device)
    for n, cell in enumerate(parts):
        if cell.keys is not None:
            found = torch.where(cell.keys, n, found)
    return found.byte().contiguous()
