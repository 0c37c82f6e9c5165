"""Retrieval heads: those that look at the token they are about to copy, in a needle somewhere in a long text.

Wu et al. 2024 (arXiv 2404.15574). At the row that predicts token w of the answer, a head copies w if the one key it
weighs most is in the needle and is w: j = argmax_j p_ij, j in needle, x_j = w. With k the answer's tokens,

    event   copies / len(k)                     as the authors' code counts; above 1 where tokens are said twice
    set     |{w copied} and set(k)| / |set(k)|  as the paper's text has it
    r2      sum over the first N = len(k) rows of p_ij / N for those of the N largest p_ij whose j is in the answer
            (retrieval-reasoning heads, Fu et al. 2024, arXiv 2410.19258)

Teacher-forced, the answer is given and w are its tokens: one prefill of prompt and answer, of which only the answer's
rows are looked at, by statistics of the kernels. `generated=True` lets the model say w itself, as the papers do, and
reads what it said in one more prefill, whose rows are those of the decoding steps; where it says the answer and no
more, both give the same scores in event mode. `anywhere=True` lets j be any key that is w, as AttentionInfluence
selects its heads (Hua et al. 2025, arXiv 2505.07293). Needles of which the model says half or less do not count (the
authors' code uses ROUGE-1 above 50 for that, that of r2 an F1 above 50). With `interp.scale.vllm(llm)` in the model's
place an engine that serves says the answers and looks at the same rows while it says them; the needles are made with a
model that has the same tokenizer. Cost: one forward pass a needle, and one decode more if generated; in an engine one
request a needle.
Limits: only the first key counts, so heads that spread over the needle score 0; where a head looks is not what it
does, so mask the heads to know (`interp.long.mask_heads`); heads that do nothing score by chance, about one over the
number of keys a word. Decoder-only language models.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from itertools import accumulate, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import torch
from torch import Tensor

from interp.cells.calls import answered
from interp.cells.journal import Values
from interp.cells.shards import Asked, Frame, ShardDone, asked
from interp.cells.work import Bounds, Builder, Floors
from interp.contents import content
from interp.hooks.anatomy.unwrap import forced_eager
from interp.hooks.errors import InputsError, ModelError
from interp.hooks.inputs.inputs import Inputs
from interp.hooks.run.statistics import Request, stream
from interp.hooks.sites import Site
from interp.hooks.stand.output import logits_of
from interp.kernels.errors import InterpError
from interp.long.needles import alike, answer_span, attention_sites, fitted, head_names
from interp.long.serving import Looked, Serving, looked_served, needles_served, refuse_engine, said_served
from interp.provenance import about, refuse_unwritten
from interp.records import Kind, Method, Variant, register, variants
from interp.results.retrieval import Mode, RetrievalHeads
from interp.tasks.task import Task

if TYPE_CHECKING:
    from interp.model import Model


PASSED = 0.5
"""A needle counts if the model says more than this share of its answer."""
MORE = 24
"""Tokens that are generated beyond what was asked for, to see whether an answer that is not there comes later."""
NEAR_ZERO = 0.1
"""With a smaller share of needles that count, no heads are named."""


class RetrievalError(InterpError):
    """A model that does not retrieve has no retrieval heads to name."""


@overload
def retrieval_heads(model: Model | Serving, needles: Any, *, shard: None = None, **how: Any) -> RetrievalHeads: ...
@overload
def retrieval_heads(model: Model | Serving, needles: Any, *, shard: tuple[int, int] | str, **how: Any) -> ShardDone: ...


def retrieval_heads(  # type: ignore[misc]  # the overloads leave the rest to this
    model: Model | Serving,
    needles: Any,
    *,
    mode: Mode = "event",
    generated: bool = False,
    anywhere: bool = False,
    max_new_tokens: int | None = None,
    batch: int = 8,
    impl: str | None = None,
    out: str | Path | None = None,
    shard: Asked = None,
    engine: Any = None,
) -> RetrievalHeads | ShardDone:
    """Score every head on `interp.tasks.needle(m, whole=True, lengths=..., depths=...)` or a task of your own whose
    `positions` name the "needle"; generated answers are as long as the right ones unless `max_new_tokens` is given.

    `impl="auto"` (or a kernel by name) computes the model's attention and its statistics in one pass and replaces the
    model's own implementation: on a CPU that is faster. `out=` is a directory for the needles that were read, `batch`
    at a time: if the call is killed, make it again to continue. `shard=(0, 4)` reads the first of four parts of them,
    in its own directory, and `interp.scale.merge` makes the result of all four; `engine` says what reads them
    (`interp/cells/work.py`). A served engine given instead of the model takes no `impl` and no `engine`.
    """
    mine = asked(shard, out)
    refuse_engine(model, engine)
    _check(mode, anywhere, max_new_tokens)
    if isinstance(model, Serving) and impl is not None:
        raise InputsError(f"impl={impl!r} chooses a kernel for a loaded model; a served engine uses its own.")
    if out is not None and not isinstance(model, Serving):
        refuse_unwritten(model.module)
    new = (max_new_tokens or 0) if generated else 0
    task = needles_served(model, needles, new) if isinstance(model, Serving) else fitted(model, needles)
    work = built(
        model, task=task, mode=mode, generated=generated, anywhere=anywhere,
        max_new_tokens=max_new_tokens, batch=batch, impl=impl,
    )  # fmt: skip
    found: RetrievalHeads | ShardDone = answered(
        "interp.retrieval_heads", work, work.frame(), partial(_result, work), out=out, shard=mine, engine=engine
    )
    return found


def built(model: Model | Serving, *, task: Task, **how: Any) -> Needles:
    """The needles as work, here or in another process."""
    mine = task if task.model is model or isinstance(model, Serving) else task.on(model)
    return Needles(model, mine, how, [*alike(mine, how["batch"])])


def result(frame: Frame, values: Values, floors: Floors) -> RetrievalHeads:
    """What the needles come to, without the model."""
    return _result(None, frame, values, floors)


def _result(work: Needles | None, frame: Frame, values: Values, floors: Floors) -> RetrievalHeads:
    rows = torch.tensor(frame.facts["rows"]).argsort()
    scores, recall = values["score"][rows].T.contiguous(), values["recall"][rows, 0]
    kept, how = recall > PASSED, frame.facts["meta"]
    if float(kept.double().mean()) < NEAR_ZERO:
        later = work is not None and how["generated"]
        _refuse(kept, recall, _later(work.model, work.needles, work.how["max_new_tokens"]) if later and work else "")
    cells = tuple(dict(one) for one in frame.facts["cells"])
    return RetrievalHeads(tuple(frame.facts["names"]), scores, kept, recall, how["mode"], cells, how)


@dataclass(frozen=True)
class Needles:
    """Needles as cells, those that are read together a chunk."""

    model: Model | Serving
    needles: Task
    how: Mapping[str, Any]
    batches: Sequence[tuple[list[int], Tensor]]
    product: str = "torch"

    @cached_property
    def heads(self) -> tuple[str, ...]:
        """Every head by name."""
        model = self.model
        return model.heads if isinstance(model, Serving) else head_names(model, attention_sites(model))

    @cached_property
    def facts(self) -> dict[str, Any]:
        """The model, and the needles."""
        x = self.needles.clean
        if isinstance(self.model, Serving):
            return {**self.model.facts(), "inputs_hash": x.digest()}
        return about(self.model.module, x)

    @property
    def task(self) -> dict[str, Any]:
        """Which needles, how they are read, and the model."""
        spans = [[span.start, span.stop] for span in (answer_span(self.needles, n) for n in range(self.count))]
        return {"method": "retrieval heads", "model": self.facts,
                "answers": content((tuple(map(tuple, self.needles.answer_ids)), str(spans))), **self.how}  # fmt: skip

    @property
    def count(self) -> int:
        """How many needles there are."""
        return len(self.needles)

    @property
    def names(self) -> dict[str, int]:
        """Of a needle every head's score, and whether the answer was said."""
        return {"score": len(self.heads), "recall": 1}

    @property
    def recipe(self) -> Builder:
        """Needles can be sent."""
        return Builder("interp.long.retrieval_heads:built", {"task": replace(self.needles, model=None), **self.how})

    def bounds(self) -> Bounds:
        """Those that are read together."""
        ends = [0, *accumulate(len(rows) for rows, _ in self.batches)]
        return list(pairwise(ends))

    def frame(self) -> Frame:
        """What the result needs in addition to the scores."""
        meta = {**self.facts, "method": "retrieval heads",
                **{name: self.how[name] for name in ("mode", "generated", "anywhere", "impl")}}  # fmt: skip
        rows = [row for some, _ in self.batches for row in some]
        cells = [dict(one) for one in self.needles.meta]
        return Frame({"names": self.heads, "rows": rows, "cells": cells, "meta": meta})

    def compute(self, low: int, high: int) -> tuple[Values, Floors]:
        """Scores and recall of needles that are read together."""
        scores, recalls = [], []
        for (start, stop), (rows, given) in zip(self.bounds(), self.batches, strict=True):
            if low <= start and stop <= high:
                score, recall = self._read(rows, given)
                scores += score
                recalls += recall
        return {"score": torch.stack(scores), "recall": torch.tensor(recalls, dtype=torch.double)[:, None]}, {}

    def _read(self, rows: Sequence[int], given: Tensor) -> tuple[list[Tensor], list[float]]:
        task, how, scores, recalls = self.needles, self.how, [], []
        mode, anywhere, generated = how["mode"], how["anywhere"], how["generated"]
        wanted = len(task.answer_ids[rows[0]])
        stat = f"topk:{wanted}" if mode == "r2" else "argmax"
        count = (how["max_new_tokens"] or wanted) if generated else None
        if isinstance(self.model, Serving):
            looked = looked_served(self.model, given, wanted, stat, count)
        else:
            looked = _looked(self.model, given, wanted, stat, count, how["impl"])
        for row, (own, said, at) in zip(rows, looked, strict=True):
            span = answer_span(task, row)
            words = said if generated else own[-wanted:]
            score = _reached(at, stat, span) if mode == "r2" else _copied(at, own, words, span, mode, anywhere)
            scores.append(score.double())
            recalls.append(_recall(said, task.answer_ids[row], anywhere=generated))
        return scores, recalls


