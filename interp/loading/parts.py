"""A file that was cut into parts, `NAME.part0` on, next to a `SHA256SUMS` with the checksum of the whole file.

The whole is joined in the order of the numbers and compared with its checksum; without a checksum nothing is joined.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from interp.hooks.errors import ModelError
from interp.reading import content

PART = re.compile(r"(.+)\.part[-_]?(\d+)")
SUM = re.compile(r"([0-9a-fA-F]{64}) [ *](.+)")
CHUNK = 1 << 20


@dataclass(frozen=True)
class Parts:
    """The parts of one file, in order, and the checksum of the whole."""

    name: str
    files: tuple[Path, ...]
    sha256: str

    def digest(self) -> str:
        """The checksum that says what the whole is; it is compared with the parts when they are joined."""
        return self.sha256

    @contextmanager
    def whole(self, scratch: Path) -> Iterator[Path]:
        """The joined file, in a folder for scratch files, gone afterwards."""
        joined, found = scratch / self.name, hashlib.sha256()
        with joined.open("wb") as to:
            for part in self.files:
                with part.open("rb") as file:
                    while block := file.read(CHUNK):
                        to.write(block)
                        found.update(block)
        try:
            if found.hexdigest() != self.sha256:
                raise ModelError(
                    f"the {len(self.files)} parts of {self.name} do not join to the file of their checksum: a part is"
                    f" damaged or has another's number (SHA-256 {found.hexdigest()[:12]}, not {self.sha256[:12]})."
                )
            yield joined
        finally:
            joined.unlink()


@dataclass(frozen=True)
class Single:
    """A file that is whole as it is."""

    path: Path

    @property
    def name(self) -> str:
        """What it is called."""
        return self.path.name

    def digest(self) -> str:
        """SHA-256 of what it holds."""
        with self.path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    @contextmanager
    def whole(self, scratch: Path) -> Iterator[Path]:
        """The file itself."""
        yield self.path


def parts_among(files: Sequence[Path], what: str) -> list[Parts]:
    """Every file whose parts are among these, each with all of its parts and its checksum."""
    sums = checksums(files)
    found: dict[str, list[tuple[int, Path]]] = {}
    for file in files:
        if match := PART.fullmatch(file.name):
            found.setdefault(match[1], []).append((int(match[2]), file))
    return [_complete(name, sorted(numbered), sums, what) for name, numbered in sorted(found.items())]


def checksums(files: Sequence[Path]) -> dict[str, str]:
    """What the lists of checksums among these files say, by name of the file."""
    lists = [file for file in files if file.name.upper().startswith("SHA256SUM") or file.suffix == ".sha256"]
    lines = [line.strip() for file in lists for line in content(file)[1].split("\n")]
    return {Path(match[2]).name: match[1].lower() for line in lines if (match := SUM.fullmatch(line))}


def _complete(name: str, numbered: Sequence[tuple[int, Path]], sums: dict[str, str], what: str) -> Parts:
    numbers = [number for number, _ in numbered]
    wanted = list(range(numbers[0], numbers[0] + len(numbers)))
    if numbers[0] not in (0, 1) or numbers != wanted:
        raise ModelError(f"{what}: the parts of {name} are numbered {numbers}: expected each from 0 or 1 on, once.")
    if name not in sums:
        raise ModelError(f"{what}: {name} is in parts without a checksum (SHA256SUMS): it cannot be joined safely.")
    return Parts(name, tuple(file for _, file in numbered), sums[name])
