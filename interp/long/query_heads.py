"""Query-focused retrieval heads: those whose attention from a question falls on the passage that answers it.

QRHead (Zhang et al. 2025, arXiv 2506.09944). With q the rows from the question to the end of the prompt, A a head's
weights, and N the same rows of the prompt with an empty question in place of the question ("N/A"),

    c_j   = mean over q of A_qj - mean over N's rows of A_qj          calibrated weight on token j
    score = sum of the c_j of the passage that are above mean(c) - 2 std(c) over that passage

summed over the passages that answer and averaged over questions. What the question adds is counted, not what a head
looks at whatever is asked; the outliers dropped are those on the low side, as in the authors' code, whose std is that
of a sample. Nothing is generated and nothing has to be right, so a model that cannot answer is scored too. Cost: two
forward passes a question, of which only the question's rows are looked at, by statistics of the kernels.
Limits: passages before the question in a causal model; where tokens of the two questions merge with the text before
them the prompts do not line up, which is refused. Decoder-only language models.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from interp.finite import finite
from interp.hooks.errors import InputsError
from interp.long.asking import asked_of, prompt_of, spans_of, weights_on
from interp.long.needles import attention_sites, head_names, ids_of
from interp.prompts.rows import Row
from interp.prompts.vocabulary import Vocabulary
from interp.provenance import about
from interp.records import Method, register
from interp.results.retrieval import RetrievalHeads

if TYPE_CHECKING:
    from interp.model import Model

OUTLIER = 2.0
"""Tokens this many standard deviations below their passage's mean do not count."""


def query_heads(
    model: Model,
    questions: Any,
    *,
    null: str | Sequence[int] = "N/A",
    passages: Sequence[str] = ("needle",),
) -> RetrievalHeads:
    """Score every head on a task whose `positions` name the "question" and the passages that answer it.

    `null` replaces the question: a text the tokenizer knows, or ids where the prompts are ids. Name as question
    all that belongs to it: in the paper the instruction before it is part of it, and so is all that follows.
    """
    sites = attention_sites(model)
    task = asked_of(model, questions, passages)
    scores = []
    for n in range(len(task)):
        one = task.take([n])
        ids, start = prompt_of(one)
        spans = spans_of(one, passages, start, n)
        empty = _emptied(model, one.rows[0], null)
        _line_up(ids, empty, start, n)
        gained = finite(weights_on(model, ids, start) - weights_on(model, empty, start), "weights on the passages")
        scores.append(torch.stack([_passage(gained[:, a:b]) for a, b in spans]).sum(0))
    found = torch.stack(scores, dim=1)
    unknown = torch.full((len(task),), torch.nan, dtype=torch.double)
    meta = {**about(model.module, task.clean), "method": "query-focused retrieval heads", "null": null,
            "passages": list(passages)}  # fmt: skip
    cells = tuple(dict(row) for row in task.meta)
    kept = torch.ones(len(task), dtype=torch.bool)
    return RetrievalHeads(head_names(model, sites), found, kept, unknown, "query", cells, meta)


def _emptied(model: Model, row: Row, null: str | Sequence[int]) -> Tensor:
    """The ids of the same prompt with another question."""
    first, second = row.positions["question"]
    if isinstance(row.clean, str) and isinstance(null, str) and isinstance(first, str):
        pieces = row.clean.split(first)
        text = first.join(pieces[:second]) + null + first.join(pieces[second:])
        ids = ids_of(model.prepare([text], chat=False))
    elif isinstance(row.clean, tuple) and not isinstance(null, str) and isinstance(first, int):
        ids = torch.tensor([[*row.clean[:first], *null, *row.clean[second:]]])
    else:
        raise InputsError(f"null= is a text for prompts of text and ids for prompts of ids, got {null!r}.")
    words = Vocabulary(model)
    if words.unknown(ids[0].tolist()):
        raise InputsError(
            f"this tokenizer has no token for the empty question {null!r}: give as null= a text that it knows and that"
            " asks nothing."
        )
    return ids


def _line_up(ids: Tensor, empty: Tensor, start: int, n: int) -> None:
    if empty.shape[1] <= start or not torch.equal(ids[:, :start].cpu(), empty[:, :start].cpu()):
        raise InputsError(
            f"row {n}: with null= in place of the question the tokens before it change, so weights on them cannot be"
            " compared: write the prompt so that the question begins with a new token."
        )


def _passage(gained: Tensor) -> Tensor:
    """[head] from the calibrated weights [head, token] of one passage."""
    if gained.shape[1] == 1:
        return gained[:, 0]
    bound = gained.mean(1, keepdim=True) - OUTLIER * gained.std(1, keepdim=True)
    return (gained * (gained > bound)).sum(1)


register(
    Method(
        "interp.long.query_heads",
        number="weight from the question on the passage that answers it, less that of an empty question",
        shown="map",
        needs=("needles",),
        unfit={
            "vit": "it reads no text",
            "lvlm": "its pictures hold no words to copy",
            "encoder-decoder": "the answer's rows do not see the text by self-attention",
        },
        passes=lambda t: 4,
        values="scores",
        example=lambda t: query_heads(t.reader, t.needles, null="."),
    )
)
