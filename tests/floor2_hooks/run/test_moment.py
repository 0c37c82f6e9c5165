"""Which columns a forward pass computes, and which of them are real, where that has to be worked out from the call."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import interp
from interp.hooks.errors import InputsError
from interp.hooks.examples.example import example
from interp.hooks.inputs.inputs import Inputs
from interp.hooks.inputs.roles import plain
from interp.hooks.run.moment import Moment
from interp.hooks.sites import Site
from interp.zoo.families import tiny

KEYS = Site(None, 0, "k")


def going_on(name: str, ids: torch.Tensor) -> Moment:
    """A prompt of four tokens whose cache holds them, and a call that adds some under this name."""
    moment = Moment(Inputs.of({"input_ids": torch.tensor([[5, 6, 7, 8]])}), None)
    cache: Any = SimpleNamespace(get_seq_length=lambda: 4)
    moment.begin((), {name: ids, "past_key_values": cache})
    return moment


@pytest.mark.parametrize("name", ["input_ids", "tokens"])
def test_a_window_of_keys_ends_with_the_new_token_whatever_ids_are_called(name: str) -> None:
    moment = going_on(name, torch.tensor([[9]]))
    assert moment.keys([3], KEYS, 3, cross=False).tolist() == [[False, True, False]]
    assert moment.keys([3], KEYS, 5, cross=False).tolist() == [[False, False, False, True, False]]


def test_a_call_that_goes_on_by_an_unknown_number_of_tokens_is_refused() -> None:
    moment = going_on("frames", torch.zeros(1, 1, 8, 8))
    with pytest.raises(InputsError, match="cannot tell how many tokens it adds from frames, past_key_values"):
        moment.keys([3], KEYS, 3, cross=False)


def test_statistics_of_queries_that_may_be_padding_are_refused() -> None:
    """The tower's inputs say another number of positions, some of them padding."""
    m = interp.attach(tiny("llava"))
    x = m.inputs(dict(example(m.module, batch=2, seed=1)))
    known = x.tower("vision")

    def with_vision(valid: torch.Tensor) -> Inputs:
        return replace(x, towers={"vision": replace(known, valid=valid, roles=plain(valid, "image"))})

    whole = torch.ones(2, known.length + 3, dtype=torch.bool)
    padded = whole.clone()
    padded[0, -2:] = False
    found = m.attention(with_vision(whole), stats=["entropy"], heads="vision.L0")
    same = m.attention(x, stats=["entropy"], heads="vision.L0")
    for site, values in same.values.items():
        torch.testing.assert_close(found.values[site]["entropy"], values["entropy"])
    with pytest.raises(InputsError, match="which queries are real is not known"):
        m.attention(with_vision(padded), stats=["entropy"], heads="vision.L0")
