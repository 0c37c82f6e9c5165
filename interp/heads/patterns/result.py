"""The atlas: every head's pattern in a few numbers, which heads are alike, and how patterns change over layers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from interp.heads.patterns.embed import plane
from interp.kernels.errors import InterpError
from interp.results.figures.figure import Figure
from interp.results.figures.marks import Heatmap, Lines, Trace
from interp.results.heads_table import HeadResult, HeadTable, places


@dataclass(frozen=True, eq=False)
class Atlas(HeadResult):
    """Heads as points [head, example, dims], their clusters, and what was measured of their patterns."""

    STEM = "atlas"

    sites: tuple[str, ...]
    codes: Tensor
    """[head, example, dim]: the place of each pattern among all patterns."""
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
    """By name, measures that were not taken, and why."""
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

        flat = plane(self.points)
        means = {name: value.mean(1) for name, value in self.values.items()}
        numbers = {"cluster": self.labels, "settled": self.settled, "x": flat[:, 0], "y": flat[:, 1]}
        return pandas.DataFrame({**places(self.sites), **numbers, **means})

    def tables(self) -> list[HeadTable]:
        """One a measure, with each head's cluster."""
        more = {"cluster": self.labels}
        return [HeadTable(self.sites, values, name, more=more) for name, values in self.values.items()]

    def top(self, n: int = 10, *, by: str = "distance", method: str | None = None) -> Any:
        """The n heads with most of one measure."""
        name = method or by
        if name not in self.values:
            raise InterpError(f"no measure {name!r}{self._why(name)}; there are {', '.join(self.values)}.")
        return super().top(n, method=name)

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

    def _figure(self) -> Figure:
        """The heads as points in the plane, by cluster."""
        groups = self.heads().groupby("cluster")
        parts = [
            Trace(f"cluster {c}", part["x"].tolist(), part["y"].tolist(), kind="points", labels=part["site"].tolist())
            for c, part in groups
        ]
        return Figure([Lines(parts, x="first component", y="second component", square=True)])

    def plot_map(self, site: str) -> Any:
        """One head's small map (plotly)."""
        values = self.maps[self._index(site)].numpy()
        grid = Heatmap(values, x="key, in bins", y="row, in bins", name="weight", scale="weight", bound=1.0, title=site)
        return Figure([grid]).plotly()

    def tensors(self) -> dict[str, Tensor]:
        """Measures by their name."""
        return super().tensors() | {f"values/{name}": value for name, value in self.values.items()}

    def facts(self) -> dict[str, Any]:
        """With the measures in order."""
        return {**super().facts(), "measures": list(self.values)}

    @classmethod
    def restored(cls, facts: dict[str, Any], tensors: dict[str, Tensor]) -> Atlas:
        """Measures by name again."""
        own = {name: value for name, value in tensors.items() if "/" not in name}
        return super().restored(
            {**facts, "values": {name: tensors[f"values/{name}"] for name in facts["measures"]}}, own
        )

    def __repr__(self) -> str:
        sizes = torch.bincount(self.labels).tolist()
        return (
            f"Atlas of {len(self.sites)} heads on {self.codes.shape[1]} examples in {len(sizes)} clusters of"
            f" {', '.join(map(str, sizes))}; the codes explain {self.explained[0]:.0%} of the patterns' variance, as"
            f" many principal components {self.explained[1]:.0%}"
        )
