"""Concepts that patches of pictures fall into: a mixture of topics on patch embeddings, after PACE.

PACE (arXiv 2406.12649) explains a vision transformer by K concepts, each a Gaussian (mu_k, Sigma_k) of patch embeddings
e_j; an example has a mixture of them drawn from Dirichlet(alpha), a patch one of them. Variational E-steps:

    phi_jk ~ exp(psi(gamma_k) - (e_j - mu_k)^T Sigma_k^-1 (e_j - mu_k) / 2) / |Sigma_k|^(1/2)     sums to 1 over k
    gamma_k = alpha + sum_j w_j phi_jk

w_j is the class token's weight on the patch in the last layer, mean over heads, brought to mean 1 (all 1 where there is
no class token). M-steps are the weighted means and covariances. Embeddings are brought to `dim` numbers by their main
components; the paper learns that and a term that keeps concepts the same under changed views, which are not here, so
this is PACE's model without its training (ours: components, start by k-means++, steps, ridge of the covariances).
`faithfulness` is the paper's question, asked on examples left out: a linear softmax from the mean phi of an example to
the model's own answer, and how often its largest is the model's. Defaults of the paper: K 100, dim 25, alpha 2.
Cost: one forward pass, then K dim^2 a patch and step. Limits: concepts have no names; another seed finds others.
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
from interp.results.saved import Saved
from interp.vision.maps.cells import pixel_map
from interp.vision.maps.trial import many
from interp.vision.probes.tokens import boxes_of_tokens, halves, picture_tokens

if TYPE_CHECKING:
    from interp.model import Model


@dataclass(frozen=True, eq=False)
class Concepts(Saved):
    """Concepts and how much each patch is of them."""

    STEM = "concepts"

    site: str
    phi: Tensor
    """[example, patch, concept]: sums to 1 over concepts."""
    gamma: Tensor
    """[example, concept]."""
    means: Tensor
    """[concept, dim]."""
    bound: Tensor
    """[seed]: mean log density of patches under the model, of each start; the best is kept."""
    faithfulness: Tensor
    """[seed]: how often the model's answer is that of its concepts, on examples left out."""
    boxes: Tensor
    sizes: tuple[tuple[int, int], ...]
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

    def plot(self) -> Any:
        """The mixtures of examples (plotly)."""
        import plotly.graph_objects as go

        return go.Figure(go.Heatmap(z=self.theta.numpy(), colorscale="Cividis")).update_layout(
            xaxis_title="concept", yaxis_title="example"
        )

    def __repr__(self) -> str:
        used = int((self.phi.mean((0, 1)) > 0.5 / len(self.means)).sum())
        return (
            f"Concepts at {self.site}: {used} of {len(self.means)} in use on {len(self.phi)} pictures; the model's"
            f" answer from concepts alone {float(self.faithfulness.mean()):.0%} of the time, held out"
        )


def concepts(
    model: Model,
    inputs: Any,
    *,
    site: str,
    k: int = 100,
    dim: int = 25,
    alpha: float = 2.0,
    steps: int = 20,
    held_out: float = 0.25,
    seeds: Sequence[int] = (0, 1, 2),
) -> Concepts:
    """`site` is one place of the vision tower, such as "L10.resid_post"."""
    x, read, tokens, _ = picture_tokens(model, inputs, site)
    count = tokens.shape[0] * tokens.shape[1]
    if not 1 <= k <= count or not alpha > 0 or steps < 1 or not seeds:
        raise InputsError(
            f"k= is 1 to {count} (patches), alpha= above 0, steps= and seeds= at least one; got k={k}, alpha={alpha}."
        )
    flat = tokens.reshape(count, -1).double()
    flat = flat - flat.mean(0)
    _, _, components = torch.linalg.svd(flat, full_matrices=False)
    small = flat @ components[: min(dim, len(components))].T
    small = (small / small.std().clamp(min=1e-12)).reshape(*tokens.shape[:2], -1)
    weights, answers = _weights(model, x, read, tokens.shape[1])
    found = [Mixture.fitted(small, weights, k, alpha, steps, seed) for seed in seeds]
    scores = [_faithful(one.phi, answers, held_out, seed) for one, seed in zip(found, seeds, strict=True)]
    bound = torch.tensor([one.bound for one in found]).double()
    best = found[int(bound.argmax())]
    boxes, sizes = boxes_of_tokens(read, tokens.shape[1], False)
    meta = {**about(model.module, x), "method": "concepts", "site": site, "alpha": alpha, "steps": steps,
            "seeds": list(seeds), "dim": small.shape[-1]}  # fmt: skip
    return Concepts(
        site, finite(best.phi, "concepts of patches"), best.gamma, best.means, bound,
        torch.tensor(scores).double(), boxes, sizes, meta,
    )  # fmt: skip


