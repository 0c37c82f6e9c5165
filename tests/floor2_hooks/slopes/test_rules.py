"""Relevance rules: each coefficient is its formula's, a whole Llama agrees with the definition in float64, nothing else
changes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers.activations import ACT2FN

import interp
from interp.hooks.errors import ModelError, NotFired
from interp.hooks.sites import Site
from interp.hooks.slopes.gradients import Graph, graph
from interp.hooks.slopes.rules import Rules, applicable, coefficient, gated_layers, linear_norm
from interp.zoo.families import tiny

RELP, ATTNLRP = ("ln", "identity", "half"), ("ln", "identity", "half", "uniform")
CP, GIM = ("ln", "identity", "gate", "attention"), ("ln", "half", "tempered")


@pytest.fixture(scope="module")
def llama() -> interp.Model:
    m = interp.attach(tiny("llama"))
    m.ready()
    return m


IDS = torch.tensor([[11, 5, 77, 30, 42, 8], [9, 61, 23, 23, 14, 50]])


def reading(logits: Tensor) -> Tensor:
    return logits[:, -1, 7] - logits[:, -1, 12]


def under(m: interp.Model, names: Sequence[str], *sites: str) -> Graph:
    x = m.inputs({"input_ids": IDS})
    rules = Rules(m.module, m.anatomy, names) if names else None
    return graph(
        m.module, m.anatomy, x, dict(x.kwargs), sites=[m.anatomy.one(s) for s in sites], score=reading, rules=rules
    )


def slope(m: interp.Model, names: Sequence[str], site: str) -> Tensor:
    found: Tensor = under(m, names, site).gradients()[m.anatomy.one(site)]
    return found


class Oracle:
    """Llama's forward pass in float64 from its weights, written with the rules as the papers state them."""

    def __init__(self, model: Any, names: Sequence[str]) -> None:
        self.names = names
        self.w = {n: p.detach().double() for n, p in model.state_dict().items()}
        self.layers, self.heads, self.kv = model.config.num_hidden_layers, 4, 2
        self.eps = model.config.rms_norm_eps

    def norm(self, x: Tensor, name: str) -> Tensor:
        scale = (x.square().mean(-1, keepdim=True) + self.eps).sqrt()
        return x / (scale.detach() if "ln" in self.names else scale) * self.w[name]

    def part(self, x: Tensor, share: float) -> Tensor:
        """The value of x, `share` of its gradient."""
        return share * x + ((1 - share) * x).detach()

    def rope(self, x: Tensor) -> Tensor:
        d, n = x.shape[-1], x.shape[-2]
        angle = torch.arange(n, dtype=torch.float64)[:, None] / 10000 ** (torch.arange(0, d, 2).double() / d)
        cos, sin = angle.cos().repeat(1, 2), angle.sin().repeat(1, 2)
        turned = torch.cat([-x[..., d // 2 :], x[..., : d // 2]], -1)
        return x * cos + turned * sin

    def attention(self, x: Tensor, at: str) -> Tensor:
        q, k, v = (
            (x @ self.w[f"{at}.{n}_proj.weight"].T).unflatten(-1, (h, -1)).transpose(1, 2)
            for n, h in (("q", self.heads), ("k", self.kv), ("v", self.kv))
        )
        q, k = self.rope(q), self.rope(k)
        if "attention" in self.names:
            q, k = q.detach(), k.detach()
        if "uniform" in self.names or "tempered" in self.names:
            q, k, v = self.part(q, 0.25), self.part(k, 0.25), self.part(v, 0.5)
        k, v = (t.repeat_interleave(2, 1) for t in (k, v))
        s = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5
        s = s.masked_fill(torch.ones(s.shape[-2:], dtype=torch.bool).triu(1), -torch.inf)
        a = s.softmax(-1)
        if "tempered" in self.names:  # d a / d s is 2 d softmax(s / 2) / d s, whose value is another
            soft = 2 * (s / 2).softmax(-1)
            a = a.detach() + soft - soft.detach()
        return (a @ v).transpose(1, 2).flatten(2) @ self.w[f"{at}.o_proj.weight"].T

    def mlp(self, x: Tensor, at: str) -> Tensor:
        g, u = (x @ self.w[f"{at}.{n}_proj.weight"].T for n in ("gate", "up"))
        sigmoid = torch.sigmoid(g)
        act = g * (sigmoid.detach() if "identity" in self.names else sigmoid)
        act = act.detach() if "gate" in self.names else act
        p = act * u
        return (self.part(p, 0.5) if "half" in self.names else p) @ self.w[f"{at}.down_proj.weight"].T

    def run(self, embedded: Tensor) -> Tensor:
        x = embedded
        for n in range(self.layers):
            at = f"model.layers.{n}"
            x = x + self.attention(self.norm(x, f"{at}.input_layernorm.weight"), f"{at}.self_attn")
            x = x + self.mlp(self.norm(x, f"{at}.post_attention_layernorm.weight"), f"{at}.mlp")
        return self.norm(x, "model.norm.weight") @ self.w["lm_head.weight"].T


@pytest.mark.parametrize("names", [(), ("ln",), ("identity",), ("half",), ("gate",), ("attention",), ("uniform",),
                                   ("tempered",), RELP, ATTNLRP, CP, GIM], ids="+".join)  # fmt: skip
def test_a_whole_llama_agrees_with_the_definition_in_float64(llama: interp.Model, names: tuple[str, ...]) -> None:
    oracle = Oracle(llama.module, names)
    embedded = oracle.w["model.embed_tokens.weight"][IDS].requires_grad_()
    logits = oracle.run(embedded)
    (expected,) = torch.autograd.grad(reading(logits).sum(), embedded)
    run = under(llama, names, "L0.resid_pre")
    torch.testing.assert_close(run.logits.double(), logits, atol=1e-4, rtol=1e-4)
    found = run.gradients()[llama.anatomy.one("L0.resid_pre")].double()
    torch.testing.assert_close(found, expected, atol=1e-4 * float(expected.abs().max()), rtol=1e-3)


@pytest.mark.parametrize("family", ["gpt2", "gemma2", "vit"])
def test_the_forward_pass_stays_bit_for_bit_and_every_rule_changes_the_gradient(family: str) -> None:
    from interp.hooks.examples.example import example

    m = interp.attach(tiny(family))
    m.ready()
    x = m.inputs(example(m.module, batch=2, length=6))
    places = m.anatomy.sites("L*.resid_pre")

    def run(rules: Rules | None) -> Graph:
        return graph(m.module, m.anatomy, x, m.called_with(x.kwargs), sites=places, rules=rules,
                     score=lambda g: g.flatten(1)[:, -7:].sum(1))  # fmt: skip

    plain = run(None)
    before = plain.gradients()
    for name in applicable(m.module, m.anatomy, [*ATTNLRP, "tempered"]):
        made = run(Rules(m.module, m.anatomy, [name]))
        assert torch.equal(made.logits, plain.logits), name
        assert not torch.allclose(made.gradients()[places[0]], before[places[0]]), name
    again = run(None)
    assert all(torch.equal(again.gradients()[s], before[s]) for s in places[:1])


@pytest.mark.parametrize("kind", ["silu", "gelu", "gelu_new", "gelu_pytorch_tanh", "quick_gelu", "relu", "relu2"])
def test_activation_coefficients_are_act_x_over_x(kind: str) -> None:
    act = ACT2FN[kind]
    x = torch.tensor([-6.0, -1.3, -1e-6, 1e-6, 0.4, 5.0])
    wide = x.double()
    expected = act(wide) / wide
    torch.testing.assert_close(coefficient(act, x, act(x)).double(), expected, atol=2e-6, rtol=2e-5)
    if kind not in ("relu", "relu2"):
        assert float(coefficient(act, torch.zeros(1), act(torch.zeros(1)))) == 0.5


def test_a_norm_is_known_from_inputs_that_tell_nothing() -> None:
    """Without a mean layer norms and RMS norms agree, and at 0 every gain does; the form found is used ever after."""
    x, later = torch.randn(3, 8), torch.randn(3, 8) + 2
    for norm in (nn.LayerNorm(8), nn.RMSNorm(8, eps=1e-6)):
        nn.init.normal_(norm.weight)
        for first in (x - x.mean(-1, keepdim=True), torch.zeros(3, 8), torch.ones(3, 8)):
            form = linear_norm("n", norm, first, norm(first))
            torch.testing.assert_close(form(later), norm(later))


def test_norm_coefficients_are_centring_and_gain_over_scale() -> None:
    x = torch.randn(3, 8)
    for norm, centred in ((nn.LayerNorm(8), True), (nn.RMSNorm(8, eps=1e-6), False)):
        nn.init.normal_(norm.weight)
        form = linear_norm("n", norm, x, norm(x))
        y = x.clone().requires_grad_()
        g = torch.randn(3, 8)
        (found,) = torch.autograd.grad(form(y), y, g)
        wide, w = x.double(), norm.weight.detach().double()
        middle = wide - wide.mean(-1, keepdim=True) if centred else wide
        scaled = w * g.double() / (middle.square().mean(-1, keepdim=True) + norm.eps).sqrt()
        expected = scaled - scaled.mean(-1, keepdim=True) if centred else scaled
        torch.testing.assert_close(found.double(), expected, atol=1e-6, rtol=1e-5)


def test_relevance_is_conserved_where_the_rules_conserve_it(llama: interp.Model) -> None:
    sites = ["L0.resid_pre", "L1.z", "L1.v", "L1.q", "L1.k", "L1.mlp_in", "L1.mlp_out", "L1.resid_pre"]
    run = under(llama, ATTNLRP, *sites)
    slopes = run.gradients()

    def relevance(site: str) -> Tensor:
        at = llama.anatomy.one(site)
        return (run.values[at].detach() * slopes[at]).flatten(1).sum(1)

    close = {"atol": 1e-4, "rtol": 1e-3}
    torch.testing.assert_close(relevance("L1.v"), relevance("L1.z") / 2, **close)
    torch.testing.assert_close(relevance("L1.q"), relevance("L1.k"), **close)
    torch.testing.assert_close(relevance("L1.mlp_in"), relevance("L1.mlp_out"), **close)
    whole = under(llama, CP, "L0.resid_pre")
    at = llama.anatomy.one("L0.resid_pre")
    total = (whole.values[at].detach() * whole.gradients()[at]).flatten(1).sum(1)
    torch.testing.assert_close(total, whole.score.detach(), **close)


def test_what_a_rule_cannot_act_on_is_said() -> None:
    gpt2 = interp.attach(tiny("gpt2"))
    assert not gated_layers(gpt2.module, gpt2.anatomy)
    with pytest.raises(NotFired, match="half did not act"):
        under(gpt2, ["half"], "L0.resid_pre")
    with pytest.raises(ModelError, match="no relevance rule"):
        Rules(gpt2.module, gpt2.anatomy, ["halves"])
    with pytest.raises(ModelError, match="choose one"):
        Rules(gpt2.module, gpt2.anatomy, ["half", "gate"])
    mixture = interp.attach(tiny("gpt_oss"))
    with pytest.raises(ModelError, match="mixture of experts"):
        under(mixture, RELP, "L0.resid_pre")
    outside = interp.attach(tiny("gptj"))
    with pytest.raises(ModelError, match="is not seen"):
        under(outside, ATTNLRP, "L0.resid_pre")


def test_a_connectors_activation_is_one_too() -> None:
    from interp.hooks.examples.example import example

    m = interp.attach(tiny("llava"))
    rules = Rules(m.module, m.anatomy, ["identity"])
    with torch.no_grad(), rules.on():
        m.module(**example(m.module))
    assert rules.forward["identity"] == sum(len(tower.layers) for tower in m.anatomy.towers.values()) + 1


def test_a_rule_that_came_loose_on_the_way_back_is_an_error(llama: interp.Model) -> None:
    run = under(llama, RELP, "L0.resid_pre")
    assert run.rules is not None
    run.gradients()
    run.rules.backward.clear()
    with pytest.raises(NotFired, match="no gradient passed through it"):
        run.rules.check_used()


def test_no_rule_stays_on_the_model(llama: interp.Model) -> None:
    hooks = sum(len(c._forward_hooks) + len(c._forward_pre_hooks) for c in llama.module.modules())
    with pytest.raises(RuntimeError, match="on purpose"), Rules(llama.module, llama.anatomy, ATTNLRP).on():
        raise RuntimeError("on purpose")
    assert hooks == sum(len(c._forward_hooks) + len(c._forward_pre_hooks) for c in llama.module.modules())
    plain = slope(llama, (), "L0.resid_pre")
    assert isinstance(llama.anatomy.one("L0.resid_pre"), Site)
    assert torch.equal(plain, slope(llama, (), "L0.resid_pre"))
