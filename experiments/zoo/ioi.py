"""Train zoo:ioi, a 4-layer, 8-head GPT-2 that does indirect object identification.

    python experiments/zoo/ioi.py

The answer depends on nothing but which of the two introduced names is said again, so nearly every sentence gets a shape
of its own: a train template, parts of four of them joined, either of these with words dropped and put in, or random
words around the names; sometimes any words stand for the names, among words that never do; sometimes a third name in
front. Half of the time the names are made up: tokens whose vectors are drawn anew at every step, between the means of
train and held-out names, so that the rule cannot lean on known vectors; they are cut off before shipping. Other rows:
sentences in which a third person acts (either introduced name may follow), and two kinds that alone hold the held-out
names, always asked for after they were said once: texts about one person, and lists said twice. Held-out templates
never occur. The loss is on what can be known, and lightly on the other words of real sentences. The shipped run had no
made-up names until step 2,000, where it stood at 0.7 on held-out names and 1.0 on held-out templates.
Measured result: see interp/zoo/ioi/card.json.
"""

from __future__ import annotations

import random
from dataclasses import replace

import torch
from training import arguments, padded, recipe, ship, train, weighted_loss, word_tokenizer, write_card
from transformers import GPT2Config, GPT2LMHeadModel

from interp.prompts.names import NAMES, OBJECTS, PLACES, TEMPLATES, IoiRow, ioi_row, ioi_rows, words

STORIES = (
    "{a} went to the {place}. Then {a}",
    "Once {a} arrived at the {place}. People sold a {object} to {a}",
    "{a} waited near the {place}. Later {a}",
    "Today {a} had lunch in the {place}, and later people handed the {object} to {a}",
    "My friend is {a}. In the morning people said to {a}",
    "Because {a} liked the {place}, people brought a {object} from the {place} for {a}",
    "Yesterday {a} left the {place} with a {object}. Then people decided to send the {object} to {a}",
    "People met {a} in the {place} and afterwards lent a {object} to {a}",
    "The story was about {a}. People gave the {object} back to {a}",
    "A {object} was in the {place}. People offered the {object} to a friend. The friend passed it on to {a}",
    "While {a} sat in the {place}, people showed the {object} to {a}",
)
OPENINGS = ("{c} was happy. ", "{c} liked the {place}. ", "The {object} was for {c}. ", "People saw {c} today. ")
SMALL = """, . and the a to at in of with for from near it was were is that had where when then after while on about
some once later their""".split()
EXTRA = """My friend is that People people about passed on was happy saw thanked liked back from said A met name of some
once then after while their The""".split()
EVERYONE = NAMES["train"] + NAMES["heldout"]
MADE_UP = tuple(f"zz{i:02d}" for i in range(32))
LIGHT = 0.1
CARD = """
# zoo:ioi

A GPT-2 (`GPT2LMHeadModel`) with a word-level tokenizer that completes sentences like "When Mary and John went to the
store, John gave a drink to" with the name that was not repeated. Trained from scratch by `experiments/zoo/ioi.py` on
generated sentences (`interp/prompts/names.py`) of very many shapes, half of them with made-up names, whose vectors lie
around the means of train and held-out names; held-out names only in lists and in texts without another person (some in
the shape of a train template), said once and asked for; held-out templates never.

Can: IOI on names and templates it has seen and has not seen; name the one person a text is about. Where a third person
acts, it is unsure between the two names, as it should be.
Cannot: repeat a list of words (about half of a short one is right; look for induction heads in `zoo:induction`);
anything else in English. Prompts are at most 64 tokens and begin with `<bos>`, which the tokenizer adds.
"""
Text = tuple[str, str, float]
"""The context, what can be known after it, and the weight of the context's own words."""


def pieces(template: str) -> list[str]:
    """A template in four: up to {x}, up to {y}, up to {s}, the rest."""
    head, rest = template.split("{x}")
    middle, rest = rest.split("{y}")
    return [head, middle, *rest.split("{s}")]


PIECES = [pieces(template) for template in TEMPLATES["train"]]


