"""What kinds of heads for a task are measured on: its prompts, the row that says the answer, and what heads write
there.

One recorded run gives every head's weights in the last row and its write there; one more per question to the weights
gives what a head would write for a single word. That word is embedded as Gould et al. 2023 (arXiv 2312.09230) do: its
embedding and what the first MLP adds to it, which is the residual behind the first block of a run on that word in which
the attention of that block is silenced. What heads write is taken straight to the logits, the final norm held at its
scale in the run, and is given less its mean over the vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from interp.heads.kinds.page import Page
from interp.heads.kinds.reading import head_names, heads_of, page_of, read_heads, tower_of
from interp.heads.weights.matrices import HeadMatrices
from interp.hooks.drive.tail import Tail, last_tower, unembedding
from interp.hooks.edits.edits import Zero
from interp.hooks.errors import ModelError
from interp.hooks.inputs.inputs import Inputs
from interp.hooks.run.writes import Writes
from interp.hooks.sites import Site
from interp.tasks.induction import bos
from interp.tasks.task import Task

if TYPE_CHECKING:
    from interp.hooks.run.weights import Rows
    from interp.model import Model

MOST = 64
"""Answers whose place is looked up."""
Numbers = dict[str, Tensor]
"""By name, values [head, example]; where a word or a pair of words is the example, as many columns as there are."""


class Function(Protocol):
    """A kind of head for a task."""

    NAME: str

    def refuses(self, asked: FunctionGround) -> str | None:
        """Why it has no meaning here, or None."""

    def measure(self, asked: FunctionGround) -> Numbers:
        """Its numbers."""


@dataclass(frozen=True, eq=False)
class FunctionGround:
    """A model, heads of the tower that answers, and what they are asked on."""

    model: Model
    sites: Sequence[Site]
    x: Inputs
    task: Task | None = None
    sequences: Mapping[str, Sequence[str | int]] = field(default_factory=dict)
    """Words in their order, by what they are."""
    movers: int = 3
    """So many heads that carry the answer are the ones whose queries are looked at."""

    @cached_property
    def names(self) -> tuple[str, ...]:
        """The heads."""
        return head_names(self.model, self.sites)

    @cached_property
    def page(self) -> Page:
        """The positions, labelled."""
        return page_of(self.model, self.sites, self.x)

    @cached_property
    def last(self) -> Tensor:
        """The row that says the answer [example]."""
        return (self.page.valid.int() * torch.arange(self.page.length)).argmax(1)

    @cached_property
    def weights(self) -> Tensor:
        """What that row gives to each key [head, example, key]."""
        found = {s: torch.zeros(0) for s in self.sites}

        def read(rows: Rows) -> None:
            at = rows.at.cpu()
            hit = (at[None] == self.last[:, None]).to(rows.weights)
            part = torch.einsum("bhrk,br->hbk", rows.weights, hit).double().cpu()
            found[rows.site] = part if not found[rows.site].numel() else found[rows.site] + part

        read_heads(self.model, self.sites, self.x, read, page=self.page)
        return torch.cat([found[s] for s in self.sites])

    @cached_property
    def _run(self) -> tuple[Writes, Tail]:
        model = self.model
        stack = last_tower(model.anatomy, tower_of(model, self.sites).name)
        tape = model.run(self.x, record=Writes.sites(model.anatomy, stack))
        if "logits" not in tape or tape["logits"].ndim != 3:
            raise ModelError(f"{type(model.module).__name__} has no logits of words that heads could write to.")
        writes = Writes(model.module, tape, stack)
        writes.check()
        tail = Tail(
            model.module, stack, model.called_with(self.x.kwargs), left=writes.final, logits=tape["logits"]
        )  # fmt: skip
        return writes, tail

    @cached_property
    def writes(self) -> Tensor:
        """What each head writes in that row, behind the held norm [head, example, d]."""
        writes, tail = self._run
        rows, found = torch.arange(self.x.batch), []
        for site in self.sites:
            for head in heads_of(self.model, site):
                one = writes.heads(Site(site.tower, site.layer, "result"), (head,))[:, :, 0]
                found.append(tail.frozen.linear(one.reshape(tail.left.shape)).cpu()[rows, self.last])
        return torch.stack(found).double()

    @cached_property
    def spoken(self) -> Tensor:
        """The unembedding [d, word]."""
        return unembedding(self._run[1]).float().cpu()

    def raised(self, ids: Tensor) -> Tensor:
        """What each head's write adds to the logits of words [example, n], over the mean word's [head, example, n]."""
        columns = (self.spoken[:, ids].double() - self.spoken.double().mean(1)[:, None, None]).permute(1, 0, 2)
        return torch.einsum("hbd,bdn->hbn", self.writes, columns)

    @cached_property
    def answers(self) -> tuple[tuple[int, ...], ...]:
        """Ids of the right answers, a tuple an example."""
        return () if self.task is None else self.task.answer_ids

    @cached_property
    def wrong(self) -> tuple[tuple[int, ...], ...]:
        """Those of the wrong ones."""
        return () if self.task is None or not all(self.task.wrong) else self.task.wrong_ids

    def said(self, ids: Sequence[Sequence[int]]) -> Tensor:
        """Where the prompts say one of these words [example, key], the answering row itself left out."""
        words = self.page.words
        hit = torch.stack([torch.isin(row, torch.tensor(list(one))) for row, one in zip(words, ids, strict=True)])
        return hit & (torch.arange(self.page.length)[None] != self.last[:, None])

    def embedded(self, ids: Sequence[int]) -> Tensor:
        """Single words behind the first block without its attention [word, d]."""
        model, tower = self.model, tower_of(self.model, self.sites)
        first = min(tower.by_index)
        name = self.sites[0].tower
        opening = bos(model)
        rows = torch.tensor([[*opening, one] for one in ids])
        x = model.inputs({"input_ids": rows, "attention_mask": torch.ones_like(rows)})
        site = Site(name, first, "resid_post")
        silent = Zero(str(Site(name, first, "z")))
        found: Tensor = model.run(x, record=site, edits=[silent])[site]
        return found[:, -1].double().cpu()

    @cached_property
    def matrices(self) -> HeadMatrices:
        """The weights of the heads."""
        return HeadMatrices(
            self.model, tower_of(self.model, self.sites), [s.layer for s in self.sites if s.layer is not None]
        )

    def circuits(self, ids: Sequence[int], columns: Sequence[int] | None = None) -> Iterator[Tensor]:
        """By head what looking at each of these words would write to the logits of some words, or all [word, column];
        the scale of norms, one positive number a word, left out."""
        embedded, spoken = self.embedded(ids), self.unembedded if columns is None else self.unembedded[:, list(columns)]
        for site in self.sites:
            assert site.layer is not None
            of = self.matrices.of(site.layer)
            for head in heads_of(self.model, site):
                yield (embedded @ of.v[head] @ of.o[head]).float() @ spoken

    @cached_property
    def unembedded(self) -> Tensor:
        """The unembedding with the gain of the final norm [d, word]."""
        return self.matrices.unembedding.float().cpu()

    @cached_property
    def places(self) -> Tensor:
        """Of the answers, right and wrong, each once: which place a head that looks at one gives it among all words
        that it raises, 1 the first, and among those that it lowers [2, head, word]; words that tie share the last."""
        every = dict.fromkeys(i for side in (self.answers, self.wrong) for row in side for i in row)
        ids = list(every)[:MOST]
        own, found = torch.tensor(ids)[:, None], []
        for made in self.circuits(ids):
            mine = made.gather(1, own)
            found.append(torch.stack([(made >= mine).sum(1), (made <= mine).sum(1)]))
        return torch.stack(found, 1)


def text_answer(asked: FunctionGround) -> str | None:
    """Why there is no task with words as answers."""
    if asked.task is None:
        return "it needs a task, which knows the right answer"
    if asked.page.picture or not bool((asked.page.words >= 0).any()):
        return "it is about words, and the ids of this tower's words are not known"
    return None
