"""The atlas: every head's pattern in a few numbers, which heads are alike, and how patterns change over layers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from interp.heads.patterns.embed import plane
from interp.hooks.sites import parse
from interp.kernels.errors import InterpError
from interp.results.intervals import mean_interval
from interp.saving import read, write

FORMAT = 1
TENSORS = ("codes", "labels", "settled", "maps", "profile")


@dataclass(frozen=True, eq=False)
class Atlas:
    """Heads as points [head, example, dims], their clusters, and what was measured of their patterns."""

    sites: tuple[str, ...]
    codes: Tensor
    labels: Tensor
    """The cluster of each head."""
    settled: Tensor
    """Per head, the share of examples that alone would put it into the same cluster."""
    maps: Tensor
    """Mean over examples of the small maps [head, row bin, key bin]."""
    profile: Tensor
    """Strength by distance [head, example, band]."""
    bands: tuple[tuple[int, int], ...]
    """First and last distance of each band."""
    values: Mapping[str, Tensor]
    """Entropy, mean distance and so on, each [head, example]."""
    explained: tuple[float, float]
    """The share of the variance of patterns that the codes explain, and as many principal components."""
    left_out: Mapping[str, str] = field(default_factory=dict)
    meta: Mapping[str, Any] = field(default_factory=dict)

    @property
    def points(self) -> Tensor:
        """Each head's code, the mean over examples [head, dims]."""
        return self.codes.mean(1)

    def _index(self, site: str) -> int:
        if site not in self.sites:
            raise InterpError(f"no pattern of {site!r} here; there are those of {', '.join(self.sites)}.")
        return self.sites.index(site)

    def nearest(self, site: str, n: int = 5) -> Any:
        """The n heads whose patterns are most like this one's: site, away (distance between codes), cluster."""
        import pandas

        at = self._index(site)
        away = (self.points - self.points[at]).norm(dim=1)
        order = [i for i in away.argsort(stable=True).tolist() if i != at][:n]
        rows = {"site": [self.sites[i] for i in order], "away": away[order], "cluster": self.labels[order]}
        return pandas.DataFrame(rows)

    def heads(self) -> Any:
        """One row per head: site, tower, layer, head, cluster, settled, place in the plane, means of all measures."""
        import pandas

        places, flat = [parse(site) for site in self.sites], plane(self.points)
        return pandas.DataFrame(
            {"site": self.sites, "tower": [p.tower for p in places], "layer": [int(str(p.layers)) for p in places],
             "head": [int(str(p.heads)) for p in places], "cluster": self.labels, "settled": self.settled,
             "x": flat[:, 0], "y": flat[:, 1], **{name: value.mean(1) for name, value in self.values.items()}}
        )  # fmt: skip

    def to_frame(self) -> Any:
        """One row per head and measure: site, tower, layer, head, method, estimate, low, high, n, cluster."""
        import pandas

        heads, n = self.heads()[["site", "tower", "layer", "head", "cluster"]], self.codes.shape[1]
        frames = []
        for name, values in self.values.items():
            low, high = mean_interval(values)
            told = {"estimate": values.mean(1).numpy(), "low": low.numpy(), "high": high.numpy()}
            frames.append(heads.assign(method=name, **told, n=n))
        return pandas.concat(frames, ignore_index=True)

    def top(self, n: int = 10, *, by: str = "distance") -> Any:
        """The n heads with most of one measure."""
        if by not in self.values:
            raise InterpError(f"no measure {by!r}{self._why(by)}; there are {', '.join(self.values)}.")
        frame = self.to_frame()
        return frame[frame["method"] == by].sort_values("estimate", ascending=False, kind="stable").head(n)

    def _why(self, name: str) -> str:
        return f" ({self.left_out[name]})" if name in self.left_out else ""

    def strength(self) -> Any:
        """Strength by distance: one row per head and band, with the first and last distance of the band."""
        import pandas

        rows = [
            {"site": site, "low": low, "high": high, "weight": float(self.profile[n, :, d].mean())}
            for n, site in enumerate(self.sites) for d, (low, high) in enumerate(self.bands)
        ]  # fmt: skip
        return pandas.DataFrame(rows)

    def trend(self) -> Any:
        """Over layers: the mean over heads of every measure, and how many clusters the layer's heads are in."""
        table = self.heads()
        groups = table.groupby("layer")
        return groups[list(self.values)].mean().assign(clusters=groups["cluster"].nunique()).reset_index()

    def plot(self) -> Any:
        """The heads as points in the plane, by cluster (plotly)."""
        import plotly.graph_objects as go

        table = self.heads()
        parts = [go.Scatter(x=part["x"], y=part["y"], mode="markers+text", text=part["site"], name=f"cluster {c}",
                            textposition="top center") for c, part in table.groupby("cluster")]  # fmt: skip
        return go.Figure(parts).update_layout(xaxis_title="first component", yaxis_title="second component")

    def plot_map(self, site: str) -> Any:
        """One head's small map (plotly)."""
        import plotly.graph_objects as go

        values = self.maps[self._index(site)].numpy()
        heat = go.Heatmap(z=values, zmin=0, zmax=1, colorscale="Cividis", colorbar_title="weight")
        return go.Figure(heat).update_layout(xaxis_title="key, in bins", yaxis_title="row, in bins",
                                             yaxis_autorange="reversed", title=site)  # fmt: skip

    def save(self, directory: str | Path) -> Path:
        """Write `atlas.safetensors`, `atlas.parquet` and `atlas.json`; read back with `interp.open`."""
        tensors = {name: getattr(self, name) for name in TENSORS}
        tensors |= {f"values/{name}": value for name, value in self.values.items()}
        about = {"format": FORMAT, "sites": self.sites, "bands": self.bands, "measures": list(self.values),
                 "explained": self.explained, "left_out": dict(self.left_out), "meta": dict(self.meta)}  # fmt: skip
        return write(directory, tensors, about, names=("atlas.safetensors", "atlas.json"), table=self.to_frame())

    @classmethod
    def load(cls, directory: str | Path) -> Atlas:
        """Read what `save` wrote."""
        about, tensors = read(directory, ("atlas.safetensors", "atlas.json"), FORMAT)
        bands = tuple((int(low), int(high)) for low, high in about["bands"])
        values = {name: tensors[f"values/{name}"] for name in about["measures"]}
        explained = (float(about["explained"][0]), float(about["explained"][1]))
        held = {name: tensors[name] for name in TENSORS}
        return cls(sites=tuple(about["sites"]), **held, bands=bands, values=values, explained=explained,
                   left_out=about["left_out"], meta=about["meta"])  # fmt: skip

    def __repr__(self) -> str:
        sizes = torch.bincount(self.labels).tolist()
        return (
            f"Atlas of {len(self.sites)} heads on {self.codes.shape[1]} examples in {len(sizes)} clusters of"
            f" {', '.join(map(str, sizes))}; the codes explain {self.explained[0]:.0%} of the patterns' variance, as"
            f" many principal components {self.explained[1]:.0%}"
        )
