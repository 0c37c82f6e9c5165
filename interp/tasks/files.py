"""Tasks on disk and in tables: one line of JSON a row behind a head line, pictures as PNG in a folder beside the file.

Limits: meta data must be what JSON can hold; tuples in it come back as lists.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from interp.prompts.rows import Prompt, Reads, Recipe, Row, Score
from interp.prompts.vocabulary import TaskError

FORMAT = 1
Head = tuple[str, Score, bool, Recipe | None, Reads, str | None]
"""Name, score, whether answers are forced as a whole, who made the rows, what a similarity reads, and what is asked
where it is a chat."""
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


def load(path: Path) -> tuple[Head, tuple[Row, ...]]:
    """Read a task; a broken line is named."""
    lines = path.read_text(encoding="utf-8").splitlines()
    head = _line(path, 1, lines[0] if lines else "")
    if head.get("interp_task") != FORMAT:
        raise TaskError(f'{path}, line 1: expected a head line with "interp_task": {FORMAT}, got {lines[:1]!r:.80}')
    rows = tuple(_row_in(path, number, _line(path, number, text)) for number, text in enumerate(lines[1:], 2))
    recipe = head.get("recipe")
    made = None if recipe is None else Recipe(recipe["generator"], recipe["options"])
    site, pool = head.get("reads", ("final_norm", "mean"))
    return (head["name"], head["score"], head["whole"], made, (site, pool), head.get("chat")), rows


def _line(path: Path, number: int, text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise TaskError(f"{path}, line {number}: not JSON ({error}): {text!r:.80}") from None
    if not isinstance(value, dict):
        raise TaskError(f"{path}, line {number}: expected an object, got {type(value).__name__}")
    return value


def _row_in(path: Path, number: int, value: Mapping[str, Any]) -> Row:
    missing = [name for name in ("clean", "corrupt", "answers") if name not in value]
    if missing:
        raise TaskError(f"{path}, line {number}: missing {', '.join(missing)}")
    return Row(
        clean=_prompt(value["clean"]),
        corrupt=_prompt(value["corrupt"]),
        answers=tuple(value["answers"]),
        wrong=tuple(value.get("wrong", ())),
        positions={name: tuple(place) for name, place in value.get("positions", {}).items()},
        meta=value.get("meta", {}),
        image=_picture(path, value.get("image")),
        corrupt_image=_picture(path, value.get("corrupt_image")),
    )


def _prompt(value: Any) -> Prompt:
    return tuple(value) if isinstance(value, list) else str(value)


def _picture(path: Path, name: str | None) -> Any:
    if name is None:
        return None
    from PIL import Image

    folder = path.parent.resolve()
    file = (folder / name).resolve()
    if not file.is_relative_to(folder):
        raise TaskError(f"{path}: the picture {name!r} lies outside the task's folder")
    with Image.open(file) as picture:
        return picture.copy()


def from_frame(frame: Any) -> tuple[Row, ...]:
    """Rows from a table; answers are strings as they stand in the text, or lists of them."""
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
