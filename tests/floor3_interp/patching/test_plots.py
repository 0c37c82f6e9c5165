"""Figures of results: every cell is in them, in its place."""

from __future__ import annotations

import pytest

import interp
from interp.results.effects import Effects


@pytest.fixture(scope="module")
def planted() -> tuple[interp.Model, interp.Task]:
    m = interp.load("zoo:planted-decoder")
    return m, interp.tasks.key_value(m, n=2)


def patched(planted: tuple[interp.Model, interp.Task], **how: object) -> Effects:
    m, task = planted
    found = interp.patch(m, base=task.corrupt, source=task.clean, metric=task.metric, **how)
    assert isinstance(found, Effects)
    return found


def test_heads_are_a_map_with_the_same_scale_on_both_sides(planted: tuple[interp.Model, interp.Task]) -> None:
    e = patched(planted, sites="L*.H*.z")
    heat = e.plot().data[0]
    assert heat.type == "heatmap"
    assert heat.zmin == -heat.zmax
    assert list(heat.y) == ["L0", "L1"]
    assert heat.z.ravel().tolist() == e.mean.tolist()
    assert heat.texttemplate


def test_heads_by_position_have_a_row_each(planted: tuple[interp.Model, interp.Task]) -> None:
    e = patched(planted, sites="L1.H*.z", positions="each")
    heat = e.plot().data[0]
    assert list(heat.y) == [f"L1H{h}" for h in range(6)]
    assert heat.z.ravel().tolist() == e.mean.tolist()


@pytest.mark.parametrize(
    "how",
    [{"sites": "L*.attn_out"}, {"cells": [["L0.H1.z", "L1.H0.z"], ["L0.H2.z"]]}, {"sites": ["L*.mlp_out", "L*.z"]}],
    ids=["layers", "groups", "kinds"],
)
def test_cells_without_two_axes_are_bars_by_name(planted: tuple[interp.Model, interp.Task], how: dict) -> None:
    e = patched(planted, **how)
    bars = e.plot().data[0]
    assert bars.type == "bar"
    assert list(bars.x) == list(e.sites)
    assert bars.y.tolist() == e.mean.tolist()
    low, _ = e.interval()
    assert (bars.y - bars.error_y.arrayminus).tolist() == pytest.approx(low.tolist())
