"""How few dimensions a head's queries, keys or values need: the metric against the rank of what is left of them.

Lieberum et al. 2023, the Chinchilla study (arXiv 2307.09458). A head's vectors over a dataset, less their mean, are
decomposed, `Q - mean = U S V^T`, and replaced by the part in the first r right singular vectors, `q' = mean + V_r V_r^T
(q - mean)`, at the positions they were taken from. Each rank is compared with random subspaces of that rank. Cost: a
recorded pass per site and a plain one, then per rank one and one more per random draw (of rank 0 one in all). Limits: q
and k are those of the attention call, after rotary positions, which turn the subspace from position to position: take
positions of one kind; several sites are compressed together, at the same rank.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from interp.directions.vectors import as_columns, random_bases, rows, single
from interp.finite import finite
from interp.hooks.edits.edits import Project
from interp.hooks.errors import InputsError, SiteError
from interp.hooks.html import Told
from interp.hooks.inputs.inputs import Positions
from interp.metrics.judge import Judge, Metric, reads_of
from interp.metrics.named import metric_name
from interp.metrics.reading import hands_over
from interp.records import Method, register
from interp.results.intervals import interval

if TYPE_CHECKING:
    from interp.hooks.sites import Site
    from interp.model import Model


@dataclass(frozen=True, eq=False)
class Subspaces(Told):
    """The metric by rank [rank, example], and with random subspaces of the same ranks [rank, draw, example]."""

    sites: tuple[str, ...]
    """The sites that are compressed together."""
    ranks: tuple[int, ...]
    """The ranks that were tried, in the order of `values`."""
    values: Tensor
    """[rank, example]: the metric with the vectors cut down to so many dimensions."""
    random: Tensor
    """[rank, draw, example]: the same with random subspaces of that rank."""
    base: Tensor
    """The metric of the run with nothing taken out [example]."""
    directions: Mapping[str, Tensor] = field(default_factory=dict)
    """By site the right singular vectors as columns [d, d], the first ones first."""
    spectrum: Mapping[str, Tensor] = field(default_factory=dict)
    """By site the share of the variance along each."""
    meta: Mapping[str, Any] = field(default_factory=dict)

    def to_frame(self) -> Any:
        """One row per rank: the metric, that of random subspaces (mean, and the range of nine tenths), and the base."""
        import pandas

        drawn = self.random.mean(-1)
        low, high = interval(drawn.T, 0.9, n=drawn.shape[1])
        return pandas.DataFrame(
            {"rank": self.ranks, "metric": self.values.mean(1), "random": drawn.mean(1), "random_low": low,
             "random_high": high, "base": float(self.base.mean())}
        )  # fmt: skip

    def __repr__(self) -> str:
        return f"Subspaces of {', '.join(self.sites)}: ranks {', '.join(map(str, self.ranks))}"


@hands_over
def subspace(
    model: Model,
    inputs: Any,
    *,
    metric: Metric,
    sites: str | Sequence[str],
    ranks: Sequence[int],
    positions: Positions | Mapping[str, Positions] = "last",
    draws: int = 20,
    seed: int = 0,
) -> Subspaces:
    """Compress one head's q, k or v, or several sites together, such as ["L9.H6.q", "L9.H6.k"].

    `positions` are where the vectors are taken and compressed, the same for all sites or one by site.
    """
    spelled = [sites] if isinstance(sites, str) else list(sites)
    chosen = [single(model, site) for site in spelled]
    if not chosen or (isinstance(positions, Mapping) and set(positions) != set(spelled)):
        raise InputsError(f"subspace needs sites, and positions for each: got {spelled} and {positions!r}.")
    where = [positions[site] if isinstance(positions, Mapping) else positions for site in spelled]
    x = model.inputs(inputs)
    found = {site: _decomposed(rows(model, x, site, at)) for site, at in zip(chosen, where, strict=True)}
    if not ranks:
        raise SiteError("subspace needs at least one rank, such as ranks=[1, 2, 4].")
    for rank in ranks:
        for site, (_, directions, _) in found.items():
            if not 0 <= rank <= len(directions):
                raise SiteError(f"{site} is {len(directions)} wide, so a rank is 0 to that, got {rank}.")
    if draws < 1:
        raise InputsError(f"draws= is how many random subspaces each rank is compared with, at least 1; got {draws}.")
    plain = model.run(x)
    reads = reads_of(metric, x, plain["logits"])
    judge = Judge(metric, x, classes=plain["logits"].ndim == 2)

    def kept(bases: dict[Site, Tensor]) -> Tensor:
        edits = [
            Project(str(site), _rest(bases[site]), found[site][0], positions=at)
            for site, at in zip(chosen, where, strict=True)
            if bases[site].shape[1] < bases[site].shape[0]
        ]
        return judge(reads.of(model.run(x, edits=edits)["logits"])).double().cpu()

    values = [kept({site: parts[1][:, :rank] for site, parts in found.items()}) for rank in ranks]
    drawn = [
        torch.stack([kept(_drawn(found, rank, seed + n)) for n in range(draws if rank else 1)]).expand(draws, -1)
        for rank in ranks
    ]
    return Subspaces(
        tuple(map(str, chosen)), tuple(ranks), torch.stack(values), torch.stack(drawn),
        judge(reads.of(plain["logits"])).double().cpu(), {str(s): p[1].cpu() for s, p in found.items()},
        {str(s): p[2].cpu() for s, p in found.items()},
        {**plain.meta, "method": "singular vectors", "metric": metric_name(metric), "seed": seed},
    )  # fmt: skip


def _decomposed(vectors: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Their mean, their right singular vectors as columns (all of them), and the variance along each as a share."""
    if len(vectors) < 2:
        raise InputsError(f"a decomposition needs at least two vectors, got {len(vectors)}: give more examples.")
    mean = finite(vectors.double(), "vectors").mean(0)
    _, sizes, directions = torch.linalg.svd(vectors.double() - mean, full_matrices=True)
    share = torch.zeros(len(directions), dtype=torch.float64, device=sizes.device)
    share[: len(sizes)] = sizes.square() / sizes.square().sum().clamp(min=1e-300)
    return mean.float(), directions.T.float().contiguous(), share


def _drawn(found: Mapping[Site, tuple[Tensor, Tensor, Tensor]], rank: int, seed: int) -> dict[Site, Tensor]:
    """A random subspace for every site."""
    return {
        site: random_bases(len(parts[0]), rank, 1, seed=seed * 1009 + n)[0] if rank else parts[1][:, :0]
        for n, (site, parts) in enumerate(found.items())
    }


def _rest(basis: Tensor) -> Tensor:
    """Columns that span everything the basis does not."""
    d, rank = basis.shape
    whole = torch.linalg.qr(torch.cat([basis.double(), torch.eye(d, dtype=torch.float64, device=basis.device)], 1)).Q
    return as_columns(whole[:, rank:d].float(), d, "the rest of a basis")


register(
    Method(
        "interp.directions.subspace",
        number="the metric with a head's vectors cut down to some dimensions",
        shown="curve",
        needs=("metric",),
        passes=lambda t: 2 + 2 + 2 * 2,
        example=lambda t: subspace(
            t.model, t.base, metric=t.metric, sites=f"{t.tower}L1.H1.q", ranks=[1, 2], positions=t.reads, draws=2
        ),
    )
)
