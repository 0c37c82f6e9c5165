"""The mathematics of one attention call, beside the user's own implementation: patterns of chosen heads, edited heads.

Everything is computed from what the call received (q, k, v, mask, scale, softcap, bias, sinks), so it is the same
under every implementation. Heads that nobody edits keep the model's own z, bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from interp.hooks.errors import EditError
from interp.hooks.stand.interface import Call
from interp.hooks.stand.narrow import Example, Narrow, attended, narrowed, together
from interp.kernels import edits as kernel
from interp.kernels.attention import attend
from interp.kernels.cpu.tiles import pattern, scores
from interp.kernels.masks.symbols import Causal, Mask, Window
from interp.kernels.masks.symbols import Dense as DenseMask


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


def apply(call: Call, edits: Sequence[Any], attend_all: Callable[[], None] | None = None) -> None:
    """Run the user's implementation where it has any say, compute the edited heads anew, put them in their places."""
    touched = _touched(call, edits)
    rows = _rows_of(edits) if touched else None
    replaced = attend_all is None and rows is None and _replaced(call, touched)
    if not replaced:
        (attend_all or call.attend)()
    if not touched:
        return
    runs = _runs(touched, edits)
    z = torch.cat([_edited_z(call, heads, edits, view) for heads, view in runs], 1)
    index = torch.tensor([head for heads, _ in runs for head in heads], device=z.device)
    new = z.transpose(1, 2).to(call.v.dtype)
    if replaced:
        call.z = new[:, :, index.argsort()]
        return
    if rows is not None:
        new = torch.where(rows[:, :, None, None], new, call.z[:, :, index])
    call.z = call.z.index_copy(2, index, new)


def _replaced(call: Call, touched: Sequence[int]) -> bool:
    """Whether all that the user's implementation would give is computed anew; eager gives its weights as well."""
    return call.implementation == "sdpa" and len(touched) == call.q.shape[1]


def _runs(touched: tuple[int, ...], edits: Sequence[Any]) -> list[tuple[tuple[int, ...], Narrow | None]]:
    """The heads that are computed together; a change of numbers is one of all its heads at once."""
    if any(isinstance(e, Dense | HeadKV) for e in edits):
        return [(touched, None)]
    return together(touched, _views(edits))


def _views(edits: Sequence[Any]) -> list[Narrow]:
    return [e for e in edits if isinstance(e, Narrow)]


def _edited_z(call: Call, heads: tuple[int, ...], edits: Sequence[Any], view: Narrow | None) -> Tensor:
    part = part_of(call, heads, [e for e in edits if isinstance(e, HeadKV)], _views(edits))
    inner = [_renumbered(e, heads) for e in edits if isinstance(e, kernel.Edit) and _concerns(e, heads)]
    dense = [e for e in edits if isinstance(e, Dense)]
    if dense:
        return _dense_z(part, heads, inner, dense)
    if view is not None:
        return attended(part.q, part.k, part.v, view, inner, part.arguments)
    return _attended(part, inner)


def _rows_of(edits: Sequence[Any]) -> Tensor | None:
    """[b, row] that any edit touches; None for all of them. The other rows keep the model's own z."""
    rows = [getattr(edit, "rows", None) for edit in edits]
    known = [r for r in rows if r is not None]
    return torch.stack(known).any(0) if len(known) == len(rows) else None


def _looked(call: Call) -> None:
    """Refuse to say where a head looks that was made to look elsewhere."""
    if call.replaced:
        raise EditError(
            f"{call.replaced} attends in the model's place: what q and k give is not what the model looked at."
            " Record z, or look outside of it."
        )


def edited_part(call: Call, heads: tuple[int, ...]) -> tuple[Part, list[kernel.Edit]]:
    """Some heads of a call and the edits that concern them; edits of the numbers of a pattern have no such form."""
    _looked(call)
    own = [e for e in call.edits if isinstance(e, Dense | HeadKV) and set(e.heads) & set(heads)]
    dense = next((e for e in own if isinstance(e, Dense)), None)
    if dense is not None:
        raise EditError(
            f"an edit sets the {dense.component} of heads {list(dense.heads)} number by number, of which there are no"
            " statistics: record the pattern instead, or edit by MaskKeys, Temperature, BiasKeys and so on."
        )
    shared = [e for e in own if isinstance(e, HeadKV)]
    if any(set(e.heads) - set(heads) for e in shared):
        raise EditError("an edit of k or v concerns other heads than the statistics asked for: leave heads out.")
    part = part_of(call, heads, shared, _views(call.edits), grouped=True)
    return part, [_renumbered(e, heads) for e in call.edits if isinstance(e, kernel.Edit) and _concerns(e, heads)]


def pattern_of(
    call: Call, component: str, heads: tuple[int, ...] | None, rows: Tensor | None, edits: Sequence[Any]
) -> Tensor:
    """The pattern or the scores of chosen heads and rows, as the edits leave them: [b, head, row, key]."""
    _looked(call)
    wanted = heads if heads is not None else tuple(range(call.q.shape[1]))
    index = _row_indices(rows)
    own = [e for e in edits if isinstance(e, Dense | HeadKV) and set(e.heads) & set(wanted)]
    computed = tuple(dict.fromkeys([*wanted, *(head for edit in own for head in edit.heads)]))
    part = part_of(call, computed, [e for e in own if isinstance(e, HeadKV)], _views(edits))
    inner = [_renumbered(e, computed) for e in edits if isinstance(e, kernel.Edit) and _concerns(e, computed)]
    dense = [e for e in own if isinstance(e, Dense)]
    if dense:
        value = _rows_picked(_edited(part, computed, component, inner, dense), index)
    elif index is None or index.ndim == 1:
        value = _plain(part, component, inner, index)
    else:
        value = torch.cat([_plain(_row(part, b), component, _of_row(inner, b), index[b]) for b in range(len(index))])
    return value[:, : len(wanted)]


