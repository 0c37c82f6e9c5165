"""Negative heads: those that lower the logit of what they look at.

Negative name movers: Wang et al. 2022 (arXiv 2211.00593), who find heads with the attention of name movers that write
the other way; copy suppression: McDougall et al. 2023 (arXiv 2310.04625), who show that one of them lowers whatever
word it looks at and the model is about to say. Numbers: the weight on the word that the last row looks at most
(that row and the text's first token, where heads rest, left out); what the head takes off its logit, over the mean
word's; and, where
answers are known, the negative copy score of Wang et al.: the share of words that are among the five most lowered when
they are looked at, by the weights. The mover's numbers say the same of the answer. Limits: McDougall et al. also show
that the word must be predicted already, which is not asked here.
"""

from __future__ import annotations

import torch

from interp.heads.functions.asked import FunctionGround, Numbers, text_answer
from interp.heads.functions.movers import copied

NAME = "negative"
LOOKS, LOWERS, COPIES = "weight on one word", "takes off that word", "negative copy score"


def refuses(asked: FunctionGround) -> str | None:
    """It needs words to look at."""
    page = asked.page
    if page.picture or not bool((page.words >= 0).any()):
        return "it is about words, and the ids of this tower's words are not known"
    lacking = (~_words(asked).any(1)).nonzero().flatten().tolist()
    return f"example {lacking[0]} has no word but its first and its last" if lacking else None


def measure(asked: FunctionGround) -> Numbers:
    """What it takes off the word it looks at most, and the score of its weights."""
    weight, key = asked.weights.masked_fill(~_words(asked)[None], -1.0).max(-1)
    looked = asked.page.words.gather(1, key.T)  # [example, head]
    raised = asked.raised(looked)  # [head, example, head]: each head's write on what every head looks at
    found = {LOOKS: weight, LOWERS: -torch.diagonal(raised, dim1=0, dim2=2).T}
    if text_answer(asked) is None and asked.answers:
        found[COPIES] = copied(asked, -1)
    return found


def _words(asked: FunctionGround) -> torch.Tensor:
    at, page = torch.arange(asked.page.length)[None], asked.page
    return (page.words >= 0) & (at != page.first[:, None]) & (at != asked.last[:, None])
