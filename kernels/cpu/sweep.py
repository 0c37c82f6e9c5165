"""Attention and its statistics in torch's own operators, one row block of one kv head at a time, without a compiler.

A block of scores is small enough to stay in cache; everything asked for is taken from it before the next one overwrites
it: the softmax in two passes over the block, entropy as `ln l - sum e t / l` (t the scores less their maximum, so
nothing large cancels), the largest key by first finding the run of 64 keys that holds it, received attention as a
vector times the block. Where the log-sum-exp is known from another forward pass (`attend(..., lse=...)`), the weights
are `exp(s - lse)` at once. Cost: about twice the time of torch's fused attention with no statistics, three times with
five of them; memory linear in the number of tokens. Edits act on the block in place (`sweep_edits.py`). For calls
without gradient; `rows` takes the rest.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from threading import Lock

import torch
from torch import Tensor

from interp.kernels import edits as E
from interp.kernels.cpu.products import each_alone, quicker
from interp.kernels.cpu.sweep_edits import Block, edit_scores, edit_weights, moves
from interp.kernels.masks.symbols import Mask
from interp.kernels.request import Request
from interp.kernels.stats import ratio

BLOCK = 2**19
SMALL = 2**15
RUN = 64
ROWS, LEAST = 256, 32
HIDDEN = -1e30

Found = dict[str, Tensor]


def refuses(made: Request) -> str | None:
    """Why this file cannot compute the request."""
    if made.gradient():
        return "a gradient is wanted, and blocks are overwritten"
    return None


def worthwhile(made: Request) -> str | None:
    """The same, and for choosing: calls so small that going head by head costs more than it saves."""
    small = len(made.rows) * made.keys * made.group < SMALL and made.batch * made.heads > 1
    return refuses(made) or ("too small to go head by head" if small else None)


@dataclass(frozen=True, eq=False)
class Hidden:
    """What the mask does to one run of rows and keys [low, high): the parts to hide, the bias to add."""

    low: int
    high: int
    parts: list[tuple[int, int, Tensor]]
    bias: Tensor | None


@dataclass(eq=False)
class Outputs:
    """Where results are written."""

    made: Request
    z: Tensor | None
    lse: Tensor
    stats: Found = field(default_factory=dict)
    blind: int = 0
    unmoved: int = 0
    lock: Lock = field(default_factory=Lock)

    def count(self, blind: int, unmoved: int) -> None:
        with self.lock:
            self.blind += blind
            self.unmoved += unmoved

    def _room(self, name: str, shape: tuple[int, ...], like: Tensor) -> Tensor:
        with self.lock:
            if name not in self.stats:
                self.stats[name] = torch.zeros(shape, dtype=like.dtype, device=like.device)
            return self.stats[name]

    def put(self, name: str, b: int, heads: slice, at: slice, value: Tensor) -> None:
        shape = (self.made.batch, self.made.heads, len(self.made.rows), *value.shape[2:])
        self._room(name, shape, value)[b, heads, at] = value

    def add(self, name: str, b: int, heads: slice, low: int, value: Tensor) -> None:
        shape = (self.made.batch, self.made.heads, self.made.keys)
        self._room(name, shape, value)[b, heads, low : low + value.shape[-1]] += value


def attend(made: Request) -> tuple[Tensor | None, Tensor, Found, Found]:
    """z in the dtype of q, log-sum-exp, statistics and counts."""
    with torch.no_grad(), quicker(made.q.to(made.accumulate)[:1, :1, :1]):
        out = _outputs(made)
        q, k = made.row_q().to(made.accumulate) * made.scale, made.k.to(made.accumulate)
        v = None if made.v is None else made.v.to(made.accumulate)
        pairs = [(b, kv) for b in range(made.batch) for kv in range(k.shape[1])]
        each_alone(lambda mine: _heads(made, out, mine, q, k, v), pairs)
        return _gated(made, out.z), out.lse, _finished(made, out), _counts(made, out)


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
            _block(made, out, _Place(b, kv, at), hidden, q, k[b, kv], None if v is None else v[b, kv], scratch)


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


@dataclass(frozen=True)
class _Place:
    b: int
    kv: int
    at: slice

    def heads(self, group: int) -> slice:
        return slice(self.kv * group, (self.kv + 1) * group)


def _mine(x: Tensor, b: int, heads: slice) -> Tensor:
    """[1 or group, rows, keys] of a tensor [1 or batch, 1 or head, rows, keys]."""
    return x[b if x.shape[0] > 1 else 0][heads if x.shape[1] > 1 else slice(0, 1)]


def _block(
    made: Request, out: Outputs, place: _Place, hidden: Hidden, q: Tensor, k: Tensor, v: Tensor | None, scratch: Tensor
) -> None:
    heads, n = place.heads(made.group), hidden.high - hidden.low
    rows, width = place.at.stop - place.at.start, -(-n // RUN) * RUN
    s, e = (x[: made.group * rows * width].view(made.group * rows, width) for x in scratch)
    mine = q[place.b, heads, place.at].reshape(-1, q.shape[-1])
    _scores(made, place, hidden, mine, k, s, rows)
    block, moved = Block(made, place.b, heads, place.at, hidden.low), moves(made)
    edit_scores(block, _keys_of(s, rows, n), HIDDEN)
    visible = s > HIDDEN / 2 if moved or made.wants("seen", "received_mean") else None
    if visible is not None and made.wants("seen", "received_mean"):
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
    if made.stats:
        _statistics(made, out, place, hidden, s[:, :n], e[:, :n], row, rows)
    out.count(int(row.blind.sum()), unmoved)


def _keys_of(x: Tensor, rows: int, n: int) -> Tensor:
    """[head, row, key] of a block, without what rounds it up."""
    return x.view(-1, rows, x.shape[1])[:, :, :n]


def _softmax(made: Request, place: _Place, s: Tensor, e: Tensor, low: int, moved: bool) -> tuple[Tensor, _Rows]:
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
    return e, _Rows(lse, sink, share, factor, total, argmax, largest, blind, moved)


def _ranked_anew(made: Request, row: _Rows, s: Tensor, e: Tensor, visible: Tensor, low: int) -> _Rows:
    """After weights moved, s holds them in its turn, for what ranks keys."""
    if not made.wants("max", "argmax", "topk"):
        return row
    top, argmax = _top(s.copy_(e).masked_fill_(~visible, HIDDEN), low)
    return replace(row, argmax=argmax, largest=(top * row.factor).masked_fill(row.blind, 0.0))


def _scores(made: Request, place: _Place, hidden: Hidden, q: Tensor, k: Tensor, s: Tensor, rows: int) -> None:
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


@dataclass(frozen=True, eq=False)
class _Rows:
    lse: Tensor
    sink: Tensor
    share: Tensor
    factor: Tensor
    total: Tensor
    argmax: Tensor | None
    largest: Tensor
    blind: Tensor
    moved: bool


def _statistics(
    made: Request, out: Outputs, place: _Place, hidden: Hidden, t: Tensor, e: Tensor, row: _Rows, rows: int
) -> None:
    heads = place.heads(made.group)
    simple = {"lse": row.lse, "sink": row.sink, "max": row.largest}
    if row.argmax is not None:
        simple["argmax"] = row.argmax.masked_fill(row.blind, -1)
    for s in made.stats:
        if s.per_key:
            continue
        if s.kind == "topk":
            values, at = _topk(s.k, t, e)
            out.put(s.name, place.b, heads, place.at, (values * row.factor[:, None]).unflatten(0, (-1, rows)))
            at = torch.where(at >= 0, at + hidden.low, at)
            out.put(s.name + ".keys", place.b, heads, place.at, at.unflatten(0, (-1, rows)))
            continue
        if s.kind in simple:
            value = simple[s.kind]
        elif s.kind == "entropy":
            continue
        else:
            value = _weighed(made, s.kind, s.argument, place, hidden, e, rows) * row.factor
        out.put(s.name, place.b, heads, place.at, value.view(-1, rows))
    if made.wants("received", "received_mean"):
        received = row.factor.view(-1, 1, rows) @ e.unflatten(0, (-1, rows))
        out.add("received", place.b, heads, hidden.low, received.squeeze(1))
    if made.wants("entropy"):
        out.put("entropy", place.b, heads, place.at, _entropy(t, e, row).view(-1, rows))


def _entropy(t: Tensor, e: Tensor, row: _Rows) -> Tensor:
    """Overwrites t."""
    if row.moved:
        return torch.special.entr(torch.mul(e, row.factor.unsqueeze(-1), out=t), out=t).sum(-1)
    log = row.total.log() - row.share
    return (row.share.exp() * log - row.factor * t.mul_(e).sum(-1)).masked_fill(row.blind, 0.0)


def _weighed(made: Request, kind: str, argument: str, place: _Place, hidden: Hidden, e: Tensor, rows: int) -> Tensor:
    if kind == "mass":
        keys = made.key_sets[argument].to(e.device)
        return e @ keys[place.b if len(keys) > 1 else 0, hidden.low : hidden.high].to(e.dtype)
    i = made.positions[place.at]
    if kind == "distance":
        far = _distances(made, i, torch.arange(hidden.low, hidden.high, device=e.device)).to(e.dtype)
        return (e.unflatten(0, (-1, rows)) * far).sum(-1).flatten()
    at = (
        i - (1 if kind == "previous" else 0)
        if made.first is None or kind != "first"
        else made.first[place.b].expand(rows)
    )
    inside = (at >= hidden.low) & (at < hidden.high)
    column = (at - hidden.low).clamp(0, e.shape[1] - 1).repeat(len(e) // rows)
    return e.gather(1, column[:, None]).squeeze(1) * inside.repeat(len(e) // rows)


def _distances(made: Request, i: Tensor, j: Tensor) -> Tensor:
    if made.places is None:
        return (i[:, None] - j[None, :]).abs()
    places = made.places.to(j.device)
    return torch.cdist(places[i], places[j], compute_mode="donot_use_mm_for_euclid_dist")


def _topk(k: int, t: Tensor, e: Tensor) -> tuple[Tensor, Tensor]:
    """By score; a row that sees nothing has t = 0 everywhere and is wiped by its factor, its keys by `_finished`."""
    values, at = t.topk(min(k, t.shape[-1]), dim=-1)
    found = torch.where(values > HIDDEN / 2, e.gather(-1, at), 0.0)
    at = at.masked_fill(values <= HIDDEN / 2, -1)
    pad = (0, k - at.shape[-1])
    return torch.nn.functional.pad(found, pad), torch.nn.functional.pad(at, pad, value=-1)


def _gated(made: Request, z: Tensor | None) -> Tensor | None:
    heads = torch.arange(made.heads, device=made.q.device)
    for edit in made.edits:
        if isinstance(edit, E.Gate) and z is not None:
            new = z * E.per_head(edit.value, heads, z)
            touched = edit.where(heads, made.rows)
            z = new if touched is None else torch.where(touched, new, z)
    return z


def _finished(made: Request, out: Outputs) -> Found:
    blind, found = out.lse == -torch.inf, {}
    for s in made.stats:
        received = s.kind == "received_mean"
        found[s.name] = ratio(out.stats["received"], out.stats["seen"]) if received else out.stats[s.name]
        if s.kind == "topk":
            found[s.name + ".keys"] = out.stats[s.name + ".keys"].masked_fill(blind.unsqueeze(-1), -1)
    return found


def _counts(made: Request, out: Outputs) -> Found:
    return {"blind": torch.tensor(out.blind), "unmoved": torch.tensor(out.unmoved)}
