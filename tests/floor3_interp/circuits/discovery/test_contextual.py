"""Contextual decomposition: its rules written out in float64, planted edges found and missed as worked out by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from edge_oracle import GATE, LINEAR, PAIR, Wide, asked, difference, found
from models import attached
from torch import Tensor, nn

import interp
from interp.circuits.discovery import contextual
from interp.hooks.examples.example import example
from interp.zoo.families import tiny

Parts = tuple[Tensor, Tensor]
"""What is relevant, and the rest."""


def share(parts: Parts) -> Tensor:
    return parts[0].abs() / (parts[0].abs() + parts[1].abs()).clamp(min=1e-300)


def matrix(parts: Parts, conv: Any) -> Parts:
    made = parts[0] @ conv.weight, parts[1] @ conv.weight
    return made[0] + share(made) * conv.bias, made[1] + (1 - share(made)) * conv.bias


def norm(parts: Parts, layer_norm: Any) -> Parts:
    whole = parts[0] + parts[1]
    scale = layer_norm.weight / (whole.var(-1, correction=0, keepdim=True) + layer_norm.eps).sqrt()
    shifts = share(parts) * layer_norm.bias, (1 - share(parts)) * layer_norm.bias
    made = [(one - one.mean(-1, keepdim=True)) * scale + shift for one, shift in zip(parts, shifts, strict=True)]
    return made[0], made[1]


def mlp(parts: Parts, block: Any) -> Parts:
    read = matrix(norm(parts, block.ln_2), block.mlp.c_fc)
    act = block.mlp.act
    return matrix((act(read[0] + read[1]) - act(read[1]), act(read[1])), block.mlp.c_proj)


def plus(one: Parts, other: Parts) -> Parts:
    return one[0] + other[0], one[1] + other[1]


class Definition:
    """The decomposition on a GPT-2, whose patterns and residuals are those of one recorded run."""

    def __init__(self, m: interp.Model, base: Any, source: Any) -> None:
        record = ["embed", "L*.result", "L*.mlp_write", "L*.pattern", "L*.resid_pre", "L*.resid_mid", "L*.resid_post"]
        self.old, self.new = m.run(base, record=record), m.run(source, record=record)
        self.stem = m.module.transformer
        self.head = m.module.lm_head.weight.T

    def more(self, sender: str) -> Tensor:
        site = sender if sender.endswith(("embed", "mlp_write")) else f"{sender}.result"
        made: Tensor = self.old[site] - self.new[site]
        return made if site == sender else made[:, :, 0]

    def values(self, parts: Parts, layer: int) -> Parts:
        made = matrix(norm(parts, self.stem.h[layer].ln_1), self.stem.h[layer].attn.c_attn)
        width = made[0].shape[-1] // 3
        return made[0][..., 2 * width :], made[1][..., 2 * width :]

    def attend(self, values: Parts, layer: int) -> Parts:
        pattern = self.old[f"L{layer}.pattern"]
        heads = pattern.shape[1]
        z = [torch.einsum("bhqk,bkhd->bqhd", pattern, v.unflatten(-1, (heads, -1))).flatten(-2) for v in values]
        return matrix((z[0], z[1]), self.stem.h[layer].attn.c_proj)

    def through(self, parts: Parts, layer: int, values: Parts) -> Parts:
        middle = plus(parts, self.attend(values, layer))
        made = plus(middle, mlp(middle, self.stem.h[layer]))
        torch.testing.assert_close(made[0] + made[1], self.old[f"L{layer}.resid_post"])  # nothing lost, nothing made
        return made

    def score(self, sender: str, receiver: str) -> Tensor:
        beta, last = self.more(sender), len(self.stem.h) - 1
        if receiver == "logits":
            layer, parts = last, (beta, self.old[f"L{last}.resid_post"] - beta)
        elif receiver.endswith("mlp_in"):
            layer = int(receiver[1])
            written = mlp((beta, self.old[f"L{layer}.resid_mid"] - beta), self.stem.h[layer])[0]
            parts = written, self.old[f"L{layer}.resid_post"] - written
        else:
            layer, head = int(receiver[1]), int(receiver[4])
            entered = self.old[f"L{layer}.resid_pre"]
            relevant, rest = self.values((beta, entered - beta), layer)
            width = relevant.shape[-1] // 4
            only = torch.zeros_like(relevant)
            only[..., head * width : (head + 1) * width] = relevant[..., head * width : (head + 1) * width]
            nothing = torch.zeros_like(entered)
            parts = self.through((nothing, entered), layer, (only, relevant + rest - only))
        for later in range(layer + 1, last + 1):
            parts = self.through(parts, later, self.values(parts, later))
        logits = norm(parts, self.stem.ln_f)[1] @ self.head
        return difference(logits, None) - difference(self.old["logits"], None)


def test_edges_are_the_definition_written_out() -> None:
    m, base, source = asked("gpt2")
    e = interp.edges(m, base=base, source=source, metric=difference, method="cd-t")
    with torch.no_grad():
        definition = Definition(m, base, source)
        for n, (edge, value) in enumerate(zip(e.graph.edges, e.values, strict=True)):
            sender, receiver = e.graph.name(edge).split("->")
            if receiver.endswith(("q_in", "k_in")):
                assert not bool(value.any())
            elif n % 3 == 0 or edge[0] == 0:
                torch.testing.assert_close(value, definition.score(sender, receiver), atol=1e-9, rtol=1e-7)
    live = [float(v.abs().max()) > 1e-4 for (_, at), v in zip(e.graph.edges, e.values, strict=True)
            if e.graph.receivers[at].component not in ("q_in", "k_in")]  # fmt: skip
    assert sum(live) > len(live) / 2


@pytest.mark.parametrize("direction", ["denoise", "noise"])
@pytest.mark.parametrize("name", ["and", "or", "backup", "cancel", "saturated"])
def test_planted_edges_are_found_and_missed_as_worked_out(name: str, direction: str) -> None:
    """A neuron 2 relu(1 + 1 - 1): without one signal, which takes half of the threshold with it, 2 relu(1 - 1/2) is
    left, so either is worth 1. From (0, 0) the part of one is -1 and the rest 1: 2 relu(1 - 1/2), again 1, where
    exact patching sees nothing. `or` has another neuron, 2 relu(s + 1), whose threshold adds: noising takes 2 * 3 to
    2 * 1.5 and gives 1 back, denoising takes 2 to 3 and 1 back. Whoever selects through a query is missed, and so is
    a backup."""
    sign = 1.0 if direction == "denoise" else -1.0
    pair = {("and", "denoise"): 1.0, ("and", "noise"): 1.0, ("or", "noise"): 2.0, ("or", "denoise"): 0.0}
    worth = pair.get((name, direction), 0.0)
    wanted = LINEAR.get(name) or GATE | (dict.fromkeys(PAIR, worth) if worth else {})
    expected = pytest.approx({edge: sign * value for edge, value in wanted.items()}, abs=5e-5)
    assert found(name, direction, "cd-t") == expected


@pytest.mark.parametrize("name", ["falcon", "gpt_neox", "vit"])
def test_other_families_split_and_a_source_that_is_the_base_says_nothing(name: str) -> None:
    """Parallel blocks, fused and grouped projections, a class token: the method itself asks that parts add up."""
    m, base, source = asked(name)
    with Wide():
        e = interp.edges(m, base=base, source=source, metric=difference, method="cd-t")
        same = interp.edges(m, base=base, source=base, metric=difference, method="cd-t")
    assert float(same.values.abs().max()) < 1e-12
    kinds = {e.graph.receivers[v].component for (_, v), value in zip(e.graph.edges, e.values, strict=True)
             if bool(value.any())}  # fmt: skip
    assert kinds == {"v_in", "mlp_in", "logits"}


def test_padding_and_how_many_go_together_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    m, base, source = asked("falcon")
    ids, other = base["input_ids"][:1], source["input_ids"][:1]
    pad, mask = torch.full((1, 2), 7), torch.tensor([[0, 0, 1, 1, 1, 1, 1]])
    padded, further = ({"input_ids": torch.cat([pad, x], 1), "attention_mask": mask} for x in (ids, other))
    how: dict[str, Any] = {"metric": difference, "method": "cd-t"}
    plain = interp.edges(m, base={"input_ids": ids}, source={"input_ids": other}, **how).values
    torch.testing.assert_close(interp.edges(m, base=padded, source=further, **how).values, plain, atol=1e-6, rtol=1e-5)
    monkeypatch.setattr(contextual, "TOGETHER", 2)
    again = interp.edges(m, base={"input_ids": ids}, source={"input_ids": other}, **how).values
    torch.testing.assert_close(again, plain, atol=1e-9, rtol=1e-7)


@pytest.mark.parametrize(("name", "why"), [("llama", "gated"), ("gpt_oss", "in parts"), ("t5", "attentions")])
def test_what_has_no_rule_is_refused_by_name(name: str, why: str) -> None:
    m = attached(name)
    base, source = (dict(example(m.module, batch=2, length=5, seed=seed)) for seed in (1, 2))
    with pytest.raises(interp.InterpError, match=why):
        interp.edges(m, base=base, source=source, metric=difference, method="cd-t")


class Squared(nn.Module):
    """No matrix, no norm, and its name says no activation."""

    def forward(self, x: Tensor) -> Tensor:
        return x + 0.1 * x**2


def test_parts_that_do_not_add_up_are_an_error() -> None:
    module: Any = tiny("gpt2", dtype=torch.float64)
    module.transformer.h[1].mlp.dropout = Squared()
    _, base, source = asked("gpt2")
    with pytest.raises(interp.InterpError, match="layer 1 do not add up to it"):
        interp.edges(interp.attach(module), base=base, source=source, metric=difference, method="cd-t")
