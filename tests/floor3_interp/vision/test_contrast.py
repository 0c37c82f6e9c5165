"""Two branches decoded as one text, against a loop of whole passes without a cache, from the definition in float64."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from looking import asked, family, picture
from torch import Tensor

import interp
from interp.hooks.errors import InputsError, ModelError, NotFired
from interp.vision.decoding.contrast import mixed
from interp.vision.decoding.without import without_pictures
from interp.zoo.families import tiny

TYPES = ("mm_token_type_ids", "token_type_ids")


def by_hand(p: Tensor, q: Tensor, amount: float, cutoff: float) -> Tensor:
    """The rule, token by token."""
    p, q = p.double().log_softmax(-1), q.double().log_softmax(-1)
    out = torch.empty_like(p)
    for row in range(len(p)):
        least = math.log(cutoff) + max(p[row].tolist()) if cutoff else -math.inf
        for n in range(p.shape[1]):
            a, b = float(p[row, n]), float(q[row, n])
            out[row, n] = (1 + amount) * a - amount * b if a >= least else -math.inf
    return out


def longer(call: Any, ids: Tensor) -> dict[str, Any]:
    """A call with tokens behind it, as a prompt."""
    count = ids.shape[1]
    more = {name: torch.nn.functional.pad(call[name], (0, count)) for name in TYPES if name in call}
    mask = torch.nn.functional.pad(call["attention_mask"], (0, count), value=1)
    if "position_ids" in call:
        more["position_ids"] = (mask.cumsum(1) - 1).clamp(min=0)
    return {**call, **more, "input_ids": torch.cat([call["input_ids"], ids], 1), "attention_mask": mask}


def without_cache(module: Any, calls: list[Any], *, amount: float, cutoff: float, steps: int) -> tuple[Tensor, Tensor]:
    ids, logprobs = torch.empty(len(calls[0]["input_ids"]), 0, dtype=torch.long), []
    for _ in range(steps):
        with torch.no_grad():
            p, q = (module(**longer(call, ids)).logits[:, -1] for call in calls)
        scores = by_hand(p, q, amount, cutoff)
        token = scores.argmax(-1, keepdim=True)
        logprobs.append(scores.log_softmax(-1).gather(-1, token))
        ids = torch.cat([ids, token], 1)
    return ids, torch.cat(logprobs, 1)


@pytest.mark.parametrize("name", ["llava", "llava_next", "qwen2_5_vl", "qwen3_vl", "internvl", "smolvlm"])
@pytest.mark.parametrize(("amount", "cutoff"), [(1.0, 0.1), (2.0, 0.9), (0.1, 0.0)])
def test_it_is_a_loop_of_whole_passes(name: str, amount: float, cutoff: float) -> None:
    """Rows of unequal length, and a branch that is shorter by the picture: each has its own positions and cache."""
    m, x = asked(name)
    y = without_pictures(m, x)
    got = interp.vision.contrast(m, x, against=y, amount=amount, cutoff=cutoff).generate(max_new_tokens=4)
    ids, logprobs = without_cache(m.module, [x.kwargs, y.kwargs], amount=amount, cutoff=cutoff, steps=4)
    assert torch.equal(got.ids, ids)
    torch.testing.assert_close(got.logprobs.double(), logprobs, atol=1e-4, rtol=1e-4)


def test_the_scores_are_those_of_the_first_token() -> None:
    m, x = asked("llava")
    c = interp.vision.contrast(m, x, against=without_pictures(m, x), amount=0.7, cutoff=0.9)
    scores, first = c.scores(), c.generate(max_new_tokens=1)
    assert torch.equal(scores.argmax(-1), first.ids[:, 0])
    told = scores.log_softmax(-1).gather(-1, first.ids).squeeze(1)
    torch.testing.assert_close(told, first.logprobs[:, 0], atol=1e-5, rtol=1e-5)
    assert bool(scores.isneginf().any())


def test_nothing_added_and_nothing_cut_off_is_the_model_under_the_edits() -> None:
    m, x = asked("qwen2_5_vl")
    edits = [interp.edits.Emphasize("text.L1.H*", keys="image", amount=2.0, positions="last", onward=True)]
    plain = m.generate(x, edits=edits, max_new_tokens=4)
    c = interp.vision.contrast(m, x, edits=edits, against=without_pictures(m, x), amount=0.0, cutoff=0.0)
    same = c.generate(max_new_tokens=4)
    assert torch.equal(same.ids, plain.ids)
    torch.testing.assert_close(same.logprobs, plain.logprobs, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(m.run(x, edits=c.edits)["logits"], m.run(x, edits=edits)["logits"])


def test_each_branch_has_its_own_edits() -> None:
    m, x = asked("llava")
    blind = [interp.MaskKeys("text.L*.H*", keys="image")]
    c = interp.vision.contrast(m, x, against_edits=blind, amount=1.0, cutoff=0.0)
    p, q = (m.run(x, edits=edits)["logits"][:, -1] for edits in ([], blind))
    torch.testing.assert_close(c.scores().double(), by_hand(p, q, 1.0, 0.0), atol=1e-5, rtol=1e-5)
    assert not m.handles()


def test_an_end_is_an_end_for_its_row_alone_and_draws_repeat() -> None:
    m, x = asked("llava")
    c = interp.vision.contrast(m, x, against=without_pictures(m, x))
    plain = c.generate(max_new_tokens=4)
    end = int(plain.ids[0, 1])
    assert end not in plain.ids[1].tolist()
    got = c.generate(max_new_tokens=4, eos_token_id=end)
    assert torch.equal(got.ids[1], plain.ids[1])
    assert got.logprobs[0, 2:].tolist() == [0.0, 0.0]
    assert bool((got.logprobs[0, :2] != 0).all())
    one, two, other = (c.generate(max_new_tokens=4, seed=n) for n in (0, 0, 1))
    assert torch.equal(one.ids, two.ids)
    assert not torch.equal(one.ids, other.ids)


def test_it_decodes_in_bfloat16_and_a_model_of_text_alone() -> None:
    m = interp.attach(copy.deepcopy(family("llava").module).to(torch.bfloat16), family("llava").processor)
    x = m.prepare(["<image>describe"], images=[[picture()]], chat=False)
    c = interp.vision.contrast(m, x, against=without_pictures(m, x))
    assert bool(torch.isfinite(c.generate(max_new_tokens=3).logprobs).all())
    plain = interp.attach(tiny("llama"))
    blind = [interp.MaskKeys("L*.H*", keys="first")]
    c = interp.vision.contrast(plain, {"input_ids": torch.tensor([[5, 6, 7, 8]])}, against_edits=blind)
    assert c.generate(max_new_tokens=3).ids.shape == (1, 3)


def test_the_cutoff_keeps_the_likeliest_token_even_at_one() -> None:
    scores = mixed(torch.tensor([[2.0, 1.0, 0.0]]), torch.tensor([[9.0, 0.0, 0.0]]), amount=1.0, cutoff=1.0)
    assert scores.isneginf().tolist() == [[False, True, True]]


def test_what_makes_no_two_branches_is_refused() -> None:
    m, x = asked("llava")
    y = without_pictures(m, x)
    refused: list[tuple[dict[str, Any], str]] = [
        ({}, "both branches are the same"),
        ({"against": y, "amount": -1.0}, "amount= is how much"),
        ({"against": y, "cutoff": 1.2}, "cutoff= is a share"),
        ({"against": m.prepare(["What is"], chat=False)}, "have 2 and 1 rows"),
    ]
    for how, says in refused:
        with pytest.raises(InputsError, match=says):
            interp.vision.contrast(m, x, **how)
    right = m.prepare(["What is in the image?", "describe"], padding="right", chat=False)
    with pytest.raises(InputsError, match="padded on the left"):
        interp.vision.contrast(m, x, against=right).generate()
    late = [interp.Zero("text.L0.z", phase="decode", step=7)]
    with pytest.raises(interp.InterpError, match="decoding steps are 0 to"):
        interp.vision.contrast(m, x, edits=late, against=y).generate(max_new_tokens=3)
    assert not m.handles()
    assert issubclass(NotFired, interp.InterpError)
    with pytest.raises(ModelError, match="main tower is 'vision'"):
        interp.vision.contrast(interp.attach(tiny("vit")), {"pixel_values": torch.zeros(1, 3, 32, 32)})
    b, z = asked("blip-2")
    with pytest.raises(ModelError, match="generates with a module inside of it"):
        interp.vision.contrast(b, z, against_edits=[interp.Zero("text.L0.z")]).generate(max_new_tokens=2)
