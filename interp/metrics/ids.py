"""The answers a metric knows: ids of the vocabulary, a tuple a row, or words that become ids once a model is known.

`126` or `" Mary"` is used for every row; a list has one entry a row, an id, a word, or a list of them. Words are
written as in the text, with the blank before them, and must be one token each: `interp.metrics.reading` asks the
tokenizer when a call gets the metric.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from interp.kernels.errors import InterpError

Ids = tuple[tuple[int, ...], ...]
Answers = Any
"""What a user may write: an id or a word, one a row, several a row, or a tensor."""


class MetricError(InterpError, ValueError):
    """A metric that does not fit the logits or the inputs it was given."""


class EveryRow(tuple[tuple[Any, ...]]):
    """The answers of one row, which are those of every row."""

    def __repr__(self) -> str:
        return f"{self[0]!r} in every row"


def listed(name: str, given: Answers) -> tuple[tuple[int | str, ...], ...]:
    """What was given as a tuple a row; negative ids of a tensor are padding."""
    if isinstance(given, EveryRow):
        return given
    if isinstance(given, Tensor):
        return ids(given)
    if isinstance(given, (str, int)) and not isinstance(given, bool):
        return EveryRow(((_one(name, given),),))
    if not isinstance(given, Sequence):
        raise MetricError(f"{name} is an id or a word, one a row, or several a row; got {given!r:.80}")
    return tuple(_row(name, row) for row in given)


def _row(name: str, row: Any) -> tuple[int | str, ...]:
    several = row if isinstance(row, Sequence) and not isinstance(row, str) else (row,)
    return tuple(_one(name, one) for one in several)


def _one(name: str, given: Any) -> int | str:
    if isinstance(given, str):
        if not given:
            raise MetricError(f"expected words in {name}, got an empty text")
        return given
    try:
        return int(given.__index__())
    except (AttributeError, TypeError):
        raise MetricError(f"{name} holds ids and words, got {given!r:.80}") from None


def ids(rows: Sequence[int] | Sequence[Sequence[int]] | Tensor) -> Ids:
    """One tuple of ids a row, from ids or lists of ids a row, or a tensor; negative ids are padding."""
    every: list[Any] = rows.tolist() if isinstance(rows, Tensor) else list(rows)
    return tuple(tuple(int(i) for i in ([row] if isinstance(row, int) else row) if i >= 0) for row in every)


def has_words(rows: Any) -> bool:
    """Whether a tokenizer has to be asked."""
    return rows is not None and any(isinstance(one, str) for row in rows for one in row)


def known(rows: Any) -> Ids:
    """The ids, once there are no words among them."""
    if has_words(rows):
        words = [one for row in rows for one in row if isinstance(one, str)]
        raise MetricError(
            f"the metric holds words ({words[0]!r}), and without a model their ids are not known: give it to a call"
            " such as interp.patch(m, ..., metric=metric), or take interp.metrics.on(m, metric)"
        )
    found: Ids = rows
    return found


def of_rows(rows: Any, count: int) -> Ids:
    """The ids of so many rows."""
    return known(rows) * count if isinstance(rows, EveryRow) else known(rows)


def union(*groups: Any) -> tuple[int, ...]:
    """Every id, ascending."""
    return tuple(sorted({i for group in groups if group is not None for row in known(group) for i in row}))


def taken(value: Any, rows: Sequence[int]) -> Any:
    """A field of those rows."""
    if isinstance(value, Tensor):
        return value[torch.as_tensor(rows, device=value.device)]
    return value if value is None or value == "last" or isinstance(value, EveryRow) else tuple(value[i] for i in rows)


def chosen(read: Tensor, rows: Any, columns: tuple[int, ...] | None) -> tuple[Tensor, Tensor]:
    """The cells of each row's ids at its one position [batch, most], and which of them are real."""
    if read.shape[1] != 1:
        raise MetricError(
            f"expected one position for each row, got {read.shape[1]}: this metric reads its answers at one place. Give"
            " positions with one number for each row, or take one metric for each position."
        )
    own = of_rows(rows, len(read))
    where = {i: at for at, i in enumerate(columns)} if columns is not None else None
    width = max(1, *(len(row) for row in own))
    at = [[where[i] if where is not None else i for i in row] + [0] * (width - len(row)) for row in own]
    real = [[True] * len(row) + [False] * (width - len(row)) for row in own]
    below(max(map(max, at)), read.shape[-1])
    index = torch.tensor(at, device=read.device)
    return read[:, 0].gather(1, index), torch.tensor(real, device=read.device)


def nonempty(name: str, rows: Any) -> None:
    """Raise where a row has no answer."""
    for i, row in enumerate(rows):
        if not row:
            raise MetricError(f"expected at least one id a row in {name}, got none in row {i}")
    from_zero(name, rows)


def from_zero(name: str, rows: Any) -> None:
    """Raise where an id is negative: it would be read from the end of the vocabulary."""
    for i, row in enumerate(rows or ()):
        least = min((one for one in row if not isinstance(one, str)), default=0)
        if least < 0:
            raise MetricError(f"expected ids from 0 on in {name}, got {least} in row {i}")


def as_many(name: str, rows: Any, answers: Any) -> None:
    """Raise where the rows of two fields differ in number."""
    if rows is None or isinstance(rows, EveryRow) or isinstance(answers, EveryRow):
        return
    if len(rows) != len(answers):
        raise MetricError(f"expected {name} for {len(answers)} rows, got {len(rows)}")


def below(largest: int, width: int) -> None:
    """Raise where an id is none of the columns: on an accelerator nobody else would say so in words."""
    if largest >= width:
        raise MetricError(f"expected ids below {width}, which is how many logits there are, got {largest}")
