"""Kinds of heads for a task: planted heads are told by their job, and numbers are their definitions in float64."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import planted_functions as plan
import pytest
import torch
from models import attached
from torch import Tensor

import interp
from interp.heads.functions import movers, negative, successor
from interp.heads.functions.result import HeadFunctions
from interp.hooks.errors import InputsError, ModelError
from interp.hooks.examples.example import example
from interp.prompts.rows import Row
from interp.tasks.task import Task


@cache
def planted() -> interp.Model:
    return interp.attach(*plan.build())


def ioi() -> Task:
    names = [("Ann", "Bob"), ("Cid", "Eve"), ("Fay", "Dan")]
    rows = [Row(f"{a} and {b} {b} to", f"{a} and {b} {a} to", (f" {a}",), (f" {b}",)) for a, b in names]
    return Task("who", tuple(rows)).on(planted())


def chain() -> Task:
    rows = [
        Row(f"{w} = {w}", f"{w} = {w}", (" yes",), (" no",), {"input": (1, 4), "chain": (5, 8)})
        for w in ("one two three", "four six five")
    ]
    return Task("chain", tuple(rows)).on(planted())


@cache
def found() -> HeadFunctions:
    return interp.heads.head_functions(planted(), ioi(), sequences={"numbers": plan.NUMBERS})


def test_planted_heads_are_told_by_their_jobs() -> None:
    assert found().labels() == {
        "L1.H0": ("S-inhibition",), "L1.H3": ("successor",), "L2.H0": ("name mover",), "L2.H1": ("negative",),
    }  # fmt: skip
    assert "iteration" in found().left_out
    assert "S-inhibition" in repr(found())


def weights(m: interp.Model, x: Any, layer: int) -> Tensor:
    module = m.module
    module.set_attn_implementation("eager")
    out = module(**x.kwargs, output_attentions=True).attentions[layer].double()
    module.set_attn_implementation("sdpa")
    return out.detach()


def test_numbers_of_movers_are_their_definition() -> None:
    """Weights of eager attention; the write of one head through a frozen final norm, by its matrices."""
    m, task = planted(), ioi()
    x, n = task.clean, found().sites.index("L2.H0")
    row = weights(m, x, 2)[:, 0, -1]
    said = x.ids == torch.tensor(task.answer_ids)
    assert torch.allclose(found().values[movers.LOOKS][n], (row * said).sum(1), atol=1e-6)
    tape = m.run(x, record=["L2.z", "L2.resid_post"])
    z = tape["L2.z"][:, -1, 0].double()
    write = z @ m.module.transformer.h[2].attn.c_proj.weight.double()[: plan.D_HEAD]
    norm = m.module.transformer.ln_f
    size = (tape["L2.resid_post"][:, -1].double().var(-1, unbiased=False, keepdim=True) + norm.eps).sqrt()
    normed = (write - write.mean(-1, keepdim=True)) / size * norm.weight.double()
    logits = normed @ m.module.lm_head.weight.double().T
    over = logits.gather(1, torch.tensor(task.answer_ids)) - logits.mean(1, keepdim=True)
    assert torch.allclose(found().values[movers.WRITES][n], over[:, 0].detach(), atol=1e-5)


def test_scores_of_weights_count_words() -> None:
    n = {name: found().sites.index(name) for name in plan.JOBS}
    copies, lowers = found().of(movers.COPIES), found().of(negative.COPIES)
    assert copies[n["L2.H0"]] == 1
    assert lowers[n["L2.H1"]] == 1
    assert copies[n["L2.H1"]] == lowers[n["L2.H0"]] == 0
    assert float(copies.sum()) == 1  # L1.H0 writes names where queries read them, not to the logits
    succeeds = found().of(successor.SUCCEEDS)
    assert succeeds[n["L1.H3"]] == 1
    assert found().values[successor.SUCCEEDS].shape[1] == len(plan.NUMBERS) - 1


def test_what_is_taken_off_is_that_of_the_word_looked_at_most() -> None:
    off = found().values[negative.LOWERS]
    at = found().sites.index("L2.H1")
    assert float(off[at].min()) > 3
    assert torch.allclose(off[found().sites.index("L2.H0")], -4 * off[at], rtol=1e-3)


def test_steps_are_fetched_by_the_iteration_head() -> None:
    """On chains of one length; in another distance it fetches the wrong word."""
    values = interp.heads.head_functions(planted(), chain(), kinds="iteration")
    assert values.labels() == {"L1.H4": ("iteration",)}
    p = weights(planted(), chain().clean, 1)
    expected = torch.stack([p[:, 4, 4 + t, 1 + t] for t in range(3)]).mean(0)
    assert torch.allclose(values.values["weight on the step's own input"][values.sites.index("L1.H4")], expected)


def test_the_refusing_head_moves_the_answer_most() -> None:
    """Ships, by a run of the module whose head looks everywhere alike."""
    m = planted()
    data = m.prepare(["Ann bomb =", "safe bomb ="])
    found = interp.heads.head_functions(m, data, kinds="safety")
    best = found.top(1)["site"].iloc[0]
    assert best == "L1.H5"
    log_p = m.run(data)["logits"][:, -1].double().log_softmax(-1)
    edit = interp.edits.UniformAttention("L1.H5")
    other = m.run(data, edits=[edit])["logits"][:, -1].double().log_softmax(-1)
    expected = (log_p.exp() * (log_p - other)).sum(-1)
    assert torch.allclose(found.values["divergence without its attention (Ships)"][11], expected, atol=1e-5)
    harmless = interp.heads.head_functions(m, m.prepare(["Ann safe =", "safe Bob ="]), kinds="safety")
    assert float(harmless.of("divergence without its attention (Ships)")[11]) < 0.01 * float(expected.mean())


def test_padding_changes_nothing() -> None:
    """The last row is the last real one."""
    m = planted()
    task = Task("who", (ioi().rows[0], Row("Ann and Bob Ann and Bob Bob to", "Ann and Bob Ann and Bob Ann to",
                                           (" Ann",), (" Bob",)))).on(m)  # fmt: skip
    both = interp.heads.head_functions(m, task, kinds=["mover", "negative"])
    alone = interp.heads.head_functions(m, task.take([0]), kinds=["mover", "negative"])
    for name in (movers.LOOKS, movers.WRITES, negative.LOWERS):
        assert torch.allclose(both.values[name][:, 0], alone.values[name][:, 0], atol=1e-5), name


def test_grouped_queries_and_half_precision() -> None:
    for name, dtype in (("llama", torch.float32), ("llama", torch.bfloat16), ("qwen3", torch.float32)):
        m = attached(name, dtype=dtype)
        x = m.inputs(dict(example(m.module, batch=2, length=6)))
        found = interp.heads.head_functions(m, x, kinds=["negative", "safety"])
        assert len(found.sites) == sum(layer.heads for layer in m.anatomy.towers["text"].layers)


def test_it_is_saved_and_read_back(tmp_path: Path) -> None:
    found().save(tmp_path)
    again = interp.open(tmp_path)
    assert again.labels() == found().labels()
    assert again.table().shape == found().table().shape
    assert again.plot().data


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ({"kinds": "movers"}, "did you mean|There are mover"),
        ({"kinds": []}, "at least one"),
        ({"movers": 0}, "at least 1"),
        ({"kinds": "iteration"}, '"input" and its "chain"'),
    ],
)
def test_what_cannot_be_measured_is_said(how: dict[str, Any], says: str) -> None:
    with pytest.raises(InputsError, match=says):
        interp.heads.head_functions(planted(), ioi(), **how)


def test_prompts_without_the_answer_are_refused_for_movers() -> None:
    task = Task("q", (Row("one two to", "two one to", (" Ann",), (" Bob",)),)).on(planted())
    with pytest.raises(InputsError, match="does not say its answer"):
        interp.heads.head_functions(planted(), task, kinds="mover")
    with pytest.raises(InputsError, match="needs a task"):
        interp.heads.head_functions(planted(), planted().prepare(["Ann and Bob to"]), kinds="S-inhibition")
    with pytest.raises(ModelError, match="looks both ways"):
        interp.heads.head_functions(attached("bert"), attached("bert").example(), kinds="negative")
