"""What heads do: one on a card (`head`), all by published kinds (`head_roles`, `kinds/`), those of cross-attention
by what their tokens are about (`alignment`), by weights alone
(`head_circuits`, `matrices`), by pattern (`atlas`, `patterns/`), and how much they matter (`importance`, `measures/`;
`gates`, `gate_kinds`). `rows` and `sets` are tables and sets of heads that several of them read.
"""

from __future__ import annotations

from interp.heads.alignment import alignment
from interp.heads.atlas import atlas
from interp.heads.gates import gates
from interp.heads.head import head
from interp.heads.head_circuits import head_circuits
from interp.heads.head_roles import head_roles
from interp.heads.importance import importance
from interp.heads.measures.table import Importance

__all__ = ["Importance", "alignment", "atlas", "gates", "head", "head_circuits", "head_roles", "importance"]
