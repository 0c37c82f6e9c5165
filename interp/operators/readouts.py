"""What is read of an operator, compared with a head's own softmax, for each example and head; rows of padding left out.

With a the operator's weights of a row, p the softmax's, and b = |a| / sum |a| (b = a where weights are a distribution):

    moved      1/2 sum |a - p|, the weight that is elsewhere
    kl         sum b ln(b / p)
    kept       sum of p over the keys with a != 0, the share of the softmax's mass that can still be read
    entropy    -sum b ln b
    distance   sum b |i - j|
    monotone   of neighbouring visible keys in the order of the scores, the share whose weights are in that order
    nearest    sum |a_i - a_i'| to the most alike other row i': 0 where two rows attend alike
    rank map   effective rank, exp of the entropy of the normalised singular values, of the rows of a
    rank z     the same of the rows of z
    rank state the same of what all rows read, sum_j g(k_j) v_j^T, for operators that have such a sum
    error      |z - z'| / |z'|, z' the head's own

All but z's are taken from at most `ROWS` rows, spread evenly.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from interp.hooks.stand.part import Part
from interp.operators.common.operator import Operator, places, ratio, visible
from interp.operators.other.static import StaticQK

ROWS = 512
NAMES = ("moved", "kl", "kept", "entropy", "distance", "monotone", "nearest", "rank map", "rank z", "rank state",
         "error")  # fmt: skip
OF_Z = ("rank z", "rank state", "error")
"""Those that need no pattern."""


def read(operator: Operator, part: Part, real: Tensor) -> dict[str, Tensor]:
    """Each readout [example, head], NaN where there is none; `real` [example, query] are rows that are no padding."""
    z, own = operator.z(part).double(), StaticQK("", q="own").z(part).double()
    shown = real[:, None, :, None].to(z.device)
    found = {
        "rank z": effective_rank(z * shown),
        "error": ratio(((z - own) * shown).norm(dim=(2, 3)), (own * shown).norm(dim=(2, 3))),
    }
    state = getattr(operator, "state", None)
    if state is not None:
        found["rank state"] = effective_rank(state(part).double())
    rows = spread(part.q.shape[2]).to(z.device)
    pattern = operator.pattern(replace(part, rows=rows))
    if pattern is not None:
        found |= _of_rows(part, rows, pattern.double(), real.to(z.device)[:, rows])
    missing = torch.full(z.shape[:2], torch.nan, dtype=torch.float64, device=z.device)
    return {name: found.get(name, missing).expand(z.shape[:2]).cpu() for name in NAMES}


def spread(length: int) -> Tensor:
    """The numbers of at most `ROWS` rows, evenly."""
    return torch.linspace(0, length - 1, min(length, ROWS)).round().long()


def _of_rows(part: Part, rows: Tensor, a: Tensor, real: Tensor) -> dict[str, Tensor]:
    s, seen = part.scores(rows).double(), visible(part, rows)
    p = part.softmax(s)
    b = ratio(a.abs(), a.abs().sum(-1, keepdim=True))
    apart = (places(part)[rows][:, None] - torch.arange(s.shape[-1], device=s.device)).abs()
    each: dict[str, Tensor] = {
        "moved": (a - p).abs().sum(-1) / 2,
        "kl": torch.where(b > 0, b * (b.clamp(min=1e-300) / p.clamp(min=1e-300)).log(), 0.0).sum(-1),
        "kept": (p * (a != 0)).sum(-1),
        "entropy": torch.special.entr(b).sum(-1),
        "distance": (b * apart).sum(-1),
        "monotone": _monotone(s, a),
        "nearest": _nearest(a, real),
    }
    counted = real[:, None] & seen.any(-1)
    counted = counted.expand(a.shape[:3])
    found = {name: ratio((x * counted).sum(-1), counted.sum(-1).double()) for name, x in each.items()}
    return found | {"rank map": effective_rank(a * counted[..., None])}


def _monotone(s: Tensor, a: Tensor) -> Tensor:
    """[example, head, row]; 1 where there is one key."""
    order = s.argsort(stable=True, dim=-1)
    s, a = s.gather(-1, order), a.gather(-1, order)
    pair = s[..., :-1] > -torch.inf
    near = 1e-9 * a.abs().amax(-1, keepdim=True)
    right = (a[..., 1:] >= a[..., :-1] - near) & pair
    count = pair.sum(-1)
    return torch.where(count > 0, right.sum(-1) / count.clamp(min=1), 1.0).double()


def _nearest(a: Tensor, real: Tensor) -> Tensor:
    """[example, head, row]; 0 where there is one row."""
    if a.shape[2] < 2:
        return a.new_zeros(a.shape[:3])
    gaps = torch.stack([torch.cdist(one, one, p=1) for one in a.flatten(0, 1)]).unflatten(0, a.shape[:2])
    same = torch.eye(a.shape[2], dtype=torch.bool, device=a.device)
    found = gaps.masked_fill(same | ~real[:, None, None, :], torch.inf).amin(-1)
    return found.masked_fill(found.isinf(), 0.0)


def effective_rank(x: Tensor) -> Tensor:
    """exp of the entropy of the normalised singular values of [..., row, column]; 0 of what is 0."""
    values = torch.linalg.svdvals(x)
    total = values.sum(-1, keepdim=True)
    return torch.where(total[..., 0] > 0, torch.special.entr(ratio(values, total)).sum(-1).exp(), 0.0)


def label(operator: Any) -> str:
    """How an operator is called without its place: "Linear(feature='taylor')"."""
    text = repr(replace(operator, site=""))
    kind, _, rest = text.partition("('', ")
    return f"{kind}({rest}" if rest else text.removesuffix("('')")
