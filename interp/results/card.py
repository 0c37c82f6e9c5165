"""Everything known about one head as a value: for reading in a notebook, and for the page of the explorer."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from interp.hooks.html import block, chips, folded, line, table
from interp.kernels.errors import InterpError
from interp.results.figures.drawn import Drawn
from interp.results.figures.figure import Figure
from interp.results.figures.plots import pattern
from interp.results.intervals import spanned
from interp.saving import renamed

FORMAT = 1
BEST = 5
"""How many roles, tokens and weights the short forms show."""


@dataclass(frozen=True)
class Number:
    """A measured number with its interval over examples, and its place among the tower's heads where that is known."""

    name: str
    """What was measured."""
    value: float
    """The mean over examples."""
    low: float
    """The lower end of the interval."""
    high: float
    """The upper end of the interval."""
    n: int
    """The number of examples."""
    rank: int | None = None
    """The place of the head among all heads of its tower, from 1."""
    of: int | None = None
    """The number of heads that are ranked."""
    note: str = ""
    """A remark on the number."""

    @property
    def ends(self) -> dict[str, float | None]:
        """The interval as JSON has it: of one example there is none."""
        return {name: None if math.isnan(end) else end for name, end in (("low", self.low), ("high", self.high))}

    def __str__(self) -> str:
        span = "" if self.low == self.high else spanned(self.low, self.high)
        place = "" if self.rank is None else f", {self.rank} of {self.of}"
        return f"{self.name} {self.value:+.3g}{span}{place}" + (f" ({self.note})" if self.note else "")


@dataclass(frozen=True)
class Look:
    """One weight: in which example a token looks at which, how much."""

    example: int
    row: int
    row_token: str
    key: int
    key_token: str
    weight: float


@dataclass(frozen=True)
class HeadCard(Drawn):
    """One head: its roles, what its weights say, how it attends, what it does to the answer, where it looks."""

    site: str
    """The head, such as "L5.H3"."""
    model: str
    """The name of the model."""
    roles: tuple[Number, ...] = ()
    """Kinds of heads, the largest value first."""
    weights: tuple[Number, ...] = ()
    """Numbers from its weights alone: copying scores."""
    promotes: tuple[tuple[str, str, float], ...] = ()
    """Source token, target token, logit."""
    suppresses: tuple[tuple[str, str, float], ...] = ()
    """The same for the lowest logits: source token, target token, logit."""
    attention: tuple[Number, ...] = ()
    """Statistics of its attention, such as entropy and distance."""
    effects: tuple[Number, ...] = ()
    """On the metric: written directly, and what ablation changes."""
    looks: tuple[Look, ...] = ()
    """The largest weights, the first token and a token's own left out."""
    says: tuple[str, ...] = ()
    """What it looks at and what it writes, in words with numbers."""
    examples: tuple[tuple[str, ...], ...] = ()
    """The tokens of the examples that have a pattern here."""
    patterns: tuple[tuple[tuple[float, ...], ...], ...] = ()
    """The pattern of each example [query, key]."""
    left_out: Mapping[str, str] = field(default_factory=dict)
    """What has no meaning for this head, and why."""
    meta: Mapping[str, Any] = field(default_factory=dict)
    """How it was computed, by name: method, metric, model, settings."""

    @property
    def numbers(self) -> tuple[Number, ...]:
        """Every measured number."""
        return (*self.roles, *self.weights, *self.attention, *self.effects)

    @property
    def missing(self) -> tuple[str, ...]:
        """What is not on the card, by reason."""
        names: dict[str, list[str]] = {}
        for name, why in self.left_out.items():
            names.setdefault(why, []).append(name)
        return tuple(f"{', '.join(some)}: {why}" for why, some in names.items())

    def __getitem__(self, name: str) -> Number:
        found = {number.name: number for number in self.numbers}
        if name not in found:
            why = f" ({self.left_out[name]})" if name in self.left_out else ""
            raise InterpError(f"nothing called {name!r} is known of {self.site}{why}; there are {', '.join(found)}.")
        return found[name]

    @property
    def finding(self) -> str:
        """One sentence."""
        parts = [f"{one.name} {one.value:.2f}" for one in self.roles[:1]]
        parts += [f"{one.name} {one.value:+.3g}" for one in self.effects]
        if self.promotes:
            source, target, _ = self.promotes[0]
            parts.append(f"after {source!r} promotes {target!r}")
        return f"{self.site}: {'; '.join(parts) or 'nothing could be measured'}"

    def __repr__(self) -> str:
        lines = [f"HeadCard of {self.site} in {self.model}"]
        groups = {"roles": self.roles[:BEST], "weights": self.weights, "attention": self.attention}
        for title, numbers in {**groups, "effects": self.effects}.items():
            lines += [f"  {title}: " + "; ".join(map(str, numbers))] if numbers else []
        for title, found in (("promotes", self.promotes), ("suppresses", self.suppresses)):
            said = ", ".join(f"{s!r} -> {t!r} {value:+.3g}" for s, t, value in found[:BEST])
            lines += [f"  {title}: {said}"] if said else []
        said = ", ".join(f"{one.row_token!r} at {one.key_token!r} {one.weight:.2f}" for one in self.looks[:BEST])
        lines += [f"  looks: {said}"] if said else []
        lines += [f"  {one}" for one in self.says]
        lines += [f"  not here: {one}" for one in self.missing]
        return "\n".join(lines)

    def to_frame(self) -> Any:
        """One row per number: site, method, estimate, low, high, n, rank, of, note."""
        import pandas

        rows = [(self.site, one.name, one.value, one.low, one.high, one.n, one.rank, one.of, one.note)
                for one in self.numbers]  # fmt: skip
        names = ["site", "method", "estimate", "low", "high", "n", "rank", "of", "note"]
        return pandas.DataFrame(rows, columns=names)

    def to_dict(self) -> dict[str, Any]:
        """Plain and JSON-able, in the shape that the explorer's page takes."""
        scores = [{"site": self.site, "method": one.name, "estimate": one.value, **one.ends, "n": one.n,
                   "note": one.note} for one in self.numbers]  # fmt: skip
        card = {
            "roles": [(one.name, one.value) for one in self.roles],
            "promotes": [(f"{source} -> {target}", value) for source, target, value in self.promotes],
            "suppresses": [(f"{source} -> {target}", value) for source, target, value in self.suppresses],
            "facts": [(one.name, f"{one.value:.3g}") for one in (*self.weights, *self.attention, *self.effects)],
            "notes": [*self.says, *self.missing],
        }
        return {
            "title": f"{self.site} of {self.model}",
            "finding": self.finding,
            "scores": scores,
            "examples": [{"name": f"example {n}", "tokens": list(row)} for n, row in enumerate(self.examples)],
            "patterns": [{"example": n, "sites": [self.site], "weights": [[list(row) for row in one]]}
                         for n, one in enumerate(self.patterns)],
            "cards": {self.site: card},
            "provenance": dict(self.meta),
        }  # fmt: skip

    def _figure(self, *, examples: Sequence[int] | None = None) -> Figure:
        """Where it looks on the tokens of its examples: all of them, or some by number."""
        if not self.patterns:
            raise InterpError(f"the card of {self.site} has no pattern: its texts are too long, or were not given.")
        chosen = range(len(self.patterns)) if examples is None else examples
        return Figure([pattern(self.patterns[n], self.examples[n], title=f"{self.site}, example {n}") for n in chosen])

    def save(self, path: str | Path) -> Path:
        """Write `to_dict()` as JSON."""
        file = Path(path)
        file.parent.mkdir(parents=True, exist_ok=True)
        renamed(file, json.dumps({"format": FORMAT, **self.to_dict()}, indent=1, default=str).encode())
        return file

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, str]:
        return {"text/plain": repr(self), "text/html": _html(self)}


