"""Figures: what is on which axis, the same bytes each time, fonts that print, one table of colours, all refusals."""

from __future__ import annotations

import math
import re
import sys
import xml.etree.ElementTree as xml
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from house import ROOT
from PIL import Image

import interp
from interp import figures
from interp.figures import Bars, Figure, Heatmap, Lines, Link, Network, Series, Trace
from interp.kernels.errors import InterpError
from interp.results.figures import colours
from interp.results.figures.still import laid_over

NASTY = ["<b>", "$x_1^2$", "\n", "中", "a" * 60, "&"]


def grid(**how: object) -> Figure:
    return Figure([Heatmap(np.array([[0.5, -1.0, 2.0], [np.nan, 0.0, -0.25]]), ["L0", "L1"], ["0", "1", "2"], **how)])


PANELS: dict[str, Callable[[], Figure]] = {
    "map": lambda: grid(x="head", y="layer", name="effect"),
    "words": lambda: Figure([Heatmap(torch.eye(6), NASTY, NASTY, scale="weight", square=True, title="<i> & $")]),
    "scales": lambda: Figure([Heatmap([[0.1, 1.0]], ["a"], ["b", "c"], numbers=[[3.0, 400.0]], scale="size")]),
    "picture": lambda: Figure([Heatmap(torch.ones(2, 2), picture=np.full((8, 8, 3), 90, np.uint8), square=True)] * 3),
    "bars": lambda: Figure([Bars(["L0.H1", "L1.H0"], [Series("effect", [1, -2.0], [0.5, math.nan], [1.5, -1.0])])]),
    "groups": lambda: Figure([Bars(["a", "b"], [Series("x", [1.0, 2.0]), Series("y", [0.5, 0.1])], limits=(-1, 3))]),
    "lines": lambda: Figure([Lines([Trace("ours", [1, 2, 4], [0.1, 0.5, 0.9], [0.0, 0.4, 0.8], [0.2, 0.6, 1.0]),
                                    Trace("random", [1, 2, 4], [0.1, 0.1, 0.2], kind="points", labels=["p", "q", ""]),
                                    Trace("draws", [2, 2], [0.3, 0.4], kind="ticks")],
                                   x="heads", y="share", log=True, levels=[("all", 1.0)], marks=[("here", 2.0)])]),
    "network": lambda: Figure([Network([("embed", 0.5, 0.0), ("0.H1", 0.0, 0.5), ("logits", 0.5, 1.0)],
                                       [Link(0, 1, 1.0, "q"), Link(1, 2, 0.3, "", True, "said")], note="x < y")]),
    "several": lambda: Figure([*grid().panels, *grid(title="b").panels], title="Two & two", across=2),
}  # fmt: skip


@pytest.mark.parametrize("name", PANELS)
def test_every_panel_is_drawn_three_ways_and_always_the_same(name: str, tmp_path: Path) -> None:
    figure = PANELS[name]()
    for kind in ("pdf", "svg", "png"):
        first, again = (figure.save(tmp_path / f"{n}.{kind}").read_bytes() for n in "ab")
        assert first == again
        assert b"CreationDate" not in first
    xml.fromstring(figure.svg())
    assert figure.png() == PANELS[name]().png()
    bundle, more = figure._repr_mimebundle_()
    assert more["image/png"]["alt"]
    assert {"text/plain", "application/vnd.plotly.v1+json", "image/png"} == set(bundle)
    assert bundle["application/vnd.plotly.v1+json"]["data"]


def test_a_pdf_holds_its_fonts_as_truetype_and_has_the_width_that_was_asked_for(tmp_path: Path) -> None:
    for width, inches in (("column", 3.25), ("page", 5.5), (4.0, 4.0)):
        raw = grid().save(tmp_path / "x.pdf", width=width).read_bytes()  # type: ignore[arg-type]
        assert b"/FontFile2" in raw
        assert b"/Type3" not in raw
        box = re.search(rb"/MediaBox \[ ?0 0 ([\d.]+)", raw)
        assert box
        assert float(box[1]) == pytest.approx(72 * inches, abs=0.01)


def test_maps_are_drawn_as_shapes_not_as_pictures(tmp_path: Path) -> None:
    """A cell is a path with a colour of its own; only the key beside it may be a picture."""
    drawn = grid().save(tmp_path / "x.svg").read_text()
    assert f"fill: {colours.POSITIVE[-1]}" in drawn
    assert drawn.count("<image") <= 1


