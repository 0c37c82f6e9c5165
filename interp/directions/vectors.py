"""What methods on directions and subspaces share: the vectors at one site, bases that fit it, random ones."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from interp.hooks.errors import InputsError, SiteError
from interp.hooks.inputs.inputs import Inputs, Positions
from interp.hooks.run.tape import tower_inputs
from interp.hooks.sites import Site

if TYPE_CHECKING:
    from interp.model import Model


def random_bases(d: int, rank: int, n: int = 100, *, seed: int = 0) -> Tensor:
    """`n` random subspaces of a rank, as orthonormal columns [n, d, rank]."""
    _rank(rank, d)
    random = torch.Generator().manual_seed(seed)
    return torch.linalg.qr(torch.randn(n, d, rank, generator=random, dtype=torch.float64)).Q.float()


def as_columns(basis: Tensor, d: int, site: str) -> Tensor:
    """A matrix of columns [d, n] from a vector or a matrix, checked against the site's width."""
    columns = basis[:, None] if basis.ndim == 1 else basis
    if columns.ndim != 2 or columns.shape[0] != d:
        raise SiteError(f"{site!r} is {d} wide, so a basis is [{d}] or [{d}, n]; got {list(basis.shape)}.")
    _rank(columns.shape[1], d)
    if not bool(torch.isfinite(columns).all()) or not bool(columns.any(0).all()):
        raise SiteError(f"{site!r}: a basis has finite columns that are not zero.")
    return columns


def _rank(rank: int, d: int) -> None:
    if not 1 <= rank <= d:
        raise SiteError(f"a subspace of {d} dimensions has a rank of 1 to {d}, got {rank}.")


def single(model: Model, site: str) -> Site:
    """The one site with values that a spelling means: a residual, or one head."""
    found = model.ready().one(site)
    if found.layer is None or found.component in ("pattern", "scores", "attention", "q_in", "k_in", "v_in"):
        raise SiteError(f"{site!r} has no values per position: name a residual or a head's q, k, v or z.")
    if found.component in ("q", "k", "v", "z", "result") and (found.heads is None or len(found.heads) != 1):
        raise SiteError(f"{site!r}: name one head, such as 'L{found.layer}.H0.z'.")
    return found


def rows(model: Model, x: Inputs, site: Site, positions: Positions) -> Tensor:
    """The values at a site at some positions, one under the other [n, d]."""
    value = model.run(x, record=site)[site]
    cross = model.anatomy.layer(site).kind == "cross"
    mask = tower_inputs(x, site, cross=cross).mask(positions).to(value.device)
    if mask.shape != value.shape[:2]:
        raise InputsError(f"{site} has {list(value.shape[:2])} [row, position], its inputs {list(mask.shape)}.")
    return value[mask].flatten(1)
