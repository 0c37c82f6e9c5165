"""The page in a real browser with the network off: it is used as a reader uses it."""

from __future__ import annotations

import csv
import html
import io
import json
import re
from collections.abc import Callable
from contextlib import AbstractContextManager
from itertools import pairwise
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from browsing import browser, downloaded, opened
from explored import HARM, harmful, large, made_up, pictured
from PIL import Image

from interp.explorer.explore import Explorer
from interp.explorer.live import script as beside
from interp.explorer.page import page
from interp.explorer.payload.payload import shown
from interp.explorer.picture import colour

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(browser() is None, reason="no browser: Debian's `chromium` is not installed"),
]
Open = Callable[..., AbstractContextManager[Any]]


def cell(tab: Any, site: str) -> Any:
    return tab.locator(f'#map [role=gridcell][data-head="{site}"]')


def test_a_head_is_chosen_and_every_view_follows(show: Open) -> None:
    with show(made_up()) as tab:
        cell(tab, "L1.H2").click()
        assert tab.locator("#card h2").inner_text() == "Head L1.H2"
        assert cell(tab, "L1.H2").get_attribute("aria-selected") == "true"
        assert tab.locator('#scatter [data-head="L1.H2"]').get_attribute("aria-selected") == "true"
        assert tab.locator('#circuit [data-head="L1.H2"]').get_attribute("aria-pressed") == "true"
        assert "head=L1.H2" in tab.url
        assert "induction 0.98" in tab.locator("#card").inner_text()
        tab.locator('#circuit [data-head="L0.H3"]').click()
        assert tab.locator("#card h2").inner_text() == "Head L0.H3"
        assert tab.locator('#map [aria-selected="true"]').get_attribute("data-head") == "L0.H3"


def test_there_is_one_cell_a_head_and_its_words_are_the_numbers(show: Open) -> None:
    payload = made_up()
    with show(payload) as tab:
        said = tab.locator("#map [role=gridcell]").evaluate_all("all => all.map(one => one.getAttribute('aria-label'))")
        assert len(said) == 24
        rows = [row for row in payload["scores"] if row["method"] == "patch z, denoising"]
        for row, words in zip(rows, said, strict=True):
            assert words.startswith(f"{row['site']}, ")
            shown_value = float(re.search(r"denoising ([+−][\d.]+)", words)[1].replace("−", "-"))
            assert shown_value == pytest.approx(row["estimate"], rel=0.01)
            assert ("exact patching disagrees" in words) == (row["verified"] is False)


def test_the_strongest_head_comes_first(show: Open) -> None:
    payload = made_up()
    rows = [row for row in payload["scores"] if row["method"] == "entropy"]
    best = [row["site"] for row in sorted(rows, key=lambda row: -row["estimate"])]
    with show(payload, fragment="#metric=entropy") as tab:
        bars = tab.locator("#ranking [role=option]")
        assert bars.evaluate_all("all => all.map(one => one.dataset.head)") == best[:16]
        bars.nth(2).click()
        assert tab.locator("#card h2").inner_text() == f"Head {best[2]}"
        tab.keyboard.press("Tab")
        bars.nth(2).focus()
        tab.keyboard.press("ArrowDown")
        assert tab.locator("#card h2").inner_text() == f"Head {best[3]}"
    effects = [row for row in payload["scores"] if row["method"] != "entropy"]
    with show(payload) as tab:
        first = max(effects, key=lambda row: abs(row["estimate"]))["site"]
        assert tab.locator("#card h2").inner_text() == f"Head {first}"


def test_the_metric_is_switched(show: Open) -> None:
    payload = made_up()
    with show(payload) as tab:
        tab.get_by_label("Colour by").select_option(label="entropy")
        fills = tab.locator("#map [role=gridcell] > rect:first-child").evaluate_all(
            "all => all.map(one => one.getAttribute('fill'))"
        )
        method = next(one for one in shown(payload)["methods"] if one["name"] == "entropy")
        values = [row["estimate"] for row in payload["scores"] if row["method"] == "entropy"]
        wanted = [colour(method, float(f"{value:.6g}")) for value in values]
        found = [tuple(int(fill[i : i + 2], 16) for i in (1, 3, 5)) for fill in fills]
        assert np.abs(np.array(found) - np.array(wanted)).max() <= 1
        assert "metric=entropy" in tab.url


