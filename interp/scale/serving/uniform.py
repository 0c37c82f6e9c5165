"""Heads that attend to every key they see alike, in an engine whose own attention cannot be told so.

Where every visible key weighs the same, z is a mean of values, and needs neither queries nor keys:

    z_i = (1 / n_i) sum of v_j over the n_i keys that row i sees,    n_i = min(i + 1, window)

With C_i = v_0 + ... + v_i that is C_i / (i + 1), and (C_i - C_{i-w}) / n_i in a window of w keys. A prompt comes in
chunks, so the last C of a chunk (of a windowed layer, the last w of them) are kept for the next one. Sums are float64.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from interp.scale.serving.packed import PackedError


class Running:
    """The sums of one request's values in one layer, as far as its tokens have run."""

    def __init__(self, window: int | None) -> None:
        self.window = window
        self.sums: Tensor | None = None
        """C of the last positions, [kv, window or 1, d]; 0 before the first one."""
        self.length = 0

    def means(self, v: Float[Tensor, "kv n d"], start: int) -> Float[Tensor, "kv n d"]:
        """For the rows at `start` and after, whose values these are, the mean of what each sees."""
        if start == 0:  # also a request that was preempted, and comes once more
            self.sums = v.new_zeros(v.shape[0], self.window or 1, v.shape[2], dtype=torch.float64)
        elif self.sums is None or start != self.length:
            raise PackedError(f"values of tokens {self.length} to {start - 1} of a request did not run in this engine.")
        assert self.sums is not None
        every = torch.cat([self.sums, self.sums[:, -1:] + v.double().cumsum(1)], dim=1)
        self.sums, self.length = every[:, -self.sums.shape[1] :].clone(), start + v.shape[1]
        seen = torch.arange(start + 1, self.length + 1, device=v.device, dtype=torch.float64)[:, None]
        now = every[:, -v.shape[1] :]
        if self.window is None:
            return (now / seen).to(v.dtype)
        return ((now - every[:, : v.shape[1]]) / seen.clamp(max=self.window)).to(v.dtype)
