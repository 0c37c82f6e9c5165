"""Spoilt pictures: each number from pictures changed by hand, and patches that do more than chance."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from looking import PLACES, family, picture
from pictured import PROCESSOR
from PIL import Image

import interp
from interp.hooks.errors import InputsError
from interp.vision.robust.spoiling import cells_of, spoilt

pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning:transformers.models.paligemma"),
    pytest.mark.filterwarnings("ignore:.*two BOS"),
]


@cache
def lvlm() -> tuple[interp.Model, Any]:
    model = interp.load("zoo:shapes-lvlm")
    return model, interp.tasks.shapes(model, n=2, split="heldout")


@cache
def vit() -> tuple[interp.Model, Any]:
    model = interp.load("zoo:shapes-vit")
    return model, interp.tasks.shapes(model, n=2, split="heldout")


def rows(task: Any) -> tuple[list[Any], list[str]]:
    return [row.image for row in task.rows], [row.clean for row in task.rows]


def black(one: Any, box: tuple[int, int, int, int]) -> Any:
    pixels = np.array(one)
    pixels[box[1] : box[3], box[0] : box[2]] = 0
    return Image.fromarray(pixels)


def test_effects_and_looks_are_those_of_pictures_spoilt_by_hand() -> None:
    m, task = lvlm()
    pictures, texts = rows(task)
    got = interp.vision.perturb(m, pictures, texts, metric=task.metric, how="black", grid=(2, 3))
    boxes = [(c * 16, r * 24, (c + 1) * 16, (r + 1) * 24) for r in range(2) for c in range(3)]
    assert cells_of((48, 48), (2, 3)) == boxes
    base = m.run(task.clean, record=["text.L1.pattern"])
    image, moved = task.clean.mask("image")[0], torch.zeros(2).double()

    def shares(tape: Any) -> torch.Tensor:
        weights = tape["text.L1.pattern"][:, 2, -1].double()[:, image]
        return weights / weights.sum(1, keepdim=True)

    for n, box in enumerate(boxes):
        x = m.prepare(texts, images=[[black(one, box)] for one in pictures])
        tape = m.run(x, record=["text.L1.pattern"])
        effect = task.metric(tape["logits"], x) - task.metric(base["logits"], task.clean)
        torch.testing.assert_close(got.values[0, n], effect.double(), atol=1e-4, rtol=1e-3)
        moved += (shares(tape) - shares(base)).abs().sum(1) / 2 / 6
    torch.testing.assert_close(got.moved[got.sites.index("text.L1.H2")], moved, atol=1e-5, rtol=1e-3)
    assert got.map("black", 1).shape == (2, 3)
    assert got.map("black", 1)[1, 2] == got.values[0, 5, 1]


def test_drawn_is_the_share_on_the_spoilt_cell() -> None:
    m, task = lvlm()
    pictures, texts = rows(task)
    got = interp.vision.perturb(m, pictures[:1], texts[:1], metric=task.take([0]).metric, how="black", grid=(1, 1))
    torch.testing.assert_close(got.drawn, torch.zeros_like(got.drawn))  # all of the picture is spoilt
    vision, asked = vit()
    got = interp.vision.perturb(vision, [r.image for r in asked.rows], metric=asked.metric, how=["grey"], grid=(2, 2))
    assert bool((got.moved > 0).all())
    assert bool((got.moved <= 1).all())
    assert got.values.shape == (1, 4, 2)
    assert got.drawn.abs().max() > 0


def test_a_temperature_is_on_in_every_run() -> None:
    m, task = vit()
    hot = [interp.edits.Temperature("L*.H*", 3.0)]
    pictures = [row.image for row in task.rows]
    got = interp.vision.perturb(m, pictures, metric=task.metric, how="noise", grid=(2, 2), edits=hot)
    whole = task.metric(m.run(task.clean, edits=hot)["logits"], task.clean)
    torch.testing.assert_close(got.base, whole.double(), atol=1e-5, rtol=1e-4)


def test_ways_of_spoiling() -> None:
    random, one = np.random.default_rng(0), picture(20, 10)
    pixels = np.array(one)
    for how in ("grey", "black", "noise", "shuffle", lambda part: 255 - part):
        new = np.array(spoilt(one, (2, 1, 8, 5), how, random))
        outside = np.ones(pixels.shape[:2], dtype=bool)
        outside[1:5, 2:8] = False
        assert (new[outside] == pixels[outside]).all()
        assert (new != pixels).any()
    shuffled = np.array(spoilt(one, (2, 1, 8, 5), "shuffle", random))
    assert sorted(map(tuple, shuffled[1:5, 2:8].reshape(-1, 3))) == sorted(map(tuple, pixels[1:5, 2:8].reshape(-1, 3)))


def test_mixing_pastes_other_pictures_and_keeps_what_stays() -> None:
    m, task = lvlm()
    pictures, texts = rows(task)
    got = interp.vision.mixing(m, pictures, texts, others=pictures[::-1], metric=task.metric, shares=[1.0], draws=1)
    x = m.prepare(texts, images=[[one] for one in pictures[::-1]])
    effect = task.metric(m.run(x)["logits"], x) - task.metric(m.run(task.clean)["logits"], task.clean)
    torch.testing.assert_close(got.values[0], effect.double(), atol=1e-4, rtol=1e-3)
    assert got.expected.tolist() == [[1.0, 1.0]]
    torch.testing.assert_close(got.looks, torch.ones_like(got.looks))
    keep = [(0, 0, 48, 24), (0, 24, 48, 48)]
    half = interp.vision.mixing(m, pictures, texts, others=pictures[::-1], metric=task.metric, shares=[0.9], keep=keep)
    assert half.expected.tolist() == [[0.5, 0.5]]
    mixed = pictures[0].copy()
    mixed.paste(pictures[1].crop((0, 24, 48, 48)), (0, 24))
    x = m.prepare(texts[:1], images=[[mixed]])
    tape = m.run(x, record=["text.L0.pattern"])
    weights = tape["text.L0.pattern"][0, 5, -1].double()[x.mask("image")[0]]
    expected = weights[18:].sum() / weights.sum()
    torch.testing.assert_close(half.looks[0, half.sites.index("text.L0.H5"), 0], expected, atol=1e-5, rtol=1e-4)


def test_a_patch_along_the_gradient_beats_random_ones_and_stays_in_its_box() -> None:
    m, task = vit()
    pictures = [row.image for row in task.rows]
    box = (16, 16, 32, 32)
    got = interp.vision.adversarial(m, pictures, metric=task.metric, boxes=box, steps=8, remedies=[1.0, 2.0])
    assert bool((got.curve.amin(0) < got.random.amin(0)).all())
    plain = task.clean.kwargs["pixel_values"]
    torch.testing.assert_close(got.curve[0], task.metric(m.run(task.clean)["logits"], task.clean).double())
    changed = (got.pixels != plain).any(1)
    assert not changed[:, :16].any()
    assert not changed[:, :, 32:].any()
    assert bool(changed[:, 16:32, 16:32].any())
    ends = [m.prepare(images=[black(one, (0, 0, 48, 48)) for one in pictures]).kwargs["pixel_values"]]
    white = [Image.new("RGB", (48, 48), (255, 255, 255))] * 2
    ends.append(m.prepare(images=white).kwargs["pixel_values"])
    assert bool((got.pixels >= ends[0] - 1e-5).all())
    assert bool((got.pixels <= ends[1] + 1e-5).all())
    torch.testing.assert_close(got.remedied[0, 0], got.curve[0], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(got.remedied[0, 1], got.curve[got.best], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(got.values, got.remedied[0, 1] - got.remedied[0, 0], atol=1e-4, rtol=1e-4)
    hot = m.run(task.clean, edits=[interp.edits.Temperature("L*.H*", 2.0)])["logits"]
    torch.testing.assert_close(got.remedied[1, 0], task.metric(hot, task.clean).double(), atol=1e-4, rtol=1e-4)


FAMILIES = ["llava", "llava_next", "qwen2_5_vl", "qwen3_vl", "internvl", "paligemma", "smolvlm", "gemma3", "blip-2"]


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_is_spoilt(name: str) -> None:
    held, text = family(name), f"{PLACES[PROCESSOR.get(name, name)]}What is it?"

    def metric(logits: torch.Tensor, _: Any) -> torch.Tensor:
        return logits[:, -1, 5].float()

    how: dict[str, Any] = {"metric": metric, "chat": False}
    got = interp.vision.perturb(held, [picture(60, 60)], [text], how="black", grid=(2, 2), **how)
    assert float(got.values.abs().max()) > 0
    bad = interp.vision.adversarial(held, [picture(60, 60)], [text], boxes=(8, 8, 52, 52), steps=2, **how)
    assert float(bad.values) < 0
    assert bool(got.drawn.isnan().all()) == (name == "blip-2")


def test_bad_input_is_refused() -> None:
    m, task = lvlm()
    pictures, texts = rows(task)
    how: dict[str, Any] = {"metric": task.metric}
    with pytest.raises(InputsError, match="how= are some of grey, black"):
        interp.vision.perturb(m, pictures, texts, how="gray", **how)
    with pytest.raises(InputsError, match="gives uint8"):
        interp.vision.perturb(m, pictures, texts, how=lambda part: part[:1], **how)
    with pytest.raises(InputsError, match="2 pictures for 1 questions"):
        interp.vision.perturb(m, pictures, texts[:1], **how)
    with pytest.raises(InputsError, match="grid= is rows and columns"):
        interp.vision.perturb(m, pictures, texts, grid=(0, 2), **how)
    with pytest.raises(InputsError, match="others= is a picture for each of 2"):
        interp.vision.mixing(m, pictures, texts, others=pictures[:1], **how)
    with pytest.raises(InputsError, match="leaves no cell"):
        interp.vision.mixing(m, pictures, texts, others=pictures, keep=[(0, 0, 48, 48)] * 2, **how)
    with pytest.raises(InputsError, match="shares= must be above 0"):
        interp.vision.mixing(m, pictures, texts, others=pictures, shares=[0.0], **how)
    with pytest.raises(InputsError, match="inside 48 x 48 pixels"):
        interp.vision.adversarial(m, pictures, texts, boxes=(0, 0, 99, 9), **how)
    with pytest.raises(InputsError, match="steps= is at least 1"):
        interp.vision.adversarial(m, pictures, texts, boxes=(0, 0, 9, 9), steps=0, **how)
    with pytest.raises(InputsError, match="at least one picture"):
        interp.vision.perturb(m, [], [], **how)


def test_results_are_saved_and_read_back(tmp_path: Path) -> None:
    m, task = vit()
    how: dict[str, Any] = {"metric": task.metric}
    pictures = [row.image for row in task.rows]
    for n, got in enumerate(
        [
            interp.vision.perturb(m, pictures, how="grey", grid=(1, 2), **how),
            interp.vision.mixing(m, pictures, others=pictures[::-1], shares=[0.5], draws=1, **how),
            interp.vision.adversarial(m, pictures, boxes=(0, 0, 9, 9), steps=1, **how),
        ]
    ):
        got.save(tmp_path / str(n))
        assert repr(interp.open(tmp_path / str(n))) == repr(got)
