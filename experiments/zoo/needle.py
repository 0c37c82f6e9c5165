"""Train zoo:needle, a 4-layer Llama with 8 query heads over 2 kv heads that finds notes in up to 1,024 tokens.

    python experiments/zoo/needle.py

Rows of 32 tokens come first, short passages said again and again and notes with questions. Later rows are of three
kinds, filler between everything: many notes with many questions among them (dense loss), haystacks of
`interp/prompts/needles.py` whose notes are all asked for at the end, and passages said twice (copying). Lengths grow to
1,024 in five stages, shorter ones staying in the mixture; a batch always holds about as many tokens.
Answers and second copies weigh 1, filler 0.05, and the values of a note, which nobody can know, nothing.
The start is laid out (`training.start_inducing`).
Measured result: see interp/zoo/needle/card.json.
"""

from __future__ import annotations

import random

import torch
from training import arguments, recipe, ship, start_inducing, train, weighted_loss, word_tokenizer, write_card
from transformers import LlamaConfig, LlamaForCausalLM

from interp.prompts.needles import FILLER, KEYS, VALUES, filler, haystack, note, words

STAGES = ((0.1, (32,)), (0.25, (32, 64)), (0.45, (64, 128, 256)), (0.7, (128, 256, 512)), (1.01, (128, 512, 1024)))
FAINT = 0.05
Weighted = list[tuple[str, float]]
CARD = """
# zoo:needle

A Llama (`LlamaForCausalLM`: rotary positions, grouped queries, RMS norms, gated MLPs) with a word-level tokenizer that
answers "question : lisbon" with the two words that follow "note : lisbon" somewhere in up to 1,024 tokens of filler.
Trained from scratch by `experiments/zoo/needle.py` on generated text (`interp/prompts/needles.py`).

The run did not start from noise alone: `start_inducing` in `training.py` lays out an induction circuit (one kv group of
layer 0 looks back one token, one of layer 1 matches what it wrote), since three runs without it had not formed one in
the time there was. Training sharpened it and spread it; do not cite this model for how such circuits come about.

Can: retrieve the two values of a key from any depth, several notes with other keys standing by; copy a passage that
was said before. Cannot: anything else in English, keys outside its list, two hops, contexts beyond 1,024 tokens.
"""


def said(text: list[str], weight: float) -> Weighted:
    """Words that all weigh the same."""
    return [(word, weight) for word in text]


def noted(key: str, values: list[str]) -> Weighted:
    """A note; its key and values cannot be foreseen."""
    return [(w, FAINT if w in ("note", ":", ".") else 0.0) for w in note(key, values)]


def asked(key: str, values: list[str]) -> Weighted:
    """A question with its answer, which weighs full."""
    return [("question", FAINT), (":", FAINT), (key, 0.0), *said(values, 1.0), (".", FAINT)]


