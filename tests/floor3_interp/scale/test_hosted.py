"""A hosted model's runs, through nnsight's own simulation of a server, are those of the same model here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import interp
from interp.scale.hosted import Hosted, hosted

pytestmark = pytest.mark.scale
IDS = {"input_ids": torch.arange(12).view(2, 6)}
PLACES = ["L*.z", "L1.resid_pre", "L1.resid_mid", "L0.attn_out", "L1.mlp_out", "final_norm", "L1.H6,1.z", "embed"]


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> tuple[Hosted, interp.Model]:
    transformers_model = pytest.importorskip("nnsight", reason="nnsight is not installed").TransformersModel
    from two_processes import small

    from interp.zoo.catalog import build

    where: Path = tmp_path_factory.mktemp("hosted")
    small().save_pretrained(where)
    away = transformers_model(str(where), task="text-generation", tokenizer=build("zoo:ioi")[1])
    return hosted(away, remote="local"), interp.attach(small())


EDITS: dict[str, list[Any]] = {
    "none": [],
    "heads": [interp.Scale("L0.H2.z", 0.0), interp.Set("L1.H1,6.z", torch.arange(8.0).view(2, 4))],
    "positions": [interp.Add("L0.resid_post", torch.arange(32.0) / 9, amount=0.5, positions=[2, 3])],
    "mean": [interp.Mean("L0.H5.z", torch.full((4,), 0.3), positions="last"), interp.Zero("L1.mlp_out")],
}


@pytest.mark.parametrize("name", EDITS)
def test_a_trace_has_the_numbers_of_a_run(both: tuple[Hosted, interp.Model], name: str) -> None:
    here, there = (m.run(IDS, record=PLACES, edits=EDITS[name]) for m in both)
    assert here.sites == there.sites
    for site in there.sites:
        torch.testing.assert_close(here[site], there[site])


def test_some_positions(both: tuple[Hosted, interp.Model]) -> None:
    here, there = (m.run(IDS, record="L1.H6.z", positions="last") for m in both)
    torch.testing.assert_close(here["L1.H6.z"], there["L1.H6.z"])


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "a pattern": ({"record": "L0.pattern"}, "border of a module"),
    "queries": ({"record": "L0.q"}, "border of a module"),
    "how heads attend": ({"edits": [interp.Blend("L0.H1")]}, "border of a module"),
    "a function": ({"edits": [interp.Apply("L0.z", lambda z: z)]}, "multiple plus a constant"),
    "a mean of the run": ({"edits": [interp.Mean("L0.H1.z")]}, "multiple plus a constant"),
    "rows": ({"edits": [interp.Scale("L0.H1.z", 0.0, rows=(0,))]}, "rows="),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_it_cannot_do_is_said(both: tuple[Hosted, interp.Model], name: str) -> None:
    how, said = REFUSED[name]
    with pytest.raises(interp.InterpError, match=said):
        both[0].run(IDS, **how)


def test_a_model_that_is_not_hosted_is_refused() -> None:
    with pytest.raises(interp.InterpError, match="expected an nnsight model"):
        hosted(torch.nn.Linear(2, 2))
