"""What a GGUF file says before its weights: facts by key, and each tensor's name, shape, type and place.

The file is mapped, so weights are not read here. Cost: the vocabulary, under a second for 262,144 tokens.
Limits: versions 2 and 3, little-endian; a model split over several GGUF files is refused.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NoReturn

from interp.hooks.errors import ModelError
from interp.hooks.sealed import understood

MAGIC = b"GGUF"
VERSIONS = (2, 3)
ALIGNMENT = 32
AXES = 4
NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
TEXT, ARRAY = 8, 9
"""The format's numbers for types of values, the fixed ones with their letter in `struct`."""


@dataclass(frozen=True)
class Stored:
    """One tensor of the file, its shape as torch says it."""

    name: str
    shape: tuple[int, ...]
    kind: Any
    """A member of `gguf.GGMLQuantizationType`."""
    start: int
    row_bytes: int

    @property
    def numel(self) -> int:
        """How many numbers it has."""
        count = 1
        for size in self.shape:
            count *= size
        return count

    @property
    def bytes(self) -> int:
        """How long it is in the file."""
        return self.numel // self.shape[-1] * self.row_bytes if self.numel else 0


@dataclass(frozen=True)
class Header:
    """A GGUF file without its weights."""

    path: Path
    facts: Mapping[str, Any]
    tensors: Mapping[str, Stored]

    @cached_property
    def architecture(self) -> str:
        """What the file calls the kind of model it holds."""
        return str(self.facts["general.architecture"])

    @property
    def elements(self) -> int:
        """Numbers in all tensors together."""
        return sum(stored.numel for stored in self.tensors.values())


def gguf_package(what: str) -> Any:
    """The `gguf` package, which knows how weights are packed."""
    try:
        import gguf
    except ImportError as why:
        raise ModelError(f"{what}: reading a GGUF needs the gguf package: pip install 'interp[gguf]'.") from why
    return gguf


def is_gguf(path: Path) -> bool:
    """Whether a file opens as a GGUF does."""
    with path.open("rb") as file:
        return file.read(len(MAGIC)) == MAGIC


def read(path: Path) -> Header:
    """Facts and tensors of the file; every tensor is inside of it."""
    if not is_gguf(path):
        raise ModelError(f"{path} is no GGUF file: it does not begin with the bytes GGUF.")
    gguf = gguf_package(str(path))
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data, understood(path):
        cursor = _Cursor(path, data)
        tensors, facts = cursor.counts()
        known = {key: cursor.value() for key in (cursor.text() for _ in range(facts))}
        places = [cursor.place() for _ in range(tensors)]
        start = cursor.at + -cursor.at % int(known.get("general.alignment", ALIGNMENT))
        found = [_stored(gguf, path, *place, start) for place in places]
        header = Header(path, known, {stored.name: stored for stored in found})
        _whole(header, len(data), tensors)
    return header


class _Cursor:
    """A place in the file that moves on as values are read."""

    def __init__(self, path: Path, data: mmap.mmap) -> None:
        self.path, self.data, self.at = path, data, len(MAGIC)

    def counts(self) -> tuple[int, int]:
        version, tensors, facts = self._take("<IQQ")
        if version not in VERSIONS:
            raise ModelError(f"{self.path} says it is GGUF version {version}: expected {VERSIONS[0]} or {VERSIONS[1]}.")
        return tensors, facts

    def text(self) -> str:
        (length,) = self._take("<Q")
        try:
            return self._bytes(length).decode("utf-8")
        except UnicodeDecodeError as why:
            raise ModelError(f"{self.path} is damaged: a text of its header is no UTF-8.") from why

    def value(self) -> Any:
        (kind,) = self._take("<I")
        return self._values(kind, 1)[0] if kind != ARRAY else self._values(*self._take("<IQ"))

    def place(self) -> tuple[str, tuple[int, ...], int, int]:
        name, (axes,) = self.text(), self._take("<I")
        if axes > AXES:
            self._damaged(f"{name} has {axes} axes")
        shape = self._take(f"<{axes}Q")
        return (name, tuple(reversed(shape)), *self._take("<IQ"))

    def _values(self, kind: int, count: int) -> Any:
        if kind in NUMBERS:
            if count > len(self.data):
                self._truncated()
            return self._take(f"<{count}{NUMBERS[kind]}")
        if kind != TEXT:
            self._damaged(f"a value has type {kind}")
        return [self.text() for _ in range(count)]

    def _take(self, layout: str) -> Any:
        try:
            found = struct.unpack_from(layout, self.data, self.at)
        except struct.error:
            self._truncated()
        self.at += struct.calcsize(layout)
        return found

    def _bytes(self, length: int) -> bytes:
        if self.at + length > len(self.data):
            self._truncated()
        self.at += length
        return self.data[self.at - length : self.at]

    def _truncated(self) -> NoReturn:
        raise ModelError(f"{self.path} is truncated: its {len(self.data):,} bytes end inside the header.")

    def _damaged(self, how: str) -> NoReturn:
        raise ModelError(f"{self.path} is damaged: {how}, which the format does not know.")


def _stored(gguf: Any, path: Path, name: str, shape: tuple[int, ...], kind: int, offset: int, start: int) -> Stored:
    try:
        packed = gguf.GGMLQuantizationType(kind)
    except ValueError as why:
        raise ModelError(f"{path}: {name} is packed as type {kind}, which this gguf package does not know.") from why
    numbers, length = gguf.GGML_QUANT_SIZES[packed]
    if not shape or shape[-1] % numbers:
        raise ModelError(f"{path} is damaged: {name} has shape {shape}, but {packed.name} packs {numbers} at a time.")
    return Stored(name, shape, packed, start + offset, shape[-1] // numbers * length)


def _whole(header: Header, length: int, tensors: int) -> None:
    """Refuse a file that ends early, names nothing, names something twice, or is one of several."""
    path = header.path
    if "general.architecture" not in header.facts:
        raise ModelError(f"{path} does not say its architecture (general.architecture): it cannot be read.")
    if len(header.tensors) != tensors:
        raise ModelError(f"{path} is damaged: two of its {tensors} tensors have one name.")
    if int(header.facts.get("split.count", 0)) > 1:
        raise ModelError(f"{path} is one of {header.facts['split.count']} files: join them (llama-gguf-split --merge).")
    if not tensors:
        raise ModelError(f"{path} holds no weights, only a header.")
    last = max(header.tensors.values(), key=lambda stored: stored.start + stored.bytes)
    if last.start + last.bytes > length:
        raise ModelError(
            f"{path} is truncated: {last.name} ends at byte {last.start + last.bytes:,}, the file at {length:,}."
        )
