"""What is left of a model's answers when its best heads are masked, compared with random heads: curves over how
many."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from interp.results.figures.figure import Figure
from interp.results.figures.marks import Lines
from interp.results.figures.plots import line_of
from interp.results.intervals import interval, mean_interval
from interp.results.saved import Saved


@dataclass(frozen=True, eq=False)
class Masking(Saved):
    """`recall` [count, needle] with no head masked and then with the first of `heads`; `controls` [count, draw]."""

    STEM = "masking"

    heads: tuple[str, ...]
    """The heads that were masked, the first one first."""
    counts: tuple[int, ...]
    """How many heads are masked in each row; the first row has 0."""
    recall: Tensor
    """The first row is the unmasked model."""
    controls: Tensor
    """Mean recall over needles with random heads masked, as many as in the row of the same count."""
    meta: Mapping[str, Any] = field(default_factory=dict)
    """How it was computed, by name: method, metric, model, settings."""

    def interval(self, level: float = 0.95, *, draws: int = 1000, seed: int = 0) -> tuple[Tensor, Tensor]:
        """Bootstrap interval of each count's mean recall over needles."""
        return mean_interval(self.recall, level, draws=draws, seed=seed)

    def to_frame(self) -> Any:
        """One row a count: recall with its interval, and of random heads the mean, the middle 95% and how rarely they
        take as much, p = (1 + draws no higher) / (1 + draws)."""
        import pandas

        (low, high), mean = self.interval(), self.recall.mean(1)
        rows: list[dict[str, Any]] = []
        for n, count in enumerate((0, *self.counts)):
            row = {"masked": count, "added": self.heads[count - 1] if count else None, "estimate": float(mean[n]),
                   "low": float(low[n]), "high": float(high[n]), "n": self.recall.shape[1]}  # fmt: skip
            rows.append({**row, **self._random(n - 1, float(mean[n]))})
        return pandas.DataFrame(rows)

    def _random(self, row: int, reached: float) -> dict[str, float]:
        names = ("random", "random_low", "random_high", "p")
        if row < 0 or not self.controls.shape[1]:
            return dict.fromkeys(names, float("nan"))
        found = self.controls[row]
        ends = map(float, interval(found, n=len(found)))
        rare = (1 + int((found <= reached).sum())) / (1 + len(found))
        return dict(zip(names, (float(found.mean()), *ends, rare), strict=True))

    def _figure(self) -> Figure:
        """Recall against how many heads are masked, with the band of random heads."""
        frame = self.to_frame()
        random = frame.dropna(subset=["random"]).rename(columns={"low": "own_low", "high": "own_high"})
        band = random.rename(columns={"random_low": "low", "random_high": "high"})
        lines = [line_of("highest heads", frame, "masked", "estimate")]
        lines += [line_of("random heads", band, "masked", "random")] if len(band) else []
        return Figure([Lines(lines, x="heads masked", y="recall")])

    def __repr__(self) -> str:
        last = self.to_frame().iloc[-1]
        beside = "" if self.controls.numel() == 0 else f"; with random ones {last['random']:.3g} (p {last['p']:.2g})"
        return (
            f"Masking on {self.recall.shape[1]} needles: recall {float(self.recall[0].mean()):.3g}, and with the"
            f" {self.counts[-1]} highest heads masked {last['estimate']:.3g}{beside}"
        )
