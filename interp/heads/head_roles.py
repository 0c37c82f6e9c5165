"""What each head does, by the published definitions: previous token, duplicate token, induction, copying, positional.

Each kind is measured by its own definition (`interp/head_kinds/`, with the papers), per head and example, on your data,
on random tokens said several times ("induction @ repeated"), or on both. In random tokens nothing but the repetition
can be looked for, so a head is judged on what it does and not on what the text happens to hold (Olsson et al. 2022).
Weights are read a few rows at a time, so no N x N pattern is kept. Cost: one forward pass and about one more attention
for the data and for the random tokens each; copying needs one more pass of each. Limits: a kind says where a head looks
(copying: what it writes), not that anything depends on it; most values grow in short texts, where there is little else
to look at: compare heads on one data set only. What has no meaning is named in `.left_out` with the reason: kinds about
words in picture towers, and random tokens where none can be made of a model's vocabulary (genes, formulas).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from interp.heads.kinds import KINDS, Kind
from interp.heads.kinds.copying import NAME as COPYING
from interp.heads.kinds.copying import copying
from interp.heads.kinds.kind import chosen
from interp.heads.kinds.reading import head_names, head_sites, measured, page_of, tower_of
from interp.heads.kinds.repeated import random_tokens
from interp.hooks.errors import InputsError, ModelError
from interp.hooks.inputs.inputs import Inputs
from interp.hooks.sites import Site
from interp.kernels.errors import InterpError
from interp.provenance import about
from interp.records import Method, register
from interp.results.roles import HeadRoles

if TYPE_CHECKING:
    from interp.model import Model

ON_REPEATED = ("induction", "duplicate token", "previous token", "prefix matching", "prefix matching (preceding)")
ONLY_REPEATED = ("prefix matching", "prefix matching (preceding)")
REPEATED = " @ repeated"


def head_roles(
    model: Model,
    data: Any = None,
    *,
    kinds: Sequence[str] | None = None,
    heads: str = "L*",
    n: int = 10,
    length: int = 25,
    repeats: int = 4,
    seed: int = 0,
) -> HeadRoles:
    """Every kind's value for every head of one tower ("L*", "vision.L*", "L3-5").

    Without `data`, and for language models with it too, `n` rows of `length` random tokens said `repeats` times are
    read (fewer tokens where the model reads less). `kinds` picks some by name; one that has no meaning here is then
    refused.
    """
    wanted = chosen(kinds, [*(kind.name for kind in KINDS), COPYING])
    sites = head_sites(model, heads)
    x = None if data is None else model.inputs(data)
    random = _random(model, sites, n, length, repeats, seed, wanted, given=x is not None)
    found, notes, left_out = _on_data(model, sites, x, [k for k in KINDS if k.name in wanted])
    if isinstance(random, str):
        left_out |= {f"{name}{REPEATED}": random for name in ON_REPEATED if name in wanted}
        left_out |= {COPYING: random} if COPYING in wanted else {}
    else:
        left_out |= _on_random(model, sites, random, wanted, found, repeats)
        left_out = {name: why for name, why in left_out.items() if f"{name}{REPEATED}" not in found}
    _refuse_missing(kinds, found, left_out)
    meta = {**about(model.module, x), "method": "head roles", "n": n, "repeats": repeats, "seed": seed}
    return HeadRoles(head_names(model, sites), found, notes, left_out, meta)


def _random(
    model: Model, sites: Sequence[Site], n: int, length: int, repeats: int, seed: int, wanted: list[str], *, given: bool
) -> tuple[Inputs, Inputs] | str:
    """Random tokens said several times and once, or why there are none."""
    if not {*ON_REPEATED, COPYING} & set(wanted):
        return "it was not asked for"
    tower = tower_of(model, sites)
    if tower.name != "text" or set(model.example()) - {"input_ids", "attention_mask", "position_ids", "token_type_ids"}:
        why = f"random tokens are put into models that read text and nothing else; this tower is {tower.name!r}"
        if given:
            return why
        raise InputsError(f"{why}: give data=.")
    try:
        return random_tokens(model, n, length, repeats, seed)
    except InterpError as why:  # letters of a genome, signs of a formula: too few words to draw from
        if given:
            return f"random tokens cannot be made for this model: {why}"
        raise


def _on_data(
    model: Model, sites: list[Site], x: Inputs | None, kinds: list[Kind]
) -> tuple[dict[str, Any], dict[str, tuple[str, ...]], dict[str, str]]:
    if x is None:
        return {}, {}, {kind.name: "it is measured on data=, and none was given" for kind in kinds}
    page = page_of(model, sites, x)
    left_out = {kind.name: why for kind in kinds if (why := kind.refuses(page)) is not None}
    chosen = [kind for kind in kinds if kind.name not in (*left_out, *ONLY_REPEATED)]
    values, said = measured(model, sites, x, page, chosen)
    return values, said, left_out


def _on_random(
    model: Model,
    sites: list[Site],
    random: tuple[Inputs, Inputs],
    wanted: list[str],
    found: dict[str, Any],
    repeats: int,
) -> dict[str, str]:
    """Put what is measured on random tokens into `found`; returns what cannot be, and why."""
    several, once = random
    page = page_of(model, sites, several)
    kinds = [kind for kind in KINDS if kind.name in wanted and kind.name in ON_REPEATED and repeats > 1]
    left_out = {f"{kind.name}{REPEATED}": why for kind in kinds if (why := kind.refuses(page)) is not None}
    values, _ = measured(model, sites, several, page, [k for k in kinds if f"{k.name}{REPEATED}" not in left_out])
    found |= {f"{name}{REPEATED}": value for name, value in values.items()}
    try:
        found |= {COPYING: copying(model, sites, once)} if COPYING in wanted else {}
    except ModelError as why:
        left_out[COPYING] = str(why)
    return left_out


def _refuse_missing(kinds: Sequence[str] | None, found: dict[str, Any], left_out: dict[str, str]) -> None:
    """Kinds asked for by name must be there in one form or the other."""
    for name in () if kinds is None else [kinds] if isinstance(kinds, str) else kinds:
        if name not in found and f"{name}{REPEATED}" not in found:
            why = left_out.get(name) or left_out.get(f"{name}{REPEATED}", "no example can measure it")
            raise InputsError(f"{name!r} cannot be measured here: {why}.")
    if not found:
        raise InputsError(
            "no kind of head can be measured here: " + "; ".join(f"{k}: {w}" for k, w in left_out.items())
        )


register(
    Method(
        "interp.head_roles",
        number="weight on what the kind looks at, 0 to 1 (of copying: a share of eigenvalues, -1 to 1)",
        shown="map",
        papers=("2209.11895", "1905.09418", "1906.04341"),
        passes=lambda t: 4,
        example=lambda t: head_roles(t.model, t.base, heads=f"{t.tower}L*", n=2, length=6, repeats=2),
    )
)
