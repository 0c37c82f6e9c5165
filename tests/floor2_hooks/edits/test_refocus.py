"""Weight moved off sinks where a head looks at the image, against the definition, row by row in float64; and edits that
go on at tokens which are generated."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from looking import asked, family, picture
from torch import Tensor

import interp
from interp.edits import Emphasize, Refocus
from interp.hooks.errors import EditError

NUMPY = "ignore:__array__ implementation:DeprecationWarning:transformers.models.paligemma"
pytestmark = pytest.mark.filterwarnings(NUMPY)


def moved(a: Tensor, sinks: list[int], image: list[int], *, f: float, least: float, rho: float) -> tuple[Tensor, bool]:
    """One row of weights as VAR defines it, and whether it looked."""
    rest = [j for j in image if j not in sinks]
    whole, free = sum(float(a[j]) for j in image), sum(float(a[j]) for j in rest)
    if whole < least or free < rho * whole or free == 0:
        return a, False
    out, budget = a.clone(), f * sum(float(a[j]) for j in sinks)
    for j in sinks:
        out[j] = (1 - f) * a[j]
    for j in rest:
        out[j] = a[j] + budget * float(a[j]) / free
    return out, True


@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl", "smolvlm", "paligemma"])
@pytest.mark.parametrize(("least", "rho"), [(0.2, 0.5), (0.6, 0.0), (0.0, 0.8)])
def test_weight_moves_as_var_defines_it_and_rows_sum_to_what_they_did(name: str, least: float, rho: float) -> None:
    m, x = asked(name)
    image = x.roles.where("image")
    sinks = torch.zeros_like(image)
    for row in range(2):
        columns = image[row].nonzero().flatten()
        sinks[row, columns[[1 + row, 3]]] = True
        sinks[row, int(x.valid[row].int().argmax())] = True
    plain = m.run(x, record=["text.L1.pattern", "text.L1.v"])
    edit = Refocus("text.L1.H*", sinks=sinks, fraction_moved=0.6, least=least, rho=rho)
    tape = m.run(x, record=["text.L1.pattern", "text.L1.z"], edits=[edit])
    looked = []
    group = m.anatomy.towers["text"].layer(1).group
    for row in range(2):
        at, there = sinks[row].nonzero().flatten().tolist(), image[row].nonzero().flatten().tolist()
        for head in range(2):
            for i in x.valid[row].nonzero().flatten().tolist():
                a = plain["text.L1.pattern"][row, head, i].double()
                want, here = moved(a, at, there, f=0.6, least=least, rho=rho)
                looked.append(here)
                found = tape["text.L1.pattern"][row, head, i].double()
                torch.testing.assert_close(found, want, atol=1e-6, rtol=1e-5)
                assert float(found.sum()) == pytest.approx(float(a.sum()), abs=1e-6)
                z = want @ plain["text.L1.v"][row, :, head // group].double()
                torch.testing.assert_close(tape["text.L1.z"][row, i, head].double(), z, atol=1e-6, rtol=1e-5)
    assert any(looked), "rows that look, or this tests nothing"
    assert name == "paligemma" or not all(looked), "and rows that do not; there every row sees the whole prompt"


def test_a_fraction_of_nothing_changes_nothing() -> None:
    m, x = asked("llava")
    same = m.run(x, edits=[Refocus("text.L*.H*", fraction_moved=0.0)])["logits"]
    torch.testing.assert_close(same, m.run(x)["logits"])


@pytest.mark.parametrize("what", [{"fraction_moved": 1.5}, {"least": -0.1}, {"rho": 2.0}])
def test_shares_are_shares(what: dict[str, Any]) -> None:
    with pytest.raises(EditError, match="are shares"):
        Refocus("text.L1.H*", **what)


EDITS = [
    Refocus("text.L*.H*", sinks="first", fraction_moved=0.7, least=0.0, rho=0.0, positions="last", onward=True),
    Emphasize("text.L*.H*", keys="image", amount=3.0, positions="last", onward=True),
    interp.Scale("text.L*.H1.z", 3.0, positions="last", onward=True),
]


@pytest.mark.parametrize("edit", EDITS, ids=lambda e: type(e).__name__)
@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl"])
def test_edits_go_on_at_generated_tokens_as_if_each_row_had_been_the_last(name: str, edit: Any) -> None:
    """The oracle has no cache: the prompt with what was said so far, the same edit at the rows that made a token. What
    earlier rows were given stays, as a cache keeps it."""
    m, x = asked(name, rows=1)
    got = m.generate(x, edits=[edit], max_new_tokens=4)
    plain = m.generate(x, max_new_tokens=4)
    stays = m.generate(x, edits=[replace(edit, onward=False)], max_new_tokens=4)
    assert not torch.equal(got.logprobs, plain.logprobs)
    torch.testing.assert_close(stays.logprobs[:, 0], got.logprobs[:, 0])
    assert not torch.equal(stays.logprobs[:, 1:], got.logprobs[:, 1:])
    ids = torch.cat([x.ids, got.ids], 1)
    call = {**x.kwargs, "input_ids": ids, "attention_mask": torch.ones_like(ids)}
    for name_ in ("mm_token_type_ids",):
        if name_ in call:
            call[name_] = torch.nn.functional.pad(call[name_], (0, 4))
    whole = m.inputs(call)
    rows = torch.zeros(whole.valid.shape, dtype=torch.bool)
    rows[:, x.length - 1 :] = True
    logits = m.run(whole, edits=[replace(edit, positions=rows, onward=False)])["logits"]
    said = logits[:, x.length - 1 : -1].float().log_softmax(-1).gather(-1, got.ids[..., None]).squeeze(-1)
    torch.testing.assert_close(got.logprobs, said, atol=2e-5, rtol=1e-5)


def test_it_runs_in_bfloat16_with_the_rows_of_a_cache() -> None:
    m = interp.attach(copy.deepcopy(family("llava").module).to(torch.bfloat16), family("llava").processor)
    x = m.prepare(["<image>What is in the image?"], images=[[picture()]], chat=False)
    edit = Refocus("text.L*.H*", sinks="first", fraction_moved=0.9, least=0.0, rho=0.0, positions="last", onward=True)
    assert bool(torch.isfinite(m.generate(x, edits=[edit], max_new_tokens=3).logprobs).all())


def test_code_of_others_that_generates_is_under_them_too() -> None:
    """transformers hands the pictures it has encoded from call to call, beside the ids."""
    m, x = asked("llava", rows=1)
    edit = EDITS[0]
    with m.edited([edit]):
        ids = m.module.generate(**x.kwargs, max_new_tokens=4, do_sample=False)
    assert torch.equal(ids[:, x.length :], m.generate(x, edits=[edit], max_new_tokens=4).ids)


def test_a_sweep_under_such_edits_is_full_passes_under_them() -> None:
    m, x = asked("llava", rows=1)
    y = m.prepare(["<image>What is in the image?"], images=[[picture(60, 40, 7)]], chat=False)
    edits = [Emphasize("text.L*.H*", keys="image", amount=3.0, positions="last", onward=True), EDITS[0]]

    def metric(logits: Tensor, _: Any) -> Tensor:
        return logits[:, -1, 30] - logits[:, -1, 40]

    with m.edited(edits):
        with pytest.warns(UserWarning, match="patched in full forward passes"):
            e = interp.patch(m, base=x, source=y, metric=metric, sites="text.L*.H*.z")
        base = metric(m.run(x)["logits"], x)
        tape = m.run(y, record="text.L1.H1.z")["text.L1.H1.z"]
        want = metric(m.run(x, edits=[interp.Set("text.L1.H1.z", tape)])["logits"], x) - base
    found = e.to_frame().set_index("site")["estimate" if "estimate" in e.to_frame() else "score"]
    assert float(found["text.L1.H1.z"]) == pytest.approx(float(want), abs=1e-5)
    assert abs(float(want)) > 1e-6
