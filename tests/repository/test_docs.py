"""Documentation as a newcomer meets it: every example runs, every link leads somewhere, made pages are up to date.

A block that is tagged ` slow` or ` setup` after its language is not run; a test lists those.
"""

from __future__ import annotations

import functools
import importlib
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from house import ROOT

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
REFERENCE = sorted((ROOT / "docs" / "reference").glob("*.md"))
BLOCK = re.compile(r"^```(\w+)?( slow| setup)?\n(.*?)^```", re.MULTILINE | re.DOTALL)


def blocks(page: Path, language: str, *, tagged: bool = False) -> list[str]:
    return [code for kind, tag, code in BLOCK.findall(page.read_text()) if kind == language and bool(tag) == tagged]


@pytest.mark.parametrize("page", [p for p in PAGES if blocks(p, "python")], ids=lambda p: p.stem)
def test_python_examples_run_one_after_the_other(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {"__name__": "example"}
    for n, code in enumerate(blocks(page, "python")):
        file = tmp_path / f"{page.stem}_{n + 1}.py"  # a file, since nnsight reads the source of its traces
        file.write_text(code)
        exec(compile(code, str(file), "exec"), names)  # noqa: S102
        if {"theirs", "ours"} <= set(names):
            sides = [torch.as_tensor(names.pop(side)).detach().double() for side in ("ours", "theirs")]
            torch.testing.assert_close(*sides, atol=1e-4, rtol=0)
    assert not {"theirs", "ours"} & set(names), "one side is without the other"
    assert capsys.readouterr().out


COMMANDS = [
    (page.stem, line.partition("#")[0].strip())
    for page in PAGES
    for code in blocks(page, "bash")
    for line in code.splitlines()
    if line.partition("#")[0].strip()
]


@pytest.mark.parametrize(("page", "command"), COMMANDS)
def test_commands_run(page: str, command: str, tmp_path: Path) -> None:
    words = shlex.split(command)
    assert words[0] in ("interp", "python"), f"{page}: a test runs {command!r} only if it is tagged slow or setup"
    start = [sys.executable, "-m", "interp"] if words[0] == "interp" else [sys.executable]
    script = [str(ROOT / word) if (ROOT / word).is_file() else word for word in words[1:]]
    done = subprocess.run([*start, *script], cwd=tmp_path, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout


def test_what_is_not_run_is_slow_or_sets_up() -> None:
    left = [
        (page.stem, code) for page in PAGES for kind in ("python", "bash") for code in blocks(page, kind, tagged=True)
    ]
    print(*(f"{page}: {code.strip().splitlines()[0]}" for page, code in left), sep="\n")
    assert len(left) <= 9
    for page in PAGES:
        for code in blocks(page, "python", tagged=True):
            compile(code, page.name, "exec")


def anchors(page: Path) -> set[str]:
    """What its headings are called in an address, on GitHub and in the site."""
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    heads = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {
        re.sub(r"[^\w -]", "", re.sub(r"\]\([^)]*\)", "", head).lower()).strip().replace(" ", "-") for head in heads
    }


@functools.cache
def headings(page: Path) -> frozenset[str]:
    return frozenset(anchors(page))


@pytest.mark.parametrize("page", [*PAGES, *REFERENCE], ids=lambda p: p.stem)
def test_links_lead_somewhere(page: Path) -> None:
    for target, _, part in re.findall(r"\]\(([^)#\s]*)(#([^)\s]*))?\)", page.read_text()):
        if not target.startswith("https://"):
            there = (page.parent / target).resolve() if target else page
            assert there.exists(), target
            assert not part or part in headings(there), f"{target}#{part}"


def test_every_public_method_of_a_class_says_what_it_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "docs"))
    surface = importlib.import_module("made.surface")
    assert surface.undocumented() == []


def test_made_pages_are_up_to_date() -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "docs" / "build.py", "--check"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout


def test_every_method_states_its_cost_and_its_limits() -> None:
    first = (ROOT / "docs" / "methods.md").read_text().partition("\n## ")[0]
    rows = [line for line in first.splitlines() if line.startswith("| `interp.")]
    assert len(rows) > 20
    for row in rows:
        _, _, asks, _, cost, limits, _ = re.split(r"(?<!\\)\|", row)
        assert asks.strip(), row
        assert cost.strip(), row
        assert limits.strip(), row
