"""A served engine in a model's place: what is asked of one that `interp.scale.vllm` gives, and how it is asked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from torch import Tensor

from interp.finite import finite
from interp.heads.sets import mask_edits
from interp.hooks.edits.edits import Edit, Scale
from interp.hooks.errors import InputsError
from interp.long.needles import placed, whole_needles
from interp.tasks.task import Task


@runtime_checkable
class Serving(Protocol):
    """An engine that runs token ids, each request with its own edits, and says what heads did."""

    @property
    def heads(self) -> tuple[str, ...]:
        """Every head by name."""

    @property
    def length(self) -> int:
        """The most tokens of a prompt."""

    @property
    def tokenizer(self) -> Any:
        """The engine's own, or None."""

    def ids(self, text: str) -> list[int]:
        """The token ids of a text."""

    def facts(self) -> dict[str, Any]:
        """What a result says of the engine."""

    def run(self, prompts: Any, **how: Any) -> Sequence[Any]:
        """An answer for each prompt, `interp/scale/serving/answers.py`."""


def refuse_engine(model: Any, engine: Any) -> None:
    """Raise for an engine beside one that serves, or in the wrong place."""
    if isinstance(engine, Serving):
        raise InputsError(
            "engine= is for workers that get a copy of the model; a served engine has its own and stands in the"
            " model's place: give interp.scale.vllm(llm) as the first argument, and no engine=."
        )
    if isinstance(model, Serving) and engine is not None:
        raise InputsError(
            f"a served engine does the work itself and cannot be sent to {engine!r}: leave out engine=. shard= cuts the"
            " work into parts for several engines."
        )


def length_served(served: Serving, max_tokens: int | None) -> int:
    """How many tokens of a text the engine reads."""
    if max_tokens is not None and not 2 <= max_tokens <= served.length:
        raise InputsError(
            f"max_tokens is from 2 to the {served.length} tokens that this engine takes (one fewer than its"
            f" max_model_len, or the model's positions), got {max_tokens}."
        )
    return served.length if max_tokens is None else max_tokens


def alike_served(heads: Sequence[str], length: int, weights: Literal["visible", "full"]) -> list[Edit]:
    """Edits of one request that make the heads attend to every token alike, as `losses.masked_alike` of a batch."""
    uniform = mask_edits(heads, "uniform")
    if weights == "visible":
        return uniform
    share = torch.arange(1, length + 1, dtype=torch.double)[:, None, None] / length
    return [*uniform, *(Scale(f"{edit.site}.z", share, phase="prefill") for edit in uniform)]


def losses_served(served: Serving, rows: Sequence[Sequence[int]], edits: Sequence[Sequence[Edit]]) -> Tensor:
    """[text]: mean cross-entropy of the tokens after the first, each text under its own edits; NaN for a text that has
    no others."""
    found = served.run(list(rows), edits=[list(some) or None for some in edits], logprobs=True)
    for one in found:
        finite(one.logprobs, "losses")
    return torch.stack([-one.logprobs.double().mean() for one in found])


def needles_served(served: Serving, needles: Any, new: int) -> Task:
    """The task, whose ids an engine with the same tokenizer understands, and `new` tokens beyond its prompts at least
    have room there."""
    task = placed(whole_needles(needles))
    if task.model is None:
        raise InputsError(
            "these needles are on no model, so they have no tokens: make them with one that has the engine's tokenizer,"
            " interp.tasks.needle(m, whole=True), or put them there, task.on(m)."
        )
    mine, its = (getattr(one, "get_vocab", None) for one in (task.model.tokenizer, served.tokenizer))
    if served.tokenizer is not None and (mine is None or its is None or mine() != its()):
        raise InputsError(
            "these needles are tokens of another tokenizer than the engine's: make them with a model that has the same"
            " one, interp.tasks.needle(m, whole=True)."
        )
    lengths = zip(task.clean.valid.sum(1).tolist(), map(len, task.answer_ids), strict=True)
    longest = max(length + max(0, new - answer) for length, answer in lengths)
    if longest > served.length:
        raise InputsError(
            f"the longest needle has {longest} tokens with its answer, and this engine takes {served.length}: start it"
            " with a larger max_model_len, or use shorter lengths."
        )
    return task


def said_served(served: Serving, prompts: Tensor, count: int) -> list[Tensor]:
    """What the engine says after each prompt [token]: `count` tokens, or fewer where it ends."""
    return [torch.tensor(one.ids) for one in served.run(prompts.tolist(), max_new_tokens=count)]


Looked = tuple[Tensor, Tensor, Mapping[str, Tensor]]
"""Of one needle: its ids with its answer, what was said in the answer's place, and of every head a statistic at the
rows that said it [head, word, ...]."""


def looked_served(served: Serving, given: Tensor, answer: int, stat: str, count: int | None) -> list[Looked]:
    """Needles of one length [row, token] with answers of so many tokens, which are given; with `count` the engine says
    as many itself. A row of statistics is of the step that said its word: none come after the end of what was said."""
    start = given.shape[1] - answer
    how: dict[str, Any] = {"stats": stat, "positions": range(start - 1, start - 1 + (count or answer))}
    if count is None:
        found = served.run(given.tolist(), logprobs=True, **how)
        said = [torch.tensor(one.likeliest[-answer:]) for one in found]
        ids = list(given)
    else:
        found = served.run(given[:, :start].tolist(), max_new_tokens=count, **how)
        said = [torch.tensor(one.ids) for one in found]
        ids = [torch.cat([prompt, words]) for prompt, words in zip(given[:, :start].cpu(), said, strict=True)]
    return [
        (own.cpu(), words, {name: torch.cat(list(layers.values())) for name, layers in one.stats.items()})
        for own, words, one in zip(ids, said, found, strict=True)
    ]
