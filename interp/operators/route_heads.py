"""A trained router of heads: which heads does each token need, if it may only have some of them?

MoH (Jin et al. 2024, arXiv 2410.11842): a layer's heads are experts. Shared heads are always on, and a router of the
layer's input keeps the `keep` best of the others for each token and weighs them (`interp.edits.MixHeads` has the
formulas, in the scaling of the authors' code). Trained is

    loss + balance * mean over layers of  n sum_i P_i f_i

over the n routed heads, P_i the mean of the router's softmax and f_i the part of the tokens that keep head i, so that
no head is left out by habit; 0.01 is the paper's. There the whole model is trained; here its weights stay frozen and
only routers learn, by Adam, so it says what the heads of a trained model are worth token by token. The loss is the
divergence from the model's own logits unless one is given. It is judged on held-out data, and compared with the
untrained router, which chooses at random, and with the router without parameters that keeps the longest queries
(`RouteHeads`). Cost: `steps` passes with their slopes and two held-out passes a seed, and four passes in all for the
model's own logits, the longest queries and the size of what is read. Limits: the choice of heads has no slope; it
learns by that of the router's softmax put in its place (straight through), which is ours: heads that keep their weights
could not follow.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from interp.hooks.edits.route import MixHeads, RouteHeads, Routing
from interp.hooks.errors import InputsError
from interp.hooks.head_names import by_layer, heads_at, spelled_together
from interp.hooks.inputs.inputs import Inputs
from interp.hooks.sites import Site
from interp.metrics.own import own_divergence
from interp.operators.visiting import real_rows
from interp.provenance import about
from interp.records import Method, Trial, register
from interp.results.heads_table import HeadResult, HeadTable, spread

if TYPE_CHECKING:
    from interp.model import Model

Loss = Callable[[Tensor, Any], Tensor]
SCALE = 0.1
"""Of the scores of an untrained router, where its input has the size that a norm gives."""


@dataclass(frozen=True, eq=False)
class Routes(HeadResult):
    """Trained routers, how often each head is kept, and what the loss is without the others."""

    STEM, TITLE = "routes", "part of the tokens that keep the head"

    sites: tuple[str, ...]
    values: Tensor
    """[head, seed]: the part of the held-out tokens that keep the head; 1 of shared ones."""
    loss: Tensor
    """[seed], held out, under the trained router."""
    begun: Tensor
    """[seed]: the same under the router that it began with."""
    longest: Tensor
    """[1]: the same where each token keeps its longest queries."""
    router: Tensor
    """[seed, row, d], the layers' rows one after the other."""
    meta: Mapping[str, Any] = field(default_factory=dict)

    def edits(self, seed: int = 0) -> tuple[MixHeads, ...]:
        """The routers of one run, counted from 0, a layer at a time: for `m.run(x, edits=...)` or `m.edited(...)`."""
        if not 0 <= seed < len(self.router):
            raise InputsError(f"there are {len(self.router)} runs, counted from 0; got seed={seed}.")
        shared, layers = self.meta["shared"], by_layer(self.sites)
        sites = tuple(f"{spelled_together(layer, heads)}.z" for layer, heads in layers.items())
        always = shared if isinstance(shared, int) else tuple(shared)
        return _Plan(sites, tuple(map(tuple, layers.values())), self.meta["keep"], always).edits(self.router[seed])

    def tables(self) -> tuple[HeadTable, ...]:
        """How often each head is kept, with the least and the most over seeds."""
        return (HeadTable(self.sites, self.values, "route_heads", ends=spread(self.values)),)

    def __repr__(self) -> str:
        return (
            f"Routes: {self.meta['keep']} of the routed heads a token, held-out loss {float(self.loss.mean()):.4g};"
            f" {float(self.begun.mean()):.4g} untrained, {float(self.longest):.4g} by the longest queries"
        )


@torch.enable_grad()
def route_heads(
    model: Model,
    data: Any,
    *,
    heldout: Any,
    heads: str = "L*.H*",
    keep: int = 1,
    shared: int | tuple[int, ...] = 0,
    balance: float = 0.01,
    loss: Loss | None = None,
    steps: int = 200,
    rate: float = 0.01,
    seeds: int = 3,
    seed: int = 0,
) -> Routes:
    """Train a router for each layer of `heads` on `data`, for `seeds` runs from seed, seed + 1, ..., and judge them on
    `heldout`. Each token keeps `keep` heads and the `shared` ones: their numbers, or how many from head 0 on.
    `loss(logits, inputs)` is what shall stay small, a number or one a row."""
    if steps < 0 or seeds < 1 or balance < 0:
        raise InputsError(f"steps and balance are at least 0 and seeds at least 1; got {steps}, {balance} and {seeds}.")
    x, y = model.inputs(data), model.inputs(heldout)
    places = model.ready().sites(heads if heads.endswith(".z") else f"{heads}.z")
    found = tuple(model.anatomy.layer(site).heads_of(site) for site in places)
    always = tuple(shared) if isinstance(shared, tuple | list) else shared
    plan = _Plan(tuple(map(str, places)), found, keep, always)
    run = _Run(model, places, plan, x, loss or own_divergence(model, x), balance)
    judge = _Run(model, places, plan, y, loss or own_divergence(model, y), balance)
    longest = model.run(y, edits=[RouteHeads(str(site), keep, always) for site in places])["logits"]
    like = model.run(x, record=run.read[:1])[run.read[0]]
    trained = [_trained(run, judge, like, seed + n, steps, rate) for n in range(seeds)]
    return Routes(
        tuple(name for site, some in zip(places, found, strict=True) for name in heads_at(site, some)),
        torch.stack([one.kept for one in trained], 1), torch.stack([one.loss for one in trained]),
        torch.stack([one.begun for one in trained]), judge.of(longest)[None].detach().double().cpu(),
        torch.stack([one.router for one in trained]),
        meta={**about(model.module, x), "method": "route_heads", "heldout_hash": y.digest(), "keep": keep,
              "shared": always, "balance": balance, "steps": steps, "rate": rate,
              "seeds": list(range(seed, seed + seeds))},
    )  # fmt: skip


