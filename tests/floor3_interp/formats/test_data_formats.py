"""Foreign files: a small sample of each, made for this test, and what is said of files that are broken."""

from __future__ import annotations

import json

import pytest
from house import ROOT

from interp import formats
from interp.formats import FormatError
from interp.planted import build

DATA = ROOT / "tests" / "data" / "formats"


def test_eap_ig_keeps_ids_or_says_them_in_words():
    task = formats.eap_ig(DATA / "eap_ig.csv")
    assert task.answers == ((7,), (11,))
    assert task.wrong == ((9,), (5,))
    assert task.rows[0].corrupt.endswith("Tom gave a kite to")
    assert formats.eap_ig(DATA / "eap_ig.csv", corrupted="corrupted_hard").rows[1].corrupt.count("Kim") == 1
    _, tokenizer = build("planted-decoder")
    words = formats.eap_ig(DATA / "eap_ig.csv", tokenizer=tokenizer)
    assert words.answers[0] == (tokenizer.decode([7]),)


def test_eap_ig_years():
    task = formats.eap_ig(DATA / "eap_ig_years.csv")
    assert task.score == "probability"
    assert task.answers[0] == tuple(str(year) for year in range(42, 100))
    assert task.answers[1] == ("99",)
    assert all(len(row.answers) + len(row.wrong) == 100 for row in task.rows)


@pytest.mark.parametrize(
    ("file", "answer", "wrong"),
    [("mib_ioi.jsonl", " Tom", " Ann"), ("mib_choices.jsonl", " B", " Q"), ("mib_sums.jsonl", "19", "36")],
)
def test_mib_rows_of_three_kinds(file, answer, wrong):
    row = formats.mib(DATA / file).rows[0]
    assert (row.answers, row.wrong) == ((answer,), (wrong,))
    assert row.clean != row.corrupt


def test_mib_parquet_is_the_same(tmp_path):
    import pandas as pd

    rows = [json.loads(line) for line in (DATA / "mib_choices.jsonl").read_text().splitlines()]
    pd.DataFrame(rows).to_parquet(tmp_path / "rows.parquet")
    assert formats.mib(tmp_path / "rows.parquet").rows == formats.mib(DATA / "mib_choices.jsonl").rows


def test_auto_circuit_counts_several_answers():
    task = formats.auto_circuit(DATA / "auto_circuit.json")
    assert task.answers == (("42", "43", "44"), ("03", "04"))
    assert [meta["line"] for meta in task.meta] == [5, 6]
    assert task.meta[0]["word_idxs"] == {"noun": 1, "end": 3}


def test_sva_by_case():
    assert formats.sva(DATA / "sva.json").answers == ((" is",), (" are",))
    assert len(formats.sva(DATA / "sva.json", case="plural_simple")) == 1
    with pytest.raises(FormatError, match="plural_simple, singular_simple"):
        formats.sva(DATA / "sva.json", case="rc")


def test_needles_go_into_a_task(tmp_path):
    from interp import tasks

    found = formats.needles(DATA / "needles.jsonl")
    book = tmp_path / "book.txt"
    book.write_text("It rained all day. Nobody came to see the lake. " * 30)
    task = tasks.needle(None, lengths=(80,), depths=(0.5,), n=2, haystack=book, needles=found)
    assert [row.answers for row in task.rows] == [(f" {one.answer}",) for one in found]
    assert all(one.needle in row.clean and one.question in row.clean for one, row in zip(found, task.rows, strict=True))


def test_a_needle_that_does_not_hold_its_answer_is_announced(tmp_path, capsys):
    path = tmp_path / "n.jsonl"
    path.write_text('{"needle": "The key is here.", "question": "Where?", "real_needle": "in the drawer"}\n')
    formats.needles(path)
    assert "line 1: 'real_needle' is not part of" in capsys.readouterr().out


def test_ruler_scores():
    first, second = formats.ruler(DATA / "ruler.jsonl")
    assert first.prompt.endswith("What is it? The number is")
    assert first.string_match("it was 48213.") == 1.0
    assert second.string_match("only b") == 0.5
    assert second.any_match("only b") == 1.0
    assert first.any_match("") == 0.0
    assert first.meta["token_position_answer"] == 11


@pytest.mark.parametrize(("file", "version"), [("pope.json", "POPE"), ("repope.json", "RePOPE")])
def test_pope_and_repope_say_which_they_are(file, version, capsys):
    found = formats.pope(DATA / file)
    assert found.version == version
    assert f"4 questions, {version}" in capsys.readouterr().out
    grade = found.grade(["Yes, there is.", "yes", "No.", "maybe not"])
    assert grade["accuracy"] == 0.25
    assert grade["precision"] == 0.5
    assert grade["recall"] == 0.5
    assert grade["f1"] == 0.5
    assert grade["yes_ratio"] == 0.5
    assert grade["unclear"] == 0.25


