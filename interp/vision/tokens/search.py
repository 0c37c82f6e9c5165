"""Settings of pruning found by search: how well the model's last state is kept on a few pictures, without answers.

VFlowOpt (arXiv 2508.05211) chooses t, the cell a, alpha and the retentions R_1 ... R_S of `token_importance` for one
model, by Bayesian optimisation of (8)

    mean over examples of  cos(h, h')      h, h' the last token's last state, of the whole model and of the pruned one

under a budget: the mean retention over layers (5) is given, so that the last retention follows from the others. The
authors have a Gaussian process with expected improvement, 27 first points drawn at random and 300 in all, on 30 samples
without labels, and for a budget of a quarter R_1 in 0.25 to 0.375, R_2 in 0.533 to 1, t in 0 to 50, a in 3 to 24 of 27
patches, alpha in -1 to 1. Here R_1 goes from the budget to 1.5 times it, later retentions from 0.533 to 1, a from a
ninth of the grid's side to eight ninths, t from 0 to what some patch of every picture still receives: the same ranges
in shares, which is ours; `ranges=` names others. h is the residual after the last layer, before the final norm (which
of the two the paper means is not known). `objective=` is any other number an example, higher is better.
The examples that `held_out` keeps back are judged once, at the best point and without a search (t and cell left out,
the same budget at one stage). Cost: 6 forward passes a trial. Limits: what is best on 30 pictures may be chance, so
look at the held-out numbers; alpha is searched where pictures and questions are given, and is 0 for prepared inputs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from interp.finite import finite
from interp.hooks.errors import InputsError
from interp.hooks.inputs.inputs import Inputs
from interp.provenance import about
from interp.records import NO_IMAGE_IN_TEXT, Method, register
from interp.results.figures.figure import Figure
from interp.results.figures.marks import Lines, Trace
from interp.results.saved import Saved
from interp.vision.decoding.without import image_tokens, looking_tower
from interp.vision.maps.cells import inputs_of
from interp.vision.probes.tokens import halves
from interp.vision.tokens.importance import most_received, token_importance
from interp.vision.tokens.proposals import expected_improvement, posterior

if TYPE_CHECKING:
    from interp.model import Model

Objective = Callable[["Model", Inputs, Any], Tensor]
"""From a model, inputs and edits to a number an example."""
Range = tuple[float, float]
WHAT, CANDIDATES, BELOW = "a search for what to prune", 512, 0.999


@dataclass(frozen=True, eq=False)
class PruningSearch(Saved):
    """Every point that was tried, and what the best of them is worth on examples that were kept back."""

    STEM = "pruning_search"

    names: tuple[str, ...]
    """t, cell, alpha and retention_1 ... as far as they were searched."""
    points: Tensor
    """[trial, name]: the settings of each trial, in the order of `names`."""
    retention: Tensor
    """[trial, stage]: all of them, the last from the budget."""
    values: Tensor
    """[trial, example]: the objective on the examples searched on."""
    layers: tuple[int, ...]
    """The layers at which stages begin."""
    budget: float
    """The share of image tokens that is kept, the mean over layers."""
    held_out: Tensor
    """[example]: the objective of the best point on examples kept back."""
    plain: Tensor
    """[example]: that of the same budget without a search."""
    meta: Mapping[str, Any] = field(default_factory=dict)

    @property
    def best(self) -> dict[str, Any]:
        """The settings of the best trial."""
        at = int(self.values.mean(1).argmax())
        said = {name: float(self.points[at, n]) for n, name in enumerate(self.names)}
        found = {name: said.get(name) for name in ("t", "cell", "alpha")}
        return {**found, "alpha": found["alpha"] or 0.0, "retention": tuple(self.retention[at].tolist())}

    def pruned(self, model: Model, images: Any, questions: Any = None, *, chat: Any = None) -> Any:
        """Edits of the best settings, for pictures and questions, or inputs; t is lowered for a call in which some
        picture has no patch that receives as much."""
        best = self.best
        t = min(best["t"], BELOW * most_received(model, inputs_of(model, images, questions, chat=chat)))
        got = token_importance(model, images, questions, t=t, alpha=best["alpha"], chat=chat)
        return got.pruned(best["retention"], layers=self.layers, cell=best["cell"])

    def to_frame(self) -> Any:
        """One row a trial: its settings, its retentions, and the mean objective."""
        import pandas

        columns = {name: self.points[:, n].numpy() for n, name in enumerate(self.names) if name[:3] != "ret"}
        kept = {f"retention_{n + 1}": self.retention[:, n].numpy() for n in range(self.retention.shape[1])}
        return pandas.DataFrame({**columns, **kept, "objective": self.values.mean(1).numpy()})

    def _figure(self) -> Figure:
        """The objective of each trial, and the best so far."""
        mean = self.values.mean(1)
        trials = range(len(mean))
        lines = [Trace("trial", trials, mean.tolist(), kind="points"),
                 Trace("best so far", trials, mean.cummax(0).values.tolist())]  # fmt: skip
        return Figure([Lines(lines, x="trial", y="objective")])

    def __repr__(self) -> str:
        best = self.best
        said = ", ".join(f"{name} {best[name]:.3g}" for name in self.names if name in best)
        kept = ", ".join(f"{one:.3g}" for one in best["retention"])
        return (
            f"PruningSearch: best of {len(self.points)} trials {float(self.values.mean(1).max()):.4g} on"
            f" {self.values.shape[1]} examples ({said}; retention {kept} at layers {list(self.layers)}), held out"
            f" {float(self.held_out.mean()):.4g}, without a search {float(self.plain.mean()):.4g}"
        )


def kept_state(model: Model, x: Inputs, edits: Any) -> Float[Tensor, " example"]:
    """cos of the last token's last residual, with the edits and without."""
    site = f"text.L{looking_tower(model, what=WHAT).layers[-1].index}.resid_post"
    whole, less = (model.run(x, record=site, edits=some, positions="last")[site][:, 0] for some in ((), edits))
    return torch.nn.functional.cosine_similarity(whole.double(), less.double(), dim=-1).cpu()


