"""How made pages are written: tables, and docstrings as markdown with links to the reference."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

CODE = re.compile(r"(`+[^`]+`+)")


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    cells = [[cell.replace("|", chr(92) + "|") for cell in row] for row in (head, ["---"] * len(head), *rows)]
    return [*(f"| {' | '.join(row)} |" for row in cells), ""]


def anchor(name: str) -> str:
    """What a heading with this name in code is called in an address, here and on GitHub."""
    return re.sub(r"[^\w-]", "", name.lower())


def prose(text: str, links: Mapping[str, str]) -> str:
    """A docstring as markdown: code stays code, names that the reference knows are links, nothing else is markup."""
    return "\n".join(line if line.startswith("    ") else _line(line, links) for line in text.splitlines())


def _line(line: str, links: Mapping[str, str]) -> str:
    parts = CODE.split(line)
    return "".join(linked(part, links) if n % 2 else _plain(part) for n, part in enumerate(parts))


def _plain(text: str) -> str:
    return re.sub(r"([*<])", r"\\\1", text)


def linked(code: str, links: Mapping[str, str]) -> str:
    """The code span itself, as a link where its first name is one that the reference knows."""
    name = code.strip("`").partition("(")[0]
    return f"[{code}]({links[name]})" if name in links else code
