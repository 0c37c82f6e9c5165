"""MoH's router: its gates and its balance by hand, and a model in which every token needs one head that is known."""

from __future__ import annotations

import math
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from models import attached, mpt
from torch import Tensor

import interp
from interp.edits import MixHeads, RouteHeads
from interp.hooks.errors import EditError, InputsError
from interp.hooks.examples.example import example
from interp.operators import route_heads


def drawn(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(4), dtype=torch.float64)


def by_hand(x: list[float], router: list[list[float]], heads: int, keep: int, shared: list[int]) -> list[float]:
    """The gates of one token."""
    said = [sum(a * b for a, b in zip(row, x, strict=True)) for row in router]

    def softmax(some: list[float]) -> list[float]:
        total = sum(math.exp(s) for s in some)
        return [math.exp(s) / total for s in some]

    free = [h for h in range(heads) if h not in shared]
    p = softmax(said[len(shared) : heads])
    best = sorted(range(len(free)), key=lambda n: -p[n])[:keep]
    a = softmax(said[heads:]) if shared else [0.5, 0.5]
    gates = [0.0] * heads
    for n, h in enumerate(shared):
        gates[h] = 2 * a[0] * len(shared) * softmax(said[: len(shared)])[n]
    for n in best:
        gates[free[n]] = 2 * a[1] * keep * p[n] / sum(p[m] for m in best)
    return gates


@pytest.mark.parametrize("name", ["llama", "gpt2", "vit", "mpt"])
@pytest.mark.parametrize(("keep", "shared"), [(1, 0), (2, 1), (1, (1, 2))])
def test_gates_are_those_of_the_definition(name: str, keep: int, shared: int | tuple[int, ...]) -> None:
    m = mpt() if name == "mpt" else attached(name)
    x = m.inputs(dict(example(m.module, batch=2, seed=3)))
    always = list(range(shared)) if isinstance(shared, int) else list(shared)
    plain = m.run(x, record=["L1.z", "L1.attn_in"])
    read, z = plain["L1.attn_in"].double(), plain["L1.z"].double()
    heads = z.shape[2]
    router = drawn(heads + 2 * bool(always), read.shape[-1])
    tape = m.run(x, record="L1.z", edits=[MixHeads("L1.z", router, keep, shared)])
    for b in range(z.shape[0]):
        for i in range(z.shape[1]):
            gates = torch.tensor(by_hand(read[b, i].tolist(), router.tolist(), heads, keep, always))
            torch.testing.assert_close(tape["L1.z"][b, i].double(), z[b, i] * gates[:, None], atol=1e-5, rtol=1e-4)


def test_the_balance_is_that_of_the_definition() -> None:
    x, real = drawn(2, 5, 6), torch.tensor([[True] * 5, [False, False, True, True, True]])
    said = MixHeads("L0.z", drawn(4, 6), keep=2).routing(x, (0, 1, 2, 3))
    tokens = [(b, i) for b in range(2) for i in range(5) if real[b, i]]
    p = [[math.exp(float(drawn(4, 6)[h] @ x[b, i])) for h in range(4)] for b, i in tokens]
    p = [[one / sum(row) for one in row] for row in p]
    kept = [[sum(other > one for other in row) < 2 for one in row] for row in p]
    want = 4 * sum(sum(row[h] for row in p) * sum(row[h] for row in kept) for h in range(4)) / len(tokens) ** 2
    assert abs(float(said.balance(real)) - want) < 1e-9
    even = MixHeads("L0.z", torch.zeros(4, 6), keep=2).routing(x, (0, 1, 2, 3))
    assert float(even.p.std()) < 1e-9


@cache
def of_two_kinds() -> interp.Model:
    """One layer of two heads, and eight tokens: head 0 writes something for tokens 0 to 3 alone, head 1 for the others.

    A token's own half of the residual is 1 and a pattern, the other half is -1; each head reads the pattern of its half
    and writes it turned round. So a token that keeps its head alone has the model's own logits.
    """
    torch.manual_seed(0)
    config = transformers.GPT2Config(n_layer=1, n_head=2, n_embd=16, vocab_size=8, n_positions=64, n_inner=4)
    model = transformers.GPT2LMHeadModel(config).double().eval()
    patterns = torch.tensor([[1.0, -1], [1, 1]]).repeat(1, 4), torch.tensor([[1.0, 1, -1, -1]]).repeat(1, 2)
    four = torch.cat([patterns[0][:1], -patterns[0][:1], patterns[1], -patterns[1]]).double() * 2
    with torch.no_grad():
        for parameter in model.transformer.h[0].parameters():
            parameter.zero_()
        model.transformer.h[0].ln_1.weight.fill_(1.0)
        model.transformer.wpe.weight.zero_()
        words = torch.full((8, 16), -1.0, dtype=torch.float64)
        words[:4, :8], words[4:, 8:] = 1 + four, 1 + four
        model.transformer.wte.weight.copy_(words / 8)
        middle = torch.eye(8) - 1 / 8
        for n in range(2):
            half = slice(8 * n, 8 * n + 8)
            model.transformer.h[0].attn.c_attn.weight[half, 32 + 8 * n : 40 + 8 * n] = middle.double()
        model.transformer.h[0].attn.c_proj.weight.copy_(torch.eye(16).roll(3, 1))
    return interp.attach(model)


