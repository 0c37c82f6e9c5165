"""What heads do: one on a card (`head`), all by published kinds (`head_roles`, `kinds/`), those of cross-attention by
what their tokens are about (`alignment`), by what they do for a task (`functions/`), by weights alone (`weights/`), by
pattern (`atlas`, `patterns/`), and how much they matter (`importance`, `measures/`; `gates`, `gate_kinds`). `rows` and
`sets` are tables and sets of heads that several of them read."""

from __future__ import annotations

from interp.heads.alignment import alignment
from interp.heads.atlas import atlas
from interp.heads.functions.head_functions import head_functions
from interp.heads.functions.vectors import function_vector
from interp.heads.gates import gates
from interp.heads.head import head
from interp.heads.head_roles import head_roles
from interp.heads.importance import importance
from interp.heads.measures.table import Importance
from interp.heads.reach.backups import backups
from interp.heads.reach.pursuit import pursuit
from interp.heads.reach.together import together
from interp.heads.weights.directions import head_directions
from interp.heads.weights.head_circuits import head_circuits
from interp.heads.weights.matrices import HeadMatrix, head_matrix
from interp.heads.weights.overlap import head_overlap
from interp.heads.weights.virtual import virtual_heads

__all__ = [
    "HeadMatrix", "Importance", "alignment", "atlas", "backups", "function_vector", "gates", "head", "head_circuits",
    "head_directions", "head_functions", "head_matrix", "head_overlap", "head_roles", "importance", "pursuit",
    "together", "virtual_heads",
]  # fmt: skip
