"""Function vectors: the mean output of a planted task head transplants the task; effects are full runs' in float64."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import planted_functions as plan
import pytest
import torch
from models import attached

import interp
from interp.heads.functions.vectors import FunctionVector
from interp.hooks.errors import InputsError, ModelError, SiteError
from interp.prompts.rows import Row
from interp.tasks.task import Task


@cache
def planted() -> interp.Model:
    return interp.attach(*plan.build())


def task() -> Task:
    """Examples that say "up", and the same with the word that says nothing."""
    rows = [Row(f"up Ann {a}", f"off Ann {a}", (f" {b}",), (f" {a}",)) for a, b in pairs()[:3]]
    return Task("next", tuple(rows)).on(planted())


def zero() -> Task:
    return Task("bare", tuple(Row(a, a, (f" {b}",), (f" {a}",)) for a, b in pairs())).on(planted())


def pairs() -> list[tuple[str, str]]:
    return list(zip(plan.NUMBERS, plan.NUMBERS[1:], strict=False))


@cache
def found() -> FunctionVector:
    return interp.heads.function_vector(planted(), task(), zero=zero(), heads=1, layer=0)


def test_the_vector_of_a_planted_task_head_transplants_the_task() -> None:
    assert found().heads == ("L0.H5",)
    table = found().sufficiency().set_index(["vector", "scale"])
    assert table.loc[("task", 0.0), "accuracy"] == 0
    assert table.loc[("task", 1.0), "accuracy"] == 1
    assert table.loc[("random heads", 1.0), "probability"] < 0.1 < 0.9 < table.loc[("task", 1.0), "probability"]
    fresh = interp.attach(*plan.build())
    with fresh.edited([found().edit()]):
        said = fresh.run(zero().clean)["logits"][:, -1].argmax(-1)
    assert said.tolist() == [one[0] for one in zero().answer_ids]


def test_effects_are_those_of_full_runs() -> None:
    """Every head's mean put into the shuffled prompts by an edit of its own, in the last row."""
    m, asked = planted(), task()
    answers = torch.tensor(asked.answer_ids)
    before = m.run(asked.corrupt)["logits"][:, -1].double().softmax(-1).gather(1, answers)[:, 0]
    for site in ("L0.H5", "L1.H3", "L2.H4"):
        mean = m.run(asked.clean, record=f"{site}.z")[f"{site}.z"][:, -1].double().mean(0)
        edit = interp.Set(f"{site}.z", mean.float(), positions="last")
        after = m.run(asked.corrupt, edits=[edit])["logits"][:, -1].double().softmax(-1).gather(1, answers)[:, 0]
        assert torch.allclose(found().values[found().sites.index(site)], after - before, atol=1e-6), site


def test_only_the_last_row_is_moved() -> None:
    """In a model whose other rows matter too, with grouped queries."""
    m = attached("llama")
    rows = tuple(Row(tuple(range(i, i + 6)), tuple(range(i + 9, i + 15)), (7,), (8,)) for i in range(10, 14))
    asked = Task("ids", rows).on(m)
    made = interp.heads.function_vector(m, asked, heads=1)
    before = m.run(asked.corrupt)["logits"][:, -1].double().softmax(-1)[:, 7]
    mean = m.run(asked.clean, record="L0.H1.z")["L0.H1.z"][:, -1].double().mean(0)
    edit = interp.Set("L0.H1.z", mean.float(), positions="last")
    after = m.run(asked.corrupt, edits=[edit])["logits"][:, -1].double().softmax(-1)[:, 7]
    assert torch.allclose(made.values[made.sites.index("L0.H1")], after - before, atol=1e-8, rtol=1e-4)


def test_the_vector_is_the_sum_of_mean_writes() -> None:
    m = attached("llama")
    rows = tuple(Row(tuple(range(i, i + 6)), tuple(range(i + 9, i + 15)), (7,), (8,)) for i in range(10, 14))
    asked = Task("ids", rows).on(m)
    made = interp.heads.function_vector(m, asked, heads=["L0.H1", "L1.H2"])
    total = torch.zeros(m.module.config.hidden_size).double()
    for layer, head in ((0, 1), (1, 2)):
        z = m.run(asked.clean, record=f"L{layer}.H{head}.z")[f"L{layer}.H{head}.z"][:, -1].double().mean(0).flatten()
        weight = m.module.model.layers[layer].self_attn.o_proj.weight.double().detach()
        total += weight[:, 8 * head : 8 * head + 8] @ z
    assert torch.allclose(made.vector.double(), total, atol=1e-5)
    assert made.layer == "L0.resid_post"
    assert made.sufficiency().empty


def test_it_is_saved_and_read_back(tmp_path: Path) -> None:
    found().save(tmp_path)
    again = interp.open(tmp_path)
    assert again.heads == found().heads
    assert torch.equal(again.vector, found().vector)
    assert again.sufficiency().equals(found().sufficiency())


def test_wrong_input_is_refused() -> None:
    m = planted()
    with pytest.raises(InputsError, match="expected a task"):
        interp.heads.function_vector(m, ["up three"])
    with pytest.raises(InputsError, match="1 to 18 heads"):
        interp.heads.function_vector(m, task(), heads=0)
    with pytest.raises(SiteError, match="heads of this model"):
        interp.heads.function_vector(m, task(), heads=["L9.H9"])
    with pytest.raises(SiteError, match="layers 0 to 2"):
        interp.heads.function_vector(m, task(), heads=1, layer=7)
    with pytest.raises(ModelError, match="reads no such text"):
        interp.heads.function_vector(
            attached("bert"), Task("q", (Row((5, 6), (6, 5), (1,), (2,)),)).on(attached("bert"))
        )
