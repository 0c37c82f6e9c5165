"""Maps, circuits, scatters and pictures in a real browser: they fill their room, say what is under the pointer, and
mean one thing by a colour."""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import AbstractContextManager
from itertools import combinations
from typing import Any

import numpy as np
import pytest
from browsing import browser
from explored import large, made_up, pictured

from interp.results.figures.colours import LESS, MORE

pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(browser() is None, reason="no browser: Debian's `chromium` is not installed"),
]
Open = Callable[..., AbstractContextManager[Any]]


def wide(tab: Any, where: str) -> float:
    return float(tab.locator(where).first.bounding_box()["width"])


def test_maps_take_the_width_they_have(show: Open) -> None:
    with show(large(), fragment="#head=L23.H3", width=1280) as tab:
        for part, picture in (("#map", "#map figure svg"), ("#scatter", "#scatter .scroll svg")):
            assert wide(tab, picture) > 0.85 * wide(tab, part)
        assert wide(tab, "#circuit .scroll svg") > 0.85 * wide(tab, "#circuit")
        written = tab.locator('#map [data-head="L24.H3"] text').inner_html()
        said = tab.locator('#map [data-head="L24.H3"]').get_attribute("aria-label")
        assert f"denoising {written}" in said, "wide cells say their number"
        tab.set_viewport_size({"width": 420, "height": 900})
        tab.wait_for_function("document.querySelector('#map figure svg').getBoundingClientRect().width < 420")
        assert tab.evaluate("document.documentElement.scrollWidth") <= 420
        assert tab.locator("#map [aria-selected=true]").get_attribute("data-head") == "L23.H3"


def test_three_thousand_heads_are_one_picture(show: Open) -> None:
    payload = made_up(48, 64, length=2)
    with show(payload, width=1280) as tab:
        cells = tab.locator("#map [role=gridcell]")
        assert cells.count() == 48 * 64
        scroll = "one => one.scrollWidth <= one.clientWidth + 1"
        assert tab.locator("#map figure .scroll").evaluate(scroll)
        assert tab.locator("#map figure svg").bounding_box()["height"] < 900
        assert cells.first.locator("rect").first.bounding_box()["width"] >= 7
        sure = [row for row in payload["scores"] if row["method"] != "entropy" and row["low"] * row["high"] > 0]
        assert tab.locator('#map [role=gridcell] path[d*="h"]').count() == len(sure), "a sign where 0 is left out"


def test_what_is_under_the_pointer_is_said_at_the_pointer(show: Open) -> None:
    with show(made_up(), fragment="#head=L0.H0") as tab:
        tip, cell = tab.locator("#tip"), tab.locator('#map [data-head="L1.H2"]')
        cell.hover()
        box, at = tip.bounding_box(), cell.bounding_box()
        assert abs(box["x"] - at["x"] - at["width"] / 2) < 40
        assert abs(box["y"] - at["y"] - at["height"] / 2) < 40
        lines = tip.locator("> *").all_inner_texts()
        assert lines[0] == "L1.H2"
        assert lines[1] in cell.get_attribute("aria-label")
        assert "induction 0.98" in lines
        tab.keyboard.press("Escape")
        assert not tip.is_visible()
        cell.hover(position={"x": 3, "y": 3})
        assert tip.is_visible()
        tab.mouse.move(2, 2)
        assert not tip.is_visible()
        tab.locator("#choose-metric").focus()
        tab.keyboard.press("Tab")
        for _ in range(8):
            if tab.evaluate("document.activeElement.getAttribute('role')") == "gridcell":
                break
            tab.keyboard.press("Tab")
        assert tip.locator("b").inner_text() == "L0.H0"
        tab.keyboard.press("ArrowRight")
        assert tip.locator("b").inner_text() == "L0.H1"


def test_every_colour_has_a_legend_and_signs_have_the_same_colours(show: Open) -> None:
    payload = made_up()
    effects = {row["site"]: row["estimate"] for row in payload["scores"] if row["method"] != "entropy"}
    with show(payload) as tab:
        for part in ("#map", "#scatter", "#ranking", "#circuit"):
            assert tab.locator(f"{part} .legend").count() == 1, part
        bars = tab.locator("#ranking [role=option]").evaluate_all(
            "all => all.map(one => [one.dataset.head, one.querySelectorAll('rect')[1].getAttribute('fill')])"
        )
        assert len(bars) == 16
        assert all(fill == (LESS if effects[site] < 0 else MORE) for site, fill in bars)
        lines = tab.locator("#circuit .edge path").evaluate_all("all => all.map(one => one.getAttribute('stroke'))")
        assert set(lines) == {LESS, MORE}


def parts(tab: Any) -> dict[str, tuple[float, float]]:
    """Where the parts of a circuit stand."""
    found = tab.locator("#circuit [data-part]").evaluate_all(
        "all => all.map(one => { const r = one.querySelector('rect'); return [one.dataset.part, +r.getAttribute('x'),"
        " +r.getAttribute('y')]; })"
    )
    return {name: (x, y) for name, x, y in found}


