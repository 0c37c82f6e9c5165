"""A task is a value: pairs of prompts that differ in one thing, what the model should say, and how it is judged.

Rows are texts (or ids, or texts with a picture); put on a model they become inputs, a metric and positions:
`.clean .corrupt .answers .wrong .metric .positions .meta`. Clean and corrupt have the same number of tokens in every
row, and answers are one token each, or are teacher-forced as a whole; anything else is an error. A model without logits
is asked with `score="similarity"`: the answer is then another text whose vector the clean one's should be near to,
nearer than to the wrong text's (no answer: its own clean vector), and `reads` says which vector that is.
`.heldout` is the same question with other names and templates, `.filter()` keeps the rows the model gets right and says
how many, `.in_chat()` puts them into a chat. Cost: none but `filter`, one forward pass over the clean prompts, and one
over the answers of a similarity. Limits: one picture a row.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from interp.hooks.anatomy.lengths import longest
from interp.hooks.html import Told
from interp.hooks.inputs.positions import Span
from interp.metrics.edited import scored
from interp.metrics.ids import Ids
from interp.metrics.places import Similarity
from interp.metrics.shipped import Accuracy, LogitDifference, LogProb, Probability, Reading, narrow, valid
from interp.prompts.rows import Place, Prompt, Reads, Recipe, Row, Score
from interp.prompts.vocabulary import Host, TaskError, Vocabulary
from interp.tasks import files

Made = TypeVar("Made", bound="Generator")

Generator = Callable[..., "Task"]
ASK = "Complete the text."
GENERATORS: dict[str, Generator] = {}
"""By name: what `task.heldout` asks for more rows."""


def generator(make: Made) -> Made:
    """Mark a function (model, n, ...) -> Task as a generator of tasks, found by its name."""
    known = GENERATORS.get(make.__name__)
    if known is not None and known.__module__ != make.__module__:
        raise TaskError(f"there is a generator {make.__name__!r} in {known.__module__} already: choose another name")
    GENERATORS[make.__name__] = make
    return make


@dataclass(frozen=True)
class Task(Told):
    """Rows, how they are scored, and the model they are put on, if any."""

    name: str
    """The name of the task."""
    rows: tuple[Row, ...]
    """The prompts with their answers."""
    score: Score = "difference"
    """What the metric is, such as "difference" of logits."""
    whole: bool = False
    """The first answer is appended to both prompts and scored token by token."""
    recipe: Recipe | None = None
    """How the rows were generated; None for rows from a file."""
    model: Host | None = field(default=None, compare=False, repr=False)
    """The model that the task is put on."""
    reads: Reads = ("final_norm", "mean")
    """What a similarity is of: a place in the model, and how its positions become one vector."""
    chat: str | None = None
    """What the user asks for, if the prompts are in the model's chat template."""

    def __post_init__(self) -> None:
        if not self.rows:
            raise TaskError(f"expected at least one row in the task {self.name!r}, got none")
        if self.score not in files.SCORES:
            raise TaskError(f"expected as score one of {', '.join(files.SCORES)}, got {self.score!r}")
        for i, row in enumerate(self.rows):
            _check_row(self, i, row)

    def __len__(self) -> int:
        return len(self.rows)

    def __repr__(self) -> str:
        where = "" if self.model is None else f" on {type(self.model.module).__name__}"
        return f"Task({self.name!r}, {len(self)} rows, scored by {self.score}{where})"

    def on(self, model: Host) -> Task:
        """The task put on a model, everything checked."""
        task = replace(self, model=model)
        _check_fit(task)
        return task

    def in_chat(self, ask: str = ASK) -> Task:
        """The same rows in the chat template of a model that was trained on one: `ask` from the user, and each prompt
        as the beginning of an answer that the model goes on with."""
        if any(not isinstance(row.clean, str) or row.image is not None for row in self.rows):
            raise TaskError(f"the task {self.name!r} has prompts of ids or pictures; a chat begins an answer of text")
        task = replace(self, chat=ask)
        return task if self.model is None else task.on(self.model)

    def take(self, rows: Sequence[int]) -> Task:
        """The task of those rows."""
        return replace(self, rows=tuple(self.rows[i] for i in rows))

    @property
    def answers(self) -> tuple[tuple[str | int, ...], ...]:
        """What counts as right, a tuple a row."""
        return tuple(row.answers for row in self.rows)

    @property
    def wrong(self) -> tuple[tuple[str | int, ...], ...]:
        """What it is compared with."""
        return tuple(row.wrong for row in self.rows)

    @property
    def meta(self) -> tuple[Mapping[str, Any], ...]:
        """What is known about each row."""
        return tuple(row.meta for row in self.rows)

    @cached_property
    def clean(self) -> Any:
        """The inputs the model should get right; without a model, the prompts."""
        return self._prepared([row.clean for row in self.rows], [row.image for row in self.rows])

    @cached_property
    def corrupt(self) -> Any:
        """The inputs that differ in one thing; without a model, the prompts."""
        images = [row.image if row.corrupt_image is None else row.corrupt_image for row in self.rows]
        return self._prepared([row.corrupt for row in self.rows], images)

    def _prepared(self, prompts: list[Prompt], images: list[Any]) -> Any:
        if self.model is None:
            return prompts
        pictures = {} if images[0] is None else {"images": images}
        if not any(prompts):
            return self.model.prepare(None, **pictures)
        given: list[Any] = [list(p) if isinstance(p, tuple) else p for p in prompts]
        more: dict[str, Any] = {} if isinstance(prompts[0], tuple) else {"chat": False}
        if self.chat is not None:
            user = {"role": "user", "content": self.chat}
            given = [[user, {"role": "assistant", "content": prompt}] for prompt in prompts]
            more["chat"] = {"continue_final_message": True}
        if self.whole:
            more["continuation"] = [list(ids) for ids in self.answer_ids]
        return self.model.prepare(given, **pictures, **more)

    @cached_property
    def vocabulary(self) -> Vocabulary:
        """The words of the model."""
        if self.model is None:
            raise TaskError(f"the task {self.name!r} is on no model: use task.on(model)")
        return Vocabulary(self.model)

    @cached_property
    def answer_ids(self) -> Ids:
        """Ids of the right answers: one each, or the whole first answer where it is teacher-forced."""
        if self.whole:
            return tuple(_whole(self.vocabulary, row.answers[0]) for row in self.rows)
        return _single(self.vocabulary, self.answers)

    @cached_property
    def wrong_ids(self) -> Ids:
        """Ids of the wrong answers."""
        return _single(self.vocabulary, self.wrong)

    @cached_property
    def metric(self) -> Reading | Similarity:
        """How a run of the task is judged."""
        if self.score == "similarity":
            return self._similarity()
        if self.whole or self.score == "logprob":
            return LogProb(self.answer_ids, forced=self.whole)
        if self.score == "difference":
            return LogitDifference(self.answer_ids, self.wrong_ids)
        if self.score == "probability":
            return Probability(self.answer_ids, self.wrong_ids if all(self.wrong) else None)
        return Accuracy(self.answer_ids, self._choices())

    def _similarity(self) -> Similarity:
        site, pool = self.reads
        unbound = Similarity(site, pool=pool)
        if self.model is None:
            raise TaskError(f"the task {self.name!r} is on no model: use task.on(model)")
        if not any(self.answers):
            return unbound.to(self.model, self.clean)
        said, other = ([row[0] for row in side] if all(side) else None for side in (self.answers, self.wrong))
        right, wrong = (None if texts is None else self.model.prepare(texts, chat=False) for texts in (said, other))
        return unbound.to(self.model, right, wrong)

    def _choices(self) -> Ids | None:
        if not all(self.wrong):
            return None
        return tuple(a + b for a, b in zip(self.answer_ids, self.wrong_ids, strict=True))

    @cached_property
    def positions(self) -> dict[str, Span]:
        """Where in the clean inputs each named thing is; corrupt inputs line up token by token."""
        names = dict.fromkeys(name for row in self.rows for name in row.positions)
        return {name: _span(self, name) for name in names}

    @property
    def heldout(self) -> Task:
        """The same question with other names and templates, from the same seed."""
        if self.recipe is None:
            raise TaskError(
                f"the task {self.name!r} was not generated here, so it has no held-out part: split its rows"
            )
        if self.recipe.generator not in GENERATORS:
            raise TaskError(
                f"no generator {self.recipe.generator!r} of tasks is known here: import the module that defines it"
            )
        generate = GENERATORS[self.recipe.generator]
        found = generate(self.model, **{**self.recipe.options, "split": "heldout"})
        return found if self.chat is None else found.in_chat(self.chat)

    def right(self, *, batch: int = 32) -> tuple[bool, ...]:
        """For each row, whether the model prefers a right answer on the clean side."""
        if self.model is None:
            raise TaskError(f"the task {self.name!r} is on no model: use task.on(model)")
        found: list[bool] = []
        for start in range(0, len(self), batch):
            part = self.take(range(start, min(start + batch, len(self))))
            near = self.score == "similarity"
            found += part._nearer() if near else part.right_in(self.model.run(part.clean)["logits"])
        return tuple(found)

    def _nearer(self) -> list[bool]:
        """Whether clean is nearer to the answer than to the wrong one, or, without wrong ones, than corrupt is."""
        model: Any = self.model
        clean = scored(model, self.clean, self.metric)
        return [bool(v) for v in clean > (0.0 if all(self.wrong) else scored(model, self.corrupt, self.metric))]

    def right_in(self, logits: Tensor) -> list[bool]:
        """The same from the logits of a run of the clean side that was made already."""
        if not self.whole:
            values: list[float] = Accuracy(self.answer_ids, self._choices())(logits, self.clean).tolist()
            return [value == 1.0 for value in values]
        assert isinstance(self.metric, Reading)
        said = narrow(logits, self.clean, self.metric).argmax(-1).tolist()
        return [tuple(row[: len(ids)]) == ids for row, ids in zip(said, self.answer_ids, strict=True)]

    def filter(self, model: Host | None = None) -> Task:
        """The rows the model gets right; prints how many there are."""
        task = self if model is None else self.on(model)
        rows = [i for i, right in enumerate(task.right()) if right]
        print(f"{self.name}: {len(rows)} of {len(self)} prompts are answered right and kept")
        if not rows:
            raise TaskError(f"the model gets none of the {len(self)} prompts of {self.name!r} right")
        return task.take(rows)

    def save(self, path: str | Path) -> Path:
        """Write JSONL: a head line, then one line a row; pictures go to a folder next to it."""
        head = (self.name, self.score, self.whole, self.recipe, self.reads, self.chat)
        return files.save(head, self.rows, Path(path))

    @staticmethod
    def load(path: str | Path, model: Host | None = None) -> Task:
        """Read what `save` wrote."""
        (name, score, whole, recipe, reads, chat), rows, lines = files.load(Path(path))
        if not rows:
            raise TaskError(f"{path}, line 2: expected at least one row, got none")
        for row, line in zip(rows, lines, strict=True):
            try:
                Task(name, (rows[0], row), score, whole, recipe, reads=reads, chat=chat)
            except TaskError as why:
                raise TaskError(f"{path}, line {line}: {why}") from why
        task = Task(name, rows, score, whole, recipe, reads=reads, chat=chat)
        return task if model is None else task.on(model)

    @staticmethod
    def from_frame(frame: Any, model: Host | None = None, *, name: str = "frame", score: Score | None = None) -> Task:
        """From a table with columns clean, corrupt, answer and, for a logit difference, wrong."""
        rows = files.from_frame(frame)
        chosen: Score = score or ("difference" if all(row.wrong for row in rows) else "logprob")
        task = Task(name, rows, chosen)
        return task if model is None else task.on(model)

    def to_frame(self) -> Any:
        """A table with the columns `from_frame` takes, and the meta data."""
        return files.to_frame(self.rows)


