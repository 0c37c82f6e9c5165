"""S-inhibition heads: they look at the wrong answer where it is repeated, and keep the movers from looking there.

Wang et al. 2022 (arXiv 2211.00593): in "When Mary and John went to the store, John gave a drink to", heads that look
from the last word at the second "John" write what the name movers' queries read, so that these look at Mary. Two
numbers: the weight of the last row on the last mention of the wrong answer, which has to be mentioned before; and what
the metric loses when the head's write comes from the corrupted prompt in the movers' queries alone, all other attention
held (path patching), as a share of what the corruption costs. Movers are the heads that add most to the answer among
those that look at it. Cost: path patching of all heads below the movers. Limits: an effect through queries can go by
position or by word; only other corruptions can distinguish the two.
"""

from __future__ import annotations

import torch

from interp.heads.functions import movers
from interp.heads.functions.asked import FunctionGround, Numbers
from interp.hooks.head_names import head_place
from interp.patching.path_patch import path_patch

NAME = "S-inhibition"
LOOKS, KEEPS = "weight on the repeated wrong answer", "loss through the movers' queries"
LOOKING = 0.1
"""A head with less weight on the answer is no mover whose queries are asked about."""


def refuses(asked: FunctionGround) -> str | None:
    """It needs a wrong answer that is repeated, a corrupted prompt, and movers."""
    if why := movers.refuses(asked):
        return why
    if not asked.wrong:
        return "the task names no wrong answers"
    if few := [n for n, count in enumerate(_mentions(asked)) if count < 2]:
        return f"the prompt of example {few[0]} does not repeat its wrong answer"
    return None if receivers(asked) else "no head below which there are others both looks at the answer and raises it"


def _mentions(asked: FunctionGround) -> list[int]:
    """How often each prompt says a wrong answer; at the start of a text a word may be other tokens than elsewhere, so
    texts are asked by their letters."""
    assert asked.task is not None
    found = []
    for row, hit in zip(asked.task.rows, asked.said(asked.wrong), strict=True):
        spelled = [str(word).strip() for word in row.wrong]
        count = sum(row.clean.count(word) for word in spelled) if isinstance(row.clean, str) else int(hit.sum())
        found.append(count if bool(hit.any()) else 0)
    return found


def receivers(asked: FunctionGround) -> list[str]:
    """The movers: heads that look at the answer and raise it most, all of them above the first layer."""
    looks = (asked.weights * asked.said(asked.answers)).sum(-1).mean(1)
    writes = movers.written(asked).mean(1)
    first = min(s.layer for s in asked.sites if s.layer is not None)
    good = [
        n for n in writes.argsort(descending=True).tolist()
        if writes[n] > 0 and looks[n] >= LOOKING and head_place(asked.names[n]).layer > first
    ]  # fmt: skip
    return [asked.names[n] for n in good[: asked.movers]]


def measure(asked: FunctionGround) -> Numbers:
    """Where it looks, and what the movers' queries lose without it."""
    assert asked.task is not None
    said = asked.said(asked.wrong)
    repeated = torch.nn.functional.one_hot((said * torch.arange(said.shape[1])).argmax(1), said.shape[1])
    looks = (asked.weights * repeated).sum(-1)
    into = [f"{name}.q_in" for name in receivers(asked)]
    prefix = "" if asked.sites[0].tower is None else f"{asked.sites[0].tower}."
    found = path_patch(
        asked.model, base=asked.x, source=asked.task.corrupt, metric=asked.task.metric, receivers=into,
        senders=f"{prefix}L*.H*",
    )  # fmt: skip
    assert found.source is not None
    gap = float((found.base - found.source).double().mean())
    values = {str(site).removesuffix(".result"): v for site, v in zip(found.sites, found.values, strict=True)}
    nothing = torch.zeros(asked.x.batch, dtype=torch.double)
    loss = torch.stack([-values.get(name, nothing).double() / (gap or 1.0) for name in asked.names])
    return {LOOKS: looks, KEEPS: loss}
