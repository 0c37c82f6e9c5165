"""Looking at heads in a real browser: cards, thumbnails, pinned heads, lines, long texts, menus and keys."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import pytest
from browsing import browser, downloaded
from explored import large, made_up

from interp.explorer.page import LIMIT, page

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(browser() is None, reason="no browser: Debian's `chromium` is not installed"),
]
Open = Callable[..., AbstractContextManager[Any]]
MEASURES = 9


def measured() -> dict[str, Any]:
    """Two examples that begin alike, and more measures than a card has room for."""
    made = made_up(examples=2)
    words = "<bos> When Mary and John went to the store , John gave a drink to".split()
    for n, last in enumerate(("Mary", "Anna")):
        made["examples"][n]["tokens"] = [" " + word for word in [*words, last]]
    sites = [row["site"] for row in made["scores"][:24]]
    made["scores"] += [
        {"site": site, "method": f"m{n}", "estimate": n + 0.5} for n in range(MEASURES - 2) for site in sites
    ]
    return made


def card(tab: Any) -> str:
    return str(tab.locator("#card h2").inner_text()).removeprefix("Head ")


def weights_top(payload: dict[str, Any]) -> float:
    return float(payload["patterns"][0]["weights"].max())


def thumb(tab: Any, site: str) -> Any:
    return tab.locator(f'.thumb[data-head="{site}"]')


def away(tab: Any) -> None:
    """The pointer on nothing, long enough for what waits for it."""
    tab.mouse.move(2, 2)
    tab.wait_for_timeout(120)


def test_where_a_head_looks_comes_first_and_its_measures_are_folded(show: Open) -> None:
    with show(measured(), fragment="#head=L1.H2&metric=m3") as tab:
        titles = tab.locator("#card h3").all_inner_texts()
        assert titles == ["Where it looks", "Promotes", "Suppresses", "Measured"]
        assert tab.locator("#card .tokens").bounding_box()["y"] < tab.locator("#card .words").first.bounding_box()["y"]
        rows = tab.locator("#card .numbers tbody th")
        assert rows.all_inner_texts() == ["m3", "patch z, denoising", "entropy", "m0", "m1"]
        tab.get_by_role("button", name=f"All {MEASURES} measures").click()
        assert rows.count() == MEASURES
        tab.locator('#map [data-head="L0.H3"]').click()
        assert rows.count() == MEASURES, "it stays open from head to head"
        tab.locator("#card").evaluate("one => one.scrollTo(0, 400)")
        assert tab.locator("#card").evaluate("one => one.scrollTop") > 100
        top = tab.locator("#card .card-top").bounding_box()["y"] - tab.locator("#card").bounding_box()["y"]
        assert -2 <= top <= 2, "the name stays in view"
    with show(measured(), fragment="#head=L1.H2", width=380) as tab:
        tab.locator("#card .numbers").scroll_into_view_if_needed()
        assert 0 <= tab.locator("#card h2").bounding_box()["y"] < 60, "on a telephone too"


def test_thumbnails_are_the_patterns_and_are_filtered(show: Open) -> None:
    payload = large()
    weights = payload["patterns"][0]["weights"][11]  # L1.H2
    payload["patterns"][0]["weights"][46] *= 0.01  # L5.H1, of which nothing is seen on the scale of the others
    payload["patterns"][0] |= {
        "sites": payload["patterns"][0]["sites"][:264],
        "weights": payload["patterns"][0]["weights"][:264],
    }
    assert len(page(payload)) < LIMIT / 4
    with show(payload) as tab:
        assert tab.locator(".thumb").count() == 270
        assert tab.locator("#thumbs .legend text").all_text_contents()[:2] == ["0", f"{weights_top(payload):.3g}"]
        assert "270 of 270 heads, the same scale for every head" in tab.locator("#thumbs-said").inner_text()
        assert "Of 6 heads no pattern was kept in this example" in tab.locator("#thumbs-said").inner_text()
        assert tab.locator(".thumb canvas").count() < 270, "those far below are not drawn yet"
        thumb(tab, "L29.H8").scroll_into_view_if_needed()
        thumb(tab, "L29.H8").locator(".lost").wait_for()
        thumb(tab, "L1.H2").scroll_into_view_if_needed()
        thumb(tab, "L1.H2").locator("canvas").wait_for()
        drawn = thumb(tab, "L1.H2").evaluate(
            "one => { const c = one.querySelector('canvas');"
            " return [c.height, c.width, [...c.getContext('2d').getImageData(0, 0, c.width, c.height).data]]; }"
        )
        blue = np.array(drawn[2]).reshape(drawn[0], drawn[1], 4)[..., 2]
        assert drawn[:2] == [18, 18]
        assert (blue.argmin(1) == weights.argmax(1)).mean() > 0.9, "the darkest key of a row is the heaviest"
        assert (blue[np.triu_indices(18, 1)] > 240).all(), "nothing is looked at that comes later"
        tab.locator("#thumbs-layer").select_option("L12")
        assert tab.locator(".thumb").count() == 9
        tab.locator("#thumbs-layer").select_option("")
        tab.locator("#thumbs-role").select_option("induction")
        assert tab.locator(".thumb").evaluate_all("all => all.map(one => one.dataset.head)") == ["L1.H2"]
        assert "role=induction" in tab.url
        tab.locator("#thumbs-role").select_option("")
        tab.get_by_label("Find a head").fill("blocks.5.attn.hook_z")
        assert tab.locator(".thumb").evaluate_all("all => all.map(one => one.dataset.head)") == [
            f"L5.H{n}" for n in range(9)
        ]
        pale = "one => Math.min(...one.querySelector('canvas').getContext('2d').getImageData(0, 0, 18, 18).data)"
        before = thumb(tab, "L5.H1").evaluate(pale)
        tab.get_by_label("own scales").check()
        assert "9 of 270 heads, each on its own scale" in tab.locator("#thumbs-said").inner_text()
        thumb(tab, "L5.H1").locator("canvas").wait_for()
        assert thumb(tab, "L5.H1").evaluate(pale) < before - 100
        downloaded(tab, "Save patterns as PNG")


def test_a_head_that_is_locked_holds(show: Open) -> None:
    with show(measured(), fragment="#head=L0.H0", width=1280) as tab:
        thumb(tab, "L2.H1").hover()
        sync_api.expect(tab.locator("#card h2")).to_have_text("Head L2.H1")
        assert "head=L0.H0" in tab.url, "looking is not choosing"
        away(tab)
        assert card(tab) == "L0.H0"
        thumb(tab, "L1.H2").click()
        assert (card(tab), "lock=1" in tab.url) == ("L1.H2", True)
        thumb(tab, "L2.H1").hover()
        tab.wait_for_timeout(150)
        assert card(tab) == "L1.H2"
        tab.locator('#card .token[data-place="9"]').click()
        for place in ("3", "12"):
            tab.locator(f'#card .token[data-place="{place}"]').hover()
            assert tab.locator("#card .token.here").get_attribute("data-place") == "9"
        thumb(tab, "L3.H0").click()
        tab.get_by_role("region", name="Head L3.H0").get_by_label("Example").select_option("1")
        assert (card(tab), tab.locator("#card .token.here").get_attribute("data-place")) == ("L3.H0", "9")
        tab.keyboard.press("Escape")
        assert "token=" not in tab.url
        assert "lock=1" in tab.url
        tab.keyboard.press("Escape")
        assert "lock=1" not in tab.url
        thumb(tab, "L2.H1").hover()
        sync_api.expect(tab.locator("#card h2")).to_have_text("Head L2.H1")
        tab.locator("#card").get_by_role("button", name="Lock").focus()
        tab.keyboard.press("Enter")
        away(tab)
        assert (card(tab), "lock=1" in tab.url) == ("L2.H1", True)


@pytest.mark.parametrize("make", [made_up, large], ids=["small", "large"])
def test_heads_are_found_by_the_names_of_others_and_as_is_offered(show: Open, make: Callable[[], Any]) -> None:
    wide = 9 if make is large else 6
    with show(make()) as tab:
        box, found = tab.get_by_label("Find a head"), tab.locator("#bar output")
        for words in str(box.get_attribute("placeholder")).split(", "):
            box.fill(words)
            assert re.match(r"[1-9]\d* head", found.inner_text()), words
        for words, count in {
            "blocks.1.attn.hook_z": wide, "blocks.1.attn.hook_z[:, :, 2]": 1, "blocks.1.attn.hook_z.2": 1,
            "blocks.1.hook_attn_out": wide, "blocks.1.attn.hook_k[1]": 3 if make is large else 2, "a1.h2": 1,
            "L1": wide, "layer 1": wide, "transformer.h.1.attn": wide, "L1.K0": 3 if make is large else 2,
            "1.2, 1.3; L0H0": 3, "1,2": 1, "blocks.99.attn.hook_z": 0, "induction": 1,
        }.items():  # fmt: skip
            box.fill(words)
            assert found.inner_text() == f"{count} {'head' if count == 1 else 'heads'}", words


def test_pinned_heads_lie_side_by_side_on_one_scale(show: Open) -> None:
    payload = measured()
    weights = payload["patterns"][0]["weights"]
    pins = ["L0.H0", "L0.H1", "L1.H2", "L2.H3", "L3.H5"]
    at = [int(site[1]) * 6 + int(site[4]) for site in pins[1:]]
    with show(payload, fragment=f"#head=L1.H2&token=9&own=1&pins={'%2B'.join(pins)}", width=1280) as tab:
        panels = tab.locator("#compare .panel")
        assert panels.locator("h3").all_inner_texts() == pins[1:]
        said = tab.locator("#compare > .about").inner_text()
        assert "The last 4 of 5 pinned heads." in said
        top = float(re.findall(r"0 to ([\d.]+);", said)[0])
        assert top == pytest.approx(weights[at].max(), abs=0.01)
        names = panels.locator("svg.pattern").evaluate_all("all => all.map(one => one.getAttribute('aria-label'))")
        assert len({name.rpartition("weights")[2] for name in names}) == 1
        for n, head in enumerate(at):
            first = panels.nth(n).locator("ol li").first.inner_text()
            assert float(first.rpartition(" ")[2]) == pytest.approx(weights[head, 9].max(), abs=1 / 255 + 1e-3)
        boxes = [panels.nth(n).bounding_box() for n in range(4)]
        assert len({round(box["y"]) for box in boxes}) == 1, "side by side"
        tab.get_by_role("button", name="Unpin L1.H2").click()
        assert panels.count() == 4
        assert "L1.H2" not in panels.locator("h3").all_inner_texts()
        assert tab.evaluate("document.activeElement.dataset.unpin"), "the focus is not lost"
        tab.get_by_role("button", name="Unpin all").click()
        assert not tab.locator("#compare").is_visible()
        assert tab.evaluate("document.activeElement.id") == "search"


def test_lines_go_from_a_token_to_what_it_looks_at(show: Open) -> None:
    payload = measured()
    weights = payload["patterns"][0]["weights"][8]  # L1.H2
    with show(payload, fragment="#head=L1.H2&lines=1") as tab:
        query = tab.locator('.lines [data-place="9"][data-way="from"]')
        query.hover()
        chosen = tab.locator(".lines .chosen path")
        assert chosen.count() == int((weights[9] * 255 / weights.max() >= 0.5).sum())
        thick = chosen.evaluate_all(
            "all => all.map(one => [one.getAttribute('d'), +one.getAttribute('stroke-width')])"
            ".sort((a, b) => b[1] - a[1])[0][0]"
        )
        key = tab.locator(f'.lines [data-place="{int(weights[9].argmax())}"][data-way="to"] rect')
        end = float(key.get_attribute("y")) + float(key.get_attribute("height")) / 2
        assert float(thick.rpartition(" ")[2]) == pytest.approx(end, abs=1)
        away(tab)
        tab.locator('.lines [tabindex="0"]').focus()
        tab.keyboard.press("ArrowRight")
        for _ in range(15):
            tab.keyboard.press("ArrowUp")
        tab.keyboard.press("Enter")
        assert "token=0&way=to" in tab.url
        assert "is attended to most from" in tab.locator("#card .said").inner_text()
        assert chosen.count() == int((weights[:, 0] * 255 / weights.max() >= 0.5).sum())
        assert tab.evaluate("[document.activeElement.dataset.place, document.activeElement.dataset.way]") == ["0", "to"]


def test_one_menu_saves_everything(show: Open) -> None:
    with show(measured(), fragment="#head=L1.H2&token=9") as tab:
        assert tab.locator(".exports").evaluate_all(
            "all => all.every(one => one.querySelectorAll('button').length === 1)"
        )
        opener = tab.get_by_role("button", name="Save attention", exact=True)
        opener.focus()
        tab.keyboard.press("ArrowDown")
        assert tab.get_by_role("menuitem").all_inner_texts() == ["PNG", "SVG", "CSV", "JSON", "Link to this view"]
        tab.keyboard.press("ArrowUp")
        assert tab.evaluate("document.activeElement.textContent") == "Link to this view"
        tab.keyboard.press("Enter")
        link = tab.get_by_label("Link to this view")
        assert link.input_value().startswith(tab.url.partition("#")[0])
        assert {"#head=L1.H2", "token=9"} < set(re.split("(?=#)|&", link.input_value()))
        tab.keyboard.press("Escape")
        assert not tab.get_by_role("menu").is_visible()
        assert opener.evaluate("one => one === document.activeElement")
        assert "token=9" in tab.url, "Escape closed the menu and nothing else"
        opener.click()
        tab.mouse.click(5, 5)
        assert opener.get_attribute("aria-expanded") == "false"
        rows = json.loads(downloaded(tab, "Save scatter as JSON"))
        assert rows[0]["site"] == "L0.H0"
        assert len(rows) == 24


def test_keys_do_everything_and_are_listed(show: Open) -> None:
    with show(measured(), fragment="#head=L1.H2") as tab:
        opener = tab.locator("#open-keys")
        opener.focus()
        tab.keyboard.press("?")
        sheet = tab.get_by_role("dialog", name="Keys")
        assert sheet.is_visible()
        for _ in range(4):
            tab.keyboard.press("Tab")
            inside = "document.activeElement === document.body || document.activeElement.closest('#keys') !== null"
            assert tab.evaluate(inside), "the focus stays in the list"
        tab.keyboard.press("j")
        assert card(tab) == "L1.H2", "the page behind it does not move"
        tab.keyboard.press("Escape")
        assert not sheet.is_visible()
        assert tab.evaluate("document.activeElement.id") == "open-keys"
        tab.keyboard.press("j")
        assert card(tab) == "L1.H3"
        tab.keyboard.press("k")
        assert (card(tab), "lock=1" in tab.url) == ("L1.H2", True)
        for key, left in {
            "l": "", "p": "pins=L1.H2", "w": "way=to", "v": "lines=1", "e": "example=1",
        }.items():  # fmt: skip
            tab.keyboard.press(key)
            assert left in tab.url, key
        assert "lock=1" not in tab.url
        tab.keyboard.press("/")
        tab.keyboard.type("jp")
        assert tab.get_by_label("Find a head").input_value() == "jp"
        assert card(tab) == "L1.H2"
        opener.click()
        tab.get_by_label("single letters act on the page").uncheck()
        tab.get_by_role("button", name="Close").click()
        tab.keyboard.press("j")
        assert card(tab) == "L1.H2"


def long_text(tokens: int = 2000) -> dict[str, Any]:
    """One word in a long text that the last token looks at, whole rows kept."""
    made, random = made_up(2, 2), np.random.default_rng(0)
    words = ["needle" if n == 777 else f"w{n % 50}" for n in range(tokens)]
    keys = random.integers(0, np.arange(1, tokens + 1)[None, :, None], (4, tokens, 8))
    weights = random.dirichlet(np.ones(9), (4, tokens))[..., :8]
    keys[:, -1, 0], weights[:, -1, 0], weights[:, -1, 1:] = min(777, tokens - 2), 0.9, weights[:, -1, 1:] * 0.1
    made["examples"] = [{"name": "long", "tokens": words}]
    made["patterns"] = [{"example": 0, "sites": ["L0.H0", "L0.H1", "L1.H0", "L1.H1"], "weights": weights,
                         "indices": keys, "rows": range(tokens)}]  # fmt: skip
    made["cards"], made["circuit"] = {}, None
    return made


def test_a_long_text_is_shown_in_part_and_jumps_to_its_top_keys(show: Open) -> None:
    with show(long_text(), fragment="#head=L1.H0") as tab:
        places = "all => [all.length, +all[0].dataset.place, +all[all.length - 1].dataset.place]"
        assert tab.locator(".token").evaluate_all(places) == [240, 1760, 1999]
        assert tab.evaluate("document.querySelectorAll('*').length") < 2000, "not all of it is on the page"
        first = tab.locator("#card ol.top li").first
        assert "needle at 777: 0.9" in first.inner_text()
        assert "w26needlew28" in first.locator(".around").inner_text(), "with the words around it"
        first.get_by_role("button", name="Go to needle at 777").click()
        assert tab.evaluate("document.activeElement.dataset.place") == "777"
        assert tab.locator(".token").evaluate_all(places) == [240, 657, 896]
        assert "needle at 777: 0.9" in tab.locator("#card ol.top li").first.inner_text(), "still of the last token"
        assert "token=1999" in tab.url
        tab.get_by_role("button", name="← earlier").click()
        assert tab.locator(".token").evaluate_all(places)[1] == 417
        for words, place in (("needle", 777), ("1500", 1500)):
            tab.get_by_label("Go to", exact=True).fill(words)
            tab.keyboard.press("Enter")
            assert tab.locator(f'.token[data-place="{place}"]').is_visible()
        tab.get_by_label("Go to", exact=True).fill("nowhere")
        tab.keyboard.press("Enter")
        assert "No token is or holds nowhere." in tab.locator("#card .overview").inner_text()
        tab.get_by_role("checkbox", name="lines").check()
        assert tab.locator(".lines .word").count() <= 120
        assert "60 queries around the shown one" in tab.locator("#card").inner_text()


def test_examples_are_chosen_by_their_text(show: Open) -> None:
    with show(measured(), fragment="#head=L1.H2") as tab:
        menu = tab.get_by_role("region", name="Head L1.H2").get_by_label("Example")
        said = menu.locator("option").all_inner_texts()
        assert [re.findall("(Mary|Anna) \\(prompt [01]\\)$", one)[0] for one in said] == ["Mary", "Anna"]
        menu.select_option("1")
        assert tab.locator(".token").last.inner_text().endswith("Anna")
        assert tab.locator("#thumbs").get_by_label("Example").input_value() == "1"


@pytest.mark.parametrize("width", [320, 1920])
def test_everything_open_fits_narrow_and_wide_screens(show: Open, width: int) -> None:
    pins = "L0.H0%2BL0.H1%2BL1.H0%2BL1.H1"
    with show(long_text(400), fragment=f"#head=L1.H0&lines=1&pins={pins}", width=width) as tab:
        for name in ("Save attention", "Save heads", "Save pinned", "Save patterns"):
            tab.get_by_role("button", name=name, exact=True).click()
            box = tab.get_by_role("menu").bounding_box()
            assert box["x"] >= 0
            assert box["x"] + box["width"] <= width
        assert tab.evaluate("document.documentElement.scrollWidth") <= width
        tab.keyboard.press("Escape")
        tab.get_by_role("checkbox", name="lines").uncheck()
        tab.keyboard.press("?")
        box = tab.get_by_role("dialog").bounding_box()
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= width
        assert tab.evaluate("document.documentElement.scrollWidth") <= width
