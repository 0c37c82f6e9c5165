"""What is asked of an engine's heads, in a form that crosses processes: plain values, and bytes of named tensors.

Sites are resolved here, against the layers and heads of the whole model, so a worker has nothing left to parse; heads
are global numbers, of which each worker holds its own. Of a request's heads z alone is given out: q, k and v stay in
the engine.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal

import torch
from jaxtyping import Float
from safetensors.torch import load, save
from torch import Tensor

from interp.hooks.edits.edits import Add, Blend, Edit, Scale, Set
from interp.hooks.errors import EditError, InputsError, SiteError
from interp.hooks.sites import parse, per_layer
from interp.kernels.stats import KINDS, Stat, parse_all
from interp.scale.serving.packed import Where

Reduce = Literal["mean", "sum", "norm"]
Heads = dict[int, tuple[int, ...]]
"""By layer, numbers of heads, ascending."""

NOT_HERE = {
    "pattern": "patterns are N x N for each head, and the engine runs a long prompt in chunks: ask for stats=, such as"
    " 'topk:8' or 'entropy', or load the model with interp.load and record patterns with m.run",
    "scores": "scores are N x N for each head: ask for stats=, or load the model with interp.load and record them with"
    " m.run",
    "attention": "name what is read of the head, 'L5.H3.z'; ask with stats= how heads attend",
    **dict.fromkeys(("q", "k", "v"), "a served engine gives z and statistics, never q, k or v of its requests"),
}
"""Why a component cannot be had from an engine."""


Kind = Literal["scale", "set", "add", "uniform"]


@dataclass(frozen=True)
class Change:
    """One edit of z in one layer: `value` is the name of its tensor [head, 1 or d], for `heads` in their order, or
    [position, 1 or head, 1 or d] for the prompt's positions. "uniform" puts the mean of what a row sees there."""

    kind: Kind
    layer: int
    heads: tuple[int, ...]
    value: str
    amount: float = 1.0
    positions: Where = "all"

    def at(self, local: Sequence[int], values: Mapping[str, Tensor]) -> Edit:
        """The edit of some of its heads, by their places in `heads`."""
        value = values[self.value]
        value = value if value.ndim == 3 and value.shape[1] == 1 else value[..., list(local), :]
        if self.kind == "scale":
            return Scale("z", value)
        if self.kind == "set":
            return Set("z", value)
        if self.kind == "add":
            return Add("z", value, self.amount)
        raise EditError(f"no change {self.kind!r} in an engine.")


@dataclass(frozen=True)
class Plan:
    """What is asked of the requests that carry its key, `rows` of them."""

    key: str
    rows: int
    positions: Where = "all"
    z: Heads = field(default_factory=dict)
    reduce: Reduce | None = None
    stats: tuple[str, ...] = ()
    stat_heads: Heads = field(default_factory=dict)
    edits: tuple[tuple[Change, ...], ...] = ()

    def written(self, values: Mapping[str, Tensor]) -> tuple[str, bytes]:
        """The plan and its tensors, to be sent."""
        return json.dumps(asdict(self)), save({name: x.contiguous() for name, x in values.items()})

    @staticmethod
    def read(text: str, values: bytes) -> tuple[Plan, dict[str, Tensor]]:
        """What `written` has written."""
        given: dict[str, Any] = json.loads(text)
        edits = tuple(tuple(_change(one) for one in some) for some in given["edits"])
        plan = Plan(**{**{f.name: given[f.name] for f in fields(Plan)}, "edits": edits,
                       "positions": _where(given["positions"]), "stats": tuple(given["stats"]),
                       "z": _heads(given["z"]), "stat_heads": _heads(given["stat_heads"])})  # fmt: skip
        return plan, load(values)


def _where(given: Any) -> Where:
    return tuple(given) if isinstance(given, list) else given


def _heads(given: Mapping[str, Sequence[int]]) -> Heads:
    return {int(layer): tuple(heads) for layer, heads in given.items()}


def _change(given: Mapping[str, Any]) -> Change:
    return Change(**{**given, "heads": tuple(given["heads"]), "positions": _where(given["positions"])})


@dataclass(frozen=True)
class HeadCounts:
    """The heads of the whole model: by layer how many, and how wide z is."""

    heads: Mapping[int, int]
    width: int

    def sites(self, asked: str | Iterable[str]) -> Heads:
        """Heads by layer of sites such as 'L*.H*.z'."""
        found: dict[int, set[int]] = {}
        for text in (asked,) if isinstance(asked, str) else asked:
            for layer, heads in self.site(text):
                found.setdefault(layer, set()).update(heads)
        return {layer: tuple(sorted(found[layer])) for layer in sorted(found)}

    def site(self, text: str) -> list[tuple[int, tuple[int, ...]]]:
        """The layers and heads of one site, which is z."""
        pattern = parse(text)
        if pattern.component in NOT_HERE:
            raise SiteError(f"{text!r} cannot be had from a served engine: {NOT_HERE[pattern.component]}.")
        if pattern.component != "z":
            raise SiteError(
                f"{text!r} cannot be had from a served engine, which gives z of heads: write 'L5.H3.z', or use m.run."
            )
        if pattern.tower not in (None, "text"):
            raise SiteError(f"{text!r}: an engine's heads are those of the language model; it has no other tower here.")
        found = per_layer(pattern, list(self.heads), lambda layer: self.heads[layer], tower=None)
        return [(int(s.layer or 0), s.heads or tuple(range(self.heads[int(s.layer or 0)]))) for s in found]


