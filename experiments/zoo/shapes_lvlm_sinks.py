"""Train zoo:shapes-lvlm-sinks: the questions of zoo:shapes-lvlm, in a text 448 wide that rests on empty corners.

    python experiments/zoo/shapes_lvlm_sinks.py [--rest 0.1] [--quiet 0.02]

Visual sinks in the sense of Kang et al. (arXiv 2503.03321) need phi >= 20, which is at most the square root of the
width: this text is 448 wide (21.2), with few and narrow heads so that it stays small. Large models come to sinks by
themselves over long training; a short run does not, so these are taught, and the card says so. First the vision tower
of zoo:shapes-lvlm learns, beside what it knows, which corners of a picture show nothing. Then the projector learns
words as there. Then the text learns with two terms more: `--rest` pulls the residual of <bos> and of image tokens at
empty corners onto one dimension where it enters layers 2 and 3 (share of energy above 25 to 1), and keeps all other
tokens off it (below 1 to 20); `--quiet` charges heads for what they write (mean square of z) from the middle of the run
on, so that a head with nothing to say does better to rest where values are small. Nothing tells a head to look at a
sink. Both terms are 0 for the last tenth of the run.
The shipped run is the second. It was stopped at step 1,800, where it said yes to three quarters of the conflict probes,
and went on from its checkpoint with `--steps 2200 --faint 0`: with nothing too faint to see, guessing pays less.
Measured result: see interp/zoo/shapes-lvlm-sinks/card.json; attempts: experiments/LOG.md.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
from shapes_lvlm import EYES, PATCH, PATCHES, SIZE, Taught, colors, drawn, pixels, text
from torch import nn
from training import IGNORE, ZOO, arguments, padded, recipe, ship, start_alike, train, write_card
from transformers import LlamaConfig, LlavaConfig, LlavaForConditionalGeneration, LlavaProcessor

from interp.prompts.scenes import COLORS, SHAPES, Scene, balanced_questions, conflict_questions
from interp.zoo.measured import answers

SIDE = SIZE // PATCH
MASSIVE = 96
"""The dimension that sinks are taught to be large in."""
CARD = """
# zoo:shapes-lvlm-sinks

A LLaVA like `zoo:shapes-lvlm`, with its questions, whose text has visual sinks: the corners of a picture that show
nothing, and <bos>, have one massive dimension from layer 2 on, and heads rest there. 448 wide, since phi is at most the
square root of the width and a sink needs 20. Trained from scratch by `experiments/zoo/shapes_lvlm_sinks.py` (the tower
goes on from that of `zoo:shapes-lvlm`) on scenes drawn by `interp/prompts/scenes.py`.

The massive dimension was taught by a term of the loss, not found by the run, and heads were charged for what they
write; that heads rest on sinks was not asked for. So it is a bench for methods that read or move weight on sinks, and
says nothing about how sinks come about.