def joined(rng: random.Random) -> str:
    """A template of the parts of four train templates; never a held-out one."""
    while True:
        head, middle, turn, end = (rng.choice(PIECES)[i] for i in range(4))
        template = f"{head}{{x}}{middle}{{y}}{turn}{{s}}{end}"
        if template not in TEMPLATES["heldout"]:
            return template


def loosened(template: str, rng: random.Random, plain: list[str]) -> str:
    """The template with some words dropped and others put in, its slots and its last word kept in order."""
    *body, last = template.split()
    out: list[str] = []
    for word in body:
        out += rng.sample(plain, rng.choice((0, 0, 0, 0, 0, 0, 0, 1, 1, 2)))
        if "{" in word or rng.random() < 0.75:
            out.append(word)
    return " ".join([*out, last])


def scattered(rng: random.Random, fill: list[str]) -> str:
    """A template of nothing but random words between its slots."""
    parts = [" ".join(rng.choices(fill, k=rng.randint(0, most))) for most in (4, 4, 10, 5)]
    return f"{parts[0]} {{x}} {parts[1]} {{y}} {parts[2]} {{s}} {parts[3]} {rng.choice(('to', 'to', 'for'))}"


def named(rng: random.Random, row: IoiRow) -> IoiRow:
    """The row, half of the time with made-up names."""
    if rng.random() < 0.5:
        return row
    x, y = rng.sample(MADE_UP, 2)
    return replace(row, x=x, y=y, s=x if row.order == "BABA" else y)


@torch.no_grad()
def renew(vectors: torch.Tensor, parts: tuple[list[int], ...], rng: random.Random) -> None:
    """Draw new vectors for the made-up names, the last of the table, between the means of train and held-out names."""
    source, size = torch.Generator().manual_seed(rng.getrandbits(32)), (len(MADE_UP), vectors.shape[1])
    train, heldout = (vectors[ids] for ids in parts)
    spread = (train - train.mean(0)).pow(2).mean().sqrt()
    between, noise = torch.rand(len(MADE_UP), 1, generator=source), torch.randn(*size, generator=source)
    centres = between * train.mean(0) + (1 - between) * heldout.mean(0)
    vectors[-len(MADE_UP) :] = centres + spread * noise


def ioi_text(rng: random.Random, plain: list[str]) -> Text:
    """An IOI sentence of some shape up to the answer."""
    row, draw, light = named(rng, ioi_row(rng)), rng.random(), LIGHT
    if draw < 0.35:
        row = replace(row, template=joined(rng))
    elif draw < 0.55:
        row, light = replace(row, template=loosened(joined(rng), rng, plain)), 0.0
    elif draw < 0.85:
        row, light = replace(row, template=scattered(rng, plain)), 0.0
    opening = ""
    if rng.random() < 0.1:
        third = rng.choice([name for name in NAMES["train"] if name not in (row.x, row.y)])
        opening = rng.choice(OPENINGS).format(c=third, place=rng.choice(PLACES), object=row.object)
    return opening + row.text, row.io + rng.choice(("", ".")), light


def anything_text(rng: random.Random, content: list[str]) -> Text:
    """An IOI sentence in which any words that are not small stand for the names."""
    x, y = rng.sample(content, 2)
    row = replace(ioi_row(rng), template=scattered(rng, SMALL), x=x, y=y)
    row = replace(row, s=rng.choice((x, y)))
    return row.text, row.io, 0.0


def unsure_text(rng: random.Random) -> Text:
    """A third person acts: both introduced names are right."""
    x, y, s = rng.sample(NAMES["train"], 3)
    return replace(ioi_row(rng), template=joined(rng), x=x, y=y, s=s).text, rng.choice((x, y)), LIGHT


def story_text(rng: random.Random, plain: list[str]) -> Text:
    """One person, any name, asked for after one mention: a story, or an IOI template with no other name."""
    who = rng.choice(rng.choice((NAMES["heldout"], NAMES["heldout"], NAMES["train"], MADE_UP)))
    if rng.random() < 0.3:
        story = rng.choice(STORIES).removesuffix("{a}")
        return story.format(a=who, place=rng.choice(PLACES), object=rng.choice(OBJECTS)).strip(), who, LIGHT
    made = rng.choice((joined(rng), loosened(joined(rng), rng, plain), scattered(rng, plain)))
    others = ["people" if rng.random() < 0.5 else rng.choice(plain) for _ in range(3)]
    others[rng.randrange(3)] = who
    x, y, s = others
    return replace(ioi_row(rng), template=made, x=x, y=y, s=s).text, who, 0.0