def _weights(model: Model, x: Any, read: Any, patches: int) -> tuple[Float[Tensor, "example patch"], Tensor]:
    """What the class token gives each patch in the last layer, mean 1; and the model's answers."""
    kept = (read.roles.where("image") & read.valid & read.roles.patch).cpu()
    tower = model.ready().tower("vision", text="concepts")
    if int(read.roles.where("cls").sum(1).min()) != 1 or read.batch != x.batch:
        logits = model.run(x)["logits"]
        return torch.ones(len(kept), patches).double(), _answers(logits)
    name = "" if x.main == "vision" else "vision."
    place = f"{name}L{tower.layers[-1].index}.pattern"
    column = read.roles.where("cls").int().argmax(1)
    tape = model.run(x, record=[place], positions=[int(column[0])])
    rows = tape[place][:, :, 0].double().mean(1).cpu()[kept].reshape(len(kept), patches)
    return rows / rows.mean(1, keepdim=True), _answers(tape["logits"])


def _answers(logits: Tensor) -> Tensor:
    return (logits if logits.ndim == 2 else logits[:, -1]).argmax(-1).cpu()


@dataclass(frozen=True, eq=False)
class Mixture:
    """Concepts fitted from one start."""

    phi: Tensor
    gamma: Tensor
    means: Tensor
    bound: float

    @classmethod
    def fitted(
        cls, e: Float[Tensor, "example patch d"], w: Tensor, k: int, alpha: float, steps: int, seed: int
    ) -> Mixture:
        """E- and M-steps in turn."""
        flat, width = e.reshape(-1, e.shape[-1]), e.shape[-1]
        means = _spread(flat, k, torch.Generator().manual_seed(seed))
        whole = torch.cov(flat.T).reshape(width, width) + 1e-3 * torch.eye(width, dtype=e.dtype)
        covariances = (whole / k ** (2 / width)).expand(k, -1, -1).clone()
        gamma = torch.full((len(e), k), alpha + e.shape[1] / k, dtype=e.dtype)
        for _ in range(steps):
            logs = log_normal(e, means, covariances)
            for _ in range(10):
                phi = (torch.digamma(gamma)[:, None] + logs).softmax(-1)
                gamma = alpha + (w[..., None] * phi).sum(1)
            share = (w[..., None] * phi).reshape(-1, k)
            mass = share.sum(0)
            means = torch.where(mass[:, None] > 1e-6, share.T @ flat / mass.clamp(min=1e-6)[:, None], means)
            apart = flat[:, None] - means
            spread = torch.einsum("nk,nki,nkj->kij", share, apart, apart)
            covariances = (spread + whole) / (mass + 1)[:, None, None] + 1e-3 * torch.eye(width, dtype=e.dtype)
        theta = gamma / gamma.sum(-1, keepdim=True)
        bound = float((theta.log()[:, None] + log_normal(e, means, covariances)).logsumexp(-1).mean())
        return cls(phi, gamma, means, bound)


def log_normal(e: Tensor, means: Tensor, covariances: Tensor) -> Float[Tensor, "example patch concept"]:
    """Log density of each Gaussian."""
    lower = torch.linalg.cholesky(covariances)
    apart = e.reshape(-1, 1, e.shape[-1]) - means
    solved = torch.linalg.solve_triangular(lower, apart.permute(1, 2, 0), upper=False)
    logs = -0.5 * solved.square().sum(1) - lower.diagonal(dim1=1, dim2=2).log().sum(1, keepdim=True)
    constant = 0.5 * e.shape[-1] * torch.log(torch.tensor(2 * torch.pi, dtype=e.dtype))
    return (logs - constant).T.reshape(*e.shape[:2], -1)


def _spread(flat: Tensor, k: int, random: torch.Generator) -> Tensor:
    """k of the points, each drawn with the square of its distance to those before (k-means++)."""
    found = [flat[int(torch.randint(len(flat), (1,), generator=random))]]
    for _ in range(k - 1):
        near = torch.stack([(flat - one).square().sum(-1) for one in found]).amin(0)
        weights = near if float(near.sum()) > 0 else torch.ones_like(near)
        found.append(flat[int(torch.multinomial(weights, 1, generator=random))])
    return torch.stack(found)


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