def test_a_token_is_locked_and_its_weights_are_the_models(show: Open) -> None:
    payload = made_up()
    weights = payload["patterns"][0]["weights"][8]  # L1.H2
    with show(payload, fragment="#head=L1.H2") as tab:
        tab.locator('.token[data-place="9"]').click()
        assert tab.locator('.token[data-place="9"]').get_attribute("aria-pressed") == "true"
        assert "token=9" in tab.url
        tab.locator('.token[data-place="3"]').hover()
        tab.mouse.move(5, 5)
        best = int(weights[9].argmax())
        first = tab.locator("#card ol.top li").first.inner_text()
        position, weight = re.search(r"at (\d+): ([\d.e-]+)", first).groups()
        assert int(position) == best
        assert float(weight) == pytest.approx(weights[9][best], abs=weights.max() / 255 + 1e-3)
        tab.get_by_label("The token").select_option("to")
        position = re.search(r"at (\d+):", tab.locator("#card ol.top li").first.inner_text())[1]
        assert int(position) == int(weights[:, 9].argmax())
        tab.locator('.token[data-place="9"]').press("Escape")
        assert "token=" not in tab.url


def test_everything_is_done_with_the_keyboard_alone(show: Open) -> None:
    with show(made_up(), fragment="#head=L0.H0") as tab:
        for _ in range(30):
            tab.keyboard.press("Tab")
            if tab.evaluate("document.activeElement.getAttribute('role')") == "gridcell":
                break
        assert tab.evaluate("document.activeElement.dataset.head") == "L0.H0"
        for key in ("ArrowDown", "ArrowRight", "ArrowRight", "p"):
            tab.keyboard.press(key)
        assert tab.locator("#card h2").inner_text() == "Head L1.H2"
        assert "pins=L1.H2" in tab.url
        tab.locator('.token[tabindex="0"]').focus()
        tab.keyboard.press("ArrowLeft")
        tab.keyboard.press("Enter")
        tab.wait_for_url(re.compile("token=14"))
        assert tab.evaluate("document.activeElement.dataset.place") == "14"
        tab.keyboard.press("End")
        assert tab.evaluate("document.activeElement.dataset.place") == "15"


def test_heads_are_found_by_any_of_their_names(show: Open) -> None:
    with show(made_up()) as tab:
        box = tab.get_by_label("Find a head")
        for words in ("L1H2", "1.2", "a1.h2", "L1.H2", "text.L1.H2", "layer 1 head 2", "induction", "name that came"):
            cell(tab, "L0.H0").click()
            box.fill(words)
            box.press("Enter")
            assert tab.locator("#card h2").inner_text() == "Head L1.H2", words
            assert tab.locator('#map [role=gridcell][opacity="1"]').count() == 1
        box.fill("text.9.9")
        assert tab.locator("#bar output").inner_text() == "0 heads"


def test_an_address_brings_back_the_view(show: Open) -> None:
    link = "#head=L2.H4&metric=entropy&x=entropy&pins=L0.H1%2BL3.H5&token=7&way=to&root=1"
    with show(made_up(), fragment=link) as tab:
        assert tab.locator("#card h2").inner_text() == "Head L2.H4"
        assert tab.get_by_label("Colour by").input_value() == "1"
        assert tab.locator(".pins button").all_inner_texts() == ["L0.H1", "L3.H5"]
        assert tab.locator('.token[data-place="7"]').get_attribute("aria-pressed") == "true"
        assert tab.get_by_label("show small weights").is_checked()
        tab.evaluate("location.hash = '#head=L9.H9&metric=nothing&token=-1&example=99&%E0%A4%A=1'")
        assert tab.locator("#card h2").inner_text() == "Head L2.H4"


