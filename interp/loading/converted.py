"""Converted models in the user's cache: a GGUF is unpacked once, and later loads read plain safetensors.

A folder is named by what the file holds and by the versions that unpacked it, so a changed file or an upgrade is
unpacked anew; it appears whole or not at all. It holds float32: four bytes a parameter. Where the cache is
`INTERP_CACHE` says, else the user's cache directory; files there can be deleted at any time. Cost of a second load: the
file's header and SHA-256, then an ordinary load.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
import tempfile
from importlib import metadata
from pathlib import Path

from interp.hooks.errors import ModelError
from interp.hooks.run.size import free_memory
from interp.hooks.sealed import parsed, understood
from interp.kernels.native.library import cache
from interp.loading.gguf.convert import checked, convert
from interp.loading.gguf.header import gguf_package, read
from interp.loading.intact import built
from interp.loading.parts import Parts, Single
from interp.saving import whole

FORMAT = 1
NOTE = "converted.json"
FLOAT32 = 4


def converted(source: Single | Parts, *, width: int = FLOAT32, elsewhere: bool = False) -> Path:
    """The directory in hub layout; `width` bytes a number are wanted in memory, unless the model goes `elsewhere`."""
    gguf_package(source.name)
    bytes_each = 0 if elsewhere else width
    if isinstance(source, Single):
        _fits(source.name, read(source.path).elements, bytes_each)
    digest = source.digest()
    folder = cache() / "models" / f"{source.name.removesuffix('.gguf')}-{_key(digest)}"
    if folder.is_dir():
        note = parsed(folder / NOTE)
        with understood(folder / NOTE):
            _fits(source.name, note["elements"], bytes_each)
        return folder
    return _convert(source, digest, folder, bytes_each)


def _key(digest: str) -> str:
    """Of what is held, and of what unpacks it."""
    versions = [metadata.version(name) for name in ("gguf", "transformers", "tokenizers")]
    return hashlib.sha256("/".join([str(FORMAT), *versions, digest]).encode()).hexdigest()[:16]


def _convert(source: Single | Parts, digest: str, folder: Path, width: int) -> Path:
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
    except OSError as why:
        raise ModelError(f"{folder.parent} cannot be made ({why.strerror}): set INTERP_CACHE to a directory.") from why
    with (
        tempfile.TemporaryDirectory(dir=folder.parent, prefix="scratch-") as scratch,
        source.whole(Path(scratch)) as file,
        built(source.name),
    ):
        header = read(file)
        module = checked(header)
        _fits(source.name, header.elements, width)
        _room(folder.parent, source.name, header.elements * FLOAT32)
        _say(source.name, folder, header.elements)
        with whole(folder) as new:
            convert(header, module, new)
            note = {"format": FORMAT, "file": source.name, "sha256": digest, "elements": header.elements}
            (new / NOTE).write_text(json.dumps(note, indent=1), encoding="utf-8")
    return folder


def _fits(name: str, elements: int, width: int) -> None:
    """Refuse a model that memory cannot hold, before it is read."""
    wanted, free = elements * width, free_memory()
    if wanted > free:
        raise ModelError(
            f"{name} has {elements:,} numbers, {wanted / 1e9:.1f} GB at {width} bytes each, and {free / 1e9:.1f} GB of"
            " memory are free: give dtype='bfloat16', or device_map= to place it elsewhere."
        )


def _room(folder: Path, name: str, wanted: int) -> None:
    free = shutil.disk_usage(folder).free
    if wanted > free:
        raise ModelError(
            f"{name} unpacked takes {wanted / 1e9:.1f} GB and {folder} has {free / 1e9:.1f} GB free: set INTERP_CACHE"
            " to a directory with more room."
        )


def _say(name: str, folder: Path, elements: int) -> None:
    print(
        f"interp: unpacking {name} to {folder} ({elements * FLOAT32 / 1e6:,.0f} MB), from where later loads read it;"
        " INTERP_CACHE says where.",
        file=sys.stderr,
    )
