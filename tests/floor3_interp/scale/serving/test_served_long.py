"""Influence of heads and retrieval heads out of a real vLLM engine: to its precision those of the same model in
transformers, in texts that come in chunks, with an engine whose cache is soon full."""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from engines import engine

import interp
from interp.long.retrieval_heads import RetrievalError
from interp.long.serving import Serving
from interp.prompts.needles import VALUES, filler
from interp.scale import merge

vllm = pytest.importorskip(
    "vllm", reason="vllm is not installed: it needs an environment of its own, see docs/served.md"
)

pytestmark = [pytest.mark.scale, pytest.mark.filterwarnings("default")]
HEADS = ("L1.H0", "L1.H1", "L2.H5", "L0.H3")


@pytest.fixture(scope="module")
def model() -> interp.Model:
    return interp.load("zoo:needle")


@pytest.fixture(scope="module")
def llm(model: interp.Model, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """An engine of the model, whose texts come in chunks of 40 tokens."""
    folder = tmp_path_factory.mktemp("needle")
    model.module.save_pretrained(folder)
    model.tokenizer.save_pretrained(folder)
    found = engine(folder, max_num_batched_tokens=40, num_gpu_blocks_override=7)
    yield found
    found.llm_engine.engine_core.shutdown()


@pytest.fixture(scope="module")
def served(llm: Any) -> Iterator[Any]:
    with interp.scale.vllm(llm) as found:
        yield found


def texts() -> list[str]:
    """By turns one that says a passage twice, and filler; one word alone; one that is longer than the engine reads."""
    rng, out = random.Random(3), []
    for n in range(4):
        passage = rng.sample(VALUES, 12 + 6 * n)
        out += [" ".join([*passage, ".", *passage]), " ".join(filler(rng, 25 + 4 * n))]
    return [*out, "note", " ".join(filler(rng, 130))]


def test_the_engine_is_one_that_methods_know(served: Any, model: interp.Model) -> None:
    assert isinstance(served, Serving)
    assert served.heads == tuple(f"L{n}.H{h}" for n in range(4) for h in range(8))
    assert served.length == 95
    assert served.ids(texts()[0]) == model.prepare(texts()[0], chat=False).kwargs["input_ids"][0].tolist()
    facts = served.facts()
    assert facts["model"] == "LlamaForCausalLM"
    assert facts["dtype"] == "float32"
    assert facts["model_hash"] == served.facts()["model_hash"] != "e3b0c44298fc1c14"


@pytest.mark.parametrize("weights", ["visible", "full"])
def test_influence_is_that_of_transformers(served: Any, model: interp.Model, weights: Any) -> None:
    how: dict[str, Any] = {"heads": HEADS, "weights": weights, "random": 2, "max_tokens": 90}
    found, plain = (interp.long.influence(m, texts(), **how) for m in (served, model))
    for name in ("base", "masked", "random"):
        torch.testing.assert_close(getattr(found, name), getattr(plain, name), rtol=2e-5, atol=2e-5, equal_nan=True)
    assert float((plain.masked - plain.base).nan_to_num().abs().max()) > 0.1
    assert torch.equal(found.tokens, plain.tokens)
    assert torch.equal(found.cut, plain.cut)
    assert (found.heads, found.random_heads) == (plain.heads, plain.random_heads)
    assert found.meta["attention"] == "vllm"
    assert found.meta["versions"]["vllm"] == vllm.__version__


def test_influence_is_written_down_in_shards(served: Any, tmp_path: Path) -> None:
    how: dict[str, Any] = {"heads": HEADS[:1], "random": 0, "chunk": 3}
    whole = interp.long.influence(served, texts()[:7], **how)
    for n in range(2):
        interp.long.influence(served, texts()[:7], **how, out=tmp_path / str(n), shard=(n, 2))
    merged = merge([tmp_path / "0", tmp_path / "1"], out=tmp_path / "all")
    torch.testing.assert_close(merged.score, whole.score, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    ("generated", "new", "mode"),
    [(True, None, "event"), (True, 4, "set"), (True, None, "r2"), (False, None, "event"), (False, None, "r2")],
)
def test_retrieval_heads_are_those_of_transformers(
    served: Any, model: interp.Model, generated: bool, new: int | None, mode: Any
) -> None:
    task = interp.tasks.needle(model, lengths=(40, 64), depths=(0.0, 0.6), n=3, whole=True)
    how: dict[str, Any] = {"generated": generated, "max_new_tokens": new, "mode": mode}
    found, plain = (interp.retrieval_heads(m, task, **how) for m in (served, model))
    assert float(plain.scores.max()) > 0.4
    assert found.sites == plain.sites
    assert torch.equal(found.recall, plain.recall)
    torch.testing.assert_close(found.scores, plain.scores, atol=1e-4, rtol=0)
    assert found.top(3)["site"].tolist() == plain.top(3)["site"].tolist()


def test_what_the_engine_cannot_do_is_refused(served: Any, model: interp.Model) -> None:
    with pytest.raises(interp.InterpError, match="from 2 to the 95 tokens that this engine takes"):
        interp.long.influence(served, texts(), heads=HEADS, max_tokens=96)
    with pytest.raises(interp.InterpError, match="L9"):
        interp.long.influence(served, texts(), heads=["L9.H0"])
    with pytest.raises(interp.InterpError, match="stands in the model's place"):
        interp.long.influence(model, texts(), heads=HEADS, engine=served)
    with pytest.raises(interp.InterpError, match="leave out engine="):
        interp.long.influence(served, texts(), heads=HEADS, engine="ray")
    task = interp.tasks.needle(model, lengths=(64,), depths=(0.5,), n=2, whole=True)
    with pytest.raises(RetrievalError, match="after 2 new tokens: give max_new_tokens=4"):
        interp.retrieval_heads(served, task, generated=True, max_new_tokens=1)
    with pytest.raises(interp.InterpError, match="larger max_model_len"):
        interp.retrieval_heads(served, task, generated=True, max_new_tokens=40)
    words = copy.deepcopy(model.tokenizer)
    words.add_tokens(["a word more"])
    with pytest.raises(interp.InterpError, match="tokens of another tokenizer"):
        interp.retrieval_heads(served, task.on(interp.attach(model.module, words)))


def test_an_engine_without_a_tokenizer_takes_ids_and_no_texts(model: interp.Model, tmp_path: Path) -> None:
    model.module.save_pretrained(tmp_path)
    llm = engine(tmp_path, skip_tokenizer_init=True)
    with interp.scale.vllm(llm) as served:
        with pytest.raises(interp.InterpError, match="without skip_tokenizer_init"):
            interp.long.influence(served, texts(), heads=HEADS)
        task = interp.tasks.needle(model, lengths=(40,), depths=(0.5,), n=3, whole=True)
        plain, found = (interp.retrieval_heads(m, task, generated=True) for m in (model, served))
        assert torch.equal(found.scores, plain.scores)
    llm.llm_engine.engine_core.shutdown()
