"""Reading a document longer than a model reads, window by window, keeping the sentences its attention falls on.

InfiniRetri (Ye et al. 2025, arXiv 2502.12962), as the authors' package computes it. Each window is read with the
sentences kept so far before it and the question behind it. With A_qj the weights of one layer (the last unless said),
summed over heads, q a row of the question, j a token of the text,

    s_j = sum over q of w_q^2 sum over |i - j| within a phrase of A_qi,   w_q = sum over the question's own keys of A_q

where w comes from the first window. Whole sentences that hold one of the `keep` largest s_j go on to the next window.
No weights are changed and no cache is kept. Cost: one forward pass a window, of which the question's rows are looked
at. `heads=` lets heads you name say what is kept, which is not in the paper.
Limits: what no window's question looks at is lost for good; sentences end with a full stop, question or exclamation
mark, or an empty line; a sentence longer than the window is read alone. Language models with a tokenizer.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from interp.finite import finite
from interp.hooks.errors import InputsError, ModelError
from interp.hooks.html import Told
from interp.hooks.sites import parse
from interp.long.needles import attention_sites, ids_of
from interp.prompts.vocabulary import Vocabulary
from interp.records import Method, register

if TYPE_CHECKING:
    from interp.model import Model

SENTENCE = re.compile(r"(?<=[.!?。！？])\s+|\n\s*\n")


@dataclass(frozen=True, eq=False)
class Retrieved(Told):
    """What was kept of a document: the numbers of its sentences, and the prompt they make with the question."""

    sentences: tuple[str, ...]
    """All sentences of the document."""
    kept: tuple[int, ...]
    """The numbers of the sentences that were kept, in the order of the document."""
    ids: Tensor
    """The prompt [1, token]: what was kept, and the question."""
    windows: int
    """In how many windows the document was read."""
    tokens: int
    """How many the whole document has."""

    @property
    def text(self) -> str:
        """The sentences that were kept."""
        return " ".join(self.sentences[n] for n in self.kept)

    def __repr__(self) -> str:
        return (
            f"Retrieved {len(self.kept)} of {len(self.sentences)} sentences in {self.windows} windows:"
            f" {self.ids.shape[1]} tokens to answer from, of {self.tokens}"
        )


def infini_retrieve(
    model: Model,
    document: str,
    question: str,
    *,
    window: int = 1024,
    keep: int = 300,
    phrase: int = 8,
    heads: str | None = None,
) -> Retrieved:
    """What the model keeps of a document for a question; answer with `m.generate({"input_ids": found.ids})`.

    `heads` is a site pattern ("L1.H0-3"), by default all of the last layer.
    """
    if min(window, keep, phrase) < 1 or not document.strip() or not question.strip():
        raise InputsError(
            f"window, keep and phrase are at least 1, document and question not empty; got {window}, {keep}, {phrase}."
        )
    reader = _Reader(model, document, question, _pattern(model, heads), phrase)
    kept: list[int] = []
    windows = _windows(reader.pieces, window)
    for some in windows:
        candidates = [*kept, *some]
        scores = reader.scores(candidates)
        best = scores.topk(min(keep, len(scores))).indices
        owners = torch.tensor([n for n in candidates for _ in reader.pieces[n]])
        kept = sorted({int(n) for n in owners[best]})
    total = sum(map(len, reader.pieces))
    return Retrieved(tuple(reader.sentences), tuple(kept), reader.ids(kept), len(windows), total)


def _pattern(model: Model, heads: str | None) -> list[str]:
    """The sites whose weights are summed, such as `L3.pattern`."""
    if heads is None:
        return [str(attention_sites(model)[-1]).replace("attention", "pattern")]
    if parse(heads).component not in ("attention", "pattern"):
        raise InputsError(f"heads= is a pattern of heads, such as 'L1.H0-3', got {heads!r}.")
    return [str(s).replace(".attention", "") + ".pattern" for s in model.ready().sites(heads.removesuffix(".pattern"))]


def _windows(pieces: Sequence[Sequence[int]], size: int) -> list[list[int]]:
    """Sentences in order, as many together as fit."""
    out: list[list[int]] = []
    room = 0
    for n, ids in enumerate(pieces):
        if not out or len(ids) > room:
            out.append([])
            room = size
        out[-1].append(n)
        room -= len(ids)
    return out


class _Reader:
    """The document as sentences of tokens, and what the question looks at in some of them."""

    def __init__(self, model: Model, document: str, question: str, sites: list[str], phrase: int) -> None:
        if not hasattr(model.tokenizer, "convert_ids_to_tokens"):
            raise ModelError("a document is text: attach the model with its tokenizer.")
        words = Vocabulary(model)
        self.model, self.sites, self.phrase = model, sites, phrase
        self.sentences = [part for part in SENTENCE.split(document) if part.strip()]
        self.pieces = [words.ids(f" {part.strip()}") for part in self.sentences]
        self.question = words.ids(f" {question.strip()}")
        opening = ids_of(model.prepare([question], chat=False))[0, :1].tolist()
        self.opening = tuple(opening) if opening == [getattr(model.tokenizer, "bos_token_id", None)] else ()
        self.weights: Tensor | None = None

    def ids(self, sentences: Sequence[int]) -> Tensor:
        text = [token for n in sentences for token in self.pieces[n]]
        return torch.tensor([[*self.opening, *text, *self.question]])

    def scores(self, sentences: Sequence[int]) -> Tensor:
        """s_j of every token of these sentences."""
        ids = self.ids(sentences)
        start = ids.shape[1] - len(self.question)
        tape = self.model.run({"input_ids": ids}, record=self.sites, positions=range(start, ids.shape[1]))
        looks = torch.stack([tape[site][0].double().sum(0) for site in self.sites]).sum(0).cpu()
        finite(looks, "weights of the question")
        if self.weights is None:
            self.weights = looks[:, start:].sum(1)
        text = looks[:, len(self.opening) : start]
        return (self.weights[:, None] ** 2 * _phrases(text, self.phrase)).sum(0)


def _phrases(looks: Tensor, size: int) -> Tensor:
    """Each token's weight with that of its neighbours, `size` tokens in all, one more of them before than after where
    it is even."""
    before, after = size // 2, (size - 1) // 2
    padded = torch.nn.functional.pad(looks, (before, after))
    return padded.unfold(1, size, 1).sum(-1)


register(
    Method(
        "interp.long.infini_retrieve",
        number="which sentences of a document are kept, by the attention of the question",
        shown="tokens",
        needs=("needles",),
        unfit={
            "vit": "it reads no text",
            "encoder-decoder": "the question's rows do not see the document by self-attention",
        },
        passes=lambda t: 2,
        values=None,
        example=lambda t: infini_retrieve(t.reader, " ".join(t.texts), t.texts[0], window=24, keep=8, phrase=2),
    )
)
