"""The first notebook in a real JupyterLab: a server, a kernel, a browser, and a reader who runs its cells."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from browsing import QUIET, browser
from house import ROOT
from jupyter_lab import served

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
pytestmark = [
    pytest.mark.browser,
    pytest.mark.tools,
    pytest.mark.skipif(browser() is None, reason="no browser: Debian's `chromium` is not installed"),
    pytest.mark.skipif(find_spec("jupyterlab") is None, reason="jupyterlab is not installed"),
]
NAME = "01-heads-of-a-language-model.ipynb"
HERE = "window.jupyterapp.shell.currentWidget"
WAIT = 240_000
"""Milliseconds; a kernel has to load a model."""


@dataclass
class Lab:
    """The notebook open in a browser, all its cells run."""

    tab: Any
    file: Path

    def command(self, name: str, **how: Any) -> None:
        self.tab.evaluate("([name, how]) => window.jupyterapp.commands.execute(name, how)", [name, how])

    @property
    def cells(self) -> list[dict[str, Any]]:
        """What is saved of the notebook."""
        self.command("docmanager:save")
        self.tab.wait_for_timeout(2000)
        return [cell for cell in json.loads(self.file.read_text())["cells"] if cell["cell_type"] == "code"]


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    folder = tmp_path_factory.mktemp("lab")
    shutil.copy(ROOT / "notebooks" / NAME, folder / NAME)
    with served(folder) as address, sync_api.sync_playwright() as driver:
        running = driver.chromium.launch(executable_path=browser(), args=QUIET)
        tab = running.new_context(viewport={"width": 1280, "height": 900}, color_scheme="light").new_page()
        tab.set_default_timeout(WAIT)
        tab.goto(f"{address}/lab/tree/{NAME}")
        tab.locator(".jp-Notebook .jp-Cell").first.wait_for()
        made = Lab(tab, folder / NAME)
        tab.wait_for_function(f"{HERE}.sessionContext.session?.kernel?.status === 'idle'")
        tab.locator(".jp-Notebook .jp-Cell").first.click()
        for _ in range(3):  # the text, the model, the explorer: as a reader does
            tab.keyboard.press("Shift+Enter")
        yield made
        running.close()


def test_the_explorer_stands_in_the_third_cell_and_is_used(lab: Lab) -> None:
    frame = lab.tab.frame_locator("iframe[data-interp]")
    frame.locator('#map [role=gridcell][data-head="L2.H6"]').click()
    assert frame.locator("#card h2").inner_text().endswith("L2.H6")
    third = lab.tab.locator(".jp-Notebook .jp-Cell").nth(2)
    assert third.locator("iframe[data-interp]").count() == 1


def test_the_page_follows_the_theme_of_jupyterlab(lab: Lab) -> None:
    page = lab.tab.frame_locator("iframe[data-interp]").locator("html")
    lights = []
    for theme, wanted in (("JupyterLab Dark", "dark"), ("JupyterLab Light", "light")):
        lab.command("apputils:change-theme", theme=theme)
        lab.tab.locator(f"body[data-jp-theme-light={str(wanted == 'light').lower()}]").wait_for(state="attached")
        sync_api.expect(page).to_have_attribute("data-theme", wanted, timeout=WAIT)
        ground = page.evaluate("one => getComputedStyle(one).backgroundColor")
        lights.append(int(ground.split("(")[1].split(",")[0]))
    assert lights[0] < 60 < 200 < lights[1]


def test_every_result_shows_itself(lab: Lab) -> None:
    lab.command("notebook:run-all-cells")
    lab.tab.wait_for_function(
        f"() => [...{HERE}.content.model.cells].filter((one) => one.type === 'code').at(-1).executionCount !== null"
    )
    cells = lab.cells
    outputs = [out for cell in cells for out in cell["outputs"]]
    assert not [out for out in outputs if out["output_type"] == "error"]
    shown = [out["data"] for out in outputs if "data" in out]
    rich = [data for data in shown if "text/html" in data or "image/png" in data]
    assert len(rich) >= 8, [sorted(data) for data in shown]
    assert all("image/png" in data for data in shown if "application/vnd.plotly.v1+json" in data)
    tables = lab.tab.locator(".jp-OutputArea-output table")
    assert tables.count() >= 1
    lab.command("apputils:change-theme", theme="JupyterLab Dark")
    lab.tab.locator("body[data-jp-theme-light=false]").wait_for(state="attached")
    written = tables.first.evaluate("one => getComputedStyle(one).color")
    assert int(written.split("(")[1].split(",")[0]) > 180, "light writing on the dark ground"
