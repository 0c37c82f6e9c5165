"""What tests of vision-language heads share: tiny models of every family with a picture and a question."""

from __future__ import annotations

import warnings
from functools import cache
from typing import Any

import numpy as np
from pictured import PROCESSOR, pictured
from PIL import Image

import interp

FAMILIES = (
    "llava", "llava_next", "qwen2_5_vl", "qwen3_vl", "internvl", "paligemma", "smolvlm", "gemma3", "mllama", "blip-2",
    "instructblip",
)  # fmt: skip
PLACES = {
    "llava": "<image>", "llava_next": "<image>", "qwen2_5_vl": "<|vision_start|><|image_pad|><|vision_end|>",
    "qwen3_vl": "<|vision_start|><|image_pad|><|vision_end|>", "internvl": "<IMG_CONTEXT>", "paligemma": "<image>",
    "idefics3": "<image>", "gemma3": "<start_of_image>", "mllama": "<|image|>", "blip-2": "", "instructblip": "",
}  # fmt: skip


def picture(width: int = 40, height: int = 30, seed: int = 0) -> Image.Image:
    """Noise."""
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8))


@cache
def family(name: str) -> interp.Model:
    """A tiny random model of a family. Shared: a test that changes it builds its own."""
    return interp.attach(*pictured(name))


def asked(name: str, *, rows: int = 2) -> tuple[interp.Model, Any]:
    """The model with questions of unequal length about a picture each, padded on the left."""
    m = family(name)
    place = PLACES[PROCESSOR.get(name, name)]
    texts = [f"{place}What is in the image?", f"{place}describe"][:rows]
    pictures = [[picture(40, 60, n)] for n in range(rows)]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*starts with two BOS", UserWarning)  # BLIP-2's text opens with one as well
        return m, m.prepare(texts, images=pictures, chat=False, padding="left")
