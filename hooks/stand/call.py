"""One attention call on its way through those who watch it, and what it says of itself.

Whatever the implementation, a call has q, k, v, a mask, a scale and, in some families, a soft cap, a bias, learned
sinks or a window; what its mask means depends on the implementation, and `visible` says it in symbols.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from threading import get_ident
from typing import Any

import torch
from torch import Tensor, nn

from interp.hooks.errors import EditError
from interp.hooks.stand.part import Part
from interp.hooks.stand.program import Standing
from interp.kernels.masks.symbols import Causal, Mask, Window
from interp.kernels.masks.symbols import Dense as DenseMask

REGISTRY = "diffusers:"
"""Before the name of a backend of diffusers', which is given q, k, v and a mask of the usual meaning."""


@dataclass
class Call:
    """One attention call on its way through the taps: q [b, head, i, d], k and v [b, kv head, j, d], z [b, i, head,
    d]."""

    module: nn.Module
    implementation: str
    function: Callable[..., tuple[Tensor, Tensor | None]]
    q: Tensor
    k: Tensor
    v: Tensor
    mask: Any
    arguments: dict[str, Any]
    rest: tuple[Any, ...] = ()
    mask_by_keyword: bool = False
    z: Tensor = field(default_factory=lambda: torch.empty(0))
    weights: Tensor | None = None
    programs: Sequence[Standing] = ()
    """What replaces heads' own softmax, once the taps have been asked."""
    heeded: bool = False
    """Whether z is that of the programs."""
    x: Tensor | None = None
    """What the layer's attention read [b, i, d], where an edit asks for it."""
    nth: int | None = None
    """The pass of its layer, where that runs several times in one call of the model."""

    @property
    def scale(self) -> float:
        """What q.k is multiplied by."""
        scaling = self.arguments.get("scaling")
        return self.q.shape[-1] ** -0.5 if scaling is None else float(scaling)

    @property
    def softcap(self) -> float | None:
        """Gemma-2's tanh bound on the scores."""
        return self.arguments.get("softcap")

    @property
    def bias(self) -> Tensor | None:
        """T5's additive position bias."""
        return self.arguments.get("position_bias")

    @property
    def sinks(self) -> Tensor | None:
        """gpt-oss' learned sink, one extra score per head."""
        found = self.arguments.get("s_aux")
        return found if found is not None else getattr(self.module, "sinks", None)

    @property
    def window(self) -> int | None:
        """The sliding window, where the kernel and not the mask applies it."""
        return self.arguments.get("sliding_window") if self.flash else None

    @property
    def flash(self) -> bool:
        """Whether the implementation takes a padding mask and applies causality itself."""
        return "flash" in self.implementation and not self.implementation.startswith(REGISTRY)

    @property
    def causal(self) -> bool:
        """Whether the implementation itself hides later keys, which it does only where no mask says what is visible."""
        if not self.flash and (self.mask is not None or self.implementation != "sdpa"):
            return False
        said = self.arguments.get("is_causal")
        causal = bool(getattr(self.module, "is_causal", True) if said is None else said)
        return causal and self.q.shape[2] > 1

    def attend(self) -> None:
        """Run the user's implementation on what the taps left in q, k, v."""
        mask = {"attention_mask": self.mask} if self.mask_by_keyword else {}
        args = () if self.mask_by_keyword else (self.mask, *self.rest)
        self.z, self.weights = self.function(self.module, self.q, self.k, self.v, *args, **mask, **self.arguments)

    def heed(self) -> None:
        """Say that z is that of the programs: each is told that it has acted."""
        self.heeded = True
        for standing in self.programs:
            standing.note()

    def refuse_programs(self, heads: Sequence[int]) -> None:
        """Raise for those who read the model's own softmax off q and k where heads attend otherwise."""
        found = next((s for s in self.programs if set(s.heads) & set(heads)), None)
        if found is not None:
            raise EditError(
                f"{found.what} changes how heads {list(found.heads)} attend, and what you ask for is computed from the"
                " model's own softmax: ask outside of that context, or record the pattern."
            )


