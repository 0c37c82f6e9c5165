"""Routing tokens to heads: per token only some heads write, chosen by a router, or by the length of their queries.

MoH (Jin et al. 2024, arXiv 2410.11842) makes a layer a mixture of heads: shared heads are always on, and of the others
each token gets the best by a router of its input (`MixHeads`). A trained model becomes one without a router's weights:
there the heads are kept where `softmax(|q_h| / std)` is largest, which is where |q_h| is, fully on or off
(`RouteHeads`). In the paper the model is trained further; as edits they say what the model does as it is.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from interp.hooks.edits.edits import ValueChange, ValueEdit
from interp.hooks.errors import EditError
from interp.hooks.stand.call import Call


@dataclass(frozen=True, eq=False, repr=False)
class RouteHeads(ValueEdit):
    """Of the site's heads ("L*.z", "L*.H4-7.z") let `keep` write at each token, those with the longest queries.

    `shared` are further heads that always write: their numbers, or how many from head 0 on. Heads that the site
    leaves out are not touched.
    """

    keep: int = 1
    """How many heads write at each token, shared ones not counted."""
    shared: int | tuple[int, ...] = 0
    """Heads that always write: their numbers, or how many from head 0 on."""

    def __post_init__(self) -> None:
        if self.keep < 0 or (isinstance(self.shared, int) and self.shared < 0):
            raise EditError(f"{self!r}: keep= and shared= count heads, from 0 on.")

    def change(self, x: Tensor, valid: Tensor | None) -> Tensor:
        raise EditError(
            f"{self!r} reads the queries of the attention call: its site must be z ('L*.z') in a whole run of the"
            " model, in a layer without a gate or another module between attention and z."
        )

    def change_in(self, call: Call, heads: tuple[int, ...]) -> ValueChange:
        if call.q.ndim != 4:
            return self.change
        q = call.q.transpose(1, 2)[:, :, list(heads)]
        return lambda z, valid: self.routed(z, q, heads)

    def routed(self, z: Tensor, q: Tensor, heads: tuple[int, ...]) -> Tensor:
        """z [row, position, head, d] with the heads that are off at zero; q alike, `heads` are their numbers."""
        always = shared_of(self, self.shared, heads)
        shared = torch.tensor([n in always for n in range(len(heads))], device=q.device)
        routed = len(heads) - int(shared.sum())
        if self.keep > routed:
            raise EditError(f"{self!r}: {routed} heads are routed here, so {self.keep} of them cannot be kept.")
        size = q.detach().float().norm(dim=-1).masked_fill(shared, -torch.inf)
        on = torch.zeros_like(size, dtype=torch.bool).scatter(-1, size.topk(self.keep, dim=-1).indices, True)
        return z * (on | shared)[..., None].to(z.device)


@dataclass(frozen=True, eq=False, repr=False)
class MixHeads(ValueEdit):
    """MoH's router: every token weighs the shared heads of the site and the `keep` best of the others, by what its
    attention reads.

    `router` are its weights [shared + routed + 2, d], with as many rows for shared heads (W_s), routed ones (W_r) and
    the two kinds (W_h); [routed, d] where no head is shared. Of the input x of a token, as the authors' code has it:

        shared   2 a_0 n_s softmax(W_s x),   a = softmax(W_h x)
        routed   2 a_1 keep p_i / sum of the kept p,   p = softmax(W_r x);   0 for those that are not kept

    so that the mean gate of what is on is 1. Without shared heads 2 a_1 is 1. `interp.operators.route_heads` trains it.
    To the slopes of routed gates p's own are added, also of heads that are not kept (straight through, which is ours):
    a single kept head has the gate 1 whatever p is, and would have no slope.
    """

    reads_input = True

    router: Any = None
    """The router's weights [shared + routed + 2, d], or [routed, d] without shared heads. It has to be given."""
    keep: int = 1
    """How many of the routed heads write at each token."""
    shared: int | tuple[int, ...] = 0
    """Heads that always write: their numbers, or how many from head 0 on."""

    def __post_init__(self) -> None:
        if self.router is None or torch.as_tensor(self.router).ndim != 2 or self.keep < 1:
            raise EditError(
                f"{self!r} needs router=, weights [shared + routed + 2, d] as interp.operators.route_heads trains them,"
                " and keep= of at least 1."
            )

    def change(self, x: Tensor, valid: Tensor | None) -> Tensor:
        raise EditError(
            f"{self!r} reads what the attention of its layer read: its site must be z ('L5.z') in a whole run of the"
            " model, in a layer without a gate or another module between attention and z."
        )

    def change_in(self, call: Call, heads: tuple[int, ...]) -> ValueChange:
        def mixed(z: Tensor, valid: Tensor | None) -> Tensor:
            x = call.x
            if x is None or x.shape[:2] != z.shape[:2]:
                return self.change(z, valid)
            return z * self.routing(x, heads).gates[..., None].to(z)

        return mixed

    def routing(self, x: Tensor, heads: tuple[int, ...]) -> Routing:
        """The gates of tokens whose attention reads x [row, position, d]."""
        shared = shared_of(self, self.shared, heads)
        free = [n for n in range(len(heads)) if n not in shared]
        router = torch.as_tensor(self.router, device=x.device)
        if self.keep > len(free) or router.shape != (len(heads) + 2 * bool(shared), x.shape[-1]):
            raise EditError(
                f"{self!r}: {len(shared)} shared and {len(free)} routed heads that read {x.shape[-1]} numbers have a"
                f" router [{len(heads) + 2 * bool(shared)}, {x.shape[-1]}] and keep= of at most {len(free)}."
            )
        wide = torch.promote_types(x.dtype, torch.float32)
        said = x.to(wide) @ router.to(wide).T
        p = torch.softmax(said[..., len(shared) : len(heads)], -1)
        kept = torch.zeros_like(p, dtype=torch.bool).scatter(-1, p.topk(self.keep, dim=-1).indices, True)
        some = p * kept
        gates = torch.ones_like(said[..., : len(heads)])
        kinds = 2 * torch.softmax(said[..., len(heads) :], -1) if shared else torch.ones_like(said[..., :2])
        at = torch.tensor([*shared, *free], device=x.device)
        routed = kinds[..., 1:2] * self.keep * some / some.sum(-1, keepdim=True) + (p - p.detach())
        always = kinds[..., :1] * len(shared) * torch.softmax(said[..., : len(shared)], -1)
        return Routing(gates.index_copy(-1, at, torch.cat([always, routed], -1)), p, kept, tuple(free))


@dataclass(frozen=True)
class Routing:
    """What a router says of tokens."""

    gates: Tensor
    """[row, position, head]: what the output of each head is multiplied by."""
    p: Tensor
    """[row, position, routed head]: its softmax."""
    kept: Tensor
    """Bool [row, position, routed head]: the routed heads that write."""
    free: tuple[int, ...]
    """Which heads of the site are routed."""

    def balance(self, real: Tensor) -> Tensor:
        """n sum_i P_i f_i over the routed heads, `keep` where all are chosen alike: P the mean of p over the real
        tokens, f the part of them that keep a head."""
        p, kept = self.p[real], self.kept[real].to(self.p)
        return len(self.free) * (p.mean(0) * kept.mean(0)).sum()


def shared_of(edit: ValueEdit, shared: int | tuple[int, ...], heads: tuple[int, ...]) -> list[int]:
    """Which of a site's heads always write, as their places among these."""
    always = range(shared) if isinstance(shared, int) else shared
    if not isinstance(shared, int) and (other := sorted(set(shared) - set(heads))):
        raise EditError(f"{edit!r}: there is no head {other[0]} at this site, which has {list(heads)}.")
    return [n for n, head in enumerate(heads) if head in always]
