"""Roles against what the models do: paint a spot into the picture, see which token changes, and compare.

The vision layers' outputs are set to zero, so that a token depends on its own pixels only. Then the token that changes
most when the middle of its box in the original picture is painted must be that token, whatever the order, the tiles,
the merging, the newlines or the cropping. Rope indices are a second oracle for Qwen-VL, videos included.
"""

from __future__ import annotations

import copy
import itertools
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
import transformers as hf
from pictured import PROCESSOR, pictured
from PIL import Image, ImageDraw
from tokens import PLACEHOLDERS, SIDE, bpe
from torch import Tensor, nn

from interp.hooks.errors import InputsError
from interp.hooks.inputs.inputs import Inputs
from interp.hooks.inputs.roles import CODE, Roles, roles
from interp.hooks.pictures.grids import Fit, View, arrange, grid, in_corner, windows
from interp.preparing.prepare import prepare

NUMPY = "ignore:__array__ implementation:DeprecationWarning:transformers.models.paligemma"
pytestmark = pytest.mark.filterwarnings(NUMPY)
GRIDDED = ["llava", "llava_next", "qwen2_vl", "qwen2_5_vl", "qwen3_vl", "internvl", "paligemma", "idefics3", "smolvlm"]
GRIDDED += ["gemma3"]
PICTURED = [*GRIDDED, "blip-2", "instructblip"]
SIZES = [(120, 180), (210, 90)]
OUT = re.compile(r"(out_proj|o_proj|projection_layer|attn\.proj|attention\.projection|fc2|down_proj|linear_fc2)$")


def deaf(model: nn.Module) -> nn.Module:
    """A copy in which no vision layer adds anything."""
    model = copy.deepcopy(model)
    for name, module in model.named_modules():
        if re.search(r"vision|visual", name) and not re.search("projector|merger", name) and OUT.search(name):
            for parameter in module.parameters():
                nn.init.zeros_(parameter)
    return model


def gray(size: tuple[int, int]) -> Image.Image:
    return Image.new("RGB", (size[1], size[0]), (127, 127, 127))


def painted(size: tuple[int, int], box: Tensor) -> Image.Image:
    """Gray with the middle of a box in colour."""
    left, top, right, bottom = box.tolist()
    picture = gray(size)
    x, y, w, h = (left + right) / 2, (top + bottom) / 2, (right - left) / 5, (bottom - top) / 5
    ImageDraw.Draw(picture).rectangle((x - w, y - h, x + w, y + h), fill=(250, 20, 90))
    return picture


def place(name: str) -> str:
    return PLACEHOLDERS.get(PROCESSOR.get(name, name), "")


def asked(name: str, pictures: list[Image.Image]) -> Inputs:
    model, processor = pictured(name)
    texts = [f"{place(name)}What is in the image?", f"{place(name)}describe"]
    return prepare(model, processor, texts, images=[[picture] for picture in pictures], chat=False)


class _Seen(Exception):
    """Ends a forward pass that has shown what was wanted."""


