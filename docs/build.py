"""Makes `docs/methods.md` and `docs/calls.md` from docstrings.

python docs/build.py            # write both
python docs/build.py --check    # say whether they are up to date
"""

from __future__ import annotations

import inspect
import re
import sys
from pathlib import Path

import interp

DOCS = Path(__file__).parent


def surface() -> dict[str, object]:
    """Every public name with what it is: those at the root, then each room's own."""
    names = {name: getattr(interp, name) for name in interp.__all__}
    rooms = [name for name, thing in names.items() if inspect.ismodule(thing)]
    seen = {id(thing) for thing in names.values()}
    for room in rooms:
        inside = {f"{room}.{name}": getattr(names[room], name) for name in names[room].__all__}
        names |= {name: thing for name, thing in inside.items() if id(thing) not in seen}
    return names


def methods() -> str:
    """A table of every method: what it asks, its papers, its cost and its limits."""
    rows = [_row(name, thing) for name, thing in sorted(surface().items()) if "Cost" in _docstring(thing)]
    head = "| call | what it asks | papers | cost | limits |\n|---|---|---|---|---|"
    return "\n".join(["# Methods", "", "Made from docstrings by `docs/build.py`.", "", head, *rows, ""])


def _docstring(thing: object) -> str:
    """That of the file a call stands in; nothing for what is no call."""
    return (sys.modules[thing.__module__].__doc__ or "") if inspect.isfunction(thing) else ""


def _row(name: str, thing: object) -> str:
    text = re.sub(r"\s+", " ", _docstring(thing))
    papers = ", ".join(f"[{one}](https://arxiv.org/abs/{one})" for one in re.findall(r"\b\d{4}\.\d{4,5}\b", text))
    first = re.split(r"(?<=[.?]) ", text)[0]
    cells = (f"`interp.{name}`", first, papers, _part(text, "Cost"), _part(text, "Limits"))
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def _part(text: str, title: str) -> str:
    """What follows `Cost:` or `Limits:`, up to the next of them."""
    found = re.search(rf"\b{title}\b[^:]{{0,80}}: (.*?)(?= (?:Cost|Limits|Notice)\b[^:]{{0,80}}: |$)", text)
    return found[1] if found else ""


def calls() -> str:
    """Every public name with its signature and docstring."""
    parts = ["# Calls", "", "Made from docstrings by `docs/build.py`.", ""]
    for name, thing in surface().items():
        title = f"interp.{name}{_signature(thing)}"
        parts += [f"## `interp.{name}`", "", "```text", title, "```", "", inspect.getdoc(thing) or "", ""]
    return "\n".join(parts)


def _signature(thing: object) -> str:
    if not callable(thing) or (isinstance(thing, type) and issubclass(thing, Exception)):
        return ""
    found = str(inspect.signature(thing)).replace("'", "")
    return re.sub(r"interp\.(?:\w+\.)*(\w+)", r"\1", found)


PAGES = {"methods.md": methods, "calls.md": calls}


def main() -> int:
    stale = [name for name, make in PAGES.items() if _read(DOCS / name) != make()]
    if "--check" in sys.argv[1:]:
        print(f"out of date: {', '.join(stale)}; run python docs/build.py" if stale else "up to date")
        return 1 if stale else 0
    for name in stale:
        (DOCS / name).write_text(PAGES[name]())
        print(f"wrote docs/{name}")
    return 0


def _read(path: Path) -> str | None:
    return path.read_text() if path.exists() else None


if __name__ == "__main__":
    sys.exit(main())
