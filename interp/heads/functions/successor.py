"""Successor heads: for a word of a sequence they raise the next one, Monday to Tuesday, three to four.

Gould et al. 2023 (arXiv 2312.09230). By weights alone: the word, embedded by the embedding and the first MLP (`asked`),
goes through the head's value and output matrices to the logits. The value is the share of words for which, among the
words of their sequence, the next one has the largest logit; the last word of a sequence has no next one. Sequences are
days, months, numbers, ordinals, digits and letters, or your own: words that are several tokens are left out, and so is
what follows them. Limits: which words of a sequence are compared is our reading; what a head can do is not what it
does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from interp.heads.functions.asked import FunctionGround, Numbers
from interp.prompts.vocabulary import Vocabulary

NAME = "successor"
SUCCEEDS = "succession"
LEAST = 3
"""Pairs that a share needs."""
SEQUENCES: Mapping[str, Sequence[str]] = {
    "days": "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split(),
    "months": "January February March April May June July August September October November December".split(),
    "numbers": "one two three four five six seven eight nine ten eleven twelve".split(),
    "ordinals": "first second third fourth fifth sixth seventh eighth ninth tenth".split(),
    "digits": [str(n) for n in range(1, 10)],
    "letters": [chr(n) for n in range(ord("A"), ord("Z") + 1)],
}


def refuses(asked: FunctionGround) -> str | None:
    """It needs a few words of a sequence that are one token each."""
    if asked.page.picture or not hasattr(asked.model.tokenizer, "convert_ids_to_tokens"):
        return "it is about words, and this model has no tokenizer to look them up with"
    count = sum(len(places) for _, places in _pairs(asked))
    return None if count >= LEAST else f"this vocabulary has {count} pairs of neighbours of a sequence, too few"


def measure(asked: FunctionGround) -> Numbers:
    """Whether the next word is first among its sequence's [head, pair]."""
    found: list[torch.Tensor] = []
    for ids, places in _pairs(asked):
        made = torch.stack(list(asked.circuits(ids, ids)))  # [head, word, word]
        best = made.argmax(-1)
        found.append(torch.stack([best[:, n] == n + 1 for n in places], 1).double())
    return {SUCCEEDS: torch.cat(found, 1)}


def _pairs(asked: FunctionGround) -> list[tuple[list[int], list[int]]]:
    """By sequence the ids of its known words, and which of them are followed by their next one."""
    words = Vocabulary(asked.model)
    found = []
    for sequence in (asked.sequences or SEQUENCES).values():
        known = [n for n, word in enumerate(sequence) if words.is_single(_spaced(word))]
        ids = [words.single(_spaced(sequence[n])) for n in known]
        places = [at for at, n in enumerate(known[:-1]) if known[at + 1] == n + 1]
        if places:
            found.append((ids, places))
    return found


def _spaced(word: Any) -> Any:
    return f" {word.strip()}" if isinstance(word, str) else word