def entering(model: Any, layer: nn.Module, name: str, call: Mapping[str, Any]) -> Tensor:
    """The tensor that enters a module in a call."""

    def keep(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        raise _Seen(args[0] if args else kwargs[name])

    with layer.register_forward_pre_hook(keep, with_kwargs=True), torch.no_grad():
        try:
            model(**call)
        except _Seen as seen:
            return seen.args[0]  # type: ignore[no-any-return]
    raise AssertionError("the layer was not reached")


def text_vectors(model: Any, call: Mapping[str, Any]) -> Tensor:
    """What the language model reads at each position."""
    names = ("language_model", "text_model")
    language = next(m for n, m in model.named_modules() if n.endswith(names) and "vision" not in n)
    return entering(model, language, "inputs_embeds", call)


def vision_vectors(model: Any, call: Mapping[str, Any]) -> Tensor:
    """[row, position, d] that enters the vision tower's first layer."""
    pattern = re.compile(r"(vision|visual).*\.(layers?|blocks)\.0$")
    layer = next(m for n, m in model.named_modules() if pattern.search(n) and "qformer" not in n)
    found = entering(model, layer, "hidden_states", call)
    return found if found.dim() == 3 else found[None]


def repainted(name: str, blank: Inputs, pictures: list[Image.Image]) -> dict[str, Any]:
    """The call with other pictures of the same sizes."""
    nested = [[picture] for picture in pictures]
    processor = pictured(name)[1]
    texts = [f"{place(name)}a"] * len(pictures)
    pixels = processor(text=texts, images=nested, padding=True, return_tensors="pt")["pixel_values"]
    assert pixels.shape == blank.kwargs["pixel_values"].shape
    return {**blank.kwargs, "pixel_values": pixels}


def cells(labels: Roles, most: int = 14) -> list[tuple[int, int]]:
    """Some (row, position) of cells, of as many grids as possible, among them first and last ones."""
    found = []
    shown = labels.patch & ~labels.boxes().isnan().any(-1)
    for row in range(len(labels.kind)):
        for tile in labels.tile[row].unique().tolist():
            here = (shown[row] & (labels.tile[row] == tile)).nonzero().flatten().tolist()
            found += [(row, p) for p in {*here[:1], *here[-1:], *here[len(here) // 3 :: max(1, len(here) // 3)]}]
    return sorted(found)[:: max(1, round(len(found) / most))]


def hits(labels: Roles, change: Tensor, at: tuple[int, int]) -> bool:
    """Whether a position changed more than every other cell of its grid."""
    row, position = at
    same = labels.patch[row] & (labels.tile[row] == labels.tile[at]) & (labels.image[row] == labels.image[at])
    return int(change[row].masked_fill(~same, -1).argmax()) == position


@pytest.mark.parametrize("name", GRIDDED)
def test_image_tokens_are_where_the_pixels_are(name: str) -> None:
    model = deaf(pictured(name)[0])
    blank = asked(name, [gray(size) for size in SIZES])
    before, boxes = text_vectors(model, blank.kwargs), blank.roles.boxes()
    assert not (blank.valid & blank.roles.where("image") & blank.roles.patch & boxes.isnan().any(-1)).any()
    for at in cells(blank.roles):
        pictures = [gray(size) for size in SIZES]
        pictures[at[0]] = painted(SIZES[at[0]], boxes[at])
        change = (text_vectors(model, repainted(name, blank, pictures)) - before).norm(dim=-1)
        assert hits(blank.roles, change, at), (name, at, blank.roles.label(*at))
        assert change[1 - at[0]].max() == 0
        assert change[at[0]][~blank.roles.patch[at[0]]].max() == 0


@pytest.mark.filterwarnings("ignore:.*two BOS")
@pytest.mark.parametrize("name", [*GRIDDED, "mllama"])
def test_vision_positions_are_where_the_pixels_are(name: str) -> None:
    model = pictured(name)[0]
    blank = asked(name, [gray(size) for size in SIZES]).tower("vision")
    before, boxes = vision_vectors(model, blank.kwargs), blank.roles.boxes()
    assert before.shape[:2] == blank.valid.shape
    for at in cells(blank.roles):
        number = int(blank.roles.image[at])
        pictures = [gray(size) for size in SIZES]
        pictures[number] = painted(SIZES[number], boxes[at])
        change = (vision_vectors(model, repainted(name, blank, pictures)) - before).norm(dim=-1)
        assert hits(blank.roles, change, at), (name, at, blank.roles.label(*at))
        assert change[blank.roles.image != number].max() == 0
        assert change[~blank.roles.patch].sum() == 0


@pytest.mark.filterwarnings("ignore:.*two BOS")
@pytest.mark.parametrize("name", ["blip-2", "instructblip", "mllama"])
def test_vision_positions_without_boxes(name: str) -> None:
    model = pictured(name)[0]
    x = asked(name, [gray(size) for size in SIZES])
    tower = x.tower("vision")
    assert vision_vectors(model, x.kwargs).shape[:2] == tower.valid.shape
    assert tower.roles.where("cls").sum(1).tolist() == ([4, 3] if name == "mllama" else [1, 1])
    first = int(tower.roles.patch[0].nonzero()[0])
    assert (int(tower.roles.row[0, first]), int(tower.roles.col[0, first + 5])) == (0, 1)


@pytest.mark.parametrize("name", PICTURED)
def test_words_and_marks_around_the_picture(name: str) -> None:
    x = asked(name, [gray(size) for size in SIZES])
    assert x.texts is not None
    labels, ids = x.roles, x.ids
    assert ids is not None
    image = ids == model_image_id(name)
    assert torch.equal(labels.where("image"), image)
    assert torch.equal(labels.where("pad"), ~x.valid)
    assert bool(labels.where("text")[0, x.find("What", row=0).rows[0][0]])  # type: ignore[index]
    assert not (labels.separator & image).any()
    assert not (labels.where("text") & labels.separator).any()
    assert (labels.image[labels.separator] == 0).all()
    tokens = [[x.tokens[r][p] for p in labels.separator[r].nonzero().flatten().tolist()] for r in (0, 1)]  # type: ignore[index]
    assert tokens[0][:2] == MARKS.get(name, tokens[0][:2])
    assert bool(tokens[0]) == (name in MARKS)
    has_bos = name not in ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "internvl")
    assert labels.where("bos").sum(1).tolist() == [has_bos, has_bos]


QWEN = ["<|vision_start|>", "<|vision_end|>"]
FAKE = ["<fake_token_around_image>", "<row_1_col_1>"]
MARKS = {
    "qwen2_vl": QWEN, "qwen2_5_vl": QWEN, "qwen3_vl": QWEN, "internvl": ["<img>", "</img>"], "idefics3": FAKE,
    "smolvlm": FAKE, "gemma3": ["<start_of_image>", "<end_of_image>"],
}  # fmt: skip


def model_image_id(name: str) -> int:
    return int(pictured(name)[0].config.image_token_id)


def test_idefics_tiles_are_disjoint_runs_with_a_line_break_between_lines() -> None:
    x = asked("idefics3", [gray(size) for size in SIZES])
    assert x.roles.grids[0] == ((1, 2, 2),) * 7
    inside = x.roles.separator[0].nonzero().flatten().tolist()
    words = "".join(x.tokens[0][p] for p in inside)  # type: ignore[index]
    assert re.findall(r"<row_\d_col_\d>|<global-img>|\n", words) == [
        "<row_1_col_1>", "<row_1_col_2>", "<row_1_col_3>", "\n",
        "<row_2_col_1>", "<row_2_col_2>", "<row_2_col_3>", "\n", "\n", "<global-img>",
    ]  # fmt: skip
    assert [view.tiles for view in x.roles.views[0]] == [(2, 3)] * 6 + [None]


def test_two_idefics_pictures_side_by_side() -> None:
    model, processor = pictured("idefics3")
    texts = ["a <image><image> red", "no picture"]
    x = prepare(model, processor, texts, images=[[gray((60, 90)), gray((28, 28))], []], chat=False)
    assert [len(row) for row in x.roles.grids] == [7 + 10, 0]
    assert x.roles.image[0][x.roles.where("image")[0]].unique().tolist() == [0, 1]
    assert x.mask("image:1").sum() == 4 * 10
    assert int(x.roles.views[0][7].picture) == 1
    with pytest.raises(InputsError, match="select nothing"):
        x.mask("image:2")


def test_llava_next_newlines_end_rows_and_have_no_cell() -> None:
    x = asked("llava_next", [gray(size) for size in SIZES])
    for row, (base, tiles) in enumerate(x.roles.grids):
        assert base == (1, 4, 4)
        assert int(x.roles.newline[row].sum()) == tiles[1]
        before = x.roles.newline[row].nonzero().flatten() - 1
        assert (x.roles.col[row][before] == tiles[2] - 1).all()
        assert x.roles.row[row][before].tolist() == list(range(tiles[1]))
        assert (x.roles.row[row][x.roles.newline[row]] == -1).all()


@pytest.mark.parametrize("size", list(itertools.product([20, 37, 83, 333], repeat=2)))
def test_llava_next_counts_are_the_processors(size: tuple[int, int]) -> None:
    model, processor = pictured("llava_next")
    x = prepare(model, processor, ["<image>a"], images=[gray(size)], chat=False)
    feature = model.model.get_image_features(x.kwargs["pixel_values"], x.kwargs["image_sizes"]).pooler_output
    assert x.mask("image").sum() == len(feature[0])


def test_llava_next_boxes_take_the_padding_into_account() -> None:
    model, processor = pictured("llava_next")
    x = prepare(model, processor, ["<image>a"], images=[gray((30, 100))], chat=False)
    assert x.roles.grids == (((1, 4, 4), (1, 4, 12)),)
    boxes = x.roles.boxes()[0][x.roles.tile[0] == 1]
    # 30 x 100 fits 28 x 84 as 26 x 84, one line of padding above and one below
    assert boxes[0].tolist() == pytest.approx([0, 0, 100 / 12, 6 / 26 * 30])
    assert boxes[13].tolist() == pytest.approx([0, 6 / 26 * 30, 100 / 12, 13 / 26 * 30])


@pytest.mark.parametrize("name", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl"])
def test_qwen_cells_are_the_rope_indices(name: str) -> None:
    model = pictured(name)[0].model
    x = asked(name, [gray(size) for size in SIZES])
    index, _ = model.get_rope_index(
        x.ids, mm_token_type_ids=x.kwargs["mm_token_type_ids"], image_grid_thw=x.kwargs["image_grid_thw"],
        attention_mask=x.kwargs["attention_mask"],
    )  # fmt: skip
    for row in range(2):
        here = x.roles.where("image")[row]
        start = index[:, row][:, here].min()
        assert torch.equal(index[1, row, here] - start, x.roles.row[row, here])
        assert torch.equal(index[2, row, here] - start, x.roles.col[row, here])


def video_ids(config: Any, frames: int, tokens: int, stamped: bool) -> list[int]:
    """What a processor writes for a video: one run, or a run per frame with its time before it (Qwen3-VL)."""
    run = [config.vision_start_token_id, *[config.video_token_id] * tokens, config.vision_end_token_id]
    if not stamped:
        return [config.vision_start_token_id, *[config.video_token_id] * tokens * frames, config.vision_end_token_id]
    return [token for frame in range(frames) for token in [90, 100 + frame, 91, *([92] if frame else []), 93, *run]]


@pytest.mark.parametrize("name", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl"])
def test_video_frames(name: str) -> None:
    model = pictured(name)[0].model
    shape = torch.tensor([[3, 4, 6]])
    ids = torch.tensor([[200, 201, *video_ids(model.config, 3, 6, name == "qwen3_vl"), 202]])
    labels = roles(model.config, {"input_ids": ids, "video_grid_thw": shape})
    here = labels.where("video")[0]
    assert torch.equal(here, ids[0] == model.config.video_token_id)
    assert labels.grids == (((3, 2, 3),),)
    assert labels.frame[0][here].tolist() == [frame for frame in range(3) for _ in range(6)]
    index, _ = model.get_rope_index(ids, mm_token_type_ids=here.long()[None] * 2, video_grid_thw=shape)
    for frame in range(3):
        one = here & (labels.frame[0] == frame)
        start = index[:, 0][1:, one].min(1).values
        assert torch.equal(index[1, 0, one] - start[0], labels.row[0, one])
        assert torch.equal(index[2, 0, one] - start[1], labels.col[0, one])
    words = labels.where("text")[0].nonzero().flatten().tolist()
    assert words == [0, 1, ids.shape[1] - 1]
    assert (labels.image[0][labels.separator[0]] == 0).all()


def test_images_and_videos_are_counted_apart() -> None:
    config = pictured("qwen2_vl")[0].config
    image, video = [config.image_token_id] * 2, [config.video_token_id] * 4
    ids = torch.tensor([[300, *image, 301, *video, 302, *image]])
    call = {
        "input_ids": ids,
        "image_grid_thw": torch.tensor([[1, 2, 4], [1, 4, 2]]),
        "video_grid_thw": torch.tensor([[2, 2, 4]]),
    }
    labels = roles(config, call)
    assert labels.grids == (((1, 1, 2), (1, 2, 1), (2, 1, 2)),)
    assert labels.image[0].tolist() == [-1, 0, 0, -1, 0, 0, 0, 0, -1, 1, 1]
    assert [view.picture for view in labels.views[0]] == [0, 1, 2]
    assert labels.boxes([(10, 20), (30, 40), (50, 60)])[0, 4].tolist() == [0, 0, 30, 50]


@pytest.mark.parametrize("shape", [(1, 8, 8), (2, 6, 10), (1, 10, 6), (3, 2, 2), (1, 12, 4)])
def test_windows_are_qwens(shape: tuple[int, int, int]) -> None:
    from transformers.vision_utils import get_vision_window_index

    index, _ = get_vision_window_index(torch.tensor([[shape[0], shape[1] * 2, shape[2] * 2]]), 2, 4 * 14, 7)
    assert torch.equal(windows(shape, 4), index)


VITS: dict[str, tuple[Any, Any, tuple[int, int], tuple[str, ...]]] = {
    "vit": (hf.ViTModel, hf.ViTConfig, (28, 42), ("cls",)),
    "deit": (hf.DeiTModel, hf.DeiTConfig, (28, 42), ("cls", "distillation")),
    "dinov2": (hf.Dinov2Model, hf.Dinov2Config, (28, 42), ("cls",)),
    "dinov2_with_registers": (
        hf.Dinov2WithRegistersModel,
        hf.Dinov2WithRegistersConfig,
        (28, 42),
        ("cls", *["register"] * 3),
    ),
    "dinov3": (hf.DINOv3ViTModel, hf.DINOv3ViTConfig, (28, 42), ("cls", *["register"] * 3)),
    "beit": (hf.BeitModel, hf.BeitConfig, (28, 42), ("cls",)),
    "ijepa": (hf.IJepaModel, hf.IJepaConfig, (28, 42), ()),
    "clip": (hf.CLIPVisionModel, hf.CLIPVisionConfig, (28, 28), ("cls",)),
    "siglip": (hf.SiglipVisionModel, hf.SiglipVisionConfig, (28, 28), ()),
}


@pytest.mark.parametrize("name", VITS)
def test_vit_positions_are_where_the_pixels_are(name: str) -> None:
    build, config_class, size, lead = VITS[name]
    registers = {"num_register_tokens": 3} if "register" in lead else {}
    config = config_class(
        image_size=28 if name.startswith("dino") or size == (28, 28) else size, patch_size=7, hidden_size=16,
        num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, **registers,
    )  # fmt: skip
    model = build(config).eval()
    pixels = torch.zeros(2, 3, *size)
    x = Inputs.of({"pixel_values": pixels}, config=config)
    assert x.roles.grids == (((1, 4, size[1] // 7),),) * 2
    assert [x.roles.label(0, i).split()[1] for i in range(len(lead))] == list(lead)
    assert not x.roles.patch[:, : len(lead)].any()
    pattern = re.compile(r"\.?(layers?|blocks|layer)\.0$")
    layer = next(m for n, m in model.named_modules() if pattern.search(n))
    before = entering(model, layer, "hidden_states", {"pixel_values": pixels})
    assert before.shape[:2] == x.valid.shape
    boxes = x.roles.boxes([size, size], fit=Fit())
    for at in cells(replace(x.roles, sizes=(size, size), fit=Fit())):
        left, top, right, bottom = (int(edge) for edge in boxes[at])
        spot = pixels.clone()
        spot[at[0], :, top:bottom, left:right] = torch.randn(3, 7, 7)
        change = (entering(model, layer, "hidden_states", {"pixel_values": spot}) - before).norm(dim=-1)
        assert change.nonzero().tolist() == [list(at)]


def test_swin_has_no_cls_and_pads_to_whole_patches() -> None:
    config = hf.SwinConfig(image_size=30, patch_size=4, embed_dim=8, depths=[1, 1], num_heads=[1, 2], window_size=2)
    model = hf.SwinModel(config).eval()
    pixels = torch.zeros(1, 3, 30, 42)
    x = Inputs.of({"pixel_values": pixels}, config=config)
    assert x.roles.grids == (((1, 8, 11),),)
    embedded, size = model.embeddings(pixels)
    assert (embedded.shape[1], tuple(size)) == (x.length, (8, 11))
    spot = pixels.clone()
    spot[0, :, 4:8, 40:42] = 1
    assert (model.embeddings(spot)[0] - embedded).norm(dim=-1).nonzero().tolist() == [[0, 21]]
    assert x.roles.label(0, 21) == "image 0 (1,10)"


def test_picture_models_can_name_what_is_not_a_patch() -> None:
    config = hf.DINOv3ViTConfig(image_size=28, patch_size=7, num_register_tokens=2)
    x = Inputs.of({"pixel_values": torch.zeros(2, 3, 28, 28)}, config=config)
    assert x.mask("cls")[0].nonzero().tolist() == [[0]]
    assert x.mask("register")[1].nonzero().tolist() == [[1], [2]]
    assert x.mask("image").sum() == x.mask("patch").sum() == 32
    assert x.mask("special").sum() == 6
    with pytest.raises(InputsError, match="did you mean 'register'"):
        x.mask("registers")


def test_an_unknown_picture_model_says_what_to_do() -> None:
    with pytest.raises(InputsError, match=r"'convnext' is not known.*LEADS"):
        Inputs.of({"pixel_values": torch.zeros(1, 3, 28, 28)}, config=hf.ConvNextConfig())


def test_a_family_without_a_layout_has_runs_without_a_grid() -> None:
    config = hf.LlavaOnevisionConfig()
    image = config.image_token_id
    labels = roles(config, {"input_ids": torch.tensor([[1, image, image, 2, image, 3]])})
    assert labels.image[0].tolist() == [-1, 0, 0, -1, 1, -1]
    assert labels.grids == (((0, 0, 0), (0, 0, 0)),)
    assert not labels.patch.any()


LLAVA = hf.LlavaConfig(vision_config=hf.CLIPVisionConfig(image_size=28, patch_size=7), image_token_index=9)


def llava_ids(*counts: int) -> Tensor:
    rows = [[1, *[9] * count, 2] for count in counts]
    return torch.tensor([row + [2] * (max(map(len, rows)) - len(row)) for row in rows])


@pytest.mark.parametrize(
    ("counts", "pictures", "message"),
    [
        ((16, 15), 2, "row 1 has 15 image tokens, expected 16 = 16"),
        ((16, 16), 1, "row 1 has 16 image tokens, but .* lists pictures for only 0"),
        ((16,), 2, "lists more pictures than the text has image tokens for"),
        ((32,), 1, "row 0 has 32 image tokens, but .* only 16"),
        ((0,), 1, "more pictures"),
    ],
)
def test_a_wrong_count_names_expected_and_found(counts: tuple[int, ...], pictures: int, message: str) -> None:
    call = {"input_ids": llava_ids(*counts), "pixel_values": torch.zeros(pictures, 3, 28, 28)}
    with pytest.raises(InputsError, match=message):
        roles(LLAVA, call)


def test_two_pictures_in_a_row_and_none_in_the_next() -> None:
    ids = torch.tensor([[1, *[9] * 16, 3, *[9] * 16, 2], [1, *[3] * 34]])
    labels = roles(LLAVA, {"input_ids": ids, "pixel_values": torch.zeros(2, 3, 28, 28)})
    assert labels.image[0].max() == 1
    assert labels.image[1].max() == -1
    assert [len(row) for row in labels.grids] == [2, 0]


def test_pictures_that_are_not_square() -> None:
    call = {"input_ids": llava_ids(8), "pixel_values": torch.zeros(1, 3, 14, 28)}
    labels = roles(LLAVA, call)
    assert labels.grids == (((1, 2, 4),),)
    assert labels.row[0, 1:9].tolist() == [0, 0, 0, 0, 1, 1, 1, 1]


def test_full_features_keep_the_cls_token() -> None:
    config = copy.deepcopy(LLAVA)
    config.vision_feature_select_strategy = "full"
    labels = roles(config, {"input_ids": llava_ids(17), "pixel_values": torch.zeros(1, 3, 28, 28)})
    assert labels.tags["cls"][0].nonzero().tolist() == [[1]]
    assert labels.row[0, 2] == 0


def test_default_features_of_a_tower_without_cls_lose_the_first_patch() -> None:
    vision = hf.SiglipVisionConfig(image_size=28, patch_size=7)
    config = hf.LlavaConfig(vision_config=vision, image_token_index=9)
    labels = roles(config, {"input_ids": llava_ids(15), "pixel_values": torch.zeros(1, 3, 28, 28)})
    assert labels.col[0, 1:4].tolist() == [1, 2, 3]


def test_tiles_that_do_not_fit_are_refused() -> None:
    config = pictured("internvl")[0].config
    ids = torch.tensor([[5, *[config.image_token_id] * 6, 6]])
    with pytest.raises(InputsError, match="6 image tokens, expected a multiple of 4"):
        roles(config, {"input_ids": ids})
    ids = torch.tensor([[5, *[config.image_token_id] * 8, 6]])
    with pytest.raises(InputsError, match="3 tiles, the text has image tokens for 2"):
        roles(config, {"input_ids": ids, "pixel_values": torch.zeros(3, 3, 28, 28)})


def test_idefics_tiles_that_do_not_fit_are_refused() -> None:
    config = pictured("idefics3")[0].config
    image = [config.image_token_id] * 4
    ragged = [90, 91, *image, 90, 92, *image, 99, 90, 93, *image, 99, 90, 94, *image, 90]
    with pytest.raises(InputsError, match=r"lines of \[2, 1, 1\] tiles"):
        roles(config, {"input_ids": torch.tensor([ragged])})
    with pytest.raises(InputsError, match="3 image tokens in a tile"):
        roles(config, {"input_ids": torch.tensor([[90, 91, *image[1:], 90]])})


def test_llava_next_needs_the_sizes() -> None:
    config = pictured("llava_next")[0].config
    with pytest.raises(InputsError, match="needs image_sizes"):
        roles(config, {"input_ids": torch.full((1, 4), config.image_token_id)})


def test_a_qwen_grid_that_cannot_be_merged_is_refused() -> None:
    config = pictured("qwen2_vl")[0].config
    call = {"pixel_values": torch.zeros(6, 3), "image_grid_thw": torch.tensor([[1, 3, 2]])}
    with pytest.raises(InputsError, match="3x2 cannot be merged by 2"):
        roles(config, call, tower="vision")


def test_queries_have_no_grid() -> None:
    x = asked("blip-2", [gray(size) for size in SIZES])
    assert x.roles.where("query").sum(1).tolist() == [5, 5]
    assert x.roles.grids == (((0, 0, 0),),) * 2
    assert x.roles.boxes().isnan().all()
    assert x.roles.where("bos").nonzero().tolist() == [[0, 5], [1, 5 + int((~x.valid[1]).sum())]]


def test_mllama_has_one_image_token() -> None:
    config = pictured("mllama")[0].config
    ids = torch.tensor([[0, config.image_token_id, 30, config.image_token_id, 31]])
    labels = roles(config, {"input_ids": ids})
    assert labels.image[0].tolist() == [-1, 0, -1, 1, -1]


def test_mllama_tiles_that_fill_up_are_padding() -> None:
    config = pictured("mllama")[0].config
    call = {"pixel_values": torch.zeros(1, 1, 4, 3, 28, 28), "aspect_ratio_mask": torch.tensor([[[1, 1, 0, 0]]])}
    labels = roles(config, call, tower="vision")
    assert labels.kind.shape == (1, 4 * 24)
    assert (~labels.where("pad")).sum() == 2 * 17
    with pytest.raises(InputsError, match="not known where in the picture this family's tiles are"):
        labels.boxes([(28, 56)])
    with pytest.raises(InputsError, match="which of the 4 tiles of a picture are real is not known"):
        roles(config, {"pixel_values": call["pixel_values"]}, tower="vision")
    other = roles(config, {**call, "aspect_ratio_ids": torch.tensor([[6]])}, tower="vision")  # 2 x 2, and two are real
    with pytest.raises(InputsError, match="not known where in the picture this family's tiles are"):
        other.boxes([(28, 56)])


def test_mllama_pictures_that_fill_up_a_batch_are_no_pictures() -> None:
    config = pictured("mllama")[0].config
    call = {
        "pixel_values": torch.zeros(2, 2, 4, 3, 28, 28), "aspect_ratio_ids": torch.tensor([[2, 0], [1, 5]]),
        "aspect_ratio_mask": torch.tensor([[[1, 1, 0, 0], [1, 0, 0, 0]], [[1, 0, 0, 0], [1, 1, 0, 0]]]),
    }  # fmt: skip
    labels = roles(config, call, tower="vision")
    assert labels.where("pad").sum(1).tolist() == [96 - 34, 96, 96 - 17, 96 - 34]
    boxes = labels.boxes([(28, 56), (28, 28), (56, 28)])  # of the three that are pictures
    assert boxes[0, 24 + 1].tolist() == [28, 0, 35, 7]
    assert boxes[1].isnan().all()
    assert boxes[2, 16].tolist() == [21, 21, 28, 28]
    assert boxes[3, 24 + 1].tolist() == [0, 28, 7, 35]


@pytest.mark.parametrize("size", [(30, 90), (9, 300), (28, 28), (57, 113), (400, 10), (29, 27), (12, 13)])
def test_mllama_fits_pictures_into_a_corner(size: tuple[int, int]) -> None:
    from transformers.models.mllama import image_processing_pil_mllama as theirs

    for tiles in [(1, 1), (1, 2), (2, 1), (2, 2), (1, 4), (4, 1)]:
        high, wide = theirs.get_image_size_fit_to_canvas(*size, tiles[0] * 28, tiles[1] * 28, 28)
        assert in_corner(size, tiles, 28) == (high / 28, wide / 28)


@pytest.mark.parametrize(
    ("fit", "size", "expected"),
    [
        (Fit(), (100, 200), (0, 0, 1, 1)),
        (Fit(resize=(28, 28)), (100, 200), (0, 0, 1, 1)),
        (Fit(shortest=28, crop=(28, 28)), (100, 200), (0.25, 0, 0.75, 1)),
        (Fit(shortest=32, crop=(28, 28)), (100, 100), (1 / 16, 1 / 16, 15 / 16, 15 / 16)),
        (Fit(resize=(32, 32), crop=(28, 28)), (100, 300), (1 / 16, 1 / 16, 15 / 16, 15 / 16)),
        (Fit(square=True, resize=(28, 28)), (100, 200), (0, -0.5, 1, 1.5)),
    ],
)
def test_what_part_of_a_picture_is_seen(fit: Fit, size: tuple[int, int], expected: tuple[float, ...]) -> None:
    assert fit.area(size) == pytest.approx(expected)


@pytest.mark.parametrize(
    "size",
    [
        (30, 90),
        (90, 30),
        (50, 60),
        (60, 50),
        (28, 28),
        (200, 131),
        (64, 200),
        (80, 100),
        (40, 50),
        (100, 150),
        (24, 30),
    ],
)
def test_tiles_are_arranged_as_internvl_does(size: tuple[int, int]) -> None:
    from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import get_optimal_tiled_canvas

    for most in (2, 4, 6, 12):
        cols, rows = get_optimal_tiled_canvas(size, (28, 28), 1, most)
        assert arrange(rows * cols, size) == (rows, cols)


def test_boxes_need_sizes_and_a_fit() -> None:
    call = {"input_ids": llava_ids(16), "pixel_values": torch.zeros(1, 3, 28, 28)}
    labels = roles(LLAVA, call)
    with pytest.raises(InputsError, match="pass image_sizes="):
        labels.boxes()
    with pytest.raises(InputsError, match="may crop the picture"):
        labels.boxes([(28, 28)])
    with pytest.raises(InputsError, match="picture 0 has no size"):
        labels.boxes([])
    assert labels.boxes([(40, 80)], fit=Fit())[0, 6].tolist() == [20.0, 10.0, 40.0, 20.0]


def test_llava_boxes_are_of_the_cropped_middle() -> None:
    x = asked("llava", [gray(size) for size in SIZES])
    boxes = x.roles.boxes()
    seen = boxes[0][x.roles.patch[0]]
    assert (seen[:, 0].min(), seen[:, 2].max()) == (30, 150)
    assert (seen[:, 1].min(), seen[:, 3].max()) == (0, 120)


def test_text_roles_from_ids_alone() -> None:
    config = hf.GPT2Config(vocab_size=300, bos_token_id=7, eos_token_id=7)
    ids = torch.tensor([[7, 7, 20, 21, 7, 22], [0, 0, 7, 30, 31, 32]])
    valid = torch.tensor([[1, 1, 1, 1, 1, 1], [0, 0, 1, 1, 1, 1]]).bool()
    labels = roles(config, {"input_ids": ids}, valid=valid)
    words = [[labels.label(row, i) for i in range(6)] for row in range(2)]
    assert words == [
        ["bos", "special", "text", "text", "special", "text"],
        ["pad", "pad", "bos", "text", "text", "text"],
    ]


def test_special_ids_of_a_tokenizer() -> None:
    tokenizer = bpe(bos=True)
    ids = torch.tensor([tokenizer("What is <|im_start|> Mary</s>")["input_ids"]])
    labels = roles(None, {"input_ids": ids}, tokenizer=tokenizer)
    marks = [labels.label(0, i) for i in range(ids.shape[1])]
    assert (marks[0], marks[-1], marks.count("special"), marks.count("bos")) == ("bos", "special", 2, 1)


def test_a_role_that_nobody_knows_is_refused_and_one_that_does_not_occur_is_nowhere() -> None:
    labels = roles(None, {"input_ids": torch.tensor([[5, 6, 7]])})
    assert not labels.where("register").any()
    assert labels.where("register").shape == (1, 3)
    with pytest.raises(InputsError, match=r"no role 'regsiter'; there are .*register"):
        labels.where("regsiter")


def test_sound_is_not_taken_for_embeddings_of_text() -> None:
    with pytest.raises(InputsError, match="cannot tell the positions of a call with input_values"):
        Inputs.of({"input_values": torch.randn(2, 16, 8)})
    assert Inputs.of({"anything": torch.randn(2, 16, 8)}).valid.shape == (2, 16)


def test_the_encoder_of_whisper_has_half_the_frames() -> None:
    config = hf.WhisperConfig(
        d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2, decoder_attention_heads=2,
        encoder_ffn_dim=16, decoder_ffn_dim=16, max_source_positions=10, num_mel_bins=8, vocab_size=60,
        pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=3, suppress_tokens=None,
        begin_suppress_tokens=None,
    )  # fmt: skip
    model = hf.WhisperModel(config).eval()
    call = {"input_features": torch.zeros(2, 8, 20), "decoder_input_ids": torch.tensor([[3, 5], [3, 6]])}
    x = Inputs.of(call, config=config)
    assert x.tower("encoder").valid.shape == model(**call).encoder_last_hidden_state.shape[:2]
    assert x.main == "decoder"
    assert (x.tower("encoder").roles.kind == CODE["audio"]).all()


def test_a_whole_grid_with_marks() -> None:
    block = grid((1, 2, 3), lead=("cls",), newline=True, view=View())
    assert block.cells[:, 1].tolist() == [-1, 0, 0, 0, -1, 1, 1, 1, -1]
    assert block.tags["newline"].nonzero().flatten().tolist() == [4, 8]
    assert SIDE == 28
