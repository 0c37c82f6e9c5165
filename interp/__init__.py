"""interp: look inside attention heads, and change what they do, in any transformer.

Everything public is listed here and loaded when first used, so that `import interp` is quick.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import Any

_HOME = {
    "attach": "interp.model",
    "load": "interp.load",
    "patch": "interp.patch",
    "path_patch": "interp.path_patch",
    "direct_effect": "interp.direct_effect",
    "knockout": "interp.knockout",
    "lens": "interp.lens",
    "subspace": "interp.subspace",
    "das": "interp.das",
    "attribute": "interp.attribute",
    "key_spans": "interp.key_spans",
    "agree": "interp.agree",
    "relevance": "interp.relevance",
    "edges": "interp.edges",
    "acdc": "interp.acdc",
    "faithfulness": "interp.faithfulness",
    "retrieval_heads": "interp.retrieval_heads",
    "mask_heads": "interp.mask_heads",
    "query_heads": "interp.query_heads",
    "influence": "interp.influence",
    "infini_retrieve": "interp.infini_retrieve",
    "long_heads": "interp.long_heads",
    "gates": "interp.gates",
    "prune": "interp.prune",
    "sinks": "interp.sinks",
    "sink_knockout": "interp.sink_knockout",
    "act": "interp.act",
    "explore": "interp.explore",
    "head": "interp.head",
    "head_roles": "interp.head_roles",
    "head_circuits": "interp.head_circuits",
    "atlas": "interp.atlas",
    "importance": "interp.importance",
    "Importance": "interp.measures.table",
    "report": "interp.report",
    "experiment": "interp.reporting.experiment",
    "difference": "interp.reporting.difference",
    "Edges": "interp.circuits.edge_scores",
    "Circuit": "interp.circuit",
    "Faithfulness": "interp.circuits.judged",
    "Task": "interp.task",
    "Effects": "interp.results.effects",
    "Explorer": "interp.explore",
    "align": "interp.patching.alignment",
    "Average": "interp.patching.sources",
    "Noise": "interp.patching.sources",
    "open": "interp.opening:open_directory",
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
    "RouteHeads": "interp.hooks.route",
    "MaskKeys": "interp.hooks.edits",
    "Temperature": "interp.hooks.edits",
    "BiasKeys": "interp.hooks.edits",
    "Emphasize": "interp.hooks.edits",
    "Redistribute": "interp.hooks.edits",
    "Blend": "interp.hooks.edits",
    "UniformAttention": "interp.hooks.edits",
    "Calibrate": "interp.hooks.calibrate",
    "Streaming": "interp.hooks.calibrate",
    "InterpError": "interp.kernels.errors",
}
__version__ = "0.1.0"
_ROOMS = ("tasks", "metrics", "formats", "directions")
__all__ = sorted([*_HOME, *_ROOMS])


class _Public(ModuleType):
    """Keeps `interp.load` the call when the file of the same name is imported, which would put the file in its
    place."""

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in _HOME and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Public


def __getattr__(name: str) -> Any:
    if name in _ROOMS:
        return import_module(f"interp.{name}")
    if name not in _HOME:
        raise AttributeError(f"interp has no {name!r}; it has {', '.join(__all__)}")
    module, _, renamed = _HOME[name].partition(":")
    return getattr(import_module(module), renamed or name)


def __dir__() -> list[str]:
    return __all__
