"""How each number is computed: formulas that calls share, from `numbers.txt`, then each call in its file's words."""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Iterator
from pathlib import Path

from made.reference import links
from made.words import linked, prose

from interp import records

SHARED = Path(__file__).with_name("numbers.txt")


def numbers() -> str:
    """The page."""
    lines = [SHARED.read_text().rstrip(), ""]
    for method in records.every():
        lines += [*_told(method)]
    return "\n".join(lines).rstrip() + "\n"


def _told(method: records.Method) -> Iterator[str]:
    places = {name: f"reference/{place}" for name, place in links().items()}
    yield from (f"### {linked(f'`{method.name}`', places)}", "", f"**Number:** {prose(method.number, {})}.", "")
    if said := formula(method):
        yield from (prose(said, places), "")
    for choice in records.variants(method.name).values():
        yield from (f'**`{choice.argument}="{choice.name}"`:** {prose(choice.number, {})}.', "")
        if choice.home != method.home and (said := formula(choice)):
            yield from (prose(said, places), "")


def formula(record: records.Record) -> str:
    """What its file says between its first paragraph's first sentence and its cost."""
    text = inspect.cleandoc(sys.modules[record.home].__doc__ or "")
    text = re.split(r"\bCost\b[^:]{0,80}: ", text)[0].rstrip()
    first = re.search(r"(?<=[.?])\s", text)
    return text[first.end() :].strip() if first else ""
