"""Tasks on disk and in tables: one line of JSON a row behind a head line, pictures as PNG in a folder next to the file.

Limits: meta data must be what JSON can hold; tuples in it come back as lists.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

from interp.hooks.inputs.token_text import locate
from interp.prompts.rows import Place, Prompt, Reads, Recipe, Row, Score
from interp.prompts.vocabulary import TaskError

FORMAT = 1
Head = tuple[str, Score, bool, Recipe | None, Reads, str | None]
"""Name, score, whether answers are forced as a whole, who made the rows, what a similarity reads, and what is asked
where it is a chat."""
SCORES = get_args(Score)
NEEDED = ("clean", "corrupt", "answer")


def save(head: Head, rows: Sequence[Row], path: Path) -> Path:
    """Write a task; the file appears whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    name, score, whole, made, reads, chat = head
    recipe = None if made is None else {"generator": made.generator, "options": dict(made.options)}
    first = {"interp_task": FORMAT, "name": name, "score": score, "whole": whole, "recipe": recipe}
    first |= {"reads": list(reads)} if score == "similarity" else {}
    first |= {} if chat is None else {"chat": chat}
    lines = [first, *(_row_out(row, i, path) for i, row in enumerate(rows))]
    new = path.with_name(path.name + ".new")
    new.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8")
    os.replace(new, path)
    return path


def _row_out(row: Row, index: int, path: Path) -> dict[str, Any]:
    out: dict[str, Any] = {"clean": row.clean, "corrupt": row.corrupt, "answers": row.answers, "wrong": row.wrong}
    out |= {"positions": dict(row.positions), "meta": dict(row.meta)}
    for name in ("image", "corrupt_image"):
        picture = getattr(row, name)
        if picture is not None:
            folder = path.with_name(path.stem + ".images")
            folder.mkdir(exist_ok=True)
            picture.save(folder / f"{index}.{name}.png")
            out[name] = f"{folder.name}/{index}.{name}.png"
    return out


def load(path: Path) -> tuple[Head, tuple[Row, ...], tuple[int, ...]]:
    """Read a task: its head, its rows and the line of each; a broken line is named."""
    lines = _text(path).split("\n")  # and nothing else: texts may hold the other ends of lines that Unicode knows
    first = _line(path, 1, lines[0])
    if first.get("interp_task") != FORMAT:
        raise TaskError(f'{path}, line 1: expected a head line with "interp_task": {FORMAT}, got {lines[:1]!r:.80}')
    numbered = [(number, text) for number, text in enumerate(lines[1:], 2) if text.strip()]
    head = _head(_Fields(path, 1, first))
    rows = tuple(_row_in(_Fields(path, number, _line(path, number, text))) for number, text in numbered)
    return head, rows, tuple(number for number, _ in numbered)


