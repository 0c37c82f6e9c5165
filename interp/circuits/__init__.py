"""Which connections carry a behaviour: `edges` scores them, `span_edges` tells them apart by tokens, `acdc` prunes
them, `edge_pruning` and `bottleneck` learn which to keep. A `Circuit` is some of them, `faithfulness` judges it, and
`judge` asks whether it is real. `graph/` computes scores, `discovery/` has ways to find edges.
"""

from __future__ import annotations

from interp.circuits.acdc import acdc
from interp.circuits.discovery.bottleneck import bottleneck
from interp.circuits.discovery.edge_pruning import edge_pruning
from interp.circuits.discovery.span_edges import span_edges
from interp.circuits.edges import edges
from interp.circuits.faithfulness import faithfulness
from interp.circuits.found.circuit import Circuit
from interp.circuits.found.edge_scores import Edges
from interp.circuits.found.span_edges import SpanEdges
from interp.circuits.judge import judge
from interp.circuits.judged import Faithfulness
from interp.circuits.real.verdict import Verdict

__all__ = [
    "Circuit", "Edges", "Faithfulness", "SpanEdges", "Verdict", "acdc", "bottleneck", "edge_pruning", "edges",
    "faithfulness", "judge", "span_edges",
]  # fmt: skip
