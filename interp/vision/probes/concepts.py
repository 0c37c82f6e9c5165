"""Concepts that patches of pictures fall into: a mixture of topics on patch embeddings, after PACE.

PACE (arXiv 2406.12649) explains a vision transformer by K concepts, each a Gaussian (mu_k, Sigma_k) of patch embeddings
e_j; an example has a mixture of them drawn from Dirichlet(alpha), a patch one of them. Variational E-steps:

    phi_jk ~ exp(psi(gamma_k) - (e_j - mu_k)^T Sigma_k^-1 (e_j - mu_k) / 2) / |Sigma_k|^(1/2)     sums to 1 over k
    gamma_k = alpha + sum_j w_j phi_jk

w_j is the class token's weight on the patch in the last layer, mean over heads, brought to mean 1 (all 1 where there is
no class token). M-steps are the weighted means and covariances. Embeddings are brought to `dim` numbers by their main
components: PACE's model without its training (ours: components, start by k-means++, steps, ridge of the covariances).
`learn=` steps of training go on from there, with what the paper learns too: the map to `dim` numbers, weights that say
the model's answer, and mixtures that stay the same under changed views (`learned.py`; how terms are weighed is ours).
`faithfulness` is the paper's question, asked on examples left out: how often the answer that a linear softmax gives
from the mean phi of an example is the model's own. `stability` is how often the mixture nearest to it, among those of
changed views, is that of the same picture. Defaults of the paper: K 100, dim 25, alpha 2.
Cost: two forward passes, then K dim^2 a patch and step. Limits: concepts have no names; another seed finds others.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from interp.finite import finite
from interp.hooks.errors import InputsError
from interp.provenance import about
from interp.records import NO_PICTURE, Method, register
from interp.results.figures.figure import Figure
from interp.results.figures.marks import Heatmap
from interp.results.saved import Saved
from interp.vision.maps.cells import pixel_map
from interp.vision.maps.trial import many
from interp.vision.probes.learned import Concept, learned, nearest
from interp.vision.probes.mixture import Mixture
from interp.vision.probes.tokens import boxes_of_tokens, halves, picture_tokens

if TYPE_CHECKING:
    from interp.model import Model


@dataclass(frozen=True, eq=False)
class Concepts(Saved):
    """Concepts and how much each patch is of them."""

    STEM = "concepts"

    site: str
    """The place whose tokens are explained."""
    phi: Tensor
    """[example, patch, concept]: sums to 1 over concepts."""
    gamma: Tensor
    """[example, concept]: how much of the example each concept is, not yet divided by the sum; `theta` is."""
    means: Tensor
    """[concept, dim]: the mean of each concept's patches, in the `dim` numbers that patches are brought to."""
    bound: Tensor
    """[seed]: mean log density of patches under the model, of each start; the best is kept."""
    faithfulness: Tensor
    """[seed]: how often the model's answer is that of its concepts, on examples left out."""
    stability: Tensor
    """[seed]: how often a mixture is nearest to that of its own picture, changed, on examples left out."""
    boxes: Tensor
    """[example, patch, 4] in pixels (left, top, right, bottom); NaN where it is not known."""
    sizes: tuple[tuple[int, int], ...]
    """(height, width) of each example's picture, in pixels; none where it is not known."""
    meta: Mapping[str, Any] = field(default_factory=dict)

    @property
    def theta(self) -> Tensor:
        """[example, concept]: the mixture of each example."""
        return self.gamma / self.gamma.sum(-1, keepdim=True)

    def map(self, concept: int, example: int = 0) -> Tensor:
        """Where a concept is in a picture, over its pixels."""
        if not self.sizes:
            raise InputsError("the pictures' sizes are not known: prepare the inputs from pictures.")
        return pixel_map(self.phi[example, :, concept], self.boxes[example], self.sizes[example])

    def to_frame(self) -> Any:
        """One row a concept: its share of all patches, how many patches are mostly it, and of how many examples."""
        import pandas

        mostly = self.phi.argmax(-1)
        counts = [(mostly == n) for n in range(len(self.means))]
        return pandas.DataFrame(
            {"concept": range(len(self.means)), "share": self.phi.mean((0, 1)).numpy(),
             "patches": [int(one.sum()) for one in counts],
             "examples": [int(one.any(1).sum()) for one in counts]}
        )  # fmt: skip

    def _figure(self) -> Figure:
        """The mixtures of examples."""
        return Figure([Heatmap(self.theta.numpy(), x="concept", y="example", name="share", scale="weight")])

    def __repr__(self) -> str:
        used = int((self.phi.mean((0, 1)) > 0.5 / len(self.means)).sum())
        return (
            f"Concepts at {self.site}: {used} of {len(self.means)} in use on {len(self.phi)} pictures; the model's"
            f" answer from concepts alone {float(self.faithfulness.mean()):.0%} of the time, the same picture"
            f" recognised {float(self.stability.mean()):.0%}, held out"
        )


