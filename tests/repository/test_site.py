"""The documentation as a site: built strictly, and read in a browser from its folder, with the network off."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml
from browsing import QUIET, browser
from house import ROOT

CONFIG = (ROOT / "mkdocs.yml").read_text()
needs_mkdocs = pytest.mark.skipif(
    importlib.util.find_spec("material") is None, reason="mkdocs-material is not installed (extra `docs`)"
)


def named(entry: Any) -> Iterator[str]:
    """Every page that a navigation names."""
    if isinstance(entry, str):
        yield entry
    else:
        for one in entry.values() if isinstance(entry, dict) else entry:
            yield from named(one)


def test_every_page_is_in_the_navigation_and_every_entry_is_a_page() -> None:
    wanted = {one.name for one in (ROOT / "docs").glob("*.md")}
    listed = set(named(yaml.safe_load(CONFIG)["nav"]))
    assert {one for one in listed if not one.endswith("/")} == wanted
    assert {one for one in listed if one.endswith("/")} == {"reference/", "notebooks/"}


def test_the_site_asks_no_network_for_anything() -> None:
    said = yaml.safe_load(CONFIG)
    assert said["strict"]
    assert said["theme"]["font"] is False
    assert "offline" in said["plugins"]
    assert not said["use_directory_urls"]
    assert said["extra"]["polyfills"] == ["assets/iframe-worker.js"]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("site")
    how = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(made)]
    done = subprocess.run(command, cwd=ROOT, env=how, capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "WARNING" not in done.stderr
    return made


@pytest.mark.slow
@needs_mkdocs
def test_the_site_has_every_page_and_loads_nothing_from_elsewhere(site: Path) -> None:
    pages = [one.relative_to(ROOT / "docs").with_suffix(".html") for one in (ROOT / "docs").rglob("*.md")]
    missing = [str(one) for one in pages if not (site / str(one).replace("README", "index")).is_file()]
    assert not missing
    for page in site.rglob("*.html"):
        loaded = re.findall(r"<(?:script|img|iframe|link)\b[^>]*\b(?:src|href)=\"?(https?:[^\s\">]+)", page.read_text())
        assert not loaded, page


@pytest.mark.slow
@pytest.mark.browser
@needs_mkdocs
@pytest.mark.skipif(browser() is None, reason="no browser: Debian's `chromium` is not installed")
def test_a_page_opened_as_a_file_finds_words_without_a_network(site: Path) -> None:
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with sync_api.sync_playwright() as driver:
        running = driver.chromium.launch(executable_path=browser(), args=QUIET)
        context = running.new_context(offline=True, viewport={"width": 1280, "height": 900})
        tab, requests, wrong = context.new_page(), [], []
        context.on("request", lambda request: requests.append(request.url))
        tab.on("console", lambda message: wrong.append(message.text) if message.type == "error" else None)
        tab.on("pageerror", lambda error: wrong.append(str(error)))
        tab.goto((site / "index.html").as_uri())
        box = tab.get_by_role("textbox", name="Search")
        box.click()
        tab.locator(".md-search-result__meta", has_text="Type to start searching").wait_for(timeout=60_000)
        box.press_sequentially("Effects.top")
        found = tab.locator(".md-search-result__link").first
        found.wait_for(timeout=60_000)
        found.click()
        tab.wait_for_url("**/reference/patching.html*")
        assert tab.get_by_role("heading", name="Effects.top", exact=False).first.is_visible()
        tab.get_by_role("link", name="Notebooks", exact=True).first.click()
        tab.wait_for_url("**/notebooks/index.html")
        running.close()
    assert {urlsplit(one).scheme for one in requests} <= {"file", "data", "blob", "about"}
    assert not wrong