def made(
    generator: str,
    model: Host | None,
    rows: Sequence[Row],
    *,
    options: Mapping[str, Any],
    score: Score = "difference",
    whole: bool = False,
) -> Task:
    """The task a generator returns; options are what it was called with, without the split."""
    task = Task(generator, tuple(rows), score, whole, Recipe(generator, options))
    return task if model is None else task.on(model)


def _check_row(task: Task, index: int, row: Row) -> None:
    if task.score == "similarity":
        _check_similar(task, index, row)
    elif not row.answers:
        raise TaskError(f"row {index} of {task.name!r} has no answer")
    if task.score == "difference" and not task.whole and not row.wrong:
        raise TaskError(
            f"row {index} of {task.name!r} has no wrong answer, which a logit difference needs:"
            " give one, or score='logprob'"
        )
    for picture in (row.image, row.corrupt_image):
        mode = getattr(picture, "mode", "RGB")
        if mode != "RGB":
            raise TaskError(
                f"expected an RGB picture in row {index} of {task.name!r}, got mode {mode!r}: convert it first"
            )


def _check_similar(task: Task, index: int, row: Row) -> None:
    """Answers are texts, one a row, of all rows or of none, and there are no wrong ones without right ones."""
    for name, side in (("answer", row.answers), ("wrong", row.wrong)):
        if len(side) > 1 or not all(isinstance(one, str) for one in side):
            raise TaskError(f"a similarity is to one text: row {index} of {task.name!r} has as {name} {side!r}")
        if len(side) != len(getattr(task.rows[0], "answers" if name == "answer" else "wrong")):
            raise TaskError(f"row {index} of {task.name!r} and row 0 differ in whether there is a {name} text")
    if task.whole or (row.wrong and not row.answers):
        raise TaskError(
            f"row {index} of {task.name!r}: a similarity takes no whole=, and no wrong text without a right"
        )


