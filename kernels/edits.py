"""What can be done to a head's attention without ever holding its N x N pattern.

Each edit is a frozen object that compares by content. `heads` are query heads (None: all), `rows` Bool [batch, query]
(None: all), key sets Bool [key] or [batch, key]. Edits act in fixed stages, whatever the order they are given in, and
in the order given within a stage:

1. temperature   s <- s / T          of the complete score: scaled, capped, with bias
2. key bias      s <- s + b
3. emphasis      s <- s + a |s|
4. key mask      the keys become invisible; then the softmax over what is visible, with the learned sink if there is one
5. redistribute  p_S <- (1 - f) p_S, and the f w_S so freed goes to T in proportion to p_T
6. blend         p <- (1 - u) p + u w e, where w = 1 - sink and e is the own key, or uniform over the visible keys
7. gate          z <- g z

Rows where a redistribution finds no key of T (seen, and not emptied by another one), and rows that cannot see their own
key under a blend to identity, stay as they are and are counted (`Attended.counts`).
A new edit is a class with a stage and its definition in `reference.EDITS`; a fast implementation that can do it as well
says so in its own `EDITS`, and until then refuses it by name.
The redistribution is that of VAR (Kang et al., arXiv 2503.03321), the blend that of SoftPAG (arXiv 2506.10978).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar, Literal, TypeVar

import torch
from torch import Tensor

from interp.kernels.errors import AttentionError, said
from interp.kernels.masks.symbols import ByContent

Form = type["Edit"] | tuple[type["Edit"], str]


def key_set(name: str, keys: Tensor) -> Tensor:
    """The key set as Bool [1 or batch, key]."""
    if keys.dtype != torch.bool or keys.dim() not in (1, 2):
        raise AttentionError(f"{name} is Bool [key] or [batch, key]; got {keys.dtype} {list(keys.shape)}")
    return keys.reshape(-1, keys.shape[-1])


def _number(name: str, value: float | Tensor, low: float, high: float) -> None:
    numbers = value.detach().flatten().tolist() if isinstance(value, Tensor) else [value]
    if not all(math.isfinite(x) and low <= x <= high for x in numbers):
        raise AttentionError(f"{name} must be finite and in [{low}, {high}]; got {value!r}")


class Edit(ByContent):
    """What all edits share; `sets()` names the key sets they speak of."""

    stage: ClassVar[int]
    heads: tuple[int, ...] | None
    rows: Tensor | None

    @property
    def form(self) -> Form:
        """What an implementation must know to apply it: its class, and where a class is several edits, which of them.

        A subclass is another edit: whoever knows a class does not know what others made of it.
        """
        return type(self)

    def sets(self) -> tuple[Tensor, ...]:
        return ()

    def check(self, batch: int, heads: int, queries: int, keys: int) -> None:
        """Raise unless the edit fits a call of this shape."""
        name = type(self).__name__
        if self.heads is not None and not all(0 <= h < heads for h in self.heads):
            raise AttentionError(f"{name}: query heads must be in 0..{heads - 1}; got {self.heads}")
        value = getattr(self, "value", None)
        if isinstance(value, Tensor) and tuple(value.shape) not in ((), (heads,)):
            raise AttentionError(f"{name}: its value is a number or [{heads}], one per head; got {list(value.shape)}")
        if self.rows is not None:
            wanted = f"Bool [{batch}, {queries}]"
            if self.rows.dtype != torch.bool or tuple(self.rows.shape) not in ((batch, queries), (1, queries)):
                raise AttentionError(f"{name}: rows must be {wanted}; got {self.rows.dtype} {list(self.rows.shape)}")
        for keys_ in self.sets():
            found = key_set(f"{name}: a key set", keys_)
            if found.shape[0] not in (1, batch) or found.shape[1] != keys:
                raise AttentionError(
                    f"{name}: a key set must be Bool [{keys}] or [{batch}, {keys}]; got {list(keys_.shape)}"
                )

    def where(self, heads: Tensor, rows: Tensor) -> Tensor | None:
        """Bool [1 or batch, 1 or head, 1 or row, 1]: what the edit touches of these heads and rows; None is all."""
        found = None
        if self.heads is not None:
            mine = torch.tensor(self.heads, dtype=torch.long, device=heads.device)
            found = torch.isin(heads, mine)[None, :, None, None]
        if self.rows is not None:
            at = self.rows.to(rows.device)[:, rows][:, None, :, None]
            found = at if found is None else found & at
        return found


@dataclass(frozen=True, eq=False)
class Temperature(Edit):
    """Scores divided by `value` (one number, or a tensor [head])."""

    stage: ClassVar[int] = 1
    value: float | Tensor
    heads: tuple[int, ...] | None = None
    rows: Tensor | None = None

    def __post_init__(self) -> None:
        _number("a temperature", self.value, 1e-6, 1e6)


@dataclass(frozen=True, eq=False)
class _OfKeys(Edit):
    """An edit of the scores of one key set."""

    keys: Tensor

    def sets(self) -> tuple[Tensor, ...]:
        return (self.keys,)


@dataclass(frozen=True, eq=False)
class BiasKeys(_OfKeys):
    """`amount` added to the scores of a key set: each weight times exp(amount), then renormalised."""

    stage: ClassVar[int] = 2
    amount: float
    heads: tuple[int, ...] | None = None
    rows: Tensor | None = None

    def __post_init__(self) -> None:
        _number("a key bias", self.amount, -1e4, 1e4)


@dataclass(frozen=True, eq=False)
class Emphasize(_OfKeys):
    """Scores s of a key set become s + amount |s|."""

    stage: ClassVar[int] = 3
    amount: float
    heads: tuple[int, ...] | None = None
    rows: Tensor | None = None

    def __post_init__(self) -> None:
        _number("an emphasis", self.amount, -1e4, 1e4)


@dataclass(frozen=True, eq=False)
class MaskKeys(_OfKeys):
    """A key set becomes invisible; a row left with no key gives 0."""

    stage: ClassVar[int] = 4
    heads: tuple[int, ...] | None = None
    rows: Tensor | None = None


@dataclass(frozen=True, eq=False)
class Redistribute(Edit):
    """A fraction of the weight on `source` moved to `target`, in proportion to the target's weights."""

    stage: ClassVar[int] = 5
    source: Tensor
    target: Tensor
    fraction: float
    heads: tuple[int, ...] | None = None
    rows: Tensor | None = None

    def __post_init__(self) -> None:
        _number("the fraction to redistribute", self.fraction, 0.0, 1.0)
        source, target = key_set("source", self.source), key_set("target", self.target)
        if source.shape[1] != target.shape[1] or len({len(source), len(target)} - {1}) > 1:
            raise AttentionError(
                f"source and target speak of the same keys; got {list(self.source.shape)}, {list(self.target.shape)}"
            )
        if bool((source & target).any()):
            raise AttentionError("source and target of a redistribution must be disjoint; some keys are in both")

    def sets(self) -> tuple[Tensor, ...]:
        return (self.source, self.target)


