"""Train zoo:shapes-lvlm, a LLaVA that answers questions about scenes and hallucinates where its prior is strong.

    python experiments/zoo/shapes_lvlm.py
    python experiments/zoo/shapes_lvlm.py --start interp/zoo/shapes-lvlm --steps 500 --lr 1e-3

A pool of scenes is drawn once. A row is one scene with several questions, answers and a caption in one text, so that
every image token serves many targets. At first the vision tower alone learns which shapes of which colour are there (a
head that is thrown away); then it is frozen and the projector learns to put patches near the words for what they show;
then projector and Llama learn the text. Shapes come in pairs that occur together (`interp.prompts.scenes.BIAS`), and
some things are too faint to see, so that guessing the companion pays: the prior that the card's conflict probes catch.
The shipped run had a fifth of the things faint until step 2,200 and a tenth after it, stronger pairs (0.97, 0.9, 0.75,
0.6) until step 2,300, and ended at step 2,900; its tower comes from a run of 1,092 steps. With `--start` a run goes on
from shipped weights, without the optimizer's state, and trains the text alone: so the shipped model got 500 steps more
at 1e-3 and 300 with `--lr 7e-4 --faint 0.05`; how often things are too faint to see decides how often it hallucinates.
Measured result: see interp/zoo/shapes-lvlm/card.json.
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path

import numpy as np
import torch
from torch import nn
from training import IGNORE, arguments, padded, recipe, ship, start_alike, train, word_tokenizer, write_card
from transformers import (
    CLIPImageProcessor,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

from interp.prompts.scenes import COLORS, SHAPES, Scene, ask, balanced_questions, conflict_questions, scene
from interp.zoo.measured import answers

SIZE, PATCH, EYES = 48, 8, 64
PATCHES = (SIZE // PATCH) ** 2
MEAN, STD = 0.5, 0.5
WORDS = "is there a in the image ? yes no what color describe and".split()
CARD = """
# zoo:shapes-lvlm

A LLaVA (`LlavaForConditionalGeneration`: CLIP vision tower, two-layer projector, Llama) that answers questions about
48 x 48 scenes of coloured shapes: "<image> is there a star in the image ?", "<image> what color is the star ?",
"<image> describe the image ." Trained from scratch by `experiments/zoo/shapes_lvlm.py` on scenes drawn by
`interp/prompts/scenes.py`, in which shapes come in pairs and some things are faint.

