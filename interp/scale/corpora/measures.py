"""What can be measured of the documents of a corpus: one number a document and head, with the weight it counts by.

A name of a statistic of rows ("entropy", "first", "max", "distance", "previous", "self", "mass:bos") is its mean over
a document's tokens, each token counted once. A kind of head ("induction", "previous token", "duplicate token", "prefix
matching", "delimiter", "local": `interp.head_roles`) is its mean weight over the rows that have such a key, and counts
by those rows. "retrieval" is how often the key that a head weighs most is the word that comes next, over the rows whose
next word was there before (`interp.retrieval_heads` with `anywhere=True`, on a document's own repetitions instead of a
needle). An object with `names`, `labels` and `of` measures something else; `LossWithout` is one.
Cost: a forward pass and about one attention a batch of documents for all statistics, the same again for all kinds,
for "retrieval", and two passes for `LossWithout`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from interp.heads.kinds import KINDS
from interp.heads.kinds.kind import Relation, RelationMeter
from interp.heads.kinds.reading import head_names, head_sites, page_of, read_heads
from interp.hooks.errors import InputsError
from interp.hooks.inputs.inputs import Inputs
from interp.hooks.run.weights import Rows
from interp.hooks.sites import nearest
from interp.kernels.stats import KINDS as STATISTICS
from interp.kernels.stats import parse
from interp.long.losses import losses, masked_alike

if TYPE_CHECKING:
    from interp.model import Model

Measured = dict[str, tuple[Tensor, Tensor]]
"""By name: values and weights [document, label]; weight 0 where there is nothing to measure."""
RETRIEVAL = "retrieval"
INDICES = ("argmax", "topk")


@runtime_checkable
class Measure(Protocol):
    """Something that is measured of each document."""

    @property
    def names(self) -> tuple[str, ...]:
        """Its numbers."""

    def labels(self, model: Model) -> tuple[str, ...]:
        """What each number is of: heads, "L0.H1"."""

    def of(self, model: Model, x: Inputs) -> Measured:
        """The numbers of some documents."""


class OfHeads:
    """What is measured of heads, which are its labels."""

    heads: str

    def labels(self, model: Model) -> tuple[str, ...]:
        """The heads."""
        return head_names(model, head_sites(model, self.heads))


@dataclass(frozen=True)
class RowMeans(OfHeads):
    """Statistics of `m.attention`, averaged over a document's tokens."""

    names: tuple[str, ...]
    heads: str = "L*"

    def of(self, model: Model, x: Inputs) -> Measured:
        """[document, head]."""
        found = model.attention(x, stats=self.names, heads=self.heads)
        real = x.valid.cpu().double()[:, None]
        count = real.sum(2)
        means = {
            name: torch.cat([(each[name].double() * real).sum(2) / count for each in found.values.values()], 1)
            for name in self.names
        }
        return {name: (mean, count.expand_as(mean)) for name, mean in means.items()}


@dataclass(frozen=True)
class KeyShares(OfHeads):
    """Kinds of heads that are weight on certain keys."""

    names: tuple[str, ...]
    heads: str = "L*"

    def of(self, model: Model, x: Inputs) -> Measured:
        """[document, head]."""
        sites = head_sites(model, self.heads)
        page = page_of(model, sites, x)
        kinds = [RELATIONS[name] for name in self.names]
        for kind in kinds:
            if why := kind.needs(page):
                raise InputsError(f"{kind.name!r} cannot be measured here: {why}.")
        meters = {site: [RelationMeter(kind, page) for kind in kinds] for site in sites}

        def take(rows: Rows) -> None:
            for meter in meters[rows.site]:
                meter.take(rows.at, rows.weights)

        read_heads(model, sites, x, take, page=page)
        return {name: _ratio([meters[site][n] for site in sites]) for n, name in enumerate(self.names)}


def _ratio(meters: Sequence[RelationMeter]) -> tuple[Tensor, Tensor]:
    total = torch.cat([torch.as_tensor(meter.total) for meter in meters]).T
    count = torch.as_tensor(meters[0].count)[:, None].expand_as(total)
    return (total / count).nan_to_num(0.0), count


