"""Activation patching: run the base, put in what the source had at one place, and see how the answer moves.

`effect = metric(patched) - metric(base)`. Denoising is `base=corrupt, source=clean`, noising the other way round;
there is no default. Exact for the site, direction, corruption and metric named in the result (Vig et al. 2020, arXiv
2004.12265; Zhang and Nanda 2024, arXiv 2309.16042, on what these choices do to the answer). Cost: a recorded pass of
base and source, then only what each patch can reach (`hooks/replay.py`): a sweep over all heads of a 12-layer model
comes to a few dozen forward passes instead of 144. Three cells are checked against full passes every time. Limits:
one patch at a time; k and v are per kv head.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from interp.effects import Effects
from interp.hooks.errors import InputsError, SiteError
from interp.hooks.inputs import Inputs, Positions
from interp.hooks.sites import Site, parse
from interp.hooks.sweep import Cell, Reads, Sweep, cells_of
from interp.hooks.tape import Tape, tower_inputs
from interp.judge import Judge, Metric, picked, reads_of

if TYPE_CHECKING:
    from interp.model import Model

Source = Any | Literal["zero", "mean"]


def patch(
    model: Model,
    *,
    base: Any,
    source: Source,
    metric: Metric,
    sites: str | Iterable[str],
    positions: Literal["joint", "each"] | Positions = "joint",
    source_model: Model | None = None,
    seed: int = 0,
) -> Effects:
    """The effect of every cell: `L*.H*.z` has one per layer and head, `L*.resid_pre` one per layer.

    `positions="joint"` patches all positions of a site together, "each" makes the position an axis, anything else says
    which ones. `source` is another input of the same shape, "zero", or "mean" (over the base's real positions).
    """
    anatomy = model.ready()
    x = model.inputs(base)
    chosen = _expanded(model, [sites] if isinstance(sites, str) else list(sites))
    old = model.run(x, record=list(dict.fromkeys(site.whole for site in chosen)))
    new = _source(model, x, source, old, source_model)
    cells, columns = _cells(chosen, x, old, new, positions)
    reads = reads_of(metric, x, old["logits"])
    sweep = Sweep(model.module, anatomy, x, model.called_with(x.kwargs), family=model.family)
    judge = Judge(metric, x, classes=old["logits"].ndim == 2)
    effects, floor = _run(sweep, cells, reads, judge, seed)
    reference = judge(picked(new["logits"], reads)) if isinstance(new, Tape) else None
    return Effects(
        sites=tuple(str(cell.site) for cell in cells), positions=columns, values=effects,
        base=judge(picked(old["logits"], reads)), source=reference, noise_floor=floor,
        meta={**old.meta, "direction": "source into base", "corruption": source if isinstance(source, str) else "run",
              "metric": repr(metric), "seed": seed, "engine": sweep.engine(chosen[0].tower).__class__.__name__},
    )  # fmt: skip


def _expanded(model: Model, spelled: Sequence[str]) -> list[Site]:
    """One site per head where heads were written, one per layer where they were not."""
    found: list[Site] = []
    for text in spelled:
        for site in model.anatomy.sites(text):
            if site.layer is None or site.component in ("pattern", "scores", "attention", "q_in", "k_in", "v_in"):
                raise SiteError(
                    f"{text!r}: patching takes sites with values per layer and position, such as 'L*.H*.z' or"
                    " 'L*.resid_pre'."
                )
            if parse(text).heads is None:
                found.append(site)
                continue
            heads = site.heads or range(model.anatomy.layer(site).head_count(site.component))
            found.extend(Site(site.tower, site.layer, site.component, (head,), site.query_heads) for head in heads)
    if not found:
        raise SiteError("no sites were selected: name at least one, such as sites='L*.H*.z'.")
    return list(dict.fromkeys(found))


def _source(model: Model, x: Inputs, source: Source, old: Tape, source_model: Model | None) -> Tape | dict[str, Tensor]:
    wanted = [site for site in old.sites if site.layer is not None]
    if isinstance(source, str) and source in ("zero", "mean"):
        return {str(site): _filled(source, old[site], tower_inputs(x, site).valid) for site in wanted}
    y = model.inputs(source)
    if y.valid.shape != x.valid.shape or not torch.equal(y.valid, x.valid):
        raise InputsError(
            f"base has {list(x.valid.shape)} [rows, positions] and source {list(y.valid.shape)}, or their padding"
            " differs: patching needs pairs that line up token by token."
        )
    return model.run(y, record=wanted, source_model=source_model)


def _filled(source: str, value: Tensor, valid: Tensor) -> Tensor:
    if source == "zero":
        return torch.zeros_like(value)
    real = valid if valid.shape == value.shape[:2] else torch.ones(value.shape[:2], dtype=torch.bool)
    return value[real].mean(0).expand(value.shape).clone()


def _cells(
    chosen: Sequence[Site], x: Inputs, old: Tape, new: Any, positions: Any
) -> tuple[list[Cell], tuple[int, ...] | None]:
    length = old[chosen[0].whole].shape[1]
    each = isinstance(positions, str) and positions == "each"

    def where(site: Site) -> list[Tensor]:
        shape = old[site.whole].shape[:2]
        every = torch.ones(shape, dtype=torch.bool)
        if each:
            return [every & (torch.arange(shape[1]) == p) for p in range(shape[1])]
        if isinstance(positions, str) and positions == "joint":
            return [every]
        return [tower_inputs(x, site).mask(positions).cpu()]

    cells = cells_of(chosen, lambda site: new[str(site)], lambda site: old[site], where)
    return cells, tuple(range(length)) if each else None


def _run(sweep: Sweep, cells: Sequence[Cell], reads: Reads, judge: Judge, seed: int) -> tuple[Tensor, float]:
    prompts = len(reads.positions)
    effects = torch.zeros(len(cells), prompts, dtype=torch.float64)
    plain, floor = judge(sweep.plain(reads)), 0.0
    inspected = _inspected(cells, seed)
    for answer in sweep.run(cells, reads):
        unchanged = judge(answer.unchanged)
        floor = max(floor, float((unchanged - plain).abs().max()))
        gap = (judge(answer.logits) - unchanged).double()
        effects[answer.number] = torch.where(answer.changed, gap, 0.0)
        if answer.number in inspected:
            sweep.compare(cells[answer.number], answer, reads)
    return effects, floor


def _inspected(cells: Sequence[Cell], seed: int) -> set[int]:
    """The first cell that changes something, a random one, and one of the last layer."""
    live = [n for n, cell in enumerate(cells) if bool(cell.where.any())]
    if not live:
        return set()
    last = max(live, key=lambda n: (cells[n].site.layer or 0, -n))
    return {live[0], random.Random(seed).choice(live), last}
