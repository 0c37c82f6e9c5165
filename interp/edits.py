"""Every edit there is, in one place: `from interp.edits import Calibrate`. Those of daily use are at the root
too."""

from __future__ import annotations

from interp.hooks.edits.calibrate import Calibrate, Streaming
from interp.hooks.edits.edits import (
    Add,
    BiasKeys,
    Blend,
    Emphasize,
    MaskKeys,
    Mean,
    Project,
    Redistribute,
    Scale,
    Set,
    Temperature,
    UniformAttention,
    Zero,
)
from interp.hooks.edits.functions import Apply, Program
from interp.hooks.edits.perturb import SoftIdentity
from interp.hooks.edits.refocus import Refocus
from interp.hooks.edits.route import MixHeads, RouteHeads

__all__ = [
    "Add",
    "Apply",
    "BiasKeys",
    "Blend",
    "Calibrate",
    "Emphasize",
    "MaskKeys",
    "Mean",
    "MixHeads",
    "Program",
    "Project",
    "Redistribute",
    "Refocus",
    "RouteHeads",
    "Scale",
    "Set",
    "SoftIdentity",
    "Streaming",
    "Temperature",
    "UniformAttention",
    "Zero",
]
