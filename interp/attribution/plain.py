"""Attribution patching: the gradient at the base times what the source would change.

Nanda 2022 ("Attribution patching"); analysed in Kramar et al. 2024, arXiv 2403.00745. `est = <a(source) - a(base),
d metric / d a at the base>`, exact where the metric is linear in the site, and additive over positions and dimensions.
Cost: two forward passes and one backward, for every cell at once. Limits: a saturated softmax or activation says 0, a
norm takes out what points along the residual, and direct and indirect effects may cancel.
"""

from __future__ import annotations

from torch import Tensor

from interp.attribution.pair import Pair, Setting, contributions
from interp.records import Variant, register


def estimate(pair: Pair, setting: Setting) -> Tensor:
    """[cell, row]."""
    found = pair.run()
    return pair.cells(contributions(pair.change(found.values), found.gradients()))


register(
    Variant(
        "interp.attribute",
        "atp",
        number="estimate of patching from one plain backward pass",
        run=estimate,
        passes=lambda t: 3,
        papers=("2310.10348", "2403.00745"),
    )
)
