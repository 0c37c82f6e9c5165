"""The order of a vision tower's patches is proven on the tower, or it is not given."""

from __future__ import annotations

import pytest
import torch
import transformers
from torch import nn

import interp
from interp.hooks.errors import InputsError
from interp.hooks.examples.example import example
from interp.hooks.pictures.grids import LEADS, lead_of, patch_grid
from interp.hooks.survey.order import order
from interp.zoo.families import tiny

SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
OWL = dict(**SMALL, image_size=24, patch_size=8)


def owl() -> nn.Module:
    """A tower of one class token and then patches, which no table lists."""
    assert "owlvit_vision_model" not in LEADS
    config = transformers.OwlViTVisionConfig(**OWL)
    return transformers.OwlViTVisionModel(config).eval()


@pytest.mark.parametrize("family", ["vit", "clip", "swin"])
def test_what_is_proven_is_what_the_table_says(family: str) -> None:
    module = tiny(family)
    vision = getattr(module.config, "vision_config", module.config)
    call = example(module)
    found = order(module, interp.attach(module).anatomy, call)
    assert found is not None
    assert found.lead == lead_of(vision)
    assert patch_grid(found, call["pixel_values"]) == patch_grid(vision, call["pixel_values"])


def test_a_patch_of_a_tower_that_no_table_lists_is_where_its_pixels_are() -> None:
    module = owl()
    pixels = torch.randn(2, 3, 24, 24)
    m = interp.attach(module)
    x = m.inputs({"pixel_values": pixels})
    assert x.roles.grids == (((1, 3, 3),),) * 2
    assert x.roles.tags["cls"].tolist() == [[True] + [False] * 9] * 2
    changed = pixels.clone()
    changed[:, :, 8:16, 16:24] = 0  # the patch of the second row and the third column
    before, after = (m.run({"pixel_values": p}, record="L0.resid_pre")["L0.resid_pre"] for p in (pixels, changed))
    moved = (before != after).any(-1)
    assert torch.equal(moved, (x.roles.row == 1) & (x.roles.col == 2))


@pytest.mark.parametrize("index", [[0, 1, 4, 7, 2, 5, 8, 3, 6, 9], [0, 1, 2, 3, 4, 6, 5, 7, 8, 9], [*range(1, 10), 0]])
def test_another_order_has_no_map_and_positions_by_number_still_work(index: list[int]) -> None:
    """In columns; two neighbours swapped; the class token last."""
    module = owl()
    inner = module.vision_model if hasattr(module, "vision_model") else module
    inner.embeddings.register_forward_hook(lambda _, __, made: made[:, index])
    m = interp.attach(module)
    x = m.inputs({"pixel_values": torch.randn(2, 3, 24, 24)})
    assert order(module, m.anatomy, x.kwargs) is None
    assert x.valid.shape == (2, 10)
    assert x.roles.grids == ((), ())
    with pytest.raises(InputsError, match="select nothing"):
        x.mask("image:0")
    edited = m.run(x, record="L1.resid_pre", edits=[interp.Zero("L0.H0.z", positions=[4])])["L1.resid_pre"]
    plain = m.run(x, record="L1.resid_pre")["L1.resid_pre"]
    assert (edited != plain).any(-1).nonzero()[:, 1].unique().tolist() == [4]


def test_another_size_of_picture_has_its_own_grid() -> None:
    m = interp.attach(owl())
    m.inputs({"pixel_values": torch.randn(1, 3, 24, 24)})
    x = m.inputs({"pixel_values": torch.randn(1, 3, 16, 32), "interpolate_pos_encoding": True})
    assert x.roles.grids == (((1, 2, 4),),)
