"""Retrieval heads: those that look at the token they are about to copy, in a needle somewhere in a long text.

Wu et al. 2024 (arXiv 2404.15574). At the row that predicts token w of the answer, a head copies w if the one key it
weighs most stands in the needle and is w itself: j = argmax_j p_ij, j in needle, x_j = w. With k the answer's tokens,

    event   copies / len(k)                     as the authors' code counts; above 1 where tokens are said twice
    set     |{w copied} and set(k)| / |set(k)|  as the paper's text has it

Teacher-forced, the answer is given and w are its tokens: one prefill of prompt and answer, of which only the answer's
rows are looked at, by statistics of the kernels. `generated=True` lets the model say w itself, as the paper does, and
reads what it said in one more prefill, whose rows are those of the decoding steps; where it says the answer and no
more, both give the same scores in event mode. Needles of which the model says half or less do not count (the authors'
code uses ROUGE-1 above 50 for that). Cost: one forward pass a needle, and one decode more if generated.
Limits: only the first key counts, so heads that spread over the needle score 0; where a head looks is not what it
does, so mask the heads to know; heads that do nothing score by chance, about one over the number of keys a word.
Decoder-only language models.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from interp.hooks.anatomy import Tower
from interp.hooks.errors import InputsError, ModelError
from interp.hooks.inputs import Inputs
from interp.hooks.output import logits_of
from interp.hooks.sites import Site
from interp.hooks.statistics import Request, stream
from interp.hooks.tail import last_tower
from interp.hooks.unwrap import forced_eager
from interp.hooks.writes import spelled
from interp.kernels.errors import InterpError
from interp.provenance import about
from interp.retrieval_scores import Mode, RetrievalHeads
from interp.task import Task

if TYPE_CHECKING:
    from interp.model import Model

PASSED = 0.5
"""A needle counts if the model says more than this share of its answer."""
NEAR_ZERO = 0.1
"""With a smaller share of needles that count, no heads are named."""
ALIKE = 0.9
"""Without the answer word for word in the needle, the first stretch that has more than this share of its tokens."""


class RetrievalError(InterpError):
    """A model that does not retrieve has no retrieval heads to name."""


def retrieval_heads(
    model: Model,
    needles: Any,
    *,
    mode: Mode = "event",
    generated: bool = False,
    max_new_tokens: int | None = None,
    batch: int = 8,
) -> RetrievalHeads:
    """Score every head on `interp.tasks.needle(m, whole=True, lengths=..., depths=...)` or a task of your own whose
    `positions` name the "needle"; generated answers are as long as the right ones unless `max_new_tokens` is given."""
    if mode not in ("event", "set"):
        raise InputsError(f"mode is 'event' or 'set', got {mode!r}.")
    sites = [Site(spelled(model.ready(), tower), n, "attention") for tower, n in _layers(model)]
    task = _fitting(model, needles)
    scores: dict[int, Tensor] = {}
    recall = torch.zeros(len(task), dtype=torch.double)
    for rows in _alike(task, batch):
        part = task.take(rows)
        x, count = _generated(model, part, max_new_tokens) if generated else (part.clean, len(part.answer_ids[0]))
        said, keys = _read(model, sites, x, count)
        for n, row in enumerate(rows):
            ids = _ids(x)[n].cpu()
            words, span = ids[-count:], _answer_span(part, n, row)
            scores[row] = _scores(keys[:, n], ids, words, span, mode)
            recall[row] = _recall(words if generated else said[n], part.answer_ids[n], anywhere=generated)
    kept = recall > PASSED
    _refuse_if_lost(kept, recall)
    heads = [f"{site}".replace("attention", f"H{h}") for site in sites for h in range(model.anatomy.layer(site).heads)]
    meta = {**about(model.module, task.clean), "method": "retrieval heads", "mode": mode, "generated": generated}
    stacked = torch.stack([scores[row] for row in range(len(task))], dim=1)
    return RetrievalHeads(tuple(heads), stacked, kept, recall, mode, tuple(dict(one) for one in task.meta), meta)


def _layers(model: Model) -> list[tuple[Tower, int]]:
    tower = last_tower(model.ready(), None)
    if tower.bidirectional or tower.name == "decoder":
        raise ModelError(
            f"retrieval heads look back from an answer into the text before it; {type(model.module).__name__} answers"
            f" from its tower {tower.name!r}, which does not read that text: use a decoder-only language model."
        )
    return [(tower, layer.index) for layer in tower.layers if layer.kind == "self"]


def _fitting(model: Model, needles: Any) -> Task:
    if not isinstance(needles, Task):
        raise InputsError(f"expected a task, such as interp.tasks.needle(m, whole=True), got {type(needles).__name__}.")
    if not needles.whole:
        raise InputsError("retrieval heads are scored over the whole answer: make the task with whole=True.")
    if any(row.image is not None for row in needles.rows):
        raise InputsError("these needles have pictures; retrieval heads are defined on tokens of text.")
    task = needles if needles.model is model else needles.on(model)
    missing = [i for i, row in enumerate(task.rows) if "needle" not in row.positions]
    if missing:
        raise InputsError(
            f"row {missing[0]} of {task.name!r} does not say where its needle is: give it positions={{'needle': (text,"
            " 1)}."
        )
    return task


def _alike(task: Task, batch: int) -> Iterator[list[int]]:
    """Rows of one length and one length of answer, so that the same columns are read and nothing is padded."""
    groups: defaultdict[tuple[int, int], list[int]] = defaultdict(list)
    for row, length in enumerate(task.clean.valid.sum(1).tolist()):
        groups[length, len(task.answer_ids[row])].append(row)
    for rows in groups.values():
        yield from (rows[start : start + batch] for start in range(0, len(rows), batch))


def _ids(x: Inputs) -> Tensor:
    assert x.ids is not None
    return x.ids


def _generated(model: Model, part: Task, max_new_tokens: int | None) -> tuple[Inputs, int]:
    """The prompts with what the model itself says after them."""
    wanted = len(part.answer_ids[0])
    prompt = _ids(part.clean)[:, :-wanted]
    count = wanted if max_new_tokens is None else max_new_tokens
    mask = torch.ones_like(prompt)
    said = model.generate({"input_ids": prompt, "attention_mask": mask}, max_new_tokens=count).ids
    whole = torch.cat([prompt, said.to(prompt.device)], dim=1)
    return model.inputs({"input_ids": whole, "attention_mask": torch.ones_like(whole)}), said.shape[1]


def _read(model: Model, sites: Sequence[Site], x: Inputs, count: int) -> tuple[Tensor, Tensor]:
    """At the rows that predict the last `count` tokens: what the model would say [row, word], and the key that each
    head weighs most [head, row, word]."""
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

    request = Request.of("argmax", range(x.length - count - 1, x.length - 1), None, None)
    with forced_eager():
        taps = stream(model.module, model.anatomy, sites, request, x, forward, lambda: 0)
    keys = torch.cat([tap.merged()["argmax"].cpu() for tap in taps.values()], dim=1)
    return logits[0].argmax(-1).cpu(), keys.transpose(0, 1)


def _answer_span(part: Task, n: int, row: int) -> range:
    """Where the answer stands in the needle: word for word, or the first stretch that is nearly the same tokens."""
    place = part.positions["needle"].rows[n]
    assert place is not None
    answer, ids = list(part.answer_ids[n]), _ids(part.clean)[n].tolist()
    windows = [range(i, i + len(answer)) for i in range(place[0], place[1] - len(answer) + 1)]
    exact = [w for w in windows if ids[w.start : w.stop] == answer]
    near = [w for w in windows if len(set(answer) & {ids[i] for i in w}) > ALIKE * len(set(answer))]
    if not exact and not near:
        raise InputsError(
            f"the answer {part.answers[n][0]!r} of row {row} does not stand in its needle as tokens of this model, so"
            " no head can copy it from there."
        )
    return (exact or near)[0]


def _scores(keys: Tensor, ids: Tensor, words: Tensor, span: range, mode: Mode) -> Tensor:
    """Of one needle, for every head: keys [head, word] looked at while the words were said."""
    copied = (keys >= span.start) & (keys < span.stop) & (ids[keys.clamp(min=0)] == words)
    if mode == "event":
        return copied.double().sum(1) / len(span)
    needed = ids[span.start : span.stop].unique()
    return (copied[:, :, None] & (words[:, None] == needed)).any(1).double().mean(1)


def _recall(said: Tensor, answer: Sequence[int], *, anywhere: bool) -> float:
    """The share of the answer that was said: in its place, or anywhere in what was generated."""
    if anywhere:
        return (Counter(said.tolist()) & Counter(answer)).total() / len(answer)
    return float((said == torch.tensor(answer)).double().mean())


def _refuse_if_lost(kept: Tensor, recall: Tensor) -> None:
    if float(kept.double().mean()) < NEAR_ZERO:
        raise RetrievalError(
            f"this model answers {int(kept.sum())} of {len(kept)} needles (mean recall {float(recall.mean()):.3g}): a"
            " head that copies nothing into the answer is no retrieval head, so none are named. Check the format of"
            " the prompt, or use shorter lengths."
        )
