"""Edge attribution with the gradients of both ends: the mean of those at the base and at the source.

Clean-corrupted EAP of Hanna et al. 2024 (arXiv 2403.17806): the trapezoid rule with two points in the place of
EAP-IG's path, `S[u -> v] = <write_u(source) - write_u(base), (g_v at the base + g_v at the source) / 2>` with
`g_v = d metric / d in_v`. It sees what is flat at one end only. Cost: two recorded passes and two walks back, half of
EAP-IG with four steps. Limits: blind to what is flat at both ends, as a saturated softmax is.
"""

from __future__ import annotations

from interp.circuits.graph.changes import GraphPair, refuse_filled
from interp.circuits.graph.slopes import Scored, Slopes
from interp.hooks.edits.edits import Set
from interp.hooks.sites import Site
from interp.records import Variant, register


def both_ends(pair: GraphPair, steps: int) -> Scored:
    """The mean gradient of the two runs."""
    refuse_filled(pair, "method='clean-corrupted'")
    more, score, other = pair.changes()
    site = str(Site(pair.blocks.name, None, "embed"))
    end = pair.now(pair.blocks.layers[0], "embed")
    end = end + more.embed.to(end)
    slopes = Slopes(pair, more)
    slopes.add(weight=0.5)
    slopes.add(edits=lambda rows: [Set(site, end[rows])], weight=0.5)
    return slopes.scores, score, other, {"grid": [0.0, 1.0]}


register(
    Variant(
        "interp.edges", "clean-corrupted", number="estimated effect, from the mean gradient of base and source",
        run=both_ends, order=2, papers=("2403.17806",), how={"alone": False}, passes=lambda t: 4 + 12 * 2,
        unfit={"encoder-decoder": "the blocks of its decoder have several attentions"},
    )
)  # fmt: skip
