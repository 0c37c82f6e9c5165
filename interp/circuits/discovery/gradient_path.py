"""Edge attribution along a path that the model itself chooses, instead of a straight line.

Zhang et al. 2025, EAP-GP (arXiv 2502.06852). Where the straight line from base to source crosses regions in which a
softmax or an activation is saturated, gradients there are flat and say nothing. The path starts at the base's embedding
and takes `steps` steps (5 in the paper), each against the gradient of the distance between the logits here and the
source's, so that it goes where the answer still moves:

    gamma_{j+1} = gamma_j - g / |g|_2,    g = d |logits(gamma_j) - logits(source)|^2 / d gamma_j

with one norm per example over all its real positions and features; logits of every real position count. The score of
u -> v is <write_u(source) - write_u(base), mean over gamma_1..gamma_k of d metric / d in_v>, the same contraction as in
EAP-IG. Cost: two recorded passes, then per step a pass with its graph and back, and a walk back as in EAP-IG. Memory:
the graph of one whole pass. Limits: a step has length 1 whatever the model's embedding is large, so that on small
embeddings the path leaves what any text gives, and on large ones it stays where it began; where the answer is flat the
direction of a step is rounding, or, where the gradient is exactly 0, there is none; what is flat at the base and all
around it stays unseen.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from interp.circuits.graph.changes import GraphPair, refuse_filled
from interp.circuits.graph.slopes import Edits, Scored, Slopes
from interp.hooks.edits.edits import Set
from interp.hooks.errors import InputsError
from interp.hooks.inputs.inputs import Inputs
from interp.hooks.sites import Site
from interp.hooks.slopes.gradients import frozen
from interp.records import Variant, register

STEPS = 5


def eap_gp(pair: GraphPair, steps: int) -> Scored:
    """The mean gradient along the path."""
    refuse_filled(pair, "method='eap-gp'")
    if steps < 1:
        raise InputsError(f"a path has at least one step, got steps={steps}.")
    more, score, other = pair.changes()
    slopes = Slopes(pair, more)
    start = here = pair.now(pair.blocks.layers[0], "embed")
    for here in path(pair, start, steps):
        slopes.add(edits=_put(pair, here), weight=1 / steps)
    moved = float((here - start).flatten(1).norm(dim=1).mean())
    return slopes.scores, score, other, {"steps": steps, "moved": moved}


def _put(pair: GraphPair, here: Tensor) -> Edits:
    site = str(Site(pair.blocks.name, None, "embed"))
    return lambda rows: [Set(site, here[rows])]


def path(pair: GraphPair, here: Tensor, steps: int) -> Iterator[Tensor]:
    """Embeddings [row, position, d] after each step from `here`."""
    assert isinstance(pair.source, Inputs)
    valid = pair.valid
    with torch.no_grad():
        goal = _logits(pair, pair.source, None)
    for _ in range(steps):
        here = here.detach().requires_grad_()
        gap = (_logits(pair, pair.base, here) - goal).float() ** 2
        if gap.ndim == 3 and gap.shape[1] == valid.shape[1]:
            gap = gap * valid.to(gap.device)[..., None]
        (g,) = torch.autograd.grad(gap.sum(), here)
        g = g * valid.to(g.device)[..., None]
        size = g.flatten(1).norm(dim=1)[:, None, None]
        here = (here - torch.where(size > 0, g / size.clamp(min=torch.finfo(g.dtype).tiny), 0.0)).detach()
        pair.passes += 1
        yield here


def _logits(pair: GraphPair, x: Inputs, embed: Tensor | None) -> Tensor:
    """All logits of a run, with its embedding replaced where one is given."""
    edits = [] if embed is None else [Set(str(Site(pair.blocks.name, None, "embed")), embed)]
    with frozen(pair.model.module):
        found: Tensor = pair.model.run(x, edits=edits, grad=embed is not None)["logits"]
    return found


register(
    Variant(
        "interp.edges", "eap-gp", number="estimated effect, from the mean gradient on a path to the source's logits",
        run=eap_gp, order=6, papers=("2502.06852",), how={"alone": False, "steps": STEPS},
        passes=lambda t: 4 + (12 + 5) * 2,
        unfit={"encoder-decoder": "the blocks of its decoder have several attentions"},
    )
)  # fmt: skip
