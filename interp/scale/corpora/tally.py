"""What is kept of a corpus: tensors of fixed size, which add up to the same bits in any order.

Of each number of a measure, by label (a head): how many documents had it, exact sums of weights w, of w v, of their
squares and products, the least and the largest v, and where asked a sketch of quantiles over documents and the `top`
documents with the largest v. With y = w v the mean over rows of all documents is

    m = sum y / sum w,   standard error  sqrt(n / (n - 1) sum (y - m w)^2) / sum w

the one of a ratio of sums over n documents (delta method), since rows of one document are not independent.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from interp.scale.corpora import sketch
from interp.scale.corpora.sums import carried, summed, value

SUMS = ("w", "y", "ww", "wy", "yy")
NOWHERE = -1


@dataclass(frozen=True)
class Tally:
    """Tensors by name: "NUMBER/count" and so on; `top` documents a label are kept, and quantiles where `quantiles`."""

    held: Mapping[str, Tensor]
    top: int = 0
    quantiles: bool = False

    @classmethod
    def of(cls, name: str, v: Tensor, w: Tensor, at: Tensor, *, top: int = 0, quantiles: bool = False) -> Tally:
        """Of some documents: values and weights [document, label], and their blocks and numbers [document, 2]; a
        document of weight 0 is not counted."""
        v, w = v.double(), w.double()
        there = w > 0
        v = v.where(there, 0.0)
        y = v * w
        held = {"count": there.sum(0), "least": v.where(there, torch.inf).amin(0),
                "most": v.where(there, -torch.inf).amax(0)}  # fmt: skip
        held |= {"sum": torch.stack([summed(one) for one in (w, y, w * w, w * y, y * y)])}
        if quantiles:
            held["sketch"] = sketch.counted(v, there)
        if top:
            held |= _best(v.where(there, -torch.inf).T, at.expand(v.shape[1], -1, -1), top)
        return cls({f"{name}/{part}": tensor for part, tensor in held.items()}, top, quantiles)

    def __add__(self, other: Tally) -> Tally:
        """Both together."""
        if (self.top, self.quantiles) != (other.top, other.quantiles):
            raise ValueError("tallies of different kinds cannot be added")
        held = dict(self.held)
        for name in {key.rpartition("/")[0]: None for key in other.held}:
            theirs = _parts(other.held, name)
            mine = _parts(held, name)
            held |= {
                f"{name}/{part}": made for part, made in (_added(mine, theirs, self.top) if mine else theirs).items()
            }
        return Tally(held, self.top, self.quantiles)

    @property
    def names(self) -> tuple[str, ...]:
        """The numbers there are."""
        return tuple(dict.fromkeys(key.rpartition("/")[0] for key in self.held))

    def part(self, name: str, what: str) -> Tensor:
        """One tensor."""
        return self.held[f"{name}/{what}"]

    def mean(self, name: str) -> tuple[Tensor, Tensor]:
        """[label]: the mean over rows of all documents and its standard error, NaN where there is none."""
        w, y, ww, wy, yy = (value(one) for one in self.part(name, "sum"))
        count = self.part(name, "count").double()
        mean = torch.where(count > 0, y / w, torch.nan)
        spread = (yy - 2 * mean * wy + mean**2 * ww).clamp(min=0) * count / (count - 1)
        return mean, torch.where(count > 1, spread.sqrt() / w, torch.nan)


def _parts(held: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    return {key[len(name) + 1 :]: tensor for key, tensor in held.items() if key.rpartition("/")[0] == name}


def _added(a: Mapping[str, Tensor], b: Mapping[str, Tensor], top: int) -> dict[str, Tensor]:
    made = {
        "count": a["count"] + b["count"], "least": torch.minimum(a["least"], b["least"]),
        "most": torch.maximum(a["most"], b["most"]),
        "sum": torch.stack([carried(x + y) for x, y in zip(a["sum"], b["sum"], strict=True)]),
    }  # fmt: skip
    if "sketch" in a:
        made["sketch"] = a["sketch"] + b["sketch"]
    if top:
        made |= _best(torch.cat([a["best"], b["best"]], 1), torch.cat([a["where"], b["where"]], 1), top)
    return made


def _best(v: Tensor, at: Tensor, top: int) -> dict[str, Tensor]:
    """Of values [label, n] at places [label, n, 2] the largest, the earlier of equals first."""
    if short := max(0, top - v.shape[1]):
        v = torch.cat([v, torch.full((len(v), short), -torch.inf, dtype=v.dtype)], 1)
        at = torch.cat([at, torch.full((len(v), short, 2), NOWHERE)], 1)
    order = at[..., 1].argsort(dim=1, stable=True)
    order = order.gather(1, at[..., 0].gather(1, order).argsort(dim=1, stable=True))
    order = order.gather(1, v.gather(1, order).argsort(dim=1, descending=True, stable=True))[:, :top]
    best, where = v.gather(1, order), at.gather(1, order[..., None].expand(-1, -1, 2))
    return {"best": best, "where": where.masked_fill(best.isinf()[..., None], NOWHERE).contiguous()}
