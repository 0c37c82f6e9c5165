"""Scores of edges, one for each span of tokens, and circuits of such edges."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from interp.circuits.found.edge_scores import Edges, OfGraph
from interp.circuits.graph.nodes import Graph
from interp.kernels.errors import InterpError


@dataclass(frozen=True, eq=False)
class SpanEdges(OfGraph):
    """`values` [edge, span, span, example]: what an edge carries at the tokens of one span (the sender writes and the
    receiver reads there), and at which span's tokens the receiving head's query sees it. Inputs of MLPs, queries and
    logits are seen where they are read, so theirs are on the diagonal."""

    STEM = "span_edges"

    graph: Graph
    """The nodes and edges that the scores are about."""
    spans: tuple[str, ...]
    """The names of the spans; the last one is all other tokens."""
    values: Tensor
    """[edge, span, span, example]."""
    base: Tensor
    """The metric of the base run, per example."""
    source: Tensor | None
    """The metric of the source run, per example, where the source is a run."""
    meta: Mapping[str, Any] = field(default_factory=dict)
    """How it was computed, by name: method, metric, model, settings."""

    @property
    def mean(self) -> Tensor:
        """[edge, span, span], over examples."""
        return self.values.mean(-1)

    def whole(self) -> Edges:
        """The same edges at all tokens together."""
        return Edges(self.graph, self.values.sum((1, 2)), self.base, self.source, self.meta)

    def to_frame(self) -> Any:
        """One row per edge and pair of spans between which it carries anything."""
        import pandas

        mean = self.mean
        rows = [
            {"edge": self.graph.name(self.graph.edges[e]), "at": self.spans[s], "seen_from": self.spans[t],
             "score": float(mean[e, s, t])}
            for e, s, t in mean.nonzero().tolist()
        ]  # fmt: skip
        return pandas.DataFrame(rows, columns=["edge", "at", "seen_from", "score"])

    def top(self, n: int = 10) -> Any:
        """The n largest by magnitude."""
        frame = self.to_frame()
        return frame.reindex(frame["score"].abs().sort_values(ascending=False, kind="stable").index).head(n)

    def circuit(self, n: int) -> Tensor:
        """[sender, receiver, span], the n edges at spans that matter most, by magnitude."""
        by = self.mean.sum(2)
        if not 0 < n <= by.numel():
            raise InterpError(f"a circuit has 1 to {by.numel()} edges at spans here, got {n}.")
        found = torch.zeros(*self.graph.exists.shape, len(self.spans), dtype=torch.bool)
        order = torch.sort(by.abs().flatten(), descending=True, stable=True).indices[:n].tolist()
        for edge, span in (divmod(one, len(self.spans)) for one in order):
            found[(*self.graph.edges[edge], span)] = True
        return found

    def __repr__(self) -> str:
        best = int(self.mean.abs().argmax())
        edge, s, t = (int(one) for one in torch.unravel_index(torch.tensor(best), self.mean.shape))
        seen = "" if s == t else f", seen from {self.spans[t]!r}"
        return (
            f"SpanEdges: {len(self.graph.edges)} edges at {len(self.spans)} spans, {self.values.shape[-1]} examples;"
            f" largest {self.graph.name(self.graph.edges[edge])} at {self.spans[s]!r}{seen}"
            f" {float(self.mean[edge, s, t]):+.4g}"
        )
