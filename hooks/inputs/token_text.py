"""Ids back to text with the characters each token covers, and finding text among tokens.

Idea: a token's text is what decoding it after an ordinary token adds, so that word-start marks become spaces; tokens
that hold part of a character (byte fallback, byte-level BPE) are decoded together until the character is complete and
share its span. Each id is decoded once, so a long prompt costs as many decodings as it has distinct ids.
"""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches
from typing import Any

from interp.hooks.errors import InputsError

BROKEN = "\ufffd"
Offsets = tuple[tuple[int, int], ...]


class Decoder:
    """Decodes single tokens of one tokenizer, as they would read in the middle of a text."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.anchor = self._anchor()
        self.known: dict[int, str] = {}

    def _anchor(self) -> list[int]:
        for text in ("a", "the", "x", "1", "."):
            ids = list(self.tokenizer.encode(text, add_special_tokens=False))
            if ids and ids[-1] != getattr(self.tokenizer, "unk_token_id", None):
                return ids
        return []

    def text(self, ids: Sequence[int]) -> str:
        """What these ids add to a text."""
        if len(ids) == 1 and ids[0] in self.known:
            return self.known[ids[0]]
        before, whole = self.alone(self.anchor), self.alone([*self.anchor, *ids])
        found = whole[len(before) :] if whole.startswith(before) else self.alone(list(ids))
        if len(ids) == 1:
            self.known[ids[0]] = found
        return found

    def alone(self, ids: list[int]) -> str:
        """What these ids read as a text of their own."""
        return str(self.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))

    def pieces(self, ids: Sequence[int]) -> list[tuple[int, str]]:
        """(how many tokens, their text) in order; more than one token only where a character is split."""
        found: list[tuple[int, str]] = []
        start = 0
        while start < len(ids):
            end = self._whole(ids, start)
            found.append((end - start, self.text(ids[start:end])))
            start = end
        return found

    def _whole(self, ids: Sequence[int], start: int) -> int:
        """The end of the shortest stretch from here that holds whole characters."""
        for end in range(start + 1, min(start + 9, len(ids) + 1)):
            if BROKEN not in self.text(ids[start:end]):
                return end
        return start + 1


def read(decoder: Decoder, ids: Sequence[int], real: Sequence[bool]) -> tuple[str, Offsets]:
    """The text of one row's real tokens, and each token's characters; padding covers none."""
    columns = [column for column, is_real in enumerate(real) if is_real]
    kept, spans = [ids[column] for column in columns], [(0, 0)] * len(ids)
    parts: list[str] = []
    start = length = 0
    for count, piece in decoder.pieces(kept):
        parts.append(piece if start else decoder.alone(kept[:count]))
        for column in columns[start : start + count]:
            spans[column] = (length, length + len(parts[-1]))
        start, length = start + count, length + len(parts[-1])
    return "".join(parts), tuple(spans)


def shown(decoder: Decoder, ids: Sequence[int]) -> tuple[str, ...]:
    """Every token on its own, for tables; a part of a character is shown as the vocabulary spells it."""
    texts = [decoder.text([index]) for index in ids]
    names = decoder.tokenizer.convert_ids_to_tokens(list(ids)) if any(BROKEN in text for text in texts) else texts
    return tuple(str(name) if BROKEN in text or not text else text for text, name in zip(texts, names, strict=True))


def locate(text: str, wanted: str, occurrence: int) -> tuple[int, int] | None:
    """The characters of the n-th occurrence (from 1; from -1 backwards), or None."""
    starts, start = [], text.find(wanted)
    while start >= 0:
        starts.append(start)
        start = text.find(wanted, start + len(wanted))
    index = occurrence - 1 if occurrence > 0 else occurrence
    if not -len(starts) <= index < len(starts):
        return None
    return starts[index], starts[index] + len(wanted)


def covering(offsets: Offsets, start: int, end: int) -> tuple[int, int] | None:
    """The first and one past the last token that touch these characters."""
    hit = [index for index, (left, right) in enumerate(offsets) if left < end and right > start and right > left]
    return (hit[0], hit[-1] + 1) if hit else None


def not_found(row: int, text: str, wanted: str, occurrence: int) -> InputsError:
    """Say how often the text occurs, or what is nearest to it."""
    count = text.count(wanted)
    if count:
        return InputsError(f"row {row} has {wanted!r} {count} time(s), occurrence {occurrence} was asked for")
    near = get_close_matches(wanted.strip(), dict.fromkeys(text.split()), n=3, cutoff=0.5)
    hint = f"; nearest: {', '.join(map(repr, near))}" if near else ""
    return InputsError(f"no {wanted!r} in row {row}: {text if len(text) < 200 else text[:200] + '…'!r}{hint}")
