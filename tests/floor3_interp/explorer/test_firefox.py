"""The page in a stock Firefox: it is used as in Chromium, with nothing asked of a network and nothing going wrong."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from explored import large, made_up, pictured
from firefox import Tab, firefox, started

from interp.explorer.page import page

pytest.importorskip("websocket", reason="websocket-client is not installed")
pytestmark = [
    pytest.mark.browser,
    pytest.mark.tools,
    pytest.mark.skipif(firefox() is None, reason="no Firefox: Debian's `firefox-esr` is not installed"),
]


@pytest.fixture(scope="module", params=["light", "dark"])
def tab(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tab]:
    with started(tmp_path_factory.mktemp("firefox"), dark=request.param == "dark") as running:
        yield running
        assert running.wrong == []
        assert {urlsplit(one).scheme for one in running.asked} <= {"file", "data", "blob", "about"}


def shown(tab: Tab, payload: dict, folder: Path, fragment: str = "", width: int = 1200) -> None:
    file = folder / "page.html"
    file.write_text(page(payload), encoding="utf-8")
    tab.open(f"{file.as_uri()}{fragment}", width=width)
    assert tab.run("document.documentElement.dataset.ready") == "yes"


def test_a_head_is_chosen_and_every_view_follows(tab: Tab, tmp_path: Path) -> None:
    shown(tab, made_up(), tmp_path)
    tab.click('#map [role=gridcell][data-head="L1.H2"]')
    assert tab.run("document.querySelector('#card h2').textContent") == "Head L1.H2"
    assert tab.run("""document.querySelector('#map [data-head="L1.H2"]').getAttribute('aria-selected')""") == "true"
    assert "head=L1.H2" in tab.run("location.hash")
    tab.press("\ue015")  # the arrow down
    assert tab.run("document.querySelector('#card h2').textContent") == "Head L2.H2"
    assert tab.run("document.querySelectorAll('.token').length") >= 16
    tab.click('.token[data-place="9"]')
    assert "token=9" in tab.run("location.hash")


def test_the_theme_is_the_systems(tab: Tab, tmp_path: Path) -> None:
    shown(tab, made_up(2, 2), tmp_path)
    dark = tab.run("matchMedia('(prefers-color-scheme: dark)').matches")
    light = "getComputedStyle(document.documentElement).backgroundColor"
    red = int(tab.run(light).split("(")[1].split(",")[0])
    assert (red < 60) == dark


@pytest.mark.parametrize("width", [320, 380, 1280, 1920])
def test_it_fits_the_screen(tab: Tab, tmp_path: Path, width: int) -> None:
    for payload, fragment in ((large(), "#head=L23.H3"), (pictured(), "#head=vision.L1.H1")):
        shown(tab, payload, tmp_path, fragment, width)
        assert tab.run("document.documentElement.scrollWidth") <= width
    assert tab.run("document.querySelectorAll('#card svg').length") >= 1
    assert tab.picture().startswith(b"\x89PNG")
