"""From the end of a tower to the logits: the final norm as said, then the model's own head.

`norm="final"` is the model's norm with each vector's own statistics, `"frozen"` holds the scale that the run's last
residual had at that position (then a sum of vectors gives the sum of their logits), `"none"` leaves it out. Where the
logits of a position depend on that position alone only the positions and columns that are read are computed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from interp.hooks.anatomy.norms import Frozen, frozen, identity
from interp.hooks.anatomy.towers import Anatomy, Tower
from interp.hooks.drive.readout import Readout
from interp.hooks.drive.recording import Recording
from interp.hooks.errors import ModelError
from interp.hooks.stand.output import logits_of
from interp.hooks.stand.ports import stand_at

if TYPE_CHECKING:
    from interp.hooks.drive.sweep import Reads

How = Literal["final", "frozen", "none"]


def last_tower(anatomy: Anatomy, name: str | None) -> Tower:
    """The tower whose last residual makes the logits: the main one, else a decoder's, the text's, or the only one."""
    known = [anatomy.main, "decoder", "text", *(anatomy.towers if len(anatomy.towers) == 1 else ())]
    last = next((one for one in known if one in anatomy.towers), None)
    if last is None:
        raise ModelError(f"none of the towers {', '.join(anatomy.towers)} is known to make the logits.")
    if name is not None and anatomy.tower(name, text=name).name != last:
        raise ModelError(f"the tower {name!r} has no direct way to the logits: they are made from the tower {last!r}.")
    return anatomy.towers[last]


class Tail:
    """The final norm and the head of one run, for other residuals [row, position, d] in the place of its last."""

    def __init__(
        self, module: nn.Module, tower: Tower, kwargs: Mapping[str, Any], *, left: Tensor, logits: Tensor
    ) -> None:
        self.module, self.tower, self.left = module, tower, left
        self.readout = Readout(module, tower, Recording(tower, (), left, logits), kwargs)
        self.readout.norm = None

    @property
    def norm(self) -> Callable[[Tensor], Tensor] | None:
        """The model's final norm."""
        port = self.tower.final_norm
        return None if port is None else self.module.get_submodule(port.module)

    @cached_property
    def frozen(self) -> Frozen:
        """The final norm as the linear map that it was in the run."""
        return identity(self.left) if self.norm is None else frozen(self.norm, self.left, name="the final norm")

    def normed(self, hidden: Tensor, how: How, prompts: Tensor | None = None) -> Tensor:
        """Residuals after the final norm; `prompts` says of which rows of the run they are versions."""
        if how == "none" or self.norm is None:
            return hidden
        if how == "final":
            return self.norm(hidden)
        return (self.frozen if prompts is None else self.frozen.at(prompts))(hidden)

    def logits(self, normed: Tensor, reads: Reads, prompts: Tensor | None = None) -> Tensor:
        """The logits that are read [row, read, column], for what comes out of the final norm."""
        prompts = torch.arange(len(normed)) if prompts is None else prompts
        at = reads.positions[prompts]
        rows = torch.arange(len(at))[:, None]
        if self.readout.by_position:
            return self.readout.read(normed[rows, at], reads.columns)
        whole = self._whole(normed, prompts)
        found = whole[:, None] if whole.ndim == 2 else whole[rows, at]
        return found if reads.columns is None else found[..., list(reads.columns)]

    def _whole(self, normed: Tensor, prompts: Tensor) -> Tensor:
        port = self.tower.final_norm
        if port is None:
            return self.readout.whole(normed, prompts)
        with ExitStack() as undo:
            undo.callback(stand_at(self.module, port, lambda _: normed, batch=lambda: None).remove)
            if self.tower.layers[-1].ports["resid_post"].key is None:
                return self.readout.whole(self.left[prompts], prompts)
            return self._in_full(prompts)

    def _in_full(self, prompts: Tensor) -> Tensor:
        """Blocks that return more than the residual cannot step aside, so they run."""
        count = len(self.left)
        kwargs = {
            name: value[prompts] if torch.is_tensor(value) and len(value) == count else value
            for name, value in self.readout.kwargs.items()
        }
        logits = logits_of(self.module(**kwargs))
        assert logits is not None
        return logits
