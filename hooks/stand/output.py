"""What a module returns: the tensor that it is about, a model's answer in it, both read and replaced."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass, replace
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn

from interp.hooks.errors import ModelError, SiteError
from interp.hooks.sites import Site

_LONGER: weakref.WeakSet[nn.Module] = weakref.WeakSet()
"""Models whose traced call had logits for other positions than those of its ids."""
ANSWERS = ("logits", "logits_per_image", "sample")
"""What models call their answer; `sample` is a denoiser's."""


@dataclass(frozen=True, eq=False)
class AnswerPlace:
    """What a module answers with for now: a site, a named output, or (no name) its logits again."""

    module: nn.Module
    name: str | None
    site: Site | None


class _Stack(threading.local):
    def __init__(self) -> None:
        self.answers: list[AnswerPlace] = []


_STACK = _Stack()


def answers() -> list[AnswerPlace]:
    """What models answer with in this thread, the innermost last (`hooks/run/answer.py` puts them there)."""
    return _STACK.answers


def answer_of(module: nn.Module) -> AnswerPlace | None:
    """What a module answers with, where that is not its logits."""
    found = next((one for one in reversed(_STACK.answers) if one.module is module), None)
    return None if found is None or found.name is None else found


def no_logits(module: nn.Module) -> ModelError:
    """What to say of a model that has none."""
    return ModelError(
        f"{type(module).__name__} has no logits to measure: load it with a head, or give a metric that reads what it"
        " has, such as interp.metrics.Similarity('final_norm', pool='mean')."
    )


def logits_of(output: Any) -> Tensor | None:
    """The answer in what a model returns; None for a base model, which has none."""
    for name in ANSWERS:
        if torch.is_tensor(found := getattr(output, name, None)):
            return found
    return output if torch.is_tensor(output) else None


def logits_key(output: Any) -> str | int | None:
    """Where a model's answer is in what it returns."""
    if torch.is_tensor(output):
        return None
    for key in ANSWERS:
        if getattr(output, key, None) is not None:
            return key
    if isinstance(output, (tuple, list)) and output and torch.is_tensor(output[0]):
        return 0
    raise SiteError(
        f"{type(output).__name__} has no logits: load the model with a head (ForCausalLM, ForImageClassification,"
        " ...), or record 'final_norm' instead; interp.metrics.Similarity reads such places."
    )


def with_logits(output: Any, key: str | int | None, logits: Tensor) -> Any:
    """The output with other logits where `logits_key` found them."""
    if isinstance(key, int):
        return (*output[:key], logits, *output[key + 1 :])
    return logits if key is None else replace(output, **{key: logits})


def outer_tensor(output: Any) -> tuple[int | str | None, Tensor]:
    """The tensor a module's output is about: itself, the first of a tuple, or the first field of an output class."""
    if torch.is_tensor(output):
        return None, output
    if isinstance(output, (tuple, list)) and output and torch.is_tensor(output[0]):
        return 0, output[0]
    if isinstance(output, Mapping) and output:
        key = next(iter(output))
        if torch.is_tensor(output[key]):
            return key, output[key]
    return None, torch.empty(0)


def exchanged(output: Any, key: int | str | None, made: Tensor) -> Any:
    """The output with another tensor where `outer_tensor` found one."""
    if key is None:
        return made
    if isinstance(output, MutableMapping):
        output[key] = made
        return output
    changed = list(output)
    changed[int(key)] = made
    make = getattr(output, "_make", tuple)  # of tuples whose entries have names (Reformer)
    new: Any = make(changed)
    return new


def note_length(module: nn.Module, inputs: Mapping[str, Any], output: Any) -> None:
    """Remember of a traced call whether there are logits for other positions than those of its ids (GIT puts a picture
    before its words)."""
    logits, ids = logits_of(output), inputs.get("decoder_input_ids", inputs.get("input_ids"))
    if logits is not None and ids is not None and logits.ndim == 3 and logits.shape[1] != ids.shape[-1]:
        _LONGER.add(module)


def keeps_columns(module: nn.Module) -> bool:
    """Whether the model can be asked for the logits of some columns of its inputs."""
    return "logits_to_keep" in signature(module.forward).parameters and module not in _LONGER
