"""Does attention say what the answer rests on? Weights on the keys against attributions of the same keys.

After the study of cross-attention in speech-to-text models as half an explanation (arXiv 2509.18010), which correlates
it with a saliency map of the input and finds about half of it there. Here, for any tower, head by head, averaged over
the heads of a layer, and over all:

    attention   A_j   the weight on key j, averaged over the rows asked for
    input       |R_j|, R_j = e_j . dM/de_j at the tower's embedded input (the encoder's, for cross-attention), or what
                `attribution=` gives: an `interp.relevance` result, or numbers [example, position]
    head        |K_j|, K_j = sum over those rows i of a_ij / (1 - a_ij) (g_i . v_j - g_i . z_i), with g the metric's
                gradient at z: to first order the metric's fall if this head could not see key j
                (`interp.attribution.key_spans`)

Correlations (Pearson, Spearman) are taken over the real keys that the rows see, example by example; padding that a
model sees too, as Whisper does, is not compared. Sums of K over a layer's heads go with their mean weight. `deletion()`
hides growing shares of the keys from every row of every layer, by attention, by attribution (R, with its sign) or at
random: the metric should fall fastest in the order that is faithful.
Cost: one forward and one backward pass, and about one more attention a layer for the rows asked for; a forward pass per
share, order and random draw. No N x N: rows are read a few at a time.
Limits: R and K are first order; the paper's saliency is by perturbation, per token of output, and its maps are not
averaged over rows; hidden tokens are out of distribution for the model. Attention through transformers' interface.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from interp.hooks.anatomy.towers import Layer
from interp.hooks.edits.edits import MaskKeys
from interp.hooks.errors import InputsError, ModelError, SiteError
from interp.hooks.head_names import head_of
from interp.hooks.inputs.inputs import Inputs, Positions
from interp.hooks.run.tape import tower_inputs
from interp.hooks.sites import Site
from interp.hooks.slopes.gradients import Graph, graph
from interp.hooks.stand.call import NUMBERS, Call, part_of
from interp.metrics.judge import Metric, judged
from interp.metrics.named import metric_name
from interp.metrics.reading import hands_over
from interp.patching.cells import expanded
from interp.provenance import about
from interp.records import Method, register
from interp.results.agreement import Agreement

if TYPE_CHECKING:
    from interp.model import Model

SHARES = (0.0, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0)
LEAST = 3
"""Keys that a correlation needs."""


@hands_over
@torch.enable_grad()
def agree(
    model: Model,
    inputs: Any,
    *,
    metric: Metric,
    attribution: Any = None,
    heads: str = "L*.H*",
    rows: Positions | None = None,
    keys: Positions = "all",
    shares: Sequence[float] = SHARES,
    random: int = 10,
    seed: int = 0,
) -> Agreement:
    """Attention against attribution, of one tower's heads, all of self-attention or all of cross-attention.

    `rows` are the queries whose attention is read: the last token where the tower is causal, else all of them. `keys`
    are those compared and deleted (leave out a sink that would decide alone: `keys=slice(1, None)`). `shares=()`
    deletes nothing; the only row read, in self-attention, is never deleted.
    """
    asked = _asked(model, inputs, metric, heads, rows, keys)
    if any(not 0 <= share <= 1 for share in shares) or list(shares) != sorted(shares) or (shares and random < 1):
        raise InputsError(f"shares= are numbers from 0 to 1 in order and random= at least 1; got {shares}, {random}.")
    run = asked.run(with_input=attribution is None)
    slopes = run.gradients()
    looks, owes, seen = zip(*(asked.layer(run, site, slopes[site]) for site in asked.sites), strict=True)
    relevance = asked.input(run, slopes) if attribution is None else asked.given(attribution)
    counted = asked.keys & torch.stack(seen).all(0)
    _enough(counted)
    names = tuple(map(head_of, asked.chosen))
    picks = [asked.every.index(site) for site in asked.chosen]
    attention, own = (torch.cat(parts)[picks] for parts in (looks, owes))
    curves, drawn = asked.deleted(attention.mean(0), relevance, counted, tuple(shares), random, seed)
    meta = {**about(model.module, asked.x), "metric": metric_name(metric), "seed": seed,
            "attribution": "gradient x input" if attribution is None else type(attribution).__name__,
            "passes": 2 + len(shares) * (2 + random)}  # fmt: skip
    towers = (model.anatomy.tower(asked.sites[0].tower, text=heads).name,) * len(names)
    steps = torch.tensor(shares, dtype=torch.float64)
    return Agreement(names, towers, attention, own, relevance, counted, steps, curves, drawn, meta)


@dataclass(frozen=True, eq=False)
class _Compared:
    model: Model
    x: Inputs
    metric: Metric
    sites: list[Site]
    chosen: list[Site]
    cross: bool
    rows: Tensor
    """[example, query]"""
    keys: Tensor
    """[example, key]"""

    @property
    def every(self) -> list[Site]:
        """One site a head, of the layers asked for."""
        return [Site(s.tower, s.layer, "z", (h,)) for s in self.sites for h in range(self.of(s).heads)]

    def of(self, site: Site) -> Layer:
        return self.model.anatomy.layer(site)

    @property
    def embed(self) -> Site:
        """Where the keys come in."""
        anatomy = self.model.anatomy
        if not self.cross:
            return Site(self.sites[0].tower, None, "embed")
        if "encoder" not in anatomy.towers:
            raise ModelError(
                "the keys of this cross-attention come from a tower without an embedding: give attribution=."
            )
        return Site("encoder", None, "embed")

    def score(self, logits: Tensor) -> Tensor:
        return judged(self.metric, self.x, logits)

    def run(self, *, with_input: bool) -> Graph:
        model = self.model
        sites = [*self.sites, *([self.embed] if with_input else [])]
        return graph(
            model.module, model.anatomy, self.x, model.called_with(self.x.kwargs), sites=sites, score=self.score,
            calls=self.sites, family=model.family,
        )  # fmt: skip

    def layer(self, run: Graph, site: Site, dz: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Weights and worth of every key [head, example, key], and which keys the rows see [example, key]."""
        call = run.calls[site]
        batch, queries, keys = call.q.shape[0], call.q.shape[2], call.k.shape[2]
        if self.rows.shape != (batch, queries) or self.keys.shape != (batch, keys):
            raise InputsError(
                f"{site} has {[batch, queries, keys]} examples, queries and keys, and the inputs have"
                f" {list(self.rows.shape)} and {list(self.keys.shape)}: windows or images of their own cannot be read."
            )
        with torch.no_grad():
            return _keys(call, dz, self.rows.to(call.q.device))

    def input(self, run: Graph, slopes: dict[Site, Tensor]) -> Tensor:
        value = run.values[self.embed].detach().double()
        return self._fits((value * slopes[self.embed].double()).sum(-1).cpu())

    def given(self, attribution: Any) -> Tensor:
        numbers = attribution if torch.is_tensor(attribution) else getattr(attribution, "values", attribution)
        return self._fits(torch.as_tensor(numbers).double().cpu())

    def _fits(self, found: Tensor) -> Tensor:
        if found.shape != self.keys.shape:
            raise InputsError(f"an attribution of {list(found.shape)} does not fit keys of {list(self.keys.shape)}.")
        if not bool(torch.isfinite(found).all()):
            raise InputsError("the attribution is not finite.")
        return found

    def deleted(
        self, looks: Tensor, relevance: Tensor, counted: Tensor, shares: tuple[float, ...], random: int, seed: int
    ) -> tuple[Tensor, Tensor]:
        """The metric along each order [order, step, example], and along random ones."""
        lone = not self.cross and bool((self.rows.sum(1) == 1).all())
        allowed = counted & ~self.rows if lone else counted
        draw = torch.Generator().manual_seed(seed)
        orders = [looks, relevance, *(torch.rand(looks.shape, generator=draw).double() for _ in range(random))]
        curves = [torch.stack([self._without(order, allowed, s) for s in shares]) for order in orders if shares]
        empty = torch.zeros(0, 0, len(counted), dtype=torch.float64)
        return (torch.stack(curves[:2]), torch.stack(curves[2:])) if curves else (empty, empty)

    def _without(self, order: Tensor, allowed: Tensor, share: float) -> Tensor:
        """The metric with the first of an order hidden from every row."""
        count = (share * allowed.sum(1)).round().long()
        place = order.masked_fill(~allowed, -torch.inf).argsort(dim=1, descending=True, stable=True).argsort(1)
        gone = allowed & (place < count[:, None])
        edits = [MaskKeys(site, keys=gone) for site in self._layers()] if bool(gone.any()) else []
        return self.score(self.model.run(self.x, edits=edits)["logits"]).double().cpu()

    def _layers(self) -> list[str]:
        """Every layer of the tower whose keys these are."""
        tower, kind = self.model.anatomy.tower(self.sites[0].tower, text="heads"), "cross" if self.cross else "self"
        layers = [layer.index for layer in tower.layers if layer.kind == kind]
        return [str(Site(self.sites[0].tower, layer, "attention")) for layer in layers]


