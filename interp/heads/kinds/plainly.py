"""In plain words with numbers: what one head looks at where the answer is read, and what it writes there.

Where: in a causal tower each example's last token, elsewhere every real token. The head's weight is shared out over
groups of keys, each key counted in the first that fits: the first token, itself, words said more than once (those of
which the row sees another copy), the token before, punctuation and special tokens, other tokens; in a picture the class
token, itself, patches that touch it, other patches, tokens that are no patch. What is written is the head's part of the
logits at the last token, the final norm held at its scale in the run, less its mean over the vocabulary: that of the
word it looks at most (the first token and itself left out), and where answers are known that of right and wrong ones,
with the weight on them. Cost: two forward passes and an attention. Limits: it describes these examples; it names no
kind, and says of no weight that anything depends on it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from interp.heads.kinds.page import Page
from interp.heads.kinds.reading import page_of, read_heads, tower_of
from interp.hooks.drive.questions import Reads
from interp.hooks.drive.tail import Tail, last_tower
from interp.hooks.errors import ModelError
from interp.hooks.inputs.inputs import Inputs
from interp.hooks.run.tape import tower_inputs
from interp.hooks.run.weights import Rows
from interp.hooks.run.writes import Writes
from interp.hooks.sites import Site

if TYPE_CHECKING:
    from interp.model import Model

LEAST = 0.05
"""Groups with less of the weight are not named in the sentence."""
SHOWN = 3
Names = Callable[[int], str]
Numbers = dict[str, Tensor]
"""By name, a value per example."""


@dataclass(frozen=True)
class Said:
    """Sentences, and the numbers in them."""

    sentences: tuple[str, ...]
    numbers: Numbers


def looked(model: Model, place: Site, x: Inputs, answers: dict[str, Sequence[Sequence[int]]]) -> Said:
    """Where its weight goes."""
    page, mine = page_of(model, [place], x), tower_inputs(x, place)
    rows = _rows(page)
    shares: dict[str, Tensor | float] = {}
    best = torch.zeros(len(page.valid), page.length, dtype=torch.float64)

    def read(found: Rows) -> None:
        at = found.at.cpu()
        weights = found.weights[:, 0].double().cpu() * rows[:, at, None]
        for name, keys in (*_groups(page, at), *_answers(page, answers)):
            shares[name] = shares.get(name, 0.0) + (weights * keys).sum((1, 2))
        own = torch.arange(page.length)[None] == at[:, None]
        first = torch.arange(page.length)[None] == page.first[:, None]
        best.add_((weights * ~own[None]).sum(1) * ~first)

    read_heads(model, [place], x, read, page=page)
    count = rows.sum(1).double()
    numbers = {f"weight on {name}": torch.as_tensor(total) / count for name, total in shares.items()}
    held = {name: numbers[f"weight on {name}"] for name in answers}
    said = ", ".join(f"{float(value.mean()):.2f} to the words of {name}" for name, value in held.items())
    groups = {name: value for name, value in numbers.items() if name.removeprefix("weight on ") not in answers}
    lines = [_shared(page, groups), *_most(mine, best / count[:, None])]
    return Said((*lines, *([f"That is {said}."] if said else [])), numbers)


def wrote(model: Model, place: Site, x: Inputs, answers: dict[str, Sequence[Sequence[int]]]) -> Said:
    """What it adds to the logits at the last token; refused where it writes to none."""
    tower = tower_of(model, [place])
    page, stack = page_of(model, [place], x), last_tower(model.anatomy, tower.name)
    pattern = Site(place.tower, place.layer, "pattern", place.heads)
    tape = model.run(x, record=[*Writes.sites(model.anatomy, stack), pattern])
    if "logits" not in tape or tape["logits"].ndim != 3:
        raise ModelError(f"{type(model.module).__name__} has no logits of words that the head could write to.")
    writes = Writes(model.module, tape, stack)
    writes.check()
    assert place.heads is not None
    tail = Tail(model.module, stack, model.called_with(x.kwargs), left=writes.final, logits=tape["logits"])
    reads = Reads(_last(page)[:, None], None)
    write = writes.heads(Site(place.tower, place.layer, "result"), place.heads)[:, :, 0].reshape(tail.left.shape)
    with torch.no_grad():
        made = tail.logits(tail.frozen.linear(write).to(tail.left.dtype), reads)
        logits = (made - tail.logits(torch.zeros_like(tail.left), reads))[:, 0].double().cpu()
    logits = logits - logits.mean(1, keepdim=True)
    row = tape[pattern][torch.arange(x.batch), 0, _last(page)].double().cpu()
    return _written(page, row, logits, answers)


def _written(page: Page, row: Tensor, logits: Tensor, answers: dict[str, Any]) -> Said:
    allowed = (page.words >= 0) & (torch.arange(page.length)[None] != page.first[:, None])
    allowed &= torch.arange(page.length)[None] != _last(page)[:, None]
    numbers: Numbers = {}
    said = []
    if bool(allowed.any(1).all()):
        key = row.masked_fill(~allowed, -1.0).argmax(1)
        own = logits.gather(1, page.words.gather(1, key[:, None]))[:, 0]
        numbers["writes to the word it looks at most"] = own
        below, way = int((own < 0).sum()), "lowers" if float(own.mean()) < 0 else "raises"
        said.append(
            f"it {way} the logit of the word it looks at most: {float(own.mean()):+.2f} over that of words in general"
            f" (below 0 in {below} of {len(own)} examples)"
        )
    for name, ids in answers.items():
        numbers[f"writes to {name}"] = torch.stack([v[list(i)].mean() for v, i in zip(logits, ids, strict=True)])
        said.append(f"to {name} it writes {float(numbers[f'writes to {name}'].mean()):+.2f}")
    return Said(("At the last token " + "; ".join(said) + ".",) if said else (), numbers)


def _rows(page: Page) -> Tensor:
    """[example, position], the rows that are read."""
    if not page.causal:
        return page.valid
    return torch.nn.functional.one_hot(_last(page), page.length).bool()


def _last(page: Page) -> Tensor:
    return (page.valid.int() * torch.arange(page.length)).argmax(1)


def _groups(page: Page, at: Tensor) -> Iterator[tuple[str, Tensor]]:
    """Name and keys [example, row, key] of every group, none of them in two."""
    left = page.valid[:, None].expand(-1, len(at), -1)
    for name, keys in _picture(page, at) if page.picture else _text(page, at):
        yield name, keys & left
        left = left & ~keys


def _text(page: Page, at: Tensor) -> Iterator[tuple[str, Tensor]]:
    j = torch.arange(page.length)
    yield "the first token", (j[None] == page.first[:, None])[:, None]
    yield "itself", (j[None] == at[:, None])[None]
    if bool((page.words >= 0).any()):
        yield "words said more than once", _repeated(page, at)
    yield "the token before", (j[None] == at[:, None] - 1)[None]
    yield "punctuation and special tokens", page.delimiter[:, None]
    yield "other tokens", torch.ones(1, 1, page.length, dtype=torch.bool)


def _repeated(page: Page, at: Tensor) -> Tensor:
    """Words of which the row sees another copy."""
    j = torch.arange(page.length)
    seen = page.valid[:, None] & ((j[None] <= at[:, None])[None] if page.causal else True)
    same = (page.words[:, :, None] == page.words[:, None]) & (page.words >= 0)[:, :, None]
    copies = torch.einsum("bjk,brk->brj", same.double(), seen.double())
    return (copies > 1.5) & seen


def _picture(page: Page, at: Tensor) -> Iterator[tuple[str, Tensor]]:
    j = torch.arange(page.length)
    yield "the class token", page.cls[:, None]
    yield "itself", (j[None] == at[:, None])[None]
    rows, keys = page.cells[:, at, None], page.cells[:, None]
    both = page.patch[:, at, None] & page.patch[:, None] & (rows[..., :2] == keys[..., :2]).all(-1)
    yield "patches that touch it", both & ((rows[..., 2:] - keys[..., 2:]).abs().amax(-1) <= 1)
    yield "other patches", page.patch[:, None]
    yield "tokens that are no patch", torch.ones(1, 1, page.length, dtype=torch.bool)


def _answers(page: Page, answers: dict[str, Sequence[Sequence[int]]]) -> Iterator[tuple[str, Tensor]]:
    for name, ids in answers.items():
        words = [[int(word) in row for word in said] for said, row in zip(page.words.tolist(), ids, strict=True)]
        yield name, torch.tensor(words)[:, None]


def _shared(page: Page, numbers: Numbers) -> str:
    means = {name.removeprefix("weight on "): float(value.mean()) for name, value in numbers.items()}
    named = sorted((pair for pair in means.items() if pair[1] >= LEAST), key=lambda pair: -pair[1])
    where = "At the last token" if page.causal else "Averaged over all tokens"
    parts = ", ".join(f"{value:.2f} to {name}" for name, value in named)
    return f"{where} it gives {parts or f'no group as much as {LEAST} of its weight'}."


def _most(mine: Inputs, best: Tensor) -> Iterator[str]:
    """What it looks at most in the first examples."""
    if mine.tokens is None:
        return
    found = [(float(row.max()), mine.tokens[n][int(row.argmax())]) for n, row in enumerate(best[:SHOWN])]
    said = ", ".join(f"{token!r} ({value:.2f})" for value, token in found)
    yield f"Apart from the first token and itself it looks most at {said} in the first {len(found)} examples."
