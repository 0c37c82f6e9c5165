"""The encoders of a pipeline's words, each a model of its own with its own tower of heads."""

from __future__ import annotations

from typing import Any

from torch import nn

from interp.hooks.denoisers.pipelines import parts_of
from interp.hooks.errors import ModelError
from interp.model import Model, attach


def encoders(pipeline: Any) -> dict[str, Model]:
    """By their names in the pipeline (`text_encoder`, `text_encoder_2`, ...), held with the tokenizer of each."""
    parts = parts_of(pipeline)
    found = {
        name: attach(part, parts.get(name.replace("text_encoder", "tokenizer")))
        for name, part in parts.items()
        if name.startswith("text_encoder") and isinstance(part, nn.Module)
    }
    if not found:
        raise ModelError(f"{type(pipeline).__name__} has no text encoders: it has {', '.join(parts)}.")
    return found
