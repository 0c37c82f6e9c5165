"""Do the words of a prompt look at the place where the thing will be, in which head, and from which step on?

    python experiments/diffusion/grounding.py [--model zoo:shapes-dit] [--each 2] [--steps 10] [--out runs/words]

Samples of all prompts under classifier-free guidance; in every call of the denoiser the maps of the four words, per
head and step (`interp.diffusion.maps`). A map points right where its highest cell lies in the box of the thing that is
in the finished picture, read from its pixels. Heads and steps are chosen on one noise and judged on another. Beside
them the mean map of all heads and steps (and of all heads at each step), the same maps held against the boxes of other
samples, and the share of cells that lie in a box. Intervals are bootstraps over the judged samples.

Predicted before the first run: chance is 0.17. The best head and step points right in at least 0.8 for the colour and
for the shape, the mean map in 0.6; in the first step no head in more than 0.3, from the middle on the best one in 0.8.
"a" and "." take what the ground has to give away: their mean maps point right less often than chance. Against other
samples' boxes everything is at chance.

Measured, 96 samples to choose on and 96 to judge on (chance 0.20): the colour's map of cross.L2.H1 at the last step
points right in 0.98 [0.95, 1.00], the shape's map of the same head at step 6 in 0.99 [0.97, 1.00], a random head and
step in 0.57 and 0.54, other samples' boxes hold 0.23 and 0.26. "a" and "." point right in 0.09 and 0.01 by their mean
maps. Missed: mean maps are better than thought, 0.95 and 0.85, and the best head points right in 0.65 of pictures in
the very first call, on noise alone: the noise has decided where the thing will be. Single heads point by "a" (0.87).
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import interp
from interp.results.intervals import mean_interval
from interp.zoo.shown import PROMPTS, boxes

WORDS = {"a": [0], "color": [1], "shape": [2], ".": [3]}
"""The columns of a prompt such as "a red circle ."."""


def main() -> None:
    given = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    given.add_argument("--model", default="zoo:shapes-dit")
    given.add_argument("--each", type=int, default=2, help="samples of each prompt, to choose on and to judge on")
    given.add_argument("--prompts", type=int, default=len(PROMPTS))
    given.add_argument("--steps", type=int, default=10)
    given.add_argument("--out", type=Path, default=Path("runs/words"))
    args = given.parse_args()
    torch.set_num_threads(1)
    m = interp.load(args.model)
    asked = [prompt for prompt in PROMPTS[:: len(PROMPTS) // args.prompts] for _ in range(args.each)]
    chosen, judged = (sampled(m, asked, args.steps, seed=seed) for seed in (1, 2))
    judged[0].save(args.out / "judged")
    shifted = judged[1].roll(len(asked) // 2, 0)
    rows, columns = judged[0].values.shape[-2:]
    print(json.dumps({
        "experiment": "words", "model": args.model, "samples": len(asked), "steps": args.steps,
        "chance": round(float(inside(judged[1], rows, columns).mean()), 3),
        "words": {word: read(word, chosen, judged, shifted) for word in WORDS}, "out": str(args.out),
    }))  # fmt: skip


def sampled(m: interp.Model, asked: list[str], steps: int, *, seed: int) -> tuple[Any, Tensor]:
    """Maps of the words, and the box of what was drawn."""
    made: list[Tensor] = []

    def run() -> None:
        same = torch.Generator().manual_seed(seed)
        made.append(m.processor(asked, num_inference_steps=steps, generator=same, output_type="pt").images)

    found = interp.diffusion.maps(m, run, words=WORDS, per=("step", "layer", "head"))
    return found, boxes(made[0])


def read(word: str, chosen: tuple[Any, Tensor], judged: tuple[Any, Tensor], shifted: Tensor) -> dict[str, Any]:
    """How often the maps of one word point right."""
    maps, truth = judged
    first, then = (by_group(found, word, known) for found, known in (chosen, judged))
    best = int(first.mean(1).argmax())
    late = max(maps.steps)
    place, step = maps.places[best], maps.steps[best]
    heads = sorted(set(maps.places))
    return {
        "head": place, "step": step, "chosen_on": round(float(first[best].mean()), 3), "pointing": spread(then[best]),
        "other_boxes": spread(hits(maps.of(word, place=place, step=step), shifted)),
        "mean_map": spread(hits(maps.of(word), truth)),
        "random_head_and_step": round(float(then.mean()), 3),
        "mean_map_by_step": [round(float(hits(maps.of(word, step=n), truth).mean()), 3) for n in range(late + 1)],
        "best_head_by_step": [round(float(then[best_at(maps, first, n)].mean()), 3) for n in range(late + 1)],
        "by_head": {one: round(float(hits(maps.of(word, place=one), truth).mean()), 3) for one in heads},
    }  # fmt: skip


def by_group(maps: Any, word: str, truth: Tensor) -> Tensor:
    """[head and step, sample]: whether the map's highest cell is in the box."""
    number = maps.words.index(word)
    return torch.stack([hits(one[:, number], truth) for one in maps.values])


def best_at(maps: Any, first: Tensor, step: int) -> int:
    """The head of one step that points best where it is chosen."""
    own = [n for n, at in enumerate(maps.steps) if at == step]
    return max(own, key=lambda n: (float(first[n].mean()), -n))


def hits(found: Tensor, truth: Tensor) -> Tensor:
    """[sample]: whether the highest cell of [sample, frame, row, column] is in the box."""
    rows, columns = found.shape[-2:]
    at = found.flatten(1).argmax(1)
    return inside(truth, rows, columns)[torch.arange(len(at)), at]


def inside(truth: Tensor, rows: int, columns: int) -> Tensor:
    """[sample, cell]: 1 where the middle of a cell lies in the sample's box."""
    at = torch.arange(rows * columns)
    points = torch.stack([torch.zeros_like(at), at // columns, at % columns], 1)
    each = [interp.diffusion.pointing(points, [box.tolist()] * len(points), grid=(rows, columns)) for box in truth]
    return torch.stack(each).float()


def spread(values: Tensor) -> list[float]:
    """Mean, low, high."""
    low, high = mean_interval(values[None])
    return [round(float(one), 3) for one in (values.mean(), low, high)]


if __name__ == "__main__":
    main()