def positions_of(given: Any) -> Where:
    """Positions as a plan has them."""
    if given is None:
        return "all"
    if isinstance(given, str):
        if given not in ("all", "prompt", "last", "generated"):
            raise InputsError(f"positions are 'all', 'prompt', 'last', 'generated' or numbers, got {given!r}.")
        return given  # type: ignore[return-value]
    numbers = (given,) if isinstance(given, int) else given
    if not isinstance(numbers, Iterable) or isinstance(numbers, bytes):
        raise InputsError(f"positions are 'all', 'prompt', 'last', 'generated' or numbers, got {given!r:.80}.")
    found = tuple(numbers)
    wrong = next((n for n in found if isinstance(n, bool) or not isinstance(n, int)), None)
    if wrong is not None or not found:
        raise InputsError(f"positions in an engine are whole numbers of the request's tokens, got {given!r:.80}.")
    return found


def statistics_of(names: str | Iterable[str] | None, reduce: Reduce | None) -> tuple[str, ...]:
    """Names of row and key statistics that an engine can give."""
    found: tuple[Stat, ...] = parse_all(names)
    for stat in found:
        if stat.kind == "mass":
            raise InputsError(
                f"{stat.name!r} needs a set of keys, which differs from request to request, so an engine cannot take"
                " it."
            )
        if reduce is not None and (stat.per_key or stat.kind in ("argmax", "topk")):
            what = "is a number a key" if stat.per_key else "names keys"
            raise InputsError(f"{stat.name!r} {what} and has no mean over rows: ask for it with reduce=None.")
    names_of = {s.kind for s in found}
    if "received_mean" in names_of and not {"received", "seen"} <= names_of:
        raise InputsError("'received_mean' is put together from 'received' and 'seen': ask for these as well.")
    assert names_of <= set(KINDS)
    return tuple(s.name for s in found)


def changes(edits: Sequence[Edit], shape: HeadCounts, values: dict[str, Tensor]) -> tuple[Change, ...]:
    """Edits as an engine applies them, in their order, after those of how heads attend; their tensors go to
    `values`."""
    found: list[Change] = []
    for edit in sorted(edits, key=lambda edit: not isinstance(edit, Blend)):
        kind, value, amount = _amounts(edit)
        where = _placed(edit)
        for layer, heads in shape.site(_z_of(edit) if kind == "uniform" else edit.site):
            name = f"v{len(values)}"
            values[name] = _fitted(value, len(heads), shape.width, edit)
            found.append(Change(kind, layer, heads, name, amount, where))
    return tuple(found)


def refuse_statistics(plan: Plan) -> None:
    """Raise where statistics are asked of heads that an edit makes attend otherwise: they are read off q and k."""
    for change in (one for some in plan.edits for one in some if one.kind == "uniform"):
        both = sorted(set(change.heads) & set(plan.stat_heads.get(change.layer, ())))
        if plan.stats and both:
            raise EditError(
                f"UniformAttention changes how heads {both} of L{change.layer} attend, and statistics are read off the"
                " model's own softmax: leave these heads out of heads=, or ask in a run without the edit."
            )


def _amounts(edit: Edit) -> tuple[Kind, Any, float]:
    if isinstance(edit, Scale):
        return "scale", edit.factor, 1.0
    if isinstance(edit, Set):
        return "set", edit.value, 1.0
    if isinstance(edit, Add):
        return "add", edit.vector, float(edit.amount)
    if isinstance(edit, Blend) and edit.to == "uniform" and edit.amount == 1.0:
        return "uniform", 0.0, 1.0
    raise EditError(
        f"{edit!r} cannot be made in a served engine, which takes Scale, Zero, Set and Add of z, and UniformAttention:"
        " load the model with interp.load and use m.run or m.edited."
    )


def _z_of(edit: Edit) -> str:
    """z of the heads whose attention is edited."""
    return f"{edit.site.removesuffix('.attention')}.z"


def _placed(edit: Edit) -> Where:
    """Where in its request an edit acts."""
    for name in ("rows", "step", "steps", "branch"):
        if getattr(edit, name) is not None:
            raise EditError(f"{edit!r}: {name}= has no meaning in an engine; give each request its own edits.")
    if edit.expand:
        raise EditError(f"{edit!r}: expand= is for k and v, and a served engine edits z.")
    if edit.positions is None:
        return {"both": "all", "prefill": "prompt", "decode": "generated"}[edit.phase]  # type: ignore[return-value]
    if edit.phase != "both" or edit.onward:
        raise EditError(f"{edit!r}: in an engine say positions= or phase=, not both, and no onward=.")
    return positions_of(edit.positions)


def _fitted(value: Any, heads: int, width: int, edit: Edit) -> Float[Tensor, "*position head w"]:
    """A number, [d], or [head, d] as [head, 1 or d]; [position, head, d] as it is, since it may be long."""
    given = torch.as_tensor(value).detach().to("cpu", torch.float32)
    if given.ndim == 0:
        return given.expand(heads, 1).clone()
    if given.ndim == 3 and given.shape[1] in (1, heads) and given.shape[2] in (1, width):
        if edit.phase != "prefill" or edit.positions is not None:
            raise EditError(f"{edit!r}: a value for every position is of the prompt: say phase='prefill' alone.")
        return given.clone()
    try:
        return given.expand(heads, width).clone()
    except RuntimeError:
        raise EditError(
            f"{edit!r}: the value has shape {list(given.shape)}; an engine's z takes a number, [{width}],"
            f" [{heads}, {width}], or [position, {heads}, {width}] for a prompt of as many tokens."
        ) from None
