"""What heads write is what their definition says, from one pass however many layers there are."""

from __future__ import annotations

from typing import Any

import models
import pytest
import torch

import interp
from interp.heads import sets
from interp.hooks.examples.example import example
from interp.hooks.sites import Site


def asked(name: str) -> tuple[interp.Model, Any, list[Site]]:
    m = models.attached(name, dtype=torch.float64)
    x = m.inputs(dict(example(m.module, batch=2, length=6, seed=3)))
    tower = m.ready().tower(None, text="")
    return m, x, [Site(None, layer.index, "attention") for layer in tower.layers]


def forwards(m: interp.Model) -> list[int]:
    """Counts calls of the model's own forward."""
    counted: list[int] = []
    m.module.register_forward_pre_hook(lambda *_: counted.append(1))
    return counted


@pytest.mark.parametrize("name", ["gpt2", "llama", "gemma2"])
def test_norms_are_those_of_recorded_writes_and_take_one_pass(name: str) -> None:
    m, x, sites = asked(name)
    expected: dict[str, float] = {}
    for site in sites:
        written = m.run(x, record=f"L{site.layer}.result")[f"L{site.layer}.result"].double()
        lengths = written.square().sum(-1).sqrt()[x.valid].mean(0)
        expected |= {f"L{site.layer}.H{head}": float(value) for head, value in enumerate(lengths)}
    counted = forwards(m)
    found = sets.output_norms(m, x, sites)
    assert len(counted) == 1
    assert found == pytest.approx(expected, rel=1e-5)


def test_layers_that_do_not_fit_together_take_another_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    m, x, sites = asked("gpt2")
    whole = sets.output_norms(m, x, sites, positions=[1, 2])
    written = m.run(x, record="L0.result", positions=[1, 2])["L0.result"].double()
    assert whole["L0.H1"] == pytest.approx(float(written[:, :, 1].norm(dim=-1).mean()), rel=1e-5)
    monkeypatch.setattr(sets, "ROOM", 1)
    counted = forwards(m)
    assert sets.output_norms(m, x, sites, positions=[1, 2]) == whole
    assert len(counted) == len(sites) > 1
