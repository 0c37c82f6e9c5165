"""A corpus as numbered blocks of documents, each of which can be read without reading those before it.

Of files of lines (.jsonl, .ndjson, .json: an object a line; .txt: a document a line) a block is a stretch of bytes, and
a line belongs to the block of its first byte. Of parquet it is a row group. A .gz file of lines is one block. Of texts
that are given it is a fixed number of them. Which block a document is in follows from the corpus alone, so shards and
runs that go on agree about it. What cannot be read is a `Bad` with its file and line.
"""

from __future__ import annotations

import gzip
import json
import zlib
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from interp.hooks.sealed import first_line
from interp.kernels.errors import InterpError

LINES, TEXT, TABLE = (".jsonl", ".ndjson", ".json"), (".txt",), (".parquet",)
BYTES = 4 << 20
"""Of a block of lines."""
TEXTS = 256
"""Of a block of texts that are given."""
LONGEST = 64 << 20
"""Bytes of a line; a longer line means that the file is damaged."""


class CorpusError(InterpError, ValueError):
    """A corpus that cannot be read."""


@dataclass(frozen=True)
class Document:
    """A text and where it was: the block, its number there, and the place in words."""

    text: str
    block: int
    number: int
    where: str


@dataclass(frozen=True)
class Bad:
    """What is in a corpus and is no document, with the reason."""

    where: str
    why: str

    def error(self) -> CorpusError:
        """As an error."""
        return CorpusError(f"{self.where}: {self.why}. on_error='skip' passes over what cannot be read and lists it.")


@runtime_checkable
class Documents(Protocol):
    """A corpus: how many blocks it has (None where only reading to the end tells), and what is in each."""

    @property
    def count(self) -> int | None: ...

    def about(self) -> dict[str, Any]:
        """What tells this corpus from another one."""
        ...

    def read(self, block: int) -> Iterator[Document | Bad]: ...

    def place(self, block: int) -> str:
        """Where a block begins, in words."""
        ...


def documents(given: Any, *, column: str = "text", block_bytes: int = BYTES) -> Documents:
    """A corpus from a file, a directory, a pattern with `*`, several of these, an object with `.files` as a pyarrow
    dataset has it, or texts."""
    if hasattr(given, "files") and not isinstance(given, type):
        return Files([Path(name) for name in given.files], column, block_bytes)
    if isinstance(given, str | Path):
        return Files(_found(given), column, block_bytes)
    if isinstance(given, Sequence) and given and all(_names_a_file(one) for one in given):
        return Files([file for one in given for file in _found(one)], column, block_bytes)
    if isinstance(given, Iterable):
        return Texts(given)
    raise CorpusError(f"a corpus is a path, several paths, or texts; got {type(given).__name__}.")


def _names_a_file(one: Any) -> bool:
    """Whether an entry of a list is a path and not a text."""
    if isinstance(one, Path):
        return True
    plain = isinstance(one, str) and len(one) < 4096 and "\n" not in one
    return plain and _kind(Path(one)) is not None and (Path(one).exists() or "*" in one)


def _kind(file: Path) -> str | None:
    name = file.name.lower().removesuffix(".gz")
    for kind, endings in (("lines", LINES), ("text", TEXT), ("table", TABLE)):
        if name.endswith(endings):
            return kind
    return None


def _found(path: str | Path) -> list[Path]:
    """The files that a path means, in the order of their names."""
    given = Path(path)
    if given.is_dir():
        found = sorted(one for one in given.rglob("*") if one.is_file() and _kind(one) is not None)
    elif "*" in str(given):
        fixed = next(n for n, part in enumerate(given.parts) if "*" in part)
        found = sorted(Path(*given.parts[:fixed]).glob(str(Path(*given.parts[fixed:]))))
    else:
        found = [given]
    if not found:
        raise CorpusError(f"{path} has no {', '.join((*LINES, *TEXT, *TABLE))} in it.")
    return found


