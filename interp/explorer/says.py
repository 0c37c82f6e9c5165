"""Which tokens a head speaks for and against at the end of an example: its share of the logits, the final norm held at
the scale it had in the run, without biases and less its mean over the vocabulary."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from interp.hooks.drive.sweep import Reads
from interp.hooks.drive.tail import Tail, last_tower
from interp.hooks.errors import ModelError
from interp.hooks.head_names import head_name
from interp.hooks.inputs.inputs import Inputs
from interp.hooks.run.writes import spelled
from interp.hooks.sites import Site
from interp.hooks.stand.ports import head_results

if TYPE_CHECKING:
    from interp.model import Model

SAID = 5


def says(model: Model, x: Inputs, *, row: int = 0) -> dict[str, dict[str, list[tuple[str, float]]]]:
    """By head of the tower that makes the logits; nothing for models without tokens or without a head."""
    tower = _speaks(model)
    if tower is None or x.tokens is None:
        return {}
    name = spelled(model.anatomy, tower)
    layers = [layer for layer in tower.layers if layer.kind == "self" and layer.out is not None]
    sites = [Site(name, layer.index, "z") for layer in layers]
    end = Site(name, tower.layers[-1].index, "resid_post")
    tape = model.run(x, record=[*sites, end])
    if "logits" not in tape:
        return {}
    logits = tape["logits"]
    if logits.ndim != 3:
        return {}
    reads = Reads(x.mask("last").cpu().nonzero()[:, 1:], None)
    tail = Tail(model.module, tower, model.called_with(x.kwargs), left=tape[end], logits=logits)

    def said(result: Tensor) -> Tensor:
        parts = tail.frozen.linear(result.reshape(tail.left.shape)).to(tail.left.dtype)
        return tail.logits(parts, reads)[row, 0].float().cpu()

    with torch.no_grad():
        nothing = said(torch.zeros_like(tail.left))
    found = {}
    for site, layer in zip(sites, layers, strict=True):
        assert layer.out is not None
        for head in range(layer.heads):
            with torch.no_grad():
                result = head_results(model.module.get_submodule(layer.out), tape[site], (head,))[:, :, 0]
                share = said(result) - nothing
            found[head_name(name, layer.index, head)] = _ends(model, share - share.mean())
    return found


def _speaks(model: Model) -> Any:
    if not hasattr(model.tokenizer, "convert_ids_to_tokens"):
        return None
    try:
        return last_tower(model.anatomy, None)
    except ModelError:
        return None


def _ends(model: Model, share: Tensor) -> dict[str, list[tuple[str, float]]]:
    def named(found: Any) -> list[tuple[str, float]]:
        pairs = zip(found.values.tolist(), found.indices.tolist(), strict=True)
        return [(str(model.tokenizer.decode([index])), value) for value, index in pairs]

    count = min(SAID, len(share))
    low = (-share).topk(count)
    return {"promotes": named(share.topk(count)), "suppresses": [(text, -value) for text, value in named(low)]}
