"""The one place where we stand: transformers' attention call.

transformers (>= 5.1) sends the attention of nearly every architecture through `AttentionInterface.get_interface`,
which hands the layer a function `fn(module, q, k, v, mask, ...) -> (z, weights)`. While something watches, that
method is wrapped so that the function it returns passes calls of watched modules, and only those, through their taps.
The user's own implementation and its mask stay: nothing is registered under a new name, since a name without a mask
function loses the causal mask without a word. The method is put back when the last watcher leaves.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

MARK = "_interp_wrapper"


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
    edits: Sequence[Any] = ()
    """The attention edits of all taps, once they have been asked."""
    replaced: str = ""
    """Who made z by other weights than those of q and k, so that these are not what the model looked at."""

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
        return "flash" in self.implementation

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


class Tap:
    """What a watcher does with the calls of one module; nothing, where it does not say."""

    def live(self) -> bool:
        """Whether this tap wants the calls of the current thread."""
        return True

    def before(self, call: Call) -> None:
        """Change q, k, v."""

    def attention_edits(self, call: Call) -> Sequence[Any]:
        """Edits of the attention itself, gathered from all taps and applied together."""
        return ()

    def attends(self) -> bool:
        """Whether it attends in the place of the user's implementation."""
        return False

    def attend(self, call: Call) -> None:
        """Set the call's z, where `attends`."""

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


def through(call: Call, taps: Sequence[Tap]) -> tuple[Tensor, Tensor | None]:
    """Send one call through its taps, outermost first, and attend once between them."""
    from interp.hooks.stand.attention import apply

    for tap in taps:
        tap.before(call)
    call.edits = [edit for tap in taps for edit in tap.attention_edits(call)]
    own = next((tap for tap in taps if tap.attends()), None)
    apply(call, call.edits, None if own is None else functools.partial(own.attend, call))
    for tap in taps:
        tap.after(call)
    for tap in taps:
        tap.record(call)
    return call.z, call.weights


class Switch:
    """Who watches which module, and the wrapped method while anybody does.

    The wrapper hangs on transformers' class and the table on the wrapper, so that a module reloaded by autoreload finds
    and extends them instead of wrapping the wrapper. Where another library has wrapped the method since, ours stays
    underneath and passes everything through until the other one is gone: taking theirs off is not ours to do.
    """

    _lock = threading.RLock()

    @classmethod
    def watch(cls, module: nn.Module, tap: Tap) -> None:
        """Send the attention calls of `module` through `tap`."""
        with cls._lock:
            cls._installed().interp_taps.setdefault(id(module), []).append(tap)

    @classmethod
    def forget(cls, module: nn.Module, tap: Tap) -> None:
        """Undo `watch`; the last one out puts transformers' own method back."""
        with cls._lock:
            wrapper = cls._wrapper()
            if wrapper is None:
                return
            table = wrapper.interp_taps
            table[id(module)] = [other for other in table.get(id(module), []) if other is not tap]
            if not table[id(module)]:
                table.pop(id(module))
            if not table:
                cls._uninstall(wrapper)

    @classmethod
    def watched(cls) -> int:
        """How many modules are being watched in this process."""
        wrapper = cls._wrapper()
        return 0 if wrapper is None else len(wrapper.interp_taps)

    @staticmethod
    def _wrapper() -> Any:
        """Our wrapper, wherever it is among those of others; None while nobody watches."""
        from transformers.modeling_utils import AttentionInterface

        return AttentionInterface.__dict__.get(MARK)

    @classmethod
    def _installed(cls) -> Any:
        from transformers.modeling_utils import AttentionInterface

        wrapper = cls._wrapper()
        if wrapper is None:
            wrapper = _wrapped(AttentionInterface.get_interface)
            AttentionInterface.get_interface = wrapper
            setattr(AttentionInterface, MARK, wrapper)
        return wrapper

    @staticmethod
    def _uninstall(wrapper: Any) -> None:
        from transformers.modeling_utils import AttentionInterface

        if AttentionInterface.get_interface is wrapper:
            AttentionInterface.get_interface = wrapper.interp_original
            delattr(AttentionInterface, MARK)


def _wrapped(original: Callable[..., Any]) -> Callable[..., Any]:
    taps_of: dict[int, list[Tap]] = {}

    @functools.wraps(original)
    def get_interface(self: Any, attn_implementation: str, default: Callable[..., Any]) -> Callable[..., Any]:
        function = original(self, attn_implementation, default)

        @functools.wraps(function)
        def call(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> Any:
            taps = [tap for tap in taps_of.get(id(module), ()) if tap.live()]
            if not taps:
                return function(module, query, key, value, *args, **kwargs)
            by_keyword = "attention_mask" in kwargs
            mask = kwargs.pop("attention_mask") if by_keyword else args[0] if args else None
            return through(
                Call(module, str(attn_implementation), function, query, key, value, mask, kwargs, args[1:], by_keyword),
                taps,
            )

        return call

    get_interface.interp_taps = taps_of  # type: ignore[attr-defined]
    get_interface.interp_original = original  # type: ignore[attr-defined]
    return get_interface
