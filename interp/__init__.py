"""interp: look inside attention heads, and change what they do, in any transformer.

Names of daily use are here, the rest in rooms (`interp.long.influence`). Everything is loaded when first used, so
that `import interp` is quick.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

_HOME = {
    "attach": "interp.model",
    "load": "interp.loading.load",
    "open": "interp.opening:open_directory",
    "Model": "interp.model",
    "Tape": "interp.hooks.run.tape",
    "Inputs": "interp.hooks.inputs.inputs",
    "Site": "interp.hooks.sites",
    "Task": "interp.tasks.task",
    "compare": "interp.tasks.own",
    "InterpError": "interp.kernels.errors",
    "Set": "interp.edits",
    "Scale": "interp.edits",
    "Zero": "interp.edits",
    "Mean": "interp.edits",
    "Add": "interp.edits",
    "Apply": "interp.edits",
    "MaskKeys": "interp.edits",
    "Blend": "interp.edits",
    "patch": "interp.patching",
    "path_patch": "interp.patching",
    "lens": "interp.patching",
    "attribute": "interp.attribution",
    "relevance": "interp.attribution",
    "edges": "interp.circuits",
    "Circuit": "interp.circuits",
    "faithfulness": "interp.circuits",
    "head": "interp.heads",
    "head_roles": "interp.heads",
    "importance": "interp.heads",
    "prune": "interp.pruning",
    "sinks": "interp.sink",
    "retrieval_heads": "interp.long",
    "explore": "interp.explorer",
    "report": "interp.reporting",
}
_ROOMS = (
    "attribution", "circuits", "diffusion", "directions", "edits", "explorer", "families", "figures", "forgetting",
    "formats", "heads", "long", "metrics", "operators", "patching", "reporting", "robustness", "scale", "sink",
    "tasks", "vision",
)  # fmt: skip
_MOVED = {
    **dict.fromkeys(("Average", "Noise", "align", "direct_effect", "knockout", "Effects"), "patching"),
    **dict.fromkeys(("agree", "key_spans"), "attribution"),
    **dict.fromkeys(("acdc", "Edges", "Faithfulness"), "circuits"),
    **dict.fromkeys(("das", "subspace"), "directions"),
    **dict.fromkeys(("head_circuits", "atlas", "gates", "Importance"), "heads"),
    **dict.fromkeys(("sink_knockout", "act"), "sink"),
    **dict.fromkeys(("mask_heads", "query_heads", "influence", "infini_retrieve", "long_heads"), "long"),
    **dict.fromkeys(("experiment", "difference"), "reporting"),
    **dict.fromkeys(("Family", "Projection", "Recipe", "register"), "families"),
    **dict.fromkeys(("Project", "Temperature", "BiasKeys", "Emphasize", "Redistribute"), "edits"),
    **dict.fromkeys(("UniformAttention", "RouteHeads", "Calibrate", "Streaming"), "edits"),
    "Explorer": "explorer",
}
"""Names that were in `interp` in version 0.1, and the room that has them now."""
__version__ = "0.2.0"
__all__ = sorted([*_HOME, *_ROOMS])


def __getattr__(name: str) -> Any:
    if name in _ROOMS:
        return import_module(f"interp.{name}")
    if name in _MOVED:
        raise AttributeError(
            f"interp.{name} is interp.{_MOVED[name]}.{name} now, since version 0.2. This hint stays until version 1.0."
        )
    if name not in _HOME:
        raise AttributeError(f"interp has no {name!r}; it has {', '.join(__all__)}")
    module, _, renamed = _HOME[name].partition(":")
    return getattr(import_module(module), renamed or name)


def __dir__() -> list[str]:
    return __all__
