"""Generating under edits with a KV cache gives what running everything anew without one gives."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

import interp
from interp.hooks.edits.edits import Edit
from interp.hooks.errors import EditError, InputsError, ModelError, NotFired
from interp.hooks.examples.example import example
from interp.zoo.families import tiny

NEW = 5


@cache
def attached(name: str) -> interp.Model:
    module = tiny(name, dtype=torch.float64)
    module.generation_config.eos_token_id = None
    return interp.attach(module)


def prompt(m: interp.Model, *, batch: int = 2, length: int = 6, padding: str | None = None) -> Any:
    kwargs = example(m.module, batch=batch, length=length, padding=padding)
    return m.inputs({n: v for n, v in kwargs.items() if n != "position_ids"})


def recomputed(m: interp.Model, x: Any, edits: Any) -> tuple[Tensor, Tensor]:
    """Greedy without a cache: the whole text anew for every token, edits at the prompt's columns."""
    ids, mask = x.kwargs["input_ids"], x.kwargs["attention_mask"]
    picked = []
    for _ in range(NEW):
        position_ids = (mask.cumsum(-1) - 1).clamp(min=0)
        logits = m.run({"input_ids": ids, "attention_mask": mask, "position_ids": position_ids}, edits=edits)["logits"]
        logprobs = logits[:, -1].float().log_softmax(-1)
        new = logprobs.argmax(-1, keepdim=True)
        picked.append(logprobs.gather(-1, new))
        ids, mask = torch.cat([ids, new], 1), torch.nn.functional.pad(mask, (0, 1), value=1)
    return ids[:, x.length :], torch.cat(picked, 1)


FIXED: dict[str, list[Edit]] = {
    "nothing": [],
    "a head": [interp.Scale("L0.H1.z", 0.3)],
    "a steering vector": [interp.Add("L1.resid_pre", 0.3)],
    "keys hidden": [interp.MaskKeys("L*.H1,2", keys=[1, 2])],
    "keys biased": [interp.edits.BiasKeys("L0.H0", keys=[3], amount=2.0), interp.edits.Temperature("L1.H3", value=2.0)],
    "weight moved": [interp.edits.Redistribute("L1.H*", source=[1], target=[3, 4], fraction=0.7)],
    "uniform": [interp.edits.UniformAttention("L1.H0")],
    "the own key": [interp.Blend("L1.H0", to="identity", amount=0.5)],
    "values of some keys": [interp.Scale("L1.K0.v", 0.2, positions=[2, 3])],
    "keys of one query head": [interp.Scale("L0.H1.k", -1.0, positions=[2], expand=True)],
    "prompt positions": [interp.Zero("L0.z", positions=[1, 2]), interp.Add("L1.mlp_out", 0.5, positions=[3])],
}


@pytest.mark.parametrize("name", FIXED)
def test_masking_that_skips_prefill(name: str) -> None:
    """With a cache or without, an edit acts on the prompt and on every new token alike."""
    m = attached("llama")
    x, edits = prompt(m), FIXED[name]
    out = m.generate(x, edits=edits, max_new_tokens=NEW)
    ids, logprobs = recomputed(m, x, edits)
    assert torch.equal(out.ids, ids)
    torch.testing.assert_close(out.logprobs, logprobs, rtol=1e-4, atol=1e-4)
    if edits:
        assert not torch.allclose(out.logprobs, m.generate(x, max_new_tokens=NEW).logprobs)