def _check(mode: str, anywhere: bool, max_new_tokens: int | None) -> None:
    known = variants("interp.retrieval_heads", room="long")
    if mode not in known:
        raise InputsError(f"mode is one of {', '.join(map(repr, known))}, got {mode!r}.")
    if max_new_tokens is not None and max_new_tokens < 1:
        raise InputsError(f"max_new_tokens is at least 1, got {max_new_tokens}.")
    if anywhere and mode == "r2":
        raise InputsError("anywhere=True counts copies of words at any place; r2 counts weight on the answer.")


def _looked(model: Model, given: Tensor, answer: int, stat: str, count: int | None, impl: str | None) -> list[Looked]:
    """Needles of one length with answers of so many tokens, which are given; with `count` the model says as many."""
    ids, rows = (given, answer) if count is None else _generated(model, given, answer, count)
    said, looked = _read(model, attention_sites(model), ids, rows, stat, impl)
    words = said if count is None else ids[:, -rows:].cpu()
    return [(ids[n].cpu(), words[n], {name: one[:, n] for name, one in looked.items()}) for n in range(len(ids))]


def _generated(model: Model, given: Tensor, answer: int, count: int) -> tuple[Tensor, int]:
    """The prompts with what the model itself says after them."""
    prompt = given[:, :-answer]
    mask = torch.ones_like(prompt)
    said = model.generate({"input_ids": prompt, "attention_mask": mask}, max_new_tokens=count).ids
    return torch.cat([prompt, said.to(prompt.device)], dim=1), said.shape[1]


