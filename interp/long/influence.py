"""Which texts need certain heads: the loss on each text with and without them, as a score to rank a corpus by.

AttentionInfluence (Hua et al. 2025, arXiv 2505.07293). With L the mean cross-entropy of a text's tokens,

    score = (L without the heads - L) / L

where the heads attend to every visible token alike. The paper masks the top 5% of heads by retrieval score
(`interp.retrieval_heads(..., anywhere=True)`) and keeps the highest 20% of texts of one domain; scores of different
domains are not compared. `weights="visible"` gives each of the i tokens a row sees 1/i; `"full"` gives each 1/length
as the paper's appendix words it, so early rows keep little. The score is compared with that of random sets of as many
other heads: what they raise as well is not about these heads. A corpus is read batch by batch; with `out=` every chunk
is saved when it is done, and a stopped run continues from there. A served engine (`interp.scale.vllm`) can be given
instead of the model: it runs the texts, each with its own edits, and gives the log-probabilities. Cost: 2 + random
forward passes a text, whose logits are made a few tokens at a time (one pass more for each where they are not plainly
made from the last residual). Limits: a text is cut where the model's positions end, and the table says which were; a
text of one token has no loss and comes last; causal language models.
"""

from __future__ import annotations

import hashlib
import random as chance
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import torch
from torch import Tensor

from interp.cells.calls import answered
from interp.cells.journal import Values
from interp.cells.shards import Asked, Frame, ShardDone, asked
from interp.cells.work import Bounds, Builder, Floors
from interp.heads.sets import known
from interp.hooks.anatomy.lengths import length_read
from interp.hooks.errors import InputsError
from interp.long.losses import Weights, losses, masked_alike
from interp.long.needles import attention_sites, head_names, ids_of
from interp.long.serving import Serving, alike_served, length_served, losses_served, refuse_engine
from interp.provenance import about, refuse_unwritten
from interp.reading import stream
from interp.records import Method, register
from interp.results.texts import Influence

if TYPE_CHECKING:
    from interp.model import Model


@overload
def influence(
    model: Model | Serving, corpus: str | Path | Sequence[str], *, shard: None = None, **how: Any
) -> Influence: ...
@overload
def influence(
    model: Model | Serving, corpus: str | Path | Sequence[str], *, shard: tuple[int, int] | str, **how: Any
) -> ShardDone: ...


def influence(  # type: ignore[misc]  # the overloads leave the rest to this
    model: Model | Serving,
    corpus: str | Path | Sequence[str],
    *,
    heads: Sequence[str],
    weights: Weights = "visible",
    random: int = 1,
    seed: int = 0,
    column: str = "text",
    max_tokens: int | None = None,
    batch: int = 8,
    chunk: int = 256,
    out: str | Path | None = None,
    shard: Asked = None,
    engine: Any = None,
) -> Influence | ShardDone:
    """Score every text of a JSONL file (its field `column`) or a list by how much it needs `heads` ("L1.H0", ...).

    `random` sets of as many other heads are compared with them; `max_tokens` cuts texts shorter than the model's limit.
    `shard=(0, 4)` computes the first of four parts of the chunks (of `chunk` texts), in its own directory, and
    `interp.scale.merge` makes the result of all four; `engine` says what computes the chunks (`interp/cells/work.py`).
    A served engine given instead of the model runs `batch` texts with all their sets of heads at once.
    """
    mine = asked(shard, out)
    refuse_engine(model, engine)
    if weights not in ("visible", "full") or random < 0 or batch < 1 or chunk < 1:
        raise InputsError(
            f"weights is 'visible' or 'full', random at least 0, batch and chunk at least 1; got {weights!r}, {random},"
            f" {batch} and {chunk}."
        )
    names = model.heads if isinstance(model, Serving) else head_names(model, attention_sites(model))
    wanted = known(list(heads), names)
    sets = (wanted, *_others(wanted, names, random, seed))
    texts = _Corpus(corpus, column)
    length = length_served(model, max_tokens) if isinstance(model, Serving) else length_read(model.config, max_tokens)
    facts = model.facts() if isinstance(model, Serving) else about(model.module, None)
    task = {"method": "AttentionInfluence", "heads": wanted, "weights": weights, "random": random, "seed": seed,
            "max_tokens": length, "batch": batch, "corpus": texts.digest, "texts": texts.count,
            **_facts(facts)}  # fmt: skip
    work = Losses(model, sets, texts, task, chunk)
    if out is not None and not isinstance(model, Serving):
        refuse_unwritten(model.module)
    frame = Frame({"sets": sets, "meta": {**facts, **task}})
    found: Influence | ShardDone = answered(
        "interp.long.influence", work, frame, result, out=out, shard=mine, engine=engine
    )
    return found


def _facts(facts: Mapping[str, Any]) -> dict[str, Any]:
    """What the plan says of the model."""
    kept = ("versions", "attention", "dtype", "edits", "served", "revision")
    return {"model": facts["model_hash"], **{name: facts[name] for name in kept if name in facts}}


def result(frame: Frame, values: Values, floors: Floors) -> Influence:
    """What the losses come to."""
    held, (heads, *others) = {name: one[:, 0] for name, one in values.items()}, map(tuple, frame.facts["sets"])
    losses = [held[f"set{n}"] for n in range(1, len(others) + 1)]
    random = torch.stack(losses) if losses else torch.zeros(0, len(held["base"]), dtype=torch.double)
    return Influence(held["base"], held["set0"], random, held["tokens"].long(), held["cut"].bool(), heads,
                     tuple(others), frame.facts["meta"])  # fmt: skip


