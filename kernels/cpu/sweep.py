"""Attention and its statistics in torch's own operators, one row block of one kv head at a time, without a compiler.

A block of scores is small enough to stay in cache; everything asked for is taken from it before the next one overwrites
it: the softmax in two passes over the block, entropy as `ln l - sum e t / l` (t the scores less their maximum, so
nothing large cancels), the largest key by first finding the run of 64 keys that holds it, received attention as a
vector times the block. Where the log-sum-exp is known from another forward pass (`attend(..., lse=...)`), the weights
are `exp(s - lse)` at once. Cost: about twice the time of torch's fused attention with no statistics, three times with
five of them; memory linear in the number of tokens. Edits act on the block in place (`sweep_edits.py`); what is read
from it is in `sweep_stats.py`. For calls without gradient; `rows` takes the rest.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from interp.kernels import edits as E
from interp.kernels.abilities import ANY, FLOATS, Abilities
from interp.kernels.cpu.products import each_alone, quicker
from interp.kernels.cpu.sweep_edits import EDITS, HIDDEN, ScoreBlock, edit_scores, edit_weights, moves
from interp.kernels.cpu.sweep_stats import STATS, Outputs, Place, ReadBlock, Softmax, put_rows, summed
from interp.kernels.masks.symbols import Mask
from interp.kernels.request import Computed, Request

BLOCK = 2**19
SMALL = 2**15
RUN = 64
ROWS, LEAST = 256, 32


ABLE = Abilities(
    masks=ANY,
    edits=EDITS,
    stats=STATS,
    options={"softcap", "bias", "sinks", "rows", "no v", "width", "places", "lse"},
    gradients=set(),
    dtypes=FLOATS,
    devices=ANY,
)


def declines(made: Request) -> str | None:
    """Calls so small that going head by head costs more than it saves."""
    small = len(made.rows) * made.keys * made.group < SMALL and made.batch * made.heads > 1
    return "too small to go head by head" if small else None


@dataclass(frozen=True, eq=False)
class Hidden:
    """What the mask does to one run of rows and keys [low, high): the parts to hide, the bias to add."""

    low: int
    high: int
    parts: list[tuple[int, int, Tensor]]
    bias: Tensor | None


def attend(made: Request) -> Computed:
    """z in the dtype of q, log-sum-exp, statistics and counts."""
    with torch.no_grad(), quicker(made.q.to(made.accumulate)[:1, :1, :1]):
        out = _outputs(made)
        q, k = made.row_q().to(made.accumulate) * made.scale, made.k.to(made.accumulate)
        v = None if made.v is None else made.v.to(made.accumulate)
        pairs = [(b, kv) for b in range(made.batch) for kv in range(k.shape[1])]
        each_alone(lambda mine: _heads(made, out, mine, q, k, v), pairs)
        return _gated(made, out.z), out.lse, out.finished(), out.counts()


def _heads(
    made: Request, out: Outputs, pairs: Sequence[tuple[int, int]], q: Tensor, k: Tensor, v: Tensor | None
) -> None:
    """Everything about some pairs of example and kv head, which nobody else writes to."""
    scratch = torch.zeros(2, 0, dtype=made.accumulate, device=q.device)
    for at in _runs(made):
        hidden = hide(made.mask, made.positions[at], made.keys)
        needed = made.group * (at.stop - at.start) * (-(-(hidden.high - hidden.low) // RUN) * RUN)
        if scratch.shape[1] < needed:
            scratch = scratch.new_zeros(2, needed)
        for b, kv in pairs:
            _block(made, out, Place(b, kv, at), hidden, q, k[b, kv], None if v is None else v[b, kv], scratch)


def _outputs(made: Request) -> Outputs:
    shape = (made.batch, made.heads, len(made.rows))
    z = None if made.v is None else torch.zeros(*shape, made.v.shape[-1], dtype=made.q.dtype, device=made.q.device)
    return Outputs(made, z, torch.zeros(shape, dtype=made.accumulate, device=made.q.device))


def _runs(made: Request) -> Iterator[slice]:
    """As many rows as fit into a block with the keys they can reach."""
    a, total, ends = 0, len(made.rows), made.positions.tolist()
    while a < total:
        most = min(a + ROWS, total)
        low, high = made.mask.reach(ends[a], ends[most - 1], made.keys)
        step = max(1, LEAST // made.group, BLOCK // (made.group * max(high - low, 1)))
        step = step if step < RUN else step // RUN * RUN
        yield slice(a, min(a + step, most))
        a = min(a + step, most)


def hide(mask: Mask, i: Tensor, keys: int) -> Hidden:
    """The mask for a run of rows; only the keys that are not certainly seen are looked at."""
    ends = i[[0, -1]].tolist()
    low, high = mask.reach(ends[0], ends[1], keys)
    low = max(0, min(low, keys - 1))
    low, high = _rounded(low, min(max(high, low + 1), keys), keys)
    a, b = mask.sure(ends[0], ends[1], keys)
    a, b = max(a, low), min(b, high)
    spans = [(low, a), (b, high)] if a < b else [(low, high)]
    parts = []
    for x, y in spans:
        if x < y:
            hidden = ~mask.visible(i, torch.arange(x, y, device=i.device))
            parts.append((x, y, hidden))
    return Hidden(low, high, parts, mask.additive(i, torch.arange(low, high, device=i.device)))


def _rounded(low: int, high: int, keys: int) -> tuple[int, int]:
    """Somewhat wider, so that there are few different widths: oneDNN compiles and keeps a product for each."""
    grain = max(RUN, 1 << max(0, ((high - low) // 16).bit_length() - 1))
    return low // grain * grain, min(keys, -(-high // grain) * grain)


def _mine(x: Tensor, b: int, heads: slice) -> Tensor:
    """[1 or group, rows, keys] of a tensor [1 or batch, 1 or head, rows, keys]."""
    return x[b if x.shape[0] > 1 else 0][heads if x.shape[1] > 1 else slice(0, 1)]


def _block(
    made: Request, out: Outputs, place: Place, hidden: Hidden, q: Tensor, k: Tensor, v: Tensor | None, scratch: Tensor
) -> None:
    heads, n = place.heads(made.group), hidden.high - hidden.low
    rows, width = place.at.stop - place.at.start, -(-n // RUN) * RUN
    s, e = (x[: made.group * rows * width].view(made.group * rows, width) for x in scratch)
    mine = q[place.b, heads, place.at].reshape(-1, q.shape[-1])
    _scores(made, place, hidden, mine, k, s, rows)
    block, moved, sums = ScoreBlock(made, place.b, heads, place.at, hidden.low), moves(made), summed(made)
    edit_scores(block, _keys_of(s, rows, n))
    visible = s > HIDDEN / 2 if moved or "seen" in sums else None
    if visible is not None and "seen" in sums:
        out.add("seen", place.b, heads, hidden.low, _keys_of(visible, rows, n).sum(1))
    unmoved, (e, row) = 0, _softmax(made, place, s, e, hidden.low, moved)
    if moved and visible is not None:
        total = row.total.view(-1, rows, 1)
        t, weights, seen = (_keys_of(x, rows, n) for x in (s, e, visible))
        unmoved = edit_weights(block, t, weights, seen, total)
        row = _ranked_anew(made, row, s, e, visible, hidden.low)
    out.lse[place.b, heads, place.at] = row.lse.view(-1, rows)
    if v is not None and out.z is not None:
        z = torch.mm(e[:, :n], v[hidden.low : hidden.high]).mul_(row.factor.unsqueeze(-1))
        out.z[place.b, heads, place.at] = z.view(-1, rows, z.shape[-1]).to(out.z.dtype)
    if "received" in sums:
        received = row.factor.view(-1, 1, rows) @ e[:, :n].unflatten(0, (-1, rows))
        out.add("received", place.b, heads, hidden.low, received.squeeze(1))
    put_rows(out, ReadBlock(made, place, hidden.low, s[:, :n], e[:, :n], row))
    out.count(int(row.blind.sum()), unmoved)


def _keys_of(x: Tensor, rows: int, n: int) -> Tensor:
    """[head, row, key] of a block, without what rounds it up."""
    return x.view(-1, rows, x.shape[1])[:, :, :n]


def _softmax(made: Request, place: Place, s: Tensor, e: Tensor, low: int, moved: bool) -> tuple[Tensor, Softmax]:
    """s less a number per row, the exponentials of that, and what normalises them: the maximum, or the lse if known."""
    heads, rows, argmax = place.heads(made.group), place.at.stop - place.at.start, None
    apart = moved or made.wants("entropy", "topk")
    if made.lse is not None:
        top = None
        if made.wants("max", "argmax") and not moved:
            top, argmax = _top(s, low)
        lse = made.lse[place.b, heads, place.at].to(s).flatten()
        blind = lse == -torch.inf
        shift, total = lse.masked_fill(blind, 0.0), torch.ones_like(lse)
    else:
        top, argmax = _top(s, low) if made.wants("argmax") and not moved else (s.amax(-1), None)
        blind, shift = top <= HIDDEN / 2, top
    s.sub_(shift.unsqueeze(-1))
    e = torch.exp(s, out=e) if apart else s.exp_()
    if made.lse is None:
        total = e.sum(-1)
        lse = (shift + total.log()).masked_fill(blind, -torch.inf)
    sink, share = _sink(made, heads, lse, rows)
    factor = (share.exp() / total).masked_fill(blind, 0.0)
    largest = factor if top is None or made.lse is None else (top - shift).exp() * factor
    return e, Softmax(lse, sink, share, factor, total, argmax, largest, blind, moved)


def _ranked_anew(made: Request, row: Softmax, s: Tensor, e: Tensor, visible: Tensor, low: int) -> Softmax:
    """After weights moved, s holds them in its turn, for what ranks keys."""
    if not made.wants("max", "argmax", "topk"):
        return row
    top, argmax = _top(s.copy_(e).masked_fill_(~visible, HIDDEN), low)
    return replace(row, argmax=argmax, largest=(top * row.factor).masked_fill(row.blind, 0.0))


def _scores(made: Request, place: Place, hidden: Hidden, q: Tensor, k: Tensor, s: Tensor, rows: int) -> None:
    heads, n = place.heads(made.group), hidden.high - hidden.low
    if s.shape[1] > n:
        s[:, n:] = HIDDEN
    torch.mm(q, k[hidden.low : hidden.high].T, out=s[:, :n]) if s.shape[1] == n else s[:, :n].copy_(
        torch.mm(q, k[hidden.low : hidden.high].T)
    )
    block = _keys_of(s, rows, n)
    if made.softcap is not None:
        block.div_(made.softcap).tanh_().mul_(made.softcap)
    if hidden.bias is not None:
        block.add_(_mine(hidden.bias, place.b, heads).to(s.dtype))
    for a, b, part in hidden.parts:
        block[:, :, a - hidden.low : b - hidden.low].masked_fill_(_mine(part, place.b, heads), HIDDEN)


def _top(s: Tensor, low: int) -> tuple[Tensor, Tensor]:
    """The largest score of each row and its key: first the run of keys that holds it, then the key."""
    runs = s.view(len(s), -1, RUN)
    top, run = runs.amax(-1).max(-1)
    inside = runs[torch.arange(len(s), device=s.device), run].argmax(-1)
    return top, run * RUN + inside + low


def _sink(made: Request, heads: slice, lse: Tensor, rows: int) -> tuple[Tensor, Tensor]:
    """The learned sink's weight, and the logarithm of what it leaves."""
    if made.sinks is None:
        return torch.zeros_like(lse), torch.zeros_like(lse)
    above = made.sinks[heads].to(lse).repeat_interleave(rows) - lse
    return above.sigmoid(), torch.nn.functional.logsigmoid(-above).clamp(min=HIDDEN)


def _gated(made: Request, z: Tensor | None) -> Tensor | None:
    heads = torch.arange(made.heads, device=made.q.device)
    for edit in E.only(made.output_edits, E.Gate):
        if z is not None:
            wide = z.to(made.accumulate)  # a gate rounded as z is would move it once more
            new = (wide * E.per_head(edit.value, heads, wide)).to(z.dtype)
            touched = edit.where(heads, made.rows)
            z = new if touched is None else torch.where(touched, new, z)
    return z
