"""Names, places, objects and sentence templates for indirect object identification (IOI).

The sentences follow Wang et al., "Interpretability in the Wild" (arXiv 2211.00593): two people are introduced, one of
them (the subject, S) acts, and the last word asked for is the other one (the indirect object, IO). `{x}` and `{y}` are
the two introduced names, `{s}` the repeated one; ABBA means x is the IO, BABA means y is. Names and templates come in
two disjoint parts, train and held-out: `zoo:ioi` has seen held-out names only in lists and in texts without another
person (some in the shape of a train template), never as one of two, and held-out templates never. Pure Python, seeded,
no tokenizer: whether a name is one token is for the caller to check.
Limits: English first names, one sentence per prompt, subject and indirect object of either sex.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Literal

Split = Literal["train", "heldout"]
Order = Literal["ABBA", "BABA"]

NAMES: dict[str, tuple[str, ...]] = {
    "train": tuple(
        """Aaron Adam Alan Albert Alex Alice Amanda Amy Andrea Andrew Angela Ann Anna Anthony Arthur Barbara Ben Betty
        Blake Bob Brandon Brian Bruce Carl Carol Caroline Catherine Charles Charlie Chris Christian Christina Claire
        Clark Connor Crystal Daniel David Dean Dennis Diana Donald Dylan Edward Elizabeth Emily Emma Eric Erin Ethan
        Evan Frank Fred Gary George Graham Grant Greg Harry Heather Helen Henry Holly Howard Ian Jack Jacob Jake James
        Jamie Jane Jason Jay Jean Jeff Jennifer Jeremy Jerry Jessica Jim Joe John Jonathan Jordan Joseph Josh Julia
        Justin Karen Kate Katie Keith Kelly Ken Kevin Kim Kyle Laura Lauren Lee Leon Lewis Linda Lisa Louis Lucas Luke
        Margaret Maria Mark Martin Mary Matt Matthew""".split()
    ),
    "heldout": tuple(
        """Max Megan Michael Michelle Mike Morgan Nathan Neil Nicholas Nick Oliver Oscar Patrick Paul Peter Philip
        Rachel Ray Rebecca Richard Robert Roger Ruby Ryan Sam Samuel Sarah Scott Sean Simon Stephen Steve Susan Tom
        Victoria Vincent Walter William""".split()
    ),
}
PLACES: tuple[str, ...] = tuple(
    """store school park office garden station hospital library museum restaurant market beach house church
    theatre airport""".split()
)
OBJECTS: tuple[str, ...] = tuple(
    """drink ring book letter key ball hat computer necklace basketball bottle card coat cup flower gift kiss map note
    phone picture pen snack ticket toy watch""".split()
)

TEMPLATES: dict[str, tuple[str, ...]] = {
    "train": (
        "When {x} and {y} went to the {place}, {s} gave a {object} to",
        "Then, {x} and {y} went to the {place}. {s} gave a {object} to",
        "After {x} and {y} went to the {place}, {s} handed a {object} to",
        "While {x} and {y} were working at the {place}, {s} gave a {object} to",
        "Then, {x} and {y} were working at the {place}. {s} decided to give a {object} to",
        "Then, {x} and {y} had a long argument, and afterwards {s} said to",
        "When {x} and {y} got a {object} at the {place}, {s} decided to give the {object} to",
        "The {place} was full when {x} and {y} arrived. {s} sold a {object} to",
        "Today {x} met {y} at the {place}. {s} showed a {object} to",
        "{x} and {y} came back from the {place} with a {object}, and {s} gave it to",
        "In the morning {x} sat with {y} in the {place}, and {s} passed a {object} to",
        "Once {x} and {y} had lunch at the {place}, {s} brought a {object} to",
        "{x} wanted to see {y} at the {place}. Later {s} sent a {object} to",
        "At the {place}, {x} and {y} found a {object}. {s} offered the {object} to",
        "Friends {x} and {y} walked to the {place}, where {s} lent a {object} to",
        "As {x} and {y} left the {place}, {s} threw a {object} to",
        "Because {x} and {y} liked the {place}, {s} bought a {object} for",
        "Yesterday {x} waited for {y} near the {place}, and then {s} made a {object} for",
        "It was late when {x} and {y} found the {place}. {s} told a story to",
        "After the lunch, {x} and {y} went to the {place}, and {s} wrote a letter to",
    ),
    "heldout": (
        "Once {x} and {y} arrived at the {place}, {s} passed a {object} to",
        "Today {x} and {y} had lunch in the {place}, and later {s} handed the {object} to",
        "While {x} waited with {y} near the {place}, {s} offered a {object} to",
        "Yesterday {x} and {y} left the {place} with a {object}. Then {s} sold it to",
        "Because {x} met {y} in the morning, {s} brought a {object} from the {place} to",
        "{x} walked back to the {place} with {y}, where {s} showed the {object} to",
        "Friends {x} and {y} were at the {place} when {s} decided to send a {object} to",
        "In the {place}, {x} sat near {y}, and afterwards {s} lent a {object} to",
    ),
}


@dataclass(frozen=True)
class IoiRow:
    """One prompt: the template, its fillers, and which of the two introduced names is the indirect object."""

    template: str
    x: str
    y: str
    s: str
    place: str
    object: str

    @property
    def text(self) -> str:
        """The prompt, ending just before the indirect object."""
        return self.template.format(x=self.x, y=self.y, s=self.s, place=self.place, object=self.object)

    @property
    def io(self) -> str:
        """The introduced name that is not the subject (x when the subject is neither)."""
        return self.y if self.s == self.x else self.x

    @property
    def order(self) -> Order:
        """ABBA when the indirect object comes first, BABA when the subject does."""
        return "BABA" if self.s == self.x else "ABBA"


def ioi_row(
    rng: random.Random, *, names: Split = "train", templates: Split = "train", order: Order | None = None
) -> IoiRow:
    """Draw one prompt; the order is drawn too when it is not given."""
    x, y = rng.sample(NAMES[names], 2)
    chosen = order or rng.choice(("ABBA", "BABA"))
    return IoiRow(
        template=rng.choice(TEMPLATES[templates]),
        x=x,
        y=y,
        s=y if chosen == "ABBA" else x,
        place=rng.choice(PLACES),
        object=rng.choice(OBJECTS),
    )


def ioi_rows(
    n: int, seed: int, *, names: Split = "train", templates: Split = "train", order: Order | None = None
) -> list[IoiRow]:
    """Draw `n` prompts from one seed; orders alternate so that both are equally frequent unless one is asked for."""
    rng = random.Random(seed)
    orders: tuple[Order, ...] = (order,) if order else ("ABBA", "BABA")
    return [ioi_row(rng, names=names, templates=templates, order=orders[i % len(orders)]) for i in range(n)]


def words() -> list[str]:
    """Every word and mark these sentences can hold, sorted: what a word-level tokenizer needs."""
    text = " ".join(TEMPLATES["train"] + TEMPLATES["heldout"])
    for slot in ("{x}", "{y}", "{s}", "{place}", "{object}"):
        text = text.replace(slot, " ")
    plain = text.replace(",", " , ").replace(".", " . ").split()
    return sorted({*plain, *NAMES["train"], *NAMES["heldout"], *PLACES, *OBJECTS})
