"""In a bfloat16 model what an attribution sums of the model's own numbers is summed in float32.

Oracle: the model's values and gradients as it makes them, in bfloat16, by plain hooks and autograd; their products and
sums in float64. In bfloat16 each sum would be off by about 1 in 256, which is a thousand times the tolerance here.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import interp
from interp.attribution.relprop import _AlphaBeta, _Product, _Sum, divided
from interp.zoo.families import tiny

TOLERANCE = 1e-5
IDS = torch.tensor([[5, 9, 17, 3, 20, 11, 8, 2], [7, 1, 13, 13, 4, 30, 6, 10]])
OTHER = torch.tensor([[5, 9, 22, 3, 20, 11, 8, 9], [7, 1, 13, 28, 4, 30, 16, 10]])


def metric(logits: Tensor, inputs: Any) -> Tensor:
    return (logits[:, -1, 3] - logits[:, -1, 4]).float()


@pytest.fixture
def m() -> interp.Model:
    return interp.attach(tiny("llama", dtype=torch.bfloat16))


def near(found: Tensor, wanted: Tensor) -> None:
    assert found.shape == wanted.shape
    assert float((found.double() - wanted).abs().max()) <= TOLERANCE * float(wanted.abs().max())


def slope(m: interp.Model, embedded: Tensor) -> Tensor:
    """The metric's gradient at the embedding, as the model makes it."""
    leaf = embedded.detach().requires_grad_()
    return torch.autograd.grad(metric(m.module(inputs_embeds=leaf).logits, None).sum(), leaf)[0]


def line(start: Tensor, end: Tensor, steps: int) -> list[Tensor]:
    return [(start.float() + (k + 0.5) / steps * (end.float() - start.float())).to(start.dtype) for k in range(steps)]


def test_gradient_times_input(m: interp.Model) -> None:
    pytest.importorskip("captum")
    e = m.module.get_input_embeddings()(IDS).detach()
    found = interp.relevance(m, {"input_ids": IDS}, metric=metric)
    near(found.values, (e.double() * slope(m, e).double()).sum(-1))


def test_the_mean_gradient_of_a_line(m: interp.Model) -> None:
    pytest.importorskip("captum")
    e, steps = m.module.get_input_embeddings()(IDS).detach(), 16
    points = line(torch.zeros_like(e), e, steps)
    mean = torch.stack([slope(m, point).double() for point in points]).mean(0)
    found = interp.relevance(m, {"input_ids": IDS}, metric=metric, method="ig", steps=steps)
    near(found.values, (e.double() * mean).sum(-1))


def recorded(m: interp.Model, layer: int, **inputs: Tensor) -> Tensor:
    """What the output projection reads, in the graph."""
    kept = []
    out = m.module.model.layers[layer].self_attn.o_proj
    handle = out.register_forward_pre_hook(lambda _, args: kept.append(args[0]))
    logits = m.module(**inputs).logits
    handle.remove()
    (gradient,) = torch.autograd.grad(metric(logits, None).sum(), kept[0])
    return torch.stack([kept[0].detach(), gradient])


@pytest.mark.parametrize("steps", [0, 12])
def test_estimates_of_heads(m: interp.Model, steps: int) -> None:
    """Plain attribution patching, and integrated gradients."""
    embed = m.module.get_input_embeddings()
    start, end = embed(IDS).detach(), embed(OTHER).detach()
    change, heads = 0.0, m.anatomy.layer(m.anatomy.one("L1.z")).heads
    base, source = (recorded(m, 1, inputs_embeds=e.requires_grad_())[0].double() for e in (start, end))
    change = source - base
    points = line(start.detach(), end.detach(), steps) if steps else [start.detach()]
    mean = torch.stack([recorded(m, 1, inputs_embeds=p.requires_grad_())[1].double() for p in points]).mean(0)
    wanted = (change * mean).unflatten(-1, (heads, -1)).sum((1, 3)).T
    found = interp.attribute(
        m, base={"input_ids": IDS}, source={"input_ids": OTHER}, metric=metric, sites="L1.H*.z",
        method="ig" if steps else "atp", steps=steps or 1, verify=0,
    )  # fmt: skip
    near(found.values, wanted)


def test_relevance_through_operators_is_summed_in_float32() -> None:
    """The rules on bfloat16 operands are those on the same numbers in float64, rounded once."""
    draw = torch.Generator().manual_seed(0)
    a, b, w, r = (torch.randn(2, 64, 64, generator=draw).bfloat16() for _ in range(4))
    up, down, plus, minus = (x.double() for x in (a.clamp(min=0), a.clamp(max=0), w[0].clamp(min=0), w[0].clamp(max=0)))
    share = divided(r.double(), up @ plus.T + down @ minus.T)
    once(_AlphaBeta, (a, w[0], a @ w[0].T), r, [up * (share @ plus) + down * (share @ minus)])
    x, y = a.double(), b.double()
    share = divided(r.double(), x @ y)
    once(_Product, (a, b), r, [x * (share @ y.mT) / 2, y * (x.mT @ share) / 2])
    share = divided(r.double(), x + y)
    parts, axes = [x * share, y * share], (1, 2)
    sizes = [p.sum(axes, keepdim=True) for p in parts]
    whole, total = sizes[0].abs() + sizes[1].abs(), r.double().sum(axes, keepdim=True)
    shares = [divided(divided(s.abs(), whole) * total, s) for s in sizes]
    once(_Sum, (a, b), r, [p * s for p, s in zip(parts, shares, strict=True)])


def once(rule: Any, given: tuple[Tensor, ...], relevance: Tensor, wanted: list[Tensor]) -> None:
    """Relevance that comes back is what is wanted, within one rounding to bfloat16 (half a unit, 1 in 256)."""
    leaves = [x.clone().requires_grad_() for x in given[: len(wanted)]]
    found = torch.autograd.grad(rule.apply(*leaves, *given[len(wanted) :]), leaves, relevance)
    for one, want in zip(found, wanted, strict=True):
        assert one.dtype == torch.bfloat16
        off = (one.double() - want).abs() - want.abs() * 2**-8
        assert float((off / want.abs().mean()).max()) < 1e-5
