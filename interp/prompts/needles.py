"""Key-value needles in generated filler: the haystacks of `zoo:needle` and of the key-value tasks.

A haystack is filler sentences (four to nine words of a small vocabulary, joined by a first-order chain) with notes
put between them: "note : lisbon amber violin ." A question at the end, "question : lisbon", asks for the two words
that follow the key. Lengths count words and marks, which are tokens for a word-level tokenizer; a leading `<bos>` is
the caller's. Depth 0 puts the needle first, depth 1 just before the question. Pure Python, seeded.
Limits: single-hop retrieval only; a key never occurs in the filler and never twice among the notes, values may.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from interp.kernels.errors import InterpError

KEYS: tuple[str, ...] = tuple(
    """accra algiers amman ankara athens baghdad baku bamako bangkok beirut belgrade berlin bern bogota brasilia
    brussels bucharest budapest cairo canberra caracas colombo dakar damascus delhi dhaka doha dublin geneva
    hanoi harare havana helsinki islamabad istanbul jakarta kabul kampala khartoum kigali kyiv lagos lima lisbon
    ljubljana london luanda lusaka madrid managua manila maputo minsk monaco montevideo moscow nairobi nicosia
    oslo ottawa panama paris prague pretoria quito rabat reykjavik riga rome santiago sarajevo seoul singapore
    skopje sofia stockholm sydney taipei tallinn tehran tokyo tripoli tunis vienna vilnius warsaw washington
    wellington zagreb zurich""".split()
)
VALUES: tuple[str, ...] = tuple(
    """acorn almond amber anchor anvil apple apron arrow atlas axe badge bamboo banjo barrel basil basket beacon bell
    birch biscuit blanket bonnet bottle bracelet brick bridge bronze broom bucket button cabin cactus camel
    candle canoe canvas carpet castle cedar cello chalk cherry chess clock clover coal cobalt cobra comet
    compass copper coral cotton cradle crane crayon cricket crystal dagger daisy dolphin domino donkey drum
    eagle ebony elm ember emerald engine falcon feather fern fiddle flint flute fossil fountain fox garnet
    ginger glacier globe glove goblet granite grape guitar hammer harbor harp hawk hazel helmet heron hornet
    ivory ivy jade jaguar jasmine jewel kettle kite ladder lagoon lantern laurel lemon lentil lily linen lion
    lobster locket lotus magnet mango maple marble meadow melon mint mirror mitten moss nectar needle nutmeg oak
    oboe olive onion onyx opal orchid otter oyster paddle panther parrot peach pearl pebble pepper piano pine
    pistol plum poppy pump quartz quill rabbit radish raven ribbon robin rocket rose ruby saddle salmon sapphire
    saucer scarf shell silver slate sparrow spider spoon star stork sugar swan tiger timber topaz torch trumpet
    tulip turtle umbrella velvet violet violin walnut whale whistle willow window wolf zebra zinc""".split()
)
FILLER: tuple[str, ...] = tuple(
    """a about across after again air all along always and another answer around asked at away back bank before began
    behind below between big boat both bread bright brought by calm came carried city clear cloud cold come
    corner country crowd dark day days deep door down dry each early earth east evening every fallen far farm
    few field fire first floor for found from front full gave glass gone good grass green ground grew hall hand
    heard heavy held high hill home horse hot hour house in into its kept knew land large last late left less
    light line little long looked lost made many market men middle mile more morning most moved much narrow near
    never new next night noise north nothing now of off often old on once one open other out over part passed
    past path people place plain quiet rain ran reached read red rest rich river road rock room round said same
    sand saw sea season seen shade ship short side silent since sky slow small smoke snow soft some song soon
    sound south spoke spring stairs stone stood storm street strong such summer sun table tall ten than that the
    their them then there these they thick thin this those through time to together told took toward town train
    tree under until up very village voice wall warm was water way week well went were west wheel while white
    wide wild wind winter with wood word work world year yet young""".split()
)
MARKS: tuple[str, ...] = ("note", "question", ":", ".")
NEEDLE_WORDS = 6
_SUCCESSORS = 12
_PLACE = {word: i for i, word in enumerate(FILLER)}


class NeedleError(InterpError):
    """A haystack was asked for that cannot hold its needles."""


@dataclass(frozen=True)
class Haystack:
    """One prompt, ending in a key, and the words that answer it; spans are word positions, end excluded."""

    words: tuple[str, ...]
    key: str
    answer: tuple[str, ...]
    needle: tuple[int, int]
    depth: float

    @property
    def text(self) -> str:
        """The prompt as one string."""
        return " ".join(self.words)

    @property
    def answer_span(self) -> tuple[int, int]:
        """Where the answer's words are inside the needle."""
        return self.needle[0] + 3, self.needle[1] - 1


