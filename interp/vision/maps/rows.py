"""What each key gets from some rows, which need not be the same in every example.

Where they are the same it is a statistic of the kernels, without a pattern; else the patterns of as many rows of every
example are read as the one with most has, [example, head, row, key] for each layer asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from interp.hooks.errors import InputsError, ModelError
from interp.hooks.inputs.inputs import Inputs

if TYPE_CHECKING:
    from interp.model import Model


def received_mean(
    model: Model, x: Inputs, sites: str, rows: Bool[Tensor, "example position"], *, own: Inputs | None = None
) -> Float[Tensor, "head example key"]:
    """The mean over an example's rows of the weight they give each key; `sites` are layers, "text.L*", and `own` are
    their tower's inputs, where they are not the main ones."""
    own, count = x if own is None else own, rows.sum(1)
    if not bool(count.all()):
        raise InputsError(f"no row is asked for in example {int((count == 0).nonzero()[0])}.")
    if bool((rows == rows[:1]).all()):
        found = model.attention(x, stats=["received"], heads=sites, rows=rows.any(0).nonzero().flatten().tolist())
        parts = [layer["received"].double().cpu() for layer in found.values.values()]
    else:
        read = _as_many(rows, own.valid.cpu())
        tape = model.run(x, record=f"{sites}.pattern", positions=read, store="cpu")
        asked = rows[read].view(len(rows), -1).double()
        patterns = (tape[site] for site in model.sites(f"{sites}.pattern"))
        parts = [torch.einsum("bhqk,bq->bhk", one.double(), asked) for one in patterns]
    if any(one.shape[0] != len(rows) or one.shape[2] != rows.shape[1] for one in parts):
        raise ModelError(
            f"{sites}: these heads attend in windows or picture by picture ({list(parts[0].shape)} weights received for"
            f" {list(rows.shape)} positions), so who looks at whom in the whole is not known there; name layers that"
            " attend to everything."
        )
    return torch.cat([one.transpose(0, 1) for one in parts]) / count[:, None]


def _as_many(rows: Tensor, valid: Tensor) -> Bool[Tensor, "example position"]:
    """The rows, filled up with other tokens until every example has as many."""
    most = int(rows.sum(1).max())
    if int(valid.sum(1).min()) < most:
        raise InputsError(
            f"one example asks for {most} rows and another has {int(valid.sum(1).min())} tokens in all; ask for"
            " examples of more equal length, or one at a time."
        )
    order = (rows.int() * 2 + valid.int()).argsort(dim=1, descending=True, stable=True).argsort(1)
    return order < most