@torch.enable_grad()
def concepts(
    model: Model,
    inputs: Any,
    *,
    site: str,
    k: int = 100,
    dim: int = 25,
    alpha: float = 2.0,
    steps: int = 20,
    learn: int = 0,
    rate: float = 0.01,
    held_out: float = 0.25,
    seeds: Sequence[int] = (0, 1, 2),
) -> Concepts:
    """`site` is one place of the vision tower, such as "L10.resid_post"."""
    x, read, tokens, _ = picture_tokens(model, inputs, site)
    count = tokens.shape[0] * tokens.shape[1]
    if not 1 <= k <= count or not alpha > 0 or steps < 1 or learn < 0 or not seeds:
        raise InputsError(
            f"k= is 1 to {count} (patches), alpha= above 0, steps= and seeds= at least one, learn= at least 0; got"
            f" k={k}, alpha={alpha}, learn={learn}."
        )
    weights, logits = _weights(model, x, read, tokens.shape[1])
    seen = Seen.of(tokens, _changed(model, x, site), dim, weights, logits)
    found = [_explained(seen, k, alpha, steps, learn, rate, held_out, seed) for seed in seeds]
    best = max(found, key=lambda one: one.bound)
    boxes, sizes = boxes_of_tokens(read, tokens.shape[1], False)
    meta = {**about(model.module, x), "method": "concepts", "site": site, "alpha": alpha, "steps": steps,
            "learn": learn, "seeds": list(seeds), "dim": seen.small.shape[-1]}  # fmt: skip
    scores = torch.tensor([(one.bound, one.faithful, one.stable) for one in found]).double().unbind(1)
    phi = finite(best.phi, "concepts of patches")
    return Concepts(site, phi, best.gamma, best.means, scores[0], scores[1], scores[2], boxes, sizes, meta)


@dataclass(frozen=True, eq=False)
class Seen:
    """Tokens of pictures and of their changed views, as they come and brought to few numbers."""

    tokens: Tensor
    changed: Tensor
    map: Tensor
    """[d, dim]: the main components, scaled."""
    middle: Tensor
    weights: Tensor
    answers: Tensor
    """[example, answer]: the model's probabilities of those answers that it gives to some example."""

    @classmethod
    def of(cls, tokens: Tensor, changed: Tensor, dim: int, weights: Tensor, logits: Tensor) -> Seen:
        wide = tokens.double()
        middle = wide.flatten(0, 1).mean(0)
        _, _, components = torch.linalg.svd(wide.flatten(0, 1) - middle, full_matrices=False)
        axes = components[: min(dim, len(components))].T
        scale = ((wide - middle) @ axes).std().clamp(min=1e-12)
        answers = logits.double()[:, logits.argmax(-1).unique()].softmax(-1)
        return cls(wide - middle, changed.double() - middle, axes / scale, middle, weights, answers)

    @property
    def small(self) -> Float[Tensor, "example patch dim"]:
        """The main components of the pictures."""
        return self.tokens @ self.map


@dataclass(frozen=True, eq=False)
class Found:
    """Concepts from one start, and their held-out scores."""

    phi: Tensor
    gamma: Tensor
    means: Tensor
    bound: float
    faithful: float
    stable: float


