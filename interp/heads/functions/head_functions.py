"""Which heads do what for a task: movers of names, letters and numbers, negative heads, S-inhibition, successors,
iteration and safety heads, each by its published definition.

Each kind has a file here with its paper, its numbers and its limits (`movers`, `negative`, `inhibition`, `successor`,
`iteration`, `safety`); what makes a head one of a kind is in `result`. What a kind needs and the task does not have is
named in `.left_out` with the reason. Heads that only look somewhere are those of `interp.head_roles`; heads that
retrieve are in `interp.long`.
Cost: two recorded passes and about one more attention; for copy scores and successors the heads' weights, one pass over
as many tokens as the model is wide, and a product with the vocabulary per head and word; S-inhibition takes path
patching of all heads below the movers, safety a pass a layer and a sweep of patches. Limits: kinds are told by where
heads look and what they write on these prompts; a label is a convention, the numbers are what was found.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from interp.finite import finite
from interp.heads.functions import inhibition, iteration, movers, negative, safety, successor
from interp.heads.functions.asked import Function, FunctionGround, Numbers
from interp.heads.functions.result import HeadFunctions
from interp.heads.kinds.kind import chosen
from interp.heads.kinds.reading import head_sites, tower_of
from interp.hooks.drive.tail import last_tower
from interp.hooks.errors import InputsError, ModelError
from interp.provenance import about
from interp.records import Method, Trial, register
from interp.tasks.task import Task

if TYPE_CHECKING:
    from interp.model import Model

FUNCTIONS: dict[str, Function] = {
    one.NAME: one for one in (movers, negative, inhibition, successor, iteration, safety)
}  # fmt: skip


def head_functions(
    model: Model,
    data: Any,
    *,
    kinds: str | Sequence[str] | None = None,
    heads: str | None = None,
    sequences: Mapping[str, Sequence[str | int]] | None = None,
    movers: int = 3,
) -> HeadFunctions:
    """The numbers of every kind for every head of the tower that answers, and their labels.

    `data` is a task, or prompts alone for the kinds that need no answer. `sequences` are words in their order for
    successors. `kinds` picks some by name; one that has no meaning here is then refused.
    """
    wanted = chosen(kinds, tuple(FUNCTIONS))
    if movers < 1:
        raise InputsError(f"movers= counts heads whose queries are looked at, at least 1; got {movers}.")
    asked = _asked(model, data, heads, dict(sequences or {}), movers)
    values, left_out = _measured(asked, wanted)
    missing = {name: why for name, why in left_out.items() if kinds is not None}
    if missing or not values:
        raise InputsError("cannot be measured here: " + "; ".join(f"{k}: {w}" for k, w in left_out.items()) + ".")
    meta = {**about(model.module, asked.x), "method": "head functions", "answers": kind_of(asked)}
    return HeadFunctions(asked.names, values, {}, left_out, meta)


def _asked(model: Model, data: Any, heads: str | None, sequences: dict[str, Any], count: int) -> FunctionGround:
    task = None
    if isinstance(data, Task):
        task = data if data.model is model else data.on(model)
    x = model.inputs(data if task is None else task.clean)
    stack = last_tower(model.ready(), None)
    prefix = "" if len(model.anatomy.towers) == 1 else f"{stack.name}."
    sites = head_sites(model, f"{prefix}L*" if heads is None else heads)
    if tower_of(model, sites) is not stack:
        raise InputsError(f"heads={heads!r}: what heads do for an answer is asked of the tower {stack.name!r}.")
    if stack.bidirectional or stack.name == "decoder":
        why = "looks both ways" if stack.bidirectional else "answers in another text than the one that has the question"
        raise ModelError(
            f"these kinds are of heads that answer from the last token of a text; the tower {stack.name!r} of"
            f" {type(model.module).__name__} {why}."
        )
    return FunctionGround(model, sites, x, task, sequences, count)


def _measured(asked: FunctionGround, wanted: Sequence[str]) -> tuple[Numbers, dict[str, str]]:
    values: Numbers = {}
    left_out: dict[str, str] = {}
    for name in wanted:
        one = FUNCTIONS[name]
        why = one.refuses(asked)
        if why is not None:
            left_out[name] = why
            continue
        values |= {number: finite(value, number) for number, value in one.measure(asked).items()}
    return values, left_out


def kind_of(asked: FunctionGround) -> str:
    """What the answers are."""
    return movers.kind_of(asked)


def _trial(t: Trial) -> HeadFunctions:
    return head_functions(t.model, t.base, kinds=["negative", "safety"])


register(
    Method(
        "interp.heads.head_functions",
        number="weights and shares, 0 to 1; logits over the mean word's; nats of divergence (safety)",
        shown="map",
        papers=("2211.00593", "2307.09458", "2405.04156", "2310.04625", "2312.09230", "2406.02128", "2410.13708"),
        passes=lambda t: 6 + t.layers + t.sweep,
        unfit={
            "vit": "it has no text whose last token gives the answer",
            "encoder-decoder": "the answers are not in the text that it continues",
        },
        example=_trial,
    )
)
