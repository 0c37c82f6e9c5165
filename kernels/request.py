"""One attention call, checked: what every implementation receives."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from interp.kernels.edits import Edit, Gate, MaskKeys, Redistribute, in_stages, key_set
from interp.kernels.errors import AttentionError
from interp.kernels.masks.base import tensors
from interp.kernels.masks.symbols import Causal, Dense, Full, Mask, Padding, Prefix, Window, as_mask
from interp.kernels.stats import Stat, parse_all

PLAIN = ("q", "k", "v", "mask", "scale", "edits", "stats", "key_sets", "first")
"""Fields of a plain call; any other is an option, which an implementation takes by declaring it."""

Rows = Tensor | slice | range | Sequence[int] | None
Found = dict[str, Tensor]
Computed = tuple[Tensor | None, Tensor, Found, Found]
"""z (None where no v was given), log-sum-exp, statistics by name, counts by name."""


@dataclass(frozen=True, eq=False)
class Request:
    """q [batch, head, query, d], k [batch, kv head, key, d], v [batch, kv head, key, dv] or None where z is not wanted.

    The additive bias is part of the mask (`masks.Dense`), where T5 puts the mask into its position bias in the first
    place. What statistics alone read (`key_sets`, `places`, `first`) is kept where one that reads it is asked for.
    """

    q: Tensor
    k: Tensor
    v: Tensor | None
    mask: Mask
    scale: float
    softcap: float | None
    sinks: Tensor | None
    edits: tuple[Edit, ...]
    stats: tuple[Stat, ...]
    rows: Tensor
    key_sets: Mapping[str, Tensor] = field(default_factory=dict)
    places: Tensor | None = None
    first: Tensor | None = None
    lse: Tensor | None = None

    @property
    def batch(self) -> int:
        return self.q.shape[0]

    @property
    def heads(self) -> int:
        return self.q.shape[1]

    @property
    def group(self) -> int:
        return self.q.shape[1] // self.k.shape[1]

    @property
    def keys(self) -> int:
        return self.k.shape[2]

    @property
    def positions(self) -> Tensor:
        """Which key each row is; the last query is the last key."""
        return self.rows + (self.keys - self.q.shape[2])

    @property
    def whole(self) -> bool:
        """Whether all rows are asked for, in order."""
        return len(self.rows) == self.q.shape[2]

    @property
    def accumulate(self) -> torch.dtype:
        """The dtype sums are taken in."""
        return torch.float64 if self.q.dtype == torch.float64 else torch.float32

    def row_q(self) -> Tensor:
        """The queries of the rows asked for."""
        return self.q if self.whole else self.q.index_select(2, self.rows)

    @property
    def score_edits(self) -> tuple[Edit, ...]:
        """Stages 1 to 4, which act on scores and on what is visible."""
        return tuple(e for e in self.edits if e.stage <= MaskKeys.stage)

    @property
    def moving_edits(self) -> tuple[Edit, ...]:
        """Stage 5, which moves weight between keys: in logarithms, or a target of next to no weight divides by it."""
        return tuple(e for e in self.edits if MaskKeys.stage < e.stage <= Redistribute.stage)

    @property
    def weight_edits(self) -> tuple[Edit, ...]:
        """Stage 6, which acts on the weights themselves."""
        return tuple(e for e in self.edits if Redistribute.stage < e.stage < Gate.stage)

    @property
    def output_edits(self) -> tuple[Edit, ...]:
        """Stage 7, which acts on z."""
        return tuple(e for e in self.edits if e.stage >= Gate.stage)

    def wants(self, *kinds: str) -> bool:
        return any(s.kind in kinds for s in self.stats)

    @functools.cached_property
    def adds(self) -> bool:
        """Whether the mask adds to the scores."""
        one = self.positions[:1]
        return self.mask.additive(one, one.clamp(0, self.keys - 1)) is not None

    @functools.cached_property
    def options(self) -> tuple[str, ...]:
        """What is asked beyond a plain call, where the mask, edits and statistics have their own names."""
        given = {n: getattr(self, n) is not None for n in self.__dataclass_fields__ if n not in PLAIN}
        width = self.q.shape[-1] if self.v is None else self.v.shape[-1]
        given |= {"rows": not self.whole, "bias": self.adds, "no v": self.v is None, "width": width != self.q.shape[-1]}
        return tuple(name for name, is_so in given.items() if is_so)

    def gradients(self) -> tuple[str, ...]:
        """Whose gradient somebody will ask for: `q`, `sinks`, ..., `bias` for what the mask adds, `Gate.value`."""
        return self._leaves if torch.is_grad_enabled() else ()

    @functools.cached_property
    def _leaves(self) -> tuple[str, ...]:
        own = [(name, getattr(self, name)) for name in self.__dataclass_fields__]
        masks = [("bias", t) for t in tensors(self.mask)]
        edits = [(f"{type(e).__name__}.{n}", x) for e in self.edits for n, x in vars(e).items()]
        wanted = [n for n, x in own + masks + edits if isinstance(x, Tensor) and x.requires_grad]
        return tuple(dict.fromkeys(wanted))

    def gradient(self) -> bool:
        """Whether somebody will ask for a gradient."""
        return bool(self.gradients())


def request(
    q: Tensor,
    k: Tensor,
    v: Tensor | None,
    *,
    mask: Mask | Tensor | None = None,
    scale: float | None = None,
    softcap: float | None = None,
    bias: Tensor | None = None,
    sinks: Tensor | None = None,
    edits: Iterable[Edit] | Edit | None = None,
    stats: Iterable[str | Stat] | str | None = None,
    rows: Rows = None,
    key_sets: Mapping[str, Tensor] | None = None,
    places: Tensor | None = None,
    first: Tensor | None = None,
    lse: Tensor | None = None,
) -> Request:
    """The call with everything checked and named; see `interp.kernels.attention.attend` for the arguments."""
    _check_tensors(q, k, v)
    batch, heads, queries, keys = q.shape[0], q.shape[1], q.shape[2], k.shape[2]
    symbols = as_mask(mask)
    if bias is not None:
        symbols = symbols & Dense(_bias(bias, q, k))
    symbols.check(queries, keys)
    _check_broadcast(symbols, q, k)
    staged, on_grid = in_stages(edits), _places(places, queries, keys)
    for edit in staged:
        edit.check(batch, heads, queries, keys)
    wanted = parse_all(stats)
    sets = _check_sets(wanted, key_sets or {}, batch, keys)
    made = Request(
        q=q,
        k=k,
        v=v,
        mask=symbols,
        scale=_scale(scale, q.shape[-1]),
        softcap=_softcap(softcap),
        sinks=_sinks(sinks, heads),
        edits=staged,
        stats=wanted,
        rows=_rows(rows, queries, q.device),
        key_sets=sets,
        places=on_grid if any(s.reads("places") for s in wanted) else None,
        first=None,
        lse=lse,
    )
    _check_lse(made)
    return _with_first(made, first) if any(s.reads("first") for s in wanted) else made


def _check_tensors(q: Tensor, k: Tensor, v: Tensor | None) -> None:
    given = {"q": q, "k": k} | ({} if v is None else {"v": v})
    for name, x in given.items():
        if x.dim() != 4 or not x.is_floating_point():
            raise AttentionError(f"{name} must be floating [batch, head, position, d]; got {x.dtype} {list(x.shape)}")
    shapes = ", ".join(f"{n} {list(x.shape)}" for n, x in given.items())
    if q.shape[0] != k.shape[0] or q.shape[-1] != k.shape[-1] or (v is not None and k.shape[:3] != v.shape[:3]):
        raise AttentionError(f"q and k must agree in batch and d, k and v in all but the last axis; got {shapes}")
    if k.shape[1] == 0 or q.shape[1] % k.shape[1]:
        raise AttentionError(f"the number of query heads must be a multiple of that of kv heads; got {shapes}")
    if min(q.shape[0], q.shape[2], k.shape[2], q.shape[3]) == 0:
        raise AttentionError(f"attention needs at least one batch row, query, key and feature; got {shapes}")
    if len({x.dtype for x in given.values()}) > 1 or len({x.device for x in given.values()}) > 1:
        raise AttentionError(
            f"q, k and v must share dtype and device; got {[(x.dtype, str(x.device)) for x in given.values()]}"
        )


def _check_broadcast(mask: Mask, q: Tensor, k: Tensor) -> None:
    one = torch.tensor([k.shape[2] - 1], device=q.device)
    shape = mask.visible(one, one).shape
    bias = mask.additive(one, one)
    for found in [shape] + ([] if bias is None else [bias.shape]):
        if found[0] not in (1, q.shape[0]) or found[1] not in (1, q.shape[1]):
            raise AttentionError(
                f"the mask is for batch {found[0]} and {found[1]} heads; the call has batch {q.shape[0]} and "
                f"{q.shape[1]} query heads"
            )


def _check_lse(made: Request) -> None:
    wanted = (made.batch, made.heads, len(made.rows))
    if made.lse is not None and tuple(made.lse.shape) != wanted:
        raise AttentionError(
            f"lse must be [batch, head, row] = {list(wanted)}, of the rows asked for; got {list(made.lse.shape)}"
        )


def _scale(scale: float | None, d: int) -> float:
    found = d**-0.5 if scale is None else float(scale)
    if not math.isfinite(found):
        raise AttentionError(f"the scale must be finite; got {scale!r}")
    return found


def _softcap(softcap: float | None) -> float | None:
    if softcap is None or softcap == 0:
        return None
    if not (math.isfinite(softcap) and softcap > 0):
        raise AttentionError(f"the soft cap must be positive; got {softcap!r}")
    return float(softcap)


def _bias(bias: Tensor, q: Tensor, k: Tensor) -> Tensor:
    found = bias[(None,) * (4 - bias.dim())] if bias.dim() <= 4 else bias
    full = (q.shape[0], q.shape[1], q.shape[2], k.shape[2])
    if found.dim() != 4 or any(n not in (1, m) for n, m in zip(found.shape, full, strict=True)):
        raise AttentionError(
            f"a bias must broadcast to [batch, head, query, key] = {list(full)}; got {list(bias.shape)}"
        )
    return found.expand(*found.shape[:3], full[3])


def _sinks(sinks: Tensor | None, heads: int) -> Tensor | None:
    if sinks is None:
        return None
    if sinks.numel() != heads:
        raise AttentionError(f"learned sinks are one number per query head, here {heads}; got {list(sinks.shape)}")
    return sinks.reshape(heads)


def _rows(rows: Rows, queries: int, device: torch.device) -> Tensor:
    every = torch.arange(queries, device=device)
    if rows is None:
        return every
    if isinstance(rows, slice):
        rows = range(*rows.indices(queries))
    found = torch.as_tensor(list(rows) if isinstance(rows, range) else rows, device=device)
    if found.dim() != 1 or found.is_floating_point() or found.dtype == torch.bool or len(found) == 0:
        raise AttentionError(f"rows are indices [n] of queries, or a slice; got {rows!r}")
    if int(found.min()) < -queries or int(found.max()) >= queries:
        raise AttentionError(f"rows must be in -{queries}..{queries - 1}; got {found.tolist()}")
    found = torch.where(found < 0, found + queries, found).long()
    if len(found.unique()) != len(found) or bool((found.diff() < 0).any()):
        raise AttentionError(f"rows must be increasing and different; got {found.tolist()}")
    return found


def _check_sets(stats: Sequence[Stat], sets: Mapping[str, Tensor], batch: int, keys: int) -> dict[str, Tensor]:
    needed = {s.argument: s.name for s in stats if s.reads("key_sets")}
    missing = [name for n, name in needed.items() if n not in sets]
    if missing:
        raise AttentionError(f"no key set for {', '.join(missing)}; key_sets has {sorted(sets) or 'nothing'}")
    found = {n: key_set(f"key set {n!r}", sets[n]) for n in needed}
    for n, x in found.items():
        if x.shape[0] not in (1, batch) or x.shape[1] != keys:
            raise AttentionError(f"key set {n!r} must be Bool [{keys}] or [{batch}, {keys}]; got {list(sets[n].shape)}")
    return found


def _places(places: Tensor | None, queries: int, keys: int) -> Tensor | None:
    if places is None:
        return None
    if queries > keys:
        raise AttentionError(
            f"places are those of keys, and the queries are the last keys; got {queries} queries and {keys} keys"
        )
    found = places.unsqueeze(-1) if places.dim() == 1 else places
    if found.dim() != 2 or found.shape[0] != keys:
        raise AttentionError(f"places are [key] or [key, axis] for {keys} keys; got {list(places.shape)}")
    return found.double()


def _with_first(made: Request, first: Tensor | None) -> Request:
    if first is not None and first.numel() not in (1, made.batch):
        raise AttentionError(f"first keys are one per example, here {made.batch}; got {list(first.shape)}")
    found = first_keys(made) if first is None else first.to(made.q.device).reshape(-1).expand(made.batch)
    if int(found.min()) < 0 or int(found.max()) >= made.keys:
        raise AttentionError(f"first keys must be in 0..{made.keys - 1}; got {found.tolist()}")
    return replace(made, first=found)


def first_keys(made: Request) -> Tensor:
    """The first key that some row of some head can see, per example; the first non-pad one under any padding mask."""
    found = torch.zeros(made.batch, dtype=torch.long, device=made.q.device)
    if type(made.mask) in (Full, Causal, Window, Prefix) or _padded_behind(made.mask):
        return found
    pending = torch.ones(made.batch, dtype=torch.bool, device=made.q.device)
    i = torch.arange(made.q.shape[2], device=made.q.device) + made.keys - made.q.shape[2]
    for low in range(0, made.keys, 64):
        j = torch.arange(low, min(low + 64, made.keys), device=made.q.device)
        seen = _any_row(made.mask, i, j).expand(made.batch, -1)
        hit = pending & seen.any(-1)
        found = torch.where(hit, low + seen.int().argmax(-1), found)
        pending = pending & ~hit
        if not bool(pending.any()):
            break
    return found


def _padded_behind(mask: Mask) -> bool:
    return type(mask) is Padding and mask.side == "right"


def _any_row(mask: Mask, i: Tensor, j: Tensor) -> Tensor:
    parts = [mask.visible(i[a : a + 1024], j).flatten(1, 2).any(1) for a in range(0, len(i), 1024)]
    return torch.stack(torch.broadcast_tensors(*parts)).any(0)