def _others(heads: Sequence[str], names: Sequence[str], count: int, seed: int) -> list[tuple[str, ...]]:
    left = [name for name in names if name not in heads]
    if count and len(left) < len(heads):
        raise InputsError(
            f"{len(heads)} heads leave {len(left)} others, too few to draw as many at random: name fewer, or random=0."
        )
    rng = chance.Random(seed)
    return [tuple(sorted(rng.sample(left, len(heads)))) for _ in range(count)]


class _Corpus:
    """The texts in order, read from the file whenever they are needed, and what tells this corpus from others."""

    def __init__(self, given: str | Path | Sequence[str], column: str) -> None:
        self.given, self.column = given, column
        digest, self.count = hashlib.sha256(), 0
        for text in self.texts():
            digest.update(text.encode() + b"\0")
            self.count += 1
        if not self.count:
            raise InputsError("the corpus is empty: give texts, or a JSONL file of objects with a text each.")
        self.digest = digest.hexdigest()[:16]
        self.reader: Iterator[str] | None = None
        self.at = 0

    def texts(self) -> Iterator[str]:
        if isinstance(self.given, str | Path):
            yield from (entry.text(self.column) for entry in stream(self.given))
            return
        for n, text in enumerate(self.given):
            if not isinstance(text, str) or not text:
                raise InputsError(f"a corpus is texts, or the path of a JSONL file; text {n} is {text!r:.80}.")
            yield text

    def some(self, low: int, high: int) -> list[str]:
        """Texts by number; those after the last that were asked for are read on from there."""
        if self.reader is None or low < self.at:
            self.reader, self.at = self.texts(), 0
        found = list(islice(self.reader, low - self.at, high - self.at))
        self.at = high
        return found


@dataclass(frozen=True)
class Losses:
    """What is done with the texts of a corpus: a cell is a text."""

    model: Model | Serving
    sets: tuple[tuple[str, ...], ...]
    corpus: _Corpus
    task: Mapping[str, Any]
    size: int
    product: str = "torch"

    @property
    def count(self) -> int:
        """How many texts there are."""
        return self.corpus.count

    @property
    def names(self) -> dict[str, int]:
        """What is written down of a text, one number each."""
        return dict.fromkeys(("base", *(f"set{n}" for n in range(len(self.sets))), "tokens", "cut"), 1)

    @property
    def recipe(self) -> Builder:
        """The corpus is read by whoever does a chunk of it."""
        how = {"sets": self.sets, "task": self.task, "size": self.size}
        given = self.corpus.given if isinstance(self.corpus.given, str | Path) else tuple(self.corpus.given)
        return Builder("interp.long.influence:built", {**how, "corpus": given, "column": self.corpus.column})

    def bounds(self) -> Bounds:
        """As many texts at a time as were asked for."""
        return [(low, min(low + self.size, self.count)) for low in range(0, self.count, self.size)]

    def compute(self, low: int, high: int) -> tuple[Values, Floors]:
        """By name, [text, 1]: the losses bare and with each set of heads masked, tokens, and whether it was cut."""
        texts, batch = self.corpus.some(low, high), int(self.task["batch"])
        parts = [self._batch(texts[n : n + batch]) for n in range(0, len(texts), batch)]
        return {name: torch.cat([part[name] for part in parts])[:, None].double() for name in parts[0]}, {}

    def _batch(self, texts: Sequence[str]) -> dict[str, Tensor]:
        rows = [self._ids(text) for text in texts]
        kept = [row[: self.task["max_tokens"]] for row in rows]
        found = self._served(self.model, kept) if isinstance(self.model, Serving) else self._passes(self.model, kept)
        found["tokens"] = torch.tensor([float(len(row)) for row in kept], dtype=torch.double)
        found["cut"] = torch.tensor([float(a != b) for a, b in zip(rows, kept, strict=True)], dtype=torch.double)
        return found

    def _ids(self, text: str) -> list[int]:
        if isinstance(self.model, Serving):
            return self.model.ids(text)
        found: list[int] = ids_of(self.model.prepare(text, chat=False))[0].tolist()
        return found

    def _passes(self, model: Model, rows: Sequence[list[int]]) -> dict[str, Tensor]:
        """One pass of all the texts for each set of heads."""
        x = model.prepare(list(rows))
        found = {"base": losses(model, x)}
        for n, heads in enumerate(self.sets):
            found[f"set{n}"] = losses(model, x, masked_alike(heads, x, self.task["weights"]))
        return found

    def _served(self, served: Serving, rows: Sequence[list[int]]) -> dict[str, Tensor]:
        """All texts with all sets of heads as requests of one call."""
        weights, sets = self.task["weights"], [(), *self.sets]
        edits = [alike_served(heads, len(row), weights) if heads else [] for heads in sets for row in rows]
        parts = losses_served(served, [*rows] * len(sets), edits).split(len(rows))
        return dict(zip(("base", *(f"set{n}" for n in range(len(self.sets)))), parts, strict=True))


def built(
    model: Model, *, sets: Any, task: Mapping[str, Any], size: int, corpus: str | Path | Sequence[str], column: str
) -> Losses:
    """The same work in another process, on a model that is the same."""
    return Losses(model, sets, _Corpus(corpus, column), task, size)


register(
    Method(
        "interp.long.influence",
        number="how much the loss on a text rises without the heads, as a share of the loss",
        shown="table",
        needs=("needles",),
        unfit={
            "vit": "it reads no text",
            "encoder-decoder": "the loss of a text is that of a causal model",
        },
        passes=lambda t: 3 * len(t.texts),
        values="masked",
        example=lambda t: influence(t.reader, t.texts, heads=t.names[:1]),
    )
)