def test_a_circuit_of_a_thousand_edges_keeps_its_parts_in_their_places(show: Open) -> None:
    with show(large(), fragment="#head=L23.H3&edges=60", width=1280) as tab:
        few = parts(tab)
        tab.locator("#choose-edges").press("End")
        many = parts(tab)
        assert "1328 of 1328 edges" in tab.locator("#circuit").inner_text()
        assert len(few) < len(many) == 270
        assert all(many[name] == place for name, place in few.items())
        for (name, (x, y)), (other, (x2, y2)) in combinations(many.items(), 2):
            assert (y == y2) == (name.partition(".")[0] == other.partition(".")[0])
            assert (x == x2) == (name.partition(".")[2] == other.partition(".")[2])
        assert tab.locator("#circuit .scroll svg").bounding_box()["height"] <= 1100
        boxes = tab.locator("#circuit .scroll svg text").evaluate_all(
            "all => all.map(one => one.getBoundingClientRect()).map(r => [r.left, r.top, r.right, r.bottom])"
        )
        for a, b in combinations(boxes, 2):
            assert a[2] <= b[0] + 1 or b[2] <= a[0] + 1 or a[3] <= b[1] + 3 or b[3] <= a[1] + 3, "labels overlap"
        tab.locator("#choose-score").fill("1.5")
        tab.locator("#choose-score").press("Tab")
        scores = [abs(edge["score"]) for edge in large()["circuit"]["edges"]]
        assert f"{sum(score >= 1.5 for score in scores)} of 1328 edges" in tab.locator("#circuit").inner_text()


def test_paths_down_and_up_are_shown_from_what_is_pointed_at(show: Open) -> None:
    with show(made_up(), fragment="#head=L3.H0") as tab:
        names = {"embed", "L0.H1", "L0.H3", "L0.mlp", "L1.H2", "logits"}
        part = lambda name: tab.locator(f'#circuit [data-part="{name}"]')  # noqa: E731
        faint = lambda: {name for name in names if float(part(name).get_attribute("opacity")) < 1}  # noqa: E731
        over = "#circuit g[pointer-events=none] .edge"
        assert set(parts(tab)) == names
        assert faint() == set()
        part("L0.H3").hover()
        assert faint() == names - {"L0.H3", "L1.H2", "logits"}
        assert tab.locator(over).count() == 2
        assert "L1.H2.v_in +0.3" in tab.locator("#tip").inner_text()
        part("L1.H2").hover()
        assert faint() == set()
        assert tab.locator(over).count() == 6
        tab.mouse.move(2, 2)
        assert tab.locator(over).count() == 0
        part("L0.mlp").click()
        tab.mouse.move(2, 2)
        assert part("L0.mlp").get_attribute("aria-pressed") == "true"
        assert faint() == {"L0.H1", "L0.H3"}
        part("L0.mlp").press("ArrowDown")
        assert tab.evaluate("document.activeElement.dataset.part") in ("L0.H1", "L0.H3")
        tab.keyboard.press("ArrowDown")
        assert tab.evaluate("document.activeElement.dataset.part") == "embed"


def looking() -> dict[str, Any]:
    """A picture with weights that are small in one head, and a rollout."""
    payload = pictured()
    weights = payload["patterns"][0]["weights"]
    weights[1] = weights[1] * 0.01
    flow = np.random.default_rng(3).random((14, 14))
    payload["examples"][0]["rollout"] = {"rows": list(range(14)), "weights": flow / flow.sum(1, keepdims=True)}
    return payload


def labels(tab: Any) -> list[float]:
    words = tab.locator("#card .patch").evaluate_all("all => all.map(one => one.getAttribute('aria-label'))")
    return [float(one.rpartition(" ")[2]) for one in words]


def test_a_picture_is_large_in_its_colours_and_a_patch_shows_where_it_looks(show: Open) -> None:
    payload = looking()
    weights = payload["patterns"][0]["weights"][1]
    with show(payload, fragment="#head=vision.L0.H1", width=1280) as tab:
        figure = tab.locator("#card figure.picture")
        assert figure.locator("svg[role=grid]").bounding_box()["width"] > 400
        assert figure.locator("image").get_attribute("filter") is None
        assert tab.locator("#card .token").all_inner_texts() == ["[CLS]", "register 0"]
        assert labels(tab) == pytest.approx(weights[0, 2:], rel=0.01, abs=weights.max() / 255), "the class token's"
        top = figure.locator(".legend text").nth(1).inner_html()
        assert float(top) == pytest.approx(weights[:2, 2:].max(), rel=0.02), "a scale of this head"
        figure.locator(".patch").nth(5).hover()
        assert labels(tab) == pytest.approx(weights[7, 2:], rel=0.01, abs=weights.max() / 255)
        assert tab.locator("#tip b").inner_text() == "row 1, column 1"
        tab.mouse.move(2, 2)
        assert labels(tab) == pytest.approx(weights[0, 2:], rel=0.01, abs=weights.max() / 255)
        minis = figure.locator(".mini")
        assert minis.evaluate_all("all => all.map(one => one.dataset.head)") == [f"vision.L0.H{n}" for n in range(3)]
        tab.get_by_role("checkbox", name="all layers").check()
        assert minis.count() == 6
        minis.nth(4).click()
        assert tab.locator("#card h2").inner_text() == "Head vision.L1.H1"
        tab.get_by_label("Map of").select_option("flow")
        assert labels(tab) == pytest.approx(payload["examples"][0]["rollout"]["weights"][0, 2:], rel=0.01, abs=1e-3)
        tab.locator("#choose-picture").select_option("plain")
        assert set(figure.locator(".patch").evaluate_all("all => all.map(o => +o.getAttribute('fill-opacity'))")) == {0}


def test_a_patch_whose_row_was_not_kept_shows_the_nearest_and_says_so(show: Open) -> None:
    payload = pictured()
    block = payload["patterns"][0]
    rows = [0, 2, 7, 13]
    payload["patterns"] = [{**block, "weights": block["weights"][:, rows], "rows": rows}]
    with show(payload, fragment="#head=vision.L0.H1") as tab:
        tab.locator("#card .patch").nth(6).hover()
        assert "Of patch (1,2) no row was kept: shown is the nearest that was, patch (1,1)" in re.sub(
            r"\s+", " ", tab.locator("#card figcaption").inner_text()
        )
        assert labels(tab) == pytest.approx(block["weights"][1, 7, 2:], rel=0.01, abs=1 / 255)
