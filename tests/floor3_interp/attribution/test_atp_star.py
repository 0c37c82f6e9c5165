"""AtP*: query and key repairs against a softmax recomputed key by key, GradDrop against backward passes by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import interp
from interp.attribution.attribute import attribute
from interp.hooks.errors import ModelError
from interp.hooks.slopes.query_key import key_effect, query_effect
from interp.hooks.stand.call import Call
from interp.metrics.shipped import LogitDifference
from interp.zoo.families import tiny

B, H, KV, N, D = 2, 4, 2, 7, 5


def scored(q: Tensor, k: Tensor, call: Call) -> Tensor:
    s = q @ k.repeat_interleave(H // KV, 1).transpose(-1, -2) * call.scale
    if call.softcap:
        s = call.softcap * torch.tanh(s / call.softcap)
    return s.masked_fill(~call.mask, -torch.inf)


def weighed(s: Tensor, sinks: Tensor | None) -> Tensor:
    if sinks is not None:
        s = torch.cat([s, sinks.to(s)[None, :, None, None].expand(*s.shape[:3], 1)], -1)
    return s.softmax(-1)[..., :N]


def plain_attention(module: Any, q: Tensor, k: Tensor, v: Tensor, mask: Tensor, **more: Any) -> tuple[Tensor, None]:
    call = Call(module, "eager", plain_attention, q, k, v, mask, more)
    a = weighed(scored(q, k, call), call.sinks)
    return (a @ v.repeat_interleave(H // KV, 1)).transpose(1, 2), None


def a_call(*, size: float = 1.0, **more: Any) -> Call:
    q, k, v = size * torch.randn(B, H, N, D), size * torch.randn(B, KV, N, D), torch.randn(B, KV, N, D)
    mask = torch.ones(N, N, dtype=torch.bool).tril().expand(B, 1, N, N).clone()
    mask[1, :, :, :2] = False  # padding on the left: two rows that see nothing but themselves are cut below
    mask[1, :, 0, 0] = mask[1, :, 1, 1] = True
    return Call(nn.Module(), "eager", plain_attention, q, k, v, mask, {"scaling": 0.7, **more})


@pytest.mark.parametrize("more", [{}, {"softcap": 2.0}, {"s_aux": torch.randn(H)}], ids=["plain", "softcap", "sink"])
@pytest.mark.parametrize("size", [1.0, 12.0], ids=["soft", "saturated"])
def test_repairs_are_the_recomputed_softmax(size: float, more: dict[str, Any]) -> None:
    call, dz = a_call(size=size, **more), torch.randn(B, N, H, D)
    q, k = size * torch.randn(B, N, H, D), size * torch.randn(B, N, KV, D)
    wide = Call(call.module, "eager", plain_attention, call.q.double(), call.k.double(), call.v.double(), call.mask,
                call.arguments)  # fmt: skip
    s = scored(wide.q, wide.k, wide)
    a = weighed(s, wide.sinks)
    g = dz.double().transpose(1, 2) @ wide.v.repeat_interleave(H // KV, 1).transpose(-1, -2)
    moved = weighed(scored(q.double().transpose(1, 2), wide.k, wide), wide.sinks)
    expected = ((moved - a) * g).sum(-1).transpose(1, 2)
    torch.testing.assert_close(query_effect(call, q, dz).double(), expected, atol=1e-4, rtol=1e-4)

    other = scored(wide.q, k.double().transpose(1, 2), wide)
    by_head = torch.zeros(B, H, N, dtype=torch.float64)
    for t in range(N):
        one = s.clone()
        one[..., t] = other[..., t]
        by_head[..., t] = ((weighed(one, wide.sinks) - a) * g).sum((-1, -2))
    by_kv = by_head.unflatten(1, (KV, -1)).sum(2).transpose(1, 2)
    torch.testing.assert_close(key_effect(call, k, dz).double(), by_kv, atol=2e-4, rtol=1e-4)


def test_the_linear_limit_is_plain_attribution_patching() -> None:
    call, dz = a_call(), torch.randn(B, N, H, D)
    small = 1e-3
    k = call.k.transpose(1, 2) + small * torch.randn(B, N, KV, D)
    there = call.k.detach().clone().requires_grad_()
    z, _ = plain_attention(call.module, call.q, there, call.v, call.mask, **call.arguments)
    (slope,) = torch.autograd.grad((z * dz).sum(), there)
    linear = ((k.transpose(1, 2) - call.k) * slope).sum(-1).transpose(1, 2)
    torch.testing.assert_close(key_effect(call, k, dz), linear, atol=2e-5, rtol=2e-2)


def test_rows_are_taken_a_few_at_a_time_with_the_same_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    call, dz, k = a_call(), torch.randn(B, N, H, D), torch.randn(B, N, KV, D)
    whole = key_effect(call, k, dz)
    monkeypatch.setattr("interp.hooks.stand.call.NUMBERS", 2 * B * H * N)
    torch.testing.assert_close(key_effect(call, k, dz), whole, atol=1e-6, rtol=1e-5)


def pair(name: str) -> tuple[interp.Model, dict[str, Any]]:
    m = interp.attach(tiny(name))
    base = torch.randint(5, 90, (2, 7))
    source = torch.cat([base[:, :3], torch.randint(5, 90, (2, 4))], 1)
    metric = LogitDifference(answers=((7,), (8,)), wrong=((10,), (11,)))
    return m, {"base": {"input_ids": base}, "source": {"input_ids": source}, "metric": metric, "verify": 0}


def test_graddrop_is_the_mean_magnitude_over_dropped_layers() -> None:
    m, asked = pair("gpt2")
    found = attribute(m, sites="L*.H*.z", method="atp*", **asked)
    old, new = m.run(asked["base"], record="L*.z", grad=True), m.run(asked["source"], record="L*.z")
    total = torch.zeros(8, 2, dtype=torch.float64)
    for dropped in range(2):
        made = m.run(asked["base"], record=["L*.z", "L1.attn_out", "L1.mlp_out", "L0.attn_out", "L0.mlp_out"])
        held = [interp.Set(f"L{dropped}.{n}", made[f"L{dropped}.{n}"]) for n in ("attn_out", "mlp_out")]
        run = m.run(asked["base"], record="L*.z", edits=held, grad=True)
        value = asked["metric"](run["logits"], run.inputs).sum()
        zs = [run["L0.z"], run["L1.z"]]
        slopes = torch.autograd.grad(value, zs, allow_unused=True)
        rows = []
        for n, slope in enumerate(slopes):
            change = new[f"L{n}.z"] - old[f"L{n}.z"].detach()
            rows.append(torch.zeros(2, 4) if slope is None else (change * slope).sum((1, 3)))
        total += torch.cat([r.T for r in rows]).double().abs()
    torch.testing.assert_close(found.values, total, atol=1e-4, rtol=1e-3)
    assert bool((found.values >= 0).all())
    assert found.meta["signs"] == "magnitudes"


def test_grouped_keys_are_the_sum_over_their_group_and_an_attention_outside_is_refused() -> None:
    m, asked = pair("llama")
    repaired = attribute(m, sites="L*.k", method="atp-qk", **asked)
    by_head = attribute(m, sites=["L0.K0.k", "L0.K1.k"], method="atp-qk", **asked)
    torch.testing.assert_close(repaired.values[0], by_head.values.sum(0))
    m = interp.attach(tiny("gptj"))
    ids = {"input_ids": torch.randint(5, 90, (1, 5))}
    with pytest.raises(ModelError, match="attention call is not seen"):
        attribute(m, base=ids, source=ids, metric=lambda g, x: g[:, -1, 3], sites="L*.q", method="atp*")


def test_a_model_of_one_layer_has_nothing_to_drop_and_gets_the_repaired_magnitudes() -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    module = GPT2LMHeadModel(GPT2Config(n_layer=1, n_head=4, n_embd=32, vocab_size=50, n_positions=16)).eval()
    m = interp.attach(module)
    base, source = ({"input_ids": torch.randint(50, (2, 6))} for _ in range(2))
    asked: Any = {"base": base, "source": source, "metric": LogitDifference([1, 2], [3, 4]), "sites": "L*.H*.z"}
    found = attribute(m, method="atp*", **asked)
    assert torch.allclose(found.values, attribute(m, method="atp-qk", **asked).values.abs())
    assert float(found.values.abs().min()) > 0
