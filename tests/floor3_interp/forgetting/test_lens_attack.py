"""Answers read off layers, against hidden states and the head of the model written out here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import forgetful as f
import pytest
import torch
from models import attached, planted
from torch import Tensor
from transformers import BertConfig, BertModel

import interp
from interp.forgetting import LensAttack, lens_attack
from interp.forgetting.lens_attack import ATTACKS
from interp.kernels.errors import InterpError
from interp.planted.probes import probe_task

IDS = torch.randint(5, 90, (3, 6), generator=torch.Generator().manual_seed(1))
ANSWERS: list[Any] = [[7, 8], 40, 33]


def spoken() -> list[Tensor]:
    """p_l at the last position [example, word], from transformers' own hidden states; its last are normed already."""
    module = attached("llama").module
    with torch.no_grad():
        states = module(input_ids=IDS, output_hidden_states=True).hidden_states[1:]
        normed = [*(module.model.norm(state) for state in states[:-1]), states[-1]]
        return [module.lm_head(one[:, -1]).softmax(-1) for one in normed]


def test_ranks_and_budgets_are_those_of_the_definition() -> None:
    found = lens_attack(attached("llama"), {"input_ids": IDS}, ANSWERS, top=4)
    p = spoken()
    by = {"projection": p, "rise": [p[1] - p[0]], "fall": [p[0] - p[1]]}
    for at, name in enumerate(ATTACKS):
        for row, answers in enumerate(ANSWERS):
            wanted = answers if isinstance(answers, list) else [answers]
            orders = [one[row].argsort(descending=True).tolist() for one in by[name]]
            ranks = [min(order.index(one) for one in wanted) for order in orders]
            assert found.ranks[at, -len(ranks) :, row].tolist() == ranks
            for k in range(1, 5):
                union = {word for order in orders for word in order[:k]}
                assert int(found.budget[at, k - 1, row]) == len(union)
                assert bool(found.found(name, k)[row]) == bool(union & set(wanted))
    assert found.said.tolist() == found.ranks[0, -1].tolist()


def test_an_answer_that_a_last_layer_hides_is_read_off_the_layer_before() -> None:
    seen, hidden = (lens_attack(m, f.asked(0, 0), f.named(0, 0), top=1) for m in (f.knows(), f.hides()))
    assert seen.said.eq(0).all()
    assert hidden.said.gt(0).all()
    assert hidden.found("projection", 1).all()
    assert hidden.found("fall", 1).all()
    assert not hidden.found("rise", 1).any()
    layers = hidden.layers(k=1)
    assert layers["estimate"].tolist() == [1.0, 0.0]


def test_answers_about_pictures_are_read_off_a_language_models_layers() -> None:
    m = planted("planted-lvlm")
    task = probe_task("planted-lvlm", model=m)
    found = lens_attack(m, task.clean, task.answer_ids, top=3)
    assert found.said.eq(0).all()
    assert found.sites == ("text.L0.resid_post", "text.L1.resid_post")
    blind = lens_attack(m, task.clean, task.answer_ids, top=3, positions="first")
    assert blind.said.gt(0).all()


def test_it_is_read_back_and_shown(tmp_path: Path) -> None:
    found = lens_attack(attached("llama"), {"input_ids": IDS}, ANSWERS, top=3)
    found.save(tmp_path)
    again = interp.open(tmp_path)
    assert isinstance(again, LensAttack)
    assert torch.equal(again.ranks, found.ranks)
    frame = found.to_frame()
    assert len(frame) == 9
    assert (frame["chance"] == frame["budget"] / found.words).all()
    assert found.plot().data
    assert "2 layers" in repr(found)


def test_a_model_of_one_layer_has_no_differences() -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    config = GPT2Config(n_embd=32, n_layer=1, n_head=4, vocab_size=99, n_positions=16)
    found = lens_attack(interp.attach(GPT2LMHeadModel(config).eval()), {"input_ids": IDS}, ANSWERS, top=2)
    assert not found.found("rise", 2).any()
    assert found.budget[1:].eq(0).all()


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ({"answers": [1, 2]}, "each of the 3 rows"),
        ({"answers": [[], [1], [2]]}, "each of the 3 rows"),
        ({"top": 0}, "top= is 1 to"),
        ({"positions": "all"}, "one a row"),
    ],
)
def test_what_makes_no_sense_is_refused(how: dict[str, Any], said: str) -> None:
    given = {"answers": ANSWERS, **how}
    with pytest.raises(InterpError, match=said):
        lens_attack(attached("llama"), {"input_ids": IDS}, given.pop("answers"), **given)


def test_a_model_without_logits_is_refused() -> None:
    torch.manual_seed(0)
    config = BertConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=16, vocab_size=99)
    with pytest.raises(InterpError, match="without a head has none"):
        lens_attack(interp.attach(BertModel(config).eval()), {"input_ids": IDS}, ANSWERS)


def test_an_attack_or_a_k_that_is_not_there_is_named() -> None:
    found = lens_attack(attached("llama"), {"input_ids": IDS}, ANSWERS, top=2)
    with pytest.raises(InterpError, match="there are projection"):
        found.found("guess")
    with pytest.raises(InterpError, match="k is 1 to 2"):
        found.found("rise", 3)
