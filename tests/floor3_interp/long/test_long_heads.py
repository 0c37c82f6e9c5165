"""Long texts: chunks and sentences are chosen as the papers' code chooses them, and short texts are left alone."""

from __future__ import annotations

import copy
import math
import random
import sys
import threading
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import interp
from interp.hooks.errors import EditError, InputsError, ModelError
from interp.hooks.stand.interface import Switch
from interp.long.infini_retrieve import infini_retrieve
from interp.long.long_heads import Turns, attend_chunks, long_heads
from interp.prompts.needles import haystack
from interp.zoo.families import tiny


@cache
def needle() -> interp.Model:
    return interp.load("zoo:needle")


@cache
def eager() -> Any:
    """The model itself, without us: whole patterns in float64."""
    module = copy.deepcopy(needle().module).double()
    module.set_attn_implementation("eager")
    return module


def turn(x: Tensor, at: int) -> Tensor:
    """Rotation by halves of one vector, as complex numbers."""
    half = len(x) // 2
    angle = torch.tensor([at / 100.0 ** (n / half) for n in range(half)], dtype=torch.float64)
    spun = torch.complex(x[:half].double(), x[half:].double()) * torch.polar(torch.ones(half).double(), angle)
    return torch.cat([spun.real, spun.imag])


def rotary(x: Tensor, places: Tensor) -> tuple[Tensor, Tensor]:
    """The same as a model's rotary embedding gives it."""
    half = x.shape[-1] // 2
    angles = places[..., None] * torch.tensor([100.0 ** (-n / half) for n in range(half)], dtype=x.dtype)
    both = torch.cat([angles, angles], dim=-1)
    return both.cos(), both.sin()


def slow(q: Tensor, k: Tensor, v: Tensor, row: int, *, chunk: int, keep: int, scale: float) -> tuple[Tensor, list[int]]:
    """One head's row from unrotated q, k [row, d], after the paper's code."""
    own = row // chunk

    def local(x: Tensor, c: int) -> Tensor:
        return torch.stack([turn(x[c * chunk + o], o) for o in range(chunk)])

    scores = []
    for c in range(1, own - 1):
        keys = local(k, c)
        u = (torch.softmax(local(q, c) @ keys.T * scale, -1) @ v[c * chunk : (c + 1) * chunk]).mean(0)
        scores.append((float(q[row] @ (torch.softmax(u @ keys.T * scale, -1) @ keys)), c))
    chunks = sorted({0, own - 1, own, *(c for _, c in sorted(scores, reverse=True)[: keep - 3])})
    columns = [c * chunk + o for c in chunks for o in range(chunk) if c * chunk + o <= row]
    at = (keep - 1) * chunk + row % chunk
    found = torch.stack([turn(q[row], at) @ turn(k[j], n) for n, j in enumerate(columns)])
    return torch.softmax(found * scale, -1) @ v[columns], chunks


@pytest.mark.parametrize(("numbers", "keep"), [(2**22, 4), (2 * 8 * 3 * 4 * 2, 4), (2**22, 3)])
def test_chunks_are_chosen_and_read_as_in_the_paper(numbers: int, keep: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules[attend_chunks.__module__], "NUMBERS", numbers)
    chunk, length, scale = 3, 23, 0.5
    q, k, v = (torch.randn(1, heads, length, 8, dtype=torch.float64) for heads in (2, 1, 1))
    turned = [torch.stack([torch.stack([turn(one, n) for n, one in enumerate(head)]) for head in x[0]]) for x in (q, k)]
    turns = Turns(rotary, q, length)
    z, chosen = attend_chunks(turned[0][None], turned[1][None], v, turns, scale=scale, chunk=chunk, keep=keep)
    assert z.shape == (1, 2, length - chunk * keep, 8)
    for head in (0, 1):
        for row in (12, 17, 22):
            wanted, chunks = slow(q[0, head], k[0, 0], v[0, 0], row, chunk=chunk, keep=keep, scale=scale)
            assert chosen[0, head, row - chunk * keep].tolist() == chunks
            torch.testing.assert_close(z[0, head, row - chunk * keep], wanted)


def test_heads_choose_the_chunk_of_the_needle_and_short_texts_are_read_as_ever() -> None:
    m = needle()
    task = interp.tasks.needle(m, lengths=(120,), depths=(0.4,), n=1, whole=True)
    bare = m.run(task.clean)["logits"]
    with long_heads(m, chunk=16, keep=8) as found:
        assert torch.equal(m.run(task.clean)["logits"], bare)
    assert found.chosen == {}
    with pytest.raises(InputsError, match="texts longer than 128"):
        found.share("L1", 5)
    with long_heads(m, chunk=8, keep=6) as found:
        other = m.run(task.clean)["logits"]
    assert torch.equal(other[:, :48].argmax(-1), bare[:, :48].argmax(-1))
    assert not torch.equal(other[:, 48:], bare[:, 48:])
    assert found.chosen["L3"].shape == (1, 8, task.clean.length - 48, 6)
    first, _ = task.positions["needle"].rows[0] or (0, 0)
    shares = found.share("L1", first)
    assert shares.shape == (8,)
    assert found.share("L1", 0).tolist() == [1.0] * 8
    assert Switch.watched() == 0