def test_what_is_saved_is_what_is_shown(show: Open) -> None:
    payload = made_up()
    with show(payload, fragment="#head=L1.H2&token=9&pins=L0.H1") as tab:
        drawn = ElementTree.fromstring(downloaded(tab, "Save heads as SVG"))
        words = [one.text for one in drawn.iter("{http://www.w3.org/2000/svg}text")]
        assert {"patch z, denoising", "Heads of a made-up model", "selected L1.H2; pinned L0.H1"} <= set(words)
        picture = Image.open(io.BytesIO(downloaded(tab, "Save heads as PNG")))
        assert picture.size[0] == 2 * int(drawn.get("width"))
        assert len(picture.convert("RGB").getcolors(100_000)) > 10
        rows = list(csv.DictReader(io.StringIO(downloaded(tab, "Save heads as CSV").decode())))
        assert [row["site"] for row in rows] == [row["site"] for row in payload["scores"][:24]]
        assert float(rows[8]["estimate"]) == pytest.approx(payload["scores"][8]["estimate"], rel=1e-5)
        chosen = json.loads(downloaded(tab, "Save attention as JSON"))
        assert chosen["head"]["site"] == "L1.H2"
        assert chosen["pinned"][0]["site"] == "L0.H1"
        assert chosen["head"]["kv"] == "L1.K1"
        assert chosen["attention"]["token"] == 9
        weights = {one["position"]: one["weight"] for one in chosen["attention"]["weights"]}
        exact = payload["patterns"][0]["weights"][8, 9]
        assert max(abs(weights.get(n, 0) - value) for n, value in enumerate(exact)) < 1 / 255
        assert len(chosen["circuit"]["edges"]) == 6
        for name in ("Save attention as SVG", "Save scatter as SVG", "Save circuit as SVG", "Save curve-1 as SVG"):
            ElementTree.fromstring(downloaded(tab, name))
        assert b"by score,0.01,0.4,0.3,0.5" in downloaded(tab, "Save curve-1 as CSV")


def test_names_are_there_for_those_who_do_not_see(show: Open) -> None:
    with show(made_up(), fragment="#head=L1.H2") as tab:
        tree = tab.locator("body").aria_snapshot()
        assert '- heading "Heads of a made-up model" [level=1]' in tree
        assert "- main" in tree
        for region in ("Heads by layer", "Head L1.H2", "Circuit", "Curves", "Tables", "Checks"):
            assert f'- region "{region}"' in tree
        assert re.search(r'- gridcell "L1\.H2, patch z, denoising [+−][\d.]+, interval .*" \[selected\]', tree)
        assert '- grid "Heads of the tower text; arrow keys move"' in tree
        assert not re.search(
            r"- (button|combobox|searchbox|slider|checkbox|grid|gridcell|listbox|option|img|link)(:|$| \[)",
            tree,
            re.MULTILINE,
        )
        levels = tab.locator("h1, h2, h3").evaluate_all(
            "all => all.filter(n => n.offsetParent).map(n => +n.tagName[1])"
        )
        assert levels[0] == 1
        assert all(after <= before + 1 for before, after in pairwise(levels))
        stops = tab.locator("#map [tabindex='0']").count()
        assert stops == 1, "a grid is one stop of the tab key"


@pytest.mark.parametrize(
    "make", [lambda: made_up(12, 12), large, pictured, harmful], ids=["heads", "large", "picture", "harm"]
)
def test_it_fits_a_narrow_screen(show: Open, make: Callable[[], dict[str, Any]]) -> None:
    payload = make()
    site = payload["patterns"][0]["sites"][-1]
    with show(payload, fragment=f"#head={site}", width=320) as tab:
        assert tab.evaluate("document.documentElement.scrollWidth") <= 320


def test_a_model_of_a_real_size_is_one_picture_and_can_be_searched(show: Open) -> None:
    with show(large(), fragment="#head=L23.H3") as tab:
        assert tab.locator("#map [role=gridcell]").count() == 270
        assert tab.evaluate("document.documentElement.scrollWidth") <= 1200
        over = "all => all.filter(n => n.scrollWidth > n.clientWidth + 1).map(n => n.closest('section').id)"
        assert tab.eval_on_selector_all("#map .scroll, #scatter .scroll, #ranking .scroll, #card .scroll", over) == []
        assert tab.locator("#map figure svg").bounding_box()["height"] <= 900
        box = tab.locator("#search")
        for words, count in (("L23H3", 1), ("23.3", 1), ("l23.", 9)):
            box.fill(words)
            assert tab.locator("#bar output").inner_text() == f"{count} {'head' if count == 1 else 'heads'}"
        assert "60 of 1328" in tab.locator("#circuit").inner_text()
        tall = tab.locator("#circuit .scroll svg").bounding_box()["height"]
        assert tall <= 1100


