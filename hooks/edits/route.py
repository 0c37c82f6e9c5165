"""Routing tokens to heads without a router's parameters: per token, only the heads with the longest queries write.

MoH (Jin et al. 2024, arXiv 2410.11842) turns a trained model into a mixture of heads this way: shared heads are always
on, and of the others each token gets those where `softmax(|q_h| / std)` is largest, which is where |q_h| is, fully on
or off. There the model is trained further under it; as an edit it says what the model does without.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from interp.hooks.edits.edits import ValueChange, ValueEdit
from interp.hooks.errors import EditError
from interp.hooks.stand.call import Call


@dataclass(frozen=True, eq=False, repr=False)
class RouteHeads(ValueEdit):
    """Of the site's heads ("L*.z", "L*.H4-7.z") let `keep` write at each token, those with the longest queries.

    `shared` are heads that always write, beside those: their numbers, or how many from head 0 on. Heads that the site
    leaves out are not touched.
    """

    keep: int = 1
    shared: int | tuple[int, ...] = 0

    def __post_init__(self) -> None:
        if self.keep < 0 or (isinstance(self.shared, int) and self.shared < 0):
            raise EditError(f"{self!r}: keep= and shared= count heads, from 0 on.")

    def change(self, x: Tensor, valid: Tensor | None) -> Tensor:
        raise EditError(
            f"{self!r} reads the queries of the attention call: its site is z ('L*.z'), where no gate or other module"
            " stands between, and in a whole run of the model."
        )

    def change_in(self, call: Call, heads: tuple[int, ...]) -> ValueChange:
        if call.q.ndim != 4:
            return self.change
        q = call.q.transpose(1, 2)[:, :, list(heads)]
        return lambda z, valid: self.routed(z, q, heads)

    def routed(self, z: Tensor, q: Tensor, heads: tuple[int, ...]) -> Tensor:
        """z [row, position, head, d] with the heads that are off at zero; q alike, `heads` are their numbers."""
        always = range(self.shared) if isinstance(self.shared, int) else self.shared
        if not isinstance(self.shared, int) and (other := sorted(set(self.shared) - set(heads))):
            raise EditError(f"{self!r}: there is no head {other[0]} at this site, which has {list(heads)}.")
        shared = torch.tensor([head in always for head in heads], device=q.device)
        routed = len(heads) - int(shared.sum())
        if self.keep > routed:
            raise EditError(f"{self!r}: {routed} heads are routed here, so {self.keep} of them cannot be kept.")
        size = q.detach().float().norm(dim=-1).masked_fill(shared, -torch.inf)
        on = torch.zeros_like(size, dtype=torch.bool).scatter(-1, size.topk(self.keep, dim=-1).indices, True)
        return z * (on | shared)[..., None].to(z.device)
