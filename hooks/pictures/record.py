"""What is particular to a family of vision-language models, in one record a family, each in its own file of this room.

A record says which image tokens the family puts in its text and in which order its vision tower holds them: functions
from the config and the call's tensors to the pictures in the text, lists of `Block` in the order of the image tokens.
Two kinds: the pictures are listed in the arguments (LLaVA, Qwen-VL, PaliGemma, Gemma-3, BLIP-2, Mllama) and dealt to
the rows by their counts, or they are read from the runs of image tokens (InternVL tiles, Idefics3 tiles with text
between them). A count that does not fit is an `InputsError`. It also has an example call and what a processor wants.
Read in transformers 5.23; the tests check each against the model's own `get_image_features`. Limits: crops of Gemma-3's
pan-and-scan and frames that InternVL or SmolVLM insert for a video count as pictures.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

from torch import Tensor

from interp.hooks.errors import InputsError, UnknownPositions
from interp.hooks.pictures.asked import Ask, Picture
from interp.hooks.pictures.grids import Block, View, picture, pixels_in, tokens

Grids = list[Block]
"""One picture."""


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


Layout = Callable[[Any, Mapping[str, Tensor], Sequence[Text]], list[list[Grids]]]
"""From the config, the call's arguments and the image tokens of every row to the pictures of every row."""


@dataclass(frozen=True, eq=False)
class VisionLanguage:
    """One family."""

    names: tuple[str, ...]
    """Of its configs, `model_type`."""
    images: Layout
    videos: Layout | None = None
    example: Callable[[Ask], Picture] | None = None
    """An image for a minimal call, and where in the text it is."""
    towers: tuple[str, ...] = ()
    """In the `model_type` of its vision tower, where `rows` says what that holds."""
    rows: Callable[[Any, Mapping[str, Tensor]], list[list[Grids]]] | None = None
    """The rows of the vision tower from its config, where they are not a picture (or tile) each."""
    views: Callable[[Any, Mapping[str, Tensor]], list[View] | None] | None = None
    """What each row of a tower that is called with tiles shows."""
    marks: bool = False
    """Its marks of tiles are in no config: they are the ids next to its image tokens."""
    nested: bool = False
    """Its processor takes pictures text by text."""
    implicit: bool = False
    """Its texts have no place for a picture: each text has one."""
    in_front: bool = False
    """Its processor puts image tokens in front of a text, and they are not written in the text."""
    always: bool = False
    """Its processor wants a picture with every text."""
    first_position: int = 0
    by_mask: bool = False
    """It numbers positions by the mask."""
    fills: Mapping[str, int] = field(default_factory=dict)
    """What arguments are filled up with where an answer is appended."""


_KNOWN: dict[str, VisionLanguage] = {}


def register(family: VisionLanguage) -> VisionLanguage:
    """Make a family known under its names."""
    _KNOWN.update(dict.fromkeys(family.names, family))
    return family


@cache
def _load() -> None:
    for file in sorted(Path(__file__).parent.glob("*.py")):
        if file.stem not in ("__init__", "asked", "grids", "record"):
            import_module(f"interp.hooks.pictures.{file.stem}")


def families() -> Mapping[str, VisionLanguage]:
    """Every family by the names of its configs."""
    _load()
    return _KNOWN


def family_of(config: Any) -> VisionLanguage | None:
    """The record of a config; None for a family that has none."""
    return families().get(getattr(config, "model_type", None) or "")


def deal(pictures: Iterator[Grids], rows: Sequence[Text], source: str) -> list[list[Grids]]:
    """Give each row, in order, as many listed pictures as it has image tokens for."""
    dealt: list[list[Grids]] = []
    for index, row in enumerate(rows):
        mine: list[Grids] = []
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


def each(block: Block, pixels: Tensor | None, rows: Sequence[Text]) -> list[list[Grids]]:
    """The same block for every picture."""
    total = len(pixels) if pixels is not None else sum(len(row.at) for row in rows) // max(len(block), 1)
    source = f"pixel_values (shape {tuple(pixels.shape)})" if pixels is not None else "the config"
    return deal(iter([[block]] * total), rows, source)


def unknown(config: Any, kwargs: Mapping[str, Tensor], rows: Sequence[Text]) -> list[list[Grids]]:
    """A family without a layout: every run is one picture, and its cells are not known."""
    return [[[tokens(end - start)] for start, end in row.runs] for row in rows]


def vision_rows(config: Any, kwargs: Mapping[str, Tensor]) -> list[list[Grids]]:
    """The rows of the vision tower, each the pictures (or the one tile) it holds."""
    vision = getattr(config, "vision_config", None) or config
    if vision is None:
        raise UnknownPositions(
            "a model without a config does not say where its patches are, so its positions are not known"
        )
    for family in families().values():
        if family.rows is not None and any(name in vision.model_type for name in family.towers):
            return family.rows(vision, kwargs)
    pixels = pixels_in(kwargs)
    if pixels is None:
        raise UnknownPositions(f"no pictures are among {', '.join(kwargs)}, so their positions are not known")
    if pixels.ndim < 4:
        raise UnknownPositions(
            f"pixel_values {list(pixels.shape)} are patches that were cut before, and the order in which model"
            f" {vision.model_type!r} holds them is not known"
        )
    return [[[picture(vision, pixels)]] for _ in range(_tile_count(config, kwargs, pixels))]


def vision_views(config: Any, kwargs: Mapping[str, Tensor]) -> list[View] | None:
    """What each row of a tower that is called with tiles shows; None where every row is a picture."""
    family = family_of(config)
    return None if family is None or family.views is None else family.views(config, kwargs)


def _tile_count(config: Any, kwargs: Mapping[str, Tensor], pixels: Tensor) -> int:
    """Rows of a tower that is called with single pictures or tiles; tiles that only fill up a batch are dropped."""
    if pixels.dim() == 4:
        return len(pixels)
    views = vision_views(config, kwargs) if "image_sizes" in kwargs else None
    return int((pixels != 0).flatten(2).any(-1).sum()) if views is None else len(views)


def views_in_text(config: Any, kwargs: Mapping[str, Tensor]) -> list[View] | None:
    """The views of tiles as the text has them, of families whose tiles are image tokens one after the other."""
    family = family_of(config)
    if family is None or "input_ids" not in kwargs:
        return None
    texts = [Text(ids, (ids == config.image_token_id).nonzero().flatten()) for ids in kwargs["input_ids"]]
    pictures = [one for row in family.images(config, kwargs, texts) for one in row]
    return [replace(block.view, picture=index) for index, one in enumerate(pictures) for block in one]
