"""Heads over a corpus of any length: what is measured of each document is added up at once, and the text is let go.

Files of lines, parquet and texts are read block by block (`interp/scale/corpora/documents.py`). Of each measure there
are kept: the mean over all rows with its standard error, the least and the largest document, and where asked quantiles
over documents and the documents with the largest values, in tensors whose size does not depend on the corpus. Sums are
exact, so that blocks may be added in any order: a run that was killed and goes on, shards that are merged, and workers
give the same bytes. After each block the state is written down with `out=`. Cost: that of the measures
(`interp/scale/corpora/measures.py`), once a document.
Limits: quantiles are within 1 % of a document's value (DDSketch, Masson et al. 2019, arXiv 1908.10693) and of
documents, not of rows; a document is cut where the model's positions end or at `max_tokens`, and how many were is said;
documents of one token have no rows to measure and are counted as short.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count as naturals
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch

from interp.cells.journal import Values
from interp.cells.shards import Asked, Shard, ShardDone, asked, mark
from interp.cells.work import Bounds, Builder, Floors, engine_of
from interp.finite import finite
from interp.hooks.anatomy.lengths import length_read
from interp.hooks.errors import InputsError, ModelError
from interp.hooks.inputs.inputs import Inputs
from interp.preparing.prepare import tokenizer_of
from interp.preparing.rows import from_texts
from interp.provenance import about, refuse_unwritten
from interp.records import Method, register
from interp.scale.corpora.documents import Bad, Document, Documents, documents
from interp.scale.corpora.measures import Measure, measures
from interp.scale.corpora.read import CorpusHeads, Reduction, reductions
from interp.scale.corpora.state import Added, Kept
from interp.scale.corpora.tally import Tally

if TYPE_CHECKING:
    from interp.model import Model

OnError = Literal["raise", "skip"]
CALL = "interp.scale.corpus"
WINDOW = 256
"""Documents that are held at a time."""


def corpus(
    model: Model,
    texts: Any,
    *,
    stats: Any = ("entropy", "first"),
    reduce: Sequence[str] | str = ("mean",),
    heads: str = "L*",
    column: str = "text",
    max_tokens: int | None = None,
    batch: int = 8,
    on_error: OnError = "raise",
    out: str | Path | None = None,
    shard: Asked = None,
    engine: Any = None,
    block_bytes: int = 4 << 20,
) -> CorpusHeads | ShardDone:
    """Measure heads on every document of `texts`: a path (.jsonl, .txt, .parquet, a directory, a pattern), several, or
    texts themselves.

    `reduce` names what is kept: "mean" (always), "least", "most", "quantile:0.5", "top:10". `on_error="skip"` leaves
    out lines and files that cannot be read, and the result lists them. `shard=(0, 4)` measures every fourth block, in
    its own directory; `interp.scale.merge` adds the four.
    """
    if on_error not in ("raise", "skip") or batch < 1:
        raise InputsError(f"on_error is 'raise' or 'skip' and batch at least 1; got {on_error!r} and {batch}.")
    _must_read_text(model)
    kept, mine = reductions(reduce), asked(shard, out)
    read = documents(texts, column=column, block_bytes=block_bytes)
    work = Pass(model, read, measures(stats, heads), kept, length_read(model.config, max_tokens), batch, on_error)
    facts = about(model.module, None)
    names = [name for one in work.measures for name in one.names]
    task: dict[str, Any] = {
        "method": "corpus", "stats": names, "heads": heads, "reduce": list(kept.names), "max_tokens": work.room,
        "batch": batch, "on_error": on_error, "corpus": read.about(), "blocks": read.count,
        "model": facts["model_hash"],
        **{name: facts[name] for name in ("dtype", "attention", "versions", "edits") if name in facts},
    }  # fmt: skip
    labels = {name: one.labels(model) for one in work.measures for name in one.names}
    if out is not None:
        refuse_unwritten(model.module)
    if out is not None and mine is not None:
        mark(out, CALL, mine)
    state = _through(work, Kept(out, {"task": task, "labels": labels, "meta": {**facts, **task}}), mine, engine)
    if out is not None and mine is not None:
        count = read.count or 0
        return ShardDone(CALL, Path(out), mine.index, mine.of, len(range(mine.index, count, mine.of)), count)
    found = CorpusHeads.of(state, labels, kept, {**facts, **task})
    if out is not None:
        found.save(out)
    return found


def _must_read_text(model: Model) -> None:
    if getattr(model.config, "is_encoder_decoder", False):
        raise ModelError(
            f"{type(model.module).__name__} reads a text in one tower and writes in another; a corpus has texts and no"
            " answers: attach its encoder alone."
        )
    if tokenizer_of(model.processor) is None:
        raise InputsError("texts need a tokenizer: attach the model with its processor.")


def _through(work: Pass, kept: Kept, part: Shard | None, engine: Any) -> Added:
    """Add up the blocks that are this process's and not yet in the state."""
    following, state = kept.begun()
    whole = work.nothing() if state is None else state
    for number, made in _blocks(work, following, part, engine):
        whole, following = whole + made, number + 1
        kept.write(following, whole, over=False)
    kept.write(following, whole, over=True)
    return whole


