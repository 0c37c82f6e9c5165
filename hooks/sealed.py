"""Our own files on disk, checked as they are read: what a file held when it was written is what it holds now.

A JSON carries a digest of its content (`seal`) and those of the files that belong to it (`sha256`, by name); either is
checked before what it speaks of is parsed. A file without a seal was written by version 0.2 or before and is read as it
is. What a JSON names is in its own directory. Digests find damage, not a forger, who can write a new one. Cost: one
SHA-256 of every file that is read.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor

from interp.kernels.errors import InterpError

SEAL, FILES = "seal", "sha256"
MISREAD = (KeyError, TypeError, ValueError, AttributeError, IndexError, ArithmeticError, RuntimeError)
"""What goes wrong where code meets a value of another shape than the one that was written."""


def digest(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sealed(about: Mapping[str, Any], files: Mapping[str, str] | None = None, *, indent: int | None = 1) -> bytes:
    """The JSON with its seal and the digests of the files that belong to it."""
    plain = json.loads(json.dumps(dict(about), default=str))
    plain[FILES] = dict(files or {})
    return json.dumps({**plain, SEAL: _seal(plain)}, indent=indent).encode()


def _seal(plain: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(plain).encode()).hexdigest()


def unsealed(path: Path, version: int) -> tuple[dict[str, Any], dict[str, str] | None]:
    """A JSON of ours whose "format" is this version's, and the digests of its files: None where it was not sealed."""
    about = parsed(path)
    if about.get("format") != version:
        raise InterpError(f"{path.parent} was written in format {about.get('format')}; this version reads {version}.")
    return opened(path, about)


def opened(path: Path, about: dict[str, Any]) -> tuple[dict[str, Any], dict[str, str] | None]:
    """What was sealed, without its seal, and the digests of its files."""
    if SEAL not in about and FILES not in about:
        return about, None
    said = about.pop(SEAL, None)
    if said != _seal(about):
        raise damaged(path, "its content is not what its seal was made of")
    files: dict[str, str] = about.pop(FILES)
    return about, files


def parsed(path: Path) -> dict[str, Any]:
    """A JSON file that is one object."""
    try:
        found = json.loads(path.read_bytes().decode("utf-8"))
    except (ValueError, RecursionError) as why:
        raise damaged(path, f"it is no JSON ({first_line(why)})") from why
    except OSError as why:
        raise InterpError(f"{path} cannot be read: {why.strerror}.") from why
    if not isinstance(found, dict):
        raise damaged(path, f"it holds {type(found).__name__} where names and values were written")
    return found


def inside(folder: Path, name: Any) -> Path:
    """The file of a directory that an index in it names; refused where the file is elsewhere."""
    if not isinstance(name, str) or "\0" in name or not name:
        raise InterpError(f"{folder}: an index names {name!r:.80} where the name of a file was expected.")
    if not (folder / name).resolve().is_relative_to(folder.resolve()):
        raise InterpError(f"{folder}: an index names {name!r:.80}, which is outside of this directory.")
    return folder / name


def whole(path: Path, said: Mapping[str, str] | None) -> Path:
    """The file, compared with its digest where its index is sealed."""
    if not path.is_file():
        raise InterpError(f"{path} is missing: expected next to the file that names it.")
    if said is not None and (path.name not in said or digest(path) != said[path.name]):
        raise damaged(path, "it is not the file whose digest was written down")
    return path


def loaded(path: Path, said: Mapping[str, str] | None = None) -> dict[str, Tensor]:
    """The tensors of a safetensors file, compared with its digest first."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(str(whole(path, said)))
    except (SafetensorError, OSError, *MISREAD) as why:
        raise damaged(path, f"it is no safetensors file ({first_line(why)})") from why


@contextmanager
def understood(path: Path) -> Iterator[None]:
    """While inside, content of another shape than expected is an error of the file and not of the code that reads."""
    try:
        yield
    except InterpError:
        raise
    except MISREAD as why:
        raise damaged(
            path, f"its content has not the shape that is read ({type(why).__name__}: {first_line(why)})"
        ) from why


def damaged(path: Path, how: str) -> InterpError:
    """The error of a file that cannot be what was written."""
    return InterpError(f"{path} is damaged or was changed: {how}. Take another copy of it, or make it anew.")


def first_line(why: BaseException) -> str:
    """What an error of others says, in a line."""
    lines = str(why).strip().splitlines()
    return f"{lines[0]:.120}" if lines else type(why).__name__