class Tap:
    """What a watcher does with the calls of one module; nothing, where it does not say."""

    def __str__(self) -> str:
        """How errors name it."""
        return type(self).__name__.lstrip("_")

    thread: int | None = None
    """The thread whose calls it wants; None for those of every thread."""

    def live(self) -> bool:
        """Whether this tap wants the calls of the current thread."""
        return self.thread in (None, get_ident())

    def before(self, call: Call) -> None:
        """Change q, k, v."""

    def programs(self, call: Call) -> Sequence[Standing]:
        """What attends in the place of some heads' softmax, gathered from all taps and applied together."""
        return ()

    def attends(self) -> bool:
        """Whether it has a part in attending."""
        return False

    def attend(self, call: Call, inner: Callable[[], None]) -> None:
        """Set the call's z, where `attends`. `inner` does what would be done without this tap: those further in, and
        the model's own implementation with the programs. Who does not call it attends in the place of all of these."""
        inner()

    def after(self, call: Call) -> None:
        """Change z."""

    def record(self, call: Call) -> None:
        """Read what the model goes on with."""


class BorderTap(Tap):
    """A tap that can also stand at the borders of modules."""

    @property
    def differentiable(self) -> bool:
        """Whether what was recorded must be what the model goes on with, views included."""
        return False

    def border(self, component: str, value: Tensor) -> Tensor:
        """Change and record q, k or v as [b, position, head, d]."""
        return value


def part_of(call: Call, heads: Sequence[int]) -> Part:
    """What the call has of some heads, for those who read the model's own softmax; refused where it is not its own."""
    call.refuse_programs(heads)
    return received(call, heads)


def received(call: Call, heads: Sequence[int], where: Tensor | None = None, rows: Tensor | None = None) -> Part:
    """What the call has of some heads; keys and values are those of the call where the heads share them evenly."""
    index, whole = torch.tensor(heads, device=call.q.device), tuple(heads) == tuple(range(call.q.shape[1]))
    shared = _shared(heads, call.q.shape[1] // call.k.shape[1])
    every = shared == list(range(call.k.shape[1]))
    k, v = (x if every else _picked(x, shared) for x in (call.k, call.v))
    bias, sinks = call.bias, call.sinks
    return Part(
        call.q if whole else _picked(call.q, heads), k, v, visible(call, index), call.scale, call.softcap,
        bias if bias is None or bias.shape[1] == 1 else bias[:, index],
        None if sinks is None else sinks.flatten()[index], tuple(heads), where, rows,
    )  # fmt: skip


def _shared(heads: Sequence[int], group: int) -> list[int]:
    """The kv heads of some heads, each for as many heads in a row as the others; one per head where they are not."""
    runs = [(kv, len(list(some))) for kv, some in groupby(head // group for head in heads)]
    return [kv for kv, _ in runs] if len({size for _, size in runs}) == 1 else [head // group for head in heads]


def _picked(x: Tensor, heads: Sequence[int]) -> Tensor:
    """Some heads of [b, head, position, d], as a view where they are a run."""
    if list(heads) == list(range(heads[0], heads[0] + len(heads))):
        return x.narrow(1, heads[0], len(heads))
    return x.index_select(1, torch.tensor(heads, device=x.device))


def visible(call: Call, heads: Tensor | None = None) -> Mask | None:
    """What the call's mask, or the implementation in its place, lets each query see."""
    mask = call.mask
    keys = call.k.shape[2]
    parts: list[Mask] = []
    if torch.is_tensor(mask):
        mask = mask[:, None, None, :].bool() if mask.ndim == 2 and call.flash else mask
        mask = mask[None] if mask.ndim == 3 else mask
        mask = mask[..., :keys]
        parts.append(DenseMask(mask if heads is None or mask.ndim < 4 or mask.shape[1] == 1 else mask[:, heads]))
    elif mask is not None:
        parts.append(DenseMask(_from_block_mask(mask, call)))
    if call.causal:
        parts.append(Causal())
    if call.window is not None:
        parts.append(Window(call.window) if not call.causal else Causal() & Window(call.window))
    if not parts:
        return None
    found = parts[0]
    for other in parts[1:]:
        found = found & other
    return found


def _from_block_mask(mask: Any, call: Call) -> Tensor:
    if not hasattr(mask, "mask_mod"):
        raise EditError(
            f"cannot read a mask of type {type(mask).__name__} under the implementation {call.implementation!r}."
        )
    from torch.nn.attention.flex_attention import create_mask

    return create_mask(mask.mask_mod, call.q.shape[0], 1, call.q.shape[2], call.k.shape[2], device=call.q.device.type)


NUMBERS = 2**22
"""Numbers of a pattern that are in memory together."""


def row_chunks(call: Call) -> Iterator[Tensor]:
    """Query rows of a call, so many together that their patterns fit."""
    batch, heads, queries, _ = call.q.shape
    step = max(1, NUMBERS // max(1, batch * heads * call.k.shape[2]))
    yield from torch.arange(queries, device=call.q.device).split(step)
