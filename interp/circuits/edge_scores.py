"""Scores of edges: labelled, per example, with what they mean beside them; circuits are cut from them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from interp.circuits.graph.choose import chosen
from interp.circuits.graph.nodes import Graph
from interp.kernels.errors import InterpError
from interp.saving import read, write

if TYPE_CHECKING:
    from interp.circuits.circuit import Circuit

FORMAT = 1


@dataclass(frozen=True, eq=False)
class Edges:
    """`values` [edge, example] of the edges of a graph, in `graph.edges`' order: effects of putting the source into the
    base along one edge."""

    graph: Graph
    values: Tensor
    base: Tensor
    """The metric of the base run, per example."""
    source: Tensor | None
    """The metric of the source run, where it is a run."""
    meta: Mapping[str, Any] = field(default_factory=dict)

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

    def top(self, n: int = 10, *, by: Literal["abs", "high", "low"] = "abs") -> Any:
        """The n edges with the largest scores, positive or negative ones only if asked."""
        frame = self.to_frame()
        order = {"abs": frame["score"].abs(), "high": frame["score"], "low": -frame["score"]}[by]
        return frame.loc[order.sort_values(ascending=False, kind="stable").index].head(n)

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
        from interp.circuits.circuit import Circuit

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

    def save(self, directory: str | Path) -> Path:
        """Write `edges.safetensors`, `edges.parquet` and `edges.json`; read back with `Edges.load`."""
        tensors = {"values": self.values, "base": self.base} | ({} if self.source is None else {"source": self.source})
        about = {"format": FORMAT, "graph": self.graph.described(), "meta": dict(self.meta)}
        return write(directory, tensors, about, names=("edges.safetensors", "edges.json"), table=self.to_frame())

    @classmethod
    def load(cls, directory: str | Path) -> Edges:
        """Read what `save` wrote."""
        about, tensors = read(directory, ("edges.safetensors", "edges.json"), FORMAT)
        return cls(Graph.read(about["graph"]), tensors["values"], tensors["base"], tensors.get("source"), about["meta"])
