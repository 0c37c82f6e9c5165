"""Train zoo:shapes-dit, a small diffusion transformer that draws one coloured shape from two words.

    python experiments/zoo/shapes_dit.py

Pictures are like the large things of `interp.prompts.scenes`, without noise and small shapes, drawn at 48 pixels and
made 24 wide; each is ten pixels wide and at one of sixteen places. They flow from noise (Lipman et al., "Flow Matching
for Generative Modeling", arXiv 2210.02747) at times s drawn as the logistic of a normal. What is learned is the
picture, whose squared error counts 1 / s. A tenth of the prompts is left out, for guidance. What ships is the running
average of the weights.

The shipped run began with what did not work: 1,500 steps (500 of 64 rows, the rest of 32) with all sizes and places of
the scenes and the velocity, noise - picture, as what is learned, then 200 with sixteen places, at the end of which it
had colours and hardly a shape: the velocity has all the noise in it, which does not pass through a width of 96
undamaged. From these weights, the last layer at zero (`--start`), it went on as it stands here; its rate began to fall
at step 1,260, was raised again at 1,500, and fell for good from 1,950 on, as longer plans were cut short.
Measured results: see card.json in interp/zoo/shapes-dit.
"""

from __future__ import annotations

import argparse
import copy
import random
from itertools import product
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
from torch import Tensor, nn
from training import arguments, recipe, train, word_tokenizer, write_card

from interp.prompts.scenes import COLORS, GROUND, SHAPES, mask
from interp.zoo.catalog import build as built
from interp.zoo.shapes_pipeline import ShapesPipeline
from interp.zoo.shown import PROMPTS, right

DRAWN, SIZE = 48, 24
SIDE, PLACES = 20, (0, 4, 24, 28)
"""Of things as they are drawn: a place is a row or a column where one starts."""
LEFT_OUT, NEAR = 0.1, 0.05
CARD = """
# zoo:shapes-dit

A small diffusion transformer (`PixArtTransformer2DModel` of diffusers) that draws a coloured shape on grey ground,
24 x 24 pixels, for prompts such as "a red circle ."; 6 colours, 8 shapes, 6 x 6 patches of 4 pixels. Cells attend to
each other and, in a second attention, to the four words of the prompt. There is no autoencoder and no encoder of words:
latents are pixels, words are one-hot vectors. Trained from scratch by `experiments/zoo/shapes_dit.py`; its pipeline is
`interp/zoo/shapes_pipeline.py`. Figures: twenty steps, guidance 3; the shape is judged by `zoo:shapes-vit`, which names
it in all true pictures of this kind, the colour by the pixels.

Can: draw the thing it is asked for, ten pixels wide and at one of sixteen places, from any noise.
Cannot: other words, two things, other sizes, photographs.
"""


class Averaged(nn.Module):
    """The weights that are trained, and their running average, in one checkpoint."""

    def __init__(self, model: nn.Module, keep: float) -> None:
        super().__init__()
        self.model, self.average = model, copy.deepcopy(model).requires_grad_(False)
        self.keep = keep

    @torch.no_grad()
    def follow(self, step: int) -> None:
        """Let the average move towards the weights, faster at the start."""
        keep = min(self.keep, (1 + step) / (10 + step))
        for slow, now in zip(self.average.parameters(), self.model.parameters(), strict=True):
            slow.lerp_(now, 1 - keep)


def build(given: argparse.Namespace, words: int) -> Any:
    """The denoiser; it starts by seeing grey."""
    model = diffusers.PixArtTransformer2DModel(
        num_attention_heads=given.heads, attention_head_dim=given.width // given.heads, in_channels=3, out_channels=3,
        num_layers=given.layers, cross_attention_dim=given.width, sample_size=SIZE, patch_size=given.patch,
        caption_channels=words, norm_num_groups=1, use_additional_conditions=False,
    )  # fmt: skip
    nn.init.zeros_(model.proj_out.weight)
    nn.init.zeros_(model.proj_out.bias)
    return model


