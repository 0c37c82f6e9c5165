"""Scores of edges: labelled, per example, with a description of what they mean; circuits are cut from them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor

from interp.circuits.found.circuit import Circuit
from interp.circuits.graph.choose import chosen
from interp.circuits.graph.nodes import Graph
from interp.kernels.errors import InterpError
from interp.results.heads_table import By, largest
from interp.results.saved import Saved

G = TypeVar("G", bound="OfGraph")


class OfGraph(Saved):
    """A result that is saved with its graph; there need not be a source."""

    graph: Graph
    """The nodes and edges that the scores or masks are about."""

    def facts(self) -> dict[str, Any]:
        """The graph as plain values."""
        return {**super().facts(), "graph": self.graph.described()}

    @classmethod
    def restored(cls: type[G], facts: dict[str, Any], tensors: dict[str, Tensor]) -> G:
        """With the graph again."""
        return super().restored({"source": None, **facts, "graph": Graph.read(facts["graph"])}, tensors)


@dataclass(frozen=True, eq=False)
class Edges(OfGraph):
    """`values` [edge, example] of the edges of a graph, in `graph.edges`' order: effects of putting the source into the
    base along one edge."""

    STEM = "edges"

    graph: Graph
    """The nodes and edges that the scores are about."""
    values: Tensor
    """[edge, example], in the order of `graph.edges`."""
    base: Tensor
    """The metric of the base run, per example."""
    source: Tensor | None
    """The metric of the source run, where it is a run."""
    meta: Mapping[str, Any] = field(default_factory=dict)
    """How it was computed, by name: method, metric, model, settings."""

    @property
    def mean(self) -> Tensor:
        """Mean score per edge."""
        return self.values.mean(1)

    @property
    def direction(self) -> Literal["denoise", "noise", "none"]:
        """Whether the source does better than the base, worse, or there is no source run."""
        if self.source is None:
            return "none" if self.meta.get("method") == "flow" else "noise"
        return "denoise" if float((self.source - self.base).mean()) > 0 else "noise"

    @property
    def importance(self) -> Tensor:
        """Mean score, signed so that positive speaks for the better run: +effect when denoising, -effect when
        noising."""
        return -self.mean if self.direction == "noise" else self.mean

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, name: str) -> Tensor:
        """The scores [example] of an edge, `edges["L0.H1->logits"]`."""
        return self.values[self.number(name)]

    def number(self, name: str) -> int:
        """Which edge that is."""
        sender, arrow, receiver = name.partition("->")
        if not arrow:
            raise InterpError(f"an edge is written 'sender->receiver', got {name!r}.")
        return self.graph.edges.index(self.graph.edge(sender, receiver))

    def matrix(self) -> Tensor:
        """Mean scores [sender, receiver], NaN where there is no edge."""
        found = torch.full(self.graph.exists.shape, torch.nan, dtype=torch.float64)
        senders, receivers = zip(*self.graph.edges, strict=True)
        found[list(senders), list(receivers)] = self.mean
        return found

    def to_frame(self) -> Any:
        """One row per edge: sender, receiver, score, importance, standard error over examples."""
        import pandas

        spread = self.values.std(1) / self.values.shape[1] ** 0.5 if self.values.shape[1] > 1 else self.mean * torch.nan
        return pandas.DataFrame(
            {"sender": [str(self.graph.senders[u]) for u, _ in self.graph.edges],
             "receiver": [str(self.graph.receivers[v]) for _, v in self.graph.edges],
             "score": self.mean, "importance": self.importance, "error": spread}
        )  # fmt: skip

    def top(self, n: int = 10, *, by: By = "abs") -> Any:
        """The n edges with the largest scores, positive or negative ones only if asked."""
        return largest(self.to_frame(), n, column="score", by=by)

    def circuit(
        self,
        *,
        fraction: float | None = None,
        n: int | None = None,
        by: Literal["top", "greedy"] = "top",
        signed: bool = False,
        prune: bool = True,
    ) -> Circuit:
        """The n edges, or that fraction of all, that matter most, by magnitude or (`signed`) by importance.

        "top" takes the largest anywhere, "greedy" the largest among those that end where the circuit already is, from
        the logits on. Edges on no path from embedding to logits are pruned, so that fewer may be left.
        """
        count = self._count(fraction, n)
        scores = self.importance if signed else self.importance.abs()
        mask = self.graph.mask(chosen(self.graph, scores, count, by))
        mask = self.graph.pruned(mask) if prune else mask
        said = {"method": self.meta.get("method"), "direction": self.direction, "asked": count, "by": by,
                "signed": signed, "pruned": prune}  # fmt: skip
        said |= {"metric": self.meta.get("metric"), "found_on": self.meta.get("inputs_hash")}
        return Circuit(self.graph, mask, "edge", said, self.matrix() * (-1 if self.direction == "noise" else 1))

    def _count(self, fraction: float | None, n: int | None) -> int:
        if (fraction is None) == (n is None):
            raise InterpError("say how large the circuit is, fraction= or n=, and not both.")
        count = round(fraction * len(self)) if fraction is not None else int(n or 0)
        if not 0 <= count <= len(self):
            raise InterpError(f"a circuit has 0 to {len(self)} of the edges here, got {count}.")
        return count

    def __repr__(self) -> str:
        best = int(self.mean.abs().argmax())
        return (
            f"Edges ({self.meta.get('method')}): {len(self)} on {self.values.shape[1]} examples, {self.direction};"
            f" largest {self.graph.name(self.graph.edges[best])} {float(self.mean[best]):+.4g}"
        )
