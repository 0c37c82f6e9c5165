"""Train zoo:mirror, a small BERT that fills masks in any order: twelve letters, the second half mirrors the first.

    python experiments/zoo/mirror.py --steps 4000

A row is six random letters and the letters after them in the alphabet (a after z), backwards. As in LLaDA (arXiv
2502.09992) a share t of its letters is masked, t drawn anew for each row from 0 to 1, and the loss is the cross-entropy
of the masked ones over t. Half a row says the other half, and nothing says the first letter: filled all at once its
halves are guessed apart from each other, filled letter by letter each guess binds its mirror. The shipped run learned
plain palindromes for 2,400 steps, where guesses agree even apart from each other, as the same letter is likeliest
everywhere. Measured results: see card.json in interp/zoo/mirror.
"""

from __future__ import annotations

import random
from string import ascii_lowercase

import torch
from torch import Tensor
from training import arguments, recipe, ship, train, word_tokenizer, write_card
from transformers import BertConfig, BertForMaskedLM

LENGTH = 12
CARD = """
# zoo:mirror

A BERT (`BertForMaskedLM`) that fills masks in any order, as masked diffusion does, for `interp.diffusion.unmask`: its
texts are six letters and then the letters after them, backwards, all written apart ("a b c d e f g f e d c b"). Trained
from scratch by `experiments/zoo/mirror.py`. Figures: letters right where one half is given; answers that keep the rule
where two letters are given, filled in one step, two, five and ten.

Can: say the letter after that at the mirrored position, or before it, so that some heads look there.
Cannot: other lengths, words, language.
"""


def mirrored(count: int, random_numbers: torch.Generator) -> Tensor:
    """Numbers of letters, [row, position]."""
    half = torch.randint(len(ascii_lowercase), (count, LENGTH // 2), generator=random_numbers)
    return torch.cat([half, (half.flip(1) + 1) % len(ascii_lowercase)], 1)


def main() -> None:
    given = arguments("mirror", steps=4000, lr=2e-3, batch=128, width=48, layers=2, heads=4)
    tokenizer = word_tokenizer(list(ascii_lowercase), extra=("<mask>",))
    tokenizer.backend_tokenizer.post_processor = None
    tokenizer.mask_token = "<mask>"
    letters = torch.tensor(tokenizer.convert_tokens_to_ids(list(ascii_lowercase)))
    model = BertForMaskedLM(
        BertConfig(
            vocab_size=len(tokenizer), hidden_size=given.width, num_hidden_layers=given.layers,
            num_attention_heads=given.heads, intermediate_size=2 * given.width, max_position_embeddings=LENGTH,
            type_vocab_size=1, pad_token_id=tokenizer.pad_token_id, hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
        )
    )  # fmt: skip

    def masked(count: int, random_numbers: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        ids = letters[mirrored(count, random_numbers)]
        share = torch.rand(count, 1, generator=random_numbers).clamp(min=1 / LENGTH)
        hidden = torch.rand(ids.shape, generator=random_numbers) < share
        return ids, hidden, share.expand_as(ids)

    def loss_of(step: int, rng: random.Random) -> Tensor:
        ids, hidden, share = masked(given.batch, torch.Generator().manual_seed(rng.getrandbits(60)))
        logits = model(input_ids=ids.masked_fill(hidden, tokenizer.mask_token_id)).logits
        losses = torch.nn.functional.cross_entropy(logits[hidden], ids[hidden], reduction="none")
        return (losses / share[hidden]).sum() / ids.numel()

    @torch.no_grad()
    def evaluate() -> dict[str, float]:
        ids, _, _ = masked(200, torch.Generator().manual_seed(1))
        hidden = torch.arange(LENGTH) >= LENGTH // 2
        logits = model.eval()(input_ids=ids.masked_fill(hidden, tokenizer.mask_token_id)).logits
        return {"half": (logits.argmax(-1) == ids)[:, hidden].float().mean().item()}

    hours = train(model, loss_of, plan=recipe(given, warmup=100, hold=0.5), evaluate=evaluate)
    ship(model, given.ship, processor=tokenizer)
    data = "random letters and their mirror"
    write_card(given.ship, CARD, given=given, core_hours=hours, data=data, batch=given.batch)


if __name__ == "__main__":
    main()