def _read(
    model: Model, sites: Sequence[Site], ids: Tensor, count: int, stat: str, impl: str | None
) -> tuple[Tensor, Mapping[str, Tensor]]:
    """At the rows that predict the last `count` tokens: what the model would say [row, word], and the statistic of
    each head [head, row, word, ...]."""
    x = Inputs.of({"input_ids": ids}, config=model.config)
    logits: list[Tensor] = []

    def forward() -> None:
        room = dict.fromkeys(model.last_logits_only(), count + 1)
        with torch.no_grad():
            found = logits_of(model.module(**model.called_with(x.kwargs), **room))
        if found is None:
            raise ModelError(
                f"{type(model.module).__name__} has no logits, so it answers nothing: load it with a head."
            )
        logits.append(found[:, -count - 1 : -1])

    request = Request.of(stat, range(x.length - count - 1, x.length - 1), impl, None)
    with forced_eager():
        taps = stream(model.module, model.anatomy, sites, request, x, forward, lambda: 0)
    parts = [tap.merged() for tap in taps.values()]
    rows = slice(None) if impl is None else slice(-count - 1, -1)  # in one pass with z every row has its statistics
    looked = {name: torch.cat([p[name][:, :, rows].cpu() for p in parts], dim=1).transpose(0, 1) for name in parts[0]}
    return logits[0].argmax(-1).cpu(), looked


