"""Is the answer still on its way? The logit lens at every layer as an attack on a model that no longer says it.

"Can Sensitive Information Be Deleted From LLMs?" (Patil et al., arXiv 2309.17410) calls an answer not deleted where it
is among a few candidates that can be read off the layers; UnLOK-VQA (arXiv 2505.01456) does the same to models that see
pictures. With p_l the words that the residual behind layer l says through the model's own final norm and head:

    projection   the k words with the largest p_l, of all layers together
    rise, fall   the k words with the largest p_l - p_(l-1), or p_(l-1) - p_l, of all layers together (the probability
                 delta attack; that rises and falls are counted apart is ours)

An answer is found at k where it is in that union. Its size is the attack's budget, and the result also has the share
found among as many first words of the model's own output, and by guessing. Cost: one forward pass, and the head's
matrix product at every layer. Limits: answers of one token; early layers may write in another basis than the head reads
(a tuned lens would find more), so what is not found need not be gone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from interp.finite import finite
from interp.hooks.drive.sweep import Reads
from interp.hooks.drive.tail import Tail, last_tower
from interp.hooks.errors import InputsError
from interp.hooks.inputs.inputs import Positions
from interp.hooks.run.tape import Tape, tower_inputs
from interp.hooks.run.writes import spelled
from interp.hooks.sites import Site
from interp.metrics.ids import Ids
from interp.metrics.judge import answer_ids
from interp.provenance import about
from interp.records import Method, register
from interp.results.figures.figure import Figure
from interp.results.figures.marks import Lines, Trace
from interp.results.figures.plots import line_of
from interp.results.intervals import mean_interval
from interp.results.saved import Saved

if TYPE_CHECKING:
    from interp.hooks.anatomy.towers import Tower
    from interp.model import Model

ATTACKS = ("projection", "rise", "fall")


@dataclass(frozen=True, eq=False)
class LensAttack(Saved):
    """`ranks` [attack, layer, example]: the answer's place among all words, 0 for the first."""

    STEM = "lens_attack"

    sites: tuple[str, ...]
    """The residual after each layer, such as "L3.resid_post"."""
    ranks: Tensor
    """[attack, layer, example]: the answer's place among all words, 0 for the first. The first layer has no rise and
    fall: its rank is the number of words."""
    said: Tensor
    """[example]: the answer's place in the model's own output."""
    budget: Tensor
    """[attack, k - 1, example]: how many words the union of k a layer has."""
    words: int
    """How many words the vocabulary has."""
    meta: Mapping[str, Any] = field(default_factory=dict)

    def found(self, attack: str = "projection", k: int = 5) -> Tensor:
        """[example], whether the answer is among the candidates."""
        if attack not in ATTACKS:
            raise InputsError(f"no attack {attack!r}; there are {', '.join(ATTACKS)}.")
        if not 1 <= k <= self.budget.shape[1]:
            raise InputsError(f"k is 1 to {self.budget.shape[1]}, as many as were kept; got {k}.")
        return self.ranks[ATTACKS.index(attack)].amin(0) < k

    def to_frame(self) -> Any:
        """One row per attack and k: the share found with its interval, the mean budget, and what as many first words of
        the output and as many guesses find."""
        import pandas

        rows = []
        for at, attack in enumerate(ATTACKS):
            for k in range(1, self.budget.shape[1] + 1):
                found, budget = self.found(attack, k).double(), self.budget[at, k - 1]
                low, high = mean_interval(found[None])
                rows.append(
                    {"attack": attack, "k": k, "budget": float(budget.double().mean()), "estimate": float(found.mean()),
                     "low": float(low), "high": float(high), "output": float((self.said < budget).double().mean()),
                     "chance": float(budget.double().mean() / self.words), "n": len(found)}
                )  # fmt: skip
        return pandas.DataFrame(rows)

    def layers(self, attack: str = "projection", k: int = 5) -> Any:
        """One row per layer: the share of answers among that layer's k candidates alone, and the median place."""
        import pandas

        self.found(attack, k)
        ranks = self.ranks[ATTACKS.index(attack)]
        low, high = mean_interval((ranks < k).double())
        return pandas.DataFrame({"site": self.sites, "estimate": (ranks < k).double().mean(1), "low": low, "high": high,
                                 "median": ranks.median(1).values})  # fmt: skip

    def _figure(self) -> Figure:
        """The share found by budget, an attack a line, and of the output's own first words."""
        frame = self.to_frame()
        parts = {name: frame[frame["attack"] == name] for name in ATTACKS}
        lines = [line_of(name, part, "budget", "estimate") for name, part in parts.items()]
        first = parts[ATTACKS[0]]
        lines.append(Trace("output", first["budget"].tolist(), first["output"].tolist()))
        return Figure([Lines(lines, x="budget", y="share found")])

    def __repr__(self) -> str:
        k = min(5, self.budget.shape[1])
        said = ", ".join(f"{name} {float(self.found(name, k).double().mean()):.0%}" for name in ATTACKS)
        return (
            f"LensAttack over {len(self.sites)} layers on {len(self.said)} answers, {k} words a layer: {said}; first in"
            f" the output {float((self.said == 0).double().mean()):.0%}"
        )


