"""The experiment's own parts: the demo's prompts on any tokenizer, and its correlations."""

from __future__ import annotations

import runpy
from typing import Any

import pytest
import torch
from house import ROOT
from transformers import GPT2Config, GPT2LMHeadModel

import interp
from interp.planted.wiring import tokenizer

SCRIPT = ROOT / "experiments" / "relp_vs_atp.py"


@pytest.fixture(scope="module")
def script() -> dict[str, Any]:
    return runpy.run_path(str(SCRIPT))


@pytest.fixture(scope="module")
def checkpoint(script: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> str:
    """A random GPT-2 on disk whose words are those of the prompts."""
    words = {w for row in script["SENTENCES"] for part in row for w in part.split()}
    words |= {f"{place}," for place in ("shops", "park")} | {"and", "went", "to", "the", "gave"}
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=64, n_embd=32, n_layer=2, n_head=4, n_positions=32))
    path = str(tmp_path_factory.mktemp("checkpoint"))
    model.save_pretrained(path)
    tokenizer(sorted(words)).save_pretrained(path)
    return path


def test_a_checkpoint_on_disk_gets_the_eight_prompts_and_a_table(
    script: dict[str, Any], checkpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = script["demo"](interp.load(checkpoint))
    assert len(task) == 8
    assert bool(torch.equal(task.clean.ids[0], task.corrupt.ids[1]))
    assert bool((task.clean.ids[:, 0] == 1).all())
    assert [(a, w) for (a,), (w,) in zip(task.answers[:2], task.wrong[:2], strict=True)] == [
        (" Mary", " John"),
        (" John", " Mary"),
    ]
    monkeypatch.setitem(script["study"].__globals__, "PLACES", {"attn": "L*.attn_out"})
    rows = script["study"](checkpoint, rows=8, steps=2)
    assert len(rows) == 2 * 4
    assert all(-1 <= row["pearson"] <= 1 for row in rows)
    assert set(script["brief"](rows)["noise"]["attn"]) == {"atp", "atp*", "relp", "ig"}


def test_agreement_counts_changed_cells_and_the_largest(script: dict[str, Any]) -> None:
    exact = torch.tensor([0.0, 1.0, 2.0, 10.0])
    estimate = torch.tensor([0.0, 2.0, 1.0, 30.0])
    made = script["agreement"](estimate, exact, torch.tensor([False, True, True, True]))
    assert made["pearson"] == pytest.approx(float(torch.corrcoef(torch.stack([estimate[1:], exact[1:]]))[0, 1]))
    assert made["all"] == pytest.approx(float(torch.corrcoef(torch.stack([estimate, exact]))[0, 1]))
    assert made["without largest"] == pytest.approx(-1)
    assert made["spearman"] == pytest.approx(0.5)
    assert made["top 10"] == 1
