"""How much a head writes: the mean over positions of |r_h,t|, with r_h = z_h W_O[h] (Kobayashi et al. 2020, arXiv
2004.10102, on norms of what attention adds in place of its weights).

From the Gram matrix `G_h = W_O[h] W_O[h]^T` of the head's part of the output projection, `|r|^2 = z G z^T`: r itself,
[position, head, d], is never formed. Cost: one recorded forward pass. Limits: what is written need not be read; before
a norm, layer scale or gate between the projection and the residual.
"""

from __future__ import annotations

import torch
from torch import Tensor

from interp.heads.measures.asked import Asked, Run
from interp.heads.measures.measured import Measured
from interp.hooks.anatomy.quantised import quantised, rounds_its_input
from interp.hooks.errors import ModelError
from interp.hooks.sites import Site
from interp.hooks.stand.ports import head_results
from interp.records import Variant, register


def measured(run: Run, names: list[str]) -> list[Measured]:
    """The mean norm per head and example."""
    asked = run.asked
    tape = asked.model.run(asked.x, record=asked.whole)
    found = {}
    for site in asked.whole:
        z = tape[site].double()
        size = torch.einsum("bthi,hij,bthj->bth", z, gram(asked, site).to(z.device), z).clamp(min=0).sqrt()
        real = asked.real(site, size)
        found[site] = torch.where(real[..., None], size, 0.0).sum(1) / real.sum(1)[:, None]
    return [Measured("norm", asked.by_head(found), passes=1.0)]


def gram(asked: Asked, site: Site) -> Tensor:
    """[head, d_value, d_value], float64."""
    layer = asked.model.anatomy.layer(site)
    if layer.out is None:
        raise ModelError(f"{site}: its output projection is not known, so what a head writes has no norm.")
    out = asked.model.module.get_submodule(layer.out)
    if rounds_its_input(out):
        raise ModelError(f"{layer.out} is {quantised(out)}, which rounds what it reads: what one head writes is not"
                         " defined. Leave by='norm' out.")  # fmt: skip
    units = torch.eye(layer.d_value, device=asked.model.device, dtype=asked.model.dtype)
    with torch.no_grad():
        z = units[None, :, None].expand(1, -1, layer.heads, -1).contiguous()
        rows = head_results(out, z, tuple(range(layer.heads)))[0].double().transpose(0, 1)
    return rows @ rows.transpose(1, 2)


register(
    Variant(
        "interp.importance", "norm", argument="by", number="mean length of what the head writes",
        run=measured, order=35, passes=lambda t: 1 + t.wide / 6, signed=False,
    )
)  # fmt: skip
