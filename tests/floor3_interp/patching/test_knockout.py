"""Blocked edges are those of the definition, find the way information takes, and must exist."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from models import attached
from torch import Tensor

import interp
from interp.hooks.errors import InputsError, SiteError
from interp.hooks.examples.example import example
from interp.planted import build
from interp.planted.probes import probe_task


def difference(logits: Tensor, inputs: Any) -> Tensor:
    last = logits if logits.ndim == 2 else logits[:, -1]
    return last[:, 0] - last[:, 1]


@pytest.mark.parametrize(("name", "window"), [("llama", 1), ("llama", 2), ("vit", 2)])
def test_windows_are_those_of_the_definition(name: str, window: int) -> None:
    m = attached(name)
    x = dict(example(m.module, batch=2, length=7, seed=3))
    e = interp.patching.knockout(m, x, metric=difference, edges=[([1, 2], [6]), ([0], [4])], window=window)
    count = len(m.anatomy.tower(None, text="").layers)
    assert len(e.sites) == count - window + 1
    for start, site in enumerate(e.sites):
        layers = list(range(start, start + window))
        assert site == (f"L{start}.attention" if window == 1 else f"L{layers[0]}-{layers[-1]}.attention")
        torch.testing.assert_close(e.values[start].float(), by_hand(m, x, layers), atol=3e-5, rtol=1e-3)
    assert e.noise_floor < 1e-4


def by_hand(m: interp.Model, x: Any, layers: list[int]) -> Tensor:
    """Patterns with the two edges cut out and the rest renormalised, layer by layer, put in as dense patterns."""
    edits: list[Any] = []
    for layer in layers:
        pattern = m.run(x, edits=edits, record=f"L{layer}.pattern")[f"L{layer}.pattern"].double()
        pattern[:, :, 6, [1, 2]] = 0
        pattern[:, :, 4, 0] = 0
        edits.append(interp.Set(f"L{layer}.pattern", (pattern / pattern.sum(-1, keepdim=True)).float()))
    return difference(m.run(x, edits=edits)["logits"], None) - difference(m.run(x)["logits"], None)


def test_one_head_at_a_time_finds_the_planted_reader() -> None:
    m = interp.attach(*build("planted-lvlm"))
    task = probe_task("planted-lvlm", "question", model=m)
    e = interp.patching.knockout(m, task.clean, metric=task.metric, edges=[("image", "last")], heads="text.L*.H*")
    assert e.top(1)["site"].item() == "text.L1.H1"
    assert float(e.mean.min()) == pytest.approx(-float(e.base), abs=0.05)
    others = [value for site, value in zip(e.sites, e.mean.tolist(), strict=True) if site != "text.L1.H1"]
    assert others == [0.0] * 7


def test_the_picture_reaches_the_answer_in_the_layer_where_it_was_planted() -> None:
    m = interp.attach(*build("planted-lvlm"))
    task = probe_task("planted-lvlm", "question", model=m)
    e = interp.patching.knockout(m, task.clean, metric=task.metric, edges=[("image", "last")])
    assert e.sites == ("text.L0.attention", "text.L1.attention")
    assert float(e.mean[0]) == 0.0
    assert float(e.mean[1]) == pytest.approx(-float(e.base), abs=0.05)
    whole = interp.patching.knockout(m, task.clean, metric=task.metric, edges=[("image", "last")], window="all")
    assert whole.sites == ("text.L0-1.attention",)
    assert float(whole.mean) == pytest.approx(float(e.mean[1]), abs=1e-4)
    seen = interp.patching.knockout(m, task.clean, metric=task.metric, edges=[("patch", "cls")], tower="vision")
    assert float(seen.values.abs().max()) == 0.0


def test_an_edge_in_the_way_of_a_circuit_and_one_beside_it() -> None:
    """`<bos> fox apple lake stone moon fox`: L0.H1 brings fox to apple, L1.H4 brings apple to the last fox."""
    m = interp.attach(*build("planted-decoder"))
    task = probe_task("planted-decoder", "induction", model=m)
    how: dict[str, Any] = {"metric": task.metric}
    first = interp.patching.knockout(m, task.clean, edges=[([1], [2])], **how)
    second = interp.patching.knockout(m, task.clean, edges=[([2], "last")], **how)
    beside = interp.patching.knockout(m, task.clean, edges=[([3], [5])], **how)
    assert float(first.mean[0]) < -10 < -0.1 < float(first.mean[1])
    assert float(second.mean[1]) < -10 < -0.1 < float(second.mean[0])
    assert float(beside.values.abs().max()) < 0.1


def test_what_has_no_meaning_is_refused() -> None:
    m = attached("llama")
    x = dict(example(m.module, batch=2, length=7, seed=3))
    how: dict[str, Any] = {"metric": difference}
    with pytest.raises(InputsError, match="at least one edge"):
        interp.patching.knockout(m, x, edges=[], **how)
    with pytest.raises(InputsError, match="no role 'imgae'"):
        interp.patching.knockout(m, x, edges=[("imgae", "last")], **how)
    with pytest.raises(InputsError, match="select nothing"):
        interp.patching.knockout(m, x, edges=[("image", "last")], **how)
    with pytest.raises(InputsError, match="nothing flows"):
        interp.patching.knockout(m, x, edges=[("last", "first")], **how)
    with pytest.raises(SiteError, match="window is"):
        interp.patching.knockout(m, x, edges=[("first", "last")], window=9, **how)
    with pytest.raises(SiteError, match="takes no window"):
        interp.patching.knockout(m, x, edges=[("first", "last")], window=2, heads="L*.H*", **how)
    with pytest.raises(SiteError, match="without a component"):
        interp.patching.knockout(m, x, edges=[("first", "last")], heads="L*.H*.z", **how)
