"""Query-focused scores are the paper's, from whole patterns in float64; the published file round-trips."""

from __future__ import annotations

import copy
import json
from functools import cache
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import pytest
import torch

import interp
from interp import formats
from interp.formats import FormatError
from interp.hooks.errors import InputsError
from interp.long.query_heads import query_heads
from interp.prompts.rows import Row
from interp.results.retrieval import RetrievalHeads
from interp.tasks.task import Task


@cache
def needle() -> interp.Model:
    return interp.load("zoo:needle")


@cache
def notes(*, whole: bool = False) -> Task:
    """The question here is all of "question : key", as in the paper."""
    made = interp.tasks.needle(needle(), lengths=(40, 48), depths=(0.2, 0.6), n=1, distractors=2, whole=whole)
    rows = [
        Row(r.clean, r.corrupt, r.answers, r.wrong, {**r.positions, "question": (f"question : {r.meta['key']}", 1)})
        for r in made.rows
    ]
    return Task("notes", tuple(rows), made.score, whole).on(needle())


@cache
def eager() -> Any:
    """The model itself, without us: whole patterns in float64."""
    module = copy.deepcopy(needle().module).double()
    module.set_attn_implementation("eager")
    return module


@cache
def scored() -> RetrievalHeads:
    return query_heads(needle(), notes(), null="question")


def mean_rows(ids: list[int], start: int) -> list[list[float]]:
    """[head][key]: the mean of the rows from `start` on, from whole patterns."""
    patterns = eager()(torch.tensor([ids]), output_attentions=True).attentions
    heads = [rows for layer in patterns for rows in layer[0].tolist()]
    return [[sum(p[i][j] for i in range(start, len(ids))) / (len(ids) - start) for j in range(start)] for p in heads]


def slow_scores(row: int) -> list[float]:
    words = str(notes().rows[row].clean).split()
    ids = [1, *needle().tokenizer.convert_tokens_to_ids(words)]
    start = len(ids) - 3
    empty = [*ids[:start], needle().tokenizer.convert_tokens_to_ids("question")]
    first, last = notes().take([row]).positions["needle"].rows[0] or (0, 0)
    found = []
    for asked, not_asked in zip(mean_rows(ids, start), mean_rows(empty, start), strict=True):
        c = [asked[j] - not_asked[j] for j in range(first, last)]
        found.append(sum(one for one in c if one > mean(c) - 2 * stdev(c)))
    return found


@pytest.mark.parametrize("row", [0, 3])
def test_scores_are_those_of_the_paper(row: int) -> None:
    assert scored().scores[:, row].tolist() == pytest.approx(slow_scores(row), abs=1e-5)


def test_the_heads_that_copy_are_found_without_an_answer() -> None:
    assert set(scored().top(4)["site"]) & {"L1.H0", "L1.H1", "L1.H2", "L1.H3"}
    assert set(scored().to_frame()["method"]) == {"retrieval:query"}
    assert torch.equal(query_heads(needle(), notes(whole=True), null="question").scores, scored().scores)


def test_low_outliers_are_dropped_and_single_tokens_kept() -> None:
    from interp.long.query_heads import _passage

    weights = torch.tensor([[0.5] * 9 + [-25.0], [0.5] * 10], dtype=torch.double)
    assert _passage(weights).tolist() == pytest.approx([4.5, 0.0])
    assert _passage(torch.tensor([[0.25], [-0.5]], dtype=torch.double)).tolist() == [0.25, -0.5]


def test_the_published_list_is_written_and_read(tmp_path: Path) -> None:
    file = scored().save_json(tmp_path / "qr.json")
    pairs = json.loads(file.read_text())
    assert [score for _, score in pairs] == sorted((s for _, s in pairs), reverse=True)
    assert dict(pairs)["1-0"] == pytest.approx(float(scored().mean[8]))
    back = formats.head_scores(file)
    assert (back.mode, back.sites) == ("query", scored().sites)
    assert back.mean.tolist() == scored().mean.tolist()
    assert back.save_json(tmp_path / "again.json").read_text() == file.read_text()


@pytest.mark.parametrize(
    ("text", "said"),
    [('[["0-0", 1], ["0-0", 2]]', "every head once"), ('[["0.0", 1]]', "pairs"), ("[[1]]", "pairs"), ("[", "not JSON")],
)
def test_a_list_of_something_else_is_refused(tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "x.json"
    file.write_text(text)
    with pytest.raises(FormatError, match=said):
        formats.head_scores(file)


def test_prompts_of_ids_take_an_empty_question_of_ids() -> None:
    rows = [Row((1, 9, 8, 7, 6, 5, 4), (1, 9, 8, 7, 6, 5, 4), (30,), (20,), {"needle": (2, 4), "question": (5, 7)})]
    task = Task("ids", tuple(rows)).on(needle())
    found = query_heads(needle(), task, null=(11,))
    asked, empty = (mean_rows(ids, 5) for ids in ([1, 9, 8, 7, 6, 5, 4], [1, 9, 8, 7, 6, 11]))
    wanted = [sum(a[j] - b[j] for j in (2, 3)) for a, b in zip(asked, empty, strict=True)]
    assert found.scores[:, 0].tolist() == pytest.approx(wanted, abs=1e-5)


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ({"null": "N/A"}, "no token for the empty question"),
        ({"null": (7,)}, "null= is a text for prompts of text"),
        ({"null": "note", "passages": ("elsewhere",)}, "does not say where its"),
        ({"null": "note", "passages": ()}, "does not say where its passages"),
        ({"null": "note", "passages": ("question",)}, "is after the question"),
    ],
)
def test_what_cannot_be_scored_is_refused(how: dict[str, Any], says: str) -> None:
    with pytest.raises(InputsError, match=says):
        query_heads(needle(), notes(), **how)
    with pytest.raises(InputsError, match="expected a task"):
        query_heads(needle(), "where is it")