def search_pruning(
    model: Model,
    images: Any,
    questions: Any = None,
    *,
    budget: float = 0.25,
    layers: Sequence[int] = (0,),
    trials: int = 300,
    start: int = 27,
    search: str = "bayes",
    objective: Objective | None = None,
    ranges: Mapping[str, Range] | None = None,
    held_out: float = 0.25,
    seed: int = 0,
    chat: Any = None,
) -> PruningSearch:
    """`layers` are where stages begin, the first 0 for tokens that no layer sees; `images` may be prepared inputs;
    `objective` is how well the last state is kept, unless another is given."""
    x, image = image_tokens(model, inputs_of(model, images, questions, chat=chat), what=WHAT)
    if not 0 < budget < 1 or not 1 <= start <= trials or search not in ("bayes", "random"):
        raise InputsError(
            f"budget= is between 0 and 1, start= is 1 to trials=, search= 'bayes' or 'random'; got {budget}, {start},"
            f" {trials}, {search!r}."
        )
    space = Space.of(model, x, image, budget, tuple(layers), questions is not None, ranges or {})
    fit, judged = halves(x.batch, held_out, seed)
    inputs = (images, questions, chat) if questions is not None else (x, None, None)

    def settings(point: Tensor | None) -> Any:
        return space.edits(model, inputs, point)

    judge = kept_state if objective is None else objective
    points: list[Tensor] = []
    values: list[Tensor] = []
    random = torch.Generator().manual_seed(seed)
    for n in range(trials):
        point = space.drawn(1, random)[0] if n < start or search == "random" else space.next(points, values, random)
        points.append(point)
        values.append(judge(model, x, settings(point)).double().cpu()[fit])
    tried, found = torch.stack(points), finite(torch.stack(values), "the objective of a search")
    best = tried[int(found.mean(1).argmax())]
    kept, plain = (judge(model, x, settings(one)).double().cpu()[judged] for one in (best, None))
    meta = {**about(model.module, x), "method": "pruning search", "search": search, "start": start, "seed": seed,
            "ranges": {name: list(one) for name, one in space.ranges.items()}}  # fmt: skip
    return PruningSearch(
        space.names, space.scaled(tried), space.retention(tried), found, space.layers,
        budget, kept, plain, meta,
    )  # fmt: skip


