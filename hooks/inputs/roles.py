"""What each position of a run is: text, padding, a patch of an image, and where in the image it is.

Idea: a tower's positions are labelled from the ids, the mask and the shapes the model itself is called with, never from
a square root or an assumed contiguous span. Image tokens are found by id equality; the order of their cells comes from
the family (`hooks/pictures/`), and a count that does not fit is an error. Cost: no forward pass.
Limits: `system user assistant template` are known only where `prepare` rendered the chat; elsewhere those tokens are
`text`. Image tokens of a family without a layout have no grid. In a tower that reads pictures from text (`vision` of a
LLaVA) `image` numbers the pictures of the batch; a row is a picture or a tile, for Qwen-VL all pictures.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor

from interp.hooks.errors import InputsError
from interp.hooks.inputs.arguments import IDS, MASKS, main_embeds, main_ids, main_tower
from interp.hooks.inputs.labels import CODE, FIELDS, KINDS, Roles
from interp.hooks.inputs.sound import SOUND, sound_roles
from interp.hooks.pictures.asked import text_config
from interp.hooks.pictures.grids import View, pixels_in
from interp.hooks.pictures.record import Grids, Text, family_of, unknown, vision_rows, vision_views

OPENS = ("vision_start_token_id", "boi_token_id", "start_image_token_id", "image_start_token_id")
CLOSES = ("vision_end_token_id", "eoi_token_id", "end_image_token_id", "image_end_token_id")


def plain(valid: Tensor, kind: str = "text") -> Roles:
    """Roles of a tower about which only the padding is known."""
    kinds = torch.where(valid, CODE[kind], CODE["pad"])
    image, tile, frame, row, col = (torch.full_like(kinds, -1) for _ in FIELDS[1:])
    return Roles(kinds, image, tile, frame, row, col, grids=((),) * len(valid), views=((),) * len(valid))


def special_ids(config: Any = None, tokenizer: Any = None) -> tuple[set[int], set[int]]:
    """The ids that open a sequence, and every id that is not a word."""
    bos = _ids(tokenizer, "bos_token_id") or _ids(tokenizer, "cls_token_id") or _config_ids(config, "bos_token_id")
    special = set(getattr(tokenizer, "all_special_ids", None) or ())
    added = getattr(tokenizer, "added_tokens_decoder", None) or {}
    special |= {index for index, token in added.items() if getattr(token, "special", False)}
    for name in ("bos_token_id", "eos_token_id", "sep_token_id", "cls_token_id", *OPENS, *CLOSES):
        special |= _config_ids(config, name) | _ids(tokenizer, name)
    return bos, special


def _ids(holder: Any, name: str) -> set[int]:
    value = getattr(holder, name, None)
    if value is None:
        return set()
    return set(value) if isinstance(value, Sequence) else {int(value)}


def _config_ids(config: Any, name: str) -> set[int]:
    return _ids(config, name) or _ids(text_config(config), name)


def _isin(ids: Tensor, wanted: set[int]) -> Tensor:
    return torch.isin(ids, torch.tensor(sorted(wanted), dtype=ids.dtype, device=ids.device))


def of_ids(ids: Tensor, valid: Tensor, *, config: Any = None, tokenizer: Any = None) -> Roles:
    """`text`, `special`, `pad`, and `bos` for an opening token before any word, from the ids and the mask."""
    bos, special = special_ids(config, tokenizer)
    kind = torch.where(_isin(ids, special), CODE["special"], CODE["text"])
    image = _isin(ids, _image_ids(config, "image") | _image_ids(config, "video"))
    before = (valid & ~image).cumsum(-1) == 1
    kind[_isin(ids, bos) & valid & ~image & before] = CODE["bos"]
    return replace(plain(valid), kind=torch.where(valid, kind, CODE["pad"]))


def _image_ids(config: Any, name: str) -> set[int]:
    return _ids(config, f"{name}_token_id") or _ids(config, f"{name}_token_index")


def place(labels: Roles, name: str, at: Sequence[Tensor], pictures: Sequence[Sequence[Grids]]) -> Roles:
    """Write each row's pictures onto its image tokens, in order."""
    tensors = {field_name: getattr(labels, field_name).clone() for field_name in FIELDS}
    tags = {tag: mask.clone() for tag, mask in labels.tags.items()}
    grids, views = [list(row) for row in labels.grids], [list(row) for row in labels.views]
    known = [view.picture for row in views for view in row]
    number = max(known, default=-1) + 1
    for row, (columns, mine) in enumerate(zip(at, pictures, strict=True)):
        tensors["kind"][row, columns] = CODE[name]
        start = 0
        for index, picture in enumerate(mine):
            for block in picture:
                here = columns[start : start + len(block)]
                tensors["image"][row, here], tensors["tile"][row, here] = index, len(grids[row])
                for axis, values in zip(("frame", "row", "col"), block.cells.to(here.device).unbind(1), strict=True):
                    tensors[axis][row, here] = values
                for tag, mask in block.tags.items():
                    tags.setdefault(tag, torch.zeros_like(labels.patch))[row, here] = mask.to(here.device)
                grids[row].append(block.shape)
                views[row].append(replace(block.view, picture=number))
                start += len(block)
            number += not all(block.fills for block in picture)
    return replace(labels, **tensors, tags=tags, grids=tuple(map(tuple, grids)), views=tuple(map(tuple, views)))