def test_print_leaves_the_controls_out(show: Open) -> None:
    with show(made_up(), fragment="#head=L1.H2") as tab:
        tab.emulate_media(media="print")
        assert not tab.get_by_label("Find a head").is_visible()
        assert tab.locator("#map svg").first.is_visible()
        assert tab.locator("#map .about").inner_text() == "patch z, denoising. Exact patching."


def test_strings_that_mean_harm_are_text(show: Open) -> None:
    with show(harmful(), fragment="#head=L1.H1") as tab:
        assert tab.title() == HARM[1]
        assert tab.locator("h1").inner_text() == HARM[1]
        tab.locator("summary").evaluate_all("all => all.forEach(one => one.click())")
        tab.wait_for_timeout(200)
        for place in range(len(HARM)):
            tab.locator(f'.token[data-place="{place}"]').click()
        tab.get_by_label("Find a head").fill(HARM[0])
        shown_tokens = tab.locator(".token").all_inner_texts()
        assert shown_tokens[0] == HARM[0][:23] + "…"
        assert shown_tokens[2] == "⟨U+202E⟩drawkcab⟨U+202C⟩"
        assert shown_tokens[5] == "⟨U+0000⟩⟨U+0007⟩⟨U+001B…"
        assert shown_tokens[8] == "⟨U+D83D⟩"
        assert shown_tokens[12] == "(empty)"
        assert tab.locator("img, iframe, object, embed, script[src], link").count() == 0
        assert tab.locator("script").count() == 2
        assert tab.evaluate("window.__hit") is None
        assert not tab.locator("body *").evaluate_all(
            "all => all.flatMap(n => [...n.attributes]).filter(a => a.name.startsWith('on')).map(a => a.name)"
        )
        assert tab.locator("a[href]").evaluate_all("all => all.map(a => a.getAttribute('href'))") == ["#map"] + [
            "heads.csv"
        ] * len(HARM)


def test_a_long_token_is_short_until_it_is_wanted(show: Open) -> None:
    with show(harmful(), fragment="#head=L1.H1&token=3") as tab:
        said = tab.locator("#card .said")
        assert "(10,005 characters)" in said.inner_text()
        assert len(said.inner_text()) < 1000
        said.locator("summary").click()
        sync_api.expect(said.locator("pre")).to_have_text(HARM[3])


def test_a_picture_has_its_true_grid(show: Open) -> None:
    payload = pictured()
    weights = payload["patterns"][0]["weights"][4]  # vision.L1.H1
    with show(payload, fragment="#head=vision.L1.H1&token=0") as tab:
        patches = tab.locator("#card [role=gridcell]")
        assert patches.count() == 12
        words = patches.evaluate_all("all => all.map(one => one.getAttribute('aria-label'))")
        assert words[0].startswith("row 0, column 0")
        assert words[11].startswith("row 2, column 3")
        found = [float(one.rpartition(" ")[2]) for one in words]
        assert found == pytest.approx(weights[0, 2:], abs=1 / 255)
        patches.nth(5).click()
        assert "token=7" in tab.url
        tab.keyboard.press("Tab")
        assert "2 other tokens" in tab.locator("#card figcaption").inner_text()
        assert not tab.locator("#card details.matrix svg").is_visible()
        tab.get_by_text("The whole pattern").click()
        cell(tab, "vision.L0.H0").click()
        assert tab.locator("#card details.matrix svg").is_visible(), "it stays open from head to head"


def test_borders_between_tiles_are_drawn_where_they_are(show: Open) -> None:
    payload = pictured()
    payload["images"][0] |= {"across": [0, 8, 16, 24, 32], "down": [0, 8, 12, 12], "borders": [[16], [8]]}
    with show(payload, fragment="#head=vision.L1.H1&token=0") as tab:
        assert tab.locator("#card [role=gridcell]").count() == 8, "a row without height is padding"
        first = tab.locator("#card figure.picture svg").first
        width = float(first.get_attribute("width") or 0)
        assert first.locator("path.tile").first.get_attribute("d") == f"M{width / 2:g} 0V{width * 24 / 32:g}"
        assert "in 2 × 2 tiles" in tab.locator("#card figcaption").inner_text()


