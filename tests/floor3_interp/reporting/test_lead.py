"""What a report says first: how sure it is, where controls do as well, and a paragraph whose citations are there."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
from reported import SMALL, gate, model

import interp
from interp.kernels.errors import InterpError
from interp.reporting.difference import Difference, difference
from interp.reporting.drawing.tables import latex
from interp.reporting.pages.lead import beats
from interp.reporting.report import Report


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Report:
    return interp.report(
        model("planted-backup"), task=gate(), out=tmp_path_factory.mktemp("lead") / "r", circuit=False, top=2, **SMALL
    )


def data(page: Path) -> dict[str, Any]:
    found = re.search(r'id="data">(.*?)</script>', page.read_text(), re.DOTALL)
    assert found
    shown: dict[str, Any] = json.loads(found[1])
    return shown


def row(name: str, k: int, share: float, low: float | None = None, high: float | None = None) -> dict[str, Any]:
    return {"name": name, "k": k, "share": share, "low": low, "high": high, "draws": 20}


def test_k_is_said_where_found_heads_beat_controls_and_where_they_do_not() -> None:
    found = [row("found", 1, 0.5, 0.4, 0.6), row("found", 2, 0.7, 0.6, 0.8), row("found", 4, 0.9, 0.8, 1.0)]
    rows = [row("random", 1, 0.1, 0.0, 0.39), row("random", 2, 0.5, 0.3, 0.61), row("random", 4, 0.2, 0.1, 0.3)]
    rows += [*found, row("magnitude", 1, 0.5), row("magnitude", 2, 0.7), row("magnitude", 4, 1.0)]
    like, large = beats({"tower": "text", "n": 9, "sizes": [1, 2, 4], "rows": rows})
    assert "beat random heads of like layer and output norm at k = 1, 4, and do not at k = 2" in like
    assert "do not beat the heads that write most at any k (1, 2, 4" in large
    assert "9 prompts, 20 sets" in like


def test_without_intervals_the_numbers_themselves_are_compared() -> None:
    rows = [row("found", 1, 0.5), row("random", 1, 0.5), row("magnitude", 1, 0.4)]
    like, large = beats({"tower": "text", "n": 1, "sizes": [1], "rows": rows})
    assert "do not beat" in like
    assert "beat the heads that write most at k = 1 (" in large


def test_the_page_leads_with_it_and_with_a_picture(made: Report) -> None:
    lead = data(made.page)["lead"]
    assert lead["picture"].startswith("data:image/png;base64,")
    assert any("interval" in said for said in lead["says"])
    assert any("like layer" in said for said in lead["says"])
    text = made.page.read_text()
    assert text.index('id="lead"') < text.index('id="map"') < text.index('id="methods"')


def test_every_key_that_the_paragraph_cites_is_in_the_bibliography(made: Report) -> None:
    tex = (made.folder / "methods.tex").read_text()
    keys = {key for group in re.findall(r"\\citep\{([^}]*)\}", tex) for key in group.split(",")}
    known = set(re.findall(r"@misc\{([^,]+),", (made.folder / "references.bib").read_text()))
    assert keys
    assert keys <= known
    assert not re.search(r"(?<!\\)[%&#_]", re.sub(r"\\citep\{[^}]*\}", "", tex))
    plain = data(made.page)["lead"]["methods"]
    assert all(key in plain for key in keys)


def test_the_table_has_rules_aligned_digits_and_a_caption_to_keep(made: Report) -> None:
    tex = (made.folder / "heads.tex").read_text()
    for rule in ("toprule", "midrule", "bottomrule", "label{tab:heads}", "S[table-format="):
        assert f"\\{rule}" in tex or rule in tex
    assert "hline" not in tex
    assert re.search(r"\\caption\{Heads of .* by (patch|relp|atp), .*\}", tex)
    numbers = {"site": "L0.H1", "low": -0.001, "high": 12.5, "exact": 2.0, "label": "a_b"}
    body = latex([numbers | {"estimate": value} for value in (1.5, -0.25, math.nan)], "50% of it").splitlines()
    forms = ("-1.2", "-1.5", "2.1", "1.2")
    assert body[5] == rf"\begin{{tabular}}{{l {' '.join(f'S[table-format={form}]' for form in forms)} l}}"
    assert body[9] == r"L0.H1 & 1.50 & -0.00100 & 12.5 & 2.00 & a\_b \\"
    assert body[10].startswith("L0.H1 & -0.25 & ")
    assert body[11].startswith("L0.H1 & {--} & ")


def test_two_reports_beside_each_other_are_a_page(made: Report, tmp_path: Path) -> None:
    found = difference(made.folder, made.folder)
    page = found.save(tmp_path / "new" / "changed.html")
    shown = data(page)
    assert shown["finding"] if "finding" in shown else "No head moved" in page.read_text()
    assert [table["title"] for table in shown["tables"]] == ["How far the ranks agree", "Both values of every head"]
    assert all("0 of" in said for said in shown["lead"]["says"])
    assert isinstance(found, Difference)
    with pytest.raises(InterpError, match="no method 'x'"):
        found.figure(method="x")