def test_numbers_are_written_where_they_belong() -> None:
    cells = PANELS["map"]().panels[0]
    assert isinstance(cells, Heatmap)
    assert [[cells.text(r, c) for c in range(3)] for r in range(2)] == [["+0.50", "-1.00", "+2.00"], ["", "0", "-0.25"]]
    heat = PANELS["map"]().plotly().data[0]
    assert (heat.zmin, heat.zmax) == (-2.0, 2.0)
    assert list(heat.x) == ["0", "1", "2"]
    assert list(heat.y) == ["L0", "L1"]
    axis = PANELS["map"]().matplotlib().axes[0]
    assert [tick.get_text() for tick in axis.get_xticklabels()] == ["0", "1", "2"]
    assert sorted(text.get_text() for text in axis.texts) == sorted(["+0.50", "-1.00", "+2.00", "0", "-0.25"])
    assert axis.get_ylim() == (2, 0)  # the first row is above


def test_a_sign_is_written_only_where_it_is_sure() -> None:
    one = Heatmap(np.array([[0.5, -1.0]]), sure=np.array([[False, True]]))
    assert [one.text(0, n) for n in (0, 1)] == ["0.50", "-1.00"]
    many = Heatmap(np.full((20, 20), -1.0), sure=np.arange(400).reshape(20, 20) == 7)
    assert [many.text(0, n) for n in (6, 7)] == ["", "−"]


def test_tokens_stand_in_figures_as_they_are(tmp_path: Path) -> None:
    """Nothing in a token is taken for mathematics, and letters that no font has are written as numbers."""
    ticks = PANELS["words"]().matplotlib().axes[0].get_yticklabels()
    assert not any(tick.get_parse_math() for tick in ticks)
    labels = [tick.get_text() for tick in ticks]
    assert labels[:3] == ["<b>", "$x_1^2$", "⏎"]
    assert labels[3] in ("中", "[4E2D]")
    assert labels[4].endswith("…")
    assert "<b>" not in PANELS["words"]().svg()


def test_positive_and_negative_have_the_same_colours_everywhere() -> None:
    less, more = colours.at("signed", 0.0), colours.at("signed", 1.0)
    one = Heatmap(np.array([[-1.0, 1.0]]))
    assert less in Figure([one]).svg()
    assert more in Figure([one]).svg()
    scale = Figure([one]).plotly().data[0].colorscale
    assert (scale[0][1], scale[-1][1]) == (less, more)
    mesh = Figure([one]).matplotlib().axes[0].collections[0]
    assert [tuple(round(255 * v) for v in row[:3]) for row in mesh.to_rgba([-1.0, 1.0])] == [
        colours.parts(less), colours.parts(more),
    ]  # fmt: skip
    page = interp.explorer.Explorer({"title": "x"}).page
    for stops in (colours.NEGATIVE, colours.POSITIVE, colours.SIZE):
        assert '["' + '","'.join(stops) + '"]' in page
    assert not re.findall(r"RdBu|Blues|Cividis", "".join(p.read_text() for p in (ROOT / "interp").rglob("*.py")))


def test_scales_are_read_in_grey_and_by_everybody() -> None:
    """Lightness goes one way on each side of 0, and the two sides differ in blue light, which all but very few see."""
    for stops in (colours.NEGATIVE, colours.POSITIVE):
        light = [colours.luminance(one) for one in stops]
        assert light == sorted(light, reverse=True)
        assert light[0] - light[-1] > 0.8
    assert [colours.luminance(one) for one in colours.SIZE] == sorted(colours.luminance(one) for one in colours.SIZE)
    for less, more in zip(colours.NEGATIVE[1:], colours.POSITIVE[1:], strict=True):
        assert colours.parts(less)[2] - colours.parts(more)[2] > 50


