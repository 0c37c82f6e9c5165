"""A figure of head importance."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from interp.results.figures.plots import WRITTEN


def figure_of(values: Tensor, methods: Sequence[str], sites: Sequence[str]) -> Any:
    """A map of estimates [measure, head], measures down and heads across; rows are scaled by their largest magnitude,
    numbers are as measured."""
    import plotly.graph_objects as go

    scaled = values / values.abs().amax(1, keepdim=True).clamp(min=1e-30)
    shown = {"texttemplate": "%{customdata:.2g}"} if values.numel() <= WRITTEN else {}
    heat = go.Heatmap(
        z=scaled.numpy(), customdata=values.numpy(), x=list(sites), y=list(methods), zmin=-1, zmax=1,
        colorscale="RdBu", hovertemplate="%{x} by %{y}: %{customdata:.4g}<extra></extra>",
        colorbar_title="of the largest", **shown,
    )  # fmt: skip
    return go.Figure(heat).update_layout(xaxis_title="head", yaxis_title="measure", yaxis_autorange="reversed")
