"""Rows of ids without padding: from texts, ids or a processor's batch; lengthened by answers; padded once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from numbers import Integral
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from interp.hooks.errors import InputsError
from interp.hooks.inputs.arguments import check_ids, check_mask
from interp.hooks.inputs.inputs import Inputs
from interp.hooks.inputs.token_text import Decoder

PER_TOKEN = {"token_type_ids": None, "mm_token_type_ids": 0, "cross_attention_mask": None}
"""Arguments with one entry per token, and what an appended token gets; None repeats the last entry."""
UNUSED = ("labels", "special_tokens_mask", "offset_mapping")
Spans = list[tuple[int, int]]


@dataclass(frozen=True, eq=False)
class Rows:
    """Ids per row, with the text they came from where it is known; `extras` have one entry per token."""

    ids: list[list[int]]
    texts: list[str] | None
    offsets: list[Spans] | None
    extras: Mapping[str, list[Tensor]]
    shared: Mapping[str, Any]

    def check(self) -> None:
        """Refuse empty batches and empty rows."""
        if not self.ids:
            raise InputsError("an empty batch: give at least one row")
        for index, row in enumerate(self.ids):
            if not row:
                raise InputsError(f"row {index} has no tokens; leave it out")

    def appended(
        self, answers: Sequence[Sequence[int]], decoder: Decoder | None, fills: Mapping[str, int] = MappingProxyType({})
    ) -> Rows:
        """The same rows with an answer each; the prompt's ids stay as they are. `fills` overrides `PER_TOKEN`."""
        ids = [[*row, *answer] for row, answer in zip(self.ids, answers, strict=True)]
        extras = {
            name: [
                _longer(value, {**PER_TOKEN, **fills}[name], len(answer))
                for value, answer in zip(values, answers, strict=True)
            ]
            for name, values in self.extras.items()
        }
        if self.texts is None or self.offsets is None or decoder is None:
            return Rows(ids, None, None, extras, self.shared)
        told = [_told(*row, decoder) for row in zip(self.texts, self.offsets, answers, strict=True)]
        return Rows(ids, [text for text, _ in told], [spans for _, spans in told], extras, self.shared)

    def padded(self, side: str, pad: int) -> dict[str, Any]:
        """What the model is called with."""
        length = max(map(len, self.ids))
        call: dict[str, Any] = {
            "input_ids": torch.stack([_pad(torch.tensor(row), length, side, pad) for row in self.ids]),
            "attention_mask": torch.stack([_pad(torch.ones(len(row)).long(), length, side, 0) for row in self.ids]),
        }
        for name, values in self.extras.items():
            call[name] = torch.stack([_pad(value, length, side, 0) for value in values])
        return {**call, **self.shared}

    def described(self, inputs: Inputs, side: str, starts: Sequence[int] | None) -> Inputs:
        """Inputs with the text as it was given and the columns where answers start."""
        before = [inputs.length - len(row) if side == "left" else 0 for row in self.ids]
        if starts is not None:
            starts = tuple(start + shift for start, shift in zip(starts, before, strict=True))
            inputs = replace(inputs, continuation=tuple(starts))
        if self.texts is None or self.offsets is None:
            return inputs
        offsets = []
        for spans, shift in zip(self.offsets, before, strict=True):
            offsets.append(((0, 0),) * shift + tuple(spans) + ((0, 0),) * (inputs.length - shift - len(spans)))
        return replace(inputs, texts=tuple(self.texts), offsets=tuple(offsets))


def _pad(row: Tensor, length: int, side: str, value: int) -> Tensor:
    filler = row.new_full((length - len(row), *row.shape[1:]), value)
    return torch.cat([filler, row] if side == "left" else [row, filler])


def _longer(value: Tensor, fill: int | None, count: int) -> Tensor:
    """One entry per token, for a few more tokens of text."""
    last = value[-1:] if fill is None else torch.full_like(value[-1:], fill)
    return torch.cat([value, last.expand(count, *value.shape[1:])])


def _told(text: str, spans: Spans, answer: Sequence[int], decoder: Decoder) -> tuple[str, Spans]:
    """A text and its offsets with the answer read after it."""
    spans = list(spans)
    for count, piece in decoder.pieces(list(answer)):
        spans += [(len(text), len(text) + len(piece))] * count
        text += piece
    return text, spans


