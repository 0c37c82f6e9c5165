"""What of the input the answer rests on: a number per token or patch.

With e the tower's embedded input (what its first layer reads) and g the metric's gradient there,

    gradient            |g|, the length of the gradient (Simonyan et al. 2013, arXiv 1312.6034)
    gradient_x_input    g . e
    ig                  (e - e0) . mean of g along the line from e0 (Sundararajan et al. 2017, 1703.01365); e0 is 0
    smoothgrad          |mean of g over noisy inputs| (Smilkov et al. 2017, 1706.03825); noise 0.15 of the input's range
    attnlrp relp cp-lrp gim   g . e with the gradient of those rules (`hooks/slopes/rules.py`)
    chefer chefer-generic     relevance rolled out through attention (`attribution/rollout.py`)

The first four and the gradient of the rules come from captum. `salient()` of a result is context-aware saliency
(Goferman et al. 2010) of the relevance map, as in salient relevance (Li et al. 2017, 1712.08268), on the patches' grid.
Cost: a forward and a backward pass; as many as `steps` or `samples` for ig and smoothgrad. Limits: a map is a claim
about the model, not about the picture, and methods disagree: check with `interp.patch` or by deleting what is named.
LXT's authors state that LRP is patented technology, free for personal and scientific use.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from interp.attribution.rollout import rolled_out
from interp.attribution.ruled import CITED, SETS
from interp.hooks.edits.edits import Set
from interp.hooks.errors import InputsError, ModelError
from interp.hooks.html import Told
from interp.hooks.inputs.inputs import Inputs
from interp.hooks.run.session import Session
from interp.hooks.run.tape import tower_inputs
from interp.hooks.sites import Site
from interp.hooks.slopes.gradients import frozen, refuse_rounding
from interp.hooks.slopes.rules import Rules, applicable
from interp.hooks.stand.output import logits_of, no_logits
from interp.metrics.judge import Metric, judged
from interp.metrics.named import metric_name
from interp.metrics.reading import hands_over, site_of
from interp.records import Kind, Method, Passes, Variant, register, variants
from interp.results.figures.maps import overlay, salient

if TYPE_CHECKING:
    from interp.model import Model

NOISE = 0.15


@dataclass(frozen=True, eq=False)
class Relevance(Told):
    """`values` [example, position]; padding is 0."""

    values: Tensor
    """[example, position]: the relevance of each position for the metric; 0 for padding."""
    inputs: Inputs
    """The positions of the tower."""
    method: str
    """The name of the method."""
    meta: dict[str, Any] = field(default_factory=dict)
    """How it was computed, by name: method, metric, model, settings."""

    def to_frame(self) -> Any:
        """One row per real position: example, position, token, what it is, relevance."""
        import pandas

        return pandas.DataFrame(
            {
                "example": row,
                "position": at,
                "token": self.inputs.tokens[row][at] if self.inputs.tokens is not None else None,
                "is": self.inputs.roles.label(row, at),
                "relevance": float(self.values[row, at]),
            }
            for row in range(len(self.values))
            for at in self.inputs.valid[row].nonzero().flatten().tolist()
        )

    def grid(self, row: int = 0, *, tile: int = 0) -> Tensor:
        """[height, width] of one image's patches; NaN where no patch is."""
        roles = self.inputs.roles
        here = (roles.row[row] >= 0) & (roles.tile[row] == tile)
        if not bool(here.any()):
            raise InputsError(f"row {row} has no patches of picture {tile}, so there is no grid: use to_frame().")
        down, across = roles.row[row][here], roles.col[row][here]
        out = torch.full((int(down.max()) + 1, int(across.max()) + 1), torch.nan, dtype=self.values.dtype)
        out[down, across] = self.values[row][here.to(self.values.device)]
        return out

    def overlay(self, image: Any, row: int = 0, *, strength: float = 0.6) -> Any:
        """The picture (anything `prepare` takes as one) with the map on it: red for, blue against. A PIL image."""
        return overlay(image, self.grid(row), strength=strength)

    def salient(self, row: int = 0) -> Tensor:
        """[height, width] context-aware saliency of the map: patches that differ from those around them."""
        return salient(self.grid(row))

    def __repr__(self) -> str:
        best = int(self.values.abs().flatten().argmax())
        row, at = divmod(best, self.values.shape[1])
        token = f" {self.inputs.tokens[row][at]!r}" if self.inputs.tokens is not None else ""
        return (
            f"Relevance by {self.method} of {list(self.values.shape)} [example, position]; largest {row}, {at}{token}"
        )