def tokens(*ids: int) -> dict[str, Tensor]:
    return {"input_ids": torch.tensor(ids)[:, None]}


def test_a_router_finds_the_head_that_each_token_needs() -> None:
    m = of_two_kinds()
    held = m.inputs(tokens(3, 7))
    found = route_heads(m, tokens(0, 1, 2, 4, 5, 6), heldout=held, steps=60, rate=0.1, seeds=2)
    assert found.sites == ("L0.H0", "L0.H1")
    assert torch.equal(found.values, torch.full((2, 2), 0.5, dtype=torch.float64))
    assert float(found.loss.max()) < 1e-9
    assert float(found.begun.max()) > 0.01
    for seed in range(2):
        tape = m.run(held, edits=found.edits(seed), record="L0.z")
        assert (tape["L0.z"].norm(dim=-1)[:, 0] > 0.1).tolist() == [[True, False], [False, True]]
    frozen = route_heads(m, tokens(0, 1, 2, 4, 5, 6), heldout=held, steps=0, seeds=2)
    assert torch.equal(frozen.begun, found.begun)
    assert torch.equal(frozen.loss, found.begun)


def test_balance_evens_out_what_is_kept() -> None:
    """All tokens need head 0; a large weight of the balance shares them out all the same."""
    m = of_two_kinds()
    how: dict[str, Any] = {"heldout": tokens(0, 1, 2, 3), "steps": 60, "rate": 0.1, "seeds": 1}
    alone, shared = (route_heads(m, tokens(0, 1, 2, 3), balance=weight, **how) for weight in (0.0, 100.0))
    assert alone.values.flatten().tolist() == [1.0, 0.0]
    assert 0.0 < float(shared.values[0]) < 1.0


def test_what_is_found_is_the_same_again_and_comes_back_from_files(tmp_path: Path) -> None:
    m = attached("llama")
    x, y = (m.inputs(dict(example(m.module, batch=2, seed=seed, padding="left"))) for seed in (1, 2))
    how: dict[str, Any] = {"heldout": y, "keep": 1, "shared": (0,), "steps": 3, "seeds": 2}
    found = route_heads(m, x, **how)
    again = route_heads(m, x, **how)
    assert torch.equal(found.router, again.router)
    assert not torch.equal(found.router[0], found.router[1])
    found.save(tmp_path)
    read = interp.open(tmp_path)
    assert read.to_frame().equals(found.to_frame())
    assert [one.written for one in read.edits(1)] == [one.written for one in found.edits(1)]
    assert float(found.values[0].min()) == 1.0  # shared heads are always on
    real, own = y.valid, m.run(y)["logits"].double().log_softmax(-1)
    new = m.run(y, edits=found.edits(0))["logits"].double().log_softmax(-1)
    gap = ((own.exp() * (own - new)).sum(-1) * real).sum(1) / real.sum(1)
    assert abs(float(gap.mean()) - float(found.loss[0])) < 1e-4
    longest = m.run(y, edits=[RouteHeads("L*.z", 1, (0,))])["logits"].double().log_softmax(-1)
    gap = ((own.exp() * (own - longest)).sum(-1) * real).sum(1) / real.sum(1)
    assert abs(float(gap.mean()) - float(found.longest)) < 1e-4


def test_a_routed_model_generates_with_a_cache_what_it_computes_without() -> None:
    m = attached("llama")
    x = m.inputs(dict(example(m.module, batch=2, length=7, seed=3)))
    edit = MixHeads("L*.z", drawn(4, 32), keep=2)
    out = m.generate(x, edits=[edit], max_new_tokens=3)
    ids = x.kwargs["input_ids"]
    for step in range(3):
        logprobs = m.run({"input_ids": ids}, edits=[edit])["logits"][:, -1].log_softmax(-1)
        assert out.ids[:, step].tolist() == logprobs.argmax(-1).tolist()
        ids = torch.cat([ids, logprobs.argmax(-1, keepdim=True)], 1)


def test_what_cannot_be_is_said() -> None:
    m = attached("llama")
    x = m.inputs(dict(example(m.module, batch=2, seed=3)))
    with pytest.raises(EditError, match="router="):
        MixHeads("L0.z")
    with pytest.raises(EditError, match=r"router \[4, 32\]"):
        m.run(x, edits=[MixHeads("L0.z", drawn(3, 32))])
    with pytest.raises(EditError, match="at most 4"):
        m.run(x, edits=[MixHeads("L0.z", drawn(4, 32), keep=5)])
    with pytest.raises(EditError, match="its site must be z"):
        m.run(x, edits=[MixHeads("L0.q", drawn(4, 32))])
    with pytest.raises(InputsError, match="seeds at least 1"):
        route_heads(m, x, heldout=x, seeds=0)
