"""Direct effects: the parts sum to the metric, agree with the definition written out, and find what was planted."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from models import attached
from torch import Tensor

import interp
from interp.hooks.anatomy.norms import frozen
from interp.hooks.errors import InputsError, ModelError
from interp.hooks.examples.example import example
from interp.metrics.shipped import Accuracy, LogitDifference, LogProb
from interp.planted import build, key
from interp.planted.probes import probe_task

PLAIN = ["gpt2", "gpt_neox", "llama", "plain", "falcon", "llava", "paligemma", "t5"]
BENT = ["gemma2"]
IMAGES = ["vit", "dinov2"]


def difference(batch: int) -> LogitDifference:
    return LogitDifference(answers=((7,),) * batch, wrong=((10, 11),) * batch)


def asked(name: str) -> tuple[interp.Model, dict[str, Tensor]]:
    m = attached(name)
    return m, dict(example(m.module, batch=2, seed=3))


@pytest.mark.parametrize("name", [*PLAIN, *BENT])
def test_the_parts_sum_to_the_metric(name: str) -> None:
    m, x = asked(name)
    e = interp.patching.direct_effect(m, x, metric=difference(2))
    value = difference(2)(m.run(x)["logits"], m.inputs(x))
    torch.testing.assert_close(e.values.sum(0).float(), value, atol=2e-5, rtol=1e-5)
    rest = float(e.values[-1].abs().max())
    assert e.sites[-2:] == ("bias", "remainder")
    assert (rest > 1e-3) if name in BENT else rest < max(1e-4, e.noise_floor)


@pytest.mark.parametrize("name", IMAGES)
def test_class_logits_of_an_image_model(name: str) -> None:
    m, x = asked(name)
    right_minus_wrong = lambda logits, inputs: logits[:, 0] - logits[:, 1]  # noqa: E731
    e = interp.patching.direct_effect(m, x, metric=right_minus_wrong)
    logits = m.run(x)["logits"]
    torch.testing.assert_close(e.values.sum(0).float(), logits[:, 0] - logits[:, 1], atol=2e-5, rtol=1e-5)
    assert float(e.values[-1].abs().max()) < 1e-4


def test_heads_and_mlps_are_those_of_the_definition_written_out_for_gpt2() -> None:
    """`((z_h W_O[h] - mean) gain / sigma) . (W_U[right] - W_U[wrong])` at the last position, in float64."""
    m, x = asked("gpt2")
    model: Any = m.module
    tape = m.run(x, record=["L1.z", "L1.mlp_out", "L1.resid_post"])
    w = {name: p.detach().double() for name, p in model.named_parameters()}
    unembed = w.get("lm_head.weight", w["transformer.wte.weight"])
    final = tape["L1.resid_post"][:, -1].double()
    sigma = (final.var(-1, unbiased=False, keepdim=True) + model.transformer.ln_f.eps).sqrt()
    direction = unembed[7] - (unembed[10] + unembed[11]) / 2

    def direct(write: Tensor) -> Tensor:
        return ((write - write.mean(-1, keepdim=True)) / sigma * w["transformer.ln_f.weight"]) @ direction

    e = interp.patching.direct_effect(m, x, metric=difference(2))
    got = dict(zip(e.sites, e.values, strict=True))
    projection = w["transformer.h.1.attn.c_proj.weight"]
    for head in range(4):
        width = projection.shape[0] // 4
        write = tape["L1.z"][:, -1, head].double() @ projection[head * width : (head + 1) * width]
        torch.testing.assert_close(got[f"L1.H{head}.result"], direct(write), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(got["L1.mlp_write"], direct(tape["L1.mlp_out"][:, -1].double()), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("name", "probe", "head"), [
    ("planted-decoder", "induction", "L1.H4.result"),
    ("planted-decoder", "question", "L1.H2.result"),
    ("planted-vit", "mark", "L1.H2.result"),
    ("planted-lvlm", "picture", "text.L1.H1.result"),
])  # fmt: skip
def test_the_head_planted_to_write_the_answer_has_the_largest_direct_effect(name: str, probe: str, head: str) -> None:
    m = interp.attach(*build(name))
    task = probe_task(name, probe, model=m)
    e = interp.patching.direct_effect(m, task.clean, metric=task.metric)
    best = e.only("result").top(1)
    assert best["site"].item() == head
    assert best["estimate"].item() == pytest.approx(float(e.base[0]), rel=0.1)
    for site, value in zip(e.sites, e.mean.tolist(), strict=True):
        assert value == 0.0 or site.removesuffix(".result") not in key(name).null


def test_answers_by_word_are_the_mean_of_their_logits() -> None:
    m = interp.attach(*build("planted-decoder"))
    x = m.prepare(["fox apple lake stone moon fox"])
    e = interp.patching.direct_effect(m, x, answers=[" apple"])
    token = m.tokenizer.convert_tokens_to_ids("apple")
    assert float(e.values.sum()) == pytest.approx(float(m.run(x)["logits"][0, -1, token]), abs=1e-4)


def test_a_metric_that_is_not_linear_leaves_a_remainder_and_still_sums() -> None:
    m, x = asked("gpt2")
    metric = LogProb(((7,), (8,)))
    e = interp.patching.direct_effect(m, x, metric=metric)
    torch.testing.assert_close(e.values.sum(0).float(), metric(m.run(x)["logits"], m.inputs(x)), atol=2e-5, rtol=1e-5)
    assert float(e.values[-1].abs().max()) > 1e-2


def test_padding_on_either_side() -> None:
    m, _ = asked("llama")
    for side in ("left", "right"):
        x = dict(example(m.module, batch=3, padding=side, seed=4))
        e = interp.patching.direct_effect(m, x, metric=difference(3))
        value = difference(3)(m.run(x)["logits"], m.inputs(x))
        torch.testing.assert_close(e.values.sum(0).float(), value, atol=2e-5, rtol=1e-5)


def test_a_norm_held_fixed_is_linear_and_equal_at_its_own_point() -> None:
    x, y = torch.randn(2, 5, 16), torch.randn(2, 5, 16)
    for norm in (torch.nn.LayerNorm(16), torch.nn.RMSNorm(16)):
        torch.nn.init.normal_(norm.weight)
        held = frozen(norm, x)
        torch.testing.assert_close(held(x), norm(x), atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(held.linear(x + y), held.linear(x) + held.linear(y))
        assert not torch.allclose(held(x + y), norm(x + y), atol=1e-2)
    with pytest.raises(ModelError, match="neither a layer norm nor an RMS norm"):
        frozen(torch.tanh, x)


def test_what_has_no_meaning_is_refused() -> None:
    m, x = asked("gpt2")
    with pytest.raises(InputsError, match="one of metric= and answers="):
        interp.patching.direct_effect(m, x)
    with pytest.raises(InputsError, match="no gradient"):
        interp.patching.direct_effect(m, x, metric=Accuracy(((7,), (8,)), ((7, 9), (8, 9))))
    bert, y = asked("bert")
    with pytest.raises(ModelError, match="add up"):
        interp.patching.direct_effect(bert, y, metric=difference(2))
    llava, z = asked("llava")
    with pytest.raises(ModelError, match="no direct way"):
        interp.patching.direct_effect(llava, z, metric=difference(2), tower="vision")
    e = interp.patching.direct_effect(m, x, metric=difference(2))
    with pytest.raises(interp.InterpError, match="no effects of"):
        e.only("neurons")