@hands_over
def relevance(
    model: Model,
    inputs: Any,
    *,
    metric: Metric,
    method: str = "gradient_x_input",
    tower: str | None = None,
    steps: int = 20,
    samples: int = 20,
    seed: int = 0,
) -> Relevance:
    """The relevance of every position of a tower's input for the metric (`lambda logits, inputs: logits[:, label]`)."""
    known = variants("interp.relevance", room="attribution")
    if method not in known:
        raise InputsError(f"no relevance method {method!r}; there are {', '.join(known)}.")
    anatomy = model.ready()
    refuse_rounding(model.module)
    stack = anatomy.tower(tower, text="relevance")
    embed = Site(None if len(anatomy.towers) == 1 else stack.name, None, "embed")
    asked = _Asked(model, model.inputs(inputs), metric, embed, steps, samples, seed)
    values: Tensor = known[method].run(asked)
    positions = tower_inputs(asked.x, asked.embed)
    values = values.detach().cpu().to(torch.promote_types(values.dtype, torch.float32))
    if positions.valid.shape == values.shape:
        values = values.masked_fill(~positions.valid.cpu(), 0.0)
    if not bool(torch.isfinite(values).all()):
        raise ModelError(f"the relevance by {method} is not finite: a rule divided by 0 in this model.")
    return Relevance(values, positions, method, {"metric": metric_name(metric), "tower": stack.name})


@dataclass(eq=False)
class _Asked:
    model: Model
    x: Inputs
    metric: Metric
    embed: Site
    steps: int
    samples: int
    seed: int
    dtype: torch.dtype | None = None
    """What the model computes in, where captum's sums are wider."""

    def score(self, logits: Tensor) -> Tensor:
        value = judged(self.metric, self.x, logits)
        if logits.requires_grad and not value.requires_grad:
            raise InputsError(
                "the metric carries no gradient: it counts or compares (accuracy, argmax). Use a logit, a logit"
                " difference or a probability."
            )
        return value

    def forward(self, embedded: Tensor) -> Tensor:
        """The metric with this as the tower's embedded input, in what captum calls."""
        m = self.model
        put = Session(
            m.module, m.anatomy, edits=[Set(str(self.embed), embedded.to(self.dtype))], inputs=self.x, family=m.family
        )
        with put:
            logits = logits_of(m.module(**m.called_with(self.x.kwargs)))
        put.check_fired()
        if logits is None:
            raise no_logits(m.module)
        return self.score(logits)

    def rolled(self, *, propagated: bool) -> Tensor:
        m, site = self.model, site_of(self.metric)
        if propagated and site is not None:
            raise InputsError(
                f"relevance is propagated from the logits of a class, and this metric reads {site!r}, whose numbers"
                " have no relevance of their own to start from: use method='chefer-generic'."
            )
        stack = m.anatomy.tower(self.embed.tower, text=str(self.embed))
        whole, read = rolled_out(m.module, stack, m.called_with(self.x.kwargs), self.score, propagated=propagated)
        share = (read / read.sum(1, keepdim=True)).to(whole.dtype)
        owed = whole - torch.eye(whole.shape[-1])  # the 1 of the identity is the position itself, not what it read
        return torch.einsum("rt,rtf->rf", share, owed)


Explain = Callable[["_Asked", Any, Tensor], Tensor]
"""From the question, captum and the embedded input to relevance."""


def _by_gradient(explain: Explain) -> Callable[[_Asked], Tensor]:
    """One of captum's, on the embedded input: products and sums in float32 or better, whatever the model is."""

    def run(asked: _Asked) -> Tensor:
        captum = _captum()
        with frozen(asked.model.module), torch.enable_grad():
            embedded = asked.model.run(asked.x, record=[asked.embed])[asked.embed].detach()
            asked.dtype = embedded.dtype
            wide = embedded.to(torch.promote_types(embedded.dtype, torch.float32))
            return explain(asked, captum, wide.requires_grad_())

    return run


