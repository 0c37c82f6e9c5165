"""The report's circuit is cut by what makes up the gap best, and says what is not as it should be."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from reported import SMALL, model

import interp
from interp.circuits.graph.nodes import Graph, LayerShape
from interp.planted.probes import probe_task
from interp.reporting.sections import circuits
from interp.reporting.sections.circuits import Tried, chosen, warned

GRAPH = Graph(None, (LayerShape(0, 2, 2, True, False), LayerShape(1, 2, 2, True, False)))
SOUND = {"sound": True, "low": 0.6, "high": 1.1}


def tried(by: str, f: float, edges: int) -> Tried:
    one = interp.Circuit(GRAPH, GRAPH.mask(GRAPH.edges[:edges]))
    return Tried(replace(one, meta={"fraction asked": 0.01}), by, f)


def test_the_smallest_near_circuit_is_kept_whichever_way_it_was_cut() -> None:
    over = [tried("signed importance", f, edges) for f, edges in ((2.6, 5), (2.4, 10), (2.2, 20))]
    near = [tried("magnitude", f, edges) for f, edges in ((0.4, 6), (0.97, 12), (1.01, 21))]
    best = chosen([*over, *near])
    assert (best.by, best.f) == ("magnitude", 0.97)
    assert warned(best, [*over, *near], SOUND) == []


def test_a_circuit_that_is_not_near_is_said_to_be_the_nearest() -> None:
    over = [tried("signed importance", f, edges) for f, edges in ((2.6, 5), (2.2, 20))]
    best = chosen(over)
    assert best.f == 2.2
    (said,) = warned(best, over, SOUND)
    assert "f 2.20 to 2.60" in said
    assert "the nearest is shown, 2.20" in said


def test_intervals_with_zero_in_them_and_gaps_of_nothing_are_said() -> None:
    best = tried("magnitude", 1.0, 5)
    (said,) = warned(best, [best], {"sound": True, "low": -15.6, "high": 32.9})
    assert "cannot be distinguished from 0 [-15.60, 32.90]" in said
    (said,) = warned(best, [best], {"sound": False, "low": -48.0, "high": 12.6})
    assert "nothing to be faithful to" in said


def test_heads_that_cancel_are_kept_where_signs_would_drop_them(tmp_path: Path) -> None:
    m = model("planted-cancel")
    task = probe_task("planted-cancel", model=m)
    interp.report(m, task=task, out=tmp_path, name="zoo:planted-cancel", **SMALL)
    found: dict[str, Any] = json.loads((tmp_path / "steps" / "circuit.json").read_text())
    signed = [row["f"] for row in found["tried"] if row["by"] == "signed importance"]
    assert max(signed) > 1.5  # the head that speaks against the answer is dropped
    assert found["by"] == "magnitude"
    assert abs(1 - found["summary"]["f"]) < 0.05
    assert {edge["sender"] for edge in found["edges"]} >= {"L0.H0", "L0.H1", "L0.H3"}
    page = (tmp_path / "report.html").read_text()
    assert "Cut by magnitude" in page


def test_a_large_circuit_has_the_compact_file(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(circuits, "LISTED", 10)
    m = model("planted-cancel")
    made = interp.report(
        m, task=probe_task("planted-cancel", model=m), out=tmp_path, name="zoo:planted-cancel", **SMALL
    )  # fmt: skip
    assert not (tmp_path / "circuit.json").exists()
    graph = interp.edges(
        m, base=(t := probe_task("planted-cancel", model=m)).clean, source=t.corrupt, metric=t.metric
    ).graph
    again = interp.Circuit.load(tmp_path / "circuit.pt", graph=graph)
    assert len(again) > 0
    assert again.scores is not None
    assert int((again.scores != 0).sum()) >= len(again)
    assert "circuit.pt" in made.page.read_text()
    assert torch.equal(again.mask & ~graph.exists, torch.zeros_like(again.mask))
