"""A circuit as a value: some edges of a model's graph, or some of its nodes with every edge out of them.

`Circuit.of(graph, edges=[...])` names its edges, `nodes=[...]` its nodes; `Edges.circuit(...)` and
`interp.circuits.acdc` cut it from scores. `save` and `load` write and read the files of EAP-IG and MIB (`.json`,
`.pt`), CircuitKIT and circuit-tracer, `draw` an SVG, `compare` says what two circuits share. Cost: none. Limits: one
tower.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from interp.circuits.found.drawing import MOST, Svg, held, network, svg
from interp.circuits.found.files import Form, read_edges, write_edges
from interp.circuits.graph.nodes import Graph
from interp.hooks.errors import SiteError
from interp.hooks.html import block, folded, line
from interp.hooks.sites import nearest
from interp.kernels.errors import InterpError
from interp.results.figures.drawn import Drawn
from interp.results.figures.figure import Figure

Level = Literal["edge", "node"]


@dataclass(frozen=True, eq=False)
class Circuit(Drawn):
    """`mask` [sender, receiver] says which edges it has; as a circuit of nodes it has all edges out of its nodes."""

    graph: Graph
    """The nodes and edges of the whole model."""
    mask: Tensor
    """[sender, receiver]: True for the edges of the circuit."""
    level: Level = "edge"
    """"edge" or "node": what the circuit is made of."""
    meta: Mapping[str, Any] = field(default_factory=dict)
    """How the circuit was found, by name: method, metric, model, settings."""
    scores: Tensor | None = None
    """[sender, receiver], where it was cut from scores: positive speaks for the better run."""

    @classmethod
    def of(cls, graph: Graph, *, edges: Iterable[str] = (), nodes: Iterable[str] = ()) -> Circuit:
        """The circuit with these edges ("L0.H1->L1.H4.q_in"), or these nodes ("embed", "L0.H1", "L1.mlp_write")."""
        edges, nodes = list(edges), list(nodes)
        if edges and nodes:
            raise InterpError("name the circuit's edges or its nodes, not both.")
        if not nodes:
            pairs = [graph.edge(*name.partition("->")[::2]) for name in edges]
            return cls(graph, graph.mask(pairs))
        known = {str(site): n for n, site in enumerate(graph.senders)}
        wrong = next((name for name in nodes if name not in known), None)
        if wrong is not None:
            raise SiteError(f"no node {wrong!r} in this graph.{nearest(wrong, known)}")
        mask = torch.zeros_like(graph.exists)
        mask[[known[name] for name in nodes]] = True
        return cls(graph, mask & graph.exists, "node")

    @property
    def edges(self) -> tuple[str, ...]:
        """Its edges by name."""
        return tuple(self.graph.name(edge) for edge in held(self.graph, self.mask))

    @property
    def nodes(self) -> tuple[str, ...]:
        """The senders that it listens to."""
        return tuple(str(self.graph.senders[u]) for u in self.mask.any(1).nonzero()[:, 0].tolist())

    def __len__(self) -> int:
        return int(self.mask.sum())

    @property
    def fraction(self) -> float:
        """Its share of all edges."""
        return len(self) / int(self.graph.exists.sum())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Circuit) and self.graph == other.graph and torch.equal(self.mask, other.mask)

    def __hash__(self) -> int:
        return hash((self.graph, self.edges))

    def pruned(self) -> Circuit:
        """Without edges on no path from the embedding to the logits."""
        return replace(self, mask=self.graph.pruned(self.mask))

    def as_nodes(self) -> Circuit:
        """Its nodes with every edge out of them."""
        return replace(self, mask=self.mask.any(1)[:, None] & self.graph.exists, level="node")

    def compare(self, other: Circuit) -> Comparison:
        """What both have, and what only one has."""
        if self.graph != other.graph:
            raise InterpError("circuits of different graphs (towers, layers, heads or kv heads) have no common edges.")
        first, second = set(self.edges), set(other.edges)
        order = [self.graph.name(edge) for edge in self.graph.edges]

        def named(some: set[str]) -> tuple[str, ...]:
            return tuple(name for name in order if name in some)

        return Comparison(named(first & second), named(first - second), named(second - first))

    def to_frame(self) -> Any:
        """One row per edge: sender, receiver, score."""
        import pandas

        rows = [
            {"sender": str(self.graph.senders[u]), "receiver": str(self.graph.receivers[v]),
             "score": None if self.scores is None else float(self.scores[u, v])}
            for u, v in held(self.graph, self.mask)
        ]  # fmt: skip
        return pandas.DataFrame(rows, columns=["sender", "receiver", "score"])

    def _figure(self, *, n: int = MOST) -> Figure:
        """Its nodes by layer, the embedding below, and its n largest edges: width is size, blue is negative."""
        return Figure([network(self, n)])

    def draw(self, path: str | Path | None = None, *, title: str = "Circuit") -> Svg:
        """An SVG of its nodes and edges, the largest ones where there are many; also written to `path`, if given. It is
        text that a notebook shows as a picture."""
        made = Svg(svg(self, title))
        if path is not None:
            Path(path).write_text(made, encoding="utf-8")
        return made

    def save(self, path: str | Path, *, form: Form = "eap-ig", tokens: Sequence[str] = ()) -> Path:
        """Write a `.json` or `.pt` file as EAP-IG does, or the JSON of CircuitKIT or of circuit-tracer's viewer, which
        shows the `tokens` of a prompt below it."""
        return write_edges(Path(path), self.graph, self.mask, self.scores, form=form, tokens=tokens)

    @classmethod
    def load(cls, path: str | Path, *, graph: Graph | None = None) -> Circuit:
        """Read any of these files; `graph` is the model's, needed where kv heads are shared."""
        own, mask, scores = read_edges(path, graph=graph)
        return cls(own, mask, "edge", {"file": Path(path).name}, scores)

    def __repr__(self) -> str:
        return f"Circuit of {len(self)} edges ({self.fraction:.1%}) and {len(self.nodes)} nodes, by {self.level}s"


@dataclass(frozen=True)
class Comparison:
    """Edges of two circuits of one graph."""

    shared: tuple[str, ...]
    """The edges that both circuits have."""
    first: tuple[str, ...]
    """The edges that only the first circuit has."""
    second: tuple[str, ...]
    """The edges that only the second circuit has."""

    @property
    def jaccard(self) -> float:
        """Shared edges over all edges of either; 1 for two empty circuits."""
        every = len(self.shared) + len(self.first) + len(self.second)
        return len(self.shared) / every if every else 1.0

    def _repr_html_(self) -> str:
        apart = f"{len(self.first)} and {len(self.second)} in one"
        said = f"{len(self.shared)} edges in both, {apart} alone; Jaccard {self.jaccard:.2f}"
        parts = (folded(name, line("\n".join(getattr(self, name)))) for name in ("shared", "first", "second"))
        return block(line(said), *parts)
