"""Softmaxes that a run computes outside of any attention call that is seen: heads that are not held, by name.

A model may attend in ways that no standpoint sees (deformable, block-sparse or windowed attention, a pooling head).
What is not held must be said, so while a model is traced every softmax of scores is noted with the module that ran:
over four axes, or three whose first is a batch times heads. Routers of experts and samplers have fewer axes; a softmax
that is multiplied, number by number, with a tensor of its own shape is a gate (PatchTSMixer) and weighs no places.
Limits: attention without a softmax (linear, Fourier, recurrent) is not noted.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from threading import get_ident
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

SOFTMAXES = (torch.softmax, F.softmax, Tensor.softmax)
PRODUCTS = (torch.mul, torch.multiply, Tensor.mul, Tensor.multiply, Tensor.__mul__, Tensor.__rmul__)


class Softmaxes(TorchFunctionMode):
    """Notes who computes them, while it is on."""

    def __init__(self, rows: int) -> None:
        super().__init__()
        self.rows, self.names = rows, dict[str, None]()
        self.running: list[str] = []
        self.whole = set[str]()
        """Those of `names` that called torch's function for all of multi-head attention."""
        self.ran = dict[str, None]()
        """Every module that was entered."""
        self._made: list[tuple[Tensor, str]] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        if self.running and (
            func is F.multi_head_attention_forward
            or (func in SOFTMAXES and torch.is_tensor(made) and self._of_scores(made))
        ):
            self.names[self.running[-1]] = None
            if func is F.multi_head_attention_forward:
                self.whole.add(self.running[-1])
            if torch.is_tensor(made):
                self._made.append((made, self.running[-1]))
        if func in PRODUCTS and len(args) == 2:
            self._gated(*args)
        return made

    def _gated(self, one: Any, other: Any) -> None:
        """Take back a softmax that turns out to be a gate."""
        for x, y in ((one, other), (other, one)):
            name = next((name for made, name in self._made if made is x), None)
            if name is not None and torch.is_tensor(y) and y.shape == x.shape:
                self.names.pop(name, None)

    def _of_scores(self, x: Tensor) -> bool:
        return x.ndim >= 4 or (x.ndim == 3 and len(x) > self.rows and len(x) % self.rows == 0)


@contextmanager
def noted(root: nn.Module, inputs: Mapping[str, Any]) -> Iterator[Softmaxes]:
    """Note the softmaxes of a run of `root` in this thread."""
    rows = next((len(x) for x in inputs.values() if torch.is_tensor(x) and x.ndim), 1)
    found, own = Softmaxes(rows), get_ident()
    with ExitStack() as undo:
        for name, module in root.named_modules():

            def enter(_: nn.Module, __: Any, name: str = name) -> None:
                if get_ident() == own:
                    found.running.append(name)
                    found.ran[name] = None

            def leave(_: nn.Module, __: Any, ___: Any) -> None:
                if get_ident() == own:
                    found.running.pop()

            undo.callback(module.register_forward_pre_hook(enter).remove)
            undo.callback(module.register_forward_hook(leave, always_call=True).remove)
        undo.enter_context(found)
        yield found