def _asked(model: Model, inputs: Any, metric: Metric, heads: str, rows: Positions | None, keys: Positions) -> _Compared:
    anatomy, x = model.ready(), model.inputs(inputs)
    chosen = expanded(model, [heads if heads.endswith(".z") else f"{heads}.z"])
    sites = list(dict.fromkeys(site.whole for site in chosen))
    kinds = {anatomy.layer(site).kind for site in sites}
    if chosen[0].heads is None or len(kinds) > 1:
        raise SiteError(f"{heads!r}: name heads ('L*.H*') of self-attention or of cross-attention, not of both.")
    outside = next((s for s in sites if not anatomy.layer(s).seen), None)
    if outside is not None:
        raise ModelError(f"{outside}: its attention call is not seen, so its keys cannot be weighed.")
    cross = kinds == {"cross"}
    tower = anatomy.tower(sites[0].tower, text=heads)
    default: Positions = "all" if tower.bidirectional else "last"
    row_mask = tower_inputs(x, sites[0]).mask(default if rows is None else rows).cpu()
    key_site = Site(sites[0].tower, sites[0].layer, "k")
    key_mask = tower_inputs(x, key_site, cross=cross).mask(keys).cpu()
    return _Compared(model, x, metric, sites, chosen, cross, row_mask, key_mask)


