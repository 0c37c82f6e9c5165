"""Lines, objects and fields of foreign files, checked one by one.

Limits: files are read whole, as UTF-8 (a byte order mark is allowed).
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from interp.kernels.errors import InterpError

PICKLES = (".pkl", ".pickle", ".pt", ".pth", ".bin", ".npy", ".npz")


class FormatError(InterpError, ValueError):
    """A file that is not what its format says."""


@dataclass(frozen=True)
class Entry:
    """One record and where in the file it is."""

    file: Path
    line: int
    value: Mapping[str, Any]

    def fail(self, message: str) -> FormatError:
        """An error that names this place."""
        return FormatError(f"{self.file}, line {self.line}: {message}")

    def need(self, *names: str) -> None:
        """Refuse the record if a field is missing."""
        missing = [name for name in names if name not in self.value]
        if missing:
            found = ", ".join(map(repr, self.value)) or "nothing"
            raise self.fail(f"expected the fields {', '.join(map(repr, names))}, got {found}")

    def text(self, name: str) -> str:
        """A field that is a text, not empty."""
        self.need(name)
        value = self.value[name]
        if not isinstance(value, str) or not value:
            raise self.fail(f"expected a text in {name!r}, got {value!r:.80}")
        return value

    def texts(self, name: str) -> tuple[str, ...]:
        """A field that is a list of texts, not empty."""
        self.need(name)
        value = self.value[name]
        if not isinstance(value, list) or not value or not all(isinstance(item, str) for item in value):
            raise self.fail(f"expected a list of texts in {name!r}, got {value!r:.80}")
        return tuple(value)

    def whole(self, name: str) -> int:
        """A field that is a whole number, also written as text."""
        self.need(name)
        value = self.value[name]
        if isinstance(value, bool) or not re.fullmatch(r"-?\d{1,1000}", f"{value!s:.1002}"):
            raise self.fail(f"expected a whole number in {name!r}, got {value!r:.80}")
        return int(value)

    def inside(self, name: str) -> Entry:
        """A field that is an object."""
        self.need(name)
        value = self.value[name]
        if not isinstance(value, dict):
            raise self.fail(f"expected an object in {name!r}, got {value!r:.80}")
        return Entry(self.file, self.line, value)


def content(path: str | Path) -> tuple[Path, str]:
    """The text of a file; pickles are refused by name."""
    file = Path(path)
    if file.suffix.lower() in PICKLES:
        raise FormatError(f"{file} looks like a pickle, which can run code when opened: export it as JSON or CSV")
    try:
        return file, file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise FormatError(f"{file}: not UTF-8 at byte {error.start}") from None
    except (OSError, ValueError) as error:
        raise FormatError(f"{file}: cannot be read ({error})") from error


def lines(path: str | Path) -> list[Entry]:
    """The objects of a JSONL file; blank lines are passed over."""
    file, text = content(path)
    found = [_object(file, i, line) for i, line in enumerate(text.split("\n"), 1) if line.strip()]
    if not found:
        raise FormatError(f"{file}: no records")
    return found


def stream(path: str | Path) -> Iterator[Entry]:
    """The objects of a JSONL file, read one line at a time."""
    file, number = Path(path), 0
    try:
        with file.open("rb") as handle:
            for number, line in enumerate(handle, 1):
                text = line.decode("utf-8-sig" if number == 1 else "utf-8")
                if text.strip():
                    yield _object(file, number, text)
    except UnicodeDecodeError as error:
        raise FormatError(f"{file}, line {number}: not UTF-8 at byte {error.start} of the line") from None
    except OSError as error:
        raise FormatError(f"{file}: cannot be read ({error.strerror})") from error


def _object(file: Path, number: int, text: str) -> Entry:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{file}, line {number}: not JSON ({_why(error)}): {text!r:.80}") from None
    if not isinstance(value, dict):
        raise FormatError(f"{file}, line {number}: expected an object, got {type(value).__name__}")
    return Entry(file, number, value)


def _why(error: Exception) -> str:
    """What the parser found; not every one of its errors is its own (too deep, a number too long)."""
    return error.msg if isinstance(error, json.JSONDecodeError) else str(error)


def whole_file(path: str | Path) -> Entry:
    """A JSON file that is one object."""
    file, text = content(path)
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{file}, line {getattr(error, 'lineno', 1)}: not JSON ({_why(error)})") from None
    if not isinstance(value, dict):
        raise FormatError(f"{file}, line 1: expected one object, got {type(value).__name__}")
    return Entry(file, 1, value)


def members(path: str | Path, key: str | None = None) -> list[Entry]:
    """The objects of a JSON array, or of the array under `key` in a JSON object, each with the line it starts on."""
    file, text = content(path)
    start = 0 if key is None else _after_key(file, text, key)
    return list(_members(file, text, start))


def _after_key(file: Path, text: str, key: str) -> int:
    whole_file(file).need(key)
    found = re.search(rf'"{re.escape(key)}"\s*:\s*', text)
    if found is None:
        raise FormatError(
            f"{file}: the name {key!r} is written with escapes, and interp looks for the list by the plain name: write"
            " the name without escapes"
        )
    return found.end()


def _members(file: Path, text: str, at: int) -> Iterator[Entry]:
    decode = json.JSONDecoder().raw_decode
    at = _skip(text, at)
    if text[at : at + 1] != "[":
        raise FormatError(f"{file}, line {_line(text, at)}: expected a list, got {text[at : at + 20]!r}")
    at = _skip(text, at + 1)
    while text[at : at + 1] != "]":
        number = _line(text, at)
        try:
            value, at = decode(text, at)
        except (ValueError, RecursionError) as error:
            raise FormatError(f"{file}, line {getattr(error, 'lineno', number)}: not JSON ({_why(error)})") from None
        if not isinstance(value, dict):
            raise FormatError(f"{file}, line {number}: expected an object, got {type(value).__name__}")
        yield Entry(file, number, value)
        at = _skip(text, at)
        if text[at : at + 1] not in (",", "]"):
            raise FormatError(f"{file}, line {_line(text, at)}: expected ',' or ']', got {text[at : at + 20]!r}")
        at = _skip(text, at + 1) if text[at] == "," else at


def _skip(text: str, at: int) -> int:
    while at < len(text) and text[at].isspace():
        at += 1
    return at


def _line(text: str, at: int) -> int:
    return text.count("\n", 0, at) + 1


def table(path: str | Path, *, needed: Sequence[str]) -> list[Entry]:
    """The rows of a CSV file with a head; quoted fields may span lines."""
    file, _ = content(path)
    with file.open(encoding="utf-8-sig", newline="") as handle:
        reader = csv.DictReader(handle, strict=True)
        try:
            head = reader.fieldnames or ()
        except csv.Error as error:
            raise FormatError(f"{file}, line 1: not CSV ({error})") from None
        missing = [name for name in needed if name not in head]
        if missing:
            raise FormatError(f"{file}, line 1: expected the columns {', '.join(needed)}, got {', '.join(head)}")
        return list(_rows(file, reader))


def _rows(file: Path, reader: csv.DictReader[str]) -> Iterator[Entry]:
    while True:
        number = reader.line_num + 1
        try:
            row = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise FormatError(f"{file}, line {number}: not CSV ({error})") from None
        if None in row or None in row.values():
            fields = len(reader.fieldnames or ())
            raise FormatError(f"{file}, line {number}: expected {fields} fields, got more or fewer")
        yield Entry(file, number, row)


def parquet(path: str | Path) -> Any:
    """The table of a parquet file (pandas)."""
    import pandas
    import pyarrow

    try:
        return pandas.read_parquet(path)
    except (pyarrow.ArrowException, OSError, ValueError, KeyError, TypeError) as error:
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise FormatError(f"{path}: no parquet file that can be read ({first:.120})") from error
