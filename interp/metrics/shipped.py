"""What a run is judged by: frozen callables `(logits, inputs) -> [batch]`; higher is more of the behaviour studied.

Any callable of that form will do. The shipped ones also say what they read, so that an engine need compute no more:
`positions` ("last", or places per row, negative ones counted from the last valid token), `columns` (vocabulary ids in
ascending order, or None for all of them), `reference`. `metric(logits, inputs)` takes full logits
[batch, position, vocabulary] (or [batch, class]) and is `metric.score(narrow(logits, inputs, metric))`; an engine that
computed only the cells read calls `score` with [batch, read position, read column] itself. `metric.take(rows)` is the
metric of those rows, in that order, repeats allowed. Computed in float32 (float64 stays); padding is never read.
Answers are ids or words, of every row or a row each (`interp/metrics/ids.py`).
Limits: a row's answers must be single tokens except for a teacher-forced LogProb.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp.metrics.ids import (
    Answers,
    EveryRow,
    Ids,
    MetricError,
    as_many,
    below,
    chosen,
    from_zero,
    has_words,
    known,
    listed,
    nonempty,
    of_rows,
    taken,
    union,
)

M = TypeVar("M", bound="Reading")
Positions = Literal["last"] | tuple[tuple[int, ...], ...]


def valid(inputs: Any, batch: int, length: int) -> Tensor:
    """[batch, position], which positions are real: from prepared inputs, from an attention mask, or all of them."""
    mask = getattr(inputs, "valid", None)
    if mask is None and isinstance(inputs, Mapping):
        mask = inputs.get("attention_mask")
    if mask is None:
        return torch.ones(batch, length, dtype=torch.bool)
    if tuple(mask.shape) != (batch, length):
        wanted = f"{mask.shape[0]} rows and {mask.shape[1]} positions"
        raise MetricError(f"expected logits of {wanted}, got {batch} and {length}")
    return mask.bool()


def places(positions: Positions | str, mask: Tensor) -> Int[Tensor, "batch read"]:
    """The columns read in each row, -1 where a row reads fewer than another."""
    index = torch.arange(mask.shape[1], device=mask.device).expand_as(mask)
    last = torch.where(mask, index, -1).amax(1)
    if positions == "last":
        return last[:, None]
    if isinstance(positions, str):
        raise MetricError(f"positions are 'last' or numbers for each row, got {positions!r}")
    if len(positions) != len(mask):
        raise MetricError(f"expected inputs of {len(positions)} rows, got {len(mask)}; use metric.take(rows)")
    width = max(len(row) for row in positions)
    found = [[_place(i, end) for i in row] for row, end in zip(positions, last.tolist(), strict=True)]
    return torch.tensor([row + [-1] * (width - len(row)) for row in found], device=mask.device)


def _place(index: int, last: int) -> int:
    place = index if index >= 0 else last + 1 + index
    if not 0 <= place <= last:
        raise MetricError(f"expected a position before the end of the row ({last + 1} tokens), got {index}")
    return place


def narrow(logits: Tensor, inputs: Any, metric: Reading) -> Float[Tensor, "batch read column"]:
    """The cells of the logits that the metric reads, float32 or better; cells of absent positions are zero."""
    if logits.ndim == 2:
        logits, at = logits[:, None], torch.zeros(len(logits), 1, dtype=torch.long, device=logits.device)
    else:
        at = places(metric.positions, valid(inputs, *logits.shape[:2]).to(logits.device))
    read = logits[torch.arange(len(logits), device=logits.device)[:, None], at.clamp(min=0)]
    if metric.columns is not None:
        below(max(metric.columns), read.shape[-1])
        read = read[..., torch.tensor(metric.columns, device=read.device)]
    return torch.where(at[..., None] >= 0, read if read.dtype == torch.float64 else read.float(), 0.0)


@dataclass(frozen=True)
class Reading:
    """A metric that says what it reads."""

    ROWS: ClassVar[tuple[str, ...]] = ()
    """Fields with one entry a row."""
    WORDS: ClassVar[tuple[str, ...]] = ()
    """Fields that hold answers."""

    if TYPE_CHECKING:

        @property
        def positions(self) -> Positions:
            """Where it reads."""

        @property
        def columns(self) -> tuple[int, ...] | None:
            """Which vocabulary ids it reads, ascending; None for all."""

        @property
        def reference(self) -> Tensor | None:
            """The logits it compares with, if any."""

    else:  # plain values, so that a subclass may make them fields
        positions, columns, reference = "last", None, None

    def __call__(self, logits: Tensor, inputs: Any) -> Float[Tensor, " batch"]:
        return self.score(narrow(logits, inputs, self))

    def score(self, read: Float[Tensor, "batch read column"]) -> Float[Tensor, " batch"]:
        """The metric from the cells it reads."""
        raise NotImplementedError(f"{type(self).__name__} defines no score")

    def __post_init__(self) -> None:
        for name in self.WORDS:
            if (given := getattr(self, name)) is not None:
                object.__setattr__(self, name, listed(name, given))

    def with_ids(self: M, id_of: Callable[[str | int], int]) -> M:
        """The metric with ids in the place of words."""
        held = [name for name in self.WORDS if has_words(getattr(self, name))]
        return replace(self, **{name: _ids(getattr(self, name), id_of) for name in held}) if held else self

    def take(self: M, rows: Sequence[int]) -> M:
        """The metric of those rows."""
        return replace(self, **{name: taken(getattr(self, name), rows) for name in self.ROWS})

    def _fits(self, read: Tensor, rows: Any) -> None:
        count = len(read) if isinstance(rows, EveryRow) else len(rows)
        if len(read) != count:
            name = type(self).__name__
            raise MetricError(f"{name} knows {count} rows, got logits of {len(read)}; use metric.take(rows)")


def _ids(rows: Any, id_of: Callable[[str | int], int]) -> Any:
    return type(rows)(tuple(id_of(one) for one in row) for row in rows)


def _mean(values: Tensor, real: Tensor) -> Tensor:
    return (values * real).sum(1) / real.sum(1)


@dataclass(frozen=True)
class LogitDifference(Reading):
    """Mean logit of the right answers minus mean logit of the wrong ones."""

    answers: Answers
    """The right answers of each row, as token ids or words."""
    wrong: Answers
    """The wrong answers of each row."""
    positions: Positions = "last"
    """Where the logits are read: "last", or the position of each row."""
    ROWS: ClassVar[tuple[str, ...]] = ("answers", "wrong", "positions")
    WORDS: ClassVar[tuple[str, ...]] = ("answers", "wrong")

    def __post_init__(self) -> None:
        super().__post_init__()
        nonempty("answers", self.answers)
        nonempty("wrong", self.wrong)
        as_many("wrong answers", self.wrong, self.answers)

    @property
    def columns(self) -> tuple[int, ...]:
        """The answers of every row."""
        return union(self.answers, self.wrong)

    def score(self, read: Float[Tensor, "batch read column"]) -> Float[Tensor, " batch"]:
        """Right minus wrong."""
        self._fits(read, self.answers)
        right, wrong = (_mean(*chosen(read, rows, self.columns)) for rows in (self.answers, self.wrong))
        return right - wrong


@dataclass(frozen=True)
class Logit(Reading):
    """Mean logit of the right answers."""

    answers: Answers
    """The right answers of each row, as token ids or words."""
    positions: Positions = "last"
    """Where the logits are read: "last", or the position of each row."""
    ROWS: ClassVar[tuple[str, ...]] = ("answers", "positions")
    WORDS: ClassVar[tuple[str, ...]] = ("answers",)

    def __post_init__(self) -> None:
        super().__post_init__()
        nonempty("answers", self.answers)

    @property
    def columns(self) -> tuple[int, ...]:
        """The answers of every row."""
        return union(self.answers)

    def score(self, read: Float[Tensor, "batch read column"]) -> Float[Tensor, " batch"]:
        """Their mean."""
        self._fits(read, self.answers)
        return _mean(*chosen(read, self.answers, self.columns))


@dataclass(frozen=True)
class Probability(Reading):
    """Summed probability of the right answers, less that of the wrong ones where there are any."""

    answers: Answers
    """The right answers of each row, as token ids or words."""
    wrong: Answers = None
    """The wrong answers of each row; None where there are none."""
    positions: Positions = "last"
    """Where the logits are read: "last", or the position of each row."""
    ROWS: ClassVar[tuple[str, ...]] = ("answers", "wrong", "positions")
    WORDS: ClassVar[tuple[str, ...]] = ("answers", "wrong")

    def __post_init__(self) -> None:
        super().__post_init__()
        nonempty("answers", self.answers)
        from_zero("wrong", self.wrong)
        as_many("wrong", self.wrong, self.answers)

    def score(self, read: Float[Tensor, "batch read column"]) -> Float[Tensor, " batch"]:
        """Sum of probabilities."""
        self._fits(read, self.answers)
        p = read.softmax(-1)
        right, real = chosen(p, self.answers, None)
        total = (right * real).sum(1)
        if self.wrong is None:
            return total
        off, real = chosen(p, self.wrong, None)
        return total - (off * real).sum(1)


@dataclass(frozen=True)
class LogProb(Reading):
    """Log-probability of one answer a row, in nats; of several tokens teacher-forced, summed or averaged over them.

    `forced=True` says that the inputs end with the answer, so that its tokens are predicted from the positions before
    each; otherwise the answer must be one token, predicted at the last position.
    """

    targets: Answers
    """The answer of each row: its token ids, in order, or a word."""
    reduce: Literal["sum", "mean"] = "sum"
    """Whether the tokens of an answer are summed or averaged."""
    forced: bool = False
    """Whether the inputs end with the answer."""
    ROWS: ClassVar[tuple[str, ...]] = ("targets",)
    WORDS: ClassVar[tuple[str, ...]] = ("targets",)

    def __post_init__(self) -> None:
        super().__post_init__()
        nonempty("targets", self.targets)
        if self.forced and isinstance(self.targets, EveryRow):
            raise MetricError("forced=True reads the positions of each row's answer: give one entry for each row")
        if self.reduce not in ("sum", "mean"):
            raise MetricError(f"reduce is 'sum' or 'mean', got {self.reduce!r}")
        long = [i for i, row in enumerate(self.targets) if len(row) > 1]
        if long and not self.forced:
            raise MetricError(
                f"expected answers of one token, got {len(self.targets[long[0]])} in row {long[0]}:"
                " prepare the inputs with the answer as continuation and pass forced=True"
            )

    @property
    def positions(self) -> Positions:
        """One place before each token of the answer."""
        return tuple(tuple(range(-len(row) - 1, -1)) for row in known(self.targets)) if self.forced else "last"

    def __call__(self, logits: Tensor, inputs: Any) -> Float[Tensor, " batch"]:
        self._check_forced(inputs)
        return super().__call__(logits, inputs)

    def _check_forced(self, inputs: Any) -> None:
        given = getattr(inputs, "kwargs", inputs)
        if not (self.forced and isinstance(given, Mapping) and "input_ids" in given):
            return
        tokens = given["input_ids"]
        last = places("last", valid(inputs, *tokens.shape).to(tokens.device))[:, 0].tolist()
        for i, (row, end) in enumerate(zip(of_rows(self.targets, len(last)), last, strict=True)):
            found = tuple(tokens[i, end + 1 - len(row) : end + 1].tolist())
            if found != row:
                raise MetricError(f"expected row {i} to end with its answer {row}, got {found}")

    def score(self, read: Float[Tensor, "batch read column"]) -> Float[Tensor, " batch"]:
        """Sum or mean over the answer's tokens."""
        self._fits(read, self.targets)
        targets, width = of_rows(self.targets, len(read)), read.shape[1]
        below(max(map(max, targets)), read.shape[-1])
        index = torch.tensor([[*row, *[-1] * (width - len(row))] for row in targets], device=read.device)
        log_p = read.log_softmax(-1).gather(-1, index.clamp(min=0)[..., None])[..., 0]
        total = torch.where(index >= 0, log_p, 0.0).sum(1)
        return total if self.reduce == "sum" else total / (index >= 0).sum(1)