def test_what_long_heads_cannot_read_is_refused() -> None:
    m = needle()
    ids = torch.randint(5, 500, (1, 40))
    with pytest.raises(InputsError, match="at least 3"), long_heads(m, chunk=8, keep=2):
        pass
    with pytest.raises(ModelError, match="rotates halves"), long_heads(interp.attach(tiny("gpt2"))):
        pass
    with long_heads(m, chunk=4, keep=4):
        with pytest.raises(InputsError, match="queries for"):
            m.generate({"input_ids": ids}, max_new_tokens=3)
        with pytest.raises(EditError, match="use one of them"):
            m.run({"input_ids": ids}, edits=[interp.edits.UniformAttention("L1.H0")])
        for look in (
            lambda: m.run({"input_ids": ids}, record="L1.H0.pattern"),
            lambda: m.attention(ids, stats=["entropy"]),
        ):
            with pytest.raises(EditError, match="not the one that the model used"):
                look()
        mask = torch.ones_like(ids).index_fill(1, torch.tensor([0, 1]), 0)
        with pytest.raises(InputsError, match="unpadded"):
            m.run({"input_ids": ids, "attention_mask": mask})
    assert Switch.watched() == 0


@cache
def document() -> tuple[str, str, str]:
    """A text, its question, and the sentence that answers."""
    hay = haystack(random.Random(5), length=110, depth=0.5, distractors=2)
    first, last = hay.needle
    return " ".join(hay.words[:-3]), " ".join(hay.words[-3:]), " ".join(hay.words[first:last])


def slow_kept(layer: int, *, window: int, keep: int, phrase: int) -> list[str]:
    """The loop over windows with whole patterns, in float64."""
    text, question, _ = document()
    ids = needle().tokenizer.convert_tokens_to_ids
    sentences = [f"{part} ." for part in text.removesuffix(" .").split(" . ")]
    windows: list[list[str]] = [[]]
    for one in sentences:
        if sum(len(s.split()) for s in windows[-1]) + len(one.split()) > window:
            windows.append([])
        windows[-1].append(one)
    kept: list[str] = []
    weights = None
    for some in windows:
        words = [(s, word) for s in [*kept, *some] for word in s.split()]
        row = [1, *ids([word for _, word in words]), *ids(question.split())]
        pattern = eager()(torch.tensor([row]), output_attentions=True).attentions[layer]
        looks = pattern[0, :, -3:].sum(0).detach().numpy()
        weights = looks[:, -3:].sum(1) if weights is None else weights
        summed = [np.convolve(one[1:-3], np.ones(phrase), mode="same") for one in looks]
        score = sum(w**2 * s for w, s in zip(weights, summed, strict=True))
        best = {words[j][0] for j in np.argsort(-score)[:keep]}
        kept = [s for s in sentences if s in best and s in {w for w, _ in words}]
    return kept


@pytest.mark.parametrize(("heads", "layer", "phrase"), [(None, 3, 8), ("L1.H*", 1, 3)])
def test_sentences_are_kept_as_in_the_paper(heads: str | None, layer: int, phrase: int) -> None:
    text, question, _ = document()
    found = infini_retrieve(needle(), text, question, window=40, keep=12, phrase=phrase, heads=heads)
    wanted = slow_kept(layer, window=40, keep=12, phrase=phrase)
    assert [found.sentences[n] for n in found.kept] == wanted
    assert found.text == " ".join(wanted)
    assert found.windows == math.ceil(found.tokens / 40)
    words = [1, *needle().tokenizer.convert_tokens_to_ids([*found.text.split(), *question.split()])]
    assert found.ids.tolist() == [words]


def test_heads_that_copy_keep_the_sentence_that_answers() -> None:
    text, question, answer = document()
    found = infini_retrieve(needle(), text, question, window=40, keep=6, phrase=3, heads="L1.H0-3")
    assert answer in found.text
    assert len(found.kept) < len(found.sentences) / 2
    assert "sentences in" in repr(found)


@pytest.mark.parametrize(
    ("how", "says"),
    [({"window": 0}, "at least 1"), ({"document": " "}, "not empty"), ({"heads": "L1.H0.z"}, "pattern of heads")],
)
def test_what_cannot_be_retrieved_is_refused(how: dict[str, Any], says: str) -> None:
    text, question, _ = document()
    given = {"document": text, "question": question, **how}
    with pytest.raises(InputsError, match=says):
        infini_retrieve(needle(), given.pop("document"), given.pop("question"), **given)
    with pytest.raises(ModelError, match="tokenizer"):
        infini_retrieve(interp.attach(tiny("llama")), text, question)


def test_another_thread_reads_the_model_as_it_is() -> None:
    m = needle()
    ids = {"input_ids": torch.randint(5, 500, (1, 60))}
    with torch.no_grad():
        bare = m.module(**ids).logits
    found: list[Tensor] = []

    def other() -> None:
        with torch.no_grad():
            found.append(m.module(**ids).logits)

    with long_heads(m, chunk=4, keep=4), torch.no_grad():
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
        mine = m.module(**ids).logits
    assert torch.equal(found[0], bare)
    assert not torch.equal(mine, bare)
