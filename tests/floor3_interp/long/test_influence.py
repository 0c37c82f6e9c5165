"""Influence is the paper's relative loss; texts that need the heads rank first; a run that was stopped goes on."""

from __future__ import annotations

import copy
import json
import random
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch

import interp
from interp.formats import FormatError
from interp.hooks.errors import InputsError, ModelError, SiteError
from interp.long.influence import influence
from interp.prompts.needles import VALUES, filler
from interp.results.texts import Influence
from interp.zoo.families import tiny

HEADS = ("L1.H0", "L1.H1", "L1.H2", "L1.H3")


@cache
def needle() -> interp.Model:
    return interp.load("zoo:needle")


@cache
def doubled() -> interp.Model:
    return interp.attach(copy.deepcopy(needle().module).double())


@cache
def texts() -> tuple[str, ...]:
    """By turns one that says a passage twice, and filler of the same length."""
    rng, out = random.Random(3), []
    for n in range(3):
        passage = rng.sample(VALUES, 12 + 2 * n)
        out += [" ".join([*passage, ".", *passage]), " ".join(filler(rng, 25 + 4 * n))]
    return tuple(out)


@cache
def scored(weights: str = "visible") -> Influence:
    return influence(needle(), texts(), heads=HEADS, weights=weights, random=2, batch=4, chunk=5)  # type: ignore[arg-type]


def slow_loss(text: str, heads: tuple[str, ...], *, full: bool) -> float:
    """Mean cross-entropy, with patterns of the heads set by hand, in float64."""
    ids = [1, *needle().tokenizer.convert_tokens_to_ids(text.split())]
    alike = torch.ones(len(ids), len(ids), dtype=torch.float64).tril()
    pattern = alike / (len(ids) if full else alike.sum(1, keepdim=True))
    edits = [interp.Set(f"{head}.pattern", pattern) for head in heads]
    logprobs = doubled().run({"input_ids": torch.tensor([ids])}, edits=edits)["logits"][0].log_softmax(-1)
    return -sum(float(logprobs[i, ids[i + 1]]) for i in range(len(ids) - 1)) / (len(ids) - 1)


@pytest.mark.parametrize("weights", ["visible", "full"])
def test_scores_are_those_of_the_paper(weights: str) -> None:
    found, full = scored(weights), weights == "full"
    for n in (0, 1):
        base, masked = (slow_loss(texts()[n], heads, full=full) for heads in ((), HEADS))
        assert float(found.base[n]) == pytest.approx(base, rel=1e-5)
        assert float(found.score[n]) == pytest.approx((masked - base) / base, rel=1e-4)
    other = slow_loss(texts()[0], found.random_heads[1], full=full)
    assert float(found.random[1, 0]) == pytest.approx(other, rel=1e-5)


def test_texts_that_look_back_rank_first_and_random_heads_do_not_say_so() -> None:
    found = scored()
    assert set(found.top(3)["text"]) == {0, 2, 4}
    assert len(found.top(share=0.34)) == 2
    assert float(found.score.mean()) > 5 * abs(float(found.random_score.mean()))
    assert all(len(one) == 4 and not set(one) & set(HEADS) for one in found.random_heads)
    assert found.tokens.tolist() == [26, 26, 30, 30, 34, 34]
    assert -1 <= found.agreement <= 1
    assert not needle().handles()


def test_chunks_and_batches_change_nothing(tmp_path: Path) -> None:
    corpus = tmp_path / "corpus.jsonl"
    corpus.write_text("".join(json.dumps({"body": text}) + "\n" for text in texts()))
    other = influence(needle(), corpus, heads=HEADS, random=2, batch=3, chunk=2, column="body")
    for name in ("base", "masked", "random"):
        torch.testing.assert_close(getattr(other, name), getattr(scored(), name), atol=1e-5, rtol=1e-5)