def _check_fit(task: Task) -> None:
    """Answers, pictures, vocabulary and lengths, on the model."""
    assert task.model is not None
    _check_towers(task)
    if task.score != "similarity":
        _ = task.answer_ids, task.wrong_ids
    lengths = [_lengths(side) for side in (task.clean, task.corrupt)]
    for i, (clean, corrupt) in enumerate(zip(*lengths, strict=True)):
        if clean != corrupt:
            row = task.rows[i]
            raise TaskError(
                f"expected clean and corrupt of equal length, got {clean} and {corrupt} tokens in row {i} of"
                f" {task.name!r}: {row.clean!r} and {row.corrupt!r}"
            )
    _check_known(task)
    _check_room(task)


def _check_towers(task: Task) -> None:
    assert task.model is not None
    processor, name = task.model.processor, type(task.model.module).__name__
    sees = hasattr(processor, "image_processor") or hasattr(processor, "image_mean")
    if task.rows[0].image is not None and not sees:
        raise TaskError(
            f"the task {task.name!r} has pictures, and {name} has no vision tower (its processor takes none)"
        )
    if task.rows[0].clean and task.vocabulary.tokenizer is None and isinstance(task.rows[0].clean, str):
        raise TaskError(
            f"the task {task.name!r} is text, and {name} has no tokenizer: attach it with one, or use images"
        )


