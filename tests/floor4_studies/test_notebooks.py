"""Every notebook runs from top to bottom, and is the same page as the script beside it."""

from __future__ import annotations

import os
from pathlib import Path

import jupytext
import nbclient
import nbformat
import pytest
from house import ROOT
from nbconvert import HTMLExporter

FOLDER = ROOT / "notebooks"
SCRIPTS = sorted(FOLDER.glob("*.py"))


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_the_notebook_and_its_script_are_one_page_without_outputs(script: Path) -> None:
    written, paired = jupytext.read(script), jupytext.read(script.with_suffix(".ipynb"))
    assert [(c.cell_type, c.source) for c in paired.cells] == [(c.cell_type, c.source) for c in written.cells]
    assert not any(cell.get("outputs") or cell.get("execution_count") for cell in paired.cells)
    assert written.cells[0].source.startswith("# ")
    assert written.cells[-1].source.startswith("## Now you")
    assert nbformat.read(script.with_suffix(".ipynb"), 4).metadata["kernelspec"]["name"] == "python3"


def test_the_first_notebook_shows_the_explorer_third() -> None:
    assert jupytext.read(SCRIPTS[0]).cells[2].source.startswith("interp.explore(")


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_the_notebook_runs(script: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if script.stem.startswith("06"):
        pytest.importorskip("transformer_lens")
        pytest.importorskip("nnsight")
    monkeypatch.setenv("JUPYTER_RUNTIME_DIR", str(tmp_path))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path))
    monkeypatch.setenv("OMP_NUM_THREADS", os.environ.get("OMP_NUM_THREADS", "1"))
    book = jupytext.read(script)
    client = nbclient.NotebookClient(
        book, timeout=300, kernel_name="python3", resources={"metadata": {"path": tmp_path}}
    )
    client.execute()
    shown = [out for cell in book.cells if cell.cell_type == "code" for out in cell.outputs]
    assert not [out for out in shown if out.output_type == "error"]
    assert sum("data" in out for out in shown) >= 3
    drawn = [out.data for out in shown if "application/vnd.plotly.v1+json" in out.get("data", {})]
    assert all("image/png" in data for data in drawn), "blank where the notebook is only read"
    page, _ = HTMLExporter(embed_images=True).from_notebook_node(book)
    assert page.count("data:image/png") >= len(drawn)
