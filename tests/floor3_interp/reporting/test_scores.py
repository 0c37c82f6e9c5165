"""The estimate that comes nearer to exact patching leads, and a sample of heads is enough to tell."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from reported import SMALL, model
from torch import Tensor

import interp
from interp import tasks
from interp.reporting.sections.scores import _lead, agreements, sample
from interp.reporting.steps.gathered import Gathered
from interp.reporting.steps.subject import Subject, Wanted
from interp.results.effects import Effects
from interp.results.intervals import spearman


def effects(heads: list[str], values: Tensor, method: str) -> Effects:
    ends = torch.zeros(1), torch.ones(1)
    return Effects(tuple(f"{h}.z" for h in heads), None, values[:, None].double(), *ends, 0.0, {"method": method})


def gathered(exact: Tensor, relp: Tensor, atp: Tensor, *, patched: list[int] | None = None) -> Gathered:
    heads = [f"L{n // 8}.H{n % 8}" for n in range(len(exact))]
    made = Gathered("t", "m", "", None, {})
    made.effects = {"relp text": effects(heads, relp, "relp"), "atp text": effects(heads, atp, "atp")}
    if patched is not None:
        made.effects["patch text"] = effects([heads[n] for n in patched], exact[patched], "patch")
    return made


def subject(top: int = 2) -> Subject:
    return Subject(model("ioi"), "m", tasks.ioi(model("ioi"), n=2), Wanted(top=top))


def test_all_heads_patched_give_the_plain_rank_correlations() -> None:
    draw = torch.Generator().manual_seed(1)
    exact, relp, atp = (torch.randn(16, generator=draw) for _ in range(3))
    found = agreements(gathered(exact, relp, atp, patched=list(range(16))), subject())
    assert found["relp"] == pytest.approx(float(spearman(relp, exact)), abs=1e-6)
    assert found["atp"] == pytest.approx(float(spearman(atp, exact)), abs=1e-6)


def test_a_sample_is_the_first_of_either_estimate_and_others_and_is_the_same_twice() -> None:
    draw = torch.Generator().manual_seed(2)
    exact, relp, atp = (torch.randn(64, generator=draw) for _ in range(3))
    made, asked = gathered(exact, relp, atp), subject(top=3)
    chosen = sample(made, asked, "text", 20)
    assert len(set(chosen)) == 20
    assert chosen == sample(made, asked, "text", 20)
    for scores in (relp, atp):
        first = scores.abs().argsort(descending=True)[:3].tolist()
        assert {f"L{n // 8}.H{n % 8}.z" for n in first} <= set(chosen)


def test_the_estimate_that_verification_found_better_leads_and_the_report_says_so() -> None:
    draw = torch.Generator().manual_seed(3)
    exact = torch.randn(64, generator=draw)
    near, far = exact + 0.3 * torch.randn(64, generator=draw), torch.randn(64, generator=draw)
    asked = subject(top=3)
    made = gathered(exact, far, near)
    patched = [int(s[1]) * 8 + int(s.split(".")[1][1:]) for s in sample(made, asked, "text", 24)]
    made = gathered(exact, far, near, patched=patched)
    _lead(made, asked)
    assert made.leading == ["atp", "relp"]
    assert made.left_out[0].startswith(
        "Heads are ranked by atp, which orders the heads that were patched exactly better"
    )
    found = made.answers["agreement with exact"]
    assert found["atp"] == pytest.approx(float(spearman(near, exact)), abs=0.15)
    other = gathered(exact, near, far, patched=patched)
    _lead(other, asked)
    assert other.leading == ["relp", "atp"]


def test_a_vision_model_is_ranked_by_the_better_estimate(tmp_path: Path) -> None:
    m = model("shapes-vit")
    how: dict[str, Any] = {"task": tasks.shapes(m, n=8), "name": "zoo:shapes-vit", "circuit": False, "top": 2, **SMALL}
    made = interp.report(m, out=tmp_path / "a", exact=False, **how)
    whole = interp.report(m, out=tmp_path / "b", exact=True, **how)
    rows = whole.rows[whole.rows["direction"] == "denoise"]
    exact = rows[rows["method"] == "patch"].set_index("site")["estimate"]
    near = {
        name: float(spearman(*(torch.tensor(x.to_numpy()) for x in (mine.loc[exact.index], exact))))
        for name in ("relp", "atp")
        for mine in [rows[rows["method"] == name].set_index("site")["estimate"]]
    }
    said = [line for line in made.warnings if line.startswith("Heads are ranked by")]
    assert near.keys() == {"relp", "atp"}
    assert set(made.top(16)["method"]) <= {"relp", "atp"}
    assert len(said) >= 1
