"""Runs to resample heads from: every row gets a random other row's values, of a row that lines up with it.

Donors are the other rows of the data and, where it has another side (a task's corrupt prompts), all rows of that; they
must have the same real positions. Cost: one recorded pass a side, shared by all draws.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from interp.heads.measures.asked import Asked
from interp.hooks.errors import InputsError
from interp.hooks.inputs.inputs import Inputs
from interp.hooks.run.tape import Tape, tower_inputs


def tapes(asked: Asked, draws: int, seed: int) -> Iterator[Tape]:
    """One tape of exchanged values a draw."""
    runs = [asked.model.run(side, record=asked.whole) for side in _sides(asked)]
    pool = {site: torch.cat([run[site] for run in runs]) for site in asked.whole}
    for site, value in pool.items():
        asked.real(site, runs[0][site])
        if len(value) != len(runs) * asked.x.batch:
            raise InputsError(f"{site} has {len(value)} rows for {asked.x.batch} examples: rows cannot be exchanged.")
    allowed = _allowed(asked)
    random = torch.Generator().manual_seed(seed)
    for _ in range(draws):
        donors = torch.multinomial(allowed, 1, generator=random)[:, 0]
        values = {site: value[donors.to(value.device)] for site, value in pool.items()}
        yield Tape(asked.model.anatomy, asked.x, values, meta={"donors": donors.tolist()})


def _sides(asked: Asked) -> list[Inputs]:
    other = asked.y
    if other is None or isinstance(other, (str, Tape)) or type(other).__name__ in ("Average", "Noise"):
        return [asked.x]
    return [asked.x, asked.model.inputs(other)]


def _allowed(asked: Asked) -> Tensor:
    """[row, donor], 1.0 for another row with the same real positions in every tower that is asked about."""
    sides, n = _sides(asked), asked.x.batch
    fit = torch.ones(n, n * len(sides), dtype=torch.bool)
    for tower in {site.tower: site for site in asked.whole}.values():
        mine = tower_inputs(asked.x, tower).valid.cpu()
        theirs = [tower_inputs(side, tower).valid.cpu() for side in sides]
        if any(one.shape != mine.shape for one in theirs):
            raise InputsError("source= has another number of rows or positions than the data: rows cannot be exchanged")
        fit &= (mine[:, None] == torch.cat(theirs)[None]).all(-1)
    fit[:, :n].fill_diagonal_(False)
    if alone := (~fit.any(1)).nonzero().flatten().tolist():
        raise InputsError(
            f"rows {alone} have no other row of the same length to be resampled from: give more rows, rows of one"
            " length, or a task or source= with another side."
        )
    return fit.double()