@pytest.mark.parametrize("family", ["gpt2", "mistral", "gemma3", "qwen3"])
@pytest.mark.parametrize("name", ["a head", "keys hidden first", "values of some keys"])
def test_other_families_and_sliding_caches(family: str, name: str) -> None:
    """A sliding window's cache drops its first keys: key sets must move along with it."""
    m = attached(family)
    x = prompt(m, length=6)
    edits = {"keys hidden first": [interp.MaskKeys("L*.H1", keys=[4, 5])]}.get(name) or FIXED[name]
    if family == "gpt2" and name == "values of some keys":
        edits = [interp.Scale("L1.H0.v", 0.2, positions=[4, 5])]
    elif name == "values of some keys":
        edits = [interp.Scale("L*.K0.v", 0.2, positions=[4, 5])]
    out = m.generate(x, edits=edits, max_new_tokens=NEW)
    ids, logprobs = recomputed(m, x, edits)
    assert torch.equal(out.ids, ids)
    torch.testing.assert_close(out.logprobs, logprobs, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", ["a head", "keys hidden last", "prompt last"])
def test_left_padding(name: str) -> None:
    m = attached("llama")
    x = prompt(m, batch=3, padding="left")
    edits: list[Edit] = {
        "a head": FIXED["a head"],
        "keys hidden last": [interp.MaskKeys("L*.H1", keys="first")],
        "prompt last": [interp.Add("L0.resid_post", 1.0, positions="first")],
    }[name]
    out = m.generate(x, edits=edits, max_new_tokens=3)
    for row in range(3):
        alone = m.inputs({"input_ids": x.kwargs["input_ids"][row : row + 1, x.valid[row]]})
        torch.testing.assert_close(
            out.logprobs[row], m.generate(alone, edits=edits, max_new_tokens=3).logprobs[0], rtol=1e-4, atol=1e-4
        )


def test_phase_and_step_say_when() -> None:
    m = attached("llama")
    x = prompt(m)
    plain = m.generate(x, max_new_tokens=NEW).logprobs
    both, prefill, decode = (
        m.generate(x, edits=[interp.Scale("L1.z", 0.5)], phase=p, max_new_tokens=NEW)
        for p in ("both", "prefill", "decode")
    )
    assert torch.equal(decode.logprobs[:, 0], plain[:, 0])
    assert torch.equal(prefill.logprobs[:, 0], both.logprobs[:, 0])
    assert not torch.allclose(decode.logprobs[:, 1], plain[:, 1])
    step = m.generate(x, edits=[interp.Scale("L1.z", 0.5, step=1)], max_new_tokens=NEW)
    assert torch.equal(step.logprobs[:, :2], plain[:, :2])
    assert torch.equal(step.ids[:, :2], m.generate(x, max_new_tokens=2).ids)
    assert not torch.allclose(step.logprobs[:, 2], plain[:, 2])


def test_what_cannot_happen_while_generating_raises() -> None:
    m = attached("llama")
    x = prompt(m)
    with pytest.raises(EditError, match=r"decoding steps are 0 to 3"):
        m.generate(x, edits=[interp.Zero("L0.z", step=4)], max_new_tokens=NEW)
    with pytest.raises(NotFired):
        m.generate(x, edits=[interp.Zero("L0.z", phase="decode")], max_new_tokens=1)
    with pytest.raises(NotFired):
        m.generate(x, edits=[interp.Zero("L0.z", positions=[1])], phase="decode", max_new_tokens=NEW)
    for how in ({"num_beams": 2}, {"num_return_sequences": 2}, {"use_cache": False}, {"prompt_lookup_num_tokens": 2}):
        with pytest.raises(InputsError):
            m.generate(x, max_new_tokens=2, **how)
    with pytest.raises(InputsError, match="padded on the left"):
        m.generate(prompt(m, batch=3, padding="right"), max_new_tokens=2)
    with pytest.raises(ModelError, match="cannot generate"):
        interp.attach(tiny("bert")).generate(example(tiny("bert")))
    assert not m.handles()


def test_edits_of_the_last_logits_reach_the_first_new_token() -> None:
    """Prefill computes logits for the last column only; the column keeps its number."""
    m = attached("llama")
    x = prompt(m)
    wish = torch.zeros(160, dtype=torch.float64)
    wish[42] = 1e3
    out = m.generate(x, edits=[interp.Add("logits", wish, positions="last")], max_new_tokens=3)
    plain = m.generate(x, max_new_tokens=3)
    assert bool((out.ids[:, 0] == 42).all())
    assert not bool((plain.ids == 42).all())
    with pytest.raises(NotFired):
        m.generate(x, edits=[interp.Add("logits", wish, positions=[0])], max_new_tokens=3)


def test_a_row_that_ends_early_adds_nothing_to_its_sum() -> None:
    m = attached("llama")
    x = prompt(m, batch=2)
    ids = m.generate(x, max_new_tokens=NEW).ids
    out = m.generate(x, max_new_tokens=NEW, eos_token_id=int(ids[0, 1]), pad_token_id=0)
    assert bool((out.logprobs[0, 2:] == 0).all())
    assert bool((out.logprobs[0, :2] < 0).all())


@pytest.mark.parametrize("family", ["bart", "t5"])
def test_encoder_decoders_keep_cross_keys_where_they_are(family: str) -> None:
    m = attached(family)
    kwargs = example(m.module, batch=2)
    kwargs.pop("decoder_attention_mask", None)
    kwargs["decoder_input_ids"] = kwargs["decoder_input_ids"][:, :1]
    x = m.inputs(kwargs)
    edits = [interp.MaskKeys("cross.L*.H1", keys=[2, 3]), interp.Scale("decoder.L0.H0.z", 0.5)]
    out = m.generate(x, edits=edits, max_new_tokens=4, min_new_tokens=4)
    ids = kwargs["decoder_input_ids"]
    for step in range(4):
        logits = m.run({**kwargs, "decoder_input_ids": ids}, edits=edits)["logits"][:, -1].float()
        new = out.ids[:, step : step + 1]
        torch.testing.assert_close(
            out.logprobs[:, step], logits.log_softmax(-1).gather(-1, new)[:, 0], rtol=1e-4, atol=1e-4
        )
        ids = torch.cat([ids, new], 1)


def test_generate_inside_edited_is_generate_with_edits() -> None:
    m = attached("llama")
    x = prompt(m)
    edits = [interp.MaskKeys("L1.H2", keys=[1]), interp.Set("L0.z", 0.1, positions="last")]
    expected = m.generate(x, edits=edits, max_new_tokens=NEW)
    with m.edited(edits):
        found = m.module.generate(**x.kwargs, max_new_tokens=NEW, do_sample=False)
    assert torch.equal(found[:, x.length :], expected.ids)


def test_one_text_is_that_of_one_row() -> None:
    m = attached("llama")
    with pytest.raises(InputsError, match=r"\.texts"):
        _ = m.generate(prompt(m, batch=2), max_new_tokens=2).text
    alone = m.generate(prompt(m, batch=1), max_new_tokens=2)
    assert alone.text == (alone.texts[0] if alone.texts else None)
