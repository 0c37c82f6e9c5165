"""What results share that hold hidden sinks beside as many random tokens."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from interp.results.intervals import mean_interval


class BesideRandom:
    """Effects of hiding sinks [example] and of hiding random tokens [draw, example]."""

    base: Tensor
    sinks: Tensor
    random: Tensor

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

    def plot(self) -> Any:
        """Mean effects: the draws as a histogram, the sinks as a line (plotly)."""
        import plotly.graph_objects as go

        figure = go.Figure(go.Histogram(x=self.random.mean(1).tolist(), name="random tokens"))
        figure.add_vline(x=float(self.sinks.mean()), annotation_text="sinks")
        return figure.update_layout(xaxis_title="effect", yaxis_title="draws")
