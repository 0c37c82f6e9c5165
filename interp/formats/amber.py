"""AMBER (Wang et al., arXiv 2311.07397): queries, annotations, and a model's responses, joined by id.

`query_*.json` holds `id, image, query`; `annotations.json` holds `id, type, truth` (and `hallu` for generative items);
responses are `id, response`. The annotations spell one type two ways (`relation` and `discriminative-relation`): `kind`
has the part before the dash, `aspect` the part after, with the bare spelling counted as discriminative.
Limits: AMBER's own generative scores need spaCy and word nets; here are the records and the yes/no figures.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from interp.reading import Entry, FormatError, members


@dataclass(frozen=True)
class AmberItem:
    """One query with its truth: "yes" or "no", or the objects that are there."""

    id: int
    """The number of the query in AMBER's files."""
    image: str
    """The file name of the picture."""
    query: str
    """The text that the model is asked."""
    kind: str
    """"generative" for a description of the picture, "discriminative" for a yes/no question."""
    aspect: str
    """What a yes/no question is about, such as "relation"; empty where the file does not say."""
    truth: str | tuple[str, ...]
    """"yes" or "no", or the objects that are in the picture."""
    hallucinated: tuple[str, ...] = ()
    """Objects that models often name though they are not in the picture (the file's `hallu`)."""
    response: str | None = None
    """What the model answered; None where no responses were given."""

    @property
    def right(self) -> bool | None:
        """Whether a yes/no response is right; None for generative items and without a response."""
        if self.response is None or not isinstance(self.truth, str):
            return None
        return self.response.strip().lower().startswith(self.truth)


def amber(queries: str | Path, annotations: str | Path, responses: str | Path | None = None) -> tuple[AmberItem, ...]:
    """The items of a query file, in its order; an id without an annotation or a response is an error."""
    truths = _by_id(annotations)
    said = None if responses is None else _by_id(responses)
    return tuple(_item(entry, truths, said) for entry in members(queries))


def _by_id(path: str | Path) -> Mapping[int, Entry]:
    found: dict[int, Entry] = {}
    for entry in members(path):
        number = entry.whole("id")
        if number in found:
            raise entry.fail(f"expected every id once, got {number} here and in line {found[number].line}")
        found[number] = entry
    if not found:
        raise FormatError(f"{path}: no records")
    return found


def _item(query: Entry, truths: Mapping[int, Entry], said: Mapping[int, Entry] | None) -> AmberItem:
    number = query.whole("id")
    if number not in truths:
        raise query.fail(f"expected an annotation for id {number}, got none")
    if said is not None and number not in said:
        raise query.fail(f"expected a response for id {number}, got none")
    truth = truths[number]
    kind, _, aspect = truth.text("type").partition("-")
    if kind not in ("generative", "discriminative"):
        kind, aspect = "discriminative", truth.text("type")
    return AmberItem(
        number,
        query.text("image"),
        query.text("query"),
        kind,
        aspect,
        _truth(truth),
        tuple(_list(truth, "hallu")),
        None if said is None else said[number].text("response"),
    )


def _truth(entry: Entry) -> str | tuple[str, ...]:
    entry.need("truth")
    value = entry.value["truth"]
    if isinstance(value, list):
        return tuple(_list(entry, "truth"))
    if value not in ("yes", "no"):
        raise entry.fail(f"expected 'yes', 'no' or a list of objects in 'truth', got {value!r:.80}")
    return str(value)


def _list(entry: Entry, name: str) -> list[str]:
    value: Any = entry.value.get(name) or []
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise entry.fail(f"expected a list of texts in {name!r}, got {value!r:.80}")
    return value
