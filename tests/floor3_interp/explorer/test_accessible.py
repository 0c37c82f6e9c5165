"""axe finds nothing on the page, whatever is on it, on narrow and wide screens, light and dark."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from browsing import AXE, BROKEN, browser, complaints, opened
from explored import harmful, large, made_up, pictured
from reported import SMALL, gate, model

import interp
from interp.explorer.page import page

pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
pytest.importorskip(AXE, reason="axe-playwright-python is not installed")
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(browser() is None, reason="no browser: Debian's `chromium` is not installed"),
]
WIDTHS = {"light": (320, 380, 1280, 1920), "dark": (320, 1280)}
"""In the dark only colours are other ones."""
PAGES: dict[str, tuple[Callable[[], dict[str, Any]], str]] = {
    "language": (lambda: made_up(examples=2), "#head=L1.H2&pins=L0.H1&token=9"),
    "real size": (large, "#head=L23.H3"),
    "picture": (pictured, "#head=vision.L1.H1"),
    "harm": (harmful, "#head=L1.H1"),
    "nothing but scores": (lambda: {k: v for k, v in made_up().items() if k in ("title", "towers", "scores")}, ""),
}


def looked_at(tab: Any, width: int, *, words: bool = True) -> None:
    tab.set_viewport_size({"width": width, "height": 900})
    tab.evaluate("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
    assert complaints(tab) == []
    assert tab.evaluate("document.documentElement.scrollWidth") <= width, "the page as a whole never scrolls sideways"
    assert not words or tab.evaluate(BROKEN) == [], "a word is broken over two lines"


def test_a_narrow_page_gives_axe_nothing_to_complain_of(chromium: Any, tmp_path: Path) -> None:
    with opened(chromium, page(made_up(2, 2)), tmp_path, fragment="#head=L1.H1", width=320) as tab:
        looked_at(tab, 320)


@pytest.mark.tools
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", PAGES)
def test_axe_finds_nothing_at_any_width(chromium: Any, tmp_path: Path, name: str, scheme: str) -> None:
    make, fragment = PAGES[name]
    with opened(chromium, page(make()), tmp_path, fragment=fragment) as tab:
        tab.emulate_media(color_scheme=scheme)
        tab.wait_for_function("scheme => document.documentElement.dataset.theme === scheme", arg=scheme)
        for width in WIDTHS[scheme]:
            looked_at(tab, width, words=name != "harm")  # whose strings are longer than a phone is wide


@pytest.mark.tools
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_with_everything_opened(chromium: Any, tmp_path: Path, scheme: str) -> None:
    with opened(chromium, page(made_up(examples=2)), tmp_path, fragment="#head=L1.H2") as tab:
        tab.emulate_media(color_scheme=scheme)
        tab.locator("summary").evaluate_all("all => all.forEach((one) => { one.parentNode.open = true; })")
        for width in (320, 1280):
            looked_at(tab, width)


def test_what_scrolls_can_be_reached_with_the_keyboard_and_nothing_else_is_a_stop(
    chromium: Any, tmp_path: Path
) -> None:
    with opened(chromium, page(made_up(2, 64)), tmp_path, fragment="#head=L1.H1", width=320) as tab:
        over = "all => all.map((one) => [one.scrollWidth > one.clientWidth + 1, one.tabIndex])"
        assert [True, 0] in tab.locator("#map .scroll").evaluate_all(over)
        tab.set_viewport_size({"width": 1280, "height": 900})
        tab.wait_for_function("![...document.querySelectorAll('#map [data-reached]')].length")
        assert all(stop == -1 for wide, stop in tab.locator("#map .scroll").evaluate_all(over) if not wide)


@pytest.mark.tools
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_on_a_report(chromium: Any, reported: str, tmp_path: Path, scheme: str) -> None:
    with opened(chromium, reported, tmp_path) as tab:
        tab.emulate_media(color_scheme=scheme)
        for width in WIDTHS[scheme]:
            looked_at(tab, width)
        tab.locator("summary").evaluate_all("all => all.forEach((one) => { one.parentNode.open = true; })")
        looked_at(tab, 1280)


@pytest.fixture(scope="module")
def reported(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A report's page, with everything that a report can say."""
    folder = tmp_path_factory.mktemp("report")
    interp.report(model("planted-backup"), task=gate(), out=folder, **SMALL)
    return (folder / "report.html").read_text(encoding="utf-8")