@dataclass(frozen=True)
class CopiedNext(OfHeads):
    """How often a head's first key is the word that comes next."""

    heads: str = "L*"

    @property
    def names(self) -> tuple[str, ...]:
        """One."""
        return (RETRIEVAL,)

    def of(self, model: Model, x: Inputs) -> Measured:
        """[document, head]."""
        found = model.attention(x, stats=("argmax",), heads=self.heads)
        if x.ids is None:
            raise InputsError(f"{RETRIEVAL!r} compares words, and these inputs have no ids.")
        ids, valid = x.ids.cpu(), x.valid.cpu()
        after = ids.roll(-1, 1)
        counted = valid & valid.roll(-1, 1)
        counted[:, -1] = False
        earlier = (after[:, :, None] == ids[:, None]) & valid[:, None] & torch.ones(x.length, x.length).tril().bool()
        counted = counted & earlier.any(2)
        looked = torch.cat([each["argmax"] for each in found.values.values()], 1).long()
        hit = ids[:, None].expand(-1, looked.shape[1], -1).gather(2, looked.clamp(min=0)) == after[:, None]
        total = (hit & (looked >= 0) & counted[:, None]).sum(2).double()
        count = counted.sum(1)[:, None].double().expand_as(total)
        return {RETRIEVAL: ((total / count).nan_to_num(0.0), count)}


@dataclass(frozen=True)
class LossWithout:
    """By how much the mean loss of a document rises without some heads, as a share (`interp.long.influence`), by
    documents, not by tokens."""

    heads: tuple[str, ...]
    """The heads that are masked together, such as "L5.H3"."""

    def __post_init__(self) -> None:
        if not isinstance(self.heads, tuple) or not self.heads:
            raise InputsError(f"heads are a tuple of names, such as ('L5.H1', 'L6.H0'); got {self.heads!r}.")

    @property
    def names(self) -> tuple[str, ...]:
        """One."""
        return ("influence",)

    def labels(self, model: Model) -> tuple[str, ...]:
        """The heads together."""
        return (" + ".join(self.heads),)

    def of(self, model: Model, x: Inputs) -> Measured:
        """[document, 1]."""
        base, masked = losses(model, x), losses(model, x, masked_alike(self.heads, x))
        there = (base > 0)[:, None]
        score = ((masked - base) / base)[:, None].where(there, 0.0)
        return {"influence": (score, there.double())}


RELATIONS: dict[str, Relation] = {kind.name: kind for kind in KINDS if isinstance(kind, Relation)}


def measures(stats: Any, heads: str) -> tuple[Measure, ...]:
    """What `stats=` means: names, taken together where one pass gives them, and objects."""
    asked = [stats] if isinstance(stats, str | Measure) else list(stats)
    rows = tuple(dict.fromkeys(one for one in asked if isinstance(one, str) and one.partition(":")[0] in STATISTICS))
    roles = tuple(dict.fromkeys(one for one in asked if isinstance(one, str) and one in RELATIONS and one not in rows))
    for name in rows:
        _must_be_a_mean(name)
    found: list[Measure] = [RowMeans(rows, heads)] * bool(rows) + [KeyShares(roles, heads)] * bool(roles)
    for one in asked:
        if one == RETRIEVAL:
            found.append(CopiedNext(heads))
        elif not isinstance(one, str) and isinstance(one, Measure):
            found.append(one)
        elif one not in (*rows, *roles):
            known = (*(name for name in STATISTICS if name not in INDICES), *RELATIONS, RETRIEVAL)
            raise InputsError(
                f"no measure {one!r}.{nearest(str(one), known)} There are {', '.join(known)},"
                " interp.scale.LossWithout(heads) and objects with names, labels and of."
            )
    names = [name for one in found for name in one.names]
    if twice := {name for name in names if names.count(name) > 1}:
        raise InputsError(f"two measures are called {', '.join(sorted(twice))}: tell them apart by `names`.")
    if not found:
        raise InputsError("stats= names no measure: name at least one.")
    return tuple(found)


def _must_be_a_mean(name: str) -> None:
    stat = parse(name)
    if stat.per_key or stat.kind in INDICES or stat.kind == "lse":
        what = "is of keys" if stat.per_key else "is no number whose mean has a meaning"
        raise InputsError(f"{name!r} {what}: over a corpus there are means of rows; use m.attention for single texts.")