def dense(rng: random.Random, length: int) -> Weighted:
    """Notes, questions about earlier notes, and a little filler, in any order."""
    known: dict[str, list[str]] = {}
    out: Weighted = []
    most = max(3, min(20, length // 24))
    while len(out) < length:
        draw = rng.random()
        if len(known) < most and (draw < 0.3 or not known):
            key = rng.choice([k for k in KEYS if k not in known])
            known[key] = rng.sample(VALUES, 2)
            out += noted(key, known[key])
        elif draw < 0.75:
            key = rng.choice(list(known))
            out += asked(key, known[key])
        else:
            out += said(filler(rng, rng.randint(4, max(8, length // 12))), FAINT)
    return out


def sparse(rng: random.Random, length: int) -> Weighted:
    """A haystack, all of whose notes are asked for at the end."""
    notes = rng.randint(1, max(2, min(24, length // 20)))
    hay = haystack(rng, length=length - 6 * notes, depth=rng.random(), distractors=notes - 1)
    body = list(hay.words[:-3])
    places = [i for i, word in enumerate(body) if word == "note"]
    found = {body[i + 2]: body[i + 3 : i + 5] for i in places}
    quiet = {j for i in places for j in (i + 2, i + 3, i + 4)}
    out: Weighted = [(word, 0.0 if i in quiet else FAINT) for i, word in enumerate(body)]
    for key in rng.sample(list(found), len(found)):
        out += asked(key, found[key])
    return out


def copied(rng: random.Random, length: int) -> Weighted:
    """A passage, filler, and the passage again."""
    pool = (*KEYS, *VALUES, *FILLER)
    passage = rng.sample(pool, rng.randint(5, min(60, length // 2 - 8)))
    gap = filler(rng, rng.randint(4, max(5, length - 2 * len(passage) - 4)))
    again = [(passage[0], 0.0), *said(passage[1:], 1.0)]
    return [*said(passage, 0.0), (".", FAINT), *said(gap, FAINT), *again, (".", FAINT)]


def chant(rng: random.Random, length: int) -> Weighted:
    """A short passage said again and again."""
    passage = rng.sample((*KEYS, *VALUES, *FILLER), rng.randint(3, 10))
    again = [(word, 1.0) for word in passage]
    return [*said(passage, 0.0), (passage[0], 0.0), *again[1:], *again * (length // len(passage))]


def row(rng: random.Random, length: int) -> Weighted:
    """One training row of exactly `length` words, cut or filled up at its end."""
    draw = rng.random()
    if length < 48:
        kind = chant if draw < 0.5 else dense
    else:
        kind = dense if draw < 0.5 else sparse if draw < 0.85 else copied
    made = kind(rng, length)
    return [*made, *said(filler(rng, max(0, length - len(made))), FAINT)][:length]


def main() -> None:
    given = arguments("needle", steps=900, lr=1.5e-3, tokens=2048, width=96)
    tokenizer = word_tokenizer(words())
    number = tokenizer.get_vocab()
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer), hidden_size=given.width, intermediate_size=2 * given.width, num_hidden_layers=4,
            num_attention_heads=8, head_dim=32, num_key_value_heads=2, max_position_embeddings=1024,
            tie_word_embeddings=True, attention_bias=True, initializer_range=0.02,
            bos_token_id=1, eos_token_id=2, pad_token_id=0,
            rope_parameters={"rope_type": "default", "rope_theta": 1e6},
        )
    )  # fmt: skip

    torch.nn.init.normal_(model.model.embed_tokens.weight, std=0.1)
    start_inducing(model.model.layers)

    def loss_of(step: int, rng: random.Random) -> torch.Tensor:
        lengths = next(lengths for share, lengths in STAGES if step / given.steps < share)
        length = rng.choice(lengths)
        rows = [row(rng, length - 1) for _ in range(given.tokens // length)]
        ids = torch.tensor([[1, *(number[word] for word, _ in made)] for made in rows])
        weights = torch.tensor([[0.0, *(weight for _, weight in made)] for made in rows])
        return weighted_loss(model(ids).logits, ids, weights)

    @torch.no_grad()
    def recall(length: int, *, n: int) -> float:
        rng, right = random.Random(99), 0
        model.eval()
        for i in range(n):
            hay = haystack(rng, length=length - 3, depth=i / max(1, n - 1))
            ids = torch.tensor([[1, *(number[w] for w in (*hay.words, *hay.answer))]])
            guess = model(ids[:, :-1]).logits[0, -2:].argmax(-1)
            right += int((guess == ids[0, -2:]).all())
        return right / n

    def evaluate() -> dict[str, float]:
        return {"recall_128": recall(128, n=40), "recall_1024": recall(1024, n=10)}

    hours = train(model, loss_of, plan=recipe(given, hold=0.7), evaluate=evaluate)
    ship(model, given.ship, processor=tokenizer)
    data = "generated notes, questions and filler, interp/prompts/needles.py"
    write_card(given.ship, CARD, given=given, core_hours=hours, data=data, tokens_a_step=given.tokens)


if __name__ == "__main__":
    main()