def test_a_picture_keeps_its_colours_where_nothing_lies_on_it() -> None:
    picture = np.full((96, 96, 3), (10, 200, 30), np.uint8)
    mixed = laid_over(Heatmap(np.array([[0.0, 1.0]]), picture=picture, scale="weight"))
    assert mixed[:, :48].reshape(-1, 3).tolist() == [[10, 200, 30]] * (96 * 48)
    assert abs(mixed[:, 48:].astype(int) - [10, 200, 30]).sum(-1).min() > 40


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (lambda to: grid().save(to / "x.doc"), ".pdf, .svg, .png"),
        (lambda to: grid().save(to / "no" / "x.pdf"), "no folder"),
        (lambda to: grid().save(to / "x.pdf", width="wide"), "'column' or 'page'"),
        (lambda to: grid().save(to / "x.pdf", width=0), "0.5 to 100 inches"),
        (lambda to: Heatmap(np.ones(3)), "[row, column]"),
        (lambda to: Heatmap(np.ones((2, 2)), rows=["a"]), "2 rows has 1 labels"),
        (lambda to: Figure([]), "one panel"),
        (lambda to: figures.over_picture(np.ones(3)), "[row, column]"),
        (lambda to: figures.over_picture(np.ones((2, 2, 2)), names=["a"]), "2 grids have 1 names"),
        (lambda to: figures.over_picture(np.ones((2, 2)), np.ones(3)), "PIL"),
    ],
)
def test_what_cannot_be_drawn_is_refused_in_words(wrong: Callable[[Path], object], said: str, tmp_path: Path) -> None:
    with pytest.raises(InterpError, match=re.escape(said)):
        wrong(tmp_path)


def test_without_matplotlib_files_are_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("interp.results.figures.paper.find_spec", lambda name: None)
    with pytest.raises(InterpError, match=r"pip install 'interp\[figures\]'"):
        grid().save(tmp_path / "x.pdf")
    assert Image.open(BytesIO(grid().png())).size[0] > 100


def test_importing_figures_needs_no_matplotlib() -> None:
    import subprocess

    code = "import sys, interp.figures; assert not {'matplotlib', 'plotly'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


@pytest.fixture(scope="module")
def planted() -> tuple[interp.Model, interp.Task]:
    m = interp.load("zoo:planted-decoder")
    return m, interp.tasks.key_value(m, n=2)


def test_effects_by_position_have_tokens_below_them(planted: tuple[interp.Model, interp.Task]) -> None:
    m, task = planted
    e = interp.patch(
        m, base=task.corrupt, source=task.clean, metric=task.metric, sites="L*.resid_pre", positions="each"
    )
    assert task.corrupt.tokens is not None
    one = e.figure().panels[0]
    assert isinstance(one, Heatmap)
    assert list(one.columns) == list(task.corrupt.tokens[0])
    assert np.allclose(one.array, e.mean.reshape(2, -1), equal_nan=True)
    other = e.figure(tokens=False).panels[0]
    assert isinstance(other, Heatmap)
    assert list(other.columns) == [str(n) for n in range(len(one.columns))]
    low, high = e.interval()
    sure = (((low > 0) | (high < 0) | low.isnan()) & (e.mean.abs() > e.noise_floor)).reshape(2, -1)
    assert np.asarray(one.sure).tolist() == sure.tolist()


def test_attention_stands_on_its_tokens(planted: tuple[interp.Model, interp.Task]) -> None:
    m, task = planted
    figure = figures.attention(m, task.clean, ["L0.H*", "L1.H1"], row=1)
    assert [panel.title for panel in figure.panels] == [*(f"L0.H{n}" for n in range(6)), "L1.H1"]
    real = task.clean.valid[1].nonzero().flatten().tolist()
    weights = m.run(task.clean, record=["L1.H1.pattern"])["L1.H1.pattern"][1, 0][real][:, real]
    last = figure.panels[-1]
    assert isinstance(last, Heatmap)
    assert np.allclose(np.nan_to_num(last.array), weights, atol=1e-6)
    assert np.isnan(last.array[0, 1:]).all()  # nobody looks ahead
    with pytest.raises(InterpError, match="at most 128"):
        figures.attention(m, task.clean, "L0.H0", positions=[0] * 200)


def test_two_measures_are_held_against_each_other_by_head(planted: tuple[interp.Model, interp.Task]) -> None:
    import pandas

    first = pandas.DataFrame({"site": ["L0.H0.z", "L0.H1.z", "L1.H0.z"], "estimate": [1.0, 5.0, 2.0]})
    second = pandas.DataFrame(
        {"site": ["L1.H0.result", "L0.H1.result", "L0.H0.result"], "estimate": [20.0, 50.0, 10.0]}
    )
    panel = figures.scatter(first, second, names=("a", "b"), n=1).panels[0]
    assert isinstance(panel, Lines)
    (line,) = panel.lines
    assert sorted(zip(line.x, line.y, strict=True)) == [(1.0, 10.0), (2.0, 20.0), (5.0, 50.0)]
    assert [label for label in line.labels if label] == ["L0.H1"]
    assert panel.title == "3 heads, Spearman 1.00"
    with pytest.raises(InterpError, match="no head in common"):
        figures.scatter(first, second.assign(site=["L7.H0", "L7.H1", "L7.H2"]))