def _html(card: HeadCard) -> str:
    """Lines, tables and chips in the notebook's own colours, as every result shows itself."""
    said = (line(_short(f"{card.site} of {card.model}")), *(line(_short(one)) for one in card.says))
    tokens = [_said(title, found) for title, found in (("promotes", card.promotes), ("suppresses", card.suppresses))]
    looks = [{"token": _short(one.row_token, 40), "looks at": _short(one.key_token, 40), "weight": one.weight,
              "example": one.example} for one in card.looks[: 2 * BEST]]  # fmt: skip
    left_out = (line(f"not here: {_short(one)}", quiet=True) for one in card.missing)
    patterns = (_pattern(tokens, one) for tokens, one in zip(card.examples, card.patterns, strict=True))
    numbers = _numbers(card)
    return block(
        *said, table(numbers, most=len(numbers)) if numbers else "", *tokens,
        folded("where it looks most", table(looks)) if looks else "", *patterns, *left_out,
    )  # fmt: skip


def _said(title: str, found: Sequence[tuple[str, str, float]]) -> str:
    marks = [(_short(f"{source} → {target}", 40), f"{value:+.3g}") for source, target, value in found[: 2 * BEST]]
    return line(title, quiet=True) + chips(marks) if marks else ""


def _numbers(card: HeadCard) -> list[dict[str, Any]]:
    """One row a number; columns that nothing is in are left out."""
    groups = {"role": card.roles, "weights": card.weights, "attention": card.attention, "effect": card.effects}
    rows = [
        {"kind": kind, "measure": _short(one.name), "value": one.value,
         "interval": "" if one.low == one.high else spanned(one.low, one.high).strip(),
         "place": "" if one.rank is None else f"{one.rank} of {one.of}", "note": one.note}
        for kind, some in groups.items() for one in some
    ]  # fmt: skip
    kept = [name for name in (rows[0] if rows else ()) if any(row[name] != "" for row in rows)]
    return [{name: row[name] for name in kept} for row in rows]


def _short(text: str, most: int = 120) -> str:
    return text if len(text) <= most else f"{text[:most]}… ({len(text)} characters)"


def _pattern(tokens: Sequence[str], weights: Sequence[Sequence[float]]) -> str:
    """Each row's largest weight, with the row's token: readable without a picture."""
    best = [max(range(len(row)), key=row.__getitem__) for row in weights]
    rows = [{"token": _short(tokens[i], 24), "looks at": _short(tokens[j], 24), "weight": weights[i][j]}
            for i, j in enumerate(best)]  # fmt: skip
    return folded("largest weight of each token", table(rows, most=len(rows)) if rows else "")
