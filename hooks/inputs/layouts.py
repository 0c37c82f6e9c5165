"""Which image tokens a vision-language model puts in its text, family by family, and its vision tower's order.

Each family is one short function from the config and the call's tensors to the pictures in the text: lists of `Block`
in the order of the image tokens. Two kinds: the pictures are listed in the arguments (LLaVA, Qwen-VL, PaliGemma,
Gemma-3, BLIP-2, Mllama) and dealt to the rows by their counts, or they are read from the runs of image tokens
(InternVL tiles, Idefics3 tiles with text between them). A count that does not fit is an `InputsError`.
Read in transformers 5.23; the tests check each against the model's own `get_image_features`.
Limits: crops of Gemma-3's pan-and-scan and frames that InternVL or SmolVLM insert for a video count as pictures.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from interp.hooks.errors import InputsError
from interp.hooks.inputs.grids import WHOLE, Area, Block, View, grid, merged, patch_grid, picture, tokens, windows

Picture = list[Block]


@dataclass(frozen=True, eq=False)
class Text:
    """The image (or video) tokens of one row: its ids, where they are, and the stretches without a gap."""

    ids: Tensor
    at: Tensor

    @property
    def runs(self) -> list[tuple[int, int]]:
        """(start, end) of each stretch."""
        if not len(self.at):
            return []
        cut = (self.at.diff() > 1).nonzero().flatten() + 1
        return [(int(part[0]), int(part[-1]) + 1) for part in self.at.tensor_split(cut.tolist())]


Family = Callable[[Any, Mapping[str, Tensor], Sequence[Text]], list[list[Picture]]]


def deal(pictures: Iterator[Picture], rows: Sequence[Text], source: str) -> list[list[Picture]]:
    """Give each row, in order, as many listed pictures as it has image tokens for."""
    dealt: list[list[Picture]] = []
    for index, row in enumerate(rows):
        mine: list[Picture] = []
        have, need = 0, len(row.at)
        while have < need:
            picture = next(pictures, None)
            if picture is None:
                raise InputsError(f"row {index} has {need} image tokens, but {source} lists pictures for only {have}")
            mine.append(picture)
            have += sum(map(len, picture))
        if have != need:
            counts = " + ".join(str(sum(map(len, picture))) for picture in mine)
            raise InputsError(f"row {index} has {need} image tokens, expected {counts} = {have} from {source}")
        dealt.append(mine)
    if next(pictures, None) is not None:
        raise InputsError(f"{source} lists more pictures than the text has image tokens for")
    return dealt


def each(block: Block, pixels: Tensor | None, rows: Sequence[Text]) -> list[list[Picture]]:
    """The same block for every picture."""
    total = len(pixels) if pixels is not None else sum(len(row.at) for row in rows) // max(len(block), 1)
    source = f"pixel_values (shape {tuple(pixels.shape)})" if pixels is not None else "the config"
    return deal(iter([[block]] * total), rows, source)


def _llava(config: Any, kwargs: Mapping[str, Tensor], rows: Sequence[Text]) -> list[list[Picture]]:
    return each(_selected(config, kwargs.get("pixel_values")), kwargs.get("pixel_values"), rows)


def _selected(config: Any, pixels: Tensor | None) -> Block:
    block = picture(config.vision_config, pixels)
    return block.drop_first() if config.vision_feature_select_strategy == "default" else block


def _llava_next(config: Any, kwargs: Mapping[str, Tensor], rows: Sequence[Text]) -> list[list[Picture]]:
    if "image_sizes" not in kwargs:
        raise InputsError("LLaVA-NeXT needs image_sizes (the processor returns it) to say where its tokens lie")
    base = replace(_selected(config, kwargs.get("pixel_values")), view=View(area=WHOLE))
    sizes = [(int(height), int(width)) for height, width in kwargs["image_sizes"].tolist()]
    return deal((_anyres(config, base, size) for size in sizes), rows, f"image_sizes {sizes}")


def _anyres(config: Any, base: Block, size: tuple[int, int]) -> Picture:
    """Base view, then the tiles stitched together, freed of padding, a newline after each row."""
    tile, patch = config.vision_config.image_size, config.vision_config.patch_size
    height, width = best_resolution(size, config.image_grid_pinpoints)
    shape, cut = unpadded((height // tile * (tile // patch), width // tile * (tile // patch)), size)
    start = [cut[i] * patch for i in (0, 1)]
    area = _canvas_area(size, (height, width), start, [start[i] + shape[i] * patch for i in (0, 1)])
    return [base, grid((1, *shape), newline=True, view=View(area=area))]


def best_resolution(size: tuple[int, int], options: Sequence[Sequence[int]]) -> tuple[int, int]:
    """The (height, width) that keeps most of the picture's pixels and, among those, wastes the fewest."""

    def score(option: Sequence[int]) -> tuple[int, int]:
        scale = min(option[0] / size[0], option[1] / size[1])
        kept = min(int(size[0] * scale) * int(size[1] * scale), size[0] * size[1])
        return kept, kept - option[0] * option[1]

    best = max(options, key=score)
    return int(best[0]), int(best[1])


