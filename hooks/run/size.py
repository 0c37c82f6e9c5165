"""How much memory a recording will take, before it is made."""

from __future__ import annotations

import os
import re
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from interp.hooks.anatomy.towers import Anatomy, Layer
from interp.hooks.errors import InputsError
from interp.hooks.inputs.inputs import Inputs
from interp.hooks.run.keeper import Wish
from interp.hooks.run.tape import tower_inputs
from interp.hooks.sites import HEAD, KV, Site


def free_memory() -> int:
    """Bytes of main memory that are available now, those included that only hold copies of files."""
    said = Path("/proc/meminfo")
    if said.exists():
        found = re.search(r"^MemAvailable:\s+(\d+) kB", said.read_text(), re.MULTILINE)
        if found:
            return int(found[1]) * 1024
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def estimate(anatomy: Anatomy, wish: Wish, x: Inputs, *, dtype: torch.dtype = torch.float32) -> int:
    """Bytes the sites will hold when the model computes in `dtype`: exact for towers whose positions are known.

    Others count as nothing here (and neurons as the width); the session counts what it really keeps.
    """
    width = torch.tensor([], dtype=wish.dtype or dtype).element_size()
    return sum(_numbers(anatomy, site, wish, x) for site in wish.sites) * width


def _numbers(anatomy: Anatomy, site: Site, wish: Wish, x: Inputs) -> int:
    if site.layer is None:
        return 0
    layer, tower = anatomy.layer(site), anatomy.tower(site.tower, text=str(site))
    heads = len(layer.heads_of(site)) if site.component in HEAD | KV else 1
    rows = _valid(x, site, layer)
    if rows is None:
        return 0
    count = (
        rows.numel()
        if wish.positions is None
        else int(tower_inputs(x, site, cross=layer.kind == "cross").mask(wish.positions).sum())
    )
    if site.component in ("pattern", "scores"):
        keys = _valid(x, replace(site, component="k"), layer)
        return 0 if keys is None else count * heads * keys.shape[1]
    per_head = {"q": layer.d_head, "k": layer.d_head, "v": layer.d_value, "z": layer.d_value}
    per_head |= dict.fromkeys(("result", "q_in", "k_in", "v_in"), tower.width)
    return count * heads * (per_head[site.component] if site.component in HEAD | KV else tower.width)


def _valid(x: Inputs, site: Site, layer: Layer) -> Tensor | None:
    """The real positions of a site, where they are known."""
    try:
        return tower_inputs(x, site, cross=layer.kind == "cross").valid
    except InputsError:
        return None
