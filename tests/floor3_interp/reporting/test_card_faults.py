"""The card of a report holds names that others chose: no HTML of theirs, no lines of theirs in its head."""

from __future__ import annotations

import pytest
import yaml

from interp.reporting.drawing.tables import card

pytestmark = pytest.mark.faults
HOSTILE = "<img src=x onerror=alert(1)>&lt;b&gt;\n---\n# Own"


def test_html_is_escaped_wherever_names_come_from() -> None:
    facts = {"base_model": HOSTILE, "library_name": "interp", "datasets": [HOSTILE]}
    made = card(facts, f"{HOSTILE} leads", [HOSTILE], {"report.html": HOSTILE})
    _, head, body = made.split("---\n", 2)
    assert "<" not in body
    assert body.count("&lt;img src=x onerror=alert(1)&gt;&amp;lt;b&amp;gt;") == 4
    assert "\n# Own" not in body
    assert yaml.safe_load(head) == facts


@pytest.mark.parametrize("odd", ["\u2028", "\u2029", "\x85", "\x7f", "\ufeff", '"', "\\", "\U0001f600", "a: b", "\t"])
def test_the_head_is_read_back_as_it_was(odd: str) -> None:
    facts = {"base_model": f"a{odd}b", "datasets": [odd]}
    assert yaml.safe_load(card(facts, "x", [], {}).split("---\n")[1]) == facts