def test_a_run_that_was_stopped_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    how: dict[str, Any] = {"heads": HEADS[:2], "random": 0, "batch": 2, "chunk": 2, "out": tmp_path}
    whole = influence(needle(), texts(), **{**how, "out": None})
    ran: list[int] = []
    forward = needle().module.forward

    def counted(*args: Any, **kwargs: Any) -> Any:
        ran.append(1)
        if len(ran) == 4:
            raise KeyboardInterrupt
        return forward(*args, **kwargs)

    monkeypatch.setattr(needle().module, "forward", counted)
    with pytest.raises(KeyboardInterrupt):
        influence(needle(), texts(), **how)
    assert not needle().handles()
    found = influence(needle(), texts(), **how)
    assert len(ran) == 4 + 4
    assert torch.equal(found.masked, whole.masked)
    assert torch.equal(found.base, whole.base)
    with pytest.raises(interp.InterpError, match="another sweep: its corpus"):
        influence(needle(), texts()[:4], **how)


def test_a_result_is_written_saved_and_opened(tmp_path: Path) -> None:
    found = scored()
    ranked = [json.loads(line) for line in found.ranking(tmp_path / "ranking.jsonl").read_text().splitlines()]
    assert [row["text"] for row in ranked] == list(found.top(6)["text"])
    assert ranked[0]["score"] == float(found.score.max())
    back = interp.open(found.save(tmp_path / "saved"))
    assert isinstance(back, Influence)
    assert back.to_frame().equals(found.to_frame())
    assert (back.heads, back.random_heads) == (found.heads, found.random_heads)
    assert "4 heads on 6 texts" in repr(found)
    assert len(found.plot().data[0].x) == 6


def test_long_texts_are_cut_and_said_and_lone_words_come_last(tmp_path: Path) -> None:
    found = influence(needle(), [texts()[0], "note", texts()[1]], heads=HEADS[:1], max_tokens=20, random=0)
    assert found.tokens.tolist() == [20, 2, 20]
    assert found.cut.tolist() == [True, False, True]
    assert "2 cut" in repr(found)
    losses = torch.tensor([torch.nan, 1.0], dtype=torch.double)
    lone = Influence(losses, 2 * losses, losses[None], torch.tensor([1, 5]), torch.tensor([False, False]), HEADS)
    assert list(lone.top(2)["text"]) == [1, 0]
    assert "1 without a loss" in repr(lone)
    assert json.loads(lone.ranking(tmp_path / "r.jsonl").read_text().splitlines()[1])["score"] is None


@pytest.mark.parametrize(
    ("how", "error", "says"),
    [
        ({"heads": ("L9.H0",)}, SiteError, "L9.H0"),
        ({"max_tokens": 2000}, InputsError, "1024 positions"),
        ({"max_tokens": 1}, InputsError, "from 2"),
        ({"batch": 0}, InputsError, "at least 1"),
        ({"heads": tuple(f"L{n}.H{h}" for n in range(3) for h in range(8))}, InputsError, "leave 8 others"),
    ],
)
def test_what_cannot_be_scored_is_refused(how: dict[str, Any], error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        influence(needle(), texts(), **{"heads": HEADS, **how})


def test_a_corpus_of_something_else_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputsError, match="corpus is empty"):
        influence(needle(), [], heads=HEADS)
    with pytest.raises(InputsError, match="text 0 is ''"):
        influence(needle(), [""], heads=HEADS)
    corpus = tmp_path / "corpus.jsonl"
    corpus.write_text('{"text": "note"}\n{"words": "note"}\n')
    with pytest.raises(FormatError, match=r"line 2: expected the fields 'text'"):
        influence(needle(), corpus, heads=HEADS)
    with pytest.raises(ModelError, match="decoder-only"):
        influence(interp.attach(tiny("t5")), ["a"], heads=("L0.H0",))


def test_losses_are_the_same_however_many_tokens_are_taken_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(import_module("interp.long.losses"), "NUMBERS", 1)
    some = influence(needle(), texts(), heads=HEADS, random=2, batch=4, chunk=5)
    torch.testing.assert_close(some.base, scored().base)
    torch.testing.assert_close(some.masked, scored().masked)
