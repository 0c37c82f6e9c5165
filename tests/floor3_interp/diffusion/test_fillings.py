"""Decoders of text that denoise, held at torch's fused attention, sampled by LLaDA's and Dream's rules written out."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusing import MASK, Denoising, Shifted, denoising
from torch import Tensor

import interp
from interp.diffusion.fillings import Rule
from interp.hooks.errors import InputsError
from interp.zoo.every import build

GIVEN, ANSWER = 3, 8


def prompts() -> Tensor:
    ids = torch.randint(10, 30, (2, GIVEN + ANSWER), generator=torch.Generator().manual_seed(0))
    ids[:, GIVEN:] = MASK
    return ids


@pytest.fixture(scope="module")
def llada() -> interp.Model:
    return interp.attach(denoising(Denoising))


@pytest.fixture(scope="module")
def dream() -> interp.Model:
    return interp.attach(denoising(Shifted, kv_heads=2))


def chances_of(module: Any, ids: Tensor, *, shift: bool) -> Tensor:
    with torch.no_grad():
        logits = module(input_ids=ids).logits.double()
    if shift:  # what a position predicts is the next one's
        logits[:, 1:] = logits[:, :-1].clone()
    logits[..., MASK] = -torch.inf
    return logits.softmax(-1)


def test_they_are_held_in_both_directions(llada: interp.Model, dream: interp.Model) -> None:
    for m in (llada, dream):
        m.check().raise_failed()
        assert {layer.standpoint for layer in m.towers["text"].layers} == {"sdpa"}
        assert m.towers["text"].bidirectional
        weights = m.run(prompts(), record="L1.pattern")["L1.pattern"]
        assert bool((weights > 0).all())


def test_blocks_are_filled_one_after_the_other_the_surest_first(llada: interp.Model) -> None:
    """LLaDA: semi-autoregressive blocks, low-confidence remasking, a position at a time written out."""
    found = interp.diffusion.unmask(llada, prompts(), mask=MASK, steps=6, block=4, record="L0.z")
    ids, when = prompts(), torch.full((2, GIVEN + ANSWER), -1)
    for step in range(6):
        start = GIVEN + 4 * (step // 3)
        chances = chances_of(llada.module, ids, shift=False)
        for row in range(2):
            left = [at for at in range(start, start + 4) if when[row, at] < 0]
            count = [2, 1, 1][step % 3]
            for at in sorted(left, key=lambda at: -float(chances[row, at].max()))[:count]:
                ids[row, at], when[row, at] = chances[row, at].argmax(), step
    assert torch.equal(found.when, when)
    assert torch.equal(found.ids, ids)
    assert found.tape.calls == 6


@pytest.mark.parametrize("by", ["margin", "entropy"])
def test_shifted_logits_are_read_one_position_back(dream: interp.Model, by: Any) -> None:
    """Dream's two other measures of being sure, from chances cut to their top half."""
    found = interp.diffusion.unmask(dream, prompts(), mask=MASK, steps=4, by=by, shift=True, top_p=0.5)
    ids, when = prompts(), torch.full((2, GIVEN + ANSWER), -1)
    for step in range(4):
        chances = chances_of(dream.module, ids, shift=True)
        new = ids.clone()
        for row in range(2):
            sure = {}
            for at in [at for at in range(GIVEN, GIVEN + ANSWER) if when[row, at] < 0]:
                ordered, words = chances[row, at].sort(descending=True)
                count = next(n for n in range(1, 41) if float(ordered[:n].sum()) >= 0.5)
                kept = ordered[:count] / ordered[:count].sum()
                second = float(kept[1]) if count > 1 else 0.0
                sure[at] = float(kept[0]) - second if by == "margin" else float((kept * kept.log()).sum())
                new[row, at] = words[0]
            for at in sorted(sure, key=lambda at: -sure[at])[:2]:
                ids[row, at], when[row, at] = new[row, at], step
    assert torch.equal(found.when, when)
    assert torch.equal(found.ids, ids)


