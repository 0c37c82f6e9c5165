"""Which heads are worth perturbing when a small denoiser draws without guidance, and how far?

    python experiments/diffusion/softpag.py [--model zoo:shapes-dit] [--each 4] [--draws 8] [--out runs/softpag]

Samples are drawn without classifier-free guidance and led away from what heads make of looking at themselves
(`interp.diffusion.perturbed`), by an amount u from 0 to 1: all heads of self-attention, the greedy set of `hunt`, and
random sets of its size. The set is hunted on one noise and judged on others. Right is a sample whose colour (by pixels)
and shape (by zoo:shapes-vit) are the prompt's; intervals are bootstraps over samples, that of random sets over samples
of all sets. Beside them the unguided samples and those under classifier-free guidance.

Predicted before the first run: of unguided samples 0.5 to 0.8 are right, under classifier-free guidance at least 0.95.
All heads gain most at u = 0.25 or 0.5 and are worse than unguided at 1, where the picture is led off the ones it knows.
The greedy three gain at least 0.1 at u = 1 and grow with u; random sets gain less than half of that.

Measured (`--prompts 16 --each 4 --draws 3`, 64 samples): unguided 0.89 [0.81, 0.95], classifier-free 0.95. The greedy
set, L1.H2, L2.H2 and L2.H0, has 0.94, 0.92, 0.97 and 0.94 at u = 0.25, 0.5, 0.75 and 1; all heads 0.78, 0.53, 0.39 and
0.34 [0.23, 0.45]; random sets 0.82, 0.71, 0.49 and 0.38 [0.28, 0.48], of which two of three were the same (sets are
distinct since). Held: all heads do harm at 1. Missed: unguided samples are better than thought, all heads never help
and random sets do harm too; the greedy set gains 0.03 to 0.08, less than 0.1, does not grow with u, and its interval
holds the unguided share but at 0.75.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import interp
from interp.results.intervals import mean_interval
from interp.zoo import shown
from interp.zoo.shown import PROMPTS, right

AMOUNTS = (0.25, 0.5, 0.75, 1.0)


def main() -> None:
    given = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    given.add_argument("--model", default="zoo:shapes-dit")
    given.add_argument("--each", type=int, default=4, help="judged samples of each prompt")
    given.add_argument("--prompts", type=int, default=len(PROMPTS))
    given.add_argument("--steps", type=int, default=10)
    given.add_argument("--weight", type=float, default=3.0)
    given.add_argument("--rounds", type=int, default=3, help="heads in the greedy set")
    given.add_argument("--draws", type=int, default=8, help="random sets")
    given.add_argument("--out", type=Path, default=Path("runs/softpag"))
    args = given.parse_args()
    torch.set_num_threads(1)
    m, judge = interp.load(args.model), interp.load("zoo:shapes-vit").module
    asked = [prompt for prompt in PROMPTS[:: len(PROMPTS) // args.prompts] for _ in range(args.each)]
    hunted = hunt(m, judge, asked[:: args.each], args)
    hunted.save(args.out / "hunt")
    judged = judging(m, judge, asked, args)
    every = list(hunted.sites)
    sets = drawn_sets(every, len(hunted.heads), args.draws)
    print(json.dumps({
        "experiment": "softpag", "model": args.model, "samples": len(asked), "steps": args.steps, "weight": args.weight,
        "greedy": hunted.heads, "unguided": spread(judged([], 0.0)), "classifier_free": spread(judged([], 0.0, 3.0)),
        "by_amount": {u: {
            "all": spread(judged(every, u)), "greedy": spread(judged(list(hunted.heads), u)),
            "random": over([judged(one, u) for one in sets]),
        } for u in AMOUNTS}, "out": str(args.out),
    }))  # fmt: skip


def drawn_sets(heads: list[str], size: int, draws: int) -> list[list[str]]:
    """Random sets of heads, no two alike."""
    draw, found = random.Random(0), dict[tuple[str, ...], None]()
    while len(found) < draws:
        found[tuple(sorted(draw.sample(heads, size)))] = None
    return [list(one) for one in found]


def hunt(m: interp.Model, judge: nn.Module, asked: list[str], args: Any) -> Any:
    """The greedy set, by the probability of the shape asked for, which is 0 where the colour is another."""
    color, shape = shown.asked(asked).unbind(1)

    def worth(made: Tensor) -> Tensor:
        sure = shown.chances(made, judge)[torch.arange(len(asked)), shape]
        return sure * (shown.colors(made) == color)

    return interp.diffusion.hunt(
        m, lambda: drawn(m, asked, args.steps, seed=1), worth, rounds=args.rounds, weight=args.weight
    )


def judging(m: interp.Model, judge: nn.Module, asked: list[str], args: Any) -> Callable[..., Tensor]:
    """[sample]: whether it is right, with these heads perturbed by an amount."""

    def judged(heads: list[str], amount: float, guidance: float = 1.0) -> Tensor:
        if heads:
            with interp.diffusion.perturbed(m, heads, amount=amount, weight=args.weight):
                made = drawn(m, asked, args.steps, seed=2)
        else:
            made = drawn(m, asked, args.steps, seed=2, guidance=guidance)
        return right(made, asked, judge).prod(1)

    return judged


def drawn(m: interp.Model, asked: list[str], steps: int, *, seed: int, guidance: float = 1.0) -> Tensor:
    """Pictures of a noise that is the same each time."""
    same = torch.Generator().manual_seed(seed)
    made: Tensor = m.processor(
        asked, num_inference_steps=steps, guidance_scale=guidance, generator=same, output_type="pt"
    ).images
    return made


def over(sets: list[Tensor]) -> dict[str, Any]:
    """All random sets together, and the share of each."""
    return {"share": spread(torch.stack(sets).mean(0)), "sets": [round(float(one.mean()), 3) for one in sets]}


def spread(values: Tensor) -> list[float]:
    """Mean, low, high."""
    low, high = mean_interval(values[None])
    return [round(float(one), 3) for one in (values.mean(), low, high)]


if __name__ == "__main__":
    main()