@dataclass(frozen=True)
class Accuracy(Reading):
    """1 where a right answer has a larger logit than everything else (than every other choice), 0 where not or tied."""

    answers: Answers
    """The right answers of each row, as token ids or words."""
    among: Answers = None
    """The choices of each row; None for the whole vocabulary."""
    positions: Positions = "last"
    """Where the logits are read: "last", or the position of each row."""
    ROWS: ClassVar[tuple[str, ...]] = ("answers", "among", "positions")
    WORDS: ClassVar[tuple[str, ...]] = ("answers", "among")

    def __post_init__(self) -> None:
        super().__post_init__()
        nonempty("answers", self.answers)
        from_zero("among", self.among)
        as_many("among", self.among, self.answers)

    @property
    def columns(self) -> tuple[int, ...] | None:
        """The choices, if they are given."""
        return None if self.among is None else union(self.answers, self.among)

    def score(self, read: Float[Tensor, "batch read column"]) -> Float[Tensor, " batch"]:
        """1 or 0."""
        self._fits(read, self.answers)
        right = torch.where(*self._masked(read, self.answers)).amax(1)
        rest = read[:, 0].clone() if self.among is None else torch.where(*self._masked(read, self._others(len(read))))
        if self.among is None:
            for i, row in enumerate(of_rows(self.answers, len(read))):
                rest[i, list(row)] = -torch.inf
        return (right > rest.amax(1)).to(read.dtype)

    def _others(self, count: int) -> Ids:
        pairs = zip(of_rows(self.among, count), of_rows(self.answers, count), strict=True)
        return tuple(tuple(i for i in row if i not in right) for row, right in pairs)

    def _masked(self, read: Tensor, rows: Ids) -> tuple[Tensor, Tensor, Tensor]:
        values, real = chosen(read, rows, self.columns)
        return real, values, torch.full_like(values, -torch.inf)


