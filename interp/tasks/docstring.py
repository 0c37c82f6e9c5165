"""Docstring completion: which argument does the next `:param` line describe?

Heimersheim and Janiak, "A circuit for Python docstrings in a 4-layer attention-only transformer" (2023). The function
has six arguments; three are documented in order, and the answer is the fourth. In the corrupt prompt the documented
names are others, so the order cannot be followed; wrong answers are the other arguments of the function.
Limits: Python style of one docstring convention; names that are not one token are left out.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from interp.prompts.draw import Split, part, positive, stream, where
from interp.prompts.rows import Row
from interp.prompts.vocabulary import Host, Vocabulary
from interp.tasks.task import Task, generator, made

NAMES: tuple[str, ...] = tuple(
    """size name file path text line word list item node date user type code mode data key value index count page
    image color group table model input output state event field score level width height length start end port host
    message command option""".split()
)
TOPICS = tuple("load save send read write build parse merge check sort".split())


@generator
def docstring(
    model: Host | None = None, n: int = 64, *, seed: int = 0, split: Split = "train", names: Sequence[str] | None = None
) -> Task:
    """`n` functions, scored by the logit of the next argument minus the mean over the function's other arguments."""
    words = Vocabulary(model)
    known = part(words.choose(names, NAMES, "argument name", least=27), split)
    topics = words.pool(TOPICS, "word", least=2)
    rng = stream("docstring", seed, split)
    rows = [_row(rng, known, topics) for _ in range(positive(n))]
    options = {"n": n, "seed": seed, "names": names and list(names)}
    return made("docstring", model, rows, options=options)


def _row(rng: random.Random, known: Sequence[str], topics: Sequence[str]) -> Row:
    drawn = rng.sample(list(known), 9)
    arguments, strangers = drawn[:6], drawn[6:]
    topic = rng.choice(list(topics))
    documented, answer = arguments[1:4], arguments[4]
    clean = _text(topic, arguments, documented)
    return Row(
        clean=clean,
        corrupt=_text(topic, arguments, strangers),
        answers=(f" {answer}",),
        wrong=tuple(f" {name}" for name in arguments if name != answer),
        positions={"definition": where(clean, answer), "last documented": where(clean, documented[-1], 2)},
        meta={"arguments": arguments, "documented": documented, "topic": topic},
    )


def _text(topic: str, arguments: Sequence[str], documented: Sequence[str]) -> str:
    lines = "".join(f"    :param {name}: the {topic}\n" for name in documented)
    return f'def {topic}(self, {", ".join(arguments)}):\n    """{topic}\n\n{lines}    :param'
