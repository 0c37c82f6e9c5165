"""Which token of the source belongs to which token of the base, for pairs that do not line up token by token.

`"index"` pairs the n-th real token of each, `"suffix"` the n-th from the end, `interp.patching.align(base_spans,
source_spans)` spans one to one. Tokens without a partner are not patched. A pair of spans of unequal length needs to be
told how: `reduce="last"` puts the source span's last token at the base span's last token, `reduce="mean"` the mean of
the source span at every token of the base span.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from interp.hooks.errors import InputsError
from interp.hooks.inputs.inputs import Inputs
from interp.hooks.inputs.positions import Span

Reduce = Literal["last", "mean"]


@dataclass(frozen=True)
class Alignment:
    """Spans of the base and of the source, one to one."""

    base: tuple[Span, ...]
    """Spans of the base."""
    source: tuple[Span, ...]
    """Spans of the source; each belongs to the span of the base at the same place."""


def align(base_spans: Span | Sequence[Span], source_spans: Span | Sequence[Span]) -> Alignment:
    """Pair spans one to one, in the order given; `inputs.find("Mary")` makes one."""
    base, source = (tuple([s] if isinstance(s, Span) else s) for s in (base_spans, source_spans))
    if not base or len(base) != len(source):
        raise InputsError(f"align pairs spans one to one: got {len(base)} of the base and {len(source)} of the source.")
    return Alignment(base, source)


How = Literal["index", "suffix"] | Alignment


def check(how: How | None, reduce: Reduce | None) -> None:
    """Raise for a `reduce` that nobody would read, or that is none."""
    if reduce is None:
        return
    if not isinstance(how, Alignment):
        raise InputsError(
            "reduce= is for spans of unequal length: give it together with align=interp.patching.align(...)."
        )
    if reduce not in get_args(Reduce):
        raise InputsError(f"reduce is 'last' or 'mean', got {reduce!r}.")


def weights(how: How, x: Inputs, y: Inputs, reduce: Reduce | None) -> Tensor:
    """[prompt, base position, source position]: what each base token takes from the source; zeros where nothing."""
    if x.batch != y.batch:
        raise InputsError(f"base has {x.batch} rows and source {y.batch}: pairs are row by row.")
    found = torch.zeros(x.batch, x.length, y.length)
    for b in range(x.batch):
        if isinstance(how, Alignment):
            for mine, theirs in zip(how.base, how.source, strict=True):
                _pair(found[b], _stretch(mine, b, x, "base"), _stretch(theirs, b, y, "source"), reduce)
        elif how in ("index", "suffix"):
            _all(found[b], x.valid[b].cpu(), y.valid[b].cpu(), from_end=how == "suffix")
        else:
            raise InputsError(
                f"align is 'index', 'suffix' or interp.patching.align(base_spans, source_spans); got {how!r}."
            )
    return found


def _all(found: Tensor, mine: Tensor, theirs: Tensor, *, from_end: bool) -> None:
    base, source = mine.nonzero().flatten(), theirs.nonzero().flatten()
    n = min(len(base), len(source))
    base, source = (base[-n:], source[-n:]) if from_end else (base[:n], source[:n])
    found[base, source] = 1.0


def _stretch(span: Span, row: int, x: Inputs, side: str) -> range:
    if len(span.rows) != x.batch or span.rows[row] is None:
        raise InputsError(f"the span {span.text!r} of the {side} has no tokens in row {row}.")
    start, end = span.rows[row] or (0, 0)
    if not 0 <= start < end <= x.length:
        raise InputsError(f"span {start}:{end} of the {side} in row {row} is out of range: the length is {x.length}.")
    return range(start, end)


def _pair(found: Tensor, base: range, source: range, reduce: Reduce | None) -> None:
    if bool(found[base.start : base.stop].any()):
        raise InputsError(f"the base tokens {base.start}:{base.stop} are in two spans; align each token once.")
    if len(base) == len(source):
        found[list(base), list(source)] = 1.0
    elif reduce == "last":
        found[base[-1], source[-1]] = 1.0
    elif reduce == "mean":
        found[base.start : base.stop, source.start : source.stop] = 1.0 / len(source)
    else:
        raise InputsError(
            f"a span of {len(base)} tokens is paired with one of {len(source)}: give reduce='last' or reduce='mean'."
        )


def taken(share: Tensor, value: Tensor, *, like: Tensor) -> Tensor:
    """The source's value [prompt, position, ...] as the base's positions take it, in the base's shape."""
    made = torch.einsum("bps,bsd->bpd", share.to(value), value.flatten(2))
    return made.view(like.shape).to(like.dtype)
