"""What the tokens of a picture say at one place of a model, read by a probe with a few learned queries.

Efficient probing (arXiv 2506.10178): with X the tokens [n, D], queries u_m (m = 1 ... Q, started as 0.02 randn) and
one projection W_V [D, D / d_out] without bias, whose columns are cut into Q groups,

    a_m = softmax(X u_m D^-0.5)        no key projection
    z   = concat_m a_m^T (X W_V)_m     [D / d_out]
    out = W norm(z) + b                norm: batch normalisation without scale and shift

Targets are classes (integers; cross-entropy, accuracy) or numbers (squared error, R^2, mean over targets). With
`own=True` it is the readout of a transformer brain encoder (arXiv 2505.17329): every target has a query of its own that
sees all of X W_V, and reads nothing else, and `places=True` adds sine encodings of row and column to what queries are
matched with, as their decoder does. Theirs is one decoder layer of width 768 with 16 heads; this is the same readout
with one head and no key projection, which is ours, as is training: AdamW on the whole batch in place of LARS.
Scores are on examples left out, drawn anew by each seed, beside the same head on the mean token (`baseline`).
`looks` are a_m over all patches of the first seed's probe: maps. Cost: one forward pass and the training of the probe.
Limits: what can be read need not be used by the model; few examples overfit, so look at seeds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

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
class AttentiveProbe(Saved):
    """Scores by seed, and where the queries look."""

    STEM = "probe"

    site: str
    scores: Tensor
    """[seed]: accuracy, or R^2, on the examples that were left out."""
    baseline: Tensor
    """[seed]: the same of a probe that reads the mean token."""
    looks: Tensor
    """[example, query, token]."""
    judged: Tensor
    """Bool [example]: left out by the first seed."""
    boxes: Tensor
    """[example, token, 4] in pixels; NaN where it is not known."""
    sizes: tuple[tuple[int, int], ...]
    classes: bool
    parameters: int
    meta: Mapping[str, Any] = field(default_factory=dict)

    def map(self, query: int = 0, example: int = 0) -> Tensor:
        """Where a query looks, over the pixels of an example's picture."""
        if not self.sizes:
            raise InputsError("the pictures' sizes are not known: prepare the inputs from pictures.")
        return pixel_map(self.looks[example, query], self.boxes[example], self.sizes[example])

    def to_frame(self) -> Any:
        """One row a seed: the score and that of the mean token."""
        import pandas

        return pandas.DataFrame(
            {"site": self.site, "seed": range(len(self.scores)), "score": self.scores, "mean_token": self.baseline}
        )

    def plot(self) -> Any:
        """Scores by seed (plotly)."""
        import plotly.graph_objects as go

        names = [f"seed {n}" for n in range(len(self.scores))]
        bars = [go.Bar(x=names, y=one.tolist(), name=name) for one, name in
                ((self.scores, "probe"), (self.baseline, "mean token"))]  # fmt: skip
        return go.Figure(bars).update_layout(yaxis_title="accuracy" if self.classes else "R2")

    def __repr__(self) -> str:
        kind = "accuracy" if self.classes else "R2"
        return (
            f"Probe at {self.site}: {kind} {float(self.scores.mean()):.3g} held out ({len(self.scores)} seeds,"
            f" {float(self.scores.min()):.3g} to {float(self.scores.max()):.3g}), mean token"
            f" {float(self.baseline.mean()):.3g}; {self.looks.shape[1]} queries, {self.parameters} parameters"
        )