def test_words_that_are_drawn_are_drawn_again_by_the_same_seed(llada: interp.Model) -> None:
    how = {"mask": MASK, "steps": 2, "temperature": 5.0}
    first, again, other = (interp.diffusion.unmask(llada, prompts(), seed=seed, **how).ids for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert not bool((other == MASK).any())
    logits = torch.tensor([[[2.0, 1.0, 0.0, -9.0]]]).repeat(1, 4000, 1)
    rule = Rule(temperature=0.5, top_p=0.9)
    word, own, _ = rule.words(logits, 3, torch.Generator().manual_seed(0))
    p = torch.tensor([4.0, 2.0]).softmax(0)  # the third is past nine tenths
    torch.testing.assert_close((word == 0).float().mean(), p[0], atol=0.02, rtol=0)
    torch.testing.assert_close(own, p[word])


def test_steps_are_roles_of_the_answer(llada: interp.Model) -> None:
    found = interp.diffusion.unmask(llada, prompts(), mask=MASK, steps=4)
    assert torch.equal(found.inputs.mask("step2"), found.filled(2))
    tape = llada.run(found.inputs, record="L1.z", edits=[interp.Scale("L0.H1.z", 0.0, positions="step0")])
    by_hand = interp.Scale("L0.H1.z", 0.0, positions=found.when == 0)
    assert torch.equal(tape["L1.z"], llada.run(found.ids, record="L1.z", edits=[by_hand])["L1.z"])


def test_blocks_of_keys_found_early_are_all_that_is_read_later(llada: interp.Model) -> None:
    """SparseD: a fifth of the steps in full, then each head's heaviest blocks, the answer's apart from the prompt's."""
    kept: list[Any] = []

    def each(now: Any) -> list[Any]:
        if now.step == int(5 * 0.2) + 1:
            kept.extend(interp.operators.find_blocks(llada, now.ids, size=3, keep=0.3, apart=GIVEN))
        return kept

    made = interp.diffusion.unmask(llada, prompts(), mask=MASK, steps=5, record="L*.pattern", each=each)
    read = [int((made.tape.at(step)[llada.anatomy.one("L1.pattern")] > 0).sum(-1).max()) for step in range(5)]
    assert read == [11, 11, 6, 6, 6]  # one block of the prompt's one, one of the answer's three


def test_rules_that_make_no_sense_are_refused(llada: interp.Model) -> None:
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"top_p": 0.0}, "top_p"),
        ({"temperature": -1.0}, "at least 0"),
        ({"block": 0}, "at least one position"),
        ({"block": 4, "steps": 3}, "no multiple of 2"),
    ]
    for how, said in wrong:
        with pytest.raises(InputsError, match=said):
            interp.diffusion.unmask(llada, prompts(), mask=MASK, **how)


def test_each_step_of_a_canvas_is_a_call() -> None:
    """DiffusionGemma's own loop calls its decoder's forward and not the module."""
    module = build("diffusion_gemma")
    m = interp.attach(module)
    ids = torch.arange(5, 11)[None]

    def sample() -> Tensor:
        torch.manual_seed(0)
        how = {"max_denoising_steps": 3, "max_new_tokens": module.config.canvas_length, "disable_compile": True}
        made: Tensor = module.generate(input_ids=ids, **how).sequences
        return made

    plain = sample()
    site, edit = m.anatomy.one("text2.L0.z"), interp.Scale("text2.L0.H1.z", 0.0, steps=1)
    with m.watch(record=["text2.L0.z", "text2.L0.attn_in"]) as whole:
        assert torch.equal(sample(), plain)
    assert whole.calls == 3
    assert whole.at(0)[site].shape[1] == module.config.canvas_length
    with m.watch(record="text2.L0.z", edits=[edit]) as edited:
        sample()
    assert torch.equal(edited.at(0)[site], whole.at(0)[site])
    assert not edited.at(1)[site][:, :, 1].any()
    assert "forward" not in vars(module)
