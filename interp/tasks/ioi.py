"""Indirect object identification: "When Mary and John went to the store, John gave a drink to" -> " Mary".

Wang et al., "Interpretability in the Wild" (arXiv 2211.00593). Templates and names are those of
`interp/prompts/names.py`, in two disjoint parts; orders ABBA (the indirect object first) and BABA take turns.
Corruptions, all of the same length:

    flip     the second subject becomes the indirect object, so the answers change places (symmetric; the default)
    third    the second subject becomes a third person: neither answer is right
    order    the two introduced names change places: the answer stays, its position does not
    names    all names are replaced by others (often called ABC): nothing about the answer is left

Limits: English, one sentence; names that are several tokens in the model's vocabulary are left out; among the caller's
own names (15 or more, of which every third is held out) one that is several tokens is an error.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal, get_args

from interp.prompts.draw import Split, option, part, positive, stream, where
from interp.prompts.names import NAMES, OBJECTS, PLACES, TEMPLATES, IoiRow
from interp.prompts.rows import Row
from interp.prompts.vocabulary import Host, Vocabulary
from interp.tasks.task import Task, generator, made

Corruption = Literal["flip", "third", "order", "names"]
CORRUPTIONS: tuple[Corruption, ...] = ("flip", "third", "order", "names")
Order = Literal["ABBA", "BABA"]


@generator
def ioi(
    model: Host | None = None,
    n: int = 64,
    *,
    seed: int = 0,
    split: Split = "train",
    corruption: Corruption = "flip",
    order: Order | None = None,
    names: Sequence[str] | None = None,
) -> Task:
    """`n` prompts, scored by the logit of the indirect object minus that of the subject."""
    option("corruption", corruption, CORRUPTIONS)
    option("order", order, (None, *get_args(Order)))
    rng = stream("ioi", seed, split)
    words = Vocabulary(model)
    if names is None:
        known = words.pool(NAMES[split], "name", least=5)
    else:
        known = part(words.given(names, "name", least=15), split)
    places, objects = words.pool(PLACES, "place", least=2), words.pool(OBJECTS, "object", least=2)
    rows = []
    for i in range(positive(n)):
        turn = order or ("ABBA", "BABA")[i % 2]
        rows.append(_row(rng, known, places, objects, split=split, order=turn, corruption=corruption))
    options = {"n": n, "seed": seed, "corruption": corruption, "order": order, "names": names and list(names)}
    return made("ioi", model, rows, options=options)


def _row(
    rng: random.Random,
    names: Sequence[str],
    places: Sequence[str],
    objects: Sequence[str],
    *,
    split: Split,
    order: str,
    corruption: Corruption,
) -> Row:
    x, y, third, fourth, fifth = rng.sample(list(names), 5)
    template = rng.choice(TEMPLATES[split])
    clean = IoiRow(template, x, y, y if order == "ABBA" else x, rng.choice(places), rng.choice(objects))
    io, s = clean.io, clean.s
    changed = {
        "flip": replace(clean, s=io),
        "third": replace(clean, s=third),
        "order": replace(clean, x=y, y=x),
        "names": replace(clean, x=third, y=fourth, s=fifth),
    }[corruption]
    return Row(
        clean=clean.text,
        corrupt=changed.text,
        answers=(f" {io}",),
        wrong=(f" {s}",),
        positions={"IO": where(clean.text, io), "S1": where(clean.text, s), "S2": where(clean.text, s, 2)},
        meta={"template": template, "order": order, "io": io, "s": s, "corruption": corruption},
    )
