"""Makes the pages of `docs/` that are made:

- `methods.md` from the records of methods, `numbers.md` from the files of methods, `reference/` from docstrings;
- `real-model.md` from the numbers that the studies in `experiments/real/` kept;
- `model-types.md`, with one sentence of README.md, from
  `interp doctor --all --json > experiments/zoo/model_types.jsonl`;
- `denoisers.md` from `interp doctor --denoisers --json > experiments/zoo/denoisers.jsonl`.

python docs/build.py            # write them
python docs/build.py --check    # say whether they are up to date

`make docs` builds the site from them (`mkdocs.yml`). How a page is made is in `made/`, one kind of page a file.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from made import kept, reference
from made.methods import methods
from made.numbers import numbers

DOCS = Path(__file__).parent


def pages() -> dict[str, str]:
    """The text of every made page by its path below `docs/`."""
    return {
        "methods.md": methods(),
        "numbers.md": numbers(),
        "real-model.md": kept.real_model(),
        "model-types.md": kept.model_types(),
        "denoisers.md": kept.denoisers(),
        "../README.md": kept.readme(),
        **reference.pages(),
    }


def main() -> int:
    made = pages()
    stale = [name for name, text in made.items() if _read(DOCS / name) != text]
    gone = [one for one in (DOCS / "reference").glob("*.md") if f"reference/{one.name}" not in made]
    if "--check" in sys.argv[1:]:
        names = ", ".join([*stale, *(f"reference/{one.name} (of no room)" for one in gone)])
        print(f"out of date: {names}; run python docs/build.py" if names else "up to date")
        return 1 if names else 0
    for name in stale:
        (DOCS / name).parent.mkdir(exist_ok=True)
        (DOCS / name).write_text(made[name])
        print(f"wrote docs/{name}")
    for one in gone:
        one.unlink()
    return 0


def _read(path: Path) -> str | None:
    return path.read_text() if path.exists() else None


if __name__ == "__main__":
    sys.exit(main())
