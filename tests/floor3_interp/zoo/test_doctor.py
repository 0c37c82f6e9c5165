"""Every family passes its checks in two cells here; `interp doctor --families` runs them all."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from interp.hooks.errors import CheckFailed
from interp.hooks.survey.checks import check
from interp.hooks.survey.trace import trace
from interp.zoo.doctor import CELLS, Cell, examine
from interp.zoo.families import FAMILIES

QUICK = (
    Cell("sdpa", torch.float32, 3, "left"),
    Cell("eager", torch.float32, 3, "left"),
    Cell("sdpa", torch.float32, 1, None),
)


@pytest.mark.parametrize("family", FAMILIES)
def test_family(family: str) -> None:
    row = examine(family, QUICK)
    assert row.passed, str(row)
    assert row.verdicts["off"] == row.verdicts["fired"] == row.verdicts["sum"] == row.verdicts["zero"] == "pass"


@pytest.mark.parametrize("family", ["gpt2", "gpt_neox", "gemma2", "bert", "vit", "llava"])
def test_every_cell_of_some_families(family: str) -> None:
    row = examine(family, CELLS)
    assert row.passed, str(row)


def test_there_are_enough_families() -> None:
    assert len(FAMILIES) >= 38


class Twisted(nn.Module):
    """A projection that is not linear in its heads."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.weight = inner.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.linear(x, self.weight) + 0.1 * x.sum(-1, keepdim=True).square()


def test_a_model_that_does_not_do_what_we_say_fails_its_checks() -> None:
    from interp.hooks.examples.example import example
    from interp.zoo.families import tiny

    module = tiny("llama")
    inputs = example(module)
    anatomy = trace(module, inputs)
    assert check(module, anatomy, inputs).passed
    attention = module.model.layers[1].self_attn
    attention.o_proj = Twisted(attention.o_proj)
    report = check(module, anatomy, inputs)
    assert {line.name: line.verdict for line in report.lines}["sum"] == "fail"
    with pytest.raises(CheckFailed, match="L1"):
        report.raise_failed()


def test_a_random_model_fails_its_checks() -> None:
    from interp.hooks.examples.example import example
    from interp.zoo.families import tiny

    module = tiny("gpt2")
    inputs = example(module)
    anatomy = trace(module, inputs)
    module.train()
    module.transformer.drop.p = 0.5
    report = check(module, anatomy, inputs)
    assert report.lines[0].verdict == "fail"
    assert "deterministic" in report.lines[0].note