def _blocks(work: Pass, following: int, part: Shard | None, engine: Any) -> Iterator[tuple[int, Added]]:
    """The blocks from `following` on, in their order, each with what it adds."""
    count = work.documents.count
    mine = (
        n for n in (naturals(following) if count is None else range(following, count)) if part is None or part.has(n)
    )
    if engine is None:
        for number in mine:
            made = work.block(number)
            if count is None and not made.anything:
                return
            yield number, made
        return
    if count is None:
        raise InputsError(
            "engine= asks for blocks by number, which a generator of texts has not: give files or a list."
        )
    waiting: dict[int, Added] = {}
    wanted = iter(todo := list(mine))
    expected = next(wanted, None)
    for low, _, values, _ in engine_of(engine).run(work, [(n, n + 1) for n in todo]):
        waiting[low] = Added.read(values)
        while expected in waiting:
            yield expected, waiting.pop(expected)
            expected = next(wanted, None)


@dataclass(eq=False)
class Pass:
    """The blocks of a corpus as work: what is done with each, wherever that is."""

    model: Model
    documents: Documents
    measures: tuple[Measure, ...]
    kept: Reduction
    room: int | None
    batch: int
    on_error: OnError

    @property
    def count(self) -> int:
        """How many blocks there are."""
        return self.documents.count or 0

    @property
    def task(self) -> dict[str, Any]:
        """Nothing is journaled of it: the state is written down instead."""
        return {"method": "corpus"}

    names: Mapping[str, int] = field(default_factory=dict)
    product: str = "torch"

    @property
    def recipe(self) -> Builder:
        """How another process reads blocks of the same corpus."""
        return Builder(
            "interp.scale.corpora.corpus:Pass",
            {"documents": self.documents, "measures": self.measures, "kept": self.kept, "room": self.room,
             "batch": self.batch, "on_error": self.on_error},
        )  # fmt: skip

    def bounds(self) -> Bounds:
        """A block each."""
        return [(n, n + 1) for n in range(self.count)]

    def compute(self, low: int, high: int) -> tuple[Values, Floors]:
        """What some blocks add up to, as tensors."""
        total = self.nothing()
        for number in range(low, high):
            total = total + self.block(number)
        return total.tensors(), {}

    def nothing(self, *, bad: Sequence[Bad] = (), short: int = 0) -> Added:
        """A state of no document that was measured."""
        return Added.empty(self.kept.top, bool(self.kept.quantiles), bad=bad, short=short)

    def block(self, number: int) -> Added:
        """What a block adds."""
        state = self.nothing()
        for some in _windows(self.documents.read(number)):
            state = state + self._window(some)
        return state

    def _window(self, some: Sequence[Document | Bad]) -> Added:
        bad = [one for one in some if isinstance(one, Bad)]
        if bad and self.on_error == "raise":
            raise bad[0].error()
        read = sorted((one for one in some if isinstance(one, Document)), key=lambda one: len(one.text))
        there = [one for one in read if one.text.strip()]
        state = self.nothing(bad=bad, short=len(read) - len(there))
        for n in range(0, len(there), self.batch):
            state = state + self._batch(there[n : n + self.batch])
        return state

    def _batch(self, texts: Sequence[Document]) -> Added:
        rows = from_texts(self.model.tokenizer, [one.text for one in texts], special=True).ids
        kept = [(one, row) for one, row in zip(texts, rows, strict=True) if len(row) > 1]
        if not kept:
            return self.nothing(short=len(texts))
        cut = [len(row) > (self.room or len(row)) for _, row in kept]
        x = self.model.prepare([list(row[: self.room]) for _, row in kept])
        counts = {
            "documents": len(kept),
            "tokens": int(x.valid.sum()),
            "cut": sum(cut),
            "short": len(texts) - len(kept),
        }
        return Added.of(self._tally(x, [one for one, _ in kept]), counts, [one for one, _ in kept])

    def _tally(self, x: Inputs, read: Sequence[Document]) -> Tally:
        top, quantiles = self.kept.top, bool(self.kept.quantiles)
        at, tally = torch.tensor([[one.block, one.number] for one in read]), Tally({}, top, quantiles)
        for measure in self.measures:
            for name, (v, w) in measure.of(self.model, x).items():
                v = finite(v.double().cpu(), name)
                tally = tally + Tally.of(name, v, w.double().cpu(), at, top=top, quantiles=quantiles)
        return tally


def _windows(found: Iterator[Document | Bad]) -> Iterator[list[Document | Bad]]:
    """So many documents at a time, which are sorted by length and let go."""
    while some := [one for _, one in zip(range(WINDOW), found, strict=False)]:
        yield some


register(
    Method(
        "interp.scale.corpus",
        number="the mean of a statistic or kind of head over all rows of a corpus",
        shown="map",
        papers=("1908.10693",),
        needs=("needles",),
        unfit={
            "vit": "it reads no text",
            "encoder-decoder": "a corpus has texts and no answers",
        },
        passes=lambda t: len(t.texts),
        values=None,
        example=lambda t: corpus(t.reader, list(t.texts), stats=("entropy", "previous"), reduce=("mean", "top:1")),
    )
)
