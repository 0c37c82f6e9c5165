"""Task files as others leave them: every fault is refused in words that name the file and the line."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jaxtyping import TypeCheckError

import interp
from interp.prompts.rows import Row
from interp.prompts.vocabulary import TaskError, Vocabulary
from interp.tasks import ioi
from interp.tasks.task import Task
from interp.zoo.families import tiny

pytestmark = pytest.mark.faults
HEAD = {"interp_task": 1, "name": "own", "score": "difference", "whole": False, "recipe": None}
ROW = {"clean": "a b", "corrupt": "a c", "answers": [" x"], "wrong": [" y"], "positions": {"b": ["b", 1]}, "meta": {}}
ANY = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)


def written(path: Path, *lines: Any) -> Path:
    path.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8")
    return path


def test_other_ends_of_lines_in_a_text_are_part_of_it(tmp_path: Path) -> None:
    odd = "a\u2028b\u2029c\u0085d\x0be\x0cf\x1cg"
    task = Task("odd", (Row(odd, odd, (" x",), (" y",)), Row(odd, odd, (" x",), (" y",))))
    again = Task.load(task.save(tmp_path / "odd.jsonl"))
    assert [row.clean for row in again.rows] == [odd, odd]


@pytest.mark.parametrize(
    ("change", "says"),
    [({"answers": []}, "has no answer"), ({"answers": " x"}, "kind list"), ({"answers": [-1]}, "ids from 0 on"),
     ({"answers": [1.5]}, "texts or ids"), ({"wrong": []}, "no wrong answer"),
     ({"clean": 3}, "a text or a list of ids"),
     ({"clean": [1, -2]}, "ids from 0 on"), ({"meta": 3}, "kind dict"), ({"positions": []}, "kind dict"),
     ({"positions": {"b": ["b", 2]}}, "no occurrence 2"), ({"positions": {"b": ["b", 0]}}, "from 1 or from -1"),
     ({"positions": {"b": ["q", 1]}}, "no occurrence 1 of 'q'"), ({"positions": {"b": [3, 3]}}, "start and end"),
     ({"positions": {"b": [-1, 2]}}, "start and end"), ({"positions": {"b": 3}}, "start and end"),
     ({"clean": [1, 2], "corrupt": [1, 3], "positions": {"b": [1, 3]}}, "ends at 3, and the clean prompt has 2 tokens"),
     ({"image": "no.png"}, "cannot be read"), ({"image": 3}, "kind str"), ({"image": "../no.png"}, "outside"),
     ({"image": "a\0b"}, "no name of a file")],
)  # fmt: skip
def test_a_row_that_is_none_names_file_and_line(change: dict[str, Any], says: str, tmp_path: Path) -> None:
    path = written(tmp_path / "own.jsonl", HEAD, ROW, {**ROW, **change})
    with pytest.raises(TaskError, match=says) as why:
        Task.load(path)
    assert f"{path}, line 3" in str(why.value)


@pytest.mark.parametrize(
    ("change", "says"),
    [({"score": "vibes"}, "one of difference, probability"), ({"score": 3}, "kind str"), ({"whole": "no"}, "kind bool"),
     ({"name": None}, "kind str"), ({"recipe": 3}, "kind dict"), ({"recipe": {}}, "generator"),
     ({"reads": 3}, "kind list"), ({"reads": ["final_norm"]}, "mean, cls, last"), ({"interp_task": 9}, "head line")],
)  # fmt: skip
def test_a_head_that_is_none_names_file_and_line(change: dict[str, Any], says: str, tmp_path: Path) -> None:
    path = written(tmp_path / "own.jsonl", {**HEAD, **change}, ROW)
    with pytest.raises(TaskError, match=says) as why:
        Task.load(path)
    assert f"{path}, line 1" in str(why.value)


def test_unknown_scores_and_places_outside_are_refused_without_files() -> None:
    with pytest.raises((TaskError, TypeCheckError), match=r"as score one of|parameter '?score"):
        Task("x", (Row("a", "b", (" x",), (" y",)),), "vibes")  # type: ignore[arg-type]
    m = interp.load("zoo:ioi")
    ids = (5, 6, 7, 8)
    task = Task("x", (Row(ids, ids, (30,), (31,), {"end": (2, 9)}),)).on(m)
    with pytest.raises(TaskError, match="inside the"):
        _ = task.positions


def test_ids_that_are_none_of_the_models_are_refused() -> None:
    m = interp.load("zoo:ioi")
    size = m.config.vocab_size
    for wrong in (-1, size, 10**9):
        with pytest.raises(TaskError, match=f"from 0 on and below {size}.*got {wrong}"):
            Task("x", (Row((5, 6), (5, 7), (wrong,), (4,)),)).on(m)
        with pytest.raises(TaskError, match="from 0 on"):
            Task("x", (Row((5, 6), (5, 7), (4,), (wrong,)),)).on(m)
    with pytest.raises(TaskError, match="from 0 on"):
        Vocabulary(None).ids(-1)
    vit = interp.attach(tiny("vit"))
    with pytest.raises(TaskError, match="and below"):
        Vocabulary(vit).ids(10**6)


@given(st.binary(max_size=60), st.integers(0, 400))
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
def test_bytes_of_any_kind(tmp_path: Path, noise: bytes, at: int) -> None:
    path = tmp_path / "own.jsonl"
    data = written(path, HEAD, ROW, ROW).read_bytes()
    path.write_bytes(data[:at] + noise + data[at:])
    with suppress(interp.InterpError):
        Task.load(path)
    path.write_bytes(noise)
    with pytest.raises(interp.InterpError):
        Task.load(path)


@given(st.sampled_from((*HEAD, "reads", "chat")), st.sampled_from((*ROW, "image")), ANY, ANY)
@settings(max_examples=120, deadline=None, suppress_health_check=list(HealthCheck))
def test_json_of_any_shape(tmp_path: Path, head: str, row: str, one: Any, other: Any) -> None:
    for lines in (({**HEAD, head: one}, ROW), (HEAD, {**ROW, row: other}), (HEAD, other), (one, ROW), (HEAD, ROW, one)):
        with suppress(interp.InterpError):
            Task.load(written(tmp_path / "own.jsonl", *lines))


def test_a_file_that_is_not_there_or_is_a_folder(tmp_path: Path) -> None:
    for path in (tmp_path / "none.jsonl", tmp_path):
        with pytest.raises(TaskError, match="cannot be read"):
            Task.load(path)
    with pytest.raises(TaskError, match="line 2: expected at least one row"):
        Task.load(written(tmp_path / "own.jsonl", HEAD))


def test_what_is_generated_is_not_refused(tmp_path: Path) -> None:
    task = ioi(None, n=4)
    assert Task.load(task.save(tmp_path / "t.jsonl")) == task
