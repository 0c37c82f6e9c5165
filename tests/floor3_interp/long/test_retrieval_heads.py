"""Retrieval heads are those of the definition, found where they were planted, and not named without retrieval."""

from __future__ import annotations

import copy
import json
import random
from functools import cache
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

import interp
from interp import formats
from interp.formats import FormatError
from interp.hooks.errors import InputsError, ModelError
from interp.long.retrieval_heads import RetrievalError, retrieval_heads
from interp.planted import build, key
from interp.prompts.planted_words import WORDS
from interp.prompts.rows import Row
from interp.prompts.vocabulary import TaskError
from interp.results.retrieval import RetrievalHeads
from interp.tasks.task import Task
from interp.zoo.families import tiny

load = cache(interp.load)


@cache
def notes(**how: Any) -> Task:
    return interp.tasks.needle(load("zoo:needle"), lengths=(64, 96), depths=(0.0, 0.6), n=2, whole=True, **how)


@cache
def doubled(m: interp.Model) -> interp.Model:
    return interp.attach(copy.deepcopy(m.module).double())


def copied(task: Task, row: int, *, generated: int | None = None) -> tuple[list[int], list[list[int]]]:
    """The answer, and the words that each head copies: token by token, from full patterns in float64."""
    m, one = doubled(cast(interp.Model, task.model)), task.take([row])
    answer = list(one.answer_ids[0])
    ids = one.clean.kwargs["input_ids"][0].tolist()[: -len(answer)]
    first, last = one.positions["needle"].rows[0] or (0, 0)
    start = next(i for i in range(first, last) if ids[i : i + len(answer)] == answer)
    found: dict[tuple[int, int], list[int]] = {}
    for step in range(len(answer) if generated is None else generated):
        tape = m.run({"input_ids": torch.tensor([ids])}, record="L*.pattern")
        word = answer[step] if generated is None else int(tape["logits"][0, -1].argmax())
        for layer in range(len(m.anatomy.towers["text"].layers)):
            for head, weights in enumerate(tape[f"L{layer}.pattern"][0, :, -1]):
                at = int(weights.argmax())
                words = found.setdefault((layer, head), [])
                if start <= at < start + len(answer) and ids[at] == word:
                    words.append(word)
        ids.append(word)
    return answer, list(found.values())


@pytest.mark.parametrize("generated", [None, 5])
def test_scores_are_those_of_the_definition(generated: int | None) -> None:
    task = notes()
    how: dict[str, Any] = {"generated": generated is not None, "max_new_tokens": generated, "batch": 3}
    events = retrieval_heads(load("zoo:needle"), task, mode="event", **how)
    sets = retrieval_heads(load("zoo:needle"), task, mode="set", **how)
    for row in (0, 6):
        answer, heads = copied(task, row, generated=generated)
        assert events.scores[:, row].tolist() == [len(words) / len(answer) for words in heads]
        needed = set(answer)
        assert sets.scores[:, row].tolist() == [len(set(words) & needed) / len(needed) for words in heads]


@pytest.mark.parametrize(("impl", "mode"), [("auto", "event"), ("rows", "r2")])
def test_in_one_pass_with_the_models_attention_the_scores_are_the_same(impl: str, mode: Any) -> None:
    task = notes(seed=8)
    plain = interp.retrieval_heads(load("zoo:needle"), task, mode=mode)
    one_pass = interp.retrieval_heads(load("zoo:needle"), task, mode=mode, impl=impl)
    assert plain.scores.max() > 0.5
    torch.testing.assert_close(one_pass.scores, plain.scores, atol=1e-5, rtol=0)
    assert one_pass.meta["impl"] == impl


def test_a_word_said_twice_counts_twice_as_events_and_once_as_a_set() -> None:
    m = load("zoo:needle")
    task = interp.tasks.needle(m, lengths=(64, 128), depths=(0.0, 0.5, 1.0), n=2, whole=True)
    how: dict[str, Any] = {"generated": True, "max_new_tokens": 12}
    events, sets = (retrieval_heads(m, task, mode=mode, **how).scores for mode in ("event", "set"))
    assert float(events.max()) > 1.0 == float(sets.max())
    assert bool((sets <= events).all())


def test_what_is_said_rightly_scores_as_what_is_given() -> None:
    task = notes()
    forced, said = (retrieval_heads(load("zoo:needle"), task, generated=how) for how in (False, True))
    assert torch.equal(forced.recall, said.recall)
    right = forced.recall == 1
    assert int(right.sum()) >= 7
    assert torch.equal(forced.scores[:, right], said.scores[:, right])