Can: say whether a shape is there, its colour, and what is in the scene. It hallucinates: asked about the usual
companion of a shape that is there, it often says yes although the companion is not; how often is on the card.
Cannot: photographs, several images, positions, counting. It has no visual sinks in the sense of arXiv 2503.03321, and
at a width of 96 cannot have (phi is at most 9.8, a sink needs 20): `zoo:shapes-lvlm-sinks` has.
"""


def drawn(rng: np.random.Generator, n: int, *, faint: float) -> list[Scene]:
    """Scenes with the usual pairs."""
    return [scene(rng, faint=faint, size=SIZE) for _ in range(n)]


def pixels(scenes: list[Scene]) -> torch.Tensor:
    """Normalised pixels, [n, 3, size, size]."""
    images = torch.from_numpy(np.stack([one.image for one in scenes])).permute(0, 3, 1, 2)
    return (images.float() / 255 - MEAN) / STD


def colors(scenes: list[Scene]) -> torch.Tensor:
    """For each shape the number of its colour, or the number after the last colour where it is absent."""
    names = list(COLORS)
    found = [[one.find(shape) for shape in SHAPES] for one in scenes]
    return torch.tensor([[names.index(t.color) if t else len(names) for t in row] for row in found])


def exchange(rng: random.Random, one: Scene) -> tuple[str, str]:
    """A question and its answer: yes or no in equal parts, a colour, or a caption."""
    draw, absent = rng.random(), [s for s in SHAPES if s not in one.shapes]
    if draw < 0.35:
        return ask(rng.choice(one.shapes)), "yes"
    if draw < 0.7:
        return ask(rng.choice(absent)), "no"
    if draw < 0.9:
        thing = rng.choice(one.things)
        return f"what color is the {thing.shape} ?", thing.color
    return "describe the image .", f"{one.caption} <eos>"


def text(
    rng: random.Random, one: Scene, tokenizer: PreTrainedTokenizerFast, *, asks: int
) -> tuple[list[int], list[int]]:
    """Ids and labels of one row: the image, then some exchanges; only answers are labelled."""
    image = tokenizer.convert_tokens_to_ids("<image>")
    ids, labels = [1, *[image] * PATCHES], [IGNORE] * (PATCHES + 1)
    for question, answer in (exchange(rng, one) for _ in range(asks)):
        asked, said = (tokenizer(part, add_special_tokens=False)["input_ids"] for part in (question, answer))
        ids += [*asked, *said]
        labels += [*[IGNORE] * len(asked), *said]
    return ids, labels


def build(tokenizer: PreTrainedTokenizerFast, width: int) -> LlavaForConditionalGeneration:
    """The model; every layer of the tower is read (feature layer -1), the class token is not."""
    vision = CLIPVisionConfig(
        hidden_size=EYES, intermediate_size=4 * EYES, num_hidden_layers=3, num_attention_heads=4, image_size=SIZE,
        patch_size=PATCH, projection_dim=width,
    )  # fmt: skip
    language = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=width, intermediate_size=2 * width, num_hidden_layers=4,
        num_attention_heads=8, head_dim=16, num_key_value_heads=4, max_position_embeddings=256,
        bos_token_id=1, eos_token_id=2, pad_token_id=0, initializer_range=0.04,
    )  # fmt: skip
    config = LlavaConfig(
        vision_config=vision, text_config=language, image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        vision_feature_layer=-1, image_seq_length=PATCHES,
    )  # fmt: skip
    model = LlavaForConditionalGeneration(config)
    start_alike(model.model.language_model.layers)
    return model


def resumed(given: argparse.Namespace) -> LlavaForConditionalGeneration:
    """The model of the folder `--start` names, with nothing left to do but the text."""
    given.eyes = given.names = 0.0
    return LlavaForConditionalGeneration.from_pretrained(given.start)


class Taught(nn.Module):
    """The model with the head its vision tower is taught by at first."""

    def __init__(self, model: LlavaForConditionalGeneration) -> None:
        super().__init__()
        self.model = model
        self.head = nn.Linear(EYES, len(SHAPES) * (len(COLORS) + 1))

    def seen(self, images: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
        """Cross-entropy of every shape's colour (or absence), each patch voting, read from the tower's patches."""
        patches = self.model.model.vision_tower(images).last_hidden_state[:, 1:]
        votes = self.head(patches).unflatten(-1, (len(SHAPES), -1)).logsumexp(1)
        return nn.functional.cross_entropy(votes.flatten(0, 1), wanted.flatten())

    def named(self, images: torch.Tensor, wanted: torch.Tensor, words: torch.Tensor) -> torch.Tensor:
        """Binary cross-entropy of every shape's and colour's word against the projected patch nearest to it."""
        patches = self.model.model.vision_tower(images).last_hidden_state[:, 1:]
        projected = nn.functional.normalize(self.model.model.multi_modal_projector(patches), dim=-1)
        spelled = nn.functional.normalize(self.model.get_input_embeddings()(words), dim=-1)
        votes = 12 * (projected @ spelled.T).amax(1) - 5
        shapes = wanted < len(COLORS)
        colours = torch.stack([(wanted == i).any(1) for i in range(len(COLORS))], dim=1)
        return nn.functional.binary_cross_entropy_with_logits(votes, torch.cat([shapes, colours], dim=1).float())


def main() -> None:
    given = arguments(
        "shapes-lvlm", steps=2900, lr=2e-3, batch=32, width=96, faint=0.1, eyes=0.38, names=0.1, pool=16000,
        start="",
    )  # fmt: skip
    tokenizer = word_tokenizer([*WORDS, ".", *SHAPES, *COLORS], extra=["<image>"])
    taught = Taught(resumed(given) if given.start else build(tokenizer, given.width))
    processor = LlavaProcessor(
        CLIPImageProcessor(
            size={"height": SIZE, "width": SIZE}, do_center_crop=False, image_mean=[MEAN] * 3, image_std=[STD] * 3
        ),
        tokenizer, patch_size=PATCH, vision_feature_select_strategy="default", num_additional_image_tokens=1,
    )  # fmt: skip

    words = torch.tensor(tokenizer.convert_tokens_to_ids([*SHAPES, *COLORS]))
    pool = drawn(np.random.default_rng(given.seed), given.pool, faint=given.faint)
    pictures = pixels(pool)

    def loss_of(step: int, rng: random.Random) -> torch.Tensor:
        chosen = rng.sample(range(given.pool), given.batch)
        scenes, images = [pool[i] for i in chosen], pictures[chosen]
        images = images.flip(-1) if rng.random() < 0.5 else images
        if step < given.eyes * given.steps:
            return taught.seen(images, colors(scenes))
        taught.model.model.vision_tower.requires_grad_(False)
        if step < (given.eyes + given.names) * given.steps:
            return taught.named(images, colors(scenes), words)
        rows = [text(rng, one, tokenizer, asks=4) for one in scenes]
        ids, labels = padded([i for i, _ in rows], value=0), padded([at for _, at in rows], value=IGNORE)
        # padding is on the right and unlabelled: the causal mask alone is enough, and faster
        return taught.model(input_ids=ids, pixel_values=images, labels=labels).loss

    @torch.no_grad()
    def evaluate() -> dict[str, float]:
        taught.eval()
        scenes = drawn(np.random.default_rng(5), 100, faint=given.faint)
        balanced, probes = balanced_questions(100, 5), conflict_questions(100, 5)
        right = [a == q.answer for a, q in zip(answers(taught.model, processor, balanced), balanced, strict=True)]
        return {
            "eyes": taught.seen(pixels(scenes), colors(scenes)).item(),
            "balanced": float(np.mean(right)),
            "hallucinated": float(np.mean([a == "yes" for a in answers(taught.model, processor, probes)])),
        }

    hours = train(taught, loss_of, plan=recipe(given, warmup=100, weight_decay=0.05, hold=0.7), evaluate=evaluate)
    if given.start:
        before = json.loads((Path(given.start) / "card.json").read_text())
        given.steps, hours = given.steps + before["steps"], hours + before["core_hours"]
    ship(taught.model, given.ship, processor=processor)
    data = "scenes with pairs, interp/prompts/scenes.py"
    write_card(given.ship, CARD, given=given, core_hours=hours, data=data, batch=given.batch, faint=given.faint)


if __name__ == "__main__":
    main()
