"""Verdicts of denoisers, and roles of their tokens held against what the model does."""

from __future__ import annotations

import pytest
from denoisers import library

import interp
from interp.commands.verdicts import survey_denoisers
from interp.hooks.denoisers import layout
from interp.zoo.denoisers import SIZES, build, kinds, misplaced


@pytest.mark.filterwarnings("ignore:.*patched in full forward passes:UserWarning")
def test_classes_have_verdicts_with_reasons() -> None:
    library()
    names = ["EasyAnimateTransformer3DModel", "UNet1DModel", "ErnieImageTransformer2DModel", "PRXTransformer2DModel"]
    rows = list(survey_denoisers(names))
    assert [row.verdict for row in rows] == ["pass", "not built", "refused", "partly"]
    assert "words: 2 layers" in rows[0].heads
    assert "position, row, d" in rows[2].why
    assert "does not know the order of its tokens" in rows[3].why
    assert set(SIZES) <= set(kinds()) | {"Transformer2DModel"}


def test_a_wrong_order_of_tokens_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    library()
    m = interp.attach(build("CogView3PlusTransformer2DModel"))
    assert misplaced(m) is None
    first = tuple(name for name in layout.WORDS_FIRST if name != "CogView3")
    monkeypatch.setattr(layout, "WORDS_FIRST", first)
    monkeypatch.setattr(layout, "CELLS_FIRST", (*layout.CELLS_FIRST, "CogView3"))
    assert "the cell 2, 1" in (misplaced(m) or "")
