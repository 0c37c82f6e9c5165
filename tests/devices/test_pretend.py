"""The pretend accelerator has the CPU's values and a GPU's refusals, and finds a tensor that is in the wrong place."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from typing import Any

import pretend
import pytest
import safetensors.torch
import torch
from placed import Place
from torch import Tensor, nn
from torch.nn import functional as F

import interp
from interp.kernels.masks.base import Mask

FIRST, SECOND = f"{pretend.NAME}:0", f"{pretend.NAME}:1"

MADE: dict[str, Callable[[str], Tensor]] = {
    "tensor": lambda d: torch.tensor([1.5, 2.0], device=d),
    "arange": lambda d: torch.arange(1, 9, 2, device=d),
    "full": lambda d: torch.full((2, 2), 3, device=d),
    "eye": lambda d: torch.eye(3, device=d),
    "linspace": lambda d: torch.linspace(0, 1, 5, device=d),
    "tril_indices": lambda d: torch.tril_indices(3, 3, device=d),
    "new": lambda d: torch.ones(2, device=d).new_zeros(3),
}


@pytest.mark.parametrize("device", [FIRST, SECOND])
@pytest.mark.parametrize("name", MADE)
def test_what_is_made_on_it_has_the_values_that_the_cpu_makes(name: str, device: str) -> None:
    made = MADE[name](device)
    assert str(made.device) == device
    assert type(made) is Tensor
    assert torch.equal(made.cpu(), MADE[name]("cpu"))


def assigned(x: Tensor) -> Tensor:
    y = x.clone()
    y[:, 0] = 7
    y.view(-1)[1] = 8
    y.T[2] += y[0, 0]
    return y.unsqueeze_(0)


DONE: dict[str, Callable[[Tensor], Any]] = {
    "product": lambda x: x @ x.T,
    "number beside it": lambda x: torch.remainder(x, 2) + torch.tensor(0.5),
    "assignment through views": assigned,
    "sorted": lambda x: list(x.topk(2)) + list(x.sort(1)),
    "by a mask": lambda x: x[x > 0],
    "by indices of the CPU": lambda x: x[torch.tensor([1, 0]), :2],
    "softmax": lambda x: x.softmax(-1).bfloat16().float(),
    "attention": lambda x: F.scaled_dot_product_attention(*[x.reshape(1, 2, 2, 3)] * 3, is_causal=True),
    "singular values": lambda x: torch.linalg.svd(x).S,
    "counted": lambda x: torch.histc((x > 0).float(), bins=2, min=0, max=1),
    "scattered": lambda x: torch.zeros_like(x).index_add_(0, torch.tensor([1, 0, 1, 0], device=x.device), x),
    "empty": lambda x: torch.cat([x[:0], x]),
}


@pytest.mark.parametrize("name", DONE)
def test_what_is_done_on_it_gives_the_cpus_values(name: str) -> None:
    x = torch.randn(4, 3)
    here, there = DONE[name](x), DONE[name](x.to(FIRST))
    for one, other in zip(*([v] if torch.is_tensor(v) else v for v in (here, there)), strict=True):
        assert str(other.device) == FIRST
        torch.testing.assert_close(other.cpu(), one)


MIXED: dict[str, Callable[[Tensor, Tensor], Any]] = {
    "sum": lambda x, y: x + y,
    "product": lambda x, y: x @ y.T,
    "joined": lambda x, y: torch.cat([x, y]),
    "where": lambda x, y: torch.where(x > 0, x, y),
    "masked": lambda x, y: x.masked_fill(y > 0, 0.0),
    "masked by one truth": lambda x, y: x.masked_fill(y[0, 0] > 0, 0.0),
    "gathered": lambda x, y: x.gather(1, (y > 0).long()),
    "embedded": lambda x, y: F.embedding((y > 0).long(), x),
    "put": lambda x, y: x.index_put((torch.tensor([0, 1], device=x.device),), y[:2]),
    "compared": lambda x, y: torch.equal(x, y),
    "index of another": lambda x, y: y[(x[0] > 0).long()],
}


@pytest.mark.parametrize("other", ["cpu", SECOND])
@pytest.mark.parametrize("name", MIXED)
def test_tensors_of_two_devices_are_refused_in_one_operation(name: str, other: str) -> None:
    x = torch.randn(4, 3)
    MIXED[name](x, x)
    with pytest.raises(RuntimeError, match=r"device|indices should be"):
        MIXED[name](x.to(FIRST), x.to(other))


def test_a_number_of_the_cpu_may_stand_in_a_sum_and_of_another_device_may_not() -> None:
    x = torch.ones(2, device=FIRST)
    assert (x * torch.tensor(2.0)).tolist() == [2.0, 2.0]
    with pytest.raises(RuntimeError, match="same device"):
        x * torch.tensor(2.0, device=SECOND)


def test_it_gives_no_array_and_takes_no_draws_of_the_cpus() -> None:
    x, random = torch.ones(2, device=FIRST), torch.Generator().manual_seed(0)
    with pytest.raises(TypeError, match=r"Tensor.cpu\(\)"):
        x.numpy()
    for draw in (torch.randn, torch.rand, torch.randperm):
        with pytest.raises(RuntimeError, match="generator"):
            draw(2, device=FIRST, generator=random)


def test_gradients_cross_from_device_to_device() -> None:
    module = nn.Sequential(nn.Conv2d(2, 3, 2), nn.Flatten(), nn.LayerNorm(12), nn.Linear(12, 4))
    x = torch.randn(2, 2, 3, 3, requires_grad=True)
    wanted = torch.autograd.grad(module(x).square().sum(), [x, *module.parameters()])
    for layer, device in zip(module, (FIRST, FIRST, SECOND, SECOND), strict=True):
        layer.to(device)
    made = module[3](module[2](module[1](module[0](x.to(FIRST))).to(SECOND)))
    found = torch.autograd.grad(made.square().sum(), [x, *module.parameters()])
    assert {str(g.device) for g in found} == {"cpu", FIRST, SECOND}
    for one, other in zip(wanted, found, strict=True):
        torch.testing.assert_close(other.cpu(), one)


def test_parameters_stay_parameters_and_tied_ones_tied() -> None:
    module = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    module[1].weight = module[0].weight
    twin = copy.deepcopy(pretend.moved(module))
    for one in (module, twin):
        assert one[0].weight is one[1].weight
        assert type(one[0].weight) is nn.Parameter
        assert str(one[0].weight.device) == FIRST
    twin[0].weight.data.fill_(0.0)
    assert bool(module[0].weight.any())
    with torch.no_grad(), pytest.raises(RuntimeError, match="same device"):
        module(torch.ones(3))


def test_saved_by_way_of_the_cpu() -> None:
    x = torch.randn(3)
    data = safetensors.torch.save({"x": x.to(SECOND).cpu()})
    assert torch.equal(safetensors.torch.load(data)["x"], x)


def test_a_mask_in_the_wrong_place_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """The mistake that kept this package off every GPU: a mask made on the CPU, compared with weights that are not."""
    whole = Mask.dense
    monkeypatch.setattr(Mask, "dense", lambda self, queries, keys, *, device="cpu": whole(self, queries, keys))
    assert Place("cpu").model("llama").check(again=True).passed
    with pytest.raises(RuntimeError, match=re.escape(f"found cpu and {FIRST}")):
        Place("one").model("llama").check(again=True)


def test_a_value_in_the_wrong_place_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    change = interp.Set.change
    monkeypatch.setattr(interp.Set, "change", lambda self, x, valid: change(self, x, valid).cpu() + 0 * x[:1, :1])
    for where in ("one", "two"):
        m, x = Place(where).model("llama"), Place(where).pair("llama")["base"]
        with pytest.raises(RuntimeError, match="device"):
            m.run(x, edits=[interp.Set("L1.resid_pre", 0.5)])
