"""Another attention in a head's place: operators are values that name their heads, and work wherever edits do.

    with m.edited([Linear("L5.H*", "elu")]): ...

Linear in length (`linear/`), softmax over fewer keys by position (`windows/`) or by content (`routed/`), and others
(`other/`), one operator a file. `compare` compares operators with the heads' own softmax, `mimic` fits one to heads,
`find_blocks` finds the blocks that heads read, `route_heads` learns which heads each token needs, `replaceable` says
where the model goes on without its softmax, `dependency_tree` is the tree that a pattern draws.
"""

from __future__ import annotations

from interp.operators.common.operator import Operator
from interp.operators.compare import Compared, compare
from interp.operators.find_blocks import find_blocks
from interp.operators.linear.agent import Agent
from interp.operators.linear.inline import InLine
from interp.operators.linear.linear import Linear, slopes
from interp.operators.linear.local_linear import LocalLinear
from interp.operators.linear.rank_augmented import RankAugmented
from interp.operators.linear.scan import PrefixScan
from interp.operators.mimic import Mimicry, mimic
from interp.operators.other.channels import Channels
from interp.operators.other.memory import MemoryTokens
from interp.operators.other.relative import RelativeScores
from interp.operators.other.reversed import Reversed
from interp.operators.other.static import StaticQK
from interp.operators.replaceable import Replaceable, replaceable
from interp.operators.route_heads import Routes, route_heads
from interp.operators.routed.chunks import Chunks
from interp.operators.routed.clusters import Clusters
from interp.operators.routed.dynamic_mask import DynamicMask
from interp.operators.routed.estimated import Estimated
from interp.operators.routed.landmarks import Landmarks
from interp.operators.routed.low_rank import LowRank
from interp.operators.routed.two_level import TwoLevel
from interp.operators.tree import dependency_tree
from interp.operators.windows.masked import Masked

__all__ = [
    "Agent", "Channels", "Chunks", "Clusters", "Compared", "DynamicMask", "Estimated", "InLine", "Landmarks", "Linear",
    "LocalLinear", "LowRank", "Masked", "MemoryTokens", "Mimicry", "Operator", "PrefixScan", "RankAugmented",
    "RelativeScores", "Replaceable", "Reversed", "Routes", "StaticQK", "TwoLevel", "compare", "dependency_tree",
    "find_blocks", "mimic", "replaceable", "route_heads", "slopes",
]  # fmt: skip