@dataclass(frozen=True)
class _Plan:
    """Which heads are routed, and how many each token keeps."""

    sites: tuple[str, ...]
    heads: tuple[tuple[int, ...], ...]
    keep: int
    shared: int | tuple[int, ...]

    @property
    def rows(self) -> list[int]:
        """How many rows the router of each layer has."""
        some = set(range(self.shared)) if isinstance(self.shared, int) else set(self.shared)
        return [len(heads) + 2 * bool(some & set(heads)) for heads in self.heads]

    def edits(self, router: Tensor) -> tuple[MixHeads, ...]:
        """Routers [row, d] of all layers as edits."""
        parts = router.split(self.rows)
        return tuple(MixHeads(site, part, self.keep, self.shared) for site, part in zip(self.sites, parts, strict=True))


@dataclass(frozen=True)
class _Run:
    """Data under routers."""

    model: Model
    places: Sequence[Site]
    plan: _Plan
    x: Inputs
    loss: Loss
    balance: float

    @property
    def read(self) -> list[str]:
        """What the attention of each layer reads."""
        return [str(replace(site.whole, component="attn_in")) for site in self.places]

    def under(self, router: Tensor, *, grad: bool) -> tuple[Tensor, list[Routing]]:
        """The loss, and what each layer's router said."""
        edits = self.plan.edits(router)
        tape = self.model.run(self.x, edits=edits, record=self.read, grad=grad)
        said = [edit.routing(tape[name], heads)
                for edit, name, heads in zip(edits, self.read, self.plan.heads, strict=True)]  # fmt: skip
        return self.of(tape["logits"]), said

    def of(self, logits: Tensor) -> Tensor:
        """The loss of some logits, over the rows."""
        return self.loss(logits, self.x).mean()

    def total(self, router: Tensor) -> Tensor:
        """What is made small."""
        loss, said = self.under(router, grad=True)
        even = [one.balance(self.real(site, one.p)).to(loss) for site, one in zip(self.places, said, strict=True)]
        return loss + self.balance * torch.stack(even).mean()

    def real(self, site: Site, p: Tensor) -> Tensor:
        """Bool [row, position] that are no padding."""
        return real_rows(self.x, site).to(p.device)

    def kept(self, said: Sequence[Routing]) -> Tensor:
        """[head], the part of the tokens that keep each head of all layers."""
        found = []
        for site, one in zip(self.places, said, strict=True):
            every = torch.ones(one.gates.shape[-1], dtype=torch.float64)
            every[list(one.free)] = one.kept[self.real(site, one.p)].double().mean(0).cpu()
            found.append(every)
        return torch.cat(found)


@dataclass(frozen=True)
class _Trained:
    router: Tensor
    kept: Tensor
    loss: Tensor
    begun: Tensor


def _trained(run: _Run, judge: _Run, like: Tensor, seed: int, steps: int, rate: float) -> _Trained:
    """One run from its seed; routers read what is like that."""
    random, d = torch.Generator().manual_seed(seed), like.shape[-1]
    drawn = torch.randn(sum(run.plan.rows), d, generator=random) * SCALE * d**-0.5
    router = drawn.to(like.device, torch.promote_types(like.dtype, torch.float32)).requires_grad_()
    begun, _ = judge.under(router.detach(), grad=False)
    adam = torch.optim.Adam([router], lr=rate)
    for _ in range(steps):
        value = run.total(router)
        if not bool(torch.isfinite(value)):
            raise InputsError(f"the loss is {float(value)} under the router of seed {seed}: try a smaller rate.")
        (router.grad,) = torch.autograd.grad(value, [router])
        adam.step()
    last = router.detach()
    loss, said = judge.under(last, grad=False)
    return _Trained(last.float().cpu(), judge.kept(said), *(x.detach().double().cpu() for x in (loss, begun)))


def _example(t: Trial) -> Routes:
    return route_heads(t.model, t.base, heldout=t.source, heads=t.heads, steps=2, seeds=2)


register(
    Method(
        "interp.operators.route_heads",
        number="part of the tokens that keep the head, 0 to 1, by seed",
        shown="map",
        signed=False,
        needs=("source",),
        passes=lambda t: 4 + 2 * (2 * 3 + 2),
        values=None,
        example=_example,
    )
)