def test_a_sample_of_a_long_text_says_so(show: Open) -> None:
    payload = made_up(2, 2)
    rows = [100, 5000, 9999]
    indices = np.array([[[0, 99], [7, 5000], [42, 9998]]] * 4)
    weights = np.array([[[0.5, 0.25], [0.5, 0.25], [0.75, 0.1]]] * 4)
    payload["examples"] = [{"name": "long", "tokens": [f"t{n}" for n in range(10_000)]}]
    payload["patterns"] = [
        {
            "example": 0,
            "sites": ["L0.H0", "L0.H1", "L1.H0", "L1.H1"],
            "rows": rows,
            "weights": weights,
            "indices": indices,
        }
    ]
    with show(payload, fragment="#head=L1.H0") as tab:
        assert "3 of 10,000 query rows, of each the 2 keys" in tab.locator("#card").inner_text()
        assert tab.locator(".token").all_inner_texts() == [f"t{n}" for n in range(9760, 10_000)]
        assert re.findall(r"(t\d+) at \d+: ([\d.]+)", tab.locator("#card ol.top").inner_text()) == [
            ("t42", "0.75"),
            ("t9998", "0.1"),
        ]
        tab.get_by_role("button", name="Go to t42 at 42").click()
        tab.locator('.token[data-place="42"]').click()
        assert "This row is not in the sample." in tab.locator("#card .said").inner_text()
        tab.get_by_role("button", name="The nearest that is: 100 t100").click()
        assert tab.evaluate("document.activeElement.dataset.place") == "100"
        assert tab.locator(".token.here.kept").all_inner_texts() == ["t100"]
        assert "t0 at 0: 0.5" in tab.locator("#card ol.top").inner_text()


def test_a_notebook_shows_it_in_a_frame(chromium: Any, tmp_path: Path) -> None:
    shown_in = Explorer(made_up())._repr_mimebundle_()["text/html"]
    outer = f"<!doctype html><html data-ready=yes><title>notebook</title><body>{shown_in}{shown_in}</body></html>"
    with opened(chromium, outer, tmp_path) as tab:
        first, second = tab.frame_locator("iframe").nth(0), tab.frame_locator("iframe").nth(1)
        first.locator('#map [data-head="L1.H2"]').click()
        assert first.locator("#card h2").inner_text() == "Head L1.H2"
        assert second.locator("#card h2").inner_text() != "Head L1.H2"
        with tab.expect_download() as waiting:
            first.get_by_role("button", name="Save heads").click()
            first.get_by_role("menuitem", name="CSV").click()
        assert Path(waiting.value.path()).read_text().startswith("site,method,estimate")


HOST = """
const held = {page: %s, height: 600, selection: {}}, told = {};
window.host = {get: (k) => held[k], set: (k, v) => { held[k] = v; }, on: (k, f) => { told[k] = f; },
  off: (k) => { delete told[k]; }, save_changes: () => { window.saved = held.selection; },
  say: (v) => { held.selection = v; told["change:selection"](); }};
window.leave = %s({model: window.host, el: document.body});
"""


def test_the_live_view_goes_both_ways(chromium: Any, tmp_path: Path) -> None:
    script = beside("frame", "live").replace("export default { render };", "return render;")
    inside = html.escape(page(made_up()), quote=False)
    setup = HOST % ("document.getElementById('p').textContent", f"(() => {{{script}}})()")
    outer = (
        "<!doctype html><html data-ready=yes><title>notebook</title>"
        f"<body><textarea id=p>{inside}</textarea><script>{setup}</script></body></html>"
    )
    with opened(chromium, outer, tmp_path) as tab:
        frame = tab.frame_locator("iframe")
        frame.locator('#map [data-head="L1.H2"]').click()
        tab.wait_for_function("window.saved && window.saved.head === 'L1.H2'")
        tab.evaluate("window.host.say({head: 'L2.H0', pins: ['L0.H1'], metric: 'entropy'})")
        frame.get_by_role("heading", name="Head L2.H0").wait_for()
        assert frame.locator(".pins button").all_inner_texts() == ["L0.H1"]
        tab.wait_for_function("window.saved.head === 'L2.H0' && window.saved.metric === 'entropy'")
        tab.evaluate("window.leave()")
