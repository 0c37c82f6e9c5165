"""Metrics of places inside a model: for encoders, vision towers and feature extractors, whose answer is no logits.

A metric with an attribute `site` gets the values at that site in place of logits: `final_norm` (what the last norm
gives, or where blocks end with their own norm, as in BERT, what the last block gives), `L5.resid_post`, `L3.H2.z`,
`vision.final_norm`, or a vector that the model returns, `pooler_output`, `text_embeds`, `image_embeds`. The shipped
ones make one vector a row of it first: `pool="mean"` over the real tokens (what sentence encoders do), `"cls"` the
first real one, `"last"` the last; a place without positions is such a vector already. `At` takes any function.
`.to(model, inputs)` reads targets off a run: `Similarity("final_norm", pool="mean").to(m, ["another text"])`.
Cost: none but `.to`, one forward pass. Limits: one place a call; sentence encoders that normalise, project or prompt
behind their transformer are read before that (a cosine does not mind a norm).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from interp.metrics.ids import MetricError
from interp.metrics.reading import fitted, positions_read, reading
from interp.metrics.shipped import valid

if TYPE_CHECKING:
    from interp.model import Model

P = TypeVar("P", bound="Pooled")
Pool = Literal["mean", "cls", "last"]
POOLS = ("mean", "cls", "last")
Vectors = Float[Tensor, "row d"]


@dataclass(frozen=True, eq=False)
class At:
    """Any function of the value at a site: `At("L5.resid_post", lambda value, inputs: value[:, 0, 7])`."""

    site: str
    """The place that is read."""
    function: Callable[[Tensor, Any], Tensor]
    """From the value there and the inputs to one number for each row."""

    def __call__(self, value: Tensor, inputs: Any) -> Tensor:
        return self.function(value, inputs)


@dataclass(frozen=True, eq=False, repr=False)
class Pooled:
    """A metric of one vector a row."""

    site: str = "final_norm"
    """The place that is read, [row, position, d] or [row, d]."""
    pool: Pool = field(default="mean", kw_only=True)
    """"mean" of the real tokens, "cls" the first of them, "last" the last."""
    ROWS: ClassVar[tuple[str, ...]] = ()
    """Fields with one entry a row, or one vector for all."""

    def __post_init__(self) -> None:
        if self.pool not in POOLS:
            raise MetricError(f"pool is one of {', '.join(POOLS)}, got {self.pool!r}")

    def __repr__(self) -> str:
        said = [f"{f.name}={_short(getattr(self, f.name))}" for f in fields(self)[1:] if self._told(f.name)]
        return f"{type(self).__name__}({', '.join([repr(self.site), *said])})"

    def _told(self, name: str) -> bool:
        return getattr(self, name) is not None

    def __call__(self, value: Tensor, inputs: Any) -> Float[Tensor, " row"]:
        """From everything at the site, [row, position, d] or [row, d]."""
        mask = None if value.ndim == 2 else valid(inputs, *value.shape[:2])
        return self.score(self.vectors(value, mask))

    def vectors(self, value: Tensor, mask: Tensor | None) -> Vectors:
        """One vector a row, of [row, position, d] whose real positions are known, or of [row, d]."""
        if value.ndim == 2 or mask is None:
            return _wide(value)
        at, real = self.places(mask.to(value.device))
        return pooled(value[torch.arange(len(value), device=value.device)[:, None], at], real)

    def places(self, mask: Bool[Tensor, "row position"]) -> tuple[Int[Tensor, "row read"], Bool[Tensor, "row read"]]:
        """The columns read in each row, and which of them count: rows with fewer read their last one again."""
        if not bool(mask.any(1).all()):
            raise MetricError("a row has no real token, so it has no vector")
        count = mask.cumsum(1)
        chosen = {"mean": mask, "cls": mask & (count == 1), "last": mask & (count == count[:, -1:])}[self.pool]
        real = chosen.int().sort(dim=1, descending=True, stable=True)
        width = int(chosen.sum(1).max())
        some = real.values[:, :width].bool()
        last = (chosen * torch.arange(mask.shape[1], device=mask.device)).amax(1, keepdim=True)
        return torch.where(some, real.indices[:, :width], last), some

    def score(self, vectors: Vectors) -> Float[Tensor, " row"]:
        """From one vector a row."""
        raise NotImplementedError(f"{type(self).__name__} defines no score")

    def take(self: P, rows: Sequence[int]) -> P:
        """The metric of those rows."""
        found = {name: getattr(self, name) for name in self.ROWS}
        return replace(self, **{n: v if v is None or v.ndim == 1 else v[list(rows)] for n, v in found.items()})

    def _fitting(self, target: Tensor | None, name: str, vectors: Tensor) -> Tensor:
        """A target for the vectors: one a row, or one for all."""
        if target is None:
            raise MetricError(
                f"{type(self).__name__} has no {name} to compare with: give {name}=, [row, d] or [d], or read it off a"
                " run with .to(model, inputs)"
            )
        if target.shape[-1] != vectors.shape[-1] or (target.ndim == 2 and len(target) != len(vectors)):
            raise MetricError(
                f"{name} is {list(target.shape)}, and {self.site!r} gives vectors {list(vectors.shape)} [row, d];"
                " for some of the rows use metric.take(rows)"
            )
        return target.detach().to(vectors.device, vectors.dtype).expand_as(vectors)


@dataclass(frozen=True, eq=False, repr=False)
class Similarity(Pooled):
    """The cosine to another vector (of another text, say), less that to `away` where one is given."""

    target: Tensor | None = field(default=None, kw_only=True)
    """The vector to be near to: [d], or one for each row."""
    away: Tensor | None = field(default=None, kw_only=True)
    """The vector to be far from; None for none."""
    ROWS: ClassVar[tuple[str, ...]] = ("target", "away")

    def score(self, vectors: Vectors) -> Float[Tensor, " row"]:
        """Between -1 and 1; with `away` between -2 and 2."""
        near = torch.cosine_similarity(vectors, self._fitting(self.target, "target", vectors), dim=-1)
        if self.away is None:
            return near
        return near - torch.cosine_similarity(vectors, self._fitting(self.away, "away", vectors), dim=-1)

    def to(self, model: Any, inputs: Any, away: Any = None) -> Similarity:
        """Held against what a run of the model has there: one input for each row, or one for all."""
        far = None if away is None else _one(vectors_at(model, away, self))
        return replace(self, target=_one(vectors_at(model, inputs, self)), away=far)


@dataclass(frozen=True, eq=False, repr=False)
class Distance(Pooled):
    """Minus the mean squared difference from another vector (`kind="mse"`), or minus its length (`"norm"`).

    At most 0 and larger when the run is nearer, as for every metric; `negate=False` gives the distance itself.
    """

    target: Tensor | None = field(default=None, kw_only=True)
    """The vector to be near to: [d], or one for each row."""
    kind: Literal["mse", "norm"] = field(default="mse", kw_only=True)
    """"mse" is the mean squared difference, "norm" its length."""
    negate: bool = field(default=True, kw_only=True)
    """Whether the value is minus the distance, so that larger is nearer."""
    ROWS: ClassVar[tuple[str, ...]] = ("target",)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.kind not in ("mse", "norm"):
            raise MetricError(f"kind is 'mse' or 'norm', got {self.kind!r}")

    def score(self, vectors: Vectors) -> Float[Tensor, " row"]:
        """0 where they are the same."""
        gap = vectors - self._fitting(self.target, "target", vectors)
        found = gap.square().mean(-1) if self.kind == "mse" else gap.norm(dim=-1)
        return -found if self.negate else found

    def to(self, model: Any, inputs: Any) -> Distance:
        """Held against what a run of the model has there: one input for each row, or one for all."""
        return replace(self, target=_one(vectors_at(model, inputs, self)))


@dataclass(frozen=True, eq=False, repr=False)
class Along(Pooled):
    """How far the vector reaches along a direction, [d] or one a row: its projection on the unit vector."""

    direction: Tensor | None = field(default=None, kw_only=True)
    """A vector [d], or one for each row; its length does not matter."""
    ROWS: ClassVar[tuple[str, ...]] = ("direction",)

    def score(self, vectors: Vectors) -> Float[Tensor, " row"]:
        """In the units of the vector."""
        toward = self._fitting(self.direction, "direction", vectors)
        return (vectors * torch.nn.functional.normalize(toward, dim=-1)).sum(-1)


def pooled(read: Float[Tensor, "row read d"], real: Bool[Tensor, "row read"]) -> Vectors:
    """The mean of the columns that count."""
    wide = _wide(read)
    share = (real / real.sum(1, keepdim=True)).to(wide.device, wide.dtype)
    return torch.einsum("rpd,rp->rd", wide, share)


def vectors_at(model: Model, inputs: Any, metric: Pooled) -> Vectors:
    """What a metric makes of a run of these inputs before it compares."""
    x = model.inputs(inputs)
    with reading(model, metric):
        value = model.run(x)["logits"]
        if value.ndim == 2:
            return metric.vectors(value, None).detach()
        return metric.vectors(value, fitted(positions_read(x), *value.shape[:2])).detach()


def _wide(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def _one(vectors: Tensor) -> Tensor:
    """The vector alone where there is one for all rows."""
    return vectors[0] if len(vectors) == 1 else vectors


def _short(value: Any) -> str:
    if not isinstance(value, Tensor):
        return repr(value)
    content = value.detach().double().cpu().contiguous().numpy().tobytes()
    return f"<{' x '.join(map(str, value.shape))}, {hashlib.sha256(content).hexdigest()[:12]}>"