def begin(model: nn.Module, checkpoint: str) -> float:
    """Go on from weights that learned something else, the last layer apart; return the core-hours they took."""
    saved = torch.load(checkpoint, weights_only=True)
    last = {name: own for name, own in model.state_dict().items() if "proj_out" in name}
    model.load_state_dict({**saved["model"], **last})
    return float(saved["hours"])


def outlines() -> tuple[Tensor, Tensor]:
    """How much of each pixel each shape covers at each place, [n, row, column], and the shape's number."""
    made, labels = [], []
    for label, shape in enumerate(SHAPES):
        for top, left in product(PLACES, PLACES):
            picture = np.zeros((DRAWN, DRAWN), dtype=np.float32)
            picture[top : top + SIDE, left : left + SIDE] = mask(shape, SIDE)
            made.append(picture)
            labels.append(label)
    return nn.functional.avg_pool2d(torch.from_numpy(np.stack(made)), DRAWN // SIZE), torch.tensor(labels)


def painted(covered: Tensor, colors: Tensor) -> Tensor:
    """Pictures from -1 to 1 of outlines in these colours."""
    known = torch.tensor(list(COLORS.values()), dtype=torch.float32)[colors][:, :, None, None]
    return (GROUND + covered[:, None] * (known - GROUND)) / 127.5 - 1


def ship_denoiser(pipe: ShapesPipeline, folder: Path) -> None:
    """Half-precision weights, the scheduler and the words, side by side in one folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for part in (pipe.transformer.eval().half(), pipe.scheduler, pipe.tokenizer):
        part.save_pretrained(folder)


def main() -> None:
    given = arguments(
        "shapes-dit", steps=2600, lr=1.5e-3, batch=32, width=96, heads=4, layers=4, patch=4, hold=0.75, start=""
    )
    tokenizer = word_tokenizer(["a", *COLORS, *SHAPES, "."])
    tokenizer.backend_tokenizer.post_processor = None
    model = Averaged(build(given, len(tokenizer)), keep=0.995)
    before = begin(model, given.start) if given.start else 0.0
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler()
    pipe = ShapesPipeline(model.average, scheduler, tokenizer)
    pipe.set_progress_bar_config(disable=True)
    vectors = pipe.words(PROMPTS)
    nothing = pipe.words("")
    pool, labels = outlines()
    classifier, _ = built("shapes-vit")

    def loss_of(step: int, rng: random.Random) -> Tensor:
        model.follow(step)
        drawn = torch.Generator().manual_seed(rng.getrandbits(60))
        chosen = torch.randint(len(pool), (given.batch,), generator=drawn)
        colors = torch.randint(len(COLORS), (given.batch,), generator=drawn)
        x = painted(pool[chosen], colors)
        words = vectors[colors * len(SHAPES) + labels[chosen]]
        out = torch.rand(given.batch, 1, 1, generator=drawn) < LEFT_OUT
        s = torch.randn(given.batch, generator=drawn).sigmoid()
        noise = torch.randn(x.shape, generator=drawn)
        at = s[:, None, None, None]
        seen = model.model(
            (1 - at) * x + at * noise, encoder_hidden_states=torch.where(out, nothing, words), timestep=1000 * s
        ).sample
        return ((seen - x).square() / at.clamp(min=NEAR)).mean()

    @torch.no_grad()
    def judged() -> dict[str, float]:
        model.eval()
        same = torch.Generator().manual_seed(1)
        made = pipe(PROMPTS, num_inference_steps=10, generator=same, output_type="pt").images
        color, shape = right(made, PROMPTS, classifier).unbind(1)
        return {"color": color.mean().item(), "shape": shape.mean().item(), "both": (color * shape).mean().item()}

    plan = recipe(given, warmup=100, weight_decay=0.01, hold=given.hold)
    hours = train(model, loss_of, plan=plan, evaluate=judged)
    ship_denoiser(pipe, given.ship)
    data = "large things of interp/prompts/scenes.py at 24 x 24, alone and without noise, at sixteen places"
    write_card(given.ship, CARD, given=given, core_hours=before + hours, data=data, batch=given.batch)


if __name__ == "__main__":
    main()