@dataclass(frozen=True, eq=False)
class KL(Reading):
    """Minus the divergence D(reference || run) in nats, summed over the vocabulary, averaged over the positions read.

    At most 0 and larger when the run is closer to the reference, as for every metric; `negate=False` gives the
    divergence itself. `reference` holds logits, [batch, read position, vocabulary].
    """

    reference: Float[Tensor, "batch read vocabulary"] = field(repr=False)
    """Logits of the run that it is compared with, [batch, read position, vocabulary]."""
    positions: Positions = "last"
    """Where the logits are read: "last", or the positions of each row."""
    negate: bool = True
    """Whether the value is minus the divergence, so that larger is closer."""
    ROWS: ClassVar[tuple[str, ...]] = ("reference", "positions")

    @classmethod
    def to(cls, logits: Tensor, inputs: Any, *, positions: Positions = "last", negate: bool = True) -> KL:
        """The divergence from a run with these full logits."""
        blank = cls(logits.new_zeros(1, 1, 1), positions=positions)
        return cls(narrow(logits, inputs, blank).detach(), positions=positions, negate=negate)

    def score(self, read: Float[Tensor, "batch read column"]) -> Float[Tensor, " batch"]:
        """Sum over the vocabulary, mean over the positions of each row."""
        self._fits(read, self.reference)
        log_p = self.reference.to(read.device, read.dtype).log_softmax(-1)
        each = (log_p.exp() * (log_p - read.log_softmax(-1))).sum(-1)
        counts = [read.shape[1]] * len(read) if self.positions == "last" else [len(row) for row in self.positions]
        count = torch.tensor(counts, device=read.device)
        real = torch.arange(read.shape[1], device=read.device) < count[:, None]
        total = (each * real).sum(1) / count
        return -total if self.negate else total


