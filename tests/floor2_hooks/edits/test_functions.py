"""Edits that hold a function: what they do, how they compare and print, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import models
import pytest
import torch
from torch import Tensor

import interp
from interp.edits import Program
from interp.hooks.errors import EditError, NotFired
from interp.hooks.examples.example import example

attached = partial(models.attached, dtype=torch.float64)


def made(name: str = "llama", padding: Any = None) -> tuple[interp.Model, Any]:
    m = attached(name)
    return m, m.inputs(dict(example(m.module, batch=3, length=6, padding=padding, seed=2)))


def bent(x: Tensor) -> Tensor:
    return x.sin() + x.mean(1, keepdim=True)


SITES = ["L1.z", "L1.H2.z", "L0.H3,1.q", "L1.K1.k", "L1.v", "L0.resid_mid", "L1.resid_post", "L1.H0.pattern", "logits"]


@pytest.mark.parametrize("site", SITES)
def test_what_a_function_returns_is_what_the_model_goes_on_with(site: str) -> None:
    m, x = made()
    before, after = (m.run(x, record=site, edits=edits)[site] for edits in ([], [interp.Apply(site, bent)]))
    torch.testing.assert_close(after.double(), bent(before.double()), atol=1e-7, rtol=1e-6)


def test_a_function_is_shown_the_whole_and_changes_what_is_named() -> None:
    """A mean over positions is over all of them, and is put at the last; a change in place goes no further."""
    m, x = made(padding="left")
    seen: list[tuple[int, ...]] = []

    def at_once(z: Tensor) -> Tensor:
        seen.append(tuple(z.shape))
        z[:] = z.mean(1, keepdim=True) + 1
        return z

    before = m.run(x, record="L1.z")["L1.z"]
    after = m.run(x, record="L1.z", edits=[interp.Apply("L1.H1,2.z", at_once, positions="last", rows=(0, 2))])["L1.z"]
    assert seen == [(3, 6, 2, 8)]
    want = before.clone()
    at = x.mask("last") & torch.tensor([True, False, True])[:, None]
    want[:, :, 1:3] = torch.where(at[..., None, None], before[:, :, 1:3].mean(1, keepdim=True) + 1, before[:, :, 1:3])
    torch.testing.assert_close(after, want)
    assert torch.equal(after[:, :, [0, 3]], before[:, :, [0, 3]])


def test_gradients_flow_through_a_function() -> None:
    m, x = made("gpt2")
    factor = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)

    def answer(by: Any, **how: Any) -> Any:
        return m.run(x, edits=[interp.Apply("L0.H1.z", lambda z: z * by)], **how)

    tape = answer(factor, record="L0.resid_pre", grad=True)
    (slope,) = torch.autograd.grad(tape["logits"][:, -1, 3].sum(), factor)
    low, high = (answer(0.7 + by)["logits"][:, -1, 3].sum() for by in (-1e-4, 1e-4))
    torch.testing.assert_close(slope, (high - low) / 2e-4, atol=1e-8, rtol=1e-5)


def test_phases_of_generating_bound_a_function() -> None:
    m, x = made()
    lengths: list[int] = []

    def counted(z: Tensor) -> Tensor:
        lengths.append(z.shape[1])
        return z

    for phase, want in (("prefill", [6]), ("decode", [1, 1]), ("both", [6, 1, 1])):
        lengths.clear()
        m.generate(x, edits=[interp.Apply("L1.z", counted, phase=phase)], max_new_tokens=3)
        assert lengths == want
    with pytest.raises(NotFired, match="Apply"):
        m.run(x, edits=[interp.Apply("L1.z", counted, rows=())])


WRONG: dict[str, tuple[Callable[[Tensor], Any], str]] = {
    "nothing": (lambda x: None, "returned NoneType; return the tensor"),
    "a shape": (lambda x: x[:, :1], r"holds \[3, 6, 4, 8\] float64 on cpu, and .* returned \[3, 1, 4, 8\] float64"),
    "a dtype": (lambda x: x.float(), "float64 on cpu, and the function returned .* float32 on cpu: return the same"),
    "a device": (lambda x: x.to("meta"), "on meta: return the same shape, dtype and device"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_a_function_may_not_return(name: str) -> None:
    m, x = made()
    function, says = WRONG[name]
    with pytest.raises(EditError, match=says):
        m.run(x, edits=[interp.Apply("L1.z", function)])


def test_an_edit_needs_its_function_and_its_kind_of_site() -> None:
    m, x = made()
    with pytest.raises(EditError, match="needs a function"):
        interp.Apply("L1.z")
    with pytest.raises(EditError, match=r"name the component, such as 'L1\.H1\.z'"):
        m.run(x, edits=[interp.Apply("L1.H1", bent)])
    with pytest.raises(EditError, match="has no component"):
        m.run(x, edits=[Program("L1.H1.z", bent)])


def times(by: Any) -> Callable[[Tensor], Tensor]:
    return lambda x: x * by


def test_functions_compare_by_their_lines_and_what_they_close_over() -> None:
    def again(x: Tensor, depth: int = 2) -> Tensor:
        return again(x * 2, depth - 1) if depth else x

    def edits(function: Any) -> interp.Apply:
        return interp.Apply("L1.z", function, positions=[1])

    assert edits(bent) == edits(bent)
    assert edits(times(2.0)) == edits(times(2.0))
    assert hash(edits(times(2.0))) == hash(edits(times(2.0)))
    assert edits(times(torch.ones(3))) == edits(times(torch.ones(3)))
    assert edits(partial(torch.add, other=1)) == edits(partial(torch.add, other=1))
    assert edits(again) == edits(again)
    for one, other in (
        (bent, times(2.0)),
        (times(2.0), times(3.0)),
        (times(torch.ones(3)), times(torch.zeros(3))),
        (partial(torch.add, other=1), partial(torch.add, other=2)),
        (lambda x: x, lambda x: x),
    ):
        assert edits(one) != edits(other)
    assert Program("L1.H1", bent) != interp.Apply("L1.H1", bent)
    assert repr(edits(bent)) == "Apply('L1.z', positions=[1], function=bent)"


def test_results_say_which_edits_the_model_ran_under() -> None:
    m, x = made()
    with m.edited([interp.Scale("L1.z", 0.5), interp.Apply("L1.z", bent)]):
        scaled, applied = m.run(x).meta["edits"]
    assert scaled.startswith("Scale('L1.z', factor=0.5) ")
    assert applied == "Apply('L1.z', function=bent) (a function)"
    with m.edited([interp.Set("L1.z", torch.ones(8))]), m.edited([interp.Set("L1.z", torch.zeros(8))]):
        ones, zeros = m.run(x).meta["edits"]
    assert ones != zeros, "told apart by content, not by how they print"
    assert "edits" not in m.run(x).meta


@pytest.mark.parametrize("edit", [interp.Apply("L0.H0.z", bent), Program("L0.H0", bent)])
def test_a_function_cannot_be_written_into_a_journal(edit: Any, tmp_path: Path) -> None:
    m = interp.load("zoo:ioi")
    task = interp.tasks.ioi(m, n=2)
    with m.edited([edit]), pytest.raises(EditError, match=r"holds a function, which cannot be written down.*out="):
        interp.patch(m, base=task.corrupt, source=task.clean, metric=task.metric, sites="L0.H1.z", out=tmp_path)
    with m.edited([edit]), pytest.raises(EditError, match="cannot be written down"):
        interp.report(m, task=task, out=tmp_path / "report")
    assert not list(tmp_path.iterdir())


def test_a_journal_tells_edits_apart(tmp_path: Path) -> None:
    m = interp.load("zoo:ioi")
    task = interp.tasks.ioi(m, n=2)
    how = {"base": task.corrupt, "source": task.clean, "metric": task.metric, "sites": "L0.H1.z", "out": tmp_path}
    with m.edited([interp.Scale("L1.H0.z", 0.5)]):
        first = interp.patch(m, **how)
        again = interp.patch(m, **how)
    assert torch.equal(first.values, again.values)
    for edits in ([], [interp.Scale("L1.H0.z", 0.4)]):
        with m.edited(edits), pytest.raises(interp.InterpError, match="holds another sweep: its edits"):
            interp.patch(m, **how)