@dataclass(frozen=True)
class Space:
    """What is searched: ranges by name, points in the unit cube, and the budget that ties retentions together."""

    ranges: Mapping[str, Range]
    layers: tuple[int, ...]
    depth: int
    budget: float

    @classmethod
    def of(
        cls, model: Model, x: Inputs, image: Tensor, budget: float, layers: tuple[int, ...], pixels: bool,
        given: Mapping[str, Range],
    ) -> Space:  # fmt: skip
        depth = looking_tower(model, what=WHAT).depth
        if not layers or list(layers) != sorted(set(layers)) or layers[0] < 0 or layers[-1] >= depth:
            raise InputsError(f"layers= are where stages begin, rising, from 0 to {depth - 1}; got {list(layers)}.")
        side = int(max(x.roles.row[image].max(), x.roles.col[image].max())) + 1
        received = BELOW * most_received(model, x)
        known: dict[str, Range] = {"t": (0.0, received), "cell": (max(1.0, side / 9), max(1.0, side * 8 / 9))}
        known |= {"alpha": (-1.0, 1.0)} if pixels else {}
        known |= {f"retention_{n + 1}": (0.533, 1.0) for n in range(len(layers) - 1)}
        if len(layers) > 1:
            known["retention_1"] = (budget, min(1.0, 1.5 * budget))
        strange = sorted(set(given) - set(known))
        if strange or any(low > high for low, high in given.values()):
            raise InputsError(f"ranges= are (low, high) of {', '.join(known)}; got {dict(given)}.")
        space = cls({**known, **given}, layers, depth, budget)
        space.drawn(1, torch.Generator().manual_seed(0))
        return space

    @property
    def names(self) -> tuple[str, ...]:
        """What is searched."""
        return tuple(self.ranges)

    def scaled(self, points: Float[Tensor, "*trial name"]) -> Float[Tensor, "*trial name"]:
        """Points of the unit cube as settings."""
        low, high = (torch.tensor([one[n] for one in self.ranges.values()], dtype=torch.float64) for n in (0, 1))
        return low + points * (high - low)

    def retention(self, points: Float[Tensor, "*trial name"]) -> Float[Tensor, "*trial stage"]:
        """R_1 ... R_S, the last such that (5) is the budget."""
        said = dict(zip(self.names, self.scaled(points).unbind(-1), strict=True))
        shares = [said[f"retention_{n + 1}"] for n in range(len(self.layers) - 1)]
        share = torch.ones(points.shape[:-1], dtype=torch.float64)
        spent, before = torch.zeros_like(share), 0
        for keep, start in zip([*shares, share], self.layers, strict=True):
            spent = spent + share * (start - before)
            share, before = share * keep, start
        last = (self.budget * self.depth - spent) / (share * (self.depth - before))
        return torch.stack([*shares, last], -1)

    def drawn(self, count: int, random: torch.Generator) -> Float[Tensor, "count name"]:
        """Points that keep the budget, drawn at random."""
        some = torch.rand(200 * count, len(self.ranges), generator=random, dtype=torch.float64)
        last = self.retention(some)[:, -1]
        fits = some[(last > 0) & (last <= 1)]
        if len(fits) < count:
            raise InputsError(
                f"a mean retention of {self.budget:g} cannot be had with stages at layers {list(self.layers)} of"
                f" {self.depth} and ranges {dict(self.ranges)}: layers before the first stage see every token."
            )
        return fits[:count]

    def next(self, points: list[Tensor], values: list[Tensor], random: torch.Generator) -> Float[Tensor, " name"]:
        """The candidate with the largest expected improvement."""
        tried, found, some = torch.stack(points), torch.stack(values).mean(1), self.drawn(CANDIDATES, random)
        return some[int(expected_improvement(*posterior(tried, found, some), float(found.max())).argmax())]

    def edits(self, model: Model, inputs: tuple[Any, Any, Any], point: Tensor | None) -> Any:
        """Those of a point; of no point, one stage with the same budget, and t and cell left out."""
        images, questions, chat = inputs
        if point is None:
            got = token_importance(model, images, questions, chat=chat)
            share = (self.budget * self.depth - self.layers[0]) / (self.depth - self.layers[0])
            return got.pruned([share], layers=self.layers[:1])
        said = dict(zip(self.names, self.scaled(point).tolist(), strict=True))
        how: dict[str, Any] = {"t": said["t"], "alpha": said.get("alpha", 0.0)}
        got = token_importance(model, images, questions, chat=chat, **how)
        return got.pruned(self.retention(point).tolist(), layers=self.layers, cell=said["cell"])


register(
    Method(
        "interp.vision.search_pruning",
        number="how well the last state is kept by pruned image tokens, at the best settings found",
        shown="none",
        papers=("2508.05211",),
        unfit=NO_IMAGE_IN_TEXT,
        passes=lambda t: 29,
        values=None,
        made_of=("interp.vision.token_importance",),
        example=lambda t: search_pruning(t.model, t.base, trials=2, start=1, held_out=0.34, budget=0.5),
    )
)