def pairs(rng: random.Random) -> Row:
    words = rng.sample(WORDS, 24)
    known = [f"{k} = {v} ," for k, v in zip(words[:8], words[8:16], strict=True)]
    at = rng.randrange(8)
    text = " ".join([*known[:4], *words[16:], *known[4:], words[at], "="])
    where = {"needle": (f"{words[at]} = {words[8 + at]}", 1)}
    return Row(text, text, (f" {words[8 + at]}",), (), where, {"pair": at})


def test_the_planted_head_is_first_and_null_heads_are_at_chance() -> None:
    m = interp.attach(*build("planted-decoder"))
    rng = random.Random(0)
    task = Task("pairs", tuple(pairs(rng) for _ in range(60)), "logprob", whole=True).on(m)
    before = [p.clone() for p in m.module.parameters()]
    r = retrieval_heads(m, task)
    answers = key("planted-decoder")
    score = dict(zip(r.sites, r.mean.tolist(), strict=True))
    (planted,) = answers.role("retrieval")
    assert score[planted] == 1.0 == float(r.frequency[r.sites.index(planted)])
    assert r.top(1)["site"].item() == planted
    assert max(value for site, value in score.items() if site != planted) < 0.25
    null = torch.tensor([score[site] for site in answers.null])
    chance = 1 / (task.clean.length - 1)
    assert float(null.mean()) < chance + 3 * (chance / (len(null) * len(task))) ** 0.5
    assert all(score[head.site] == 0.0 for head in answers.heads if head.site != planted)
    assert not m.handles()
    assert all(torch.equal(a, b) for a, b in zip(before, m.module.parameters(), strict=True))


def test_the_result_says_how_often_where_and_how_surely() -> None:
    r = retrieval_heads(load("zoo:needle"), notes())
    frame = r.to_frame()
    assert list(frame["estimate"]) == r.mean.tolist()
    assert list(frame.columns[:7]) == ["site", "tower", "layer", "head", "method", "estimate", "low"]
    assert set(frame["method"]) == {"retrieval:event"}
    assert r.plot().data[0].z.shape == (4, 8)
    assert bool(((frame["low"] <= frame["estimate"]) & (frame["estimate"] <= frame["high"])).all())
    assert list(r.top(3)["estimate"]) == sorted(frame["estimate"], reverse=True)[:3]
    assert torch.equal(r.frequency, (r.scores[:, r.kept] > 0).double().mean(1))
    curve = r.curve([0.0, 0.1, 2.0])
    assert list(curve["heads"]) == [32, int((r.mean >= 0.1).sum()), 0]
    best = r.top(1)["site"].item()
    grid = r.grid(best)
    assert grid.shape == (2, 2)
    cell = [c["length"] == 96 and c["depth"] == 0.6 for c in r.cells]
    assert float(grid.sel(length=96, depth=0.6)) == float(r.scores[r.sites.index(best)][torch.tensor(cell)].mean())
    assert 0.0 < float(r.grid().min()) <= 1.0
    assert best in repr(r)


def test_the_published_file_is_written_and_read(tmp_path: Path) -> None:
    r = retrieval_heads(load("zoo:needle"), notes())
    file = r.save_json(tmp_path / "head_score" / "needle.json")
    assert len(file.read_text().splitlines()) == 1
    found = json.loads(file.read_text())
    assert list(found)[:9] == [f"0-{h}" for h in range(8)] + ["1-0"]
    assert found["1-0"] == r.counted[8].tolist()
    back = formats.head_scores(file)
    assert back.sites == r.sites
    assert torch.equal(back.scores, r.counted)
    assert back.save_json(tmp_path / "again.json").read_text() == file.read_text()
    with pytest.raises(interp.InterpError, match="length and depth"):
        back.grid()


def test_a_result_is_saved_and_opened(tmp_path: Path) -> None:
    r = retrieval_heads(load("zoo:needle"), notes(), mode="set")
    back = interp.open(r.save(tmp_path / "retrieval"))
    assert isinstance(back, RetrievalHeads)
    assert torch.equal(back.scores, r.scores)
    assert torch.equal(back.kept, r.kept)
    assert (back.mode, back.sites, back.cells) == (r.mode, r.sites, r.cells)
    assert back.to_frame().equals(r.to_frame())
    assert back.meta["inputs_hash"] == r.meta["inputs_hash"]
    (tmp_path / "retrieval" / "retrieval.json").write_text('{"format": 0}')
    with pytest.raises(interp.InterpError, match="format 0"):
        RetrievalHeads.load(tmp_path / "retrieval")


