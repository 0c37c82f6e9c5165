"""Attention of some rows to keys that arrive in parts, one after the other, with every statistic of the whole.

For sequences that no process holds whole. Of part c a row keeps its log-sum-exp lse_c and what it found under the
weights p_c of that part alone, which sum to 1. Two parts are put together exactly, in any order:

lse        log(exp(lse_a) + exp(lse_b)), which gives the parts' shares w_c = exp(lse_c - lse)
means      sum_c w_c x_c: z, distance, first, previous, self, mass:NAME
entropy    sum_c w_c (H_c - ln w_c), which is lse - sum p s without its cancellation
largest    those of largest score, which needs no weights: max, argmax, topk:K
received   sum_i exp(s_ij - lse_i) needs the lse of the whole: the parts have to arrive a second time
seen       a count of rows

This is the merge of ring attention (Liu et al. 2023, arXiv 2310.01889). A learned sink takes its share at the end.
Masks are asked by absolute position, so all that are said in symbols will do; parts that no row can see are passed
over. In memory: one part, a tile of about half a million weights, and numbers per row and per key. What is per key is
the sum over the rows that are here: add those of other rows (`stats.concat`). Limits: no edits, no grids (`places`), no
gradient through a merge that parts from other processes enter. Cost: that of attention, with q.k twice for `received`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from interp.kernels.edits import key_set
from interp.kernels.errors import AttentionError, known
from interp.kernels.masks.symbols import Causal, Full, Mask, Prefix, Window, as_mask
from interp.kernels.request import Found
from interp.kernels.stats import Stat, parse_all

TILE, COLUMNS = 2**19, 1024
BEST = "max", "argmax"
FROM_ZERO = Full, Causal, Window, Prefix
"""Masks under which some row sees the key 0."""


@dataclass(frozen=True, eq=False)
class KeyPart:
    """The keys at positions `start`, `start + 1`, ... of the sequence and, where z is wanted, their values."""

    start: int
    k: Float[Tensor, "batch kv key d"]
    v: Float[Tensor, "batch kv key dv"] | None = None

    @property
    def end(self) -> int:
        return self.start + self.k.shape[2]


Parts = Callable[[], Iterable[KeyPart]]
"""Every call of it brings all parts by once; in any order, but in the same processes at the same time."""


@dataclass(frozen=True, eq=False)
class Circle:
    """What is asked of rows at positions `start`, `start + 1`, ... of a sequence of `keys` tokens."""

    start: int
    keys: int
    mask: Mask
    scale: float
    softcap: float | None
    sinks: Tensor | None
    stats: tuple[Stat, ...]
    key_sets: Mapping[str, Tensor]
    """Bool [1 or batch, key] over the whole sequence."""
    first: Tensor | None
    """The first key of each example [batch]."""

    @classmethod
    def of(
        cls,
        q: Float[Tensor, "batch head query d"],
        *,
        start: int,
        keys: int,
        mask: Mask | Tensor | None = None,
        scale: float | None = None,
        softcap: float | None = None,
        sinks: Tensor | None = None,
        stats: Iterable[str | Stat] | str | None = None,
        key_sets: Mapping[str, Tensor] | None = None,
        first: Tensor | None = None,
    ) -> Circle:
        """The request checked; the key sets are over the whole sequence."""
        wanted, seen = parse_all(stats), as_mask(mask)
        for s in wanted:
            known({**MEANS, **dict.fromkeys(OTHERS)}, s.kind, "statistic of keys in parts")
        if keys < 1 or start < 0 or start + q.shape[2] > keys:
            raise AttentionError(f"{q.shape[2]} queries from position {start} on are not in a sequence of {keys} keys")
        scale, sets = q.shape[-1] ** -0.5 if scale is None else float(scale), key_sets or {}
        at = _first(first, seen, q) if any(s.kind == "first" for s in wanted) else None
        return cls(start, keys, seen, scale, softcap or None, sinks, wanted, _known_sets(wanted, sets, keys, q), at)

    def wants(self, *kinds: str) -> bool:
        return any(s.kind in kinds for s in self.stats)

    @property
    def largest(self) -> set[int]:
        """How many of the largest weights are to be kept; 1 for the largest alone."""
        return {s.k for s in self.stats if s.kind == "topk"} | ({0} if self.wants(*BEST) else set())


@dataclass(frozen=True, eq=False)
class Partial:
    """What rows know of the keys that have arrived; all under weights that sum to 1 over these keys."""

    lse: Tensor
    entropy: Tensor
    means: Mapping[str, Tensor]
    """[batch, head, row], and `z` [batch, head, row, dv]."""
    top: Mapping[int, tuple[Tensor, Tensor]]
    """Scores and keys [batch, head, row, n], from the largest; by n, and 0 for the largest one, the lowest on ties."""


def merged(a: Partial, b: Partial) -> Partial:
    """What rows know of two disjoint sets of keys."""
    lse = torch.logaddexp(a.lse, b.lse)
    at = torch.where(lse > -torch.inf, lse, 0.0)
    of_a, of_b = (a.lse - at).exp(), (b.lse - at).exp()
    means = {n: _wide(of_a, x) * x + _wide(of_b, x) * b.means[n] for n, x in a.means.items()}
    entropy = of_a * a.entropy + of_b * b.entropy - torch.xlogy(of_a, of_a) - torch.xlogy(of_b, of_b)
    return Partial(lse, entropy, means, {n: _larger(x, b.top[n]) for n, x in a.top.items()})


def _wide(share: Tensor, like: Tensor) -> Tensor:
    return share.unsqueeze(-1) if like.ndim > share.ndim else share


def _larger(a: tuple[Tensor, Tensor], b: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """The largest of both, the lower key first where two are alike."""
    score, key = torch.cat([a[0], b[0]], -1), torch.cat([a[1], b[1]], -1)
    key, order = key.sort(dim=-1)
    score, by = score.gather(-1, order).sort(dim=-1, descending=True, stable=True)
    n = a[0].shape[-1]
    return score[..., :n], key.gather(-1, by)[..., :n]


def attend_ring(
    q: Float[Tensor, "batch head query d"], parts: Parts, asked: Circle
) -> tuple[Tensor | None, Tensor, Found]:
    """z [batch, head, query, dv] in q's dtype (None where no values came), log-sum-exp, and statistics.

    The parts together are the keys of the whole sequence, once each. Statistics per key [batch, head, key] are sums
    over the queries given.
    """
    rows = _rows(q.to(torch.float64 if q.dtype == torch.float64 else torch.float32), asked)
    whole, seen = _met(asked, rows, parts)
    z, found = _finished(asked, whole)
    found["seen"] = seen
    if asked.wants("received"):
        found["received"] = _received(asked, rows, whole.lse, parts)
    return None if z is None else z.to(q.dtype), whole.lse, {name: found[name] for name in _names(asked)}


def _met(asked: Circle, rows: list[tuple[Tensor, Tensor]], parts: Parts) -> tuple[Partial, Tensor]:
    """What the rows know once all parts have arrived, and how many of them see each key."""
    found: list[Partial | None] = [None] * len(rows)
    q, spans = rows[0][0], []
    seen = torch.zeros(*q.shape[:2], asked.keys, dtype=torch.long, device=q.device)
    for part in parts():
        spans.append((part.start, part.end))
        for n, (of, i) in enumerate(rows):
            before = found[n]
            so_far = _nothing(asked, of, part) if before is None else before
            for one in _tiles(asked, part, i):
                s, visible = _scores(asked, of, i, one)
                so_far = merged(so_far, _of_tile(asked, s, visible, i, one))
                seen[..., one.start : one.end] += visible.sum(2)
            found[n] = so_far
    _check_spans(spans, asked.keys)
    return _joined([x for x in found if x is not None]), seen


def _names(asked: Circle) -> list[str]:
    return [n for s in asked.stats for n in ((s.name, s.name + ".keys") if s.kind == "topk" else (s.name,))]


def _known_sets(stats: tuple[Stat, ...], given: Mapping[str, Tensor], keys: int, q: Tensor) -> dict[str, Tensor]:
    found = {}
    for name in {s.argument for s in stats if s.kind == "mass"}:
        if name not in given or given[name].shape[-1] != keys:
            raise AttentionError(f"mass:{name} needs key_sets[{name!r}], Bool [{keys}] or [batch, {keys}]")
        found[name] = key_set(f"key set {name!r}", given[name]).to(q.device)
    return found


def _first(first: Tensor | None, mask: Mask, q: Tensor) -> Tensor:
    if first is None and type(mask) not in FROM_ZERO:
        raise AttentionError(f"which key is the first under {mask!r} is not known here: give first= [batch]")
    found = torch.zeros(1, dtype=torch.long) if first is None else first
    return found.to(q.device).reshape(-1).expand(q.shape[0])


def _check_spans(spans: list[tuple[int, int]], keys: int) -> None:
    real = sorted(span for span in spans if span[1] > span[0])
    if [0, *(high for _, high in real)] != [*(low for low, _ in real), keys]:
        raise AttentionError(f"the parts of keys, {sorted(spans)}, do not cover 0..{keys - 1} once each")


def _rows(q: Tensor, asked: Circle) -> list[tuple[Tensor, Tensor]]:
    """Queries and their positions, so many together that a tile of their weights fits."""
    step = max(1, TILE // max(1, q.shape[0] * q.shape[1] * min(asked.keys, COLUMNS)))
    at = asked.start + torch.arange(q.shape[2], device=q.device)
    return list(zip(q.split(step, 2), at.split(step), strict=True))


def _tiles(asked: Circle, part: KeyPart, i: Tensor) -> Iterator[KeyPart]:
    """Runs of a part's keys that rows at positions i can reach."""
    if not len(i):
        return
    low, high = asked.mask.reach(int(i[0]), int(i[-1]), asked.keys)
    low, high = max(low, part.start), min(high, part.end)
    for a in range(low, high, COLUMNS):
        own = slice(a - part.start, min(a + COLUMNS, high) - part.start)
        yield KeyPart(a, part.k[:, :, own], None if part.v is None else part.v[:, :, own])