@pytest.mark.parametrize("captions", ["chair_captions.jsonl", "chair_original.json"])
def test_captions_meet_their_objects(captions):
    dog, cat = formats.chair(DATA / captions, DATA / "instances.json")
    assert (dog.image_id, dog.objects) == (101, ("couch", "dog"))
    assert (cat.image_id, cat.objects) == (102, ("cat",))
    assert cat.caption == "A cat and a clock."


def test_amber_is_joined_by_id():
    free, state, relation = formats.amber(
        DATA / "amber_query.json", DATA / "amber_annotations.json", DATA / "amber_responses.json"
    )
    assert (free.kind, free.truth, free.hallucinated, free.right) == ("generative", ("beach", "kite"), ("boat",), None)
    assert (state.kind, state.aspect, state.right) == ("discriminative", "attribute-state", False)
    assert (relation.kind, relation.aspect, relation.right) == ("discriminative", "relation", True)


def chair(path):
    return formats.chair(path, DATA / "instances.json")


def amber(path):
    return formats.amber(path, DATA / "amber_annotations.json")


IDS = "clean,corrupted,correct_idx,incorrect_idx\n"


BROKEN = [
    (formats.eap_ig, "a.csv", "clean,corrupt\na,b\n", "line 1: expected the columns clean, corrupted"),
    (formats.eap_ig, "a.csv", IDS + "a,b,1\n", "line 2: expected 4 fields"),
    (
        formats.eap_ig,
        "a.csv",
        IDS + "a,b,1,x\n",
        "line 2: expected a whole number",
    ),
    (formats.eap_ig, "a.csv", "clean,corrupted\na,b\n", "line 2: expected the fields 'correct_idx'"),
    (formats.eap_ig, "a.csv", 'clean,corrupted,label\n"a\nb",c,3\nd,e,99\n', "line 4: expected a two-digit year"),
    (formats.mib, "a.jsonl", '{"prompt": "a", "label": "1"}\n', "line 1: expected the fields 'random_counterfactual'"),
    (formats.mib, "a.jsonl", '{"prompt": "a"}\n', "line 1: expected one of the fields metadata"),
    (formats.auto_circuit, "a.json", '{"prompts": [\n{"clean": "a",\n "corrupt": "b"}]}', "line 2: .*'answers'"),
    (formats.auto_circuit, "a.json", '{"prompts": [\n{"clean": "a",,}]}', "line 2: not JSON"),
    (formats.auto_circuit, "a.json", '{"prompts": {}}', "line 1: expected a list"),
    (formats.sva, "a.json", '{"clean_prefix": "a"}\n\n{"clean', "line 3: not JSON"),
    (formats.sva, "a.json", '{"clean_prefix": "a"}\n', "line 1: expected the fields 'patch_prefix'"),
    (formats.needles, "a.jsonl", '{"needle": "", "question": "b", "real_needle": "c"}\n', "line 1: expected a text"),
    (formats.needles, "a.jsonl", "\n\n", "no records"),
    (formats.ruler, "a.jsonl", '{"index": 1, "input": "a", "outputs": [], "length": 3}', "line 1: expected a list"),
    (formats.ruler, "a.jsonl", "[1, 2]", "line 1: expected an object, got list"),
    (
        formats.pope,
        "a.json",
        '{"question_id": 1, "image": "a", "text": "b", "label": "maybe"}',
        "line 1: expected the label",
    ),
    (
        chair,
        "a.json",
        '[\n{"image_id": 7, "caption": "x"}]',
        "line 2: .*image_id 7",
    ),
    (chair, "chair.pkl", "", "looks like a pickle"),
    (
        amber,
        "a.json",
        '[\n{"id": 8, "image": "i", "query": "q"}]',
        "line 2",
    ),
    (amber, "a.json", "[{}\n{}]", "line 2: expected ',' or"),
]


@pytest.mark.parametrize(("reader", "name", "text", "says"), BROKEN)
def test_a_broken_file_is_named_with_its_line(reader, name, text, says, tmp_path):
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(FormatError, match=says) as caught:
        reader(path)
    assert name in str(caught.value)


def test_a_file_that_is_not_text_is_refused(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"a": "\xff"}')
    with pytest.raises(FormatError, match="not UTF-8 at byte 7"):
        formats.sva(path)
