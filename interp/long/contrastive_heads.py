"""Contrastive retrieval heads: those whose attention tells the passage that answers from passages that do not.

CoRe heads (Tran et al. 2025, arXiv 2510.02219). With s_d the weight that the rows from the question to the end give to
passage d, summed over its tokens and averaged over the rows,

    score = exp(s+ / t) / ( exp(s+ / t) + sum over the other passages of exp(s_d / t) )

averaged over questions: a head that looks at every passage a lot has no more than one that looks at none, which sums of
weight (`query_heads`) do not tell apart. Equal weights have one over the number of passages. The paper's other passages
are hard negatives found by a retriever, and it keeps about eight heads; which temperature t it takes is not known to
us, so the default is ours: read the order, and try others. Cost: a forward pass a question, of which only the
question's rows are looked at, by statistics of the kernels. Limits: passages before the question in a causal model;
weights are not calibrated by an empty question, as those of `query_heads` are. Decoder-only language models."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from interp.finite import finite
from interp.hooks.errors import InputsError
from interp.long.asking import asked_of, prompt_of, spans_of, weights_on
from interp.long.needles import attention_sites, head_names
from interp.provenance import about
from interp.records import Method, Trial, register
from interp.results.retrieval import RetrievalHeads
from interp.tasks.task import Task

if TYPE_CHECKING:
    from interp.model import Model


def contrastive_heads(
    model: Model,
    questions: Any,
    *,
    passage: str = "needle",
    others: Sequence[str],
    temperature: float = 0.05,
) -> RetrievalHeads:
    """Score every head on a task whose `positions` name the "question", the passage that answers it, and others."""
    names = [passage, *([others] if isinstance(others, str) else others)]
    if len(names) < 2 or len(set(names)) < len(names) or temperature <= 0:
        raise InputsError(
            f"name the passage, at least one other, each once, and a temperature over 0; got {names} and {temperature}."
        )
    sites = attention_sites(model)
    task = asked_of(model, questions, names)
    scores = []
    for n in range(len(task)):
        ids, start = prompt_of(task.take([n]))
        spans = spans_of(task.take([n]), names, start, n)
        weights = finite(weights_on(model, ids, start), "weights on the passages")
        each = torch.stack([weights[:, a:b].sum(1) for a, b in spans])
        scores.append((each / temperature).softmax(0)[0])
    found = torch.stack(scores, dim=1)
    unknown = torch.full((len(task),), torch.nan, dtype=torch.double)
    meta = {**about(model.module, task.clean), "method": "contrastive retrieval heads", "passages": names,
            "temperature": temperature}  # fmt: skip
    cells, kept = tuple(dict(row) for row in task.meta), torch.ones(len(task), dtype=torch.bool)
    return RetrievalHeads(head_names(model, sites), found, kept, unknown, "query", cells, meta)


def _trial(t: Trial) -> RetrievalHeads:
    if not isinstance(t.needles, Task):
        return contrastive_heads(t.reader, t.base, others=["first"])
    rows = [
        replace(row, positions={**row.positions, "first": (" ".join(str(row.clean).split()[:5]), 1)})
        for row in t.needles.rows
    ]
    return contrastive_heads(t.reader, replace(t.needles, rows=tuple(rows)), others=["first"])


register(
    Method(
        "interp.long.contrastive_heads",
        number="share of the passage that answers among all passages, by the weight from the question, 0 to 1",
        shown="map",
        needs=("needles",),
        signed=False,
        unfit={
            "vit": "it reads no text",
            "lvlm": "its pictures hold no words to copy",
            "encoder-decoder": "the answer's rows do not see the text by self-attention",
        },
        passes=lambda t: 3,
        values="scores",
        example=_trial,
    )
)
