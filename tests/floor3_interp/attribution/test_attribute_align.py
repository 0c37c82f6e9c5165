"""Estimates for pairs of unequal length: what patching with the same alignment does, to first order."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

import interp
from interp.hooks.errors import InputsError
from interp.hooks.inputs.positions import Span
from interp.metrics.shipped import LogitDifference
from interp.planted import build
from interp.zoo.families import tiny

LENGTH, LONGER = 7, 9


@cache
def model() -> interp.Model:
    return interp.attach(tiny("gpt2", dtype=torch.float64))


def asked() -> dict[str, Any]:
    base, source = ({"input_ids": torch.randint(5, 90, (2, n))} for n in (LENGTH, LONGER))
    return {"base": base, "source": source, "metric": LogitDifference(((7,), (9,)), ((8,), (6,)))}


def slope(how: dict[str, Any], site: str) -> tuple[Tensor, Tensor]:
    """A site of the base, and the metric's gradient there."""
    tape = model().run(how["base"], record=site, grad=True)
    last = tape["logits"][:, -1]
    score = last[0, 7] - last[0, 8] + last[1, 9] - last[1, 6]
    return tape[site].detach(), torch.autograd.grad(score, tape[site])[0]


@pytest.mark.parametrize("align", ["index", "suffix"])
def test_a_position_takes_what_its_partner_has(align: str) -> None:
    how, site = asked(), "L1.resid_pre"
    found = interp.attribute(model(), **how, sites=site, positions="each", align=align, verify=0)
    new = model().run(how["source"], record=site)[site]
    new = new[:, :LENGTH] if align == "index" else new[:, -LENGTH:]
    old, g = slope(how, site)
    torch.testing.assert_close(found.values, ((new - old) * g).sum(-1).T.double())
    last = model().run(how["source"])["logits"][:, -1]
    torch.testing.assert_close(found.source.double(), torch.stack([last[0, 7] - last[0, 8], last[1, 9] - last[1, 6]]))
    assert found.meta["align"] == align


@pytest.mark.parametrize("reduce", ["mean", "last"])
def test_tokens_without_a_partner_count_for_nothing(reduce: str) -> None:
    how, site = asked(), "L1.H2.z"
    spans = interp.patching.align(Span(((2, 4), (4, 6)), "a"), Span(((3, 6), (1, 4)), "b"))
    found = interp.attribute(
        model(), **how, sites=site, positions="each", align=spans, reduce=reduce, verify=0
    )  # fmt: skip
    new = model().run(how["source"], record="L1.z")["L1.z"]
    old, g = slope(how, "L1.z")
    expected = torch.zeros(LENGTH, 2, dtype=torch.float64)
    for row, ((low, high), (start, end)) in enumerate((((2, 4), (3, 6)), ((4, 6), (1, 4)))):
        put = new[row, start:end].mean(0) if reduce == "mean" else new[row, end - 1]
        for at in range(low, high) if reduce == "mean" else [high - 1]:
            expected[at, row] = ((put - old[row, at]) * g[row, at])[2].sum()
    torch.testing.assert_close(found.values, expected)


@pytest.mark.filterwarnings("ignore:Rules.*plain gradient, bit for bit")
@pytest.mark.parametrize("method", ["atp", "atp-qk", "atp*", "relp"])
def test_where_the_model_is_linear_it_is_what_patching_does(method: str) -> None:
    m = interp.attach(*build("planted-cancel"))
    right, wrong = (m.tokenizer.convert_tokens_to_ids(word) for word in ("yes", "no"))
    how: dict[str, Any] = {"base": "off ? ?", "source": "on ? ? ?", "metric": LogitDifference(((right,),), ((wrong,),))}
    exact = interp.patch(m, **how, sites="L0.H*.z", align="suffix").mean
    found = interp.attribute(m, **how, sites="L0.H*.z", align="suffix", method=method, verify="all")
    assert exact.tolist() == pytest.approx([4, -4, 0, 2], abs=1e-4)
    if method != "atp*":
        torch.testing.assert_close(found.mean, exact, atol=1e-4, rtol=0)
        for direction in ("source into base", "base into source"):
            assert found.meta["verify"][direction]["pearson"] == pytest.approx(1.0, abs=1e-6)
    else:
        assert found.mean[2] == 0
        assert float(found.mean.abs().max()) > 1


def test_what_has_no_meaning_is_refused() -> None:
    how = asked()
    with pytest.raises(InputsError, match="say align="):
        interp.attribute(model(), **how, sites="L1.z")
    for method in ("ig", "conductance"):
        with pytest.raises(InputsError, match="line up token by token"):
            interp.attribute(model(), **how, sites="L1.z", align="index", method=method, verify=0)
    with pytest.raises(InputsError, match="sources that are runs"):
        interp.attribute(model(), **{**how, "source": "zero"}, sites="L1.z", align="index", verify=0)
