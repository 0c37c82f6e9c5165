"""What mkdocs is told beside `mkdocs.yml`: pages made of notebooks, a folder in the navigation, links to calls.

A page of `docs/` is read on GitHub too, so what only the site understands is put in here and not in the page.
"""

from __future__ import annotations

import functools
import json
import re
import sys
from pathlib import Path, PurePosixPath
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from made.words import anchor, linked

DOCS = Path(__file__).parents[1]
NOTEBOOKS = DOCS.parent / "notebooks"
TITLE = re.compile(r"^# (.+)$", re.MULTILINE)
FENCED = re.compile(r"(^```.*?^```[ ]*$)", re.MULTILINE | re.DOTALL)
SPAN = re.compile(r"(?<![\[`])`interp\.[\w.]+(?:\([^`]*)?`(?![`\]])")


def on_config(config: Any) -> Any:
    """A folder in the navigation becomes its pages, the index first."""
    config.nav = [_unfolded(entry) for entry in config.nav]
    return config


def _unfolded(entry: dict[str, Any]) -> dict[str, Any]:
    ((title, what),) = entry.items()
    if what == "reference/":
        what = _indexed(sorted((DOCS / "reference").glob("*.md")), "reference")
    elif what == "notebooks/":
        what = ["notebooks/README.md", *(f"notebooks/{one.stem}.md" for one in sorted(NOTEBOOKS.glob("*.ipynb")))]
    return {title: what}


def _indexed(pages: list[Path], folder: str) -> list[Any]:
    """The index, the root, the rooms by name, and then what is no room."""
    titles = {one: _title(one.read_text()).strip("`") for one in pages if one.name != "README.md"}
    order = sorted(titles, key=lambda one: (not titles[one].startswith("interp"), titles[one]))
    return [f"{folder}/README.md", *({titles[one]: f"{folder}/{one.name}"} for one in order)]


def _title(text: str) -> str:
    found = TITLE.search(text)
    if found is None:
        raise ValueError(f"a page without a title: {text[:60]!r}")
    return found[1]


def on_files(files: Any, config: Any) -> Any:
    """Notebooks as pages, and the notebooks themselves to be had from there."""
    from mkdocs.structure.files import File

    made = {f"notebooks/{one.stem}.md": page(one) for one in sorted(NOTEBOOKS.glob("*.ipynb"))}
    made["notebooks/README.md"] = contents(sorted(NOTEBOOKS.glob("*.ipynb")))
    for path, text in made.items():
        files.append(File.generated(config, path, content=text))
    for one in NOTEBOOKS.glob("*.ipynb"):
        files.append(File.generated(config, f"notebooks/{one.name}", abs_src_path=str(one)))
    return files


def contents(notebooks: list[Path]) -> str:
    """The lessons, a line each."""
    said = "Short lessons on models that ship with the package. Each page has the text and the code of a notebook."
    return "\n".join(
        ["# Notebooks", "", said, "", *(f"- [{_title(page(one))}]({one.stem}.md)" for one in notebooks), ""]
    )


def page(notebook: Path) -> str:
    """A notebook's cells as markdown: its text, and its code."""
    cells = json.loads(notebook.read_text())["cells"]
    parts = [_cell(cell["cell_type"], "".join(cell["source"])) for cell in cells]
    parts.insert(1, f"[Download this notebook]({notebook.name})")
    return "\n\n".join(parts) + "\n"


def _cell(kind: str, text: str) -> str:
    return text if kind == "markdown" else f"```python\n{text}\n```"


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """A page's own words, with links to the reference where it names a call, and without what only the tests read."""
    here = PurePosixPath(page.file.src_uri)
    parts = FENCED.split(markdown)
    prose = [_told(part, here) if n % 2 == 0 else _code(part) for n, part in enumerate(parts)]
    return "".join(prose)


def _code(block: str) -> str:
    """Tags behind the language say whether a test runs the block."""
    return re.sub(r"^```(\w+) \w+$", r"```\1", block, count=1, flags=re.MULTILINE)


def _told(text: str, here: PurePosixPath) -> str:
    text = re.sub(r"\]\(\.\./notebooks/([\w-]+)\.ipynb\)", r"](notebooks/\1.md)", text)
    if here.parts[0] == "reference":
        return text
    up = "../" * (len(here.parts) - 1)
    places = {name: f"{up}reference/{place}" for name, place in _places().items()}
    lines = (
        line if line.startswith("#") else SPAN.sub(lambda m: linked(m[0], places), line) for line in text.split("\n")
    )
    return "\n".join(lines)


@functools.cache
def _places() -> dict[str, str]:
    """Where the reference has each full name, read off its pages."""
    found = {}
    for one in sorted((DOCS / "reference").glob("*.md")):
        text = one.read_text()
        found |= {
            name: f"{one.name}#{anchor(name)}" for name in re.findall(r"^## `(interp\.[\w.]+)`$", text, re.MULTILINE)
        }
        if title := re.match(r"# `(interp\.\w+)`", text):
            found[title[1]] = one.name
    return found
