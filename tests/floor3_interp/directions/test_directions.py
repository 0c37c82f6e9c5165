"""Directions are differences of means, exchanges are those of the definition, and controls are what they say."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from models import attached
from torch import Tensor

import interp
from interp import directions
from interp.directions.vectors import random_bases
from interp.hooks.errors import InputsError, SiteError
from interp.hooks.examples.example import example
from interp.planted import build
from interp.planted.gates import LAYOUT
from interp.planted.probes import probe_task


def difference(logits: Tensor, inputs: Any) -> Tensor:
    return logits[:, -1, 0] - logits[:, -1, 1]


def asked() -> tuple[interp.Model, dict[str, Tensor], dict[str, Tensor]]:
    m = attached("llama")
    base, source = (dict(example(m.module, batch=3, length=6, seed=seed)) for seed in (1, 2))
    return m, base, source


def test_a_direction_is_the_difference_of_means() -> None:
    m, a, b = asked()
    got = directions.mean_difference(m, a, b, site="L1.resid_pre", positions=[1, 2])
    means = [m.run(x, record="L1.resid_pre")["L1.resid_pre"][:, 1:3].double().flatten(0, 1).mean(0) for x in (a, b)]
    torch.testing.assert_close(got.double(), means[0] - means[1], atol=1e-6, rtol=1e-5)
    head = directions.mean_difference(m, a, b, site="L1.H2.z")
    z = [m.run(x, record="L1.z")["L1.z"][:, -1, 2].double().mean(0) for x in (a, b)]
    torch.testing.assert_close(head.double(), z[0] - z[1], atol=1e-6, rtol=1e-5)


def test_random_controls_have_the_length_and_the_rank_of_what_they_control() -> None:
    drawn = directions.random_like(torch.tensor([3.0, 4.0, 0.0]), 50, seed=1)
    torch.testing.assert_close(drawn.norm(dim=1), torch.full((50,), 5.0))
    assert len(torch.unique(drawn[:, 0])) == 50
    bases = random_bases(7, 3, 5)
    torch.testing.assert_close(bases.mT @ bases, torch.eye(3).expand(5, 3, 3), atol=1e-5, rtol=0)
    assert torch.equal(bases, random_bases(7, 3, 5))


def test_exchanges_are_those_of_the_definition() -> None:
    m, base, source = asked()
    site, basis = "L1.resid_pre", torch.randn(32, 4)
    e = directions.exchange(m, base=base, source=source, metric=difference, site=site, basis=basis, controls=3)
    old, new = (m.run(x, record=site)[site].double() for x in (base, source))
    inside = basis.double() @ torch.linalg.pinv(basis.double())
    plain = difference(m.run(base)["logits"], None)
    wanted = {
        "inside": old + (new - old) @ inside.T,
        "outside": new - (new - old) @ inside.T,
        "whole": new,
    }
    for name, value in wanted.items():
        edited = m.run(base, edits=[interp.Set(site, value.float(), positions="last")])["logits"]
        torch.testing.assert_close(getattr(e, name).float(), difference(edited, None) - plain, atol=3e-5, rtol=1e-3)
    assert e.random.shape == (3, 3)
    assert e.noise_floor == 0.0
    assert 0.25 <= e.exceeded <= 1.0
    assert list(e.to_frame()["part"]) == ["inside", "outside", "whole", "random"]
    everything = directions.exchange(
        m, base=base, source=source, metric=difference, site=site, basis=torch.eye(32), controls=0
    )
    torch.testing.assert_close(everything.inside, everything.whole, atol=1e-5, rtol=1e-4)
    assert float(everything.outside.abs().max()) < 1e-4


def test_the_planted_direction_carries_the_answer_and_random_ones_do_not() -> None:
    m = interp.attach(*build("planted-cancel"))
    task = probe_task("planted-cancel", model=m)
    found = directions.mean_difference(m, task.clean, task.corrupt, site="L0.resid_post")
    planted = torch.zeros(len(found))
    planted[LAYOUT.at("yes") + LAYOUT.at("no")] = torch.tensor([1.0, -1.0])
    assert float(torch.cosine_similarity(found, planted, dim=0)) == pytest.approx(1.0, abs=1e-3)
    how: dict[str, Any] = {"base": task.corrupt, "source": task.clean, "metric": task.metric, "site": "L0.resid_post"}
    e = directions.exchange(m, basis=planted, **how)
    assert float(e.inside) == pytest.approx(2.0, abs=1e-3)
    assert float(e.outside) == pytest.approx(0.0, abs=1e-3)
    assert float(e.random.abs().max()) < 1.2
    steered = m.run(task.corrupt, edits=[interp.Add("L0.resid_post", found, positions="last")])["logits"]
    assert float(task.metric(steered, task.corrupt)) == pytest.approx(1.0, abs=1e-3)
    without = m.run(task.clean, edits=[interp.edits.Project("L0.resid_post", found, positions="last")])["logits"]
    assert float(task.metric(without, task.clean)) == pytest.approx(0.0, abs=1e-3)


def test_what_has_no_meaning_is_refused() -> None:
    m, base, source = asked()
    how: dict[str, Any] = {"base": base, "source": source, "metric": difference, "site": "L1.resid_pre"}
    with pytest.raises(SiteError, match="32 wide"):
        directions.exchange(m, basis=torch.randn(31, 2), **how)
    with pytest.raises(SiteError, match="rank of 1 to 32"):
        directions.exchange(m, basis=torch.randn(32, 33), **how)
    with pytest.raises(SiteError, match="not zero"):
        directions.exchange(m, basis=torch.zeros(32, 1), **how)
    with pytest.raises(SiteError, match="name one head"):
        directions.exchange(m, basis=torch.randn(8, 1), **{**how, "site": "L1.z"})
    with pytest.raises(SiteError, match="no values per position"):
        directions.mean_difference(m, base, source, site="L1.H0.pattern")
    with pytest.raises(SiteError, match="rank of 1 to 7"):
        random_bases(7, 8)
    with pytest.raises(InputsError, match="line up"):
        directions.exchange(
            m, basis=torch.randn(32, 1), **{**how, "source": {"input_ids": source["input_ids"][:, :-1]}}
        )
