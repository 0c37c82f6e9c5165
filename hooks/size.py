"""How much memory a recording will take, before it is made."""

from __future__ import annotations

import os

import torch

from interp.hooks.anatomy import Anatomy
from interp.hooks.inputs import Inputs
from interp.hooks.session import Wish
from interp.hooks.sites import Site
from interp.hooks.tape import tower_inputs


def free_memory() -> int:
    """Bytes of main memory that are available now."""
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def estimate(anatomy: Anatomy, wish: Wish, x: Inputs) -> int:
    """Bytes the sites will hold: exact for towers whose positions are known, as of one layer's sizes."""
    width = torch.tensor([], dtype=wish.dtype or torch.float32).element_size()
    return sum(_numbers(anatomy, site, wish, x) for site in wish.sites) * width


def _numbers(anatomy: Anatomy, site: Site, wish: Wish, x: Inputs) -> int:
    if site.layer is None:
        return 0
    layer, tower = anatomy.layer(site), anatomy.tower(site.tower, text=str(site))
    rows = (
        tower_inputs(x, site).mask(wish.positions).sum().item()
        if wish.positions is not None
        else tower_inputs(x, site).valid.numel()
    )
    heads = len(site.heads) if site.heads is not None else layer.head_count(site.component)
    if site.component in ("pattern", "scores"):
        keys = tower_inputs(x, Site(site.tower, site.layer, "k")).length
        return int(rows) * heads * keys
    per_head = {"q": layer.d_head, "k": layer.d_head, "v": layer.d_value, "z": layer.d_value, "result": tower.width}
    return int(rows) * (heads * per_head[site.component] if site.component in per_head else tower.width)
