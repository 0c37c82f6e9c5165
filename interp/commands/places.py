"""Where results go: found out before the work that there is a place for them; tables are written whole or not at all.

A place is tried with an empty directory that is taken away again, so nothing is left where a command is then refused.
Limits: a disk that is too small for the result is noticed when it is written.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

from interp.configs import ConfigError

TABLES = (".csv", ".parquet", ".json")


def about_out(
    parser: argparse.ArgumentParser, what: str, *, ends: Sequence[str] | None = None, default: str | None = None
) -> None:
    """The option `--out`: a directory, or with `ends` a file whose name ends in one of them (any, where empty)."""
    parser.add_argument("--out", metavar="DIR" if ends is None else "FILE", default=default, help=what)
    parser.set_defaults(out_ends=ends)


def checked(options: argparse.Namespace) -> None:
    """Refuse an `--out` that nothing could be written to, before anything is loaded."""
    out = getattr(options, "out", None)
    if out is None and getattr(options, "shard", None):
        raise ConfigError(
            "--shard needs --out: give each shard its own directory. The shards are merged from these directories."
        )
    if out is None:
        return
    if not out:
        raise ConfigError("--out is empty: give a path.")
    path = Path(out).absolute()
    ends = None if getattr(options, "shard", None) else options.out_ends  # a shard is a directory
    if ends and path.suffix not in ends:
        raise ConfigError(f"--out {out}: tables are written as {', '.join(ends[:-1])} or {ends[-1]}.")
    if ends is not None and path.is_dir():
        raise ConfigError(f"--out {out} is a directory: give the name of a file, such as {Path(out) / 'rows.csv'}.")
    _writable(out, path if ends is None else path.parent)


def empty(out: str | None) -> None:
    """Refuse a directory that holds something, for what is written into one of its own."""
    if out is not None and Path(out).is_dir() and any(Path(out).iterdir()):
        raise ConfigError(f"--out {out} is not empty: a model is written into a new or empty directory.")


def _writable(out: str, folder: Path) -> None:
    there = next(place for place in (folder, *folder.parents) if _stands(place))
    if not there.is_dir():
        raise ConfigError(f"--out {out} cannot be written to: {there} is a file, not a directory. Give another path.")
    try:
        Path(tempfile.mkdtemp(prefix=".interp-", dir=there)).rmdir()
    except OSError as why:
        raise ConfigError(f"--out {out} cannot be written to ({there}: {why.strerror}): give another path.") from why


def _stands(place: Path) -> bool:
    """Whether there is something of that name, be it a link that leads nowhere."""
    try:
        place.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def write_table(frame: Any, path: str | Path) -> dict[str, Any]:
    """Where it went and how large it is."""
    from interp.saving import renamed

    file = Path(path)
    sink = BytesIO()
    if file.suffix == ".csv":
        sink.write(frame.to_csv(index=False, lineterminator="\n").encode())
    elif file.suffix == ".parquet":
        frame.to_parquet(sink, index=False)
    elif file.suffix == ".json":
        sink.write(frame.to_json(orient="records", indent=1).encode())
    else:
        raise ConfigError(f"--out {file}: tables are written as .csv, .parquet or .json.")
    file.parent.mkdir(parents=True, exist_ok=True)
    renamed(file, sink.getvalue())
    return {"out": str(file), "bytes": file.stat().st_size}