class Reader(nn.Module):
    """The probe: `queries` of width D, one projection, a linear head."""

    def __init__(self, width: int, outputs: int, *, queries: int, d_out: int, own: bool) -> None:
        super().__init__()
        self.own, self.width = own, width
        self.queries = nn.Parameter(torch.randn(queries, width) * 0.02)
        self.values = nn.Linear(width, width // d_out, bias=False)
        self.norm = nn.BatchNorm1d(queries * (width // d_out) if own else width // d_out, eps=1e-6, affine=False)
        each = width // d_out
        self.head = nn.Parameter(torch.zeros(outputs, each))
        self.bias = nn.Parameter(torch.zeros(outputs))

    def looks(self, keys: Float[Tensor, "example token d"]) -> Float[Tensor, "example query token"]:
        """Softmax over tokens."""
        return (self.queries @ keys.transpose(1, 2) * self.width**-0.5).softmax(-1)

    def forward(self, x: Tensor, keys: Tensor) -> Tensor:
        """Outputs of tokens x, which queries are matched with by `keys`."""
        weights, values = self.looks(keys), self.values(x)
        if self.own:
            z = self.norm((weights @ values).flatten(1)).view(len(x), len(self.queries), -1)
            return (z * self.head).sum(-1) + self.bias
        groups = values.view(*values.shape[:2], len(self.queries), -1)
        z = self.norm(torch.einsum("bqt,btqd->bqd", weights, groups).flatten(1))
        return z @ self.head.T + self.bias


def probe(
    model: Model,
    inputs: Any,
    *,
    site: str,
    targets: Any,
    queries: int | None = None,
    d_out: int = 1,
    own: bool = False,
    places: bool = False,
    with_class: bool = False,
    held_out: float = 0.25,
    epochs: int = 200,
    rate: float = 0.01,
    decay: float = 0.01,
    seeds: Sequence[int] = (0, 1, 2),
) -> AttentiveProbe:
    """`site` is one place, such as "vision.L2.resid_post" or a head's output "L1.H3.z"; `targets` are classes [example]
    or numbers [example] or [example, target]. `queries` must divide D / d_out (32 in the paper; at most 8 by default),
    or, with `own=True`, are as many as targets."""
    x, read, tokens, where = picture_tokens(model, inputs, site, with_class=with_class)
    wanted, classes = _targets(targets, len(tokens))
    outputs = int(wanted.max()) + 1 if classes else wanted.shape[1]
    if own and classes:
        raise InputsError("own=True gives each target a query, so targets= are numbers [example, target], not classes.")
    if not seeds or epochs < 1:
        raise InputsError("seeds= is at least one, and epochs= at least 1.")
    count = _queries(queries, tokens.shape[2], d_out, outputs if own else None)
    keys = tokens + _sines(where, tokens.shape[2]) if places else tokens
    scores, plain, looks, first = [], [], None, None
    for seed in seeds:
        fit, judged = halves(len(tokens), held_out, seed)
        how = {"outputs": outputs, "queries": count, "d_out": d_out, "own": own}
        training: dict[str, Any] = {"epochs": epochs, "rate": rate, "decay": decay, "seed": seed}
        reader = _trained(Reader, how, tokens, keys, wanted, fit, classes, **training)
        scores.append(_score(reader, tokens, keys, wanted, judged, classes))
        mean = tokens.mean(1, keepdim=True)
        alone = {"outputs": outputs, "queries": outputs if own else 1, "d_out": d_out, "own": own}
        other = _trained(Reader, alone, mean, mean, wanted, fit, classes, **training)
        plain.append(_score(other, mean, mean, wanted, judged, classes))
        if looks is None:
            with torch.no_grad():
                looks, first = reader.looks(keys), judged
        parameters = sum(one.numel() for one in reader.parameters())
    assert looks is not None
    assert first is not None
    boxes, sizes = boxes_of_tokens(read, tokens.shape[1], with_class)
    meta = {**about(model.module, x), "method": "own-query probe" if own else "efficient probing", "site": site,
            "queries": count, "d_out": d_out, "places": places, "held_out": held_out, "seeds": list(seeds),
            "epochs": epochs, "rate": rate}  # fmt: skip
    scored = finite(torch.tensor(scores).double(), "scores of probes")
    return AttentiveProbe(
        site, scored, torch.tensor(plain).double(), looks, first, boxes, sizes, classes, parameters, meta
    )


def _targets(given: Any, examples: int) -> tuple[Tensor, bool]:
    found = torch.as_tensor(given).cpu()
    if found.ndim not in (1, 2) or len(found) != examples:
        raise InputsError(f"targets= are one (or a row) for each of {examples} examples; got {list(found.shape)}.")
    if not found.is_floating_point():
        if found.ndim != 1 or int(found.min()) < 0 or int(found.max()) < 1:
            raise InputsError("classes are integers from 0, one an example, of at least two; numbers are floats.")
        return found.long(), True
    finite(found, "targets")
    return (found[:, None] if found.ndim == 1 else found).float(), False


def _queries(given: int | None, width: int, d_out: int, targets: int | None) -> int:
    if d_out < 1 or width % d_out:
        raise InputsError(f"d_out= must divide the width {width}; got {d_out}.")
    if targets is not None:
        if given not in (None, targets):
            raise InputsError(f"own=True has one query a target, {targets}; got queries={given}.")
        return targets
    count = given or next(n for n in range(min(8, width // d_out), 0, -1) if (width // d_out) % n == 0)
    if count < 1 or (width // d_out) % count:
        raise InputsError(f"queries= must divide D / d_out = {width // d_out}; got {count}.")
    return count


def _sines(where: Tensor, width: int) -> Tensor:
    """Sines and cosines of row and column [example, token, d], half of the width each; 0 for what has no place."""
    half = width // 2
    angles = torch.arange(half // 2 or 1) / max(1, half // 2)
    parts = []
    for axis in (0, 1):
        turned = where[..., axis, None] / 10000**angles
        parts += [turned.sin(), turned.cos()]
    found = torch.cat(parts, -1)[..., :width]
    found = torch.nn.functional.pad(found, (0, width - found.shape[-1]))
    return found * (where[..., :1] >= 0)


def _trained(
    kind: type[Reader], how: Mapping[str, Any], tokens: Tensor, keys: Tensor, targets: Tensor, fit: Tensor,
    classes: bool, *, epochs: int, rate: float, decay: float, seed: int,
) -> Reader:  # fmt: skip
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        torch.manual_seed(seed)
        reader = kind(tokens.shape[2], **how)
        optimiser = torch.optim.AdamW(reader.parameters(), lr=rate, weight_decay=decay)
        plan = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, epochs)
        loss = nn.functional.cross_entropy if classes else nn.functional.mse_loss
        for _ in range(epochs):
            optimiser.zero_grad()
            loss(reader(tokens[fit], keys[fit]), targets[fit]).backward()
            optimiser.step()
            plan.step()
    return reader.eval()


@torch.no_grad()
def _score(reader: Reader, tokens: Tensor, keys: Tensor, targets: Tensor, judged: Tensor, classes: bool) -> float:
    found, true = reader(tokens[judged], keys[judged]), targets[judged]
    if classes:
        return float((found.argmax(-1) == true).double().mean())
    spread = (true - true.mean(0)).square().sum(0)
    if not bool((spread > 0).all()):
        raise InputsError("a target is the same in all examples left out, so it has no R^2: give more examples.")
    return float((1 - (found - true).square().sum(0) / spread).mean())


def _example(t: Any) -> AttentiveProbe:
    site = "L0.H0.z" if t.kind == "vit" else "vision.L0.H0.z"
    return probe(t.model, many(t, 8), site=site, targets=[0, 1] * 4, epochs=3, seeds=[0])


register(
    Method(
        "interp.vision.probe",
        number="how well targets are read off a picture's tokens at one place, on examples left out",
        shown="none",
        papers=("2506.10178", "2505.17329"),
        unfit=NO_PICTURE,
        passes=lambda t: 10,
        values=None,
        example=_example,
    )
)
