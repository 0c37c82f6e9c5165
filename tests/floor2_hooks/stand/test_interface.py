"""The wrapped attention call: only watched modules, only while watched, and the call's own terms kept."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers.modeling_utils import AttentionInterface

from interp.hooks.examples.example import example
from interp.hooks.stand.call import Call, Tap
from interp.hooks.stand.interface import Switch
from interp.zoo.families import tiny

OWN = AttentionInterface.get_interface


class Looks(Tap):
    """A tap that keeps the calls."""

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self.on = True

    def live(self) -> bool:
        return self.on

    def record(self, call: Call) -> None:
        self.calls.append(call)


def test_only_watched_modules_pass_through_a_tap_and_only_while_it_is_live() -> None:
    model, other, tap = tiny("llama"), tiny("llama", seed=1), Looks()
    kwargs = example(model, batch=2)
    attention = model.model.layers[1].self_attn
    before = model(**kwargs).logits
    Switch.watch(attention, tap)
    try:
        assert torch.equal(model(**kwargs).logits, before)
        other(**kwargs)
        assert [call.module for call in tap.calls] == [attention]
        tap.on = False
        model(**kwargs)
        assert len(tap.calls) == 1
    finally:
        Switch.forget(attention, tap)
    assert AttentionInterface.get_interface is OWN
    model(**kwargs)
    assert len(tap.calls) == 1


def test_forgetting_twice_or_what_was_never_watched_is_harmless() -> None:
    model, tap, second = tiny("gpt2"), Looks(), Looks()
    Switch.forget(model, tap)
    Switch.watch(model, tap)
    Switch.forget(model, second)
    assert Switch.watched() == 1
    Switch.forget(model, tap)
    Switch.forget(model, tap)
    assert Switch.watched() == 0
    assert AttentionInterface.get_interface is OWN


@pytest.mark.parametrize(
    ("family", "attn", "says"),
    [
        ("gemma2", "eager", {"softcap": 2.0, "causal": False}),
        ("t5", "sdpa", {"scale": 1.0}),
        ("whisper", "sdpa", {"scale": 1.0}),
        ("llama", "sdpa", {"causal": True, "softcap": None}),
        ("bert", "sdpa", {"causal": False}),
    ],
)
def test_the_calls_own_terms_are_read(family: str, attn: Any, says: dict[str, Any]) -> None:
    model, tap = tiny(family, attn=attn), Looks()
    for child in model.modules():
        Switch.watch(child, tap)
    model(**example(model))
    for child in model.modules():
        Switch.forget(child, tap)
    assert tap.calls
    for name, value in says.items():
        assert getattr(tap.calls[-1], name) == value, name
    if family == "t5":
        assert any(call.bias is not None for call in tap.calls)
    assert all(call.implementation == attn for call in tap.calls)


def test_a_sink_is_read() -> None:
    model, tap = tiny("gpt_oss"), Looks()
    attention = model.model.layers[0].self_attn
    Switch.watch(attention, tap)
    model(**example(model))
    Switch.forget(attention, tap)
    assert tap.calls[0].sinks is attention.sinks
