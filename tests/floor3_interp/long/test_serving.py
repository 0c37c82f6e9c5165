"""A served engine in a model's place: its numbers are those of the model it serves, and what it cannot do is refused.

The engine here runs one request after the other through a model that is held, so that what methods ask of an engine is
tried where vLLM is not installed; `test_served_long.py` asks the same of a real one.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

import interp
from interp.hooks.errors import InputsError, ModelError, SiteError
from interp.long.influence import influence
from interp.long.retrieval_heads import RetrievalError, retrieval_heads
from interp.long.serving import Serving
from interp.provenance import about
from interp.scale import merge
from interp.scale.serving.answers import Answer
from interp.zoo.families import tiny

HEADS = ("L1.H0", "L1.H3", "L2.H2")
TEXTS = (
    "lisbon amber violin note . lisbon amber violin note",
    "note",
    "amber violin lisbon . question : amber violin",
    "violin violin note lisbon amber amber note",
)


@cache
def needle() -> interp.Model:
    return interp.load("zoo:needle")


@dataclass
class Slow:
    """Every request alone, through transformers."""

    model: interp.Model
    length: int = 1000
    tokenizer: Any = None
    asked: int = 0

    def __post_init__(self) -> None:
        self.heads = tuple(f"L{n}.H{h}" for n in range(4) for h in range(8))

    def ids(self, text: str) -> list[int]:
        return self.model.prepare(text, chat=False).kwargs["input_ids"][0].tolist()  # type: ignore[no-any-return]

    def facts(self) -> dict[str, Any]:
        return {**about(self.model.module, None), "attention": "slow"}

    def run(
        self, prompts: Any, *, edits: Any = None, logprobs: bool = False, stats: str | None = None,
        positions: Any = None, max_new_tokens: int = 1,
    ) -> list[Answer]:  # fmt: skip
        self.asked += 1
        given = edits or [None] * len(prompts)
        return [self._one(p, e or [], logprobs, stats, positions, max_new_tokens)
                for p, e in zip(prompts, given, strict=True)]  # fmt: skip

    def _one(self, prompt: list[int], edits: Any, logprobs: bool, stats: str | None, at: Any, new: int) -> Answer:
        x = {"input_ids": torch.tensor([prompt])}
        said = tuple(self.model.generate(x, max_new_tokens=new).ids[0].tolist())
        looked: dict[str, Any] = {}
        if stats is not None:
            every = self.model.attention({"input_ids": torch.tensor([[*prompt, *said]])}, stats=[stats])
            for n, values in enumerate(every.values.values()):
                for name, one in values.items():
                    looked.setdefault(name, {})[f"L{n}"] = one[0][:, list(at)]
        if not logprobs:
            return Answer("", said, tuple(prompt), stats=looked)
        scores = self.model.run(x, edits=edits)["logits"][0, :-1].log_softmax(-1)
        own = scores.gather(1, torch.tensor(prompt[1:])[:, None])[:, 0]
        return Answer("", said, tuple(prompt), stats=looked, logprobs=own, likeliest=tuple(scores.argmax(-1).tolist()))


def test_the_engine_here_is_one() -> None:
    assert isinstance(Slow(needle()), Serving)
    assert not isinstance(needle(), Serving)


@pytest.mark.parametrize("weights", ["visible", "full"])
def test_influence_in_an_engine_is_that_of_the_model(weights: Any) -> None:
    how: dict[str, Any] = {"heads": HEADS, "weights": weights, "random": 2, "max_tokens": 8}
    served, plain = Slow(needle()), influence(needle(), TEXTS, **how)
    found = influence(served, TEXTS, **how, batch=3)
    for name in ("base", "masked", "random"):
        torch.testing.assert_close(getattr(found, name), getattr(plain, name), rtol=1e-5, atol=1e-6, equal_nan=True)
    assert torch.equal(found.tokens, plain.tokens)
    assert found.cut.tolist() == plain.cut.tolist() == [True, False, True, False]
    assert (found.heads, found.random_heads) == (plain.heads, plain.random_heads)
    assert served.asked == 2
    assert found.meta["attention"] == "slow"


def test_shards_of_an_engine_are_one_run_and_another_model_is_not_gone_on_with(tmp_path: Path) -> None:
    how: dict[str, Any] = {"heads": HEADS[:1], "chunk": 1}
    whole = influence(Slow(needle()), TEXTS, **how)
    for n in range(2):
        influence(Slow(needle()), TEXTS, **how, out=tmp_path / str(n), shard=(n, 2))
    merged = merge([tmp_path / "0", tmp_path / "1"], out=tmp_path / "all")
    torch.testing.assert_close(merged.masked, whole.masked, equal_nan=True)
    other = interp.load("zoo:needle")
    with torch.no_grad():
        other.module.lm_head.weight.mul_(1.5)
    with pytest.raises(interp.InterpError, match="another sweep: its model"):
        influence(Slow(other), TEXTS, **how, out=tmp_path / "0", shard=(0, 2))


@pytest.mark.parametrize("mode", ["event", "set", "r2"])
@pytest.mark.parametrize(("generated", "new"), [(False, None), (True, None), (True, 4)])
def test_retrieval_heads_in_an_engine_are_those_of_the_model(mode: Any, generated: bool, new: int | None) -> None:
    task = interp.tasks.needle(needle(), lengths=(48, 64), depths=(0.0, 0.6), n=2, whole=True)
    how: dict[str, Any] = {"mode": mode, "generated": generated, "max_new_tokens": new, "batch": 3}
    plain, found = retrieval_heads(needle(), task, **how), retrieval_heads(Slow(needle()), task, **how)
    assert found.sites == plain.sites
    assert float(plain.scores.max()) > 0.3
    torch.testing.assert_close(found.scores, plain.scores, atol=1e-5, rtol=0)
    assert torch.equal(found.recall, plain.recall)
    assert found.cells == plain.cells
    assert found.meta["inputs_hash"] == plain.meta["inputs_hash"]


def test_an_engine_that_does_not_answer_yet_is_asked_for_more() -> None:
    task = interp.tasks.needle(needle(), lengths=(64,), depths=(0.5,), n=2, whole=True)
    with pytest.raises(RetrievalError, match=r"after 2 new tokens: give max_new_tokens=4"):
        retrieval_heads(Slow(needle()), task, generated=True, max_new_tokens=1)


def notes(**how: Any) -> Any:
    return interp.tasks.needle(needle(), lengths=(48,), depths=(0.5,), n=2, whole=True, **how)


@pytest.mark.parametrize(
    ("how", "error", "says"),
    [
        ({"heads": ("L4.H0",)}, SiteError, "L4.H0"),
        ({"max_tokens": 1001}, InputsError, "from 2 to the 1000 tokens that this engine takes"),
        ({"engine": "ray"}, InputsError, "does the work itself .*leave out engine="),
        ({"engine": Slow(interp.attach(tiny("llama")))}, InputsError, "stands in the model's place"),
    ],
)
def test_influence_of_what_an_engine_cannot_do_is_refused(how: Any, error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        influence(Slow(needle()), TEXTS, **{"heads": HEADS, **how})


def test_retrieval_heads_of_what_an_engine_cannot_do_are_refused() -> None:
    served, task = Slow(needle()), notes()
    with pytest.raises(InputsError, match="impl='auto' chooses a kernel for a loaded model"):
        retrieval_heads(served, task, impl="auto")
    with pytest.raises(InputsError, match="leave out engine="):
        retrieval_heads(served, task, engine="ray")
    with pytest.raises(InputsError, match="on no model"):
        retrieval_heads(served, replace(task, model=None))
    with pytest.raises(InputsError, match="tokens of another tokenizer"):
        retrieval_heads(Slow(needle(), tokenizer=interp.load("zoo:induction").tokenizer), task)
    with pytest.raises(InputsError, match=r"longest needle has \d+ tokens with its answer, and this engine takes 40"):
        retrieval_heads(Slow(needle(), length=40), task)
    longest = int(task.clean.valid.sum(1).max())
    fits = Slow(needle(), length=longest)
    assert bool(retrieval_heads(fits, task, generated=True).kept.any())
    with pytest.raises(InputsError, match="max_model_len"):
        retrieval_heads(fits, task, generated=True, max_new_tokens=20)
    with pytest.raises(InputsError, match="whole=True"):
        retrieval_heads(served, interp.tasks.needle(needle(), lengths=(48,), depths=(0.5,)))


def test_an_engine_is_not_a_worker_of_other_calls() -> None:
    task = notes()
    with pytest.raises(InputsError, match=r"give interp\.scale\.vllm"):
        retrieval_heads(needle(), task, engine=Slow(needle()))
    pair = interp.tasks.key_value(interp.load("zoo:planted-decoder"), n=2)
    with pytest.raises(interp.InterpError, match="stands in the place of the model"):
        interp.patch(pair.model, base=pair.corrupt, source=pair.clean, metric=pair.metric, sites="L0.H0.z",
                     engine=Slow(needle()))  # fmt: skip
    with pytest.raises(ModelError, match="decoder-only"):
        retrieval_heads(interp.attach(tiny("t5")), task)


def test_what_is_written_down_of_an_engine_is_gone_on_with(tmp_path: Path) -> None:
    how: dict[str, Any] = {"heads": HEADS[:1], "random": 0, "chunk": 2, "out": tmp_path}
    first = influence(Slow(needle()), TEXTS, **how)
    again = Slow(needle())
    assert torch.equal(influence(again, TEXTS, **how).masked.nan_to_num(), first.masked.nan_to_num())
    assert again.asked == 0
    assert json.loads((tmp_path / "influence.json").read_text())["meta"]["attention"] == "slow"