@dataclass(frozen=True)
class Marks:
    """The ids that open and close an image without being part of it."""

    opens: frozenset[int] = frozenset()
    closes: frozenset[int] = frozenset()

    @classmethod
    def of(cls, config: Any, tokenizer: Any = None) -> Marks:
        """The ids the config and the tokenizer name."""
        found = [
            frozenset().union(*(_config_ids(config, name) | _ids(tokenizer, name) for name in names))
            for names in (OPENS, CLOSES)
        ]
        return cls(*found)

    def around(self, texts: Sequence[Text]) -> Marks:
        """For Idefics3, which names its tile marks in no config: the ids next to its image tokens."""
        close = {int(text.ids[text.runs[-1][1]]) for text in texts if text.runs}
        tags = {int(text.ids[start - 1]) for text in texts for start, _ in text.runs}
        return Marks(self.opens | close | tags, self.closes | close)


def separate(labels: Roles, name: str, ids: Tensor, marks: Marks) -> Roles:
    """Flag what is between an image's first and last token and the marks around it; none of it is text."""
    found, image = labels.separator.clone(), labels.image.clone()
    own = labels.kind == CODE[name]
    for row in range(len(ids)):
        for index in labels.image[row][own[row]].unique().tolist():
            first, last = _span(ids[row], own[row] & (labels.image[row] == index), found[row], marks)
            new = ~own[row, first : last + 1] & (labels.kind[row, first : last + 1] != CODE["pad"])
            found[row, first : last + 1] |= new
            image[row, first : last + 1][new] = index
    kind = torch.where(found, CODE["special"], labels.kind)
    return replace(labels, kind=kind, image=image, tags={**labels.tags, "separator": found})


def _span(ids: Tensor, own: Tensor, taken: Tensor, marks: Marks) -> tuple[int, int]:
    """First and last column of an image with the marks that open it and the one that closes it."""
    inside = own.nonzero().flatten()
    first, last = int(inside[0]), int(inside[-1])
    while first > 0 and int(ids[first - 1]) in marks.opens and not taken[first - 1]:
        first -= 1
    if last + 1 < len(ids) and int(ids[last + 1]) in marks.closes:
        last += 1
    return _stamp(ids, own, first), last


def _stamp(ids: Tensor, own: Tensor, first: int) -> int:
    """Where the text before an image starts that is written before each of its frames too (Qwen3-VL timestamps)."""
    runs = Text(ids, own.nonzero().flatten()).runs
    gap = ids[runs[0][1] : runs[1][0]].tolist() if len(runs) > 1 else []
    if len(gap) < 4 or gap[-1] not in ids[max(first, 0) : runs[0][0]].tolist():
        return first
    opener = gap[1]
    window = ids[max(0, first - 2 * len(gap)) : first].tolist()
    return first - 1 - window[::-1].index(opener) if opener in window else first


