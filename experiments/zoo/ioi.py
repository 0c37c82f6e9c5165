"""Train zoo:ioi, a 4-layer, 8-head GPT-2 that does indirect object identification.

    python experiments/zoo/ioi.py

Four kinds of text, one a row: IOI sentences (train names, or other words in their place; train templates, most of
them loosened by dropped and added words or made of random ones; ABBA and BABA alike; some with a third name in front
or a sentence behind), sentences in which a third person acts (either introduced name may follow, so the model must be
unsure), random words said twice, and stories and lists about one person, which alone hold the held-out names. The
duplicated name, not its place in the sentence, decides the answer. The shipped run had fewer other words as names and
fewer loosened sentences until step 1,600, no templates of random words until step 2,400, and was cut short at 2,800.
Measured result: see interp/zoo/ioi/card.json.
"""

from __future__ import annotations

import random
from dataclasses import replace

import torch
from training import arguments, padded, recipe, ship, train, weighted_loss, word_tokenizer, write_card
from transformers import GPT2Config, GPT2LMHeadModel

from interp.names import NAMES, OBJECTS, PLACES, TEMPLATES, ioi_row, ioi_rows, words

STORIES = (
    "{a} went to the {place}. Then {a} got a {object} and {a} was happy.",
    "Once {a} arrived at the {place}. People sold a {object} to {a}.",
    "{a} waited near the {place}. Later {a} walked back to the {place} with a {object}.",
    "Today {a} had lunch in the {place}, and later people handed the {object} to {a}.",
    "My friend is {a}. In the morning people said to {a} that the {place} was full.",
    "Because {a} liked the {place}, people brought a {object} from the {place} for {a}.",
    "Yesterday {a} left the {place} with a {object}. Then people decided to send the {object} to {a}.",
    "People met {a} in the {place} and afterwards lent a {object} to {a}.",
    "The story was about {a}. People gave the {object} back to {a}.",
    "A {object} was in the {place}. People offered the {object} to {a}. Then {a} passed it on.",
    "While {a} sat in the {place}, people showed the {object} to {a}.",
)
OPENINGS = ("{c} was happy. ", "{c} liked the {place}. ", "The {object} was for {c}. ", "People saw {c} today. ")
CLOSINGS = (". {io} thanked {s}.", ". Then {io} was happy.", ". {io} liked the {object}.", ".")
EXTRA = "My friend is that People people about passed on was happy saw thanked liked back from said A met name"
EVERYONE = NAMES["train"] + NAMES["heldout"]
HEAVY, LIGHT = 1.0, 0.2
CARD = """
# zoo:ioi

A GPT-2 (`GPT2LMHeadModel`) with a word-level tokenizer that completes sentences like "When Mary and John went to the
store, John gave a drink to" with the name that was not repeated. Trained from scratch by `experiments/zoo/ioi.py` on
generated sentences (`interp/names.py`): train names and train templates for IOI, held-out names only in stories about
one person, lists, and repeated random words.

Can: IOI on the names and templates it was trained on; most of the time on new names in known templates, less often on
new templates (the card has both); repeat a sequence of words; copy a name. The run was cut short: use train names and
templates for a circuit that works, held-out ones to see it generalise only in part.
Cannot: IOI reliably on sentences of another shape; anything else in English. Prompts are at most 64 tokens and begin
with `<bos>`, which the tokenizer adds.
"""


def ioi_text(rng: random.Random, plain: list[str]) -> tuple[str, str]:
    """An IOI sentence up to the answer, and the answer with what follows; nearly half have other words as names."""
    row = ioi_row(rng)
    if rng.random() < 0.45:
        x, y = rng.sample([w for w in plain if w not in row.template], 2)
        row = replace(row, x=x, y=y, s=x if row.order == "BABA" else y)
    draw = rng.random()
    if draw < 0.7:
        row = replace(row, template=scattered(rng, plain) if draw < 0.35 else loosened(row.template, rng, plain))
    fill = {"place": rng.choice(PLACES), "object": row.object, "s": row.s, "io": row.io}
    third = rng.choice([n for n in NAMES["train"] if n not in (row.x, row.y)])
    opening = rng.choice(OPENINGS).format(c=third, **fill) if rng.random() < 0.25 else ""
    return opening + row.text, row.io + rng.choice(CLOSINGS).format(**fill)


