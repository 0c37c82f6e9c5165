"""Questions to ask a model: one generator a file, each a function of (model, n) that returns a `Task`.

`interp.tasks.ioi(m, n=64, seed=0)`; without a model the rows are made from all built-in words, and `task.on(m)` checks
them later. `split="heldout"` draws from other names and templates.
"""

from __future__ import annotations

from interp.tasks.copy_colors import copy_colors
from interp.tasks.docstring import docstring
from interp.tasks.greater_than import greater_than
from interp.tasks.induction import induction
from interp.tasks.ioi import ioi
from interp.tasks.key_value import key_value
from interp.tasks.needle import needle
from interp.tasks.shapes import shapes
from interp.tasks.subject_verb import subject_verb

__all__ = [
    "copy_colors",
    "docstring",
    "greater_than",
    "induction",
    "ioi",
    "key_value",
    "needle",
    "shapes",
    "subject_verb",
]
