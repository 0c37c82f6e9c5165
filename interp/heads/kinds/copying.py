"""Copying heads: those that raise the logit of the token they look at.

Olsson et al. 2022 (arXiv 2209.11895): on 25 random tokens said once, a head's write is taken straight to the logits;
less their mean over the vocabulary, only raised ones count, l = relu(logits - mean). At each row r is the ratio of what
the token that is looked at is raised by to that and all tokens of the sample together,
r = l[t] / (l[t] + sum over the sample of l): 0 where only others are raised, 1/2 where only t is. The value is 4 r - 1,
from -1 to 1, averaged over rows; a head that raises nothing has -1. Looked at is the largest weight within the sample,
the row's first token left out, in which heads of trained models rest: without a special token in front it is a word of
the sample, and every head would be judged on a word that it does not look for. The final norm is held at the scale of
the run and a soft cap on the logits is left out, so that heads can be distinguished.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from interp.heads.kinds.reading import heads_of, page_of, read_heads, tower_of
from interp.hooks.drive.tail import Tail, last_tower, unembedding
from interp.hooks.errors import ModelError
from interp.hooks.inputs.inputs import Inputs
from interp.hooks.run.weights import Rows
from interp.hooks.run.writes import Writes
from interp.hooks.sites import Site

if TYPE_CHECKING:
    from interp.heads.kinds.page import Page
    from interp.model import Model

NAME = "copying"


def copying(model: Model, sites: Sequence[Site], x: Inputs) -> Tensor:
    """The copying score [head, example] of the sites' heads on rows of words said once."""
    page = page_of(model, sites, x)
    looked = _looked_at(model, sites, x, page)
    stack = last_tower(model.anatomy, tower_of(model, sites).name)
    tape = model.run(x, record=Writes.sites(model.anatomy, stack))
    if "logits" not in tape:
        raise ModelError(f"{type(model.module).__name__} has no logits, so its heads raise no token's")
    writes = Writes(model.module, tape, stack)
    writes.check()
    tail = Tail(model.module, stack, model.called_with(x.kwargs), left=writes.final, logits=tape["logits"])
    spoken = unembedding(tail).double()
    mean = spoken.mean(1)
    found = []
    for site in sites:
        for n, head in enumerate(heads_of(model, site)):
            write = writes.heads(site.whole, (head,))[:, :, 0]
            direct = tail.frozen.linear(write.reshape(tail.left.shape))
            found.append(_score(direct, spoken, mean, page, looked[site][:, n]))
    return torch.stack(found).cpu()


def _told(page: Page) -> Tensor:
    """[example, column] of the sample without the token that opens the row, where heads rest."""
    return (page.words >= 0) & (torch.arange(page.length) != page.first[:, None])


def _looked_at(model: Model, sites: Sequence[Site], x: Inputs, page: Page) -> dict[Site, Tensor]:
    """The column in the sample, but for a row's first, with the largest weight [example, head, row]."""
    parts: dict[Site, list[Tensor]] = {site: [] for site in sites}
    told = _told(page)

    def read(rows: Rows) -> None:
        sample = told[:, None, None].to(rows.weights.device)
        parts[rows.site].append(rows.weights.masked_fill(~sample, -1.0).argmax(-1).cpu())

    read_heads(model, sites, x, read, page=page)
    return {site: torch.cat(found, 2) for site, found in parts.items()}


def _score(direct: Tensor, spoken: Tensor, mean: Tensor, page: Page, looked: Tensor) -> Tensor:
    """One head's score per example, of direct [b, row, d]."""
    words, rows = (x.to(direct.device) for x in (page.words, _told(page)))
    sample = words >= 0
    columns = spoken[:, words.clamp(min=0)].movedim(0, 2)
    logits = torch.einsum("brd,bcd->brc", direct, columns) - (direct @ mean)[..., None]
    raised = logits.relu() * sample[:, None]
    own = raised.gather(2, looked.to(raised.device)[..., None]).squeeze(2)
    ratio = own / (own + raised.sum(2)).clamp(min=1e-300)
    return ((4 * ratio - 1) * rows).sum(1) / rows.sum(1)
