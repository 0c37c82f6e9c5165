"""A headless browser without a network, and what every page must keep to in it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

BROWSERS = ("chromium", "chromium-headless-shell", "chromium-browser", "google-chrome")
QUIET = [
    "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--disable-background-networking", "--no-first-run",
    "--disable-component-update", "--disable-sync", "--disable-default-apps",
]  # fmt: skip


def browser() -> str | None:
    """Where a browser is installed."""
    return next((found for name in BROWSERS if (found := shutil.which(name))), None)


@contextmanager
def headless() -> Iterator[Any]:
    """Chromium, as long as it is needed."""
    from playwright import sync_api

    with sync_api.sync_playwright() as driver:
        running = driver.chromium.launch(executable_path=browser(), args=QUIET)
        yield running
        running.close()


@contextmanager
def opened(chromium: Any, html: str, folder: Path, *, fragment: str = "", width: int = 1200) -> Iterator[Any]:
    """The page in a fresh context; afterwards: nothing was asked of a network and nothing went wrong."""
    file = folder / "page.html"
    file.write_text(html, encoding="utf-8")
    context = chromium.new_context(offline=True, viewport={"width": width, "height": 900}, accept_downloads=True)
    tab, requests, wrong = context.new_page(), [], []
    context.on("request", lambda request: requests.append(request.url))
    tab.on("console", lambda message: wrong.append(message.text) if message.type in ("error", "warning") else None)
    tab.on("pageerror", lambda error: wrong.append(str(error)))
    tab.on("dialog", lambda dialog: wrong.append(dialog.message))
    try:
        tab.goto(f"{file.as_uri()}{fragment}")
        tab.wait_for_selector("html[data-ready=yes]", timeout=20_000)
        yield tab
        assert {urlsplit(one).scheme for one in requests} <= {"file", "data", "blob", "about"}
        assert [one for one in requests if one.startswith("file:")] == [f"{file.as_uri()}{fragment.partition('#')[0]}"]
        assert not wrong
    finally:
        context.close()


AXE = "axe_playwright_python"


def complaints(tab: Any) -> list[str]:
    """What axe finds wrong with the page as it is now: its rule, the elements, and what it says of the first."""
    spec = find_spec(AXE)
    assert spec is not None
    assert spec.origin is not None
    tab.evaluate((Path(spec.origin).parent / "axe.min.js").read_text(encoding="utf-8"))
    found = tab.evaluate("axe.run(document, {resultTypes: ['violations']})")
    return [
        f"{one['id']}: {len(one['nodes'])} x {one['nodes'][0]['target']}: {one['nodes'][0]['failureSummary']}"
        for one in found["violations"]
    ]


BROKEN = """() => [...document.querySelectorAll('th, caption, summary, button, label, h1, h2, h3')].flatMap((one) => {
  const walker = document.createTreeWalker(one, NodeFilter.SHOW_TEXT), found = [];
  while (walker.nextNode()) for (const word of walker.currentNode.data.matchAll(/\\p{L}+/gu)) {
    if (word[0].length > 16) continue;
    const range = document.createRange();
    range.setStart(walker.currentNode, word.index);
    range.setEnd(walker.currentNode, word.index + word[0].length);
    const lines = new Set([...range.getClientRects()].filter((box) => box.width > 0).map((box) => Math.round(box.top)));
    if (lines.size > 1) found.push(word[0]);
  }
  return found;
})"""
"""Words of headings and buttons, none of them long, that do not stand on one line."""


def downloaded(tab: Any, name: str) -> bytes:
    """What a menu saves: "Save heads as SVG" opens the menu "Save heads" and takes its "SVG"."""
    menu, _, kind = name.partition(" as ")
    tab.get_by_role("button", name=menu, exact=True).click()
    with tab.expect_download() as waiting:
        tab.get_by_role("menuitem", name=kind, exact=True).click()
    return Path(waiting.value.path()).read_bytes()
