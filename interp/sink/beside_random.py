"""What results share that compare hidden sinks with as many hidden random tokens."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from interp.results.figures.drawn import Drawn
from interp.results.figures.figure import Figure
from interp.results.figures.marks import Lines, Trace
from interp.results.intervals import mean_interval


class BesideRandom(Drawn):
    """Effects of hiding sinks [example] and of hiding random tokens [draw, example]."""

    base: Tensor
    """[example]: the metric with nothing hidden."""
    sinks: Tensor
    """[example]: the change of the metric when sinks are hidden."""
    random: Tensor
    """[draw, example]: the same with as many random tokens hidden."""

    @property
    def share(self) -> float:
        """The share of draws whose mean effect is at least as large in size as that of the sinks."""
        return float((self.random.mean(1).abs() >= self.sinks.mean().abs()).double().mean())

    def to_frame(self) -> Any:
        """Three rows: sinks, random tokens, and the difference; estimate, low, high (over examples), n."""
        import pandas

        values = torch.stack([self.sinks, self.random.mean(0), self.sinks - self.random.mean(0)])
        low, high = mean_interval(values)
        return pandas.DataFrame(
            {"hidden": ["sinks", "random", "difference"], "estimate": values.mean(1), "low": low, "high": high,
             "n": len(self.base)}
        )  # fmt: skip

    def _figure(self) -> Figure:
        """The share of draws that are at most as large, the sinks as a mark."""
        draws = self.random.mean(1).sort().values.tolist()
        line = Trace("random tokens", draws, [(n + 1) / len(draws) for n in range(len(draws))])
        sinks = ("sinks", float(self.sinks.mean()))
        return Figure([Lines([line], x="effect", y="share of draws up to there", marks=[sinks])])
