"""Hidden sinks against whole patterns by hand; controls match them in number; what is read there is missed."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pandas
import pytest
import torch
from torch import Tensor

import interp
from interp.hooks.errors import InputsError
from interp.hooks.examples.example import example
from interp.planted import build
from interp.sink.sink_knockout import _drawn, _free
from interp.zoo.families import tiny


@cache
def planted() -> interp.Model:
    return interp.attach(*build("planted-decoder"))


def last(logits: Tensor, x: Any) -> Tensor:
    """Logit of one word at the last token."""
    return logits[:, -1, 7]


def test_hidden_sinks_are_gone_from_every_row_that_has_another_key() -> None:
    m = interp.attach(tiny("llama"))
    x = m.inputs(dict(example(m.module, batch=3, length=14, seed=1, padding="left")))
    s = interp.sinks(m, x, least=2)
    epsilon = float(s.first.median())
    found = interp.sink.sink_knockout(m, x, metric=last, sinks=s, epsilon=epsilon, draws=3)
    edits = []
    for n, site in enumerate(s.sites):
        keys = torch.zeros_like(x.valid)
        for b in range(3):
            start = int(s.start[b])
            keys[b, start] = float(s.first[n, b]) > epsilon
            for k in range(start + 1, 14):
                keys[b, k] = float(s.received[n, b, k]) > epsilon
        if bool(keys.any()):
            edits.append(interp.MaskKeys(site, keys=keys, positions=x.valid & (x.valid.cumsum(1) > 1)))
    want = last(m.run(x, edits=edits)["logits"], x).double() - last(m.run(x)["logits"], x).double()
    torch.testing.assert_close(found.sinks, want)
    assert len(found.heads) == len(edits)
    assert float(found.sinks.abs().max()) > 0


def test_controls_are_as_many_other_tokens_of_the_same_head_and_example() -> None:
    m = interp.attach(tiny("llama"))
    x = m.inputs(dict(example(m.module, batch=3, length=14, seed=1, padding="left")))
    s = interp.sinks(m, x, least=3)
    sinks = s.mask(float(s.first.median()))
    free = _free(s, x.valid, causal=True) & ~sinks
    seen = x.valid.flip(1).cumsum(1).flip(1)
    random = torch.Generator().manual_seed(0)
    sets = [_drawn(sinks, free, random) for _ in range(20)]
    for keys in sets:
        assert torch.equal(keys.sum(-1), sinks.sum(-1))
        assert not bool((keys & sinks).any())
        assert not bool((keys & ~x.valid[None]).any())
        assert int(seen.expand_as(keys)[keys].min()) >= 3
    assert len({tuple(keys.flatten().tolist()) for keys in sets}) > 1


def test_the_planted_sink_carries_nothing_and_what_is_read_elsewhere_does(tmp_path: Path) -> None:
    """L0.H3 rests on the first token: hidden there, it adds "static". The retrieval head's own rest is idle."""
    m = planted()
    texts = ["fox = apple , lake = stone , moon = river , fox ="] * 2
    x = m.inputs(texts)
    static = m.tokenizer("static", add_special_tokens=False)["input_ids"][0]
    s = interp.sinks(m, x, least=2, heads="L0.H3")
    k = interp.sink.sink_knockout(m, x, metric=lambda logits, x: logits[:, -1, static], sinks=s, draws=8)
    assert k.heads == ("L0.H3",)
    assert k.tokens == 1
    assert float(k.sinks.min()) > 5
    assert float(k.random.abs().max()) < 1e-3
    assert k.share == 0
    assert k.weight[0] == pytest.approx(1, abs=1e-6)
    frame = k.to_frame().set_index("hidden")
    assert frame.loc["difference", "estimate"] == pytest.approx(frame.loc["sinks", "estimate"], abs=1e-3)
    back = interp.open(k.save(tmp_path / "k"))
    pandas.testing.assert_frame_equal(back.to_frame(), k.to_frame())
    assert repr(back) == repr(k)
    assert k.plot().layout.xaxis.title.text == "effect"


def test_first_and_later_sinks_are_hidden_apart() -> None:
    m = interp.attach(tiny("llama"))
    x = m.inputs(dict(example(m.module, batch=2, length=14, seed=1)))
    s = interp.sinks(m, x, least=2)
    epsilon = float(s.received.quantile(0.8))
    both = s.mask(epsilon)
    assert bool(both[..., 0].any())
    assert bool(both[..., 1:].any())
    for which, columns in (("first", slice(0, 1)), ("later", slice(1, None))):
        keys = torch.zeros_like(both)
        keys[..., columns] = both[..., columns]
        edits = [
            interp.MaskKeys(site, keys=mine, positions=slice(1, None))
            for site, mine in zip(s.sites, keys, strict=True)
            if bool(mine.any())
        ]
        want = last(m.run(x, edits=edits)["logits"], x).double() - last(m.run(x)["logits"], x).double()
        found = interp.sink.sink_knockout(m, x, metric=last, sinks=s, which=which, epsilon=epsilon, draws=1)
        torch.testing.assert_close(found.sinks, want)


def test_it_runs_in_the_text_tower_of_a_model_that_looks() -> None:
    m = interp.load("zoo:shapes-lvlm")
    task = interp.tasks.shapes(m, n=4)
    s = interp.sinks(m, task.clean, heads="text.L*")
    assert {"image", "text"} <= set(s.kinds)
    k = interp.sink.sink_knockout(m, task.clean, metric=task.metric, sinks=s, epsilon=float(s.first.median()), draws=2)
    assert all(site.startswith("text.L") for site in k.heads)
    assert k.random.shape == (2, 4)


def test_it_runs_where_all_tokens_see_all() -> None:
    m = interp.load("zoo:shapes-vit")
    task = interp.tasks.shapes(m, n=4)
    s = interp.sinks(m, task.clean)
    epsilon = float(s.received.quantile(0.999))
    k = interp.sink.sink_knockout(m, task.clean, metric=task.metric, sinks=s, epsilon=epsilon, draws=2)
    assert 1 <= len(k.heads) < len(s.sites)
    assert k.random.shape == (2, 4)


def test_what_does_not_fit_is_refused() -> None:
    m = planted()
    x = m.inputs(["fox = apple , lake = stone , fox ="])
    s = interp.sinks(m, x, least=2)
    refused: list[tuple[dict[str, Any], str]] = [
        ({"inputs": "moon = river , moon ="}, "what interp.sinks was given"),
        ({"epsilon": 1.0}, "no head gives"),
        ({"draws": 0}, "at least 1"),
        ({"epsilon": -1.0}, "fewer other tokens"),
    ]
    for how, says in refused:
        with pytest.raises(InputsError, match=says):
            interp.sink.sink_knockout(m, **{"inputs": x, "metric": last, "sinks": s, **how})