def _lengths(inputs: Any) -> list[int]:
    mask = inputs.kwargs.get("attention_mask")
    counted: list[int] = (inputs.valid if mask is None else mask.bool()).sum(1).tolist()
    return counted


def _check_known(task: Task) -> None:
    ids = task.clean.kwargs.get("input_ids")
    if ids is None:
        return
    mask = valid(task.clean.kwargs, *ids.shape)
    for i, (row, keep) in enumerate(zip(ids, mask, strict=True)):
        if task.vocabulary.unknown(row[keep].tolist()):
            raise TaskError(
                f"this tokenizer has no token for some words of row {i} of {task.name!r}: {task.rows[i].clean!r};"
                " the task is not made for this model's vocabulary"
            )


def _check_room(task: Task) -> None:
    """Learned positions end somewhere; rotary ones do not."""
    assert task.model is not None
    room, most = longest(getattr(task.model.module, "config", None), learned=True), max(_lengths(task.clean))
    if room is not None and most > room:
        raise TaskError(
            f"expected prompts of at most {room} tokens, which this model reads, got {most} in {task.name!r}"
        )


def _single(vocabulary: Vocabulary, rows: Sequence[Sequence[str | int]]) -> Ids:
    return tuple(tuple(vocabulary.single(word, "answer") for word in row) for row in rows)


def _whole(vocabulary: Vocabulary, answer: str | int) -> tuple[int, ...]:
    ids = vocabulary.ids(answer)
    if vocabulary.unknown(ids):
        raise TaskError(f"this tokenizer has no token for some of the answer {answer!r}")
    return ids


def _span(task: Task, name: str) -> Span:
    return Span(tuple(_row_span(task, i, row.positions.get(name)) for i, row in enumerate(task.rows)), name)


def _before(task: Task, index: int) -> str:
    """The text before the prompt of a row in a chat."""
    text, prompt = task.clean.texts[index], task.rows[index].clean
    if prompt not in text:
        raise TaskError(
            f"the chat template rewrites the prompt of row {index} of {task.name!r}, so nothing in it is found"
        )
    found: str = text[: text.rindex(prompt)]
    return found


def _row_span(task: Task, index: int, place: Place | None) -> tuple[int, int] | None:
    if place is None:
        return None
    first, second = place
    if isinstance(first, str):
        before = 0 if task.chat is None or second < 0 else _before(task, index).count(first)
        found: tuple[int, int] = task.clean.find(first, second + before, row=index).rows[index]
        return found
    real = task.clean.valid[index]
    start, count = int(torch.argmax(real.int())), int(real.sum())
    if not 0 <= first < second <= count:
        raise TaskError(
            f"expected positions inside the {count} tokens of row {index} of {task.name!r}, got {first} to {second}"
        )
    return start + first, start + second