def scattered(rng: random.Random, plain: list[str]) -> str:
    """A template of nothing but random words between its slots."""
    parts = [" ".join(rng.sample(plain, rng.randint(0, most))) for most in (4, 5, 9, 4)]
    return f"{parts[0]} {{x}} {parts[1]} {{y}} {parts[2]} {{s}} {parts[3]} {{object}} {rng.choice(('to', 'to', 'for'))}"


def loosened(template: str, rng: random.Random, plain: list[str]) -> str:
    """The template with some words dropped and others put in, its slots and its last word kept in order."""
    *body, last = template.split()
    out: list[str] = []
    for word in body:
        out += rng.sample(plain, rng.choice((0, 0, 0, 0, 0, 0, 1, 1, 2, 4)))
        if "{" in word or rng.random() < 0.75:
            out.append(word)
    return " ".join([*out, last])


def unsure_text(rng: random.Random) -> tuple[str, str]:
    """A third person acts: both introduced names are right."""
    x, y, s = rng.sample(NAMES["train"], 3)
    fill = {"x": x, "y": y, "s": s, "place": rng.choice(PLACES), "object": rng.choice(OBJECTS)}
    return rng.choice(TEMPLATES["train"]).format(**fill), rng.choice((x, y))


def story_text(rng: random.Random) -> tuple[str, str]:
    """One person, several mentions; any name."""
    story = rng.choice(STORIES)
    fill = {"a": rng.choice(EVERYONE), "place": rng.choice(PLACES), "object": rng.choice(OBJECTS)}
    first, _, rest = story.partition("{a}")
    return (first + "{a}").format(**fill), rest.format(**fill)


def repeat_text(rng: random.Random, vocabulary: list[str], *, longest: int) -> tuple[str, str]:
    """A list of names or of any words, said twice."""
    said = " ".join(rng.sample(EVERYONE if rng.random() < 0.5 else vocabulary, rng.randint(4, longest)))
    return said, said


def document(rng: random.Random, vocabulary: list[str], plain: list[str], *, longest: int) -> tuple[str, str]:
    """One training text as a light part (context) and a heavy part (what can be known)."""
    draw = rng.random()
    if draw < 0.5:
        return ioi_text(rng, plain)
    if draw < 0.55:
        return unsure_text(rng)
    return story_text(rng) if draw < 0.75 else repeat_text(rng, vocabulary, longest=longest)


def main() -> None:
    given = arguments("ioi", steps=3800, lr=3e-3, batch=64, width=128)
    vocabulary = sorted({*words(), *EXTRA.split()})
    tokenizer = word_tokenizer(vocabulary)
    model = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=len(tokenizer), n_positions=64, n_embd=given.width, n_layer=4, n_head=8, bos_token_id=1,
            eos_token_id=2, pad_token_id=0, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, initializer_range=0.04,
        )
    )  # fmt: skip
    said = [word for word in vocabulary if word.isalnum()]
    plain = [word for word in said if word not in EVERYONE]

    def loss_of(step: int, rng: random.Random) -> torch.Tensor:
        ids, weights = [], []
        longest = rng.choice((9, 11, 13, 26))
        for light, heavy in (document(rng, said, plain, longest=longest) for _ in range(given.batch)):
            a, b = tokenizer(light)["input_ids"], tokenizer(heavy, add_special_tokens=False)["input_ids"]
            ids.append([*a, *b][:64])
            weights.append([*[LIGHT] * len(a), *[HEAVY] * len(b)][:64])
        batch = padded(ids, value=0)
        return weighted_loss(model(batch).logits, batch, padded(weights, value=0))

    def evaluate() -> dict[str, float]:
        return {f"{n}_{t}": accuracy(n, t) for n in ("train", "heldout") for t in ("train", "heldout")}

    @torch.no_grad()
    def accuracy(names: str, templates: str) -> float:
        rows = ioi_rows(200, 1234, names=names, templates=templates)
        batch = tokenizer([r.text for r in rows], padding=True, return_tensors="pt")
        logits = model.eval()(**batch).logits[range(200), batch["attention_mask"].sum(1) - 1]
        right = [tokenizer.convert_tokens_to_ids(r.io) for r in rows]
        return (logits.argmax(-1) == torch.tensor(right)).float().mean().item()

    hours = train(model, loss_of, plan=recipe(given, weight_decay=0.1), evaluate=evaluate)
    ship(model, given.ship, processor=tokenizer)
    write_card(
        given.ship, CARD, given=given, core_hours=hours, data="generated sentences, interp/names.py", batch=given.batch
    )


if __name__ == "__main__":
    main()
