"""Heads by name: one spelling is written, every spelling is read, and what is not one head is refused."""

from __future__ import annotations

import pytest

from interp.hooks.errors import SiteError
from interp.hooks.head_names import (
    by_layer,
    head_name,
    head_of,
    head_place,
    heads_at,
    is_head,
    layer_name,
    layer_number,
    spelled_together,
)
from interp.hooks.sites import Site


@pytest.mark.parametrize(
    ("text", "place"),
    [("L5.H3", (None, 5, 3)), ("L5.H3.z", (None, 5, 3)), ("vision.L0.H11.pattern", ("vision", 0, 11)),
     ("L5H3", (None, 5, 3)), ("a5.h3", (None, 5, 3)), ("5.3", (None, 5, 3))],
)  # fmt: skip
def test_every_spelling_of_a_head_is_read(text: str, place: tuple[str | None, int, int]) -> None:
    assert head_place(text) == place
    assert head_of(text) == head_name(*place)
    assert head_place(head_name(*place)) == place
    assert layer_number(text) == place[1]


@pytest.mark.parametrize("text", ["L5", "L5.H*", "L5.H1,3", "L1-2.H0", "L5.K1.k", "L5.mlp_write", "embed", "bias", "?"])
def test_what_is_not_one_head_is_refused(text: str) -> None:
    assert not is_head(text)
    with pytest.raises(SiteError):
        head_place(text)


def test_heads_of_a_layer_are_written_and_gathered() -> None:
    names = [*heads_at(Site("vision", 2, "z"), (0, 3)), *heads_at(Site(None, 10, "attention", (7,)), (7,))]
    assert names == ["vision.L2.H0", "vision.L2.H3", "L10.H7"]
    assert by_layer(names) == {"vision.L2": [0, 3], "L10": [7]}
    assert spelled_together("vision.L2", [0, 3]) == "vision.L2.H0,3"
    assert [layer_name(name) for name in names] == ["vision.L2", "vision.L2", "L10"]
    with pytest.raises(SiteError, match="no layer"):
        layer_name("embed")
