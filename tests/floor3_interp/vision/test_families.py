"""Every family of vision-language models: each method runs, with its edits in decoding, or says why not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from looking import FAMILIES, asked

import interp
from interp.vision import damro, divergence, pai, paint, redistribute, reinforce, sinks

NUMPY = "ignore:__array__ implementation:DeprecationWarning:transformers.models.paligemma"
pytestmark = pytest.mark.filterwarnings(NUMPY)


def moved(m: interp.Model, x: Any) -> Any:
    found = sinks(m, x, tau=1.0, dims=range(8), first_layer=0)
    edits = redistribute(m, x, found, least=0.0, rho=0.0, last_layer=True, fraction_moved=0.9)
    return m.generate(x, edits=edits, max_new_tokens=3).logprobs


METHODS: dict[str, Callable[[interp.Model, Any], Any]] = {
    "sinks": lambda m, x: sinks(m, x, tau=2.0, first_layer=0).ratio,
    "redistribute": moved,
    "divergence": lambda m, x: divergence(m, x).values,
    "reinforce": lambda m, x: m.generate(x, edits=reinforce(m, x).edits, max_new_tokens=3).logprobs,
    "pai": lambda m, x: pai(m, x, first_layer=0).generate(max_new_tokens=3).logprobs,
    "paint": lambda m, x: paint(m, x, first_layer=0, summary_layer=-1).generate(max_new_tokens=3).logprobs,
    "damro": lambda m, x: damro(m, x, k=3, layer=-1).generate(max_new_tokens=3).logprobs,
}
CLASSLESS = "this tower has none"
CROSSED, QUERIES, PIXELS = "by cross-attention", "no map from tokens to patches", "cannot run without pixel_values"
BLIP = {
    "sinks": QUERIES, "redistribute": QUERIES, "divergence": PIXELS, "reinforce": PIXELS, "pai": PIXELS,
    "paint": QUERIES, "damro": "generates with a module inside of it",
}  # fmt: skip
REFUSED: dict[str, dict[str, str]] = {
    "llava": {}, "llava_next": {}, "internvl": {},
    **{name: dict.fromkeys(("paint", "damro"), CLASSLESS)
       for name in ("qwen2_5_vl", "qwen3_vl", "paligemma", "smolvlm", "gemma3")},
    "mllama": dict.fromkeys(("sinks", "redistribute", "pai", "paint", "damro"), CROSSED),
    "blip-2": BLIP, "instructblip": BLIP,
}  # fmt: skip


def test_every_family_is_among_them() -> None:
    assert set(REFUSED) == set(FAMILIES)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", FAMILIES)
def test_it_runs_or_says_why_not(name: str, method: str) -> None:
    m, x = asked(name)
    why = REFUSED[name].get(method)
    if why is not None:
        with pytest.raises(interp.InterpError, match=why):
            METHODS[method](m, x)
    else:
        found = METHODS[method](m, x)
        assert 2 in (found.shape[0], found.shape[-1])
        assert bool(torch.isfinite(found).all())
    assert not m.handles()
