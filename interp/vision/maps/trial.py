"""Pictures and questions for the examples of records, on any kind of model; kinds that do not see get some too, and
refuse them."""

from __future__ import annotations

from typing import Any

import numpy as np


def noise(size: tuple[int, int], count: int) -> list[Any]:
    """Random pictures (PIL) of a width and height."""
    from PIL import Image

    random = np.random.default_rng(0)
    return [Image.fromarray(random.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)) for _ in range(count)]


def pictures_of(t: Any) -> tuple[list[Any], list[str] | None]:
    """Those of a trial's question, a picture a row, with words where the model reads text."""
    rows = () if t.task is None else t.task.rows
    if rows and rows[0].image is not None:
        return [row.image for row in rows], None if t.kind == "vit" else [row.clean for row in rows]
    count = len(t.base.valid)
    return noise((16, 16), count), ["what is it"] * count


def many(t: Any, count: int) -> Any:
    """Inputs with so many random pictures, with the trial's first question where the model reads text."""
    pictures, questions = pictures_of(t)
    some = noise(pictures[0].size, count)
    if questions is None:
        return t.model.prepare(images=some)
    return t.model.prepare(questions[:1] * count, images=[[one] for one in some])
