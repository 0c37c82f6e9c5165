"""Alignment search finds the planted signal on rows it has not seen, random bases do not, the model stays as it was."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from models import attached

import interp
from interp.hooks.errors import InputsError, SiteError
from interp.hooks.examples.example import example
from interp.metrics.shipped import LogitDifference
from interp.planted import build
from interp.planted.gates import LAYOUT


def signals(m: interp.Model) -> tuple[Any, Any, list[str]]:
    """Pairs that differ in the signal and in what stands around it, and what the source's signal asks for."""
    fillers = list(itertools.product(["left", "right", "?"], repeat=2))
    base = [f"{'on' if n % 2 else 'off'} {a} {b}" for n, (a, b) in enumerate(fillers)]
    source = [f"{'off' if n % 2 else 'on'} {b} {b}" for n, (_, b) in enumerate(fillers)]
    return m.prepare(base), m.prepare(source), [" no" if n % 2 else " yes" for n in range(len(fillers))]


def test_the_planted_signal_is_found_in_one_dimension_by_every_seed() -> None:
    m = interp.attach(*build("planted-cancel"))
    before = {name: p.clone() for name, p in m.module.named_parameters()}
    base, source, labels = signals(m)
    how: dict[str, Any] = {"site": "L0.resid_post", "dim": 1, "labels": labels, "steps": 60, "rate": 0.05}
    found = interp.directions.das(m, base=base, source=source, seeds=(0, 1), heldout=0.33, controls=10, **how)
    assert found.train.tolist() == [1.0, 1.0]
    assert found.heldout.tolist() == [1.0, 1.0]
    assert float(found.random.mean()) < 0.3
    assert (found.whole, found.unchanged) == (1.0, 0.0)
    planted = torch.zeros(found.bases.shape[1])
    planted[LAYOUT.at("yes") + LAYOUT.at("no")] = torch.tensor([1.0, -1.0]) / 2**0.5
    for basis in found.bases:
        assert abs(float(basis[:, 0] @ planted)) > 0.9
        torch.testing.assert_close(basis.T @ basis, torch.eye(1), atol=1e-4, rtol=0)
    assert bool((found.losses[:, -1] < found.losses[:, 0]).all())
    assert all(torch.equal(p, before[name]) and p.grad is None for name, p in m.module.named_parameters())
    again = interp.directions.das(m, base=base, source=source, seeds=(0, 1), heldout=0.33, controls=10, **how)
    assert torch.equal(again.bases, found.bases)
    assert "held-out" in repr(found)
    assert list(found.to_frame()["seed"]) == [0, 1]


def test_a_metric_in_the_place_of_labels_and_a_head_in_the_place_of_the_residual() -> None:
    m = interp.attach(*build("planted-cancel"))
    base, source, labels = signals(m)
    ids = {word: m.tokenizer.convert_tokens_to_ids(word.strip()) for word in (" yes", " no")}
    right = tuple((ids[word],) for word in labels)
    wrong = tuple((ids[" no" if word == " yes" else " yes"],) for word in labels)
    found = interp.directions.das(
        m, base=base, source=source, site="L0.H3.z", dim=1, metric=LogitDifference(right, wrong), seeds=(0,),
        heldout=0.33, steps=40, rate=0.05, controls=2,
    )  # fmt: skip
    assert found.heldout.tolist() == [1.0]


def test_what_has_no_meaning_is_refused() -> None:
    m = attached("llama")
    base, source = (dict(example(m.module, batch=4, length=6, seed=seed)) for seed in (1, 2))
    how: dict[str, Any] = {"base": base, "source": source, "site": "L1.resid_pre", "labels": [1, 2, 3, 4]}
    with pytest.raises(SiteError, match="dim is 1 to that"):
        interp.directions.das(m, dim=33, **how)
    with pytest.raises(InputsError, match="one of labels= and metric="):
        interp.directions.das(m, dim=1, **{**how, "labels": None})
    with pytest.raises(InputsError, match="one token for each"):
        interp.directions.das(m, dim=1, **{**how, "labels": [1, 2]})
    with pytest.raises(InputsError, match="keep out"):
        interp.directions.das(m, dim=1, heldout=0.0, **how)
    with pytest.raises(SiteError, match="name one head"):
        interp.directions.das(m, dim=1, **{**how, "site": "L1.z"})