def _copied(
    looked: Mapping[str, Tensor], ids: Tensor, words: Tensor, span: range, mode: Mode, anywhere: bool
) -> Tensor:
    """Of one needle, for every head: the share of the answer copied from keys [head, word] while the words were
    said."""
    keys = looked["argmax"]
    needed = ids[span.start : span.stop].unique()
    allowed = torch.isin(words, needed) if anywhere else (keys >= span.start) & (keys < span.stop)
    copied = allowed & (keys >= 0) & (ids[keys.clamp(min=0)] == words)
    if mode == "event":
        return copied.double().sum(1) / len(span)
    return (copied[:, :, None] & (words[:, None] == needed)).any(1).double().mean(1)


def _reached(looked: Mapping[str, Tensor], stat: str, span: range) -> Tensor:
    """Of one needle, for every head: weight of the N largest keys [head, word, N] that are in the answer, over N."""
    steps = slice(0, len(span))
    weights, keys = looked[stat][:, steps].double(), looked[f"{stat}.keys"][:, steps]
    return (weights * ((keys >= span.start) & (keys < span.stop))).sum((1, 2)) / len(span)


def _recall(said: Tensor, answer: Sequence[int], *, anywhere: bool) -> float:
    """The share of the answer that was said: in its place, or anywhere in what was generated."""
    if anywhere:
        return (Counter(said.tolist()) & Counter(answer)).total() / len(answer)
    return float((said == torch.tensor(answer)).double().mean())


def _refuse(kept: Tensor, recall: Tensor, later: str) -> None:
    raise RetrievalError(
        f"this model answers {int(kept.sum())} of {len(kept)} needles (mean recall {float(recall.mean()):.3g}): a head"
        f" that copies nothing into the answer is no retrieval head, so none are named. {later}Check the format of the"
        " prompt (a task's in_chat() puts it into a chat), or use shorter lengths."
    )


def _later(model: Model | Serving, task: Task, max_new_tokens: int | None) -> str:
    """Where the first needle's answer comes when the model may say more, if it does."""
    _, given = next(alike(task.take([0]), 1))
    answer = task.answer_ids[0]
    count = MORE + (max_new_tokens or len(answer))
    if isinstance(model, Serving):
        said = said_served(model, given[:, : -len(answer)], count)[0]
    else:
        ids, count = _generated(model, given, len(answer), count)
        said = ids[0, -count:].cpu()
    if _recall(said, answer, anywhere=True) <= PASSED:
        return ""
    end = next(n for n in range(1, len(said) + 1) if _recall(said[:n], answer, anywhere=True) > PASSED)
    return (
        f"The first answer is there after {end} new tokens: give max_new_tokens={end + len(answer)}, and anywhere=True"
        " if the model copies it from another place than the needle. "
    )


_UNFIT: dict[Kind, str] = {
    "vit": "it reads no text",
    "lvlm": "its pictures hold no words to copy",
    "encoder-decoder": "the answer's rows do not see the text by self-attention",
}
register(
    Method(
        "interp.retrieval_heads",
        number="share of the answer that a head looks at while the model says it, 0 to 1",
        shown="map",
        needs=("needles",),
        unfit=_UNFIT,
        passes=lambda t: 2,
        values="scores",
        signed=False,
        example=lambda t, **how: retrieval_heads(t.reader, t.needles, **how),
    )
)
_MODES: tuple[tuple[str, str, Callable[..., Any], tuple[str, ...]], ...] = (
    ("event", "tokens that the head copies, over the answer's", _copied, ("2404.15574",)),
    ("set", "different tokens of the answer that the head copies, over all of them", _copied, ("2404.15574",)),
    ("r2", "weight of the largest keys that are in the answer", _reached, ("2410.19258",)),
)
for _order, (_name, _number, _run, _papers) in enumerate(_MODES):
    register(
        Variant(
            "interp.retrieval_heads", _name, argument="mode", number=_number, run=_run, order=_order, papers=_papers,
            unfit=_UNFIT,
        )
    )  # fmt: skip