def _keys(call: Call, dz: Tensor, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    part = part_of(call, tuple(range(call.q.shape[1])))
    batch, heads, keys = call.q.shape[0], call.q.shape[1], call.k.shape[2]
    looks, owes = torch.zeros(2, heads, batch, keys, dtype=torch.float64)
    seen = torch.zeros(batch, keys, dtype=torch.bool)
    wanted = rows.any(0).nonzero().flatten()
    for some in wanted.split(max(1, NUMBERS // max(1, batch * heads * keys))):
        s = part.scores(some)
        a, mine = part.softmax(s), rows[:, None, some, None]
        worth = a * part.along_values(dz[:, some].transpose(1, 2).to(a.dtype))
        whole = a.sum(-1, keepdim=True) if part.sinks is None else 1.0
        rest, total = whole - a, worth.sum(-1, keepdim=True)
        fall = torch.where(rest > 0, worth - a * (total - worth) / torch.where(rest > 0, rest, 1.0), 0.0)
        looks += (a * mine).sum(2).transpose(0, 1).double().cpu()
        owes += (fall * mine).sum(2).transpose(0, 1).double().cpu()
        seen |= (~s.isneginf() & mine).any(1).any(1).cpu()
    return looks / rows.sum(1).double().cpu()[None, :, None], owes, seen


def _enough(counted: Tensor) -> None:
    few = [n for n, count in enumerate(counted.sum(1).tolist()) if count < LEAST]
    if few:
        raise InputsError(f"a correlation needs at least {LEAST} keys that the rows see; examples {few} have fewer.")


register(
    Method(
        "interp.attribution.agree",
        number="weight on a key, compared with two attributions of it; correlations from -1 to 1",
        shown="curve",
        needs=("metric",),
        passes=lambda t: 2 + 2 * (2 + 2),
        values="attention",
        examples=1,
        example=lambda t: agree(
            t.model, t.base, metric=t.metric, heads=f"{t.heads}", shares=(0.0, 0.5), random=2,
        ),
    )
)  # fmt: skip
