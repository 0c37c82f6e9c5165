"""Which words does a model that fills masks put down first, and what do its heads do at each step of that?

A masked language model, or a language model that denoises (LLaDA, arXiv 2502.09992; Dream, arXiv 2508.15487), answers
in steps: all positions of the answer are masked; a step is one call of the model on everything, after which the
positions it is surest of are filled and the rest stay masked,

    n_t = ceil(masked / (steps - t)) positions of a row's block,

until none is left; `interp/diffusion/fillings.py` says which positions and words (`by`, `temperature`, `top_p`), blocks
one after the other with `block`, and `shift` where logits are those of the next position. When each position was filled
is known (`when`), is a role of the answer (`answer.inputs`, positions="step0") and a set of positions (`filled`) for
edits and readings of another run. `each(step)` gives edits for one call once it is known what is masked there, as
SparseD's patterns need (arXiv 2509.24014), found at one step and kept from then on. Cost: `steps` forward passes.
Limits: no words are taken back; models that are called on the whole text, in both directions, with one row of logits a
position; equally many positions a step is LLaDA's schedule, Dream's rounds down.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from interp.diffusion.fillings import By, Rule
from interp.hooks.edits.edits import Edit
from interp.hooks.errors import InputsError, ModelError
from interp.hooks.html import Told
from interp.hooks.inputs.inputs import Inputs
from interp.hooks.sites import Site
from interp.hooks.stand.output import logits_of
from interp.records import Method, register
from interp.watching import Watched

if TYPE_CHECKING:
    from interp.model import Model


@dataclass(frozen=True, eq=False)
class Filling:
    """What is known before a step."""

    step: int
    ids: Tensor
    """[row, position], with the mask's id where no word is filled in yet."""
    masked: Tensor
    """Bool [row, position]."""


@dataclass(frozen=True, eq=False)
class Unmasked(Told):
    """An answer, the step at which each of its words was written, and what was recorded."""

    ids: Tensor
    """[row, position]: the ids of the whole text, with a word in place of every mask."""
    when: Tensor
    """[row, position]: the step that filled it; -1 where it was given."""
    sure: Tensor
    """[row, position]: the probability of the word when it was put down; 1 where it was given."""
    tape: Watched
    """What was recorded in the calls of the model, one call a step."""
    inputs: Inputs
    """The answer as inputs of another run, whose roles say which step filled a position: `step0`, `step1`, ..."""

    def filled(self, step: int) -> Tensor:
        """Bool [row, position]: what a step filled, as positions of edits and recordings."""
        return self.when == step

    def open(self, step: int) -> Tensor:
        """Bool [row, position]: what was still masked when a step began."""
        return self.when >= step

    def __repr__(self) -> str:
        answered = int((self.when >= 0).sum())
        return f"Unmasked: {answered} positions in {int(self.when.max()) + 1} steps, {self.tape!r}"


def unmask(
    model: Model,
    inputs: Any,
    *,
    mask: int | None = None,
    steps: int = 4,
    by: By = "confidence",
    temperature: float = 0.0,
    top_p: float | None = None,
    block: int | None = None,
    shift: bool = False,
    seed: int = 0,
    record: Iterable[str | Site] | str | Site = (),
    edits: Edit | Iterable[Edit] = (),
    each: Callable[[Filling], Iterable[Edit]] | None = None,
    **watch: Any,
) -> Unmasked:
    """Fill every position that holds the id `mask` (the tokenizer's, unless given); `watch` goes to `m.watch`."""
    token, rule = _mask_id(model, mask), Rule(by, temperature, top_p, block, shift)
    x = model.inputs(inputs)
    ids = x.ids
    if ids is None or steps < 1:
        raise InputsError(f"unmask fills ids in at least one step; got steps={steps} and inputs {x!r}.")
    _refuse_one_way(model)
    ids, open_ = ids.clone().to(model.device), (ids == token).to(model.device)
    if not bool(open_.any(1).all()):
        raise InputsError(f"no position of row {int((~open_.any(1)).nonzero()[0])} holds the mask's id {token}.")
    filling = _Filler(rule, rule.blocks(open_, steps), steps, token, torch.Generator().manual_seed(seed))
    when, sure = torch.full_like(ids, -1), torch.ones(ids.shape, device=ids.device)
    with model.watch(record=record, edits=edits, **watch) as tape:
        for step in range(steps):
            given = {**model.called_with(x.kwargs), "input_ids": ids.clone()}
            with ExitStack() as undo:
                with tape.aside():
                    own = () if each is None else list(each(Filling(step, ids.clone(), open_.clone())))
                if own:
                    undo.enter_context(model.edited(own))
                logits = _logits(model, given, ids)
            filling.fill(logits, ids, open_, (when, sure), step)
    return Unmasked(ids, when, sure, tape, _told(x, ids, when))