def _explained(
    seen: Seen, k: int, alpha: float, steps: int, learn: int, rate: float, held_out: float, seed: int
) -> Found:
    fit, judged = halves(len(seen.tokens), held_out, seed)
    if not learn:
        one = Mixture.fitted(seen.small, seen.weights, k, alpha, steps, seed)
        changed = one.of(seen.changed @ seen.map, seen.weights, alpha).mean(1)
        said = _faithful(one.phi, seen.answers.argmax(-1), held_out, seed)
        return Found(one.phi, one.gamma, one.means, one.bound, said, _stays(one.phi, changed, judged))
    start = Concept(seen.map, *Mixture.empty(k, seen.map.shape[1]), 1).small(seen.tokens, seen.tokens[fit]).detach()
    first = Mixture.fitted(start[fit], seen.weights[fit], k, alpha, steps, seed)
    best = learned(
        seen.tokens, seen.changed, seen.weights, seen.answers, fit, (seen.map, first.means, first.covariances),
        alpha=alpha, steps=learn, rate=rate,
    )  # fmt: skip
    right = (best.said.argmax(-1) == seen.answers.argmax(-1))[judged].double().mean()
    return Found(best.phi, best.gamma, best.means, best.bound, float(right), _stays(best.phi, best.changed, judged))


def _stays(phi: Tensor, changed: Tensor, judged: Tensor) -> float:
    return nearest(phi.mean(1)[judged], changed[judged])


def _changed(model: Model, x: Any, site: str) -> Float[Tensor, "example token d"]:
    """The same tokens with noise of a tenth of their spread on the pixels."""
    random, call = torch.Generator().manual_seed(0), dict(x.kwargs)
    for name, value in x.kwargs.items():
        if torch.is_tensor(value) and value.is_floating_point() and "mask" not in name:
            noise = torch.randn(value.shape, generator=random).to(value)
            call[name] = value + 0.1 * value.std() * noise
    _, _, tokens, _ = picture_tokens(model, model.inputs(call), site)
    return tokens


def _weights(model: Model, x: Any, read: Any, patches: int) -> tuple[Float[Tensor, "example patch"], Tensor]:
    """What the class token gives each patch in the last layer, mean 1; and the model's answers."""
    kept = (read.roles.where("image") & read.valid & read.roles.patch).cpu()
    tower = model.ready().tower("vision", text="concepts")
    if int(read.roles.where("cls").sum(1).min()) != 1 or read.batch != x.batch:
        return torch.ones(len(kept), patches).double(), _last(model.run(x)["logits"])
    name = "" if x.main == "vision" else "vision."
    place = f"{name}L{tower.layers[-1].index}.pattern"
    column = read.roles.where("cls").int().argmax(1)
    tape = model.run(x, record=[place], positions=[int(column[0])])
    rows = tape[place][:, :, 0].double().mean(1).cpu()[kept].reshape(len(kept), patches)
    return rows / rows.mean(1, keepdim=True), _last(tape["logits"])


def _last(logits: Tensor) -> Float[Tensor, "example answer"]:
    return (logits if logits.ndim == 2 else logits[:, -1]).cpu()


def _faithful(phi: Tensor, answers: Tensor, held_out: float, seed: int) -> float:
    """How often a softmax of mean concepts, fitted to some examples' answers, gives the others'."""
    fit, judged = halves(len(phi), held_out, seed)
    known, labels = answers.unique(return_inverse=True)
    x = torch.cat([phi.mean(1), torch.ones(len(phi), 1, dtype=phi.dtype)], 1)
    x = x / x[fit].std(0).clamp(min=1e-3)
    with torch.enable_grad():
        eta = torch.zeros(x.shape[1], len(known), dtype=x.dtype, requires_grad=True)
        optimiser = torch.optim.LBFGS([eta], max_iter=50, line_search_fn="strong_wolfe")

        def loss() -> Tensor:
            optimiser.zero_grad()
            value = torch.nn.functional.cross_entropy(x[fit] @ eta, labels[fit]) + 1e-3 * eta.square().mean()
            value.backward()
            return value

        optimiser.step(loss)
    return float(((x[judged] @ eta.detach()).argmax(-1) == labels[judged]).double().mean())


def _example(t: Any) -> Concepts:
    site = "L0.H0.z" if t.kind == "vit" else "vision.L0.H0.z"
    return concepts(t.model, many(t, 8), site=site, k=3, dim=4, steps=2, seeds=[0])


register(
    Method(
        "interp.vision.concepts",
        number="how much of each patch is of each concept",
        shown="none",
        papers=("2406.12649",),
        unfit=NO_PICTURE,
        passes=lambda t: 18,
        values=None,
        example=_example,
    )
)
