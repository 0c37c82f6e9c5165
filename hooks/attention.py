"""The mathematics of one attention call, beside the user's own implementation: patterns of chosen heads, edited heads.

Everything is computed from what the call received (q, k, v, mask, scale, softcap, bias, sinks), so it is the same under every
implementation. Heads that nobody edits keep the model's own z, bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from interp.hooks.errors import EditError
from interp.hooks.interface import Call
from interp.kernels import edits as kernel
from interp.kernels.attention import attend
from interp.kernels.masks import Causal, Mask, Window
from interp.kernels.masks import Dense as DenseMask
from interp.kernels.rows import pattern, scores

CHUNK = 2**24
"""Weights held at a time while patterns are edited."""


@dataclass(frozen=True)
class Dense:
    """A change of the pattern or the scores themselves, [b, head, row, key], of some heads."""

    component: str
    heads: tuple[int, ...]
    change: Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class HeadKV:
    """A change of k or v [b, key, head, d] for single query heads, which then no longer share their group's."""

    component: str
    heads: tuple[int, ...]
    change: Callable[[Tensor], Tensor]


def apply(call: Call, edits: Sequence[Any]) -> None:
    """Run the user's implementation, then compute the edited heads anew and put them in their places."""
    call.attend()
    touched = _touched(call, edits)
    if not touched:
        return
    part = _part(call, touched, [e for e in edits if isinstance(e, HeadKV)])
    inner = [_renumbered(e, touched) for e in edits if isinstance(e, kernel.Edit)]
    dense = [e for e in edits if isinstance(e, Dense)]
    z = (
        _dense_z(part, touched, inner, dense)
        if dense
        else attend(part.q, part.k, part.v, edits=inner, **part.arguments).z
    )
    index = torch.tensor(touched, device=z.device)
    new = z.transpose(1, 2).to(call.z.dtype)
    rows = _rows_of(edits)
    if rows is not None:
        new = torch.where(rows[:, :, None, None], new, call.z[:, :, index])
    call.z = call.z.index_copy(2, index, new)


def _rows_of(edits: Sequence[Any]) -> Tensor | None:
    """[b, row] that any edit touches; None for all of them. The other rows keep the model's own z."""
    rows = [getattr(edit, "rows", None) for edit in edits]
    return None if any(r is None for r in rows) else torch.stack(rows).any(0)


def pattern_of(
    call: Call, component: str, heads: tuple[int, ...] | None, rows: Tensor | None, edits: Sequence[Any]
) -> Tensor:
    """The pattern or the scores of chosen heads and rows, as the edits leave them: [b, head, row, key]."""
    wanted = heads if heads is not None else tuple(range(call.q.shape[1]))
    part = _part(call, wanted, [e for e in edits if isinstance(e, HeadKV)])
    inner = [_renumbered(e, wanted) for e in edits if isinstance(e, kernel.Edit) and _concerns(e, wanted)]
    index = _row_indices(rows)
    if index is None or (torch.is_tensor(index) and index.ndim == 1):
        return _changed(part, wanted, component, inner, [e for e in edits if isinstance(e, Dense)], index)
    rows_of = [_changed(_row(part, b), wanted, component, inner, [], index[b]) for b in range(len(index))]
    return torch.cat(rows_of)


@dataclass(frozen=True)
class _Part:
    q: Tensor
    k: Tensor
    v: Tensor
    arguments: dict[str, Any]


def _touched(call: Call, edits: Sequence[Any]) -> tuple[int, ...]:
    heads = [range(call.q.shape[1]) if e.heads is None else e.heads for e in edits]
    return tuple(sorted({h for some in heads for h in some}))


def _concerns(edit: kernel.Edit, heads: Sequence[int]) -> bool:
    return edit.heads is None or bool(set(edit.heads) & set(heads))


def _renumbered(edit: kernel.Edit, heads: tuple[int, ...]) -> kernel.Edit:
    """The same edit where only these heads are computed."""
    if edit.heads is None:
        return edit
    return replace(edit, heads=tuple(heads.index(h) for h in edit.heads if h in heads))  # type: ignore[type-var]