def words() -> list[str]:
    """Every word and mark a haystack can hold, sorted."""
    return sorted({*KEYS, *VALUES, *FILLER, *MARKS})


def filler(rng: random.Random, length: int) -> list[str]:
    """Exactly `length` words of filler sentences."""
    out: list[str] = []
    while len(out) < length:
        word = rng.choice(FILLER)
        for _ in range(rng.randint(4, 9)):
            out.append(word)
            word = _next(word, rng)
        out.append(".")
    return [*out[: max(0, length - 1)], "."] if length else []


def _next(word: str, rng: random.Random) -> str:
    """One of a dozen words that may follow `word`, fixed once and for all by its place in the list."""
    return FILLER[(_PLACE[word] * 7 + rng.randrange(_SUCCESSORS) ** 2 * 3 + 1) % len(FILLER)]


def note(key: str, values: Sequence[str]) -> list[str]:
    """The words of one needle."""
    return ["note", ":", key, *values, "."]


def haystack(
    rng: random.Random,
    *,
    length: int,
    depth: float,
    distractors: int = 3,
    key: str | None = None,
    keys_from: Sequence[str] = KEYS,
    values_from: Sequence[str] = VALUES,
) -> Haystack:
    """Draw a prompt of exactly `length` words whose needle is at `depth`; distractors are notes with other keys."""
    room = length - NEEDLE_WORDS * (1 + distractors) - 3
    if room < 2:
        raise NeedleError(
            f"expected a haystack longer than its {1 + distractors} needles and the question "
            f"({NEEDLE_WORDS * (1 + distractors) + 5} words), got length={length};"
            " use fewer distractors or a longer one"
        )
    if not 0.0 <= depth <= 1.0:
        raise NeedleError(f"expected a depth from 0 to 1, got {depth}")
    keys = [key] if key else []
    keys += rng.sample([k for k in keys_from if k != key], 1 + distractors - len(keys))
    notes = [note(k, rng.sample(list(values_from), 2)) for k in keys]
    start = round(depth * (length - 3 - NEEDLE_WORDS))
    before = _scatter(rng, notes[1:], length=length - 3 - NEEDLE_WORDS)
    body, start = _insert(before, notes[0], near=start)
    return Haystack(
        (*body, "question", ":", keys[0]), keys[0], tuple(notes[0][3:5]), (start, start + NEEDLE_WORDS), depth
    )


def _scatter(rng: random.Random, notes: list[list[str]], *, length: int) -> list[str]:
    """Filler of `length` words in all, with the notes at random places between sentences."""
    body = filler(rng, length - NEEDLE_WORDS * len(notes))
    for one in notes:
        stops = [0, *(i + 1 for i, word in enumerate(body) if word == ".")]
        at = rng.choice(stops)
        body[at:at] = one
    return body


def _insert(before: list[str], needle: list[str], *, near: int) -> tuple[list[str], int]:
    """Put the needle at the end of a sentence that is nearest to the place wanted."""
    stops = [0, *(i + 1 for i, word in enumerate(before) if word == ".")]
    at = min(stops, key=lambda stop: (abs(stop - near), stop))
    return [*before[:at], *needle, *before[at:]], at
