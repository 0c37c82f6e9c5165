"""Tile sizes and launch shapes of the Triton kernels, as data: where and when each was measured.

Chosen by head width, by whether a row needs more than its softmax (masses, distances, a top-k, edits of keys), and by
how many rows there are. None has been measured on a GPU; what is known is that each compiles without spilling
(`ahead.py`, which names the exceptions in fp32).
"""

from __future__ import annotations

from dataclasses import dataclass

from interp.kernels.errors import AttentionError


@dataclass(frozen=True)
class Configuration:
    """Tiles of `rows` x `keys` for heads up to `width`."""

    family: str
    heavy: bool
    width: int
    rows: int
    keys: int
    warps: int
    stages: int
    date: str = "2026-11-21"
    device: str = "not measured"


CONFIGURATIONS = (
    Configuration("forward", False, 64, 64, 64, 8, 3),
    Configuration("forward", False, 128, 64, 64, 8, 2),
    Configuration("forward", False, 256, 64, 32, 8, 2),
    Configuration("forward", True, 64, 64, 32, 8, 3),
    Configuration("forward", True, 128, 32, 32, 8, 2),
    Configuration("forward", True, 256, 32, 32, 8, 2),
    Configuration("decode", False, 64, 16, 64, 4, 3),
    Configuration("decode", False, 128, 16, 64, 4, 3),
    Configuration("decode", False, 256, 16, 32, 4, 2),
    Configuration("decode", True, 64, 16, 32, 4, 3),
    Configuration("decode", True, 128, 16, 32, 8, 3),
    Configuration("decode", True, 256, 16, 32, 4, 2),
    Configuration("sweep", False, 64, 64, 64, 8, 3),
    Configuration("sweep", False, 128, 64, 64, 8, 2),
    Configuration("sweep", False, 256, 64, 32, 8, 2),
    Configuration("sweep", True, 64, 32, 32, 8, 3),
    Configuration("sweep", True, 128, 32, 32, 8, 2),
    Configuration("sweep", True, 256, 32, 32, 8, 2),
    Configuration("backward", False, 64, 64, 32, 8, 3),
    Configuration("backward", False, 128, 64, 32, 8, 2),
    Configuration("backward", False, 256, 32, 32, 8, 2),
    Configuration("backward", True, 64, 64, 32, 8, 2),
    Configuration("backward", True, 128, 32, 32, 8, 2),
    Configuration("backward", True, 256, 16, 16, 8, 2),
    Configuration("backward in fp32", True, 64, 16, 32, 8, 2),
    Configuration("backward in fp32", True, 128, 16, 16, 8, 2),
    Configuration("backward in fp32", True, 256, 16, 16, 8, 2),
)
WIDEST = max(c.width for c in CONFIGURATIONS)


def configuration(family: str, width: int, rows: int, *, heavy: bool, exact: bool) -> Configuration:
    """The narrowest that holds the head; a forward of few rows is a decoding step. Products in fp32 (`exact`) take more
    registers.
    """
    wanted = "decode" if family == "forward" and rows <= 16 else family
    if exact:
        wanted, heavy = "backward in fp32" if family == "backward" else wanted, True
    fits = [c for c in CONFIGURATIONS if (c.family, c.heavy) == (wanted, heavy) and width <= c.width]
    if not fits:
        raise AttentionError(f"no configuration of {wanted!r} for heads {width} wide; the widest is {WIDEST}")
    return fits[0]
