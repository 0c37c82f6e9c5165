"""The answer to whether a circuit is real: one table, a row a question."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from interp.results.saved import Saved

COLUMNS = ("asked", "of", "value", "low", "high", "p", "holds", "n", "why")


@dataclass(frozen=True)
class Line:
    """One row: what was asked, of what, the number, and whether it speaks for the circuit."""

    asked: str
    """The group of checks: "faithful", "stability", "chance", "ablation" and so on."""
    of: str
    """What was measured, and on what, in words."""
    value: float | None = None
    """The number that was measured; None where nothing was."""
    low: float | None = None
    """The lower end of the number's interval; of pairs of prompt sets, the smallest; None where there is none."""
    high: float | None = None
    """The upper end of the number's interval; of pairs of prompt sets, the largest; None where there is none."""
    p: float | None = None
    """After Holm's correction over all tests of the verdict."""
    holds: bool | None = None
    """None where nothing was asked, or where no line can be drawn."""
    n: int | None = None
    """How many prompts, edges, parts, draws or pairs of prompt sets the number is of."""
    why: str = ""
    """What the number was measured with or against, or why there is none."""

    def row(self) -> dict[str, Any]:
        """As plain values."""
        return {name: getattr(self, name) for name in COLUMNS}


@dataclass(frozen=True, eq=False)
class Verdict(Saved):
    """Lines, and how they came about."""

    STEM: ClassVar[str] = "verdict"
    TABLE: ClassVar[Literal["parquet", "csv"] | None] = "csv"
    TENSORS: ClassVar[bool] = False

    lines: tuple[Line, ...]
    """One line for each check of the circuit."""
    meta: Mapping[str, Any] = field(default_factory=dict)
    """How it was computed, by name: method, metric, model, settings."""

    def __getitem__(self, asked: str) -> tuple[Line, ...]:
        """The lines of a question."""
        return tuple(line for line in self.lines if line.asked == asked)

    @property
    def against(self) -> tuple[Line, ...]:
        """What speaks against the circuit."""
        return tuple(line for line in self.lines if line.holds is False)

    def to_frame(self) -> Any:
        """One row a line."""
        import pandas

        return pandas.DataFrame([line.row() for line in self.lines], columns=list(COLUMNS))

    def facts(self) -> dict[str, Any]:
        """Lines as plain rows."""
        return {"lines": [line.row() for line in self.lines], "meta": dict(self.meta)}

    @classmethod
    def restored(cls, facts: dict[str, Any], tensors: dict[str, Any]) -> Verdict:
        """The verdict again."""
        return cls(tuple(Line(**row) for row in facts["lines"]), facts["meta"])

    def __repr__(self) -> str:
        asked = [line for line in self.lines if line.holds is not None]
        said = f"{sum(bool(line.holds) for line in asked)} of {len(asked)} checks speak for this circuit"
        wrong = ", ".join(dict.fromkeys(f"{line.asked} ({line.of})" for line in self.against))
        return f"{said}; against it: {wrong}." if wrong else f"{said}."