def _rows_picked(value: Tensor, index: Tensor | None) -> Tensor:
    if index is None:
        return value
    if index.ndim == 1:
        return value[:, :, index]
    return torch.stack([one[:, at] for one, at in zip(value, index, strict=True)])


def _of_row(edits: Sequence[Any], b: int) -> list[Any]:
    """The same edits for one example: their rows and key sets are kept per example."""

    def one(value: Any) -> Any:
        return value[b : b + 1] if torch.is_tensor(value) and value.dtype == torch.bool and value.ndim == 2 else value

    return [replace(e, **{f.name: one(getattr(e, f.name)) for f in fields(e) if f.init}) for e in edits]


@dataclass(frozen=True)
class Part:
    """What the kernels need of some heads of a call, k and v given per query head."""

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


def part_of(
    call: Call,
    heads: tuple[int, ...],
    head_kv: Sequence[HeadKV] = (),
    views: Sequence[Narrow] = (),
    *,
    grouped: bool = False,
) -> Part:
    """What the call has of some heads, each with keys and values of its own; `grouped` leaves those of all heads
    together as they are, shared by their groups and not copied."""
    index = torch.tensor(heads, device=call.q.device)
    group, whole = call.q.shape[1] // call.k.shape[1], heads == tuple(range(call.q.shape[1]))
    q, k, v = call.q, call.k, call.v
    if not (grouped and whole and not head_kv):
        q, k, v = q[:, index], k[:, index // group], v[:, index // group]
    for edit in head_kv:
        at = torch.tensor([heads.index(h) for h in edit.heads], device=call.q.device)
        old = k if edit.component == "k" else v
        new = old.index_copy(1, at, edit.change(old[:, at].transpose(1, 2)).transpose(1, 2))
        k, v = (new, v) if edit.component == "k" else (k, new)
    bias, sinks = call.bias, call.sinks
    arguments = {
        "mask": narrowed(visible(call, index), heads, views, call.k.shape[2]),
        "scale": call.scale,
        "softcap": call.softcap,
        "bias": bias if bias is None or bias.shape[1] == 1 else bias[:, index],
        "sinks": None if sinks is None else sinks.flatten()[index],
    }
    return Part(q, k, v, arguments)


def _row(part: Part, b: int) -> Part:
    mask = part.arguments["mask"]
    mask = None if mask is None else Example(mask, b)
    bias = part.arguments["bias"]
    bias = bias[b : b + 1] if bias is not None and bias.shape[0] > 1 else bias
    return Part(part.q[b : b + 1], part.k[b : b + 1], part.v[b : b + 1], {**part.arguments, "mask": mask, "bias": bias})


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


def _plain(part: Part, component: str, inner: Sequence[kernel.Edit], rows: Tensor | None) -> Tensor:
    """The pattern or the scores under edits that need no N x N."""
    if component == "pattern":
        return pattern(part.q, part.k, rows=rows, edits=inner, **part.arguments)
    without_sinks = {name: value for name, value in part.arguments.items() if name != "sinks"}
    early = [e for e in inner if e.stage <= kernel.MaskKeys.stage]
    return scores(part.q, part.k, rows=rows, edits=early, **without_sinks)


def _edited(
    part: Part, heads: tuple[int, ...], component: str, inner: Sequence[kernel.Edit], dense: Sequence[Dense]
) -> Tensor:
    """The same with edits of the numbers themselves: N x N for these heads, which is what was asked for."""
    of_scores = [e for e in dense if e.component == "scores"]
    if component == "pattern" and not of_scores:
        weights = _plain(part, "pattern", inner, None)
    else:
        weights = _changed(_plain(part, "scores", inner, None), heads, of_scores)
    if component == "scores":
        return weights
    if of_scores:
        _refuse_after_scores(part, inner)
        weights = torch.softmax(weights, -1).masked_fill(weights.isneginf().all(-1, keepdim=True), 0.0)
    return _changed(weights, heads, [e for e in dense if e.component == "pattern"])


def _refuse_after_scores(part: Part, inner: Sequence[kernel.Edit]) -> None:
    if part.arguments["sinks"] is not None:
        raise EditError("scores of a model with learned sinks cannot be edited; edit the pattern.")
    late = [e for e in inner if e.stage > kernel.MaskKeys.stage]
    if late:
        raise EditError(
            f"scores and {type(late[0]).__name__} cannot be edited at one head in one run: the one acts before the"
            " softmax, the other moves weights after it; edit the pattern instead of the scores."
        )


def _changed(value: Tensor, heads: tuple[int, ...], edits: Sequence[Dense]) -> Tensor:
    """Scores or weights after edits of their own; a key that was hidden stays hidden from edited scores."""
    for edit in edits:
        at = torch.tensor([heads.index(h) for h in edit.heads], device=value.device)
        old = value[:, at]
        new = edit.change(old).to(value.dtype)
        value = value.index_copy(1, at, new.masked_fill(old.isneginf(), -torch.inf))
    return value


def _attended(part: Part, inner: Sequence[kernel.Edit]) -> Tensor:
    z = attend(part.q, part.k, part.v, edits=inner, **part.arguments).z
    assert z is not None
    return z


def _dense_z(part: Part, heads: tuple[int, ...], inner: Sequence[kernel.Edit], dense: Sequence[Dense]) -> Tensor:
    weights = _edited(part, heads, "pattern", inner, dense)
    return weights @ part.v.to(weights.dtype)