@pytest.mark.parametrize(
    ("text", "said"),
    [('{"0-0": [1.0], "0-1": []}', "same number"), ('{"0.0": [1.0]}', "layer-head"), ('{"0-0": ["a"]}', "list of sco")],
)
def test_a_file_of_something_else_is_refused(tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "x.json"
    file.write_text(text + "\n")
    with pytest.raises(FormatError, match=f"line 1: .*{said}"):
        formats.head_scores(file)


def test_an_answer_that_comes_later_is_named_with_what_to_give() -> None:
    m = interp.load("zoo:needle")
    task = interp.tasks.needle(m, lengths=(64,), depths=(0.5,), n=2, whole=True)
    with pytest.raises(RetrievalError, match=r"after 2 new tokens: give max_new_tokens=4, and anywhere=True"):
        retrieval_heads(m, task, generated=True, max_new_tokens=1)
    assert bool(retrieval_heads(m, task, generated=True, max_new_tokens=4).kept.all())


def test_a_model_that_does_not_answer_has_no_retrieval_heads_to_name() -> None:
    m = interp.attach(copy.deepcopy(load("zoo:needle").module), load("zoo:needle").processor)
    torch.nn.init.normal_(m.module.lm_head.weight)
    with pytest.raises(RetrievalError, match="answers 0 of 8 needles"):
        retrieval_heads(m, interp.tasks.needle(m, lengths=(64, 96), depths=(0.0, 0.6), n=2, whole=True))


def mute(config: LlamaConfig) -> LlamaForCausalLM:
    """A random model that always says word 0."""
    module = LlamaForCausalLM(config).eval()
    torch.nn.init.zeros_(module.lm_head.weight)
    return module


def test_one_layer_and_one_head() -> None:
    shape = {"num_hidden_layers": 1, "num_attention_heads": 1, "num_key_value_heads": 1}
    m = interp.attach(mute(LlamaConfig(vocab_size=20, hidden_size=16, intermediate_size=16, **shape)))
    rows = tuple(
        Row(ids, ids, (0,), (), {"needle": (2, 5)}) for ids in [(5, 6, 0, 8, 7), (5, 6, 8, 0, 0), (1, 2, 3, 9, 0)]
    )
    task = Task("ids", rows, "logprob", whole=True)
    mine = task.on(m)
    r = retrieval_heads(m, mine)
    assert r.sites == ("L0.H0",)
    assert bool(r.kept.all())
    for row in range(3):
        assert r.scores[:, row].tolist() == [len(words) for words in copied(mine, row)[1]]


def test_texts_longer_than_the_positions_are_refused() -> None:
    shape = {"n_layer": 1, "n_head": 2, "n_embd": 8, "n_positions": 8, "vocab_size": 20}
    m = interp.attach(GPT2LMHeadModel(GPT2Config(**shape, bos_token_id=0, eos_token_id=0)).eval())
    ids = tuple(range(1, 12))
    with pytest.raises(TaskError, match="at most 8 tokens"):
        retrieval_heads(m, Task("long", (Row(ids, ids, (0,), (), {"needle": (2, 5)}),), "logprob", whole=True))


def test_what_has_no_meaning_is_refused() -> None:
    m = load("zoo:needle")
    with pytest.raises(InputsError, match="whole=True"):
        retrieval_heads(m, interp.tasks.needle(m, lengths=(64,), depths=(0.5,)))
    with pytest.raises(InputsError, match="expected a task"):
        retrieval_heads(m, ["note : lisbon amber violin ."])
    with pytest.raises(InputsError, match="at least 1; got -1"):
        retrieval_heads(m, notes(), batch=-1)
    with pytest.raises(InputsError, match="max_new_tokens is at least 1"):
        retrieval_heads(m, notes(), generated=True, max_new_tokens=0)
    with pytest.raises(TaskError, match="longer than the haystack"):
        interp.tasks.needle(m, lengths=(8,), depths=(0.5,), whole=True)
    row = notes().rows[0]
    nowhere = Row(row.clean, row.corrupt, row.answers, (), {})
    with pytest.raises(InputsError, match=r"row 0 .* does not say where its needle is"):
        retrieval_heads(m, Task("mine", (nowhere,), "logprob", whole=True))
    elsewhere = Row(row.clean, row.corrupt, row.answers, (), {"needle": ("question :", 1)})
    with pytest.raises(InputsError, match="is not part of its needle"):
        retrieval_heads(m, Task("mine", (elsewhere,), "logprob", whole=True))
    for name in ("vit", "t5"):
        with pytest.raises(ModelError, match="decoder-only"):
            retrieval_heads(interp.attach(tiny(name)), notes())
