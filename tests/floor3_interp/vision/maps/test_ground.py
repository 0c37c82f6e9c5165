"""Where heads look while they read a phrase, and whether they point at the thing."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from pictured import PROCESSOR, pictured
from PIL import Image
from tokens import PLACEHOLDERS

import interp
from interp.hooks.errors import InputsError, ModelError
from interp.planted.probes import probe_task

pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning:transformers.models.paligemma"),
    pytest.mark.filterwarnings("ignore:.*two BOS"),
]


@cache
def asked() -> tuple[interp.Model, Any]:
    model = interp.load("zoo:shapes-lvlm")
    task = interp.tasks.shapes(model, n=8, split="heldout")
    return model, task.take([i for i, row in enumerate(task.rows) if row.meta["answer"] == "yes"])


def found(**how: Any) -> Any:
    model, task = asked()
    about = [row.meta["about"] for row in task.rows]
    how = {"about": about, **how}
    return interp.vision.ground(model, [r.image for r in task.rows], [r.clean for r in task.rows], **how)


def truth() -> list[Any]:
    return [row.meta["boxes"][row.meta["objects"].index(row.meta["about"])] for row in asked()[1].rows]


def test_looks_are_those_of_the_phrase() -> None:
    model, task = asked()
    x, got = task.clean, found()
    pattern = model.run(x, record=["text.L0.pattern"])["text.L0.pattern"].double()
    for row in range(x.batch):
        at = x.find(task.rows[row].meta["about"], -1, row=row).rows[row]
        assert at is not None
        assert got.read[row] == tuple(range(*at))
        mean = pattern[row, 2, at[0] : at[1]].mean(0) * x.mask("image")[row]
        torch.testing.assert_close(got.looks[got.sites.index("text.L0.H2"), row], mean, atol=1e-6, rtol=1e-4)


def test_phrases_may_stand_at_different_places_and_rows_be_padded() -> None:
    model, task = asked()
    rows = task.rows[:2]
    texts = [rows[0].clean, f"{rows[1].clean} ? ?"]
    about = [row.meta["about"] for row in rows]
    both = interp.vision.ground(model, [row.image for row in rows], texts, about=about)
    assert both.read[0] != both.read[1]
    for n, row in enumerate(rows):
        alone = interp.vision.ground(model, [row.image], texts[n : n + 1], about=about[n])
        torch.testing.assert_close(both.map(example=n), alone.map(), atol=1e-6, rtol=1e-4)


def test_without_a_phrase_the_last_token_is_read() -> None:
    model, task = asked()
    got = interp.vision.ground(model, task.clean)
    assert got.read == tuple((task.clean.length - 1,) for _ in range(task.clean.batch))


def test_hits_are_points_in_boxes() -> None:
    got = found()
    hits = got.hits(truth())
    for n, site in enumerate(got.sites[:5]):
        for row, (left, top, right, bottom) in enumerate(truth()):
            seen = got.map(site, row)
            y, x = divmod(int(seen.argmax()), seen.shape[1])
            inside = left <= x + 4 < right and top <= y + 4 < bottom  # the middle of an 8 x 8 cell
            assert bool(hits[n, row]) == inside
    assert torch.equal(got.pointing(truth(), got.sites[3]), hits[3])
    assert float(got.chance(truth())[0]) == pytest.approx(
        (truth()[0][2] - truth()[0][0]) * (truth()[0][3] - truth()[0][1]) / 48**2
    )
    assert 0 <= float(got.iou(truth()).mean()) <= 1


def test_the_planted_head_points_at_the_square_that_is_asked_for() -> None:
    model = interp.load("zoo:planted-lvlm")
    task = probe_task("planted-lvlm", model=model)
    x = task.clean
    place = x.tokens[0][-1]
    got = interp.vision.ground(model, x, about=place)
    row, column = "abcd".index(place[0]), int(place[1]) - 1
    side = got.sizes[0][0] / 4
    box = (column * side, row * side, (column + 1) * side, (row + 1) * side)
    assert got.pointing([box], "text.L1.H1").tolist() == [1.0]
    assert got.iou([box], "text.L1.H1").tolist() == [1.0]


def test_magnets_stand_before_the_phrase_and_draw_weight() -> None:
    plain, drawn = found(), found(magnets=[".", "a"])
    assert [b - a for a, b in zip(*((one[0] for one in got.read) for got in (plain, drawn)), strict=True)] == [2] * 4
    assert not torch.allclose(plain.mass, drawn.mass)


@pytest.mark.parametrize("name", ["llava_next", "qwen2_5_vl", "qwen3_vl", "internvl", "paligemma", "smolvlm", "gemma3"])
def test_every_family_has_a_box(name: str) -> None:
    held = interp.attach(*pictured(name))
    text = f"{PLACEHOLDERS[PROCESSOR.get(name, name)]}What is in the image?"
    got = interp.vision.ground(held, [Image.new("RGB", (90, 60), (9, 200, 9))], text, about="image", chat=False)
    left, top, right, bottom = got.box()
    assert 0 <= left < right <= 90
    assert 0 <= top < bottom <= 60


def test_bad_input_is_refused() -> None:
    model, task = asked()
    rows = [r.image for r in task.rows], [r.clean for r in task.rows]
    with pytest.raises(InputsError, match="has only stop words"):
        interp.vision.ground(model, *rows, about="the")
    with pytest.raises(InputsError, match="a share of the map's largest value"):
        interp.vision.ground(model, *rows, threshold=0.0)
    with pytest.raises(InputsError, match="is not in"):
        interp.vision.ground(model, *rows, about="moon", magnets=["."])
    with pytest.raises(InputsError, match="magnets are put in front of a phrase"):
        interp.vision.ground(model, task.clean, magnets=["."])
    with pytest.raises(InputsError, match="1 known boxes for 4 examples"):
        found().hits([(0, 0, 1, 1)])
    with pytest.raises(InputsError, match="a box is"):
        found().hits([(3, 0, 1, 1)] * 4)
    with pytest.raises(InputsError, match="2 phrases for 4 questions"):
        interp.vision.ground(model, *rows, about=["star", "ring"])
    blip = interp.attach(*pictured("blip-2"))
    with pytest.raises(InputsError, match="no map from tokens to patches"):
        interp.vision.ground(blip, [Image.new("RGB", (60, 60))], ["What?"], chat=False)
    mllama = interp.attach(*pictured("mllama"))
    with pytest.raises(ModelError, match="cross-attention"):
        interp.vision.ground(mllama, [Image.new("RGB", (60, 60))], [f"{PLACEHOLDERS['mllama']}a"], chat=False)


def test_it_is_saved_and_read_back(tmp_path: Path) -> None:
    got = found()
    got.save(tmp_path)
    again = interp.open(tmp_path)
    assert (repr(again), again.read, again.box()) == (repr(got), got.read, got.box())
