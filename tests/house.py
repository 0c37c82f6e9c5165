"""The repository as the guard tests see it: what git holds or would hold, and what each Python file imports."""

from __future__ import annotations

import ast
import functools
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def files() -> list[Path]:
    """Every file that is committed or about to be, relative to the root; links are left out, their targets are in."""
    git = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(git, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\0")
    return [Path(n) for n in names if n and (ROOT / n).is_file() and not (ROOT / n).is_symlink()]


def sources(*folders: str) -> dict[Path, ast.Module]:
    """Parsed Python files of these root folders, or of all."""
    chosen = [f for f in files() if f.suffix == ".py" and (not folders or f.parts[0] in folders)]
    return {f: parsed(f) for f in chosen}


@functools.cache
def parsed(file: Path) -> ast.Module:
    return ast.parse((ROOT / file).read_text("utf-8"), str(file))


@functools.cache
def imports(tree: ast.Module) -> tuple[str, ...]:
    """Full dotted names, wherever in the file the import stands; `from a import b` gives `a.b`, relative ones `.b`."""
    return tuple(_imported(tree))


def _imported(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            start = "." * node.level + (node.module + "." if node.module else "")
            yield from (start + alias.name for alias in node.names)


def python(code: str, *, cwd: Path = ROOT, **env: str) -> str:
    """What a fresh interpreter prints; by default it stands in the root, as a notebook or `python -c` there would."""
    own = {k: v for k, v in os.environ.items() if k not in {"PYTHONPATH", "PYTHONSAFEPATH"}}
    done = subprocess.run([sys.executable, "-c", code], cwd=cwd, env=own | env, capture_output=True, text=True)
    assert done.returncode == 0, f"{code}\n{done.stdout}\n{done.stderr}"
    return done.stdout.strip()