@dataclass(frozen=True)
class RecoveredFraction(Reading):
    """Another metric on the scale where its mean is 0 on the base run and 1 on the source run; never clipped."""

    metric: Reading
    """What is measured."""
    base: float
    """Its mean on the base run."""
    source: float
    """Its mean on the source run."""

    def __post_init__(self) -> None:
        if abs(self.source - self.base) < 1e-6:
            raise MetricError(
                f"expected base and source that differ, got means {self.base:.6g} and {self.source:.6g}: the fraction"
                " has no scale; leave out prompts on which they agree"
            )

    @classmethod
    def between(cls, metric: Reading, *, base: Tensor, source: Tensor) -> RecoveredFraction:
        """From the metric's values on the two runs; means are taken first."""
        return cls(metric, base.double().mean().item(), source.double().mean().item())

    @property
    def positions(self) -> Positions:
        """As the metric inside."""
        return self.metric.positions

    @property
    def columns(self) -> tuple[int, ...] | None:
        """As the metric inside."""
        return self.metric.columns

    @property
    def reference(self) -> Tensor | None:
        """As the metric inside."""
        return self.metric.reference

    def __call__(self, logits: Tensor, inputs: Any) -> Float[Tensor, " batch"]:
        return (self.metric(logits, inputs) - self.base) / (self.source - self.base)

    def score(self, read: Float[Tensor, "batch read column"]) -> Float[Tensor, " batch"]:
        """On the new scale."""
        return (self.metric.score(read) - self.base) / (self.source - self.base)

    def take(self, rows: Sequence[int]) -> RecoveredFraction:
        """The rows' metric, on the same scale."""
        return replace(self, metric=self.metric.take(rows))