def _gradient(asked: _Asked, captum: Any, e: Tensor) -> Tensor:
    found: Tensor = captum.Saliency(asked.forward).attribute(e, abs=False).norm(dim=-1)
    return found


def _smoothed(asked: _Asked, captum: Any, e: Tensor) -> Tensor:
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Input Tensor 0 did not already require", module="captum")
        torch.manual_seed(asked.seed)
        tunnel = captum.NoiseTunnel(captum.Saliency(asked.forward))
        noise = NOISE * float(e.detach().max() - e.detach().min())
        found: Tensor = tunnel.attribute(
            e, nt_type="smoothgrad", nt_samples=asked.samples, nt_samples_batch_size=1, stdevs=noise, abs=False
        ).norm(dim=-1)
    return found


def _along(asked: _Asked, captum: Any, e: Tensor) -> Tensor:
    ways = captum.IntegratedGradients(asked.forward)
    found: Tensor = ways.attribute(e, n_steps=asked.steps, method="riemann_middle", internal_batch_size=len(e)).sum(-1)
    return found


def _times_input(asked: _Asked, captum: Any, e: Tensor) -> Tensor:
    found: Tensor = captum.InputXGradient(asked.forward).attribute(e).sum(-1)
    return found


def _ruled(names: tuple[str, ...]) -> Explain:
    def explain(asked: _Asked, captum: Any, e: Tensor) -> Tensor:
        module, anatomy = asked.model.module, asked.model.anatomy
        with Rules(module, anatomy, applicable(module, anatomy, names)).on():
            return _times_input(asked, captum, e)

    return explain


def _rolled(propagated: bool) -> Callable[[_Asked], Tensor]:
    return lambda asked: asked.rolled(propagated=propagated)


def _captum() -> Any:
    try:
        import captum.attr
    except ImportError:
        raise ModelError(
            "these maps are captum's: pip install 'interp[captum]', or use method='chefer-generic'."
        ) from None
    return captum.attr


register(
    Method(
        "interp.relevance",
        number="relevance of a position of the tower's input for the metric; signed unless the method is a length",
        shown="tokens",
        needs=("metric",),
        passes=lambda t: 3,
        examples=0,
        example=lambda t, **how: relevance(t.model, t.base, metric=t.metric, tower=t.tower.rstrip(".") or None, **how),
    )
)
_CHOICES: tuple[tuple[str, str, Callable[[_Asked], Tensor], tuple[str, ...]], ...] = (
    ("gradient", "the length of the gradient", _by_gradient(_gradient), ("1312.6034",)),
    ("gradient_x_input", "gradient times input", _by_gradient(_times_input), ("1312.6034",)),
    ("ig", "gradient times input along the line from 0", _by_gradient(_along), ("1703.01365",)),
    ("smoothgrad", "the length of the mean gradient over noisy inputs", _by_gradient(_smoothed), ("1706.03825",)),
    *((name, "input times what the rules make of the gradient", _by_gradient(_ruled(SETS[name])), CITED[name])
      for name in SETS),
    ("chefer", "relevance rolled out through attention, patterns weighed by their relevance", _rolled(True),
     ("2012.09838",)),
    ("chefer-generic", "relevance rolled out through attention", _rolled(False), ("2103.15679",)),
)  # fmt: skip
_WHY = "relevance is propagated through the operators of ViTs only"
_UNFIT: dict[Kind, str] = dict.fromkeys(("decoder", "lvlm", "encoder-decoder"), _WHY)
_PASSES: dict[str, Passes] = {
    "ig": lambda t: 1 + 2 * 3, "smoothgrad": lambda t: 1 + 2 * 3, "chefer": lambda t: 5, "chefer-generic": lambda t: 2,
}  # fmt: skip
for _order, (_name, _number, _run, _papers) in enumerate(_CHOICES):
    register(
        Variant(
            "interp.relevance",
            _name,
            number=_number,
            run=_run,
            order=_order,
            passes=_PASSES.get(_name),
            example={"steps": 3, "samples": 3},
            papers=_papers,
            unfit=_UNFIT if _name == "chefer" else {},
        )
    )
