"""What the tokens of a picture say at one place of a model, read by a probe with a few learned queries.

Efficient probing (arXiv 2506.10178): with X the tokens [n, D], queries u_m (m = 1 ... Q, started as 0.02 randn) and
one projection W_V [D, D / d_out] without bias, whose columns are cut into Q groups,

    a_m = softmax(X u_m D^-0.5)        no key projection
    z   = concat_m a_m^T (X W_V)_m     [D / d_out]
    out = W norm(z) + b                norm: batch normalisation without scale and shift

Targets are classes (integers; cross-entropy, accuracy) or numbers (squared error, R^2, mean over targets). `regions=`
gives targets (voxels, say) of one region one query, which sees all of X W_V and is all that they read; `own=True` gives
each target its own. With `decoder=True` it is the readout of a transformer brain encoder (arXiv 2505.17329): such
queries in one layer of DETR's decoder (`readers.py`; theirs has width 768, 16 heads, 1024 inside, dropout 0.1, and 16
queries), and each target a linear map of its region's query. `places=True` adds sine encodings of row and column to
what queries are matched with, as theirs always has. Training is ours for both: AdamW on the whole batch, where
efficient probing has LARS, and the encoder AdamW (5e-4, decay 1e-4) on batches of 16 for 20 epochs; gradients are
clipped at 0.1 for the decoder as there.
Scores are on examples left out, drawn anew by each seed, with the same head on the mean token to compare with
(`baseline`). `looks` are a_m over all patches of the first seed's probe: maps. Cost: one forward pass and the training
of the probe. Limits: what can be read need not be used by the model; few examples overfit, so look at seeds.
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
from interp.results.figures.figure import Figure
from interp.results.figures.marks import Bars, Series
from interp.results.saved import Saved
from interp.vision.maps.cells import pixel_map
from interp.vision.maps.trial import many
from interp.vision.probes.readers import Decoder, Reader
from interp.vision.probes.tokens import boxes_of_tokens, halves, picture_tokens

if TYPE_CHECKING:
    from interp.model import Model


Kind = type[Reader] | type[Decoder]
CLIP = 0.1


@dataclass(frozen=True, eq=False)
class AttentiveProbe(Saved):
    """Scores by seed, and where the queries look."""

    STEM = "probe"

    site: str
    """The place whose tokens are read."""
    scores: Tensor
    """[seed]: accuracy, or R^2, on the examples that were left out."""
    baseline: Tensor
    """[seed]: the same of a probe that reads the mean token."""
    by_target: Tensor
    """[seed, target]: R^2 of each target on examples left out; of classes, the accuracy on those of each class (0 where
    none of them was left out)."""
    looks: Tensor
    """[example, query, token]: the weight of the first seed's queries on each token; sums to 1 over tokens."""
    judged: Tensor
    """Bool [example]: left out by the first seed."""
    boxes: Tensor
    """[example, token, 4] in pixels; NaN where it is not known."""
    sizes: tuple[tuple[int, int], ...]
    """(height, width) of each example's picture, in pixels; none where it is not known."""
    classes: bool
    """Whether targets are classes; scores are then accuracies, else R^2."""
    parameters: int
    """How many numbers the probe learns."""
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

    def _figure(self) -> Figure:
        """Scores by seed."""
        names = [f"seed {n}" for n in range(len(self.scores))]
        pairs = ((self.scores, "probe"), (self.baseline, "mean token"))
        series = [Series(name, one.tolist()) for one, name in pairs]
        return Figure([Bars(names, series, y="accuracy" if self.classes else "R2")])

    def __repr__(self) -> str:
        kind = "accuracy" if self.classes else "R2"
        return (
            f"Probe at {self.site}: {kind} {float(self.scores.mean()):.3g} held out ({len(self.scores)} seeds,"
            f" {float(self.scores.min()):.3g} to {float(self.scores.max()):.3g}), mean token"
            f" {float(self.baseline.mean()):.3g}; {self.looks.shape[1]} queries, {self.parameters} parameters"
        )


