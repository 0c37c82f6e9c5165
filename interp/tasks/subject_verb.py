"""Subject-verb agreement: "The keys near the cabinet" -> " are", not " is".

In the style of Linzen et al., "Assessing the Ability of LSTMs to Learn Syntax-Sensitive Dependencies" (arXiv
1611.01368), generated here. Structures: `simple` (the noun alone), `prepositional` (another noun between, of either
number), `relative` (a clause between). The corrupt prompt has the subject in the other number, so the answers change
places. Only nouns are used whose singular and plural are one token each.
Limits: regular English nouns; verbs that come in pairs of one token.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Literal

from interp.prompts.draw import Split, option, part, positive, stream, where
from interp.prompts.rows import Row
from interp.prompts.vocabulary import Host, Vocabulary
from interp.tasks.task import Task, generator, made

NOUNS: tuple[str, ...] = tuple(
    """key car book house teacher student doctor friend brother sister author player farmer painter driver picture
    letter window table horse bird dog boat ship train road city tree river mountain king girl boy son""".split()
)
VERBS = ((" is", " are"), (" was", " were"), (" has", " have"))
Structure = Literal["simple", "prepositional", "relative"]
TEXTS: dict[Structure, tuple[str, ...]] = {
    "simple": ("The {s}", "Yesterday we heard that the {s}", "Everyone knows that the {s}"),
    "prepositional": ("The {s} near the {o}", "The {s} behind the {o}", "We know that the {s} beside the {o}"),
    "relative": ("The {s} that the {o} saw", "The {s} that the {o} liked", "The {s} the {o} wanted"),
}


@generator
def subject_verb(
    model: Host | None = None,
    n: int = 64,
    *,
    seed: int = 0,
    split: Split = "train",
    structure: Structure = "prepositional",
    nouns: Sequence[str] | None = None,
) -> Task:
    """`n` sentences, half of them plural, scored by the logits of the verbs that agree minus those that do not."""
    option("structure", structure, tuple(TEXTS))
    words = Vocabulary(model)
    own = words.choose(nouns, NOUNS, "noun", least=6)
    known = part([noun for noun in own if words.is_single(f" {noun}s")], split)
    verbs = [pair for pair in VERBS if all(map(words.is_single, pair))]
    if len(known) < 2 or not verbs:
        words.given([f"{noun}s" for noun in own], "plural", least=6)
    rng = stream("subject_verb", seed, split)
    rows = [_row(rng, known, verbs, TEXTS[structure], plural=i % 2 == 1) for i in range(positive(n))]
    options = {"n": n, "seed": seed, "structure": structure, "nouns": nouns and list(nouns)}
    return made("subject_verb", model, rows, options=options)


def _row(
    rng: random.Random,
    nouns: Sequence[str],
    verbs: Sequence[tuple[str, str]],
    texts: Sequence[str],
    *,
    plural: bool,
) -> Row:
    subject, other = rng.sample(list(nouns), 2)
    other += rng.choice(("", "s"))
    text, one, many = rng.choice(list(texts)), subject, f"{subject}s"
    clean, corrupt = (many, one) if plural else (one, many)
    singular, plurals = tuple(pair[0] for pair in verbs), tuple(pair[1] for pair in verbs)
    return Row(
        clean=text.format(s=clean, o=other),
        corrupt=text.format(s=corrupt, o=other),
        answers=plurals if plural else singular,
        wrong=singular if plural else plurals,
        positions={"subject": where(text.format(s=clean, o=other), clean)},
        meta={"subject": subject, "other": other, "plural": plural, "text": text},
    )