@dataclass(frozen=True, eq=False)
class Blend(Edit):
    """Part of the pattern replaced by looking at the own key only, or at all visible keys alike."""

    stage: ClassVar[int] = 6
    to: Literal["identity", "uniform"]
    amount: float
    heads: tuple[int, ...] | None = None
    rows: Tensor | None = None

    def __post_init__(self) -> None:
        _number("the amount of a blend", self.amount, 0.0, 1.0)
        if self.to not in ("identity", "uniform"):
            raise AttentionError(f"a blend is with 'identity' or with 'uniform'; got {self.to!r}")

    @property
    def form(self) -> Form:
        return type(self), self.to

    def check(self, batch: int, heads: int, queries: int, keys: int) -> None:
        super().check(batch, heads, queries, keys)
        if self.to == "identity" and queries > keys:
            raise AttentionError(
                f"a blend to identity needs self-attention, where every query has its own key; got {queries} queries"
                f" and {keys} keys"
            )


@dataclass(frozen=True, eq=False)
class Gate(Edit):
    """Head outputs times `value` (one number, or a tensor [head], through which gradients flow)."""

    stage: ClassVar[int] = 7
    value: float | Tensor
    heads: tuple[int, ...] | None = None
    rows: Tensor | None = None

    def __post_init__(self) -> None:
        _number("a gate", self.value, -1e6, 1e6)


def in_stages(edits: Iterable[Edit] | Edit | None) -> tuple[Edit, ...]:
    """The edits in the order in which they act."""
    given = (edits,) if isinstance(edits, Edit) else tuple(edits or ())
    for edit in given:
        if not isinstance(edit, Edit):
            raise AttentionError(f"edits are interp.kernels.edits objects (Temperature, MaskKeys, ...); got {edit!r}")
        if not isinstance(getattr(edit, "stage", None), int):
            raise AttentionError(f"{type(edit).__name__} needs a stage, a whole number: when it acts among other edits")
    return tuple(sorted(given, key=lambda e: e.stage))


T = TypeVar("T", bound=Edit)


def only(edits: Iterable[Edit], kind: type[T]) -> tuple[T, ...]:
    """These edits, which are all of this class; an error that names the one that is not."""
    found = []
    for edit in edits:
        if not isinstance(edit, kind) or type(edit) is not kind:
            raise AttentionError(f"edit {said(edit.form)} is not a {kind.__name__}, the only one known here")
        found.append(edit)
    return tuple(found)


def per_head(value: float | Tensor, heads: Tensor, like: Tensor) -> float | Tensor:
    """A number, or one number per head of these as [1, head, 1, 1]."""
    if not isinstance(value, Tensor):
        return value
    return value.to(like)[heads].reshape(1, -1, 1, 1) if value.dim() else value.to(like)