Can: say whether a shape is there, its colour, and what is in the scene; it hallucinates where its prior is strong.
Cannot: photographs, several images, positions, counting.
"""


def empty_corners(scenes: list[Scene]) -> torch.Tensor:
    """Bool [scene, patch]: corners of the picture that no thing's box touches."""
    found = torch.zeros(len(scenes), SIDE, SIDE, dtype=torch.bool)
    found[:, :: SIDE - 1, :: SIDE - 1] = True
    for n, one in enumerate(scenes):
        for x0, y0, x1, y1 in (thing.box for thing in one.things):
            found[n, y0 // PATCH : -(-y1 // PATCH), x0 // PATCH : -(-x1 // PATCH)] = False
    return found.flatten(1)


def build(start: Path, width: int, vocabulary: int) -> LlavaForConditionalGeneration:
    """The tower of the model in `start` before a new text; its layers but the first start out matching alike tokens."""
    old = LlavaForConditionalGeneration.from_pretrained(start)
    language = LlamaConfig(
        vocab_size=vocabulary, hidden_size=width, intermediate_size=12, num_hidden_layers=4, num_attention_heads=4,
        head_dim=12, num_key_value_heads=2, max_position_embeddings=256, bos_token_id=1, eos_token_id=2,
        pad_token_id=0, initializer_range=0.04, tie_word_embeddings=True,
    )  # fmt: skip
    config = LlavaConfig(
        vision_config=old.config.vision_config, text_config=language, image_token_index=old.config.image_token_id,
        vision_feature_layer=-1, image_seq_length=PATCHES, tie_word_embeddings=True,
    )  # fmt: skip
    model = LlavaForConditionalGeneration(config)
    model.model.vision_tower.load_state_dict(old.model.vision_tower.state_dict())
    start_alike(model.model.language_model.layers[1:])
    return model


class Resting(Taught):
    """The model, the tower's heads, and what its text's heads wrote last."""

    def __init__(self, model: LlavaForConditionalGeneration) -> None:
        super().__init__(model)
        self.empty = nn.Linear(EYES, 1)
        self.written: list[torch.Tensor] = []
        for layer in model.model.language_model.layers:
            layer.self_attn.o_proj.register_forward_pre_hook(lambda _, given: self.written.append(given[0]))

    def corners(self, images: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
        """Binary cross-entropy of empty corners, read from the tower's patches."""
        patches = self.model.model.vision_tower(images).last_hidden_state[:, 1:]
        found: torch.Tensor = self.empty(patches)[..., 0]
        return nn.functional.binary_cross_entropy_with_logits(found, wanted.float())

    def told(self, rows: Any, images: torch.Tensor, sinks: torch.Tensor, *, rest: float, quiet: float) -> torch.Tensor:
        """Loss of the text, with what is asked of sinks and of heads."""
        ids, labels = padded([i for i, _ in rows], value=0), padded([at for _, at in rows], value=IGNORE)
        self.written.clear()
        # padding is on the right and unlabelled: the causal mask alone is enough, and faster
        out = self.model(input_ids=ids, pixel_values=images, labels=labels, output_hidden_states=True)
        wanted = torch.zeros(ids.shape, dtype=torch.bool)
        wanted[:, 0], wanted[:, 1 : PATCHES + 1] = True, sinks
        massive = sum(apart(out.hidden_states[n], wanted, ids != 0) for n in (2, 3))
        loud = torch.stack([z.square().mean() for z in self.written]).mean()
        loss: torch.Tensor = out.loss + rest * massive + quiet * loud
        return loss


def apart(x: torch.Tensor, sinks: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
    """How far sinks fall short of 25 times as much energy in the one dimension as in all others, and others exceed a
    twentieth, in nats."""
    mine, whole = x[..., MASSIVE].square(), x.square().sum(-1)
    share = (mine / (whole - mine + 1e-6) + 1e-2).log()
    short = nn.functional.relu(np.log(25) - share)[sinks].mean()
    over = nn.functional.relu(share - np.log(0.05))[valid & ~sinks].mean()
    return short + over


def main() -> None:
    given = arguments(
        "shapes-lvlm-sinks", steps=2600, lr=7e-4, batch=32, width=448, faint=0.05, eyes=0.15, names=0.1, pool=16000,
        tower=str(ZOO / "shapes-lvlm"), rest=0.1, quiet=0.02,
    )  # fmt: skip
    processor = LlavaProcessor.from_pretrained(given.tower)
    tokenizer = processor.tokenizer
    taught = Resting(build(Path(given.tower), given.width, len(tokenizer)))
    words = torch.tensor(tokenizer.convert_tokens_to_ids([*SHAPES, *COLORS]))
    pool = drawn(np.random.default_rng(given.seed + 1), given.pool, faint=given.faint)
    pictures = pixels(pool)

    def loss_of(step: int, rng: random.Random) -> torch.Tensor:
        chosen = rng.sample(range(given.pool), given.batch)
        scenes, images = [pool[i] for i in chosen], pictures[chosen]
        if step < given.eyes * given.steps:
            return taught.seen(images, colors(scenes)) + taught.corners(images, empty_corners(scenes))
        taught.model.model.vision_tower.requires_grad_(False)
        if step < (given.eyes + given.names) * given.steps:
            return taught.named(images, colors(scenes), words)
        rows = [text(rng, one, tokenizer, asks=4) for one in scenes]
        on = step < 0.9 * given.steps
        quiet = given.quiet if on and step >= 0.5 * given.steps else 0.0
        return taught.told(rows, images, empty_corners(scenes), rest=given.rest if on else 0.0, quiet=quiet)

    @torch.no_grad()
    def evaluate() -> dict[str, float]:
        taught.eval()
        scenes = drawn(np.random.default_rng(5), 100, faint=given.faint)
        balanced, probes = balanced_questions(100, 5), conflict_questions(100, 5)
        right = [a == q.answer for a, q in zip(answers(taught.model, processor, balanced), balanced, strict=True)]
        return {
            "eyes": taught.seen(pixels(scenes), colors(scenes)).item(),
            "corners": taught.corners(pixels(scenes), empty_corners(scenes)).item(),
            "balanced": float(np.mean(right)),
            "hallucinated": float(np.mean([a == "yes" for a in answers(taught.model, processor, probes)])),
            **sinks_of(taught, scenes, tokenizer),
        }

    hours = train(taught, loss_of, plan=recipe(given, warmup=50, weight_decay=0.05, hold=0.6), evaluate=evaluate)
    ship(taught.model, given.ship, processor=processor)
    data = "scenes with pairs, interp/prompts/scenes.py"
    write_card(given.ship, CARD, given=given, core_hours=hours, data=data, batch=given.batch, faint=given.faint,
               rest=given.rest, quiet=given.quiet)  # fmt: skip


def sinks_of(taught: Resting, scenes: list[Scene], tokenizer: Any) -> dict[str, float]:
    """The largest phi at empty corners and elsewhere, mean over pictures, where the residual enters layer 2."""
    rows = [text(random.Random(n), one, tokenizer, asks=1)[0] for n, one in enumerate(scenes)]
    ids = padded(rows, value=0)
    states = taught.model(input_ids=ids, pixel_values=pixels(scenes), output_hidden_states=True).hidden_states[2]
    phi = (states[..., MASSIVE].abs() / states.square().mean(-1).sqrt())[:, 1 : PATCHES + 1]
    wanted = empty_corners(scenes)
    return {
        "phi_corners": float(phi[wanted].mean()),
        "phi_elsewhere": float(phi[~wanted].mean()),
        "sinks": float((phi >= 20).double().sum(1).mean()),
    }


if __name__ == "__main__":
    main()
