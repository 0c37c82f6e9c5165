"""Cells drawn on pictures: a cell painted in the picture changes the token that the figure puts there, and no other."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from explored import pictured as made_up
from pictured import pictured
from PIL import Image
from tokens import PLACEHOLDERS

import interp
from interp.explorer.payload.payload import shown
from interp.explorer.payload.plain import ExplorerError
from interp.explorer.pictured import Pictures, images, pixels
from interp.hooks.inputs.inputs import Inputs

pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning:transformers.models.paligemma"),
    pytest.mark.filterwarnings("ignore:.*two BOS"),
]
SIZE = (120, 180)
FAMILIES = ["llava", "llava_next", "qwen2_vl", "qwen2_5_vl", "qwen3_vl", "internvl", "paligemma", "idefics3", "gemma3"]


def read(name: str, picture: Image.Image) -> Inputs:
    model, processor = pictured(name)
    held = interp.attach(model, processor)
    return held.prepare([f"{PLACEHOLDERS[name]}What is it?"], images=[[picture]], chat=False)


def gray() -> Image.Image:
    return Image.new("RGB", (SIZE[1], SIZE[0]), (127, 127, 127))


def lines(drawn: dict[str, Any], r: int, c: int) -> tuple[float, float, float, float]:
    return drawn["across"][c], drawn["down"][r], drawn["across"][c + 1], drawn["down"][r + 1]


@pytest.mark.parametrize("name", FAMILIES)
def test_every_cell_lies_where_the_labels_say(name: str) -> None:
    x = read(name, gray())
    boxes, found = x.roles.boxes()[0], images(x, 0, 0, Pictures([gray()]))
    seen: list[int] = []
    for drawn in found:
        left, top = _corner(drawn, boxes)
        for n, column in enumerate(drawn["positions"]):
            r, c = divmod(n, drawn["grid"][1])
            if column is None:
                continue
            seen.append(column)
            box = torch.tensor(lines(drawn, r, c)) + torch.tensor([left, top, left, top])
            assert torch.allclose(box, boxes[column], atol=0.01), (name, n)
    assert sorted(seen) == (~boxes.isnan().any(-1)).nonzero().flatten().tolist()


def _corner(drawn: dict[str, Any], boxes: torch.Tensor) -> tuple[int, int]:
    """Where the figure was cut out of the picture."""
    mine = boxes[[column for column in drawn["positions"] if column is not None]]
    return int(mine[:, 0].min()), int(mine[:, 1].min())


def test_tiles_are_one_figure_with_borders_and_the_thumbnail_is_another() -> None:
    tiles, whole = images(read("internvl", gray()), 0, 0, Pictures([gray()]))
    assert (tiles["grid"], whole["grid"]) == ([4, 6], [2, 2])  # 2 x 3 tiles of 2 x 2 tokens
    assert tiles["borders"] == [[60, 120], [60]]
    assert whole["borders"] == [[], []]
    assert tiles["png"].size == whole["png"].size == (180, 120)
    # tile by tile in the text, line by line in the figure
    first = tiles["positions"][0]
    assert [column - first for column in tiles["positions"][:6]] == [0, 1, 4, 5, 8, 9]


def test_marks_between_the_tiles_of_idefics_have_no_cell() -> None:
    x = read("idefics3", gray())
    tiles, whole = images(x, 0, 0, Pictures([gray()]))
    inside = [column for drawn in (tiles, whole) for column in drawn["positions"]]
    assert bool(x.roles.patch[0, inside].all())
    assert min(whole["positions"]) > max(tiles["positions"])


def test_mllama_is_drawn_where_its_text_looks_and_its_padding_is_not() -> None:
    model, processor = pictured("mllama")
    held = interp.attach(model, processor)
    picture = Image.new("RGB", (56, 34), (127, 127, 127))
    x = held.prepare([f"{PLACEHOLDERS['mllama']}What is it?"], images=[[picture]], chat=False)
    page = interp.explore(held, x, pictures=[picture], examples=1).payload
    drawn = {page["examples"][one["example"]]["name"]: one for one in page["images"]}
    own, across = drawn["example 0, vision"], drawn["example 0, text cross-attention"]
    assert own["grid"] == [8, 8]  # 2 x 2 tiles, the lower two mostly padding
    assert own["borders"] == across["borders"] == [[28], [28]]
    assert own["down"] == [0, 7, 14, 21, 28, 34, 34, 34, 34]
    tokens = [page["examples"][one["example"]]["tokens"] for one in (own, across)]
    for one, words in zip((own, across), tokens, strict=True):
        for n, place in enumerate(one["positions"]):
            r, c = divmod(n, one["grid"][1])
            shows = one["down"][r + 1] > one["down"][r]
            assert (place is not None) == shows
            if shows:
                assert words[place] == f"({r % 4},{c % 4})"
    assert not all(place is not None for place in own["positions"])
    shown(page)


def test_every_frame_of_a_video_is_a_figure() -> None:
    config = pictured("qwen2_vl")[0].config
    ids = torch.tensor([[5, *[config.video_token_id] * 12, 6]])
    call = {"input_ids": ids, "video_grid_thw": torch.tensor([[2, 4, 6]]), "pixel_values_videos": torch.zeros(48, 294)}
    x = Inputs.of(call, config=config)
    frames = [Image.new("RGB", (60, 40), (n, n, n)) for n in range(4)]
    first, second = images(x, 0, 0, Pictures([frames]))
    assert (first["positions"], second["positions"]) == (list(range(1, 7)), list(range(7, 13)))
    assert [one["png"].getpixel((0, 0))[0] for one in (first, second)] == [0, 2]
    assert first["across"] == [0, 20, 40, 60]
    assert images(x, 0, 0, Pictures([frames[0]])) == []  # one picture is no video


@pytest.mark.parametrize("name", ["internvl", "idefics3"])
def test_tiles_are_drawn_as_the_model_read_them(name: str) -> None:
    picture = gray()
    picture.paste((255, 0, 0), (0, 0, 60, 60))  # the first of 2 x 3 tiles
    given = pixels(interp.attach(*pictured(name)), read(name, picture))
    [whole] = given.given
    assert whole.size == (84, 56)  # tiles of 28 x 28
    assert not given.covered
    red, grey = whole.getpixel((14, 14)), whole.getpixel((70, 42))
    assert red[0] > 200 > red[1]
    assert max(grey) - min(grey) < 3
    tiles, thumbnail = images(read(name, picture), 0, 0, given)
    assert (tiles["grid"], thumbnail["grid"]) == ([4, 6], [2, 2])
    assert tiles["borders"] == [[28, 56], [28]]


def test_pixels_that_are_no_tiles_of_a_known_place_are_not_drawn() -> None:
    assert pixels(interp.attach(*pictured("llava_next")), read("llava_next", gray())).given == ()


def test_pixels_of_a_cropped_picture_are_covered_whole() -> None:
    model, processor = pictured("llava")
    x = read("llava", gray())
    page = interp.explore(interp.attach(model, processor), x, examples=1).payload
    assert [one["png"].size for one in page["images"]] == [(28, 28), (28, 28)]
    assert page["images"][1]["across"] == [0, 7, 14, 21, 28]


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ({"across": [0, 1]}, r"images\[0\].across must be 5 rising pixels from 0 to 32"),
        ({"down": [0, 9, 8, 24]}, r"images\[0\].down must be 4 rising pixels from 0 to 24"),
        ({"down": [0, 9, 18, 90]}, r"images\[0\].down must be 4 rising pixels"),
        ({"borders": [[1]]}, "borders are two lists"),
    ],
)
def test_lines_that_are_none_are_refused(lines: dict[str, Any], said: str) -> None:
    payload = made_up()
    payload["images"][0] |= lines
    with pytest.raises(ExplorerError, match=said):
        shown(payload)
