"""Changes of a run as frozen values: printable, comparable by content, applied as often as wanted.

Value edits change what is at a site: `new = change(old)` at the chosen positions, rows and heads. Attention edits
change how heads attend, per head and key set, without an N x N tensor; their mathematics is in `interp.kernels`.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property
from types import FunctionType
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from interp.hooks.errors import EditError
from interp.hooks.inputs.inputs import Positions
from interp.hooks.sites import parse
from interp.hooks.stand.call import Call
from interp.hooks.stand.program import HeadProgram
from interp.hooks.stand.softmax import Changes, Fused
from interp.kernels import edits as kernel
from interp.kernels.masks.symbols import ByContent

Phase = Literal["prefill", "decode", "both"]
ValueChange = Callable[[Tensor, Tensor | None], Tensor]
"""`change` of a value edit: x, and which of its positions are real."""


def several(edits: Edit | Iterable[Edit]) -> list[Edit]:
    """The edits as a list, also where one was given; raises where something else was given."""
    found = [edits] if isinstance(edits, Edit) or not isinstance(edits, Iterable) else list(edits)
    for one in found:
        if not isinstance(one, Edit):
            raise EditError(f"expected edits such as interp.Scale('L5.H3.z', 0.5), or a list of them; got {one!r:.80}")
    return found


@dataclass(frozen=True, eq=False)
class Edit(ByContent):
    """What all edits share: where, at which positions and rows, and in which phase of generating."""

    site: str
    """What is changed, such as "L5.H3.z" or "L*.resid_post"."""
    positions: Positions | None = field(default=None, kw_only=True)
    """Which tokens; for `k` and `v` the keys, for everything else the queries. None for all."""
    rows: tuple[int, ...] | None = field(default=None, kw_only=True)
    """Which examples of the batch. None for all."""
    phase: Phase = field(default="both", kw_only=True)
    """"prefill" only in the prompt, "decode" only for new tokens, "both" in both."""
    step: int | None = field(default=None, kw_only=True)
    """Only this decoding step, counted from 0 for the first generated token after the prompt."""
    steps: int | str | None = field(default=None, kw_only=True)
    """Only these calls of the whole model since the run or the context began, counted from 0: 3, or "0-4,10"."""
    branch: Literal["cond", "uncond", "perturbed"] | None = field(default=None, kw_only=True)
    """Only rows of this branch of a denoiser's guidance (`hooks/denoisers/guidance.py`)."""
    onward: bool = field(default=False, kw_only=True)
    """In addition to `positions`, which are tokens of the prompt, also at every token that is generated after it."""
    expand: bool = field(default=False, kw_only=True)
    """For `L5.H3.k` and `.v`: change what this query head alone reads, not the kv head it shares."""

    def __repr__(self) -> str:
        said = [
            f"{f.name}={_short(value)}"
            for f in fields(self)[1:]
            if torch.is_tensor(value := getattr(self, f.name)) or value != f.default
        ]
        return f"{type(self).__name__}({', '.join([repr(self.site), *said])})"

    @property
    def tokenwise(self) -> bool:
        """Whether it does the same to every token of every row, so that it may be met by tokens of many rows at
        once."""
        return False

    def refuse_unwritten(self) -> None:
        """Raise where what the edit does cannot be written down, so that nobody could go on with it later."""

    @cached_property
    def written(self) -> str:
        """What results keep of it: how it prints, and a digest of its content."""
        return f"{self!r} {hashlib.sha256(repr(self._content()).encode()).hexdigest()[:16]}"


def in_steps(steps: int | str | None, call: int) -> bool:
    """Whether a call of the model, counted from 0, is one of those spelled as 3 or "0-4,10"; None for every one."""
    if steps is None:
        return True
    if isinstance(steps, int):
        return steps == call
    if not SPELLED.fullmatch(steps):
        raise EditError(f"steps are calls of the model counted from 0, as 3 or '0-4,10', got {steps!r}.")
    ends = (part.partition("-") for part in steps.split(","))
    return any(int(first) <= call <= int(last or first) for first, _, last in ends)