class Files:
    """Files, one after the other."""

    def __init__(self, files: Sequence[Path], column: str, block_bytes: int) -> None:
        if block_bytes < 1:
            raise CorpusError(f"block_bytes is at least 1, got {block_bytes}.")
        self.files, self.column, self.block_bytes = tuple(files), column, block_bytes
        self.bad: dict[int, Bad] = {}
        self.sizes: list[int] = []
        counts = [self._blocks(n, file) for n, file in enumerate(self.files)]
        self.ends = list(accumulate(counts))

    def _blocks(self, n: int, file: Path) -> int:
        if _kind(file) is None:
            every = ", ".join((*LINES, *TEXT, *TABLE))
            raise CorpusError(f"{file} is read by its ending: expected one of {every}, lines also with .gz.")
        try:
            self.sizes.append(file.stat().st_size)
        except OSError as why:
            raise CorpusError(f"{file} cannot be read: {why.strerror}.") from why
        if _kind(file) == "table":
            return self._row_groups(n, file)
        return 1 if file.suffix.lower() == ".gz" else -(-self.sizes[-1] // self.block_bytes)

    def _row_groups(self, n: int, file: Path) -> int:
        import pyarrow
        from pyarrow import parquet

        try:
            with parquet.ParquetFile(file) as table:
                if self.column in table.schema_arrow.names:
                    return int(table.num_row_groups)
                self.bad[n] = Bad(str(file), f"it has no column {self.column!r}, but {table.schema_arrow.names}")
        except (pyarrow.ArrowException, OSError) as why:
            self.bad[n] = Bad(str(file), f"it is no parquet file that can be read ({first_line(why)})")
        return 1

    @property
    def count(self) -> int:
        """Blocks of all files."""
        return self.ends[-1]

    def about(self) -> dict[str, Any]:
        """Names and sizes of the files, and how they are cut."""
        return {"files": [[str(f), s] for f, s in zip(self.files, self.sizes, strict=True)], "column": self.column,
                "block_bytes": self.block_bytes}  # fmt: skip

    def _at(self, block: int) -> tuple[int, int]:
        n = bisect_right(self.ends, block)
        return n, block - (self.ends[n - 1] if n else 0)

    def place(self, block: int) -> str:
        """The file, and the byte or row group in it."""
        n, inside = self._at(block)
        if _kind(self.files[n]) == "table":
            return f"{self.files[n]}, row group {inside}"
        return f"{self.files[n]}, byte {inside * self.block_bytes}"

    def read(self, block: int) -> Iterator[Document | Bad]:
        """The documents of a block."""
        n, inside = self._at(block)
        if n in self.bad:
            yield self.bad[n]
        elif _kind(self.files[n]) == "table":
            yield from self._rows(self.files[n], inside, block)
        else:
            yield from self._lines(self.files[n], inside, block)

    def _rows(self, file: Path, group: int, block: int) -> Iterator[Document | Bad]:
        import pyarrow
        from pyarrow import parquet

        number = 0
        try:
            with parquet.ParquetFile(file) as table:
                for batch in table.iter_batches(batch_size=TEXTS, row_groups=[group], columns=[self.column]):
                    for value in batch.column(0).to_pylist():
                        where = f"{file}, row group {group}, row {number}"
                        yield _text(value, self.column, block, number, where)
                        number += 1
        except (pyarrow.ArrowException, OSError) as why:
            yield Bad(f"{file}, row group {group} after row {number}", f"it cannot be read ({first_line(why)})")

    def _lines(self, file: Path, inside: int, block: int) -> Iterator[Document | Bad]:
        zipped, start = file.suffix.lower() == ".gz", inside * self.block_bytes
        end = None if zipped else start + self.block_bytes
        before: int | None = None
        try:
            with gzip.open(file, "rb") if zipped else file.open("rb") as handle:
                for number, (offset, line) in enumerate(_between(handle, start, end)):
                    made = self._line(file, line, block, number, f"{file}, byte {offset}", first=offset == 0)
                    if isinstance(made, Bad):
                        before = _count_lines(file, start) if before is None else before
                        made = Bad(f"{file}, line {before + number + 1}", made.why)
                    if made is not None:
                        yield made
        except (OSError, EOFError, zlib.error) as why:
            yield Bad(str(file), f"it cannot be read ({first_line(why)})")

    def _line(
        self, file: Path, line: bytes, block: int, number: int, where: str, *, first: bool
    ) -> Document | Bad | None:
        if len(line) > LONGEST:
            return Bad(where, f"a line is longer than {LONGEST >> 20} MiB")
        try:
            text = line.decode("utf-8-sig" if first else "utf-8").strip()
        except UnicodeDecodeError as why:
            return Bad(where, f"not UTF-8 at byte {why.start} of the line")
        if not text:
            return None
        if _kind(file) == "text":
            return Document(text, block, number, where)
        try:
            value = json.loads(text)
        except (ValueError, RecursionError) as why:
            return Bad(where, f"not JSON ({first_line(why)}): {text!r:.60}")
        if not isinstance(value, dict):
            return Bad(where, f"expected an object, got {type(value).__name__}")
        if self.column not in value:
            return Bad(where, f"no {self.column!r} among its fields {', '.join(map(repr, value)):.120}")
        return _text(value[self.column], self.column, block, number, where)


class Texts:
    """Texts that are given. Those of a generator are read once, in their order."""

    def __init__(self, given: Iterable[Any]) -> None:
        self.known = given if isinstance(given, Sequence) else None
        self.coming = iter(()) if self.known is not None else iter(given)
        self.next = 0
        self.over = False

    @property
    def count(self) -> int | None:
        """Blocks, where the texts can be counted."""
        return None if self.known is None else -(-len(self.known) // TEXTS)

    def about(self) -> dict[str, Any]:
        """How many there are, where they can be counted, and how they are cut."""
        return {"texts": None if self.known is None else len(self.known), "block_texts": TEXTS}

    def place(self, block: int) -> str:
        """The number of the first text."""
        return f"text {block * TEXTS}"

    def read(self, block: int) -> Iterator[Document | Bad]:
        """The documents of a block; a generator is read up to it."""
        for number, value in enumerate(self._some(block)):
            yield _text(value, "text", block, number, f"text {block * TEXTS + number}")

    def _some(self, block: int) -> list[Any]:
        if self.known is not None:
            return list(self.known[block * TEXTS : (block + 1) * TEXTS])
        if block < self.next:
            raise CorpusError("the texts come from a generator, which is read once: give a list, or files.")
        some: list[Any] = []
        while self.next <= block:
            some = [value for _, value in zip(range(TEXTS), self.coming, strict=False)]
            self.next += 1
            self.over = len(some) < TEXTS
        return some


def _text(value: Any, column: str, block: int, number: int, where: str) -> Document | Bad:
    if not isinstance(value, str):
        return Bad(where, f"expected a text in {column!r}, got {value!r:.80}")
    return Document(value, block, number, where)


def _between(handle: Any, start: int, end: int | None) -> Iterator[tuple[int, bytes]]:
    """The lines whose first byte is from `start` to before `end`, with the place of that byte."""
    offset = 0
    if start:
        handle.seek(start - 1)
        offset = start - 1 + _passed(handle)
    while end is None or offset < end:
        line = handle.readline(LONGEST + 1)
        if not line:
            return
        yield offset, line
        offset += len(line) + (_passed(handle) if len(line) > LONGEST and not line.endswith(b"\n") else 0)


def _passed(handle: Any) -> int:
    """Read to the end of this line; how many bytes that were."""
    total = 0
    while piece := handle.readline(LONGEST):
        total += len(piece)
        if piece.endswith(b"\n"):
            break
    return total


def _count_lines(file: Path, end: int) -> int:
    """Line ends before a byte, counted only where an error has to name a line."""
    total, left = 0, end
    with file.open("rb") as handle:
        while left and (piece := handle.read(min(left, 1 << 20))):
            total += piece.count(b"\n")
            left -= len(piece)
    if not left and end:
        with file.open("rb") as handle:
            handle.seek(end - 1)
            total += handle.read(1) != b"\n"  # a block begins with the first line that begins in it
    return total
