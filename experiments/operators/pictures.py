"""Draws the pattern of each operator on a sentence and on a picture, for the page on operators.

    python experiments/operators/pictures.py [--out docs]

One head of zoo:ioi on one of its sentences, rows and columns its tokens; one head of zoo:shapes-vit on one of its
pictures, what the class token gives to each patch. Each map is scaled to its own largest weight; negative weights are
blue. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw
from torch import Tensor

import interp
from interp.kernels.masks.symbols import After, Neighborhood, Power, PowerBlocks, Window, Windows
from interp.operators import (
    Agent,
    Chunks,
    Clusters,
    DynamicMask,
    Estimated,
    InLine,
    Landmarks,
    Linear,
    LocalLinear,
    LowRank,
    Masked,
    MemoryTokens,
    Operator,
    PrefixScan,
    RankAugmented,
    RelativeScores,
    Reversed,
    StaticQK,
    TwoLevel,
)
from interp.operators.visiting import one_call_each, places_of

TILE, GAP, LABEL, ACROSS = 120, 10, 16, 6
SENTENCE, PICTURE = "L0.H4", "L1.H2"


def common(width: int) -> dict[str, Operator]:
    g = torch.Generator().manual_seed(0)
    return {
        "softmax": StaticQK("", q="own"),
        "linear elu": Linear(""), "linear exp": Linear("", "exp"), "taylor": Linear("", "taylor"),
        "random features": Linear("", "random"), "lightning": Linear("", "silu", rate=0.1, normalize=False),
        "inline": InLine(""), "rala": RankAugmented(""), "local linear": LocalLinear(""), "scan": PrefixScan(""),
        "clusters": Clusters("", 4), "chunks": Chunks("", budget=6, count=5), "dynamic mask": DynamicMask("", keep=6),
        "low rank": LowRank("", 4, keep=0.3), "estimated": Estimated("", 8, 3), "landmarks": Landmarks("", 4),
        "reversed": Reversed(""), "static query": StaticQK(""), "random scores": StaticQK("", "random", "random"),
        "relative": RelativeScores("", torch.randn(1, 9, width, generator=g)),
        "memory": MemoryTokens("", torch.randn(1, 4, width, generator=g), torch.zeros(1, 4, width)),
    }  # fmt: skip


def of_text(width: int) -> dict[str, Operator]:
    return {
        **common(width), "two level": TwoLevel("", size=4, keep=2), "window": Masked("", Window(5)),
        "powers of two": Masked("", Power()), "power blocks": Masked("", PowerBlocks(2, 1)),
        "windows, halo": Masked("", Windows((0,), 5, 0, 1)),
    }  # fmt: skip


def of_picture(width: int, side: int) -> dict[str, Operator]:
    grid = (side, side)
    return {
        **common(width), "agent": Agent("", 2, grid), "two level": TwoLevel("", size=2, keep=3, grid=grid),
        "senders": Reversed("", "senders"),
        "neighbourhood": Masked("", After(1, Neighborhood(grid, 3))),
        "shifted windows": Masked("", After(1, Windows(grid, 2, 1))),
    }  # fmt: skip


def pattern(m: interp.Model, x: Any, site: str, operator: Operator) -> Tensor:
    """[row, key] of one head in the first example."""
    place = places_of(m, site)
    part = one_call_each(m, x, place)[str(place[0])].example(0)
    with torch.no_grad():
        found = replace(operator, site=site).pattern(part)
    assert found is not None
    return found[0, 0].float()


def tile(values: Tensor, label: str) -> Image.Image:
    """White is 0, red the largest weight, blue as far below 0."""
    size = values / values.abs().max().clamp(min=1e-12)
    other = 255 * (1 - size.abs())
    colour = torch.stack([torch.where(size < 0, other, 255.0), other, torch.where(size < 0, 255.0, other)], -1)
    picture = Image.fromarray(colour.round().byte().numpy()).resize((TILE, TILE), Image.Resampling.NEAREST)
    made = Image.new("RGB", (TILE + 2, TILE + 2 + LABEL), "white")
    made.paste("grey", (0, LABEL, TILE + 2, LABEL + TILE + 2))
    made.paste(picture, (1, LABEL + 1))
    ImageDraw.Draw(made).text((0, 0), label, fill="black")
    return made


def sheet(tiles: list[Image.Image]) -> Image.Image:
    down = -(-len(tiles) // ACROSS)
    wide, high = TILE + 2 + GAP, TILE + 2 + LABEL + GAP
    made = Image.new("RGB", (ACROSS * wide + GAP, down * high + GAP), "white")
    for n, one in enumerate(tiles):
        made.paste(one, (GAP + n % ACROSS * wide, GAP + n // ACROSS * high))
    return made


def main() -> None:
    given = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    given.add_argument("--out", type=Path, default=Path("docs"))
    args = given.parse_args()
    torch.set_num_threads(1)
    reader = interp.load("zoo:ioi")
    text = interp.tasks.ioi(reader, n=1).clean
    width = reader.ready().tower(None, text="L*").layers[0].d_head
    words = {name: pattern(reader, text, SENTENCE, one) for name, one in of_text(width).items()}
    viewer = interp.load("zoo:shapes-vit")
    view = interp.tasks.shapes(viewer, n=1).clean
    layer = viewer.ready().tower(None, text="L*").layers[0]
    length = pattern(viewer, view, PICTURE, StaticQK("", q="own")).shape[-1]
    side = int((length - 1) ** 0.5)
    patches = {
        name: pattern(viewer, view, PICTURE, one)[0, 1:].reshape(side, side)
        for name, one in of_picture(layer.d_head, side).items()
    }
    for file, maps in (("operators-sentence.png", words), ("operators-picture.png", patches)):
        sheet([tile(values, name) for name, values in maps.items()]).save(args.out / file, optimize=True)
    print(json.dumps({"experiment": "pictures", "tokens": text.batch and int(text.valid.sum()), "patches": side**2,
                      "operators": [len(words), len(patches)]}))  # fmt: skip


if __name__ == "__main__":
    main()
