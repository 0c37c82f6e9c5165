"""Masks filled step by step, against the loop written out."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import interp
from interp.diffusion.unmask import Filling
from interp.hooks.errors import InputsError, ModelError
from interp.zoo.families import tiny

MASK, GIVEN = 4, 3


@pytest.fixture(scope="module")
def bert() -> interp.Model:
    return interp.attach(tiny("bert"))


def prompts(*, length: int = 9) -> Tensor:
    ids = torch.randint(10, 30, (2, length), generator=torch.Generator().manual_seed(0))
    ids[:, GIVEN:] = MASK
    return ids


def by_hand(module: Any, ids: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    """The definition, a position after the other."""
    ids, when = ids.clone(), torch.full_like(ids, -1)
    for step in range(steps):
        with torch.no_grad():
            chances = module(input_ids=ids).logits.double()
        chances[..., MASK] = -torch.inf
        chances = chances.softmax(-1)
        before = ids.clone()
        for row in range(len(ids)):
            left = [at for at in range(ids.shape[1]) if before[row, at] == MASK]
            surest = sorted(left, key=lambda at: -float(chances[row, at].max()))[: -(-len(left) // (steps - step))]
            for at in surest:
                ids[row, at], when[row, at] = chances[row, at].argmax(), step
    return ids, when


@pytest.mark.parametrize("steps", [1, 4, 6])
def test_answers_are_those_of_the_loop_written_out(bert: interp.Model, steps: int) -> None:
    found = interp.diffusion.unmask(bert, prompts(), mask=MASK, steps=steps)
    ids, when = by_hand(bert.module, prompts(), steps)
    assert torch.equal(found.ids, ids)
    assert torch.equal(found.when, when)
    assert not bool((found.ids == MASK).any())
    assert found.tape.calls == steps
    assert bool((found.sure[:, GIVEN:] < 1).all())
    assert torch.equal(found.open(0), prompts() == MASK)
    assert int(found.filled(0).sum(1)[0]) == -(-6 // steps)


def test_a_trained_model_keeps_its_rule_letter_by_letter_and_not_at_once() -> None:
    """Each letter looks at its mirror, and what is filled in one call is guessed apart."""
    m = interp.load("zoo:mirror")
    asked = m.prepare([f"{one} {two}" + " <mask>" * 10 for one, two in ("ac", "zq", "mm")])
    kept = {}
    for steps in (1, 10):
        found = interp.diffusion.unmask(m, asked, steps=steps, record="L*.pattern")
        letters = [[ord(letter) for letter in m.tokenizer.decode(row).split()] for row in found.ids]
        kept[steps] = sum((row[n] - 97 + 1) % 26 == row[11 - n] - 97 for row in letters for n in range(6))
    assert kept[10] == 18
    assert kept[1] < 18
    mirrored = torch.stack([tape.diagonal(0, -2, -1) for tape in found.tape["L1.pattern"].flip(-1).flatten(0, 1)])
    assert float(mirrored.mean((0, 2)).max()) > 0.5


def test_what_heads_do_at_each_step(bert: interp.Model) -> None:
    found = interp.diffusion.unmask(bert, prompts(), mask=MASK, steps=3, record="L1.pattern")
    assert found.tape["L1.pattern"].shape[:2] == (3, 2)
    own = prompts()
    for step in range(3):
        wanted = bert.run(own, record="L1.pattern")["L1.pattern"]
        torch.testing.assert_close(found.tape.at(step)[bert.anatomy.one("L1.pattern")], wanted)
        own = torch.where(found.filled(step), found.ids, own)


def test_edits_by_step_and_by_what_is_masked(bert: interp.Model) -> None:
    plain = interp.diffusion.unmask(bert, prompts(), mask=MASK, steps=3, record="L0.z")
    seen: list[Filling] = []

    def each(now: Filling) -> list[Any]:
        seen.append(now)
        return [interp.MaskKeys("L0.H1", keys=now.masked)] if now.step == 1 else []

    found = interp.diffusion.unmask(
        bert, prompts(), mask=MASK, steps=3, record="L0.pattern", each=each, edits=interp.Zero("L1.H0.z", steps=2)
    )
    assert [now.step for now in seen] == [0, 1, 2]
    assert torch.equal(seen[1].masked, found.open(1))
    first = found.tape.at(1)[bert.anatomy.one("L0.pattern")]
    assert not first[:, 1].transpose(1, 2)[found.open(1)].any()
    assert bool(first[:, 0].transpose(1, 2)[found.open(1)].any())
    assert torch.equal(plain.when == 0, found.when == 0)  # nothing was edited before


def test_blocks_found_at_one_step_are_all_that_is_read_later(bert: interp.Model) -> None:
    """SparseD: full attention first, then each head's heaviest blocks of that moment."""
    found: list[Any] = []

    def each(now: Filling) -> list[Any]:
        if now.step == 1:
            found.extend(interp.operators.find_blocks(bert, now.ids, size=3, keep=0.3))
        return found

    made = interp.diffusion.unmask(bert, prompts(), mask=MASK, steps=4, record="L0.pattern", each=each)
    site = bert.anatomy.one("L0.pattern")
    kept = [int((made.tape.at(step)[site] > 0).sum(-1).max()) for step in range(4)]
    assert kept == [9, 3, 3, 3]  # one of three blocks of three keys: floor(3 x 0.3) + 1
    own = torch.where(made.when < 1, made.ids, MASK)
    weights = bert.run(own, record="L0.pattern")["L0.pattern"].mean(0)
    blocks = weights.unflatten(-1, (3, 3)).sum(-1).unflatten(1, (3, 3)).mean(2)
    read = (made.tape.at(3)[site] > 0)[0].unflatten(-1, (3, 3)).any(-1).unflatten(1, (3, 3)).any(2)
    assert torch.equal(read.int().argmax(-1), blocks.argmax(-1))


def test_what_cannot_be_filled_is_refused(bert: interp.Model) -> None:
    with pytest.raises(InputsError, match="holds the mask's id 4"):
        interp.diffusion.unmask(bert, torch.randint(10, 30, (2, 5)), mask=MASK)
    with pytest.raises(InputsError, match="pass mask="):
        interp.diffusion.unmask(bert, prompts())
    with pytest.raises(InputsError, match="at least one step"):
        interp.diffusion.unmask(bert, prompts(), mask=MASK, steps=0)
    with pytest.raises(ModelError, match="left to right"):
        interp.diffusion.unmask(interp.attach(tiny("llama")), prompts(), mask=MASK)
