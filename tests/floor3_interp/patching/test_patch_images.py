"""Patching a language-vision model: two images, two questions, and image tokens as an axis."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import interp
from interp.hooks.errors import InputsError
from interp.hooks.examples.example import example
from interp.zoo.families import tiny


def lvlm() -> tuple[interp.Model, dict[str, Any]]:
    m = interp.attach(tiny("llava"))
    return m, dict(example(m.module, batch=2, seed=1))


def metric(logits: torch.Tensor, inputs: Any) -> torch.Tensor:
    return logits[:, -1, 3] - logits[:, -1, 4]


def test_two_images_under_one_text_and_image_tokens_as_an_axis() -> None:
    m, x = lvlm()
    y = {**x, "pixel_values": torch.randn_like(x["pixel_values"])}
    e = interp.patch(m, base=x, source=y, metric=metric, sites="text.L*.resid_pre", positions="each")
    image = m.inputs(x).mask("image").any(0)
    first = int(image.int().argmax())
    values = torch.tensor(e.to_array().values)
    assert bool((values[:, :first] == 0).all())
    assert bool((values[0, image] != 0).all())
    assert bool((values[0, ~image] == 0).all())
    inputs, new = m.inputs(x), m.run(y, record="text.L0.resid_pre")["text.L0.resid_pre"]
    for p in image.nonzero().flatten().tolist():
        edit = interp.Set("text.L0.resid_pre", new, positions=[p])
        gap = metric(m.run(inputs, edits=[edit])["logits"], inputs) - metric(m.run(inputs)["logits"], inputs)
        assert float(values[0, p]) == pytest.approx(float(gap.mean()), abs=1e-4)


def test_two_questions_about_one_image_leave_the_vision_tower_at_exactly_zero() -> None:
    m, x = lvlm()
    words = x["input_ids"].clone()
    words[:, -2] = (words[:, -2] + 1) % 90 + 3
    e = interp.patch(m, base=x, source={**x, "input_ids": words}, metric=metric,
                     sites=["text.L*.H*.z", "vision.L*.H*.z"])  # fmt: skip
    frame = e.to_frame().set_index("tower")["estimate"]
    assert bool((frame["vision"] == 0).all())
    assert bool((frame["text"] != 0).any())


def test_vision_heads_move_the_answer_through_the_text() -> None:
    m, x = lvlm()
    y = {**x, "pixel_values": torch.randn_like(x["pixel_values"])}
    e = interp.patch(m, base=x, source=y, metric=metric, sites="vision.L0-1.H*.z", both=True)
    assert e.meta["engine"] == "Replay"
    assert float(e.mean.abs().max()) > 1e-3
    assert e.reverse is not None
    assert e.reverse.values.shape == e.values.shape
    torch.testing.assert_close(e.reverse.base, e.source)


def test_a_group_of_both_towers_is_patched_together() -> None:
    m, x = lvlm()
    y = {**x, "pixel_values": torch.randn_like(x["pixel_values"])}
    places = ["text.L1.H1.z", "vision.L0.H0.z"]
    e = interp.patch(m, base=x, source=y, metric=metric, cells=[places])
    new = m.run(y, record=[place.replace(".H1", "").replace(".H0", "") for place in places])
    values = {place: new[place.replace(".H1", "").replace(".H0", "")] for place in places}
    heads = {"text.L1.H1.z": 1, "vision.L0.H0.z": 0}
    edits = [interp.Set(place, value[:, :, heads[place], None]) for place, value in values.items()]
    inputs = m.inputs(x)
    gap = metric(m.run(inputs, edits=edits)["logits"], inputs) - metric(m.run(inputs)["logits"], inputs)
    torch.testing.assert_close(e.values[0], gap.double(), atol=1e-5, rtol=1e-4)


def test_other_numbers_of_images_are_refused() -> None:
    m, x = lvlm()
    token = int(m.config.image_token_id if hasattr(m.config, "image_token_id") else m.config.image_token_index)
    fewer = {**x, "input_ids": torch.where(x["input_ids"] == token, 7, x["input_ids"])}
    del fewer["pixel_values"]
    with pytest.raises(InputsError, match="images by row"):
        interp.patch(m, base=x, source=fewer, metric=metric, sites="text.L*.z")


def test_effects_lie_over_the_picture() -> None:
    from interp.results.figures.over_image import over_image

    m, x = lvlm()
    y = {**x, "pixel_values": torch.randn_like(x["pixel_values"])}
    e = interp.patch(m, base=x, source=y, metric=metric, sites="text.L0.resid_pre", positions="each")
    inputs = m.inputs(x)
    grid = over_image(e, inputs, row=1)
    assert grid.ndim == 3
    assert not bool(grid.isnan().any())
    labels, flat = inputs.roles, e.values[:, 1]
    for p in inputs.mask("image")[1].nonzero().flatten().tolist():
        assert float(grid[0, labels.row[1, p], labels.col[1, p]]) == float(flat[p])
    whole = interp.patch(m, base=x, source=y, metric=metric, sites="text.L0.resid_pre")
    with pytest.raises(InputsError, match="positions='each'"):
        over_image(whole, inputs)
    figure = e.over_image(inputs, torch.zeros(24, 24, 3, dtype=torch.uint8).numpy(), row=1)
    assert [trace.type for trace in figure.plotly().data] == ["image", "heatmap"]
