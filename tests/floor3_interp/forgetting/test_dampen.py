"""Dampening, against squared gradients taken row by row here, and on a class that one head alone knows."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import forgetful as f
import pytest
import torch
from models import attached, mpt
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel

import interp
from interp.forgetting import Dampened, dampen
from interp.kernels.errors import InterpError

HEADS, D = 4, 8


@cache
def tiny() -> interp.Model:
    torch.manual_seed(0)
    config = GPT2Config(n_embd=32, n_layer=2, n_head=HEADS, vocab_size=50, n_positions=16)
    return interp.attach(GPT2LMHeadModel(config).double().eval())


def rows(seed: int, n: int = 3) -> tuple[dict[str, Tensor], list[int]]:
    random = torch.Generator().manual_seed(seed)
    return {"input_ids": torch.randint(0, 50, (n, 5), generator=random)}, torch.randint(0, 50, (n,)).tolist()


FORGET, RETAIN = rows(1), rows(2, 4)


def asked(**how: Any) -> Dampened:
    return dampen(tiny(), FORGET[0], RETAIN[0], labels=FORGET[1], retain_labels=RETAIN[1], **{"alpha": 2.0, **how})


def information(data: tuple[dict[str, Tensor], list[int]], name: str, batch: int = 1) -> Tensor:
    """[batch of rows, ...] of one parameter, by the definition: the squared gradient of the mean cross-entropy."""
    module, (x, labels), found = tiny().module, data, []
    for n in range(0, len(labels), batch):
        logits = module(input_ids=x["input_ids"][n : n + batch]).logits[:, -1]
        loss = torch.nn.functional.cross_entropy(logits, torch.tensor(labels[n : n + batch]))
        (slope,) = torch.autograd.grad(loss, module.get_parameter(name))
        found.append(slope.square())
    return torch.stack(found)


def of_head(layer: int, head: int, batch: int = 1) -> Tensor:
    """[batch of rows], GPT-2 as it is written: q, k and v are thirds of the columns, heads side by side in each."""
    block, mine = f"transformer.h.{layer}.attn", slice(head * D, (head + 1) * D)
    weight, bias = (information(FORGET, f"{block}.c_attn.{name}", batch) for name in ("weight", "bias"))
    thirds = [range(32 * n + head * D, 32 * n + (head + 1) * D) for n in range(3)]
    columns = [i for third in thirds for i in third]
    out = information(FORGET, f"{block}.c_proj.weight", batch)[:, mine]
    return weight[..., columns].sum((1, 2)) + bias[..., columns].sum(1) + out.sum((1, 2))


def test_scores_are_squared_gradients_of_a_heads_weights_by_example() -> None:
    found = asked()
    wanted = torch.stack([of_head(layer, head) for layer in range(2) for head in range(HEADS)])
    assert torch.allclose(found.forget, wanted, rtol=1e-9)
    assert torch.allclose(found.ratio, found.forget.mean(1) / found.retain.mean(1))


def test_rows_of_a_batch_share_a_gradient() -> None:
    found = asked(batch=3)
    assert found.forget.shape == (8, 1)
    assert found.retain.shape == (8, 2)
    assert torch.allclose(found.forget[5], of_head(1, 1, batch=3), rtol=1e-9)


@pytest.mark.parametrize("against", ["retain", "full"])
@pytest.mark.parametrize("scope", ["heads", "all"])
def test_weights_are_dampened_by_the_papers_rule(against: Any, scope: Any) -> None:
    found = asked(against=against, scope=scope, alpha=1.5, lam=0.7)
    own = found.on(tiny()).module
    for name, old in tiny().module.named_parameters():
        forget, other = (information(data, name).mean(0) for data in (FORGET, RETAIN))
        other = (3 * forget + 4 * other) / 7 if against == "full" else other
        factor = torch.where(forget > 1.5 * other, (0.7 * other / forget).clamp(max=1.0), 1.0)
        ours = scope == "all" or ("attn" in name and not name.endswith("c_proj.bias"))
        wanted = old * factor if ours else old
        assert torch.allclose(own.get_parameter(name), wanted, rtol=1e-9, atol=0), name
        assert bool((factor < 1).any())


def test_a_class_planted_in_one_head_goes_and_the_rest_stays() -> None:
    m, every = f.knows(), range(f.CLASSES)
    assert f.says(m, *every) == list(every)
    found = dampen(m, f.asked(0), f.asked(1, 2, 3), labels=f.named(0), retain_labels=f.named(1, 2, 3))
    assert found.top(1)["site"].tolist() == [f"L0.H{f.ALONE}"]
    own = found.on(m)
    assert f.says(own, 1, 2, 3) == [1, 2, 3]
    before, after = (f.margin(one.run(f.asked(0))["logits"], None).item() for one in (m, own))
    assert before == pytest.approx(8, abs=0.1)
    assert after == pytest.approx(0, abs=0.1)
    for name, old in m.module.named_parameters():
        new = own.module.get_parameter(name)
        assert torch.equal(new, old) or ".h.0.attn" in name
    logits = [one.run(f.asked(1, 2, 3))["logits"][:, -1] for one in (m, own)]
    assert (logits[0] - logits[1]).abs().max() < 0.1
    assert f.says(m, *every) == list(every), "the model itself stays as it was"


def test_as_an_edit_the_same_head_is_turned_down() -> None:
    m = f.knows()
    found = dampen(m, f.asked(0), f.asked(1, 2, 3), labels=f.named(0), retain_labels=f.named(1, 2, 3))
    assert [edit.site for edit in found.edits()] == [f"L0.H{f.ALONE}.z"]
    assert f.says(m, 1, 2, 3, edits=found.edits()) == [1, 2, 3]
    assert abs(f.margin(m.run(f.asked(0), edits=found.edits())["logits"], None).item()) < 0.5


def test_heads_of_a_group_share_their_keys_and_values() -> None:
    m = attached("llama")
    x, labels = {"input_ids": torch.arange(10, 20)[None]}, [21]
    found = dampen(m, x, x, labels=labels, retain_labels=labels)
    loss = torch.nn.functional.cross_entropy(m.module(**x).logits[:, -1].float(), torch.tensor(labels))
    layer = m.anatomy.towers["text"].layers[1]
    attention = m.module.get_submodule(layer.attention)
    names = ("q_proj", "k_proj", "v_proj", "o_proj")
    q, k, v, o = (slope.double().square() for slope in torch.autograd.grad(
        loss, [getattr(attention, name).weight for name in names]))  # fmt: skip
    for head in range(layer.heads):
        mine, group = (slice(n * layer.d_head, (n + 1) * layer.d_head) for n in (head, head // layer.group))
        wanted = q[mine].sum() + k[group].sum() + v[group].sum() + o[:, mine].sum()
        n = found.sites.index(f"L1.H{head}")
        assert float(found.forget[n, 0]) == pytest.approx(float(wanted), rel=1e-3)


def test_a_task_and_its_inputs_give_the_same() -> None:
    m = interp.load("zoo:ioi")
    task = interp.tasks.ioi(m, n=4)
    labels = [row[0] for row in task.answer_ids]
    whole = dampen(m, task, task, heads="L1.H*")
    same = dampen(m, task.clean, task.clean, labels=labels, retain_labels=labels, heads="L1.H*")
    assert torch.allclose(whole.forget, same.forget, rtol=1e-3)
    assert bool(whole.touched.eq(0).all()), "what is in both sets is not above the rest"


def test_the_change_is_kept_on_disk_and_put_on_its_own_model_only(tmp_path: Path) -> None:
    found = asked()
    found.save(tmp_path)
    again = interp.open(tmp_path)
    assert isinstance(again, Dampened)
    for one, other in zip(found.on(tiny()).module.parameters(), again.on(tiny()).module.parameters(), strict=True):
        assert torch.equal(one, other)
    with pytest.raises(InterpError, match="another model"):
        again.on(f.knows())
    assert {"ratio", "touched", "factor"} & set(found.to_frame().columns) == {"touched", "factor"}
    assert found.plot().data


def test_a_share_that_alpha_cannot_reach_is_said() -> None:
    how: dict[str, Any] = {"labels": f.named(0), "retain_labels": f.named(1, 2, 3)}
    found = dampen(f.knows(), f.asked(0), f.asked(1, 2, 3), against="full", **how)
    assert not found.by
    assert "a weight only forget uses has 4" in repr(found)


def test_intervals_hold_infinite_ratios() -> None:
    found = dampen(f.knows(), f.asked(0, 0), f.asked(1, 2, 3), labels=f.named(0, 0), retain_labels=f.named(1, 2, 3))
    frame = found.to_frame()
    assert not frame["low"].isna().any()


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ({"alpha": 0.0}, "above 0"),
        ({"batch": 0}, "at least 1"),
        ({"labels": None}, "no right answers"),
        ({"labels": [1]}, "one a row"),
        ({"heads": "L9.H0"}, "no layer 9"),
    ],
)
def test_what_makes_no_sense_is_refused(how: dict[str, Any], said: str) -> None:
    given: dict[str, Any] = {"labels": FORGET[1], "retain_labels": RETAIN[1], **how}
    with pytest.raises(InterpError, match=said):
        dampen(tiny(), FORGET[0], RETAIN[0], **given)


def test_an_empty_set_is_refused() -> None:
    empty = {"input_ids": torch.zeros(0, 5, dtype=torch.long)}
    with pytest.raises(InterpError, match="empty"):
        dampen(tiny(), empty, RETAIN[0], labels=[], retain_labels=RETAIN[1])


def test_a_model_whose_heads_cannot_be_told_apart_is_referred_to_gates() -> None:
    m, x, labels = mpt(), {"input_ids": torch.arange(10, 20)[None]}, [21]
    with pytest.raises(InterpError, match="fisher-ratio"):
        dampen(m, x, x, labels=labels, retain_labels=labels)
