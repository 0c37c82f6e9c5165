"""What holds for every method of this area: the same twice, on texts, pictures and both, and nothing left behind."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from models import attached
from torch import Tensor

import interp
from interp import directions
from interp.hooks.errors import InputsError
from interp.hooks.examples.example import example

LAST = {"gpt2": "L1", "llava": "text.L1", "vit": "L2"}
FIRST = {"gpt2": "L0", "llava": "text.L0", "vit": "L0"}
POSITIONS = {"gpt2": "last", "llava": "last", "vit": "cls"}


def difference(logits: Tensor, inputs: Any) -> Tensor:
    last = logits if logits.ndim == 2 else logits[:, -1]
    return last[:, 0] - last[:, 1]


def pair(name: str) -> tuple[interp.Model, dict[str, Tensor], dict[str, Tensor]]:
    m = attached(name)
    base, source = (dict(example(m.module, batch=4, length=5, seed=seed)) for seed in (1, 2))
    return m, base, source


def hooks(m: interp.Model) -> list[int]:
    """How many hooks hang on each module; transformers hangs some of its own on LLaVA's vision tower."""
    return [len(child._forward_hooks) + len(child._forward_pre_hooks) for child in m.module.modules()]


Ask = Callable[[str], Tensor]


def path_patch(name: str) -> Tensor:
    m, base, source = pair(name)
    return interp.path_patch(
        m, base=base, source=source, metric=difference, senders=f"{FIRST[name]}.H*", receivers=f"{LAST[name]}.H1.q_in"
    ).values


def direct_effect(name: str) -> Tensor:
    m, base, _ = pair(name)
    return interp.patching.direct_effect(m, base, metric=difference).values


def knockout(name: str) -> Tensor:
    m, base, _ = pair(name)
    return interp.patching.knockout(m, base, metric=difference, edges=[([1, 2], POSITIONS[name])]).values


def lens(name: str) -> Tensor:
    m, base, _ = pair(name)
    seen = interp.lens(m, base, sites=f"{LAST[name]}.H*.result", answers=torch.tensor([1] * 4), top=2)
    assert seen.logprob is not None
    return seen.logprob


def exchange(name: str) -> Tensor:
    m, base, source = pair(name)
    site = f"{LAST[name]}.resid_pre"
    away = directions.mean_difference(m, base, source, site=site, positions=POSITIONS[name])
    found = directions.exchange(
        m, base=base, source=source, metric=difference, site=site, basis=away, positions=POSITIONS[name], controls=2
    )
    return torch.cat([found.inside, found.random.flatten()])


def subspace(name: str) -> Tensor:
    m, base, _ = pair(name)
    return interp.directions.subspace(
        m, base, metric=difference, sites=f"{LAST[name]}.H1.q", ranks=[1], positions=POSITIONS[name], draws=2
    ).values


def das(name: str) -> Tensor:
    m, base, source = pair(name)
    site = f"{LAST[name]}.resid_pre"
    how: dict[str, Any] = {"positions": POSITIONS[name], "dim": 2, "steps": 2, "seeds": (0,), "controls": 1}
    return interp.directions.das(m, base=base, source=source, site=site, metric=difference, **how).bases


METHODS: list[Ask] = [path_patch, direct_effect, knockout, lens, exchange, subspace, das]


@pytest.mark.parametrize("name", ["gpt2", "vit", "llava"])
@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.__name__)
def test_the_same_twice_and_nothing_left_behind(method: Ask, name: str) -> None:
    m, base, _ = pair(name)
    before = m.run(base)["logits"]
    weights = {key: value.clone() for key, value in m.module.state_dict().items()}
    random, hooked = torch.get_rng_state(), hooks(m)
    first = method(name)
    assert torch.equal(torch.get_rng_state(), random)
    assert torch.equal(first, method(name))
    assert bool(torch.isfinite(first).all())
    assert first.abs().max() > 0
    assert torch.equal(m.run(base)["logits"], before)
    assert all(torch.equal(value, weights[key]) for key, value in m.module.state_dict().items())
    assert all(parameter.grad is None for parameter in m.module.parameters())
    assert not m.handles()
    assert hooks(m) == hooked
    assert not any("forward" in vars(child) for child in m.module.modules())


@pytest.mark.parametrize("method", [m for m in METHODS if m is not lens], ids=lambda method: method.__name__)
def test_a_metric_that_is_not_finite_or_not_one_number_a_row_is_refused(
    method: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    for wrong, said in (
        (lambda g, x: g[:, -1, 0] * float("nan"), "not finite"),
        (lambda g, x: g, "one number per row"),
    ):
        monkeypatch.setitem(method.__globals__, "difference", wrong)
        with pytest.raises(InputsError, match=said):
            method("gpt2")
