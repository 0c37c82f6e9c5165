"""Which connections carry a behaviour: `edges` scores them, `acdc` prunes them, a `Circuit` is some of them, and
`faithfulness` judges it. How scores are computed lies in `graph/`.
"""

from __future__ import annotations

from interp.circuits.acdc import acdc
from interp.circuits.circuit import Circuit
from interp.circuits.edge_scores import Edges
from interp.circuits.edges import edges
from interp.circuits.faithfulness import faithfulness
from interp.circuits.judged import Faithfulness

__all__ = ["Circuit", "Edges", "Faithfulness", "acdc", "edges", "faithfulness"]
