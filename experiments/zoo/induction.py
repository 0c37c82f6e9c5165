"""Train zoo:induction, a two-layer attention-only transformer that repeats what was said before.

    python experiments/zoo/induction.py

Rows of `<bos>`, random tokens, and the same tokens again as often as the context holds; repetitions weigh 1, the
first time 0.02, since nobody can know it. Period lengths vary, so that only a previous-token head
feeding an induction head (Olsson et al., arXiv 2209.11895) solves it and no fixed offset does.
Measured result: see interp/zoo/induction/card.json.
"""

from __future__ import annotations

import json
import random
from dataclasses import asdict

import torch
from safetensors.torch import save_file
from training import arguments, recipe, train, weighted_loss, word_tokenizer, write_card

from interp.zoo.plain import AttentionOnly, AttentionOnlyConfig

CONTEXT = 96
CARD = """
# zoo:induction

A two-layer attention-only transformer (`interp.zoo.plain.AttentionOnly`: layer norms, learned positions, no MLPs) that
continues a random sequence the second time it is said. Trained from scratch by `experiments/zoo/induction.py` on
random tokens named w0, w1, ...; a word-level tokenizer puts `<bos>` in front.

Can: induction at any period up to half its context of 96 tokens. Cannot: language; sequences never said before.
"""


def row(rng: random.Random, words: int, first: int) -> tuple[list[int], list[float]]:
    """Ids and weights of one row: a passage and as much of its repetition as the context holds."""
    period = rng.randint(4, CONTEXT // 2 - 2)
    passage = [first + rng.randrange(words) for _ in range(period)]
    ids = [1, *passage * (CONTEXT // period + 1)][:CONTEXT]
    return ids, [0.02 if i <= period + 1 else 1.0 for i in range(CONTEXT)]


def main() -> None:
    given = arguments("induction", steps=3000, lr=3e-3, batch=32, width=96, words=200)
    tokenizer = word_tokenizer([f"w{i}" for i in range(given.words)])
    config = AttentionOnlyConfig(
        vocab=len(tokenizer), d_model=given.width, heads=6, d_head=16, layers=2, context=CONTEXT, norm=True
    )
    model, first = AttentionOnly(config), len(tokenizer) - given.words

    def loss_of(step: int, rng: random.Random) -> torch.Tensor:
        made = [row(rng, given.words, first) for _ in range(given.batch)]
        ids = torch.tensor([ids for ids, _ in made])
        return weighted_loss(model(ids).logits, ids, torch.tensor([weights for _, weights in made]))

    @torch.no_grad()
    def evaluate() -> dict[str, float]:
        rng = random.Random(7)
        made = [row(rng, given.words, first) for _ in range(32)]
        ids, weights = torch.tensor([i for i, _ in made]), torch.tensor([w for _, w in made])
        return {"second_repeat": weighted_loss(model.eval()(ids).logits, ids, (weights == 1.0).float()).item()}

    hours = train(model, loss_of, plan=recipe(given, hold=0.6), evaluate=evaluate)
    given.ship.mkdir(parents=True, exist_ok=True)
    save_file({k: v.half().contiguous() for k, v in model.state_dict().items()}, given.ship / "model.safetensors")
    described = {"architectures": ["AttentionOnly"], "dtype": "float32", **asdict(config)}
    (given.ship / "config.json").write_text(json.dumps(described, indent=2) + "\n")
    tokenizer.save_pretrained(given.ship)
    write_card(given.ship, CARD, given=given, core_hours=hours, data="random tokens, repeated", batch=given.batch)


if __name__ == "__main__":
    main()
