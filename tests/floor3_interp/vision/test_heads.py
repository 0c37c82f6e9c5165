"""Which heads look at the picture: against patterns in full, hidden keys one head at a time, and two runs apart."""

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
from interp.vision.divergence import divergence

pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning:transformers.models.paligemma"),
    pytest.mark.filterwarnings("ignore:.*two BOS"),
]


@cache
def shapes() -> tuple[interp.Model, Any]:
    model = interp.load("zoo:shapes-lvlm")
    return model, interp.tasks.shapes(model, n=4, split="heldout")


@cache
def found() -> Any:
    model, task = shapes()
    return interp.vision.heads(model, [row.image for row in task.rows], [row.clean for row in task.rows])


def test_the_mass_is_that_of_the_patterns() -> None:
    model, task = shapes()
    x = task.clean
    tape = model.run(x, record=["text.L*.pattern"])
    image, got = x.mask("image"), found()
    for site, mine, looks in zip(got.sites, got.of("attention mass"), got.looks, strict=True):
        layer, head = (int(part[1:]) for part in site.split(".")[1:])
        for row in range(x.batch):
            last = int(x.valid[row].nonzero()[-1])
            weights = tape[f"text.L{layer}.pattern"][row, head, last].double() * image[row]
            torch.testing.assert_close(looks[row], weights, atol=1e-6, rtol=1e-4)
            assert float(mine[row]) == pytest.approx(float(weights.sum()), abs=1e-5)


def test_the_knock_out_is_the_answer_with_the_image_hidden_from_that_head() -> None:
    model, task = shapes()
    x, got = task.clean, found()
    base = model.run(x)["logits"][:, -1].double().log_softmax(-1)
    said = base.argmax(-1)
    rows = x.valid & ~x.mask("image")
    for n in (0, 5, len(got.sites) - 1):
        hidden = model.run(x, edits=[interp.MaskKeys(got.sites[n], keys="image", positions=rows)])["logits"][:, -1]
        effect = (hidden.double().log_softmax(-1) - base)[torch.arange(len(said)), said]
        torch.testing.assert_close(got.of("knock-out")[n], effect, atol=1e-4, rtol=1e-3)


def test_vhd_is_the_distance_of_outputs_with_and_without_the_picture() -> None:
    model, task = shapes()
    got = found()
    assert torch.equal(got.of("vhd"), divergence(model, task.clean).values.double())


def test_other_rows_are_their_mean() -> None:
    model, task = shapes()
    x = task.clean
    rows = (x.valid & ~x.mask("image")) & (torch.arange(x.length) > 37)
    got = interp.vision.heads(model, x, rows=rows)
    pattern = model.run(x, record=["text.L1.pattern"])["text.L1.pattern"].double()
    weights = pattern[0, 2, rows[0]].mean(0) * x.mask("image")[0]
    torch.testing.assert_close(got.looks[got.sites.index("text.L1.H2"), 0], weights, atol=1e-6, rtol=1e-4)


def test_the_side_of_the_padding_does_not_matter() -> None:
    model, task = shapes()
    texts, pictures = [task.rows[0].clean, f"{task.rows[1].clean} ? ?"], [[row.image] for row in task.rows[:2]]
    left, right = (
        interp.vision.heads(model, model.prepare(texts, images=pictures, padding=side)) for side in ("left", "right")
    )
    for method in left.values:
        torch.testing.assert_close(left.of(method), right.of(method), atol=1e-4, rtol=1e-3)


def test_the_map_is_over_the_picture_that_was_given() -> None:
    got = found()
    n = int(got.of("attention mass")[:, 0].argmax())
    seen = got.map(got.sites[n])
    assert seen.shape == (48, 48)
    assert float(seen.sum()) == pytest.approx(float(got.looks[n, 0].sum()), rel=1e-5)
    left, top, right, bottom = (int(edge) for edge in got.part(got.sites[n]))
    assert float(seen[top:bottom, left:right].mean()) == pytest.approx(float(seen.max()), rel=1e-5)
    assert set(got.table()) == {"attention mass", "knock-out", "vhd"}
    assert got.agreement().loc["vhd", "vhd"] == pytest.approx(1)


def test_the_planted_head_is_first_by_all_three_and_heads_that_write_nothing_still_turn_on_the_picture() -> None:
    model = interp.load("zoo:planted-lvlm")
    task = probe_task("planted-lvlm", model=model)
    table = interp.vision.heads(model, task.clean, metric=task.metric).table()
    others = table.drop("text.L1.H1")
    assert table["knock-out"].idxmin() == table["attention mass"].idxmax() == "text.L1.H1"
    assert table["attention mass"].max() > 0.99
    assert table["knock-out"].min() < -10
    assert (others["knock-out"].abs() < 1e-4).all()
    assert table["vhd"].idxmax() == "text.L1.H1"
    # heads that write nothing also turn on the picture: VHD is taken before the output projection
    assert others["vhd"].max() > 0.3 * table["vhd"].max()


FAMILIES = ["llava", "llava_next", "qwen2_5_vl", "qwen3_vl", "internvl", "paligemma", "smolvlm", "gemma3"]


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_has_heads_with_a_map(name: str) -> None:
    held = interp.attach(*pictured(name))
    place = PLACEHOLDERS[PROCESSOR.get(name, name)]
    pictures = [Image.new("RGB", size, (90, 9, 200)) for size in [(90, 60), (60, 90)]]
    got = interp.vision.heads(held, pictures, [f"{place}What is it?", f"{place}a"], chat=False)
    assert [tuple(got.map(got.sites[0], n).shape) for n in (0, 1)] == [(60, 90), (90, 60)]
    assert "map" not in got.left_out
    assert bool((got.of("attention mass") > 0).all())
    assert got.of("knock-out").abs().max() > 0


def test_queries_have_no_map_and_no_run_without_the_picture_but_a_mass() -> None:
    held = interp.attach(*pictured("blip-2"))
    got = interp.vision.heads(held, [Image.new("RGB", (60, 60))], ["What is it?"], chat=False)
    assert set(got.left_out) == {"vhd", "map"}
    with pytest.raises(InputsError, match="there is no map from tokens to patches"):
        got.map(got.sites[0])
    with pytest.raises(InputsError, match="cannot run without"):
        got.of("vhd")


def test_bad_input_is_refused() -> None:
    held = interp.attach(*pictured("mllama"))
    with pytest.raises(ModelError, match="cross-attention"):
        interp.vision.heads(held, [Image.new("RGB", (60, 60))], [f"{PLACEHOLDERS['mllama']}What"], chat=False)
    model, task = shapes()
    with pytest.raises(InputsError, match="no image token"):
        interp.vision.heads(model, model.prepare(["is there a star in the image ?"]))
    with pytest.raises(InputsError, match=r"no head 'text.L9.H9' here"):
        found().map("text.L9.H9")
    vit = interp.load("zoo:shapes-vit")
    with pytest.raises(InputsError, match="main tower is 'vision'"):
        interp.vision.heads(vit, interp.tasks.shapes(vit, n=1).clean)
    del task


def test_it_is_saved_and_read_back(tmp_path: Path) -> None:
    found().save(tmp_path)
    again = interp.open(tmp_path)
    assert repr(again) == repr(found())
    assert torch.equal(again.map(again.sites[3], 1), found().map(found().sites[3], 1))