def from_texts(tokenizer: Any, texts: Sequence[str], *, special: bool) -> Rows:
    """Tokenised texts; offsets where the tokenizer is a fast one."""
    fast = bool(getattr(tokenizer, "is_fast", False))
    batch = tokenizer(list(texts), add_special_tokens=special, return_offsets_mapping=fast, return_attention_mask=False)
    offsets = [[(int(a), int(b)) for a, b in row] for row in batch["offset_mapping"]] if fast else None
    extras = (
        {"token_type_ids": [torch.tensor(row) for row in batch["token_type_ids"]]} if "token_type_ids" in batch else {}
    )
    return Rows([list(row) for row in batch["input_ids"]], list(texts) if fast else None, offsets, extras, {})


def from_ids(data: Any, pad: int) -> Rows:
    """Ids as they are: one row, rows of any length, or a tensor."""
    if isinstance(data, Tensor) or type(data).__module__ == "numpy":
        data = torch.as_tensor(data)
        data = data[None] if data.dim() == 1 else data
        check_ids("ids", data)
        data = data.tolist()
    rows = data if data and not isinstance(data[0], Integral) else [data]
    try:
        tensors = [torch.as_tensor(row) for row in rows]
    except (OverflowError, TypeError, ValueError, RuntimeError) as error:
        raise InputsError(f"ids must be integers that fit 64 bits ({error})") from None
    for index, row in enumerate(tensors):
        if not row.numel():
            raise InputsError(f"row {index} of ids is empty")
        check_ids(f"ids of row {index}", row[None])
    return Rows([row.tolist() for row in tensors], None, None, {}, {})


def from_batch(batch: Mapping[str, Any]) -> Rows:
    """A processor's batch with its padding taken off again."""
    if batch.get("input_ids") is None:
        raise InputsError(f"an answer needs input_ids to follow; the batch has {', '.join(batch)}")
    try:
        data = {
            name: torch.as_tensor(value) for name, value in batch.items() if value is not None and name not in UNUSED
        }
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise InputsError(
            f"the batch cannot be made tensors ({error}); ask the processor for return_tensors='pt'"
        ) from None
    if "position_ids" in data:
        raise InputsError("the batch numbers its positions (position_ids), so nothing can be appended: leave them out")
    ids = data.pop("input_ids")
    check_ids("input_ids", ids)
    mask = data.pop("attention_mask", torch.ones_like(ids))
    check_mask("attention_mask", mask, ids)
    kept = [row.bool() for row in mask]
    extras = {
        name: [row[keep] for row, keep in zip(data.pop(name), kept, strict=True)] for name in PER_TOKEN if name in data
    }
    _to_the_right(data, "qformer_input_ids", "qformer_attention_mask")
    return Rows([row[keep].tolist() for row, keep in zip(ids, kept, strict=True)], None, None, extras, data)


def _to_the_right(data: dict[str, Tensor], name: str, mask: str) -> None:
    """Pad on the right what goes to a Q-Former, which numbers columns."""
    if name in data and mask in data:
        order = torch.argsort(~data[mask].bool(), dim=1, stable=True)
        data[name], data[mask] = data[name].gather(1, order), data[mask].gather(1, order)


def tokenise_answer(tokenizer: Any, answer: Any, batch: int) -> list[list[int]]:
    """Ids of one answer for every row, or of one per row; never of length zero."""
    if isinstance(answer, Tensor):
        answer = answer.tolist()
    if isinstance(answer, str) or (answer and isinstance(answer[0], Integral)):
        answer = [answer] * batch
    if len(answer) != batch:
        raise InputsError(f"{len(answer)} continuations for a batch of {batch}; give one, or one per row")
    found = [after(tokenizer, item) if isinstance(item, str) else [int(index) for index in item] for item in answer]
    for index, ids in enumerate(found):
        if not ids:
            raise InputsError(f"continuation {index} is empty")
    return found


def after(tokenizer: Any, text: str) -> list[int]:
    """The ids of a text as they are after a word (or a full stop, a line) that they do not merge with."""
    if tokenizer is None:
        raise InputsError("a continuation in words needs a tokenizer: attach the model with one, or give ids")
    for anchor in ("a", ".", "\n", ":", '"', "1"):
        before = tokenizer(anchor, add_special_tokens=False)["input_ids"]
        whole = tokenizer(anchor + text, add_special_tokens=False)["input_ids"]
        if before and whole[: len(before)] == before and len(whole) > len(before):
            return list(whole[len(before) :])
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])
