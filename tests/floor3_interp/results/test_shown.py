"""Everything a notebook is given shows itself: as a kernel formats it, as nbconvert writes it, with nothing running."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import nbformat
import pytest
from IPython.core.formatters import DisplayFormatter
from nbconvert import HTMLExporter

import interp
from interp.hooks import html

Parts = dict[str, Any]


@pytest.fixture(scope="module")
def parts() -> Parts:
    m = interp.load("zoo:planted-decoder")
    task = interp.tasks.key_value(m, n=4)
    how = {"base": task.corrupt, "source": task.clean, "metric": task.metric}
    edges = interp.edges(m, **how, method="eap")
    circuit = edges.circuit(fraction=0.3)
    return {"m": m, "task": task, "effects": interp.patch(m, **how, sites="L*.H*.z"), "edges": edges,
            "circuit": circuit, "judged": interp.faithfulness(m, circuit, task, random=2, level="edge")}  # fmt: skip


SHOWN: dict[str, tuple[Callable[[Parts], Any], str]] = {
    "plot": (lambda p: p["effects"].plot(), "image/png"),
    "figure": (lambda p: p["effects"].figure(), "image/png"),
    "effects": (lambda p: p["effects"], "text/html"),
    "edges": (lambda p: p["edges"], "text/html"),
    "circuit": (lambda p: p["circuit"], "text/html"),
    "drawing": (lambda p: p["circuit"].draw(), "image/svg+xml"),
    "comparison": (lambda p: p["circuit"].compare(p["circuit"]), "text/html"),
    "faithfulness": (lambda p: p["judged"], "text/html"),
    "checks": (lambda p: p["m"].check(), "text/html"),
    "model": (lambda p: p["m"], "text/html"),
    "task": (lambda p: p["task"], "text/html"),
    "inputs": (lambda p: p["task"].clean, "text/html"),
    "tape": (lambda p: p["m"].run(p["task"].clean, record="L0.z"), "text/html"),
    "statistics": (lambda p: p["m"].attention(p["task"].clean, stats=["entropy", "received"]), "text/html"),
    "lens": (lambda p: interp.lens(p["m"], p["task"].clean, answers=p["task"].answer_ids), "text/html"),
    "card": (lambda p: interp.head(p["m"], "L1.H1", p["task"]), "text/html"),
    "explorer": (lambda p: interp.explore(p["m"], p["task"]), "text/html"),
    "live": (lambda p: interp.explore(p["m"], p["task"]).live(), "text/html"),
}


@pytest.mark.parametrize("name", SHOWN)
def test_a_saved_notebook_shows_it_with_nothing_running(name: str, parts: Parts) -> None:
    make, kind = SHOWN[name]
    data, metadata = DisplayFormatter().format(make(parts))
    assert kind in data
    output = nbformat.v4.new_output("execute_result", data=data, metadata=metadata, execution_count=1)
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("x", outputs=[output])])
    nbformat.validate(book)
    page, _ = HTMLExporter(embed_images=True).from_notebook_node(book)
    shown = page[page.index('<div class="jp-OutputArea') :]
    assert "<pre>" not in shown.split("srcdoc")[0]  # text is what is left where there is nothing better
    assert re.search(r"<img|<svg|<table|<iframe|<span|<div style=\"color", shown)
    assert "https://" not in shown  # nothing comes from elsewhere


def test_tokens_are_chips_that_say_where_they_stand(parts: Parts) -> None:
    x = parts["task"].clean
    said = x._repr_html_()
    for place in (0, x.length - 1):
        assert f'title="position {place}, ' in said
    assert said.count("<span") == int(x.batch) * x.length


def test_nothing_that_is_shown_is_taken_for_a_tag() -> None:
    bad = "</table><script>alert(1)</script>"
    for made in (html.line(bad), html.table([{bad: bad}]), html.chips([(bad, bad + '"')]), html.folded(bad, "")):
        assert "<script" not in made
        assert "alert(1)" in made
    assert '"position' not in html.chips([("a", 'x" onclick="position')])


def test_colours_of_tables_are_those_of_the_notebook() -> None:
    """Dark or light is the notebook's choice; where it has none, the text is of the colour around it."""
    made = html.block(html.line("x", quiet=True), html.table([{"a": 1.5, "b": "y"}]), html.chips([("t", "u")]))
    assert "var(--jp-ui-font-color1,inherit)" in made
    assert not re.findall(r"color:#|background", made)


def test_a_table_says_how_much_is_left_out_and_marks_what_is_missing() -> None:
    made = html.table(({"n": float(n), "name": None if n else "a"} for n in range(20)), of=20, most=12)
    assert made.count("<tr>") == 13
    assert "8 more rows" in made
    assert "nan" not in html.table([{"a": float("nan")}])
    assert "no rows" in html.table([])