def _part(call: Call, heads: tuple[int, ...], head_kv: Sequence[HeadKV]) -> _Part:
    index = torch.tensor(heads, device=call.q.device)
    group = call.q.shape[1] // call.k.shape[1]
    k, v = call.k[:, index // group], call.v[:, index // group]
    for edit in head_kv:
        at = torch.tensor([heads.index(h) for h in edit.heads], device=call.q.device)
        old = k if edit.component == "k" else v
        new = old.index_copy(1, at, edit.change(old[:, at].transpose(1, 2)).transpose(1, 2))
        k, v = (new, v) if edit.component == "k" else (k, new)
    bias, sinks = call.bias, call.sinks
    arguments = {
        "mask": visible(call, index),
        "scale": call.scale,
        "softcap": call.softcap,
        "bias": bias if bias is None or bias.shape[1] == 1 else bias[:, index],
        "sinks": None if sinks is None else sinks.flatten()[index],
    }
    return _Part(call.q[:, index], k, v, arguments)


def _row(part: _Part, b: int) -> _Part:
    mask = part.arguments["mask"]
    if isinstance(mask, DenseMask) and mask.tensor.ndim == 4 and mask.tensor.shape[0] > 1:
        mask = DenseMask(mask.tensor[b : b + 1])
    bias = part.arguments["bias"]
    bias = bias[b : b + 1] if bias is not None and bias.shape[0] > 1 else bias
    return _Part(
        part.q[b : b + 1], part.k[b : b + 1], part.v[b : b + 1], {**part.arguments, "mask": mask, "bias": bias}
    )


def visible(call: Call, heads: Tensor | None = None) -> Mask | None:
    """What the call's mask, or the implementation in its place, lets each query see."""
    mask = call.mask
    keys = call.k.shape[2]
    parts: list[Mask] = []
    if torch.is_tensor(mask):
        mask = mask[:, None, None, :].bool() if mask.ndim == 2 and call.flash else mask
        mask = mask[None] if mask.ndim == 3 else mask
        mask = mask[..., :keys]
        parts.append(DenseMask(mask if heads is None or mask.ndim < 4 or mask.shape[1] == 1 else mask[:, heads]))
    elif mask is not None:
        parts.append(DenseMask(_from_block_mask(mask, call)))
    if call.causal:
        parts.append(Causal())
    if call.window is not None:
        parts.append(Window(call.window) if not call.causal else Causal() & Window(call.window))
    if not parts:
        return None
    found = parts[0]
    for other in parts[1:]:
        found = found & other
    return found


def _from_block_mask(mask: Any, call: Call) -> Tensor:
    if not hasattr(mask, "mask_mod"):
        raise EditError(
            f"cannot read a mask of type {type(mask).__name__} under the implementation {call.implementation!r}."
        )
    from torch.nn.attention.flex_attention import create_mask

    return create_mask(mask.mask_mod, call.q.shape[0], 1, call.q.shape[2], call.k.shape[2], device=call.q.device.type)


def _row_indices(rows: Tensor | None) -> Tensor | None:
    """[batch, row] Bool as indices: one list if all examples ask for the same rows, else a list per example."""
    if rows is None:
        return None
    if bool((rows == rows[:1]).all()):
        return rows[0].nonzero().flatten()
    counts = set(rows.sum(1).tolist())
    if len(counts) > 1:
        raise EditError(f"examples ask for different numbers of pattern rows ({sorted(counts)}); ask for equally many.")
    return torch.stack([r.nonzero().flatten() for r in rows])


def _changed(
    part: _Part,
    heads: tuple[int, ...],
    component: str,
    inner: Sequence[kernel.Edit],
    dense: Sequence[Dense],
    rows: Tensor | None,
) -> Tensor:
    if component == "pattern":
        value = pattern(part.q, part.k, rows=rows, edits=inner, **part.arguments)
    else:
        inner = [e for e in inner if e.stage <= kernel.MaskKeys.stage]
        without_sinks = {name: value for name, value in part.arguments.items() if name != "sinks"}
        value = scores(part.q, part.k, rows=rows, edits=inner, **without_sinks)
    for edit in (e for e in dense if e.component == component):
        at = torch.tensor([heads.index(h) for h in edit.heads if h in heads], device=value.device)
        if rows is None and len(at):
            value = value.index_copy(1, at, edit.change(value[:, at]))
    return value


def _dense_z(part: _Part, heads: tuple[int, ...], inner: Sequence[kernel.Edit], dense: Sequence[Dense]) -> Tensor:
    """z of heads whose pattern is edited itself: N x N for those heads, which is what was asked for."""
    if any(e.component == "scores" for e in dense):
        logits = _changed(part, heads, "scores", inner, dense, None)
        weights = torch.softmax(logits.float(), -1).nan_to_num(0.0).to(logits.dtype)
        if part.arguments["sinks"] is not None:
            raise EditError("scores of a model with learned sinks cannot be edited; edit the pattern.")
    else:
        weights = _changed(part, heads, "pattern", inner, [], None)
    for edit in (e for e in dense if e.component == "pattern"):
        at = torch.tensor([heads.index(h) for h in edit.heads], device=weights.device)
        weights = weights.index_copy(1, at, edit.change(weights[:, at]))
    return weights.to(part.v.dtype) @ part.v
