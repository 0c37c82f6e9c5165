"""interp: look inside attention heads, and change what they do, in any transformer.

Everything public is listed here and loaded when first used, so that `import interp` is quick.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

_HOME = {
    "attach": "interp.model",
    "load": "interp.load",
    "open": "interp.hooks.tape:open_tape",
    "Model": "interp.model",
    "Tape": "interp.hooks.tape",
    "Inputs": "interp.hooks.inputs",
    "Site": "interp.hooks.sites",
    "Family": "interp.hooks.family",
    "Projection": "interp.hooks.family",
    "Recipe": "interp.hooks.family",
    "register": "interp.hooks.family",
    "Set": "interp.hooks.edits",
    "Scale": "interp.hooks.edits",
    "Zero": "interp.hooks.edits",
    "Mean": "interp.hooks.edits",
    "Add": "interp.hooks.edits",
    "Project": "interp.hooks.edits",
    "MaskKeys": "interp.hooks.edits",
    "Temperature": "interp.hooks.edits",
    "BiasKeys": "interp.hooks.edits",
    "Emphasize": "interp.hooks.edits",
    "Redistribute": "interp.hooks.edits",
    "Blend": "interp.hooks.edits",
    "UniformAttention": "interp.hooks.edits",
    "InterpError": "interp.kernels.errors",
}
__version__ = "0.1.0"
__all__ = sorted(_HOME)  # noqa: PLE0605


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"interp has no {name!r}; it has {', '.join(__all__)}")
    module, _, renamed = _HOME[name].partition(":")
    return getattr(import_module(module), renamed or name)


def __dir__() -> list[str]:
    return __all__
