"""Integrated gradients along the straight line between the embeddings of base and source.

    ig           <a(source) - a(base), mean over the path of d metric / d a>, the inputs being interpolated and all else
                 following (Hanna et al. 2024, EAP-IG with inputs, arXiv 2403.17806; here for nodes)
    conductance  sum over steps of <a(k+1) - a(k), d metric / d a between>: the path integral at the site itself
                 (Dhamdhere et al. 2018, 1805.12233), so that the cells of a cut sum to metric(source) - metric(base)

The grid is midpoints, (k + 1/2) / steps, written into the result; the embedding is what the tower's first layer reads.
Cost: one forward pass for the source, one forward and one backward per step, and for conductance one forward per step
more. Limits: ten steps by default, five are not enough for single nodes; a step function between two grid points is not
seen, one that is hit is overstated; the path runs through inputs that nobody typed.
"""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor

from interp.attribution.pair import Pair, Setting, contributions, observed, wide
from interp.hooks.edits.edits import Set
from interp.hooks.errors import InputsError
from interp.hooks.inputs.inputs import Inputs
from interp.hooks.sites import Site
from interp.records import Variant, register


def estimate(pair: Pair, setting: Setting) -> Tensor:
    """[cell, row]: endpoints' difference times the mean gradient."""
    line = _Line(pair, setting.steps)
    total: dict[Site, Tensor] = {}
    for alpha in line.midpoints():
        found = pair.run(edits=line.at(alpha), first_order=False)
        for site, slope in found.gradients().items():
            total[site] = total.get(site, 0.0) + wide(slope) / line.steps
    change = pair.change(line.base)
    return pair.cells(contributions(change, total))


def conductance(pair: Pair, setting: Setting) -> Tensor:
    """[cell, row]: the sum of each step's difference times the gradient in its middle."""
    line = _Line(pair, setting.steps)
    total: dict[Site, Tensor] = {}
    for n, (here, there) in enumerate(pairwise(line.edges())):
        slopes = pair.run(edits=line.at((n + 0.5) / line.steps), first_order=False).gradients()
        step = {site: wide(there[site]) - wide(here[site]) for site in slopes}
        for site, part in contributions(step, slopes).items():
            total[site] = total.get(site, 0.0) + part
    return pair.cells(total)


class _Line:
    """The way from the base's embeddings to the source's, for the towers whose sites were asked for."""

    def __init__(self, pair: Pair, steps: int) -> None:
        if not isinstance(pair.source, Inputs):
            raise InputsError(
                f"a path needs two runs, and the source is {pair.source!r}: give a source run, or use method='atp'."
            )
        if pair.align is not None:
            raise InputsError(
                "a path goes from the base's embeddings to the source's, which have to line up token by token: use"
                " method='atp' or 'relp' with align=."
            )
        if steps < 1:
            raise InputsError(f"a path has at least one step, got steps={steps}.")
        self.pair, self.steps = pair, steps
        towers = list(dict.fromkeys(site.tower for site in pair.chosen))
        if len(towers) > 1:
            raise InputsError(
                f"the sites are in the towers {', '.join(map(str, towers))}, and a path starts at the embedding of one"
                " tower: name the sites of one tower in each call."
            )
        self.embed = Site(towers[0], None, "embed")
        found, logits = pair.seen(record=[self.embed, *pair.whole])
        pair.score = pair.judged(logits)
        self.start = found[self.embed]
        self.base = {site: found[site] for site in pair.whole}
        self.end = observed(pair.model, pair.source, [self.embed], kept=pair.kept)[0][self.embed]
        pair.passes += 1
        pair.notes |= {"steps": steps, "grid": [round(a, 6) for a in self.midpoints()], "path": str(self.embed)}

    def midpoints(self) -> list[float]:
        return [(k + 0.5) / self.steps for k in range(self.steps)]

    def at(self, alpha: float) -> list[Set]:
        """The edit that puts the run at a point of the line, rounded once where the model is narrow."""
        start, end = wide(self.start), wide(self.end)
        return [Set(str(self.embed), (start + alpha * (end - start)).to(self.start.dtype))]

    def edges(self) -> list[dict[Site, Tensor]]:
        """Values of the sites at the ends of the steps, the two runs at the ends."""
        inner = [self._values(k / self.steps) for k in range(1, self.steps)]
        return [self.base, *inner, {site: self.pair.given(site) for site in self.pair.whole}]

    def _values(self, alpha: float) -> dict[Site, Tensor]:
        return dict(self.pair.seen(record=self.pair.whole, edits=self.at(alpha))[0])


register(
    Variant(
        "interp.attribute",
        "ig",
        number="estimate of patching from the mean gradient between the embeddings of base and source",
        run=estimate,
        order=7,
        passes=lambda t: 2 + 2 * 3,
        example={"steps": 3},
        papers=("2403.17806",),
    )
)
register(
    Variant(
        "interp.attribute",
        "conductance",
        number="the part of the metric's change along the path that runs through the cell; cells of a cut sum to it",
        run=conductance,
        order=8,
        passes=lambda t: 1 + 3 * 3,
        example={"steps": 3},
        papers=("1805.12233",),
    )
)