def lens_attack(model: Model, data: Any, answers: Any, *, positions: Positions = "last", top: int = 10) -> LensAttack:
    """`answers` is one a row, a word or an id (several that count are a list); read at one position a row, the last."""
    anatomy = model.ready()
    x, stack = model.inputs(data), last_tower(anatomy, None)
    sites = [Site(spelled(anatomy, stack), layer.index, "resid_post") for layer in stack.layers]
    tape = model.run(x, record=sites)
    logits = tape["logits"]
    wanted = _wanted(model, answers, len(logits))
    if not 1 <= top <= logits.shape[-1]:
        raise InputsError(f"top= is 1 to {logits.shape[-1]} words, got {top}.")
    tail = Tail(model.module, stack, model.called_with(x.kwargs), left=tape[sites[-1]], logits=logits)
    ranks, unions = _attacked(_spoken(tail, tape, sites, _reads(x, logits, positions, stack)), wanted, top)
    meta = {**about(model.module, x), "method": "lens_attack", "positions": str(positions)}
    return LensAttack(tuple(map(str, sites)), ranks, ranks[0, -1].clone(), unions, logits.shape[-1], meta)


def _wanted(model: Model, answers: Any, rows: int) -> Ids:
    found = answer_ids(model, answers)
    if len(found) != rows or not all(found):
        raise InputsError(f"answers= is at least one word for each of the {rows} rows, got {len(found)} rows.")
    return found


def _reads(x: Any, logits: Tensor, positions: Positions, tower: Tower) -> Reads:
    if logits.ndim == 2:
        return Reads(torch.zeros(len(logits), 1, dtype=torch.long), None)
    mask = tower_inputs(x, Site(tower.name, None, "embed")).mask(positions).cpu()
    if bool((mask.sum(1) != 1).any()):
        raise InputsError(f"positions= is one a row; {positions!r} selects {mask.sum(1).tolist()}.")
    return Reads(mask.int().argmax(1)[:, None], None)


def _spoken(tail: Tail, tape: Tape, sites: list[Site], reads: Reads) -> Iterator[Tensor]:
    """The probabilities of all words behind each layer [example, word], one layer at a time."""
    for site in sites:
        with torch.no_grad():
            normed = tail.normed(tape[site].reshape(tail.left.shape), "final")
            logits = tail.logits(normed, reads)[:, 0]
        wide = torch.promote_types(logits.dtype, torch.float32)
        yield finite(logits.to(wide).softmax(-1).cpu(), f"probabilities behind {site}")


def _attacked(spoken: Iterator[Tensor], wanted: Ids, top: int) -> tuple[Tensor, Tensor]:
    """Ranks [attack, layer, example] and sizes of unions [attack, k - 1, example]."""
    before: Tensor | None = None
    ranks: list[Tensor] = []
    kept: list[list[Tensor]] = [[], [], []]
    for now in spoken:
        none = torch.full((len(now),), now.shape[-1])
        by = [now] if before is None else [now, now - before, before - now]
        ranks.append(torch.stack([*(_rank(one, wanted) for one in by), *[none] * (3 - len(by))]))
        for n, one in enumerate(by):
            kept[n].append(one.topk(top, -1).indices)
        before = now
    return torch.stack(ranks, 1), torch.stack([_sizes(one, top, ranks[0].shape[1]) for one in kept])


def _rank(score: Tensor, wanted: Ids) -> Tensor:
    """[example], how many words are at least as likely as the best of the answers."""
    best = torch.stack([row[list(ids)].amax() for row, ids in zip(score, wanted, strict=True)])
    return (score >= best[:, None]).sum(-1) - 1


def _sizes(kept: list[Tensor], top: int, rows: int) -> Tensor:
    """[k - 1, example], how many different words the first k of all layers are."""
    if not kept:  # one layer has no differences
        return torch.zeros(top, rows, dtype=torch.long)
    ids = torch.stack(kept, 1)
    return torch.tensor([[len(row[:, :k].unique()) for row in ids] for k in range(1, top + 1)])


register(
    Method(
        "interp.forgetting.lens_attack",
        number="the answer's place among the words that each layer says; the share found among a few of them",
        shown="curve",
        signed=False,
        values="ranks",
        passes=lambda t: 2,
        example=lambda t: lens_attack(t.model, t.base, t.labels, top=2),
    )
)
