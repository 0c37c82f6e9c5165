"""A request as the Triton kernels take it: tensors in one piece, edits of scores as tables, tile sizes."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from interp.kernels import edits as E
from interp.kernels.errors import known
from interp.kernels.gpu import visits
from interp.kernels.gpu.configurations import Configuration, configuration
from interp.kernels.request import Request

SETS = 16
KEY_EDITS = 16
HIDDEN_BIAS = -1.0e31
Arguments = dict[str, object]


@dataclass(frozen=True, eq=False)
class Table:
    """Bias and slopes per key, rows of a table [n, key]; `which` [batch, head, row] is the row each query uses."""

    bias: Tensor
    up: Tensor
    down: Tensor
    which: Tensor
    slopes: bool


@dataclass(frozen=True, eq=False)
class Part:
    """Some of the keys ([1 or batch, key]; None: all), with their scores or, for a blend, all alike."""

    keep: Tensor | None = None
    uniform: bool = False


@dataclass(eq=False)
class TritonCall:
    """One request on its way through the kernels. `pack`: the query heads of a kv head are rows of one tile."""

    made: Request
    q: Tensor
    k: Tensor
    v: Tensor
    temper: Tensor | None
    table: Table | None
    sets: Tensor | None
    topk: int
    gradient: bool
    pack: bool

    @property
    def n_sets(self) -> int:
        return 0 if self.sets is None else len(self.sets)

    @property
    def heads(self) -> int:
        return self.k.shape[1] if self.pack else self.made.heads

    @property
    def rows(self) -> int:
        return len(self.made.rows) * (self.made.group if self.pack else 1)

    def configuration(self, family: str) -> Configuration:
        edited = self.sets is not None or self.table is not None
        heavy = edited or self.topk > 0 or self.made.wants("distance")
        width, exact = max(self.q.shape[-1], self.v.shape[-1]), self.q.dtype == torch.float32
        return configuration(family, width, self.rows, heavy=heavy, exact=exact)

    @functools.cached_property
    def run_of_keys(self) -> tuple[Tensor, Tensor] | None:
        return visits.run_of_keys(self.made)

    def arguments(self, part: Part, c: Configuration, *, by_keys: bool = False) -> Arguments:
        """What all kernels take, by name."""
        made, d, dv = self.made, self.q.shape[-1], self.v.shape[-1]
        exact = self.q.dtype == torch.float32
        return {
            "Q": self.q, "K": self.k, "V": self.v, "SETS": self._or_q(self.sets), "heads": self.heads,
            "POSITION": made.positions.repeat(self.rows // len(made.rows)),
            "group": 1 if self.pack else made.group, "rows": self.rows, "keys": made.keys,
            "D": d, "DV": dv, "DP": padded(d), "DVP": padded(dv), "BM": c.rows, "BN": c.keys,
            "N_SETS": self.n_sets, "PRECISION": "ieee" if exact else "tf32",
            "num_warps": c.warps, "num_stages": c.stages,
            **self._scoring(part), **self._visits(part, c, by_keys),
        }  # fmt: skip

    def _or_q(self, x: Tensor | None) -> Tensor:
        return self.q if x is None else x

    def _scoring(self, part: Part) -> Arguments:
        made, table = self.made, self.table
        bias = None if table is None else table.bias
        if bias is not None and part.uniform:
            bias = torch.where(bias > HIDDEN_BIAS / 2, 0.0, bias)
        return {
            "TEMPERS": self._or_q(self.temper), "TEMPER": self.temper is not None and not part.uniform,
            "BIASES": self._or_q(bias), "BIAS": table is not None,
            "UP": self._or_q(table.up if table else None), "DOWN": self._or_q(table.down if table else None),
            "SLOPE": table is not None and table.slopes and not part.uniform,
            "WHICH": self._or_q(table.which if table else None), "PER_ROW": self._per_row(),
            "scale": 0.0 if part.uniform else made.scale, "softcap": made.softcap or 1.0,
            "CAP": made.softcap is not None and not part.uniform,
        }  # fmt: skip

    def _per_row(self) -> bool:
        """Whether the rows of a tile use different rows of the table."""
        if self.table is None:
            return False
        which = self.table.which.view(self.made.batch, self.heads, self.rows)
        return bool((which != which[..., :1]).any())

    def _visits(self, part: Part, c: Configuration, by_keys: bool) -> Arguments:
        keep = None if part.keep is None else part.keep.expand(self.made.batch, -1)
        found: Arguments = {"KEEP": self._or_q(None if keep is None else keep.byte().contiguous()), "KEPT": False}
        if self.run_of_keys is None:
            listed = self._lists(c.rows, c.keys)
            unused = {"LOW": self.q, "HIGH": self.q, "low_batch": 0, "TABLE": True, "KEPT": keep is not None}
            return found | unused | dict(listed.by_keys() if by_keys else listed.by_rows())
        low, high = self.run_of_keys
        if keep is not None:
            first, last = _hull(keep)
            low, high = torch.maximum(low, first), torch.minimum(high, last)
            found["KEPT"] = bool((keep.sum(1) < (last - first).squeeze(1)).any())
        repeat = self.rows // low.shape[1]
        low, high = (x.int().repeat(1, repeat).contiguous() for x in (low, high))
        found |= {"LOW": low, "HIGH": high, "low_batch": low.shape[1] if len(low) > 1 else 0, "TABLE": False}
        found |= {"COUNT": self.q, "INDEX": self.q, "PART": self.q, "BITS": self.q}
        if by_keys:
            return found | visits.first_and_last(low, high, c.rows, c.keys, self.made.keys)
        return found | {"most": 1, "table_batch": 0, "table_head": 0}

    @functools.cached_property
    def _made_lists(self) -> dict[tuple[int, int], visits.Lists]:
        return {}

    def _lists(self, rows: int, keys: int) -> visits.Lists:
        if (rows, keys) not in self._made_lists:
            self._made_lists[rows, keys] = visits.lists(self.made, rows, keys)
        return self._made_lists[rows, keys]


def padded(width: int) -> int:
    return max(16, 1 << (width - 1).bit_length())


def _hull(keep: Tensor) -> tuple[Tensor, Tensor]:
    """First key and one past the last one, [batch, 1]; (0, 0) where there is none."""
    some, n = keep.any(1, keepdim=True), keep.shape[1]
    first, last = keep.int().argmax(1, keepdim=True), n - keep.flip(1).int().argmax(1, keepdim=True)
    return torch.where(some, first, 0), torch.where(some, last, 0)


def prepared(made: Request) -> TritonCall:
    """The call; queries of few rows are packed by kv head, so that each key is read once for all of them."""
    masses = [made.key_sets[s.argument].expand(made.batch, -1) for s in made.stats if s.kind == "mass"]
    k_best = max((s.k for s in made.stats if s.kind == "topk"), default=0)
    v = made.k if made.v is None else made.v
    pack = not made.gradient() and made.group > 1 and len(made.rows) * made.group <= 16
    return TritonCall(
        made=made,
        q=made.row_q().contiguous(),
        k=made.k.contiguous(),
        v=v.contiguous(),
        temper=_temper(made),
        table=_table(made),
        sets=torch.stack(masses).to(made.q.device).byte().contiguous() if masses else None,
        topk=1 << (k_best - 1).bit_length() if k_best else 0,
        gradient=made.gradient(),
        pack=pack and visits.run_of_keys(made) is not None,
    )


def _temper(made: Request) -> Tensor | None:
    """One over the temperature, [batch, head, row]."""
    found, heads = None, torch.arange(made.heads, device=made.q.device)
    for edit in made.score_edits:
        if isinstance(edit, E.Temperature):
            one = torch.ones(made.batch, made.heads, len(made.rows), 1, device=heads.device)
            found = one if found is None else found
            touched, new = edit.where(heads, made.rows), found / E.per_head(edit.value, heads, one)
            found = new if touched is None else torch.where(touched, new, found)
    return None if found is None else found.squeeze(-1).contiguous()


def key_edits(made: Request) -> list[E.Edit]:
    """Those of scores that are told as a table of keys; temperatures are not."""
    found = [e for e in made.score_edits if e.form is not E.Temperature]
    for edit in found:
        known(OF_KEYS, edit.form, "edit")
    return found


def _table(made: Request) -> Table | None:
    """One row of the table per set of edits that touch some query, and per example where key sets differ."""
    edits, device = key_edits(made), made.q.device
    if not edits:
        return None
    heads = torch.arange(made.heads, device=device)
    code = torch.zeros(made.batch, made.heads, len(made.rows), dtype=torch.long, device=device)
    for n, edit in enumerate(edits):
        touched = edit.where(heads, made.rows)
        code += (1 << n) * (1 if touched is None else touched.squeeze(-1).long())
    codes, which = code.unique(return_inverse=True)
    examples = max(E.key_set("a key set", x).shape[0] for e in edits for x in e.sets())
    if examples > 1:
        which = which * examples + torch.arange(made.batch, device=device)[:, None, None]
    rows = [_edited(made, [e for n, e in enumerate(edits) if c >> n & 1], examples) for c in codes.tolist()]
    bias, up, down = (torch.cat(x).contiguous() for x in zip(*rows, strict=True))
    return Table(bias, up, down, which.int().contiguous(), any(e.form is E.Emphasize for e in edits))


def _edited(made: Request, edits: list[E.Edit], examples: int) -> tuple[Tensor, Tensor, Tensor]:
    """Bias, and the slopes of positive and negative scores, [example, key]; hidden keys have a bias of -1e31."""
    bias = torch.zeros(examples, made.keys, device=made.q.device)
    up, down = torch.ones_like(bias), torch.ones_like(bias)
    for edit in edits:
        told = OF_KEYS[edit.form]
        keys = E.key_set("a key set", edit.sets()[0]).to(bias.device)
        bias, up, down = (
            torch.where(keys, x, y) for x, y in zip(told(edit, bias, up, down), (bias, up, down), strict=True)
        )
    return bias, up, down


def _emphasized(edit: E.Emphasize, bias: Tensor, up: Tensor, down: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    more, less = 1 + edit.amount, 1 - edit.amount
    return bias, up * torch.where(up > 0, more, less), down * torch.where(down > 0, less, more)


OF_KEYS: dict[E.Form, Callable[..., tuple[Tensor, Tensor, Tensor]]] = {
    E.BiasKeys: lambda edit, bias, up, down: (bias + edit.amount, up, down),
    E.Emphasize: _emphasized,
    E.MaskKeys: lambda edit, bias, up, down: (torch.full_like(bias, HIDDEN_BIAS), up, down),
}
"""What an edit makes of the bias and the slopes of its keys."""