def text_roles(config: Any, kwargs: Mapping[str, Tensor], ids: Tensor, valid: Tensor, tokenizer: Any = None) -> Roles:
    """Roles of a tower that reads ids, among them image and video tokens."""
    labels = of_ids(ids, valid, config=config, tokenizer=tokenizer)
    family = family_of(config)
    layouts = {"image": None, "video": None} if family is None else {"image": family.images, "video": family.videos}
    for name, layout in layouts.items():
        mine = _isin(ids, _image_ids(config, name)) & valid
        if not mine.any() and not (_image_ids(config, name) and PIXELS[name] in kwargs):
            continue
        texts = [Text(row, here.nonzero().flatten()) for row, here in zip(ids, mine, strict=True)]
        labels = place(labels, name, [text.at for text in texts], (layout or unknown)(config, kwargs, texts))
        marks = Marks.of(config, tokenizer)
        labels = separate(labels, name, ids, marks.around(texts) if family is not None and family.marks else marks)
    return labels


PIXELS = {"image": "pixel_values", "video": "pixel_values_videos"}


def vision_roles(config: Any, kwargs: Mapping[str, Tensor]) -> Roles:
    """Roles of a tower that reads pixels."""
    rows = vision_rows(config, kwargs)
    lengths = {sum(len(block) for picture in row for block in picture) for row in rows}
    valid = torch.ones(len(rows), max(lengths, default=0), dtype=torch.bool)
    labels = place(plain(valid), "image", [torch.arange(valid.shape[1])] * len(rows), rows)
    labels = _viewed(labels, vision_views(config, kwargs)) if "input_ids" in kwargs else labels
    kind = torch.where(labels.patch, CODE["image"], CODE["special"])
    kind[labels.tags.get("filler", ~valid)] = CODE["pad"]
    given = next((kwargs[name] for name in PIXELS.values() if name in kwargs), pixels_in(kwargs))
    assert given is not None
    return replace(labels, kind=kind).to(given.device)


def _viewed(labels: Roles, views: Sequence[View] | None) -> Roles:
    """In a tower that reads pictures from text: which picture each row shows, and for tiles which part of it."""
    if views is not None:
        if len(views) != len(labels.kind):
            raise InputsError(f"the vision tower is called with {len(labels.kind)} tiles, the text has {len(views)}")
        labels = replace(labels, views=tuple((view,) for view in views))
    first = torch.tensor([row[0].picture for row in labels.views])[:, None]
    return replace(labels, image=torch.where(labels.image >= 0, labels.image + first, labels.image))


def roles(
    config: Any,
    kwargs: Mapping[str, Any],
    *,
    tokenizer: Any = None,
    valid: Bool[Tensor, "batch position"] | None = None,
    tower: str | None = None,
    extractor: Any = None,
) -> Roles:
    """The roles of a tower's positions (`tower=None`: the main one) under the arguments the model is called with.

    The main tower is the decoder of an encoder-decoder, else the text, else the pixels. `valid` defaults to the
    tower's attention mask, and to everything where there is none. `extractor` says how long a frame of sound lasts.
    """
    name = tower or main_tower(kwargs)
    if name == "vision":
        return vision_roles(config, kwargs)
    if name in ("encoder", "audio") and any(sound in kwargs for sound in SOUND):
        return sound_roles(config, kwargs, extractor)
    if name not in IDS:
        raise InputsError(f"no roles for tower {name!r}; there are {', '.join(IDS)} and vision")
    ids, mask, embeds = main_ids(kwargs, name), kwargs.get(MASKS[name]), main_embeds(kwargs)
    shape = ids if ids is not None else embeds[..., 0] if embeds is not None else None
    if shape is None:
        raise InputsError(f"no {IDS[name]} for tower {name!r}; the call has {', '.join(kwargs)}")
    if valid is None:
        valid = mask.bool() if mask is not None else torch.ones_like(shape, dtype=torch.bool)
    return plain(valid) if ids is None else text_roles(config, kwargs, ids, valid, tokenizer)


__all__ = ["CODE", "KINDS", "Roles", "of_ids", "plain", "roles", "special_ids", "vision_roles"]
