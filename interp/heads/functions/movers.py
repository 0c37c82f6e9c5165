"""Movers: heads that look from the last row at the answer, where the prompt says it, and copy it: of names, letters,
numbers.

Name movers: Wang et al. 2022 (arXiv 2211.00593); correct letter heads of multiple choice: Lieberum et al. 2023 (arXiv
2307.09458); letter movers of acronyms: García-Carrasco et al. 2024 (arXiv 2405.04156). Three numbers: the weight of the
last row on the words of the answer, what the head adds straight to the answer's logit there over the mean word's, and
the copy score of Wang et al., the share of words that are among the five most raised when the head looks at them, by
its weights. They take the residual behind the first block of the prompt, here the word is a prompt without others
(`asked`); the words are the right and wrong answers. What the answers are, names, letters or numbers, is read off the
words. Limits: a mover is told by where it looks and what it writes; whether the answer depends on it, `interp.patch`
says.
"""

from __future__ import annotations

import torch
from torch import Tensor

from interp.heads.functions.asked import FunctionGround, Numbers, text_answer

NAME = "mover"
LOOKS, WRITES, COPIES = "weight on the answer", "writes to the answer", "copy score"
FIVE = 5
"""Wang et al. count a word as copied among so many."""


def refuses(asked: FunctionGround) -> str | None:
    """It needs an answer that the prompt says."""
    if why := text_answer(asked):
        return why
    lacking = (~asked.said(asked.answers).any(1)).nonzero().flatten().tolist()
    return f"the prompt of example {lacking[0]} does not say its answer" if lacking else None


def measure(asked: FunctionGround) -> Numbers:
    """Where it looks, what it writes, whether it copies."""
    looks = (asked.weights * asked.said(asked.answers)).sum(-1)
    return {LOOKS: looks, WRITES: written(asked), COPIES: copied(asked, 1)}


def written(asked: FunctionGround) -> Tensor:
    """To the logits of the right answers, the mean of several [head, example]."""
    width = max(map(len, asked.answers))
    ids = torch.tensor([(*one, *one[:1] * (width - len(one))) for one in asked.answers])
    real = torch.tensor([[1.0] * len(one) + [0.0] * (width - len(one)) for one in asked.answers]).double()
    return (asked.raised(ids) * real).sum(-1) / real.sum(-1)


def copied(asked: FunctionGround, sign: int) -> Tensor:
    """Whether each word is among the five most raised (`sign` -1: most lowered) when it is looked at [head, word]."""
    return (asked.places[0 if sign > 0 else 1] <= FIVE).double()


def kind_of(asked: FunctionGround) -> str:
    """What the answers are: "name", "letter", "number" or "word"."""
    tokenizer = asked.model.tokenizer
    if not hasattr(tokenizer, "decode") or not asked.answers:
        return "word"
    said = [str(tokenizer.decode([i])).strip() for row in asked.answers for i in row]
    if all(len(one) == 1 and one.isalpha() for one in said):
        return "letter"
    if all(one.isdigit() for one in said):
        return "number"
    return "name" if all(one[:1].isupper() for one in said) else "word"
