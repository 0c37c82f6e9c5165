"""Reversed attention: keys share themselves among rows, instead of rows their weight among keys.

Two ways round, with s the model's scores:

    queries   A_ij = exp(s_ij) / sum over the rows i' that see j of exp(s_i'j)
    senders   A_ij = P_ji with P the model's own softmax: token j sends itself to the tokens it looks at (DependencyViT,
              Ding et al. 2023, arXiv 2304.03282, whose message gates and head selector are learned and not here)

`mean=True` divides each row by its sum, so that rows are means again, as in slot attention (Locatello et al. 2020,
arXiv 2006.15055). In a tower that hides later keys, `senders` would carry values back from later tokens and is
refused, and `queries` weighs a row by what later rows ask for, which says what it says and is no language model.
Cost: that of attention twice, in blocks of rows; memory linear. Not while generating: other rows are not in a cache.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from interp.hooks.errors import EditError
from interp.hooks.stand.part import Part
from interp.operators.common.operator import Operator, blocks, looks_ahead, ratio


@dataclass(frozen=True, eq=False, repr=False)
class Reversed(Operator):
    """Softmax over the rows of each key, or the model's own pattern turned round."""

    whole = True

    over: str = "queries"
    """"queries" for a softmax over the rows that see a key, "senders" for the model's own pattern with rows and keys
    exchanged."""
    mean: bool = False
    """Whether each row is divided by its sum."""

    def __post_init__(self) -> None:
        if self.over not in ("queries", "senders"):
            raise EditError(f"{self!r}: over is 'queries' or 'senders'.")

    def z(self, part: Part) -> Tensor:
        self._refuse(part)
        if self.over == "senders":
            return self._sent(part)
        columns = self._columns(part)
        return torch.cat([part.read(self._of_columns(part, rows, columns)) for rows in blocks(part)], 2)

    def weights(self, part: Part, rows: Tensor) -> Tensor:
        self._refuse(part)
        if self.over == "queries":
            return self._of_columns(part, rows, self._columns(part))
        sent = [part.softmax(part.scores(senders))[..., rows] for senders in blocks(part)]
        found = torch.cat(sent, 2).transpose(-1, -2)
        return ratio(found, found.sum(-1, keepdim=True)) if self.mean else found

    def _columns(self, part: Part) -> Tensor:
        """[example, head, 1, key]: the log of each key's sum over rows; 0 where no row sees it."""
        each = torch.stack([part.scores(rows).logsumexp(2) for rows in blocks(part)])
        total = each.logsumexp(0)[:, :, None]
        return total.masked_fill(total.isneginf(), 0.0)

    def _of_columns(self, part: Part, rows: Tensor, columns: Tensor) -> Tensor:
        found = torch.exp(part.scores(rows) - columns)
        return ratio(found, found.sum(-1, keepdim=True)) if self.mean else found

    def _sent(self, part: Part) -> Tensor:
        values, total, z = part.values, None, None
        for senders in blocks(part):
            p = part.softmax(part.scores(senders)).transpose(-1, -2)
            new, some = p @ values[:, :, senders].to(p), p.sum(-1, keepdim=True)
            z, total = (new, some) if z is None or total is None else (z + new, total + some)
        assert z is not None
        assert total is not None
        return ratio(z, total) if self.mean else z

    def _refuse(self, part: Part) -> None:
        if part.sinks is not None:
            raise EditError(
                f"{self!r}: a learned sink takes weight from rows, and in reversed attention rows give no weight: use"
                " another layer."
            )
        if self.over != "senders":
            return
        queries, keys = part.q.shape[2], part.k.shape[2]
        if queries != keys:
            raise EditError(
                f"{self!r}: tokens send to each other in self-attention, and here are {queries} queries and {keys}"
                " keys."
            )
        if keys > 1 and not looks_ahead(part):
            raise EditError(
                f"{self!r}: the tower hides later keys, and over='senders' needs them: use it in a tower that sees"
                " both sides."
            )