def _by_kv(x: Tensor, shared: Tensor) -> Tensor:
    """A product with what heads share, which is not copied for each of them."""
    kv, rows = shared.shape[1], x.shape[2]
    together = x.unflatten(1, (kv, -1)).flatten(2, 3) @ shared
    return together.unflatten(2, (x.shape[1] // kv, rows)).flatten(1, 2)


def _scores(asked: Circle, q: Tensor, i: Tensor, part: KeyPart) -> tuple[Tensor, Tensor]:
    """Scores, -inf where hidden, and what is visible [batch, head, row, key]."""
    j = torch.arange(part.start, part.end, device=q.device)
    s = _by_kv(q * asked.scale, part.k.to(q).transpose(-1, -2))
    if asked.softcap is not None:
        s = asked.softcap * torch.tanh(s / asked.softcap)
    added = asked.mask.additive(i, j)
    s = s if added is None else s + added.to(s)
    visible = asked.mask.visible(i, j).expand_as(s)
    return s.masked_fill(~visible, -torch.inf), visible


def _nothing(asked: Circle, q: Tensor, part: KeyPart) -> Partial:
    """What rows know before any key has arrived."""
    zero = q.new_zeros(q.shape[:3])
    means = {s.name: zero for s in asked.stats if s.kind in MEANS}
    if part.v is not None:
        means["z"] = q.new_zeros(*q.shape[:3], part.v.shape[-1])
    none = zero - torch.inf
    top = {n: (none[..., None].expand(*none.shape, n or 1), -torch.ones(*none.shape, n or 1, dtype=torch.long,
           device=q.device)) for n in asked.largest}  # fmt: skip
    return Partial(none, zero, means, top)


def _of_tile(asked: Circle, s: Tensor, visible: Tensor, i: Tensor, part: KeyPart) -> Partial:
    lse = s.logsumexp(-1)
    logs = s - torch.where(lse > -torch.inf, lse, 0.0).unsqueeze(-1)
    p, j = logs.exp(), torch.arange(part.start, part.end, device=s.device)
    entropy = -(p * logs.masked_fill(~visible, 0.0)).sum(-1)
    means = {x.name: (p * MEANS[x.kind](x, asked, i, j).to(p)).sum(-1) for x in asked.stats if x.kind in MEANS}
    if part.v is not None:
        means["z"] = _by_kv(p, part.v.to(p))
    return Partial(lse, entropy, means, {n: _largest(s, n, part.start) for n in asked.largest})


def _largest(s: Tensor, n: int, start: int) -> tuple[Tensor, Tensor]:
    if n == 0:
        at = s.argmax(-1, keepdim=True)
        score = s.gather(-1, at)
    else:
        score, at = s.topk(min(n, s.shape[-1]), dim=-1)
        score, at = (
            torch.nn.functional.pad(x, (0, n - x.shape[-1]), value=v) for x, v in ((score, -torch.inf), (at, 0))
        )
    return score, (at + start).masked_fill(score == -torch.inf, -1)


MEANS: dict[str, Callable[[Stat, Circle, Tensor, Tensor], Tensor]] = {
    "distance": lambda s, of, i, j: (i[:, None] - j).abs(),
    "first": lambda s, of, i, j: (j == of.first[:, None])[:, None, None],  # type: ignore[index]
    "previous": lambda s, of, i, j: j == i[:, None] - 1,
    "self": lambda s, of, i, j: j == i[:, None],
    "mass": lambda s, of, i, j: of.key_sets[s.argument][:, j][:, None, None],
}
"""The number per row and key whose mean under the weights the statistic is, broadcasting to [batch, head, row, key]."""
OTHERS = ("lse", "sink", "entropy", "topk", *BEST, "received", "seen")


def _joined(parts: list[Partial]) -> Partial:
    """One after another along rows."""
    means = {n: torch.cat([x.means[n] for x in parts], 2) for n in parts[0].means}
    top = {n: tuple(torch.cat([x.top[n][side] for x in parts], 2) for side in (0, 1)) for n in parts[0].top}
    lse, entropy = (torch.cat([getattr(x, name) for x in parts], 2) for name in ("lse", "entropy"))
    return Partial(lse, entropy, means, top)  # type: ignore[arg-type]


def _sink(asked: Circle, lse: Tensor) -> tuple[Tensor, Tensor]:
    """The learned sink's weight, and the logarithm of what it leaves; all of a row that sees nothing."""
    if asked.sinks is None:
        return torch.zeros_like(lse), torch.zeros_like(lse)
    sees = lse > -torch.inf
    above = asked.sinks.to(lse).reshape(1, -1, 1) - torch.where(sees, lse, 0.0)
    return torch.where(sees, above.sigmoid(), 1.0), torch.where(sees, torch.nn.functional.logsigmoid(-above), 0.0)


def _finished(asked: Circle, x: Partial) -> tuple[Tensor | None, Found]:
    """z and the statistics per row, with the learned sink's share taken off."""
    sink, log_share = _sink(asked, x.lse)
    share, at = log_share.exp(), torch.where(x.lse > -torch.inf, x.lse, 0.0)
    found = {n: _wide(share, value) * value for n, value in x.means.items()}
    found |= {"lse": x.lse, "sink": sink, "entropy": share * (x.entropy - log_share)}
    for n, (score, key) in x.top.items():
        p = (score - (at - log_share).unsqueeze(-1)).exp()
        found |= {f"topk:{n}": p, f"topk:{n}.keys": key} if n else {"max": p[..., 0], "argmax": key[..., 0]}
    return found.pop("z", None), found


def _received(asked: Circle, rows: list[tuple[Tensor, Tensor]], lse: Tensor, parts: Parts) -> Tensor:
    """Weight on every key from the rows here, whose log-sum-exp is known by now."""
    total = lse.new_zeros(*lse.shape[:2], asked.keys)
    less = torch.where(lse > -torch.inf, lse, 0.0) - _sink(asked, lse)[1]
    each = less.split([len(i) for _, i in rows], 2)
    for part in parts():
        for (of, i), apart in zip(rows, each, strict=True):
            for one in _tiles(asked, part, i):
                s, _ = _scores(asked, of, i, one)
                total[..., one.start : one.end] += (s - apart.unsqueeze(-1)).exp().sum(2)
    return total