@torch.enable_grad()
def probe(
    model: Model,
    inputs: Any,
    *,
    site: str,
    targets: Any,
    queries: int | None = None,
    d_out: int = 1,
    own: bool = False,
    regions: Sequence[int] | None = None,
    decoder: bool = False,
    attention_heads: int = 4,
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
    or, with `own=True`, are as many as targets; `regions` is the number of the query that each target reads."""
    x, read, tokens, where = picture_tokens(model, inputs, site, with_class=with_class)
    wanted, classes = _targets(targets, len(tokens))
    outputs = int(wanted.max()) + 1 if classes else wanted.shape[1]
    where_read = _regions(regions, own, decoder, classes, outputs)
    if not seeds or epochs < 1:
        raise InputsError("seeds= is at least one, and epochs= at least 1.")
    count = _queries(queries, tokens.shape[2], d_out, where_read)
    keys = tokens + _sines(where, tokens.shape[2]) if places else tokens
    kind: Kind = Decoder if decoder else Reader
    how: dict[str, Any] = {"outputs": outputs, "queries": count, "regions": where_read}
    how |= {"heads": attention_heads, "wide": 1024, "dropout": 0.1} if decoder else {"d_out": d_out}
    alone = how if where_read is not None else {**how, "queries": 1}
    mean, found = tokens.mean(1, keepdim=True), []
    for seed in seeds:
        fit, judged = halves(len(tokens), held_out, seed)
        training: dict[str, Any] = {"epochs": epochs, "rate": rate, "decay": decay, "seed": seed}
        reader = _trained(kind, how, tokens, keys, wanted, fit, classes, **training)
        other = _trained(kind, alone, mean, mean, wanted, fit, classes, **training)
        found.append((_scores(reader, tokens, keys, wanted, judged, classes),
                      _scores(other, mean, mean, wanted, judged, classes)))  # fmt: skip
        if seed == seeds[0]:
            with torch.no_grad():
                looks, first = reader.looks(tokens, keys).detach(), judged
            parameters = sum(one.numel() for one in reader.parameters())
    boxes, sizes = boxes_of_tokens(read, tokens.shape[1], with_class)
    meta = {**about(model.module, x), "method": _named(decoder, where_read),
            "site": site, "regions": list(where_read or []),
            "queries": count, "d_out": d_out, "places": places, "held_out": held_out, "seeds": list(seeds),
            "epochs": epochs, "rate": rate}  # fmt: skip
    scored, plain = (torch.tensor([one[n][0] for one in found]).double() for n in (0, 1))
    return AttentiveProbe(
        site, finite(scored, "scores of probes"), plain, torch.stack([one[0][1] for one in found]), looks, first, boxes,
        sizes, classes, parameters, meta,
    )  # fmt: skip


def _regions(
    given: Sequence[int] | None, own: bool, decoder: bool, classes: bool, outputs: int
) -> tuple[int, ...] | None:
    """The query of each target; none where every target reads all."""
    if not own and given is None:
        if decoder:
            raise InputsError("decoder=True reads each target off one query: give regions=, or own=True.")
        return None
    if classes:
        raise InputsError("own=True and regions= give targets a query, so targets= are numbers, not classes.")
    found = tuple(range(outputs)) if given is None else tuple(int(n) for n in given)
    if (own and given is not None) or len(found) != outputs or set(found) != set(range(max(found) + 1)):
        raise InputsError(
            f"regions= is a number from 0 for each of {outputs} targets, none left out between (own=True is"
            f" {list(range(min(outputs, 3)))} ...); got {given}."
        )
    return found


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


def _named(decoder: bool, regions: Sequence[int] | None) -> str:
    return "brain encoder" if decoder else "region probe" if regions is not None else "efficient probing"


def _queries(given: int | None, width: int, d_out: int, regions: Sequence[int] | None) -> int:
    if d_out < 1 or width % d_out:
        raise InputsError(f"d_out= must divide the width {width}; got {d_out}.")
    if regions is not None:
        if given not in (None, max(regions) + 1):
            raise InputsError(f"there is one query a target or region, {max(regions) + 1}; got queries={given}.")
        return max(regions) + 1
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
    kind: Kind, how: Mapping[str, Any], tokens: Tensor, keys: Tensor, targets: Tensor, fit: Tensor,
    classes: bool, *, epochs: int, rate: float, decay: float, seed: int,
) -> Reader | Decoder:  # fmt: skip
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        torch.manual_seed(seed)
        reader = kind(tokens.shape[2], **how)
        optimiser = torch.optim.AdamW(reader.parameters(), lr=rate, weight_decay=decay)
        plan = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, epochs)
        loss = nn.functional.cross_entropy if classes else nn.functional.mse_loss
        for _ in range(epochs):
            optimiser.zero_grad()
            loss(reader(tokens[fit], keys[fit]), targets[fit]).backward()
            if kind is Decoder:
                nn.utils.clip_grad_norm_(reader.parameters(), CLIP)
            optimiser.step()
            plan.step()
    return reader.eval()


@torch.no_grad()
def _scores(
    reader: Reader | Decoder, tokens: Tensor, keys: Tensor, targets: Tensor, judged: Tensor, classes: bool
) -> tuple[float, Float[Tensor, " target"]]:
    found, true = reader(tokens[judged], keys[judged]), targets[judged]
    if classes:
        right = (found.argmax(-1) == true).double()
        each = [
            right[true == n].mean() if bool((true == n).any()) else right.new_zeros(()) for n in range(len(found[0]))
        ]
        return float(right.mean()), torch.stack(each)
    spread = (true - true.mean(0)).square().sum(0)
    if not bool((spread > 0).all()):
        raise InputsError("a target is the same in all examples left out, so it has no R^2: give more examples.")
    r2 = (1 - (found - true).square().sum(0) / spread).double()
    return float(r2.mean()), r2


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