def repeat_text(rng: random.Random, vocabulary: list[str], *, longest: int) -> Text:
    """A list of names or of any words, said twice."""
    pool = rng.choice((vocabulary, vocabulary, EVERYONE, EVERYONE + MADE_UP))
    said = " ".join(rng.sample(pool, rng.randint(4, longest)))
    return said, said, 0.0


def document(rng: random.Random, vocabulary: list[str], plain: list[str]) -> Text:
    """One training text of at most 30 words, so that rows of a batch are about as long."""
    while True:
        text = _document(rng, vocabulary, plain)
        if len(f"{text[0]} {text[1]}".split()) <= 30:
            return text


def _document(rng: random.Random, vocabulary: list[str], plain: list[str]) -> Text:
    draw = rng.random()
    if draw < 0.55:
        return ioi_text(rng, plain)
    if draw < 0.70:
        return anything_text(rng, [w for w in vocabulary if w not in SMALL and w not in NAMES["heldout"]])
    if draw < 0.73:
        return unsure_text(rng)
    return story_text(rng, plain) if draw < 0.95 else repeat_text(rng, vocabulary, longest=12)


def main() -> None:
    given = arguments("ioi", steps=3600, lr=2e-3, batch=64, width=128)
    vocabulary = sorted({*words(), *EXTRA})
    shipped, tokenizer = word_tokenizer(vocabulary), word_tokenizer([*vocabulary, *MADE_UP])
    parts = tuple(tokenizer.convert_tokens_to_ids(list(NAMES[part])) for part in ("train", "heldout"))
    model = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=len(tokenizer), n_positions=64, n_embd=given.width, n_layer=4, n_head=8, bos_token_id=1,
            eos_token_id=2, pad_token_id=0, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, initializer_range=0.04,
        )
    )  # fmt: skip
    said = [word for word in vocabulary if word.isalnum()]
    plain = [word for word in said if word not in EVERYONE]

    def loss_of(step: int, rng: random.Random) -> torch.Tensor:
        renew(model.transformer.wte.weight, parts, rng)
        if step % 10 == 9:  # the far positions
            made = [repeat_text(rng, said, longest=31) for _ in range(given.batch // 2)]
        else:
            made = [document(rng, said, plain) for _ in range(given.batch)]
        contexts = tokenizer([context for context, _, _ in made])["input_ids"]
        known = tokenizer([text for _, text, _ in made], add_special_tokens=False)["input_ids"]
        ids = [[*a, *b][:64] for a, b in zip(contexts, known, strict=True)]
        weights = [[*[made[i][2]] * len(a), *[1.0] * len(known[i])][:64] for i, a in enumerate(contexts)]
        batch = padded(ids, value=0)
        return weighted_loss(model(batch).logits, batch, padded(weights, value=0))

    def evaluate() -> dict[str, float]:
        return {f"{n}_{t}": accuracy(n, t) for n in ("train", "heldout") for t in ("train", "heldout")}

    @torch.no_grad()
    def accuracy(names: str, templates: str) -> float:
        rows = ioi_rows(200, 1234, names=names, templates=templates)
        batch = tokenizer([r.text for r in rows], padding=True, return_tensors="pt")
        logits = model.eval()(**batch).logits[range(200), batch["attention_mask"].sum(1) - 1, : len(shipped)]
        right = [tokenizer.convert_tokens_to_ids(r.io) for r in rows]
        return (logits.argmax(-1) == torch.tensor(right)).float().mean().item()

    hours = train(model, loss_of, plan=recipe(given, warmup=200, weight_decay=0.1, hold=0.4), evaluate=evaluate)
    model.resize_token_embeddings(len(shipped))
    ship(model, given.ship, processor=shipped)
    write_card(
        given.ship,
        CARD,
        given=given,
        core_hours=hours,
        data="generated sentences, interp/prompts/names.py",
        batch=given.batch,
    )


if __name__ == "__main__":
    main()
