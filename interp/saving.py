"""Results on disk: tensors in a safetensors file, the rest as JSON, which comes last; each whole or not at all.

The JSON holds the digests of the others and its own (`hooks/sealed.py`), which are checked when it is read."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any, Literal
from uuid import uuid4

from torch import Tensor

from interp.hooks.sealed import inside, loaded, sealed, unsealed
from interp.hooks.sealed import whole as whole_file
from interp.kernels.errors import InterpError


def renamed(path: Path, data: bytes) -> None:
    """Write a file so that it is there whole or not at all."""
    scratch = path.with_name(path.name + f".part{os.getpid()}")
    try:
        with scratch.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        scratch.rename(path)
    except OSError as why:
        why.filename = str(path)
        raise
    finally:
        scratch.unlink(missing_ok=True)


@contextmanager
def whole(directory: str | Path) -> Iterator[Path]:
    """A new or empty directory that is filled under another name in the same place: it is there whole or not at all."""
    from safetensors import SafetensorError

    to = Path(directory).resolve()
    to.parent.mkdir(parents=True, exist_ok=True)
    new = to.with_name(f"{to.name}.part-{uuid4().hex[:12]}")
    new.mkdir()
    try:
        yield new
        if to.exists():
            for file in new.iterdir():
                file.rename(to / file.name)
        else:
            new.rename(to)
    except SafetensorError as why:
        raise InterpError(f"{directory} cannot be written: {why}") from why
    finally:
        shutil.rmtree(new, ignore_errors=True)


def write(
    directory: str | Path,
    tensors: Mapping[str, Tensor],
    about: Mapping[str, Any],
    *,
    names: tuple[str, str],
    table: Any = None,
    kind: Literal["parquet", "csv"] | None = "parquet",
) -> Path:
    """The files of a result, under `names`, in a directory that is made if it is not there; a table (pandas) goes
    next to the tensors as parquet or CSV, and without tensors there is no file of them."""
    from safetensors.torch import save

    folder, digests = Path(directory), dict[str, str]()
    folder.mkdir(parents=True, exist_ok=True)
    if tensors:
        _put(folder / names[0], save({name: tensor.contiguous() for name, tensor in tensors.items()}), digests)
    if table is not None:
        sink = BytesIO()
        table.to_parquet(sink) if kind == "parquet" else table.to_csv(sink, index=False)
        _put((folder / names[0]).with_suffix(f".{kind}"), sink.getvalue(), digests)
    renamed(folder / names[1], sealed(about, digests))
    return folder


def _put(path: Path, data: bytes, digests: dict[str, str]) -> None:
    renamed(path, data)
    digests[path.name] = hashlib.sha256(data).hexdigest()


def read(
    directory: str | Path, names: tuple[str, str], version: int, *, tensors: bool = True
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """What `write` wrote under `names`: the JSON, whose "format" must be this version's, and the tensors it had. The
    table is not needed, but if it is there it must be the one that was written."""
    folder = Path(directory)
    if not (folder / names[1]).is_file():
        raise InterpError(f"{folder} holds no {names[1]}: expected where such a result was saved.")
    about, digests = unsealed(folder / names[1], version)
    for name in digests or ():
        file = inside(folder, name)
        if name != names[0] and file.exists():
            whole_file(file, digests)
    return about, loaded(folder / names[0], digests) if tensors else {}