def unpadded(shape: tuple[int, int], size: tuple[int, int]) -> tuple[tuple[int, int], tuple[int, int]]:
    """What is left of a patch grid without the padding of a (height, width) picture, and what is cut before it."""
    (rows, cols), (height, width) = shape, size
    if width / height > cols / rows:
        cut = (rows - int(round(height * (cols / width), 7))) // 2
        return (rows - 2 * cut, cols), (cut, 0)
    cut = (cols - int(round(width * (rows / height), 7))) // 2
    return (rows, cols - 2 * cut), (0, cut)


def _canvas_area(size: tuple[int, int], canvas: tuple[int, int], start: Sequence[int], end: Sequence[int]) -> Area:
    """Fractions of a picture between two (row, column) pixels of the canvas it was fitted into and centred on."""
    scales = [canvas[i] / size[i] for i in (0, 1)]
    short = 0 if scales[0] > scales[1] else 1
    fitted = list(canvas)
    fitted[short] = min(math.ceil(size[short] * scales[1 - short]), canvas[short])
    before = [(canvas[i] - fitted[i]) // 2 for i in (0, 1)]
    (top, left), (bottom, right) = ([(at[i] - before[i]) / fitted[i] for i in (0, 1)] for at in (start, end))
    return left, top, right, bottom


def _qwen(config: Any, kwargs: Mapping[str, Tensor], rows: Sequence[Text]) -> list[list[Picture]]:
    return _thw(config, kwargs, rows, "image_grid_thw")


def _qwen_video(config: Any, kwargs: Mapping[str, Tensor], rows: Sequence[Text]) -> list[list[Picture]]:
    return _thw(config, kwargs, rows, "video_grid_thw")


def _thw(config: Any, kwargs: Mapping[str, Tensor], rows: Sequence[Text], name: str) -> list[list[Picture]]:
    merge, sizes = config.vision_config.spatial_merge_size, kwargs.get(name, torch.empty(0, 3)).long().tolist()
    blocks = ([grid((t, h // merge, w // merge), view=View(area=WHOLE))] for t, h, w in sizes)
    return deal(blocks, rows, f"{name} {sizes} merged by {merge}")


def _siglip(config: Any, kwargs: Mapping[str, Tensor], rows: Sequence[Text]) -> list[list[Picture]]:
    pixels = kwargs.get("pixel_values")
    return each(grid((1, *patch_grid(config.vision_config, pixels)), view=View(area=WHOLE)), pixels, rows)


def _gemma3(config: Any, kwargs: Mapping[str, Tensor], rows: Sequence[Text]) -> list[list[Picture]]:
    patches = config.vision_config.image_size // config.vision_config.patch_size
    kernel = patches // math.isqrt(config.mm_tokens_per_image)  # the projector pools a square by a square kernel
    side = patches // kernel
    return each(grid((1, side, side), view=View(area=WHOLE)), kwargs.get("pixel_values"), rows)


def _queries(config: Any, kwargs: Mapping[str, Tensor], rows: Sequence[Text]) -> list[list[Picture]]:
    return each(tokens(config.num_query_tokens, "query"), kwargs.get("pixel_values"), rows)


def _mllama(config: Any, kwargs: Mapping[str, Tensor], rows: Sequence[Text]) -> list[list[Picture]]:
    return [[[tokens(1)] for _ in row.at] for row in rows]


def _internvl(config: Any, kwargs: Mapping[str, Tensor], rows: Sequence[Text]) -> list[list[Picture]]:
    pixels = kwargs.get("pixel_values")
    patches = patch_grid(config.vision_config, pixels)
    shape = (1, int(patches[0] * config.downsample_ratio), int(patches[1] * config.downsample_ratio))
    pictures = [[_tiled(shape, end - start) for start, end in row.runs] for row in rows]
    found = sum(len(tiles) for row in pictures for tiles in row)
    if pixels is not None and found != len(pixels):
        raise InputsError(f"pixel_values has {len(pixels)} tiles, the text has image tokens for {found}")
    return pictures


def _tiled(shape: tuple[int, int, int], count: int) -> Picture:
    """Tiles left to right, top to bottom, then a thumbnail of everything; a single tile is the whole picture."""
    tiles, rest = divmod(count, shape[1] * shape[2])
    if rest:
        raise InputsError(f"a run of {count} image tokens, expected a multiple of {shape[1] * shape[2]} per tile")
    views = [View(tile, tiles - 1) for tile in range(tiles - 1)] + [View(area=WHOLE)]
    return [grid(shape, view=view) for view in views]


def _idefics3(config: Any, kwargs: Mapping[str, Tensor], rows: Sequence[Text]) -> list[list[Picture]]:
    pixels = kwargs.get("pixel_values")
    patches = patch_grid(config.vision_config, pixels)
    shape = (1, *(side // config.scale_factor for side in patches))
    for index, row in enumerate(rows):
        for start, end in row.runs:
            if end - start != shape[1] * shape[2]:
                raise InputsError(f"row {index}: {end - start} image tokens in a tile, expected {shape[1:]}")
    _check_tiles(pixels, [len(row.runs) for row in rows])
    return [[_split(shape, lines) for lines in tile_lines(row)] for row in rows]


def _check_tiles(pixels: Tensor | None, found: list[int]) -> None:
    if pixels is None or pixels.dim() != 5:
        return
    real = (pixels != 0).flatten(2).any(-1).sum(1).tolist()
    if real != found:
        raise InputsError(f"pixel_values has {real} tiles per row, the text has image tokens for {found}")


def tile_lines(row: Text) -> list[list[int]]:
    """Per picture, how many tiles each line of tiles has; the whole picture comes last, as a line of one.

    The mark `<fake_token_around_image>` opens every tile and closes the last one, so the gap between two tiles says
    what happened: it starts with the mark and has one: same line; two marks: a new picture; else: a new line.
    """
    runs = row.runs
    if not runs:
        return []
    mark, pictures = int(row.ids[runs[-1][1]]), [[1]]
    for (_, start), (end, _) in itertools.pairwise(runs):
        gap = row.ids[start:end].tolist()
        if gap.count(mark) > 1:
            pictures.append([1])
        elif gap[0] == mark:
            pictures[-1][-1] += 1
        else:
            pictures[-1].append(1)
    return pictures


def _split(shape: tuple[int, int, int], lines: list[int]) -> Picture:
    *tiles, last = lines
    if last != 1 or len(set(tiles)) > 1:
        raise InputsError(f"lines of {lines} tiles: expected equal lines and then one view of the whole picture")
    count = (len(tiles), tiles[0]) if tiles else (1, 1)
    views = [View(tile, count) for tile in range(sum(tiles))] + [View(area=WHOLE)]
    return [grid(shape, view=view) for view in views]


def unknown(config: Any, kwargs: Mapping[str, Tensor], rows: Sequence[Text]) -> list[list[Picture]]:
    """A family without a layout: every run is one picture, and its cells are not known."""
    return [[[tokens(end - start)] for start, end in row.runs] for row in rows]


IMAGES: dict[str, Family] = {
    "llava": _llava, "vipllava": _llava, "llava_next": _llava_next, "qwen2_vl": _qwen, "qwen2_5_vl": _qwen,
    "qwen3_vl": _qwen, "qwen3_vl_moe": _qwen, "internvl": _internvl, "paligemma": _siglip, "idefics3": _idefics3,
    "smolvlm": _idefics3, "blip-2": _queries, "instructblip": _queries, "gemma3": _gemma3, "mllama": _mllama,
}  # fmt: skip
VIDEOS: dict[str, Family] = dict.fromkeys(("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe"), _qwen_video)


def vision_rows(config: Any, kwargs: Mapping[str, Tensor]) -> list[list[Picture]]:
    """The rows of the vision tower, each the pictures (or the one tile) it holds."""
    vision = getattr(config, "vision_config", None) or config
    if "qwen" in vision.model_type:
        return [_qwen_vision(vision, kwargs)]
    if vision.model_type == "mllama_vision_model":
        return _mllama_vision(vision, kwargs)
    pixels = kwargs["pixel_values"]
    return [[[picture(vision, pixels)]] for _ in range(_tile_count(config, kwargs, pixels))]


def vision_views(config: Any, kwargs: Mapping[str, Tensor]) -> list[View] | None:
    """What each row of a tower that is called with tiles shows; None where every row is a picture."""
    if config.model_type == "llava_next":
        sizes = [(int(h), int(w)) for h, w in kwargs["image_sizes"].tolist()]
        return [view for index, size in enumerate(sizes) for view in _tile_views(config, size, index)]
    if config.model_type not in ("internvl", "idefics3", "smolvlm") or "input_ids" not in kwargs:
        return None
    texts = [Text(ids, (ids == config.image_token_id).nonzero().flatten()) for ids in kwargs["input_ids"]]
    pictures = [picture for row in IMAGES[config.model_type](config, kwargs, texts) for picture in row]
    return [replace(block.view, picture=index) for index, picture in enumerate(pictures) for block in picture]


def _tile_views(config: Any, size: tuple[int, int], index: int) -> list[View]:
    side = config.vision_config.image_size
    canvas = best_resolution(size, config.image_grid_pinpoints)
    starts = itertools.product(range(0, canvas[0], side), range(0, canvas[1], side))
    areas = [_canvas_area(size, canvas, (y, x), (y + side, x + side)) for y, x in starts]
    return [View(area=area, picture=index) for area in (WHOLE, *areas)]


def _tile_count(config: Any, kwargs: Mapping[str, Tensor], pixels: Tensor) -> int:
    """Rows of a tower that is called with single pictures or tiles; tiles that only fill up a batch are dropped."""
    if pixels.dim() == 4:
        return len(pixels)
    if "image_sizes" in kwargs:
        tile, options = config.vision_config.image_size, config.image_grid_pinpoints
        best = [best_resolution((int(h), int(w)), options) for h, w in kwargs["image_sizes"].tolist()]
        return sum(1 + -(-height // tile) * -(-width // tile) for height, width in best)
    return int((pixels != 0).flatten(2).any(-1).sum())


def _qwen_vision(config: Any, kwargs: Mapping[str, Tensor]) -> list[Picture]:
    names = [name for name in ("image_grid_thw", "video_grid_thw") if name in kwargs]
    if len(names) != 1:
        raise InputsError(f"the vision tower's positions need image_grid_thw or video_grid_thw alone, got {names}")
    return [[_qwen_patches(config, (t, h, w))] for t, h, w in kwargs[names[0]].long().tolist()]


def _qwen_patches(config: Any, shape: tuple[int, int, int]) -> Block:
    merge = config.spatial_merge_size
    cells = merged(shape, merge)
    if config.model_type == "qwen2_5_vl_vision":
        window = config.window_size // merge // config.patch_size
        order = windows((shape[0], shape[1] // merge, shape[2] // merge), window)
        cells = cells.view(-1, merge * merge, 3)[order].reshape(-1, 3)
    return Block(shape, cells, {}, View(area=WHOLE))


def _mllama_vision(config: Any, kwargs: Mapping[str, Tensor]) -> list[list[Picture]]:
    """All tiles of a picture in one row, each with its CLS token first and filled up to a multiple of eight."""
    pixels = kwargs["pixel_values"]
    tiles = pixels.shape[2]
    if "aspect_ratio_mask" not in kwargs:
        raise InputsError(f"which of the {tiles} tiles of a picture are real is not known without aspect_ratio_mask")
    real = kwargs["aspect_ratio_mask"].reshape(-1, tiles).bool().tolist()
    one = grid((1, *patch_grid(config, pixels)), lead=("cls",), view=View(known=False))
    fill, none = tokens(-len(one) % 8, "filler"), tokens(len(one), "filler")
    return [[[block for here in row for block in (one if here else none, fill) if len(block)]] for row in real]
