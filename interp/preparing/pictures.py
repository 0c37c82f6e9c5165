"""Pictures from files, arrays and tensors, as RGB, dealt to the rows of a batch."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from interp.hooks.errors import InputsError


def picture(value: Any, name: str = "image") -> Any:
    """One picture as an RGB PIL image; a change of mode is printed."""
    from PIL import Image, UnidentifiedImageError

    if isinstance(value, (str, Path)):
        try:
            value = Image.open(value)
        except (OSError, UnidentifiedImageError) as error:
            raise InputsError(f"{name} cannot be read: {error}") from None
    if not isinstance(value, Image.Image):
        value = Image.fromarray(_array(value, name))
    if not value.width or not value.height:
        raise InputsError(f"{name} has size {value.width}x{value.height}")
    if value.mode != "RGB":
        print(f"{name}: mode {value.mode} converted to RGB")
        value = value.convert("RGB")
    return value


def _array(value: Any, name: str) -> NDArray[np.uint8]:
    """An array of bytes, channels last."""
    array = np.asarray(value.detach().cpu() if callable(getattr(value, "detach", None)) else value)
    if array.dtype != np.uint8:
        raise InputsError(f"{name} is an array of {array.dtype}, expected uint8 from 0 to 255")
    if array.ndim == 3 and array.shape[-1] not in (1, 3, 4) and array.shape[0] in (1, 3):
        array = array.transpose(1, 2, 0)
    if array.ndim == 3 and array.shape[-1] == 1:
        array = array[..., 0]
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[-1] not in (3, 4)) or not array.size:
        raise InputsError(f"{name} has shape {array.shape}, expected height x width or height x width x 3")
    return np.ascontiguousarray(array)


def _is_one(value: Any) -> bool:
    return not isinstance(value, (list, tuple))


def as_rows(images: Any, counts: Sequence[int] | None) -> list[list[Any]]:
    """Pictures per row of a batch; a flat list is dealt by how many each text has a place for."""
    if images is None:
        return [[] for _ in counts or ()]
    given = [images] if _is_one(images) else list(images)
    if given and not all(map(_is_one, given)):
        nested = [[row] if _is_one(row) else list(row) for row in given]
        return [[picture(p, f"image {j} of row {i}") for j, p in enumerate(row)] for i, row in enumerate(nested)]
    flat = [picture(p, f"image {i}") for i, p in enumerate(given)]
    if not flat:
        raise InputsError("images is an empty list; leave it out for text alone")
    if counts is None:
        return [flat]
    if len(flat) != sum(counts):
        return [flat]
    return [flat[a:b] for a, b in itertools.pairwise(np.cumsum([0, *counts]))]


def count_check(counts: Sequence[int], pictures: Sequence[Sequence[Any]], token: str) -> None:
    """Refuse pictures without a place and places without a picture."""
    found = [len(row) for row in pictures]
    if list(counts) == found:
        return
    places = f"{token!r} places" if token else "places (one picture per text)"
    raise InputsError(
        f"the texts have {sum(counts)} {places} {list(counts)}, but {sum(found)} picture(s) were given {found}; "
        f"nothing is inserted: write {token or 'one text per picture'!r} at the place of each picture, or use chat"
        " messages"
    )


def sizes_of(rows: Sequence[Sequence[Any]]) -> list[tuple[int, int]]:
    """(height, width) of every picture, in order."""
    return [(picture.height, picture.width) for row in rows for picture in row]
