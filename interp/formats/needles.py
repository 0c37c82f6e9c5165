"""`needles.jsonl` of Retrieval_Head (Wu et al., arXiv 2404.15574): `needle, question, real_needle`, one a line.

`real_needle` is the span that is scored. It should be part of the needle word for word; where it is not, the reader
says so, since scores computed from it will look for words that were never hidden.
"""

from __future__ import annotations

from pathlib import Path

from interp.prompts.haystack import Needle
from interp.reading import Entry, lines


def needles(path: str | Path) -> tuple[Needle, ...]:
    """The needles, ready for `interp.tasks.needle(m, haystack=..., needles=...)`."""
    return tuple(_needle(entry) for entry in lines(path))


def _needle(entry: Entry) -> Needle:
    needle, question, answer = (entry.text(name) for name in ("needle", "question", "real_needle"))
    if answer.strip().rstrip(".") not in needle:
        print(f"{entry.file}, line {entry.line}: 'real_needle' is not part of 'needle' word for word")
    return Needle(needle.strip(), question, answer.strip())
