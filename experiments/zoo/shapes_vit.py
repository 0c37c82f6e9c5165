"""Train zoo:shapes-vit and zoo:shapes-vit-registers, small vision transformers that name the large shape of a scene.

    python experiments/zoo/shapes_vit.py --steps 9000
    python experiments/zoo/shapes_vit.py --registers 4 --ship interp/zoo/shapes-vit-registers

A pool of scenes is drawn once (`interp.prompts.scenes.main_scene`) and pushed about, mirrored and given other colours
at every step: one large thing among up to five small ones of other shapes, any colour, noise on a grey ground; the
label is the large one's shape. Without registers the class is ViT's, with them DINOv2's (LayerScale, class token and
mean patch read by the classifier). The shipped run without registers was planned for 4,000 steps, its colours as drawn,
and then continued as it stands here, to 6,500 steps and to 9,000. Measured results: see card.json in
interp/zoo/shapes-vit and interp/zoo/shapes-vit-registers.
"""

from __future__ import annotations

import argparse
import random

import numpy as np
import torch
from training import arguments, recipe, ship, train, write_card
from transformers import (
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersForImageClassification,
    PreTrainedModel,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessor,
)

from interp.prompts.scenes import SHAPES, main_scene

SIZE, PATCH = 48, 8
CARD = """
# zoo:{name}

A vision transformer (`{kind}`{registers}) that says which of eight shapes the large thing in a 48 x 48 scene has;
6 x 6 patches of 8 pixels. Trained from scratch by `experiments/zoo/shapes_vit.py` on scenes drawn by
`interp/prompts/scenes.py`, pushed about, mirrored and given other colours.

Can: name the large shape whatever its colour and place, small shapes of other kinds standing around.
Cannot: photographs, the small shapes, other sizes of image, scenes without a large shape.
"""


def build(given: argparse.Namespace) -> PreTrainedModel:
    """The classifier, with or without registers."""
    sizes = {
        "hidden_size": given.width, "num_hidden_layers": 4, "num_attention_heads": 4, "image_size": SIZE,
        "patch_size": PATCH, "num_labels": len(SHAPES), "id2label": dict(enumerate(SHAPES)),
        "label2id": {shape: i for i, shape in enumerate(SHAPES)},
    }  # fmt: skip
    if given.registers:
        scaled = Dinov2WithRegistersConfig(
            **sizes, mlp_ratio=4, num_register_tokens=given.registers, layerscale_value=0.5, drop_path_rate=0.0
        )
        return Dinov2WithRegistersForImageClassification(scaled)
    return ViTForImageClassification(ViTConfig(**sizes, intermediate_size=4 * given.width))


def drawn(rng: np.random.Generator, n: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Pixels from -1 to 1, [n, 3, size, size], and labels."""
    made = [main_scene(rng, size=SIZE) for _ in range(n)]
    images = torch.from_numpy(np.stack([scene.image for scene, _ in made])).permute(0, 3, 1, 2)
    return images.float() / 127.5 - 1, torch.tensor([label for _, label in made])


def moved(pixels: torch.Tensor, rng: random.Random) -> torch.Tensor:
    """The pictures pushed round by up to four pixels each way, red, green and blue exchanged, sometimes mirrored."""
    pushed = pixels.roll((rng.randint(-4, 4), rng.randint(-4, 4)), (-2, -1))[:, rng.sample(range(3), 3)]
    return pushed.flip(-1) if rng.random() < 0.5 else pushed


def main() -> None:
    given = arguments("shapes-vit", steps=6500, lr=2e-3, batch=64, width=64, registers=0, pool=24000)
    model = build(given)
    held = drawn(np.random.default_rng(99), 200)

    pool = drawn(np.random.default_rng(given.seed), given.pool)

    def loss_of(step: int, rng: random.Random) -> torch.Tensor:
        chosen = torch.tensor(rng.sample(range(given.pool), given.batch))
        pixels, labels = moved(pool[0][chosen], rng), pool[1][chosen]
        return torch.nn.functional.cross_entropy(model(pixels).logits, labels, label_smoothing=0.02)

    @torch.no_grad()
    def evaluate() -> dict[str, float]:
        return {"accuracy": (model.eval()(held[0]).logits.argmax(-1) == held[1]).float().mean().item()}

    hours = train(model, loss_of, plan=recipe(given, warmup=200, weight_decay=0.05, hold=0.3), evaluate=evaluate)
    processor = ViTImageProcessor(
        size={"height": SIZE, "width": SIZE}, do_resize=True, image_mean=[0.5] * 3, image_std=[0.5] * 3
    )
    ship(model, given.ship, processor=processor)
    registers = f", {given.registers} register tokens" if given.registers else ""
    prose = CARD.format(name=given.ship.name, kind=type(model).__name__, registers=registers)
    data = "scenes, interp/prompts/scenes.py main_scene"
    write_card(given.ship, prose, given=given, core_hours=hours, data=data, batch=given.batch)


if __name__ == "__main__":
    main()
