"""A figure of head importance."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from interp.results.plots import WRITTEN

if TYPE_CHECKING:
    from interp.heads.measures.table import Importance


def figure_of(found: Importance) -> Any:
    """A map, measures down and heads across; rows are scaled by their largest magnitude, numbers are as measured."""
    import plotly.graph_objects as go

    values = torch.stack([found.estimate(name) for name in found.methods])
    scaled = values / values.abs().amax(1, keepdim=True).clamp(min=1e-30)
    shown = {"texttemplate": "%{customdata:.2g}"} if values.numel() <= WRITTEN else {}
    heat = go.Heatmap(
        z=scaled.numpy(), customdata=values.numpy(), x=list(found.sites), y=list(found.methods), zmin=-1, zmax=1,
        colorscale="RdBu", hovertemplate="%{x} by %{y}: %{customdata:.4g}<extra></extra>",
        colorbar_title="of the largest", **shown,
    )  # fmt: skip
    return go.Figure(heat).update_layout(xaxis_title="head", yaxis_title="measure", yaxis_autorange="reversed")
