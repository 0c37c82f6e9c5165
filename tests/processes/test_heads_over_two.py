"""Heads of a tensor-parallel model in two real processes: the numbers of one, or a refusal in words; never others.

One pair of processes does everything (starting one is what costs) and each test reads what it gave.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import two_processes
from placed import check_same
from torch import Tensor

import interp

FIRST = torch.arange(12).view(2, 6)
SECOND = FIRST + 30


def metric(logits: Tensor, inputs: Any) -> Tensor:
    return logits[:, -1, 5] - logits[:, -1, 7]


def slopes(m: interp.Model, *sites: str) -> Mapping[str, Tensor]:
    return m.run(FIRST, record=sites, grad=True).grad(metric)


def edited(*edits: Any) -> Callable[[interp.Model], Any]:
    return lambda m: m.run(FIRST, edits=list(edits), record=["L1.z", "L1.pattern"])


STEPS: dict[str, Callable[[interp.Model], Any]] = {
    "all z": lambda m: m.run(FIRST, record="L*.z"),
    "heads of both": lambda m: m.run(FIRST, record=["L1.H6,1.z", "L0.H5.z", "L1.H3,6.v", "L1.K3.k", "L0.H2.q"]),
    "patterns": lambda m: m.run(FIRST, record=["L0.pattern", "L1.H6.scores", "L0.H7,2.result"]),
    "some positions": lambda m: m.run(FIRST, record=["L*.z", "L1.H5.pattern"], positions="last"),
    "everything": lambda m: m.run(FIRST, record="*"),
    "zero": edited(interp.Zero("L0.H6.z"), interp.Scale("L0.H1.z", 2.0)),
    "a vector for each head": edited(interp.Set("L0.H1,6,2.z", torch.arange(12.0).view(3, 4))),
    "everywhere, at positions": edited(interp.Add("L*.z", torch.arange(32.0).view(8, 4) / 9, positions=[2, 3])),
    "mean and subspace": edited(interp.Mean("L0.H3-4.z"), interp.edits.Project("L0.H7.z", torch.eye(4)[:, :2])),
    "keys and values": edited(interp.Zero("L0.K2.v"), interp.Scale("L1.H5.k", 0.3, expand=True)),
    "pattern": edited(interp.Set("L0.H5.pattern", torch.full((6, 6), 1 / 6)), interp.Blend("L1.H2,7", amount=0.5)),
    "keys hidden": edited(interp.MaskKeys("L1.H6", keys="first"), interp.edits.Temperature("L0.H1", 2.0)),
    "a function": edited(interp.Apply("L0.H1,6.z", lambda z: z.relu())),
    "residual": edited(interp.Scale("L0.resid_post", 0.5), interp.Scale("L0.attn_out", 2.0)),
    "statistics": lambda m: m.attention(FIRST, stats=["entropy", "first", "received", "argmax", "topk:2"]).values,
    "statistics of some": lambda m: m.attention(FIRST, stats=["entropy"], heads="L1.H6,1").values,
    "statistics of groups": lambda m: m.attention(FIRST, stats=["entropy"], reduce_groups="mean").values,
    "gradients": lambda m: slopes(m, "L0.z", "L0.q", "L1.H6,2.v", "L0.resid_post"),
    "gradient of the other's head": lambda m: slopes(m, "L1.H6.z"),
    "generated": lambda m: m.generate(FIRST, max_new_tokens=4, edits=[interp.Zero("L0.H6.z")]).ids,
    "by step": lambda m: _watched(m),
    "patch": lambda m: interp.patch(m, base=FIRST, source=SECOND, metric=metric, sites="L*.H*.z").values,
    "patch of places": lambda m: interp.patch(
        m, base=FIRST, source=SECOND, metric=metric, sites="L*.resid_pre", positions="each"
    ).values,
    "attribution": lambda m: interp.attribute(
        m, base=FIRST, source=SECOND, metric=metric, sites="L*.H*.z", verify=2
    ).values,
    "importance": lambda m: interp.importance(m, FIRST, metric=metric, by=["ablation", "gradient", "norm", "entropy"]),
    "weights": lambda m: interp.head(m, "L1.H6", data=FIRST, metric=metric).weights,
}  # fmt: skip
REFUSED: dict[str, tuple[Callable[[interp.Model], Any], str]] = {
    "heads that meet": (edited(interp.Apply("L0.H1,6.z", lambda z: z.flip(2))), "computes heads from one another"),
    "results": (edited(interp.Zero("L0.H1.result")), "edit z"),
    "neurons": (edited(interp.Scale("L0.neurons", 0.0)), "edit mlp_out"),
    "routed heads": (edited(interp.edits.RouteHeads("L0.z", 2)), "may combine heads"),
    "a program": (edited(interp.edits.Program("L0.H1", lambda part: part.values)), "may combine heads"),
    "something learned": (edited(interp.Scale("L0.H1.z", torch.ones(1, requires_grad=True))), "asks for the gradient"),
    "edges": (lambda m: interp.edges(m, base=FIRST, source=SECOND, metric=metric), "has its heads in 2 processes"),
    "a cut": (lambda m: interp.prune(m, keep_fraction=0.5, data=FIRST), "several processes"),
    "a directory": (lambda m: m.run(FIRST, record="L0.z", store="somewhere"), "save the tape in one"),
    "a rule": (
        lambda m: interp.relevance(m, FIRST, metric=metric, method="chefer-generic"),
        "reads the calls of one",
    ),
}


def _watched(m: interp.Model) -> interp.Tape:
    with m.watch(record=["L1.z"], edits=[interp.Scale("L0.H6.z", 0.0)]) as tape, torch.no_grad():
        m.module(FIRST)
        m.module(SECOND)
    return tape


def own_heads(m: interp.Model, rank: int) -> dict[str, Any]:
    """What a recording that is not gathered holds, by the name it has there, and what it becomes when it is."""
    whole, tape = (m.run(FIRST, record=["L1.z", "L1.K1,2.v", "L0.neurons"], gather=on) for on in (True, False))
    mine = [4 * rank + n for n in range(4)]
    back = m.run(FIRST, record="L*.z", gather=False).gathered()
    with pytest.raises(interp.InterpError, match="was not recorded"):
        tape["L1.z"]
    torch.testing.assert_close(back["L1.z"], whole["L1.z"])
    for head in mine:
        torch.testing.assert_close(tape[f"L1.H{head}.z"], whole[f"L1.H{head}.z"])
    return {"sites": [str(site) for site in tape.sites], "anatomy": str(m.anatomy)}


def work(rank: int, folder: Path) -> Mapping[str, Any]:
    one = interp.attach(two_processes.small())
    two = interp.attach(two_processes.over_two(two_processes.small(), folder, rank))
    report = two.check()
    found: dict[str, Any] = {"check": str(report), "passed": report.passed, "own": own_heads(two, rank)}
    for name, ask in STEPS.items():
        found[name] = [two_processes.said(lambda m=m, ask=ask: ask(m)) for m in (one, two)]  # type: ignore[misc]
    for name, (ask, _) in REFUSED.items():
        found[name] = two_processes.said(lambda ask=ask: ask(two))  # type: ignore[misc]
    found["hash"] = [one.run(FIRST).meta["model_hash"], two.run(FIRST).meta["model_hash"]]
    found["left"] = [str(handle) for handle in two.handles()]
    return found


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return two_processes.pair(work, tmp_path_factory.mktemp("two"))


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("name", STEPS)
def test_two_processes_give_the_numbers_of_one(given: list[dict[str, Any]], name: str, rank: int) -> None:
    here, there = given[rank][name]
    assert isinstance(here, dict), here
    assert isinstance(there, dict), there
    check_same(here, there, 1e-5)


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("name", REFUSED)
def test_what_they_cannot_do_is_refused_in_words(given: list[dict[str, Any]], name: str, rank: int) -> None:
    said = given[rank][name]
    assert isinstance(said, str), said
    assert REFUSED[name][1] in said


def test_a_process_names_its_heads_by_their_number_in_the_model(given: list[dict[str, Any]]) -> None:
    for rank, heads, kv in ((0, "H0,1,2,3", "K1"), (1, "H4,5,6,7", "K2")):
        own = given[rank]["own"]
        assert own["sites"] == [f"L1.{heads}.z", f"L1.{kv}.v", "L0.neurons", "logits"]
        assert f"in this process ({rank} of 2) heads {4 * rank}-{4 * rank + 3} of 8" in own["anatomy"]


def test_the_checks_hold_the_whole_model_against_itself(given: list[dict[str, Any]]) -> None:
    for one in given:
        assert one["passed"]
        assert "over 2 processes" in one["check"]
        assert "no " not in [line.split()[1] for line in one["check"].splitlines() if line.split()[1:]]
    assert given[0]["hash"][0] == given[0]["hash"][1] == given[1]["hash"][1]
    assert given[0]["left"] == given[1]["left"] == []