def _told(x: Inputs, ids: Tensor, when: Tensor) -> Inputs:
    """The finished text, with the steps as roles."""
    own = ids.to(x.valid.device)
    steps = {f"step{step}": (when == step).to(x.valid.device) for step in range(int(when.max()) + 1)}
    roles = replace(x.roles, tags={**x.roles.tags, **steps})
    return replace(x, kwargs={**x.kwargs, "input_ids": own}, roles=roles, tokens=None, texts=None, offsets=None)


def _mask_id(model: Model, mask: int | None) -> int:
    found = getattr(model.tokenizer, "mask_token_id", None) if mask is None else mask
    if found is None:
        raise InputsError("the id of a masked position is not known: pass mask=, or a tokenizer that says.")
    return int(found)


def _refuse_one_way(model: Model) -> None:
    anatomy = model.ready()
    if anatomy.main is None or not anatomy.tower(None, text="unmask").bidirectional:
        raise ModelError(
            f"{type(model.module).__name__} reads from left to right or has several towers: filling masks in any order"
            " needs a model of text that sees both sides, as BERT does."
        )


def _logits(model: Model, given: dict[str, Any], ids: Tensor) -> Tensor:
    with torch.no_grad():
        logits = logits_of(model.module(**given))
    if logits is None or logits.ndim != 3 or logits.shape[:2] != ids.shape:
        came = "none" if logits is None else str(list(logits.shape))
        raise ModelError(f"expected logits [row, position, word] for ids {list(ids.shape)}, got {came}.")
    return logits


@dataclass(frozen=True, eq=False)
class _Filler:
    """Puts down words, step by step."""

    rule: Rule
    blocks: Tensor
    steps: int
    token: int
    random: torch.Generator

    def fill(self, logits: Tensor, ids: Tensor, open_: Tensor, kept: tuple[Tensor, Tensor], step: int) -> None:
        """The surest words of every row's block, in place."""
        when, chance = kept
        word, own, sure = self.rule.words(logits, self.token, self.random)
        each = self.steps // (int(self.blocks.max()) + 1)  # steps of a block
        here = open_ & (self.blocks == step // each)
        for row in range(len(ids)):
            count = -(-int(here[row].sum()) // (each - step % each))
            at = sure[row].masked_fill(~here[row], -torch.inf).topk(count).indices
            ids[row, at], when[row, at], chance[row, at] = word[row, at], step, own[row, at]
            open_[row, at] = False


def _example(t: Any, **how: Any) -> Unmasked:
    ids = t.base.ids
    return unmask(t.model, t.base, mask=0 if ids is None else int(ids[0, -1]), **how)


ONE_WAY = "it reads from left to right, or is no model of text alone"
register(
    Method(
        name="interp.diffusion.unmask",
        number="none: an answer, and the step at which each of its words was put down",
        example=_example,
        passes=lambda t: 4,
        shown="none",
        values=None,
        papers=("2502.09992", "2508.15487"),
        unfit={"decoder": ONE_WAY, "vit": ONE_WAY, "lvlm": ONE_WAY, "encoder-decoder": ONE_WAY},
    )
)
