"""Gradients at every site are those of finite differences, and the model comes out as it went in."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import interp
from interp.hooks.errors import InputsError, ModelError
from interp.hooks.examples.example import example
from interp.hooks.sites import Site
from interp.hooks.slopes.gradients import Dropped, graph
from interp.zoo.families import tiny

PLACES = ["resid_mid", "resid_post", "attn_in", "mlp_in", "attn_out", "mlp_out", "mlp_write", "neurons", "q", "k", "z"]


def reading(logits: Tensor) -> Tensor:
    flat = logits.flatten(1)
    return flat[:, -7:].sum(1) - 2 * flat[:, 0]


def sites(m: interp.Model, tower: str) -> list[Site]:
    layer = m.anatomy.towers[tower].layers[0]
    one = None if len(m.anatomy.towers) == 1 else tower
    found = [c for c in PLACES if c in layer.ports or c in ("q", "k", "z")]
    return [Site(one, layer.index, component) for component in found]


@pytest.mark.parametrize(
    ("name", "tower"),
    [("gpt2", "text"), ("opt", "text"), ("gptj", "text"), ("bart", "encoder"), ("mllama", "vision2")],
)  # fmt: skip
def test_gradients_are_finite_differences_at_each_site_by_itself(name: str, tower: str) -> None:
    m = interp.attach(tiny(name))
    anatomy, x = m.ready(), m.inputs(example(m.module, batch=2, length=6, seed=1))
    skipped = {"q", "k", "z"} if not anatomy.towers[tower].layers[0].seen else set()
    wanted = [s for s in sites(m, tower) if s.component not in skipped]
    slopes = graph(m.module, anatomy, x, m.called_with(x.kwargs), sites=wanted, score=reading).gradients()
    for site in wanted:
        step = torch.randn(slopes[site].shape) * 3e-3
        ends = [reading(m.run(x, edits=[interp.Add(str(site), by * step)])["logits"]) for by in (1.0, -1.0)]
        found, expected = float((ends[0] - ends[1]).sum()) / 2, float((slopes[site] * step).sum())
        assert found == pytest.approx(expected, rel=0.1, abs=3e-3), site


def test_dropping_a_layer_stops_exactly_what_passes_through_it() -> None:
    m = interp.attach(tiny("gpt2"))
    anatomy, x = m.ready(), m.inputs(example(m.module, batch=1, length=6))
    dropped = Dropped()
    places = [*anatomy.sites("L*.resid_pre"), *anatomy.sites("L*.attn_out")]
    run = graph(m.module, anatomy, x, m.called_with(x.kwargs), sites=places, score=reading, dropped=dropped)
    plain = run.gradients(again=True)
    assert list(dropped.layers) == [("text", 0), ("text", 1)]
    dropped.layer = ("text", 1)
    held = run.gradients()
    after = anatomy.sites("L1.resid_pre")[0]
    assert not bool(held[anatomy.sites("L1.attn_out")[0]].any())
    with torch.no_grad():
        writes = m.run(x, record=["L1.resid_pre", "L1.attn_write", "L1.mlp_write"])
    fixed = {n: writes[f"L1.{n}"] for n in ("attn_write", "mlp_write")}
    step = torch.randn(held[after].shape) * 1e-2
    ends = [
        reading(m.run(x, edits=[interp.Add("L1.resid_pre", by * step),
                                *(interp.Set(f"L1.{n}", v) for n, v in fixed.items())])["logits"])
        for by in (1.0, -1.0)
    ]  # fmt: skip
    assert float(ends[0] - ends[1]) / 2 == pytest.approx(float((held[after] * step).sum()), rel=0.05, abs=1e-3)
    assert not torch.equal(held[after], plain[after])


def test_parameters_are_frozen_only_while_it_runs() -> None:
    m = interp.attach(tiny("llama"))
    first = next(m.module.parameters())
    first.requires_grad_(False)
    asked = [p.requires_grad for p in m.module.parameters()]
    x = m.inputs(example(m.module, batch=1, length=5))
    m.ready()
    run = graph(m.module, m.anatomy, x, m.called_with(x.kwargs), sites=m.anatomy.sites("L*.z"), score=reading)
    run.gradients()
    assert [p.requires_grad for p in m.module.parameters()] == asked
    assert all(p.grad is None for p in m.module.parameters())
    with pytest.raises(InputsError, match="carries no gradient"):
        graph(m.module, m.anatomy, x, m.called_with(x.kwargs), sites=m.anatomy.sites("L*.z"),
              score=lambda g: (g > 0).float().flatten(1).sum(1))  # fmt: skip
    assert [p.requires_grad for p in m.module.parameters()] == asked
    assert not m.handles()


def test_a_gradient_that_is_not_finite_is_named() -> None:
    m = interp.attach(tiny("llama"))
    m.ready()
    x = m.inputs(example(m.module, batch=1, length=5))
    run = graph(
        m.module, m.anatomy, x, m.called_with(x.kwargs), sites=m.anatomy.sites("L0.z"),
        score=lambda g: (g.flatten(1).sum(1) * 0).sqrt(),
    )  # fmt: skip
    with pytest.raises(ModelError, match=r"L0\.z is not finite"):
        run.gradients()
