"""Maps over pixels: each token's weight lies in its own box, whatever the tiles, and nothing is lost."""

from __future__ import annotations

import pytest
import torch
from pictured import pictured
from PIL import Image
from tokens import PLACEHOLDERS

import interp
from interp.hooks.errors import InputsError
from interp.hooks.inputs.inputs import Inputs
from interp.vision.maps.cells import boxes_of, inputs_of, pixel_map, shown_in, size_of

pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning:transformers.models.paligemma"),
    pytest.mark.filterwarnings("ignore:.*two BOS"),
]
HIGH, WIDE = 61, 90


def map_of(x: Inputs, weights: torch.Tensor, row: int, *, picture: int = 0) -> torch.Tensor:
    """The map of weights [..., position] over one picture of a row, as the methods make theirs."""
    here = shown_in(x, row, picture)
    boxes = boxes_of(x, what="a map over the picture")[row, here]
    return pixel_map(weights[..., here], boxes, size_of(x, row, picture))


def read(name: str) -> Inputs:
    held = interp.attach(*pictured(name))
    picture = Image.new("RGB", (WIDE, HIGH), (9, 9, 9))
    return held.prepare([f"{PLACEHOLDERS[name]}What is it?"], images=[[picture]], chat=False)


def plain(weights: torch.Tensor, boxes: torch.Tensor) -> torch.Tensor:
    """Pixel by pixel, from the definition."""
    out = torch.zeros(HIGH, WIDE, dtype=torch.float64)
    for weight, (left, top, right, bottom) in zip(weights.tolist(), boxes.tolist(), strict=True):
        if left != left:
            continue
        for y in range(HIGH):
            for x in range(WIDE):
                high = max(0.0, min(bottom, y + 1) - max(top, y))
                wide = max(0.0, min(right, x + 1) - max(left, x))
                out[y, x] += weight * high * wide / ((right - left) * (bottom - top))
    return out


@pytest.mark.parametrize("name", ["llava", "llava_next", "qwen2_5_vl", "internvl", "idefics3", "gemma3"])
def test_a_map_is_its_definition_and_keeps_the_weight(name: str) -> None:
    x = read(name)
    torch.manual_seed(1)
    weights = torch.rand(x.length, dtype=torch.float64)
    boxes = x.roles.boxes()[0]
    found = map_of(x, weights, 0)
    torch.testing.assert_close(found, plain(weights, boxes), atol=1e-5, rtol=1e-4)
    assert float(found.sum()) == pytest.approx(float(weights[~boxes.isnan().any(-1)].sum()), rel=1e-6)


def test_a_thumbnail_lies_over_the_tiles() -> None:
    x = read("internvl")
    weights = (x.roles.tile[0] == len(x.roles.grids[0]) - 1).double()
    found = map_of(x, weights, 0)
    assert float(found.min()) > 0
    tiles = map_of(x, x.roles.patch[0].double() - weights, 0)
    assert float(tiles.sum()) == pytest.approx(float(x.roles.patch[0].sum() - weights.sum()))


def test_several_maps_at_once() -> None:
    boxes = torch.tensor([[0.0, 0, 2, 2], [2, 0, 4, 2], [float("nan")] * 4])
    found = pixel_map(torch.tensor([[1.0, 0, 5], [0, 3.0, 5]]), boxes, (2, 4))
    assert found.tolist() == [[[0.25, 0.25, 0, 0]] * 2, [[0, 0, 0.75, 0.75]] * 2]


def test_what_has_no_map_says_so() -> None:
    x = read("blip-2")
    with pytest.raises(InputsError, match="there is no map from tokens to patches"):
        map_of(x, torch.ones(x.length), 0)
    x = read("llava")
    with pytest.raises(InputsError, match="row 0 has 1 pictures, so there is no picture 1"):
        size_of(x, 0, 1)
    bare = interp.attach(*pictured("llava")).inputs(dict(x.kwargs))
    with pytest.raises(InputsError, match="sizes are not known: prepare the inputs from pictures"):
        size_of(bare, 0)
    with pytest.raises(InputsError, match="2 pictures for 1 questions"):
        inputs_of(interp.attach(*pictured("llava")), [None, None], ["a"])