def _text(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise TaskError(f"{path}: not UTF-8 at byte {error.start}") from None
    except OSError as error:
        raise TaskError(f"{path}: cannot be read ({error.strerror})") from error


def _line(path: Path, number: int, text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise TaskError(f"{path}, line {number}: not JSON ({error}): {text!r:.80}") from None
    if not isinstance(value, dict):
        raise TaskError(f"{path}, line {number}: expected an object, got {type(value).__name__}")
    return value


class _Fields:
    """The fields of one line, each of the kind that is asked for."""

    def __init__(self, path: Path, line: int, value: Mapping[str, Any]) -> None:
        self.path, self.line, self.value = path, line, value

    def fail(self, message: str) -> TaskError:
        return TaskError(f"{self.path}, line {self.line}: {message}")

    def get(self, name: str, kind: type, *default: Any) -> Any:
        if name not in self.value and default:
            return default[0]
        found = self.value.get(name)
        if name not in self.value or not isinstance(found, kind):
            said = "nothing" if name not in self.value else f"{found!r:.80}"
            raise self.fail(f"expected in {name!r} a value of kind {kind.__name__}, got {said}")
        return found

    def prompt(self, name: str) -> Prompt:
        found = self.get(name, object)
        if isinstance(found, list) and all(type(one) is int and one >= 0 for one in found):
            return tuple(found)
        if not isinstance(found, str):
            raise self.fail(f"expected in {name!r} a text or a list of ids from 0 on, got {found!r:.80}")
        return found

    def words(self, name: str, *default: Any) -> tuple[str | int, ...]:
        found = self.get(name, list, *default)
        if not all(isinstance(one, str) or (type(one) is int and one >= 0) for one in found):
            raise self.fail(f"expected in {name!r} texts or ids from 0 on, got {found!r:.80}")
        return tuple(found)

    def place(self, name: str, found: Any, clean: Prompt) -> Place:
        """A text and which of its occurrences, or a stretch of tokens; it has to be in the clean prompt."""
        two = found if isinstance(found, list) and len(found) == 2 else [None, None]
        first, second = two
        if type(second) is int and isinstance(first, str) and first and second != 0 and isinstance(clean, str):
            if locate(clean, first, second) is None:
                raise self.fail(f"position {name!r}: the clean prompt has no occurrence {second} of {first!r:.80}")
            return (first, second)
        if type(first) is int and type(second) is int and 0 <= first < second:
            if isinstance(clean, tuple) and second > len(clean):
                raise self.fail(f"position {name!r} ends at {second}, and the clean prompt has {len(clean)} tokens")
            return (first, second)
        raise self.fail(
            f"position {name!r} is a text of the prompt and which occurrence, from 1 or from -1, or start and end of a"
            f" stretch of tokens; got {found!r:.80}"
        )


def _head(head: _Fields) -> Head:
    score, reads = head.get("score", str), head.get("reads", list, ["final_norm", "mean"])
    if score not in SCORES:
        raise head.fail(f"expected as score one of {', '.join(SCORES)}, got {score!r:.80}")
    if len(reads) != 2 or not isinstance(reads[0], str) or reads[1] not in ("mean", "cls", "last"):
        raise head.fail(f"expected in 'reads' a place and one of mean, cls, last, got {reads!r:.80}")
    recipe = head.get("recipe", dict) if head.value.get("recipe") is not None else None
    if recipe is not None:
        inner = _Fields(head.path, 1, recipe)
        recipe = Recipe(inner.get("generator", str), inner.get("options", dict))
    chat = None if head.value.get("chat") is None else head.get("chat", str)
    return head.get("name", str), score, head.get("whole", bool), recipe, (reads[0], reads[1]), chat


def _row_in(row: _Fields) -> Row:
    missing = [name for name in ("clean", "corrupt", "answers") if name not in row.value]
    if missing:
        raise row.fail(f"missing {', '.join(missing)}")
    clean = row.prompt("clean")
    return Row(
        clean=clean,
        corrupt=row.prompt("corrupt"),
        answers=row.words("answers"),
        wrong=row.words("wrong", []),
        positions={name: row.place(name, place, clean) for name, place in row.get("positions", dict, {}).items()},
        meta=row.get("meta", dict, {}),
        image=_picture(row, "image"),
        corrupt_image=_picture(row, "corrupt_image"),
    )


def _picture(row: _Fields, field: str) -> Any:
    if row.value.get(field) is None:
        return None
    from PIL import Image

    name, folder = row.get(field, str), row.path.parent.resolve()
    if "\0" in name:
        raise row.fail(f"the picture {name!r:.80} is no name of a file")
    file = (folder / name).resolve()
    if not file.is_relative_to(folder):
        raise row.fail(f"the picture {name!r} is outside the task's folder")
    try:
        with Image.open(file) as picture:
            return picture.copy()
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as why:
        raise row.fail(f"the picture {name!r:.80} cannot be read ({type(why).__name__})") from why


def from_frame(frame: Any) -> tuple[Row, ...]:
    """Rows from a table; answers are strings as in the text, or lists of them."""
    missing = [column for column in NEEDED if column not in frame.columns]
    if missing:
        raise TaskError(f"expected columns {', '.join(NEEDED)} (and wrong), got {', '.join(map(str, frame.columns))}")
    extra = [column for column in frame.columns if column not in (*NEEDED, "wrong")]
    return tuple(_frame_row(i, row, extra) for i, row in enumerate(frame.to_dict("records")))


def _frame_row(index: int, row: Mapping[str, Any], extra: list[str]) -> Row:
    for column in ("clean", "corrupt"):
        if not isinstance(row[column], str) or not row[column]:
            raise TaskError(f"expected a text in column {column!r} of row {index}, got {row[column]!r}")
    meta = {column: row[column] for column in extra}
    return Row(row["clean"], row["corrupt"], _words(index, row["answer"]), _words(index, row.get("wrong")), {}, meta)


def _words(index: int, value: Any) -> tuple[str | int, ...]:
    if value is None or (isinstance(value, float) and value != value):
        return ()
    listed = list(value) if isinstance(value, (list, tuple)) else [value]
    if not all(isinstance(word, (str, int)) for word in listed):
        raise TaskError(f"expected answers that are texts or ids in row {index}, got {value!r}")
    return tuple(listed)


def to_frame(rows: Sequence[Row]) -> Any:
    """Rows as a table."""
    import pandas as pd

    columns = [
        {"clean": row.clean, "corrupt": row.corrupt, "answer": list(row.answers), "wrong": list(row.wrong), **row.meta}
        for row in rows
    ]
    return pd.DataFrame(columns)