def last_of(steps: int | str) -> int:
    """The last call that is spelled."""
    return steps if isinstance(steps, int) else max(map(int, re.findall(r"\d+", steps)))


SPELLED = re.compile(r"\d+(-\d+)?(,\d+(-\d+)?)*")


def _short(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"tensor{list(value.shape)}"
    if isinstance(value, FunctionType):
        return value.__qualname__
    text = repr(value)
    return f"<{type(value).__qualname__}>" if text == object.__repr__(value) else text


class ValueEdit(Edit):
    """An edit of the tensor at a site."""

    reads_input: ClassVar[bool] = False
    """Whether it also needs what the layer's attention read (`Call.x`)."""

    def even(self, value: Any) -> bool:
        """Whether a value of its own, a number or a vector, meets every token of every row alike; one put into a
        pattern, or for one head of a group, says how heads attend."""
        attends = self.expand or parse(self.site).component in ("pattern", "scores")
        return not attends and self.positions is None and self.rows is None and torch.as_tensor(value).ndim <= 1

    @property
    def needs_valid(self) -> bool:
        """Whether `change` has to be told which positions are real."""
        return False

    def change(self, x: Tensor, valid: Tensor | None) -> Tensor:
        """The new value of x [row, position, ..., d]; `valid` says which positions are real."""
        raise NotImplementedError

    def change_in(self, call: Call, heads: tuple[int, ...]) -> ValueChange:
        """`change` at z in an attention call, of these heads; for edits that read more of the call than z."""
        return self.change


def _fit(value: Any, x: Tensor, edit: Edit) -> Tensor:
    given = torch.as_tensor(value, dtype=x.dtype, device=x.device)
    try:
        return given.expand(x.shape)
    except RuntimeError:
        raise EditError(
            f"{edit!r}: the value has shape {list(given.shape)}, which does not broadcast to the site's"
            f" {list(x.shape)}."
        ) from None


@dataclass(frozen=True, eq=False, repr=False)
class Set(ValueEdit):
    """Put a value there."""

    value: Any = None
    """A number, or a tensor that broadcasts to the site."""

    def __post_init__(self) -> None:
        if self.value is None:
            raise EditError(f"Set({self.site!r}) needs a value: a number or a tensor that broadcasts to the site.")

    @property
    def tokenwise(self) -> bool:
        return self.even(self.value)

    def change(self, x: Tensor, valid: Tensor | None) -> Tensor:
        return _fit(self.value, x, self)


@dataclass(frozen=True, eq=False, repr=False)
class Scale(ValueEdit):
    """Multiply by a factor."""

    factor: Any = 1.0
    """A number, or a tensor that broadcasts to the site."""

    @property
    def tokenwise(self) -> bool:
        return self.even(self.factor)

    def change(self, x: Tensor, valid: Tensor | None) -> Tensor:
        return x * _fit(self.factor, x, self)


def Zero(site: str, **where: Any) -> Scale:
    """`Scale(site, 0.0)`."""
    return Scale(site, 0.0, **where)


@dataclass(frozen=True, eq=False, repr=False)
class Mean(ValueEdit):
    """Put the mean there: the one given, or the mean over this run's rows and real positions."""

    value: Any = None
    """The mean to use, a number or a tensor that broadcasts to the site; None for the mean of this run."""

    @property
    def needs_valid(self) -> bool:
        return self.value is None

    def change(self, x: Tensor, valid: Tensor | None) -> Tensor:
        if self.value is not None:
            return _fit(self.value, x, self)
        real = torch.ones(x.shape[:2], dtype=torch.bool, device=x.device) if valid is None else valid.to(x.device)
        return x[real].mean(0).expand(x.shape)


@dataclass(frozen=True, eq=False, repr=False)
class Add(ValueEdit):
    """Add a vector, `amount` times: steering."""

    vector: Any = None
    """A number, or a tensor that broadcasts to the site."""
    amount: float = 1.0
    """How many times the vector is added; negative to subtract it."""

    def __post_init__(self) -> None:
        if self.vector is None:
            raise EditError(f"Add({self.site!r}) needs a vector: a number or a tensor that broadcasts to the site.")

    @property
    def tokenwise(self) -> bool:
        return self.even(self.vector)

    def change(self, x: Tensor, valid: Tensor | None) -> Tensor:
        return x + self.amount * _fit(self.vector, x, self)


@dataclass(frozen=True, eq=False, repr=False)
class Project(ValueEdit):
    """Replace the part inside a subspace: `x - P x + P to`, with P the projector on the span of `basis` [d] or [d,
    n]."""

    basis: Any = None
    """A vector [d], or columns [d, n] that span the subspace."""
    to: Any = 0.0
    """What the part inside becomes: 0 removes it; a number, or a tensor that broadcasts to the site."""

    def __post_init__(self) -> None:
        if self.basis is None:
            raise EditError(f"Project({self.site!r}) needs a basis: a vector [d] or columns [d, n].")

    @property
    def tokenwise(self) -> bool:
        return self.even(self.to)

    def change(self, x: Tensor, valid: Tensor | None) -> Tensor:
        columns = torch.as_tensor(self.basis, dtype=torch.float32, device=x.device)
        columns = columns[:, None] if columns.ndim == 1 else columns
        if columns.shape[0] != x.shape[-1]:
            raise EditError(
                f"{self!r}: the basis has {columns.shape[0]} rows, but the site has {x.shape[-1]} dimensions."
            )
        q, r = torch.linalg.qr(columns)
        q = q[:, r.diagonal().abs() > 1e-6 * r.diagonal().abs().max()]
        gap = (_fit(self.to, x, self) - x).to(torch.float32)
        return x + (gap @ q @ q.T).to(x.dtype)


@dataclass(frozen=True)
class Place:
    """Where in an attention call an edit acts, and what is known of the inputs there."""

    heads: tuple[int, ...]
    rows: Tensor | None
    """Bool [batch, query] that it may change; None for all."""
    keys: Callable[[Positions], Tensor]
    """Bool [batch, key] of a key set."""
    real: Callable[[], Tensor | None]
    """Bool [batch, query] that are no padding; None where all are."""
    first: Callable[[], Tensor]
    """[batch], the key of each example's first real token; negative where a cache has dropped it."""
    cross: bool = False
    """Whether the keys are another tower's."""
    cached: bool = False
    """Whether the call goes on from a cache, so that earlier queries are not in it."""


AtHeads = tuple[tuple[int, ...], HeadProgram]


class AttentionEdit(Edit):
    """An edit of how heads attend; `positions` are the query rows."""

    by_head: ClassVar[bool] = False
    """Whether it does the same to every head, whatever their number and whichever others there are."""

    def programs(self, call: Call, place: Place) -> Sequence[AtHeads]:
        """What it comes to in a call: head programs with the heads each is for; none where it changes nothing."""
        raise NotImplementedError


class KernelEdit(AttentionEdit):
    """One that the kernels do while they attend."""

    by_head = True

    def programs(self, call: Call, place: Place) -> Sequence[AtHeads]:
        keys = {name: place.keys(spec) for name, spec in self.key_sets().items()}
        return [(place.heads, Fused(Changes(edits=(self.kernel(place.heads, place.rows, keys),))))]

    def kernel(self, heads: tuple[int, ...] | None, rows: Tensor | None, keys: Mapping[str, Tensor]) -> kernel.Edit:
        """The same edit in the kernels' terms, with heads, rows and key sets resolved."""
        raise NotImplementedError

    def key_sets(self) -> dict[str, Positions]:
        """The key sets it names, to be resolved against the inputs."""
        return {}


@dataclass(frozen=True, eq=False, repr=False)
class MaskKeys(KernelEdit):
    """Make a key set invisible; the weights of the other keys are renormalised. A row left with no key gives 0."""

    keys: Positions = "all"
    """Which keys: positions, a role, a text, or "all"."""

    def key_sets(self) -> dict[str, Positions]:
        return {"keys": self.keys}

    def kernel(self, heads: tuple[int, ...] | None, rows: Tensor | None, keys: Mapping[str, Tensor]) -> kernel.Edit:
        return kernel.MaskKeys(keys["keys"], heads, rows)


@dataclass(frozen=True, eq=False, repr=False)
class Temperature(KernelEdit):
    """Divide the scores by `value`: above 1 flattens the pattern, below 1 sharpens it."""

    value: float = 1.0
    """What scores are divided by, above 0; 1 changes nothing."""

    def kernel(self, heads: tuple[int, ...] | None, rows: Tensor | None, keys: Mapping[str, Tensor]) -> kernel.Edit:
        return kernel.Temperature(self.value, heads, rows)


@dataclass(frozen=True, eq=False, repr=False)
class BiasKeys(KernelEdit):
    """Add `amount` to the scores of a key set: each weight times e^amount, then renormalised."""

    keys: Positions = "all"
    """Which keys: positions, a role, a text, or "all"."""
    amount: float = 0.0
    """In units of the scores."""

    def key_sets(self) -> dict[str, Positions]:
        return {"keys": self.keys}

    def kernel(self, heads: tuple[int, ...] | None, rows: Tensor | None, keys: Mapping[str, Tensor]) -> kernel.Edit:
        return kernel.BiasKeys(keys["keys"], self.amount, heads, rows)


@dataclass(frozen=True, eq=False, repr=False)
class Emphasize(KernelEdit):
    """Scores s of a key set become s + amount |s|; `positions="last"` for the last query only."""

    keys: Positions = "all"
    """Which keys: positions, a role, a text, or "all"."""
    amount: float = 0.0
    """As a share of the score's absolute value."""

    def key_sets(self) -> dict[str, Positions]:
        return {"keys": self.keys}

    def kernel(self, heads: tuple[int, ...] | None, rows: Tensor | None, keys: Mapping[str, Tensor]) -> kernel.Edit:
        return kernel.Emphasize(keys["keys"], self.amount, heads, rows)


@dataclass(frozen=True, eq=False, repr=False)
class Redistribute(KernelEdit):
    """Move a fraction of the weight on `source` to `target`, in proportion to the target's weights."""

    source: Positions = "first"
    """Keys that lose weight."""
    target: Positions = "all"
    """Keys that receive it."""
    fraction: float = 1.0
    """The share of the source's weight that moves, from 0 to 1."""

    def key_sets(self) -> dict[str, Positions]:
        return {"source": self.source, "target": self.target}

    def kernel(self, heads: tuple[int, ...] | None, rows: Tensor | None, keys: Mapping[str, Tensor]) -> kernel.Edit:
        return kernel.Redistribute(keys["source"], keys["target"], self.fraction, heads, rows)


@dataclass(frozen=True, eq=False, repr=False)
class Blend(KernelEdit):
    """Replace part of the pattern by looking at the own key only (`identity`), or at all visible keys alike
    (`uniform`)."""

    to: Literal["identity", "uniform"] = "identity"
    """"identity" is the own key only, "uniform" all visible keys alike."""
    amount: float = 1.0
    """The share of the pattern that is replaced, from 0 to 1."""

    def kernel(self, heads: tuple[int, ...] | None, rows: Tensor | None, keys: Mapping[str, Tensor]) -> kernel.Edit:
        return kernel.Blend(self.to, self.amount, heads, rows)


def UniformAttention(site: str, **where: Any) -> Blend:
    """`Blend(site, to="uniform", amount=1.0)`."""
    return Blend(site, to="uniform", amount=1.0, **where)
