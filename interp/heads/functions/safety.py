"""Safety heads: those without whose attention the answer to a harmful request changes most.

Zhou et al. 2024 (arXiv 2410.13708), Ships: for one query the divergence, in nats,

    Ships(h) = KL( p(next word) || p(next word | head h's attention undifferentiated) )

where undifferentiated means that the head looks at everything it sees alike: its scores are multiplied by next to
nothing. Give the requests that are refused as data; the same number on harmless ones says what is particular to them.
Whether a model refuses is a task: `interp.compare` with the refusal's first word against the first word of an answer.
Cost: a pass per layer, and a sweep of patches. Limits: any head whose attention matters has a divergence, whatever the
request; their search for groups of heads (Sahara) is not here.
"""

from __future__ import annotations

from torch import Tensor

from interp.heads.functions.asked import FunctionGround, Numbers
from interp.heads.kinds.reading import heads_of
from interp.hooks.edits.edits import UniformAttention
from interp.hooks.sites import Site
from interp.metrics.shipped import KL
from interp.patching.cells import targets
from interp.patching.exact import Question, prepare
from interp.patching.sources import Given
from interp.patching.swept import exactly

NAME = "safety"
MOVES = "divergence without its attention (Ships)"


def refuses(asked: FunctionGround) -> str | None:
    """It needs logits of a next word."""
    return None


def measure(asked: FunctionGround) -> Numbers:
    """The divergence for every head."""
    model, x = asked.model, asked.x
    logits = model.run(x)["logits"]
    values = {Site(s.tower, s.layer, "z"): _uniform(asked, s) for s in asked.sites}
    cells = [f"{name}.z" for name in asked.names]
    ready = prepare(Question(model, targets(model, cells, (), 1, pairs=False)), x, Given(values, "uniform attention"),
                    {"": KL.to(logits, x, negate=False)})  # fmt: skip
    found = exactly(ready)
    return {MOVES: found[""].double().cpu()}


def _uniform(asked: FunctionGround, site: Site) -> Tensor:
    """z of the layer where all its heads look at everything alike."""
    place = Site(site.tower, site.layer, "z")
    everyone = Site(site.tower, site.layer, "attention", tuple(heads_of(asked.model, site)))
    found: Tensor = asked.model.run(asked.x, record=place, edits=[UniformAttention(str(everyone))])[place]
    return found
