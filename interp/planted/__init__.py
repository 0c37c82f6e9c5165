"""Models whose weights were set by hand, so that every circuit in them is known; `build(name)` and `key(name)`."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from interp.kernels.errors import InterpError

if TYPE_CHECKING:
    from interp.planted.answers import AnswerKey

WHOLE = {"planted-decoder": "decoder", "planted-vit": "vit", "planted-lvlm": "lvlm"}
GATES = ("planted-and", "planted-or", "planted-backup", "planted-cancel", "planted-saturated")
NAMES = (*WHOLE, *GATES)


def _known(name: str) -> str:
    if name not in NAMES:
        raise InterpError(f"expected a planted model among {', '.join(NAMES)}, got {name!r}")
    return name


def build(name: str) -> tuple[Any, Any]:
    """The model and its tokenizer or processor, made anew from code."""
    if _known(name) in WHOLE:
        module, processor = import_module(f"interp.planted.{WHOLE[name]}").build()
        return module, processor
    from interp.planted.gates import build as build_gate

    return build_gate(name)


def key(name: str) -> AnswerKey:
    """What is known about the model."""
    if _known(name) in WHOLE:
        answer: AnswerKey = import_module(f"interp.planted.{WHOLE[name]}").KEY
        return answer
    from interp.planted.gates import GATES as built

    return built[name][1]
