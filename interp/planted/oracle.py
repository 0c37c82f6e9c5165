"""Ablating and patching a planted model with nothing but torch hooks: the check of the answer keys, and of the toolkit.

A head's output z is its slice of the output projection's input. `zero` sets it to zero, `put` replaces it by that of
another run, `record` keeps it (and its gradient, if asked). Shares no code with the hook layer, on purpose.
Cost: one forward pass a call. Limits: the planted models only; the metric is the logit difference of a probe.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from interp.hooks.head_names import head_place
from interp.planted.answers import Probe
from interp.planted.pictures import draw

Change = Callable[[Tensor], Tensor]
STACKS: dict[str, tuple[str, str]] = {
    "GPT2LMHeadModel": ("transformer.h.{layer}.attn.c_proj", ""),
    "ViTForImageClassification": ("vit.layers.{layer}.attention.o_proj", ""),
    "text": ("model.language_model.layers.{layer}.self_attn.o_proj", "text_config"),
    "vision": ("model.vision_tower.encoder.layers.{layer}.self_attn.out_proj", "vision_config"),
}


def locate(model: nn.Module, site: str) -> tuple[nn.Module, slice]:
    """The output projection and the slice of its input that belong to a head."""
    tower, layer, index = head_place(site)
    path, part = STACKS[tower or type(model).__name__]
    config: Any = getattr(model.config, part) if part else model.config
    d_head = config.hidden_size // config.num_attention_heads
    return model.get_submodule(path.format(layer=layer)), slice(index * d_head, (index + 1) * d_head)


@contextmanager
def changed(model: nn.Module, changes: Mapping[str, Change]) -> Iterator[None]:
    """Apply a change to each head's z while the context lasts."""
    handles = []
    for site, change in changes.items():
        projection, here = locate(model, site)

        def before(_: nn.Module, args: tuple[Any, ...], here: slice = here, change: Change = change) -> tuple[Any, ...]:
            z = args[0].clone()
            z[..., here] = change(args[0][..., here])
            return (z, *args[1:])

        handles.append(projection.register_forward_pre_hook(before))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def inputs(processor: Any, probe: Probe) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """What the model is called with for the clean and the corrupt side."""
    sides = ((probe.clean, probe.clean_picture), (probe.corrupt, probe.corrupt_picture))
    clean, corrupt = (
        dict(
            processor(
                **({"text": text} if text else {}),
                **({"images": draw(picture)} if picture else {}),
                return_tensors="pt",
            )
        )
        for text, picture in sides
    )
    return clean, corrupt


def difference(model: nn.Module, processor: Any, probe: Probe, kwargs: Mapping[str, Tensor]) -> Tensor:
    """Logit of the answer minus logit of the wrong answer: last position, or the class logits."""
    logits = model(**kwargs).logits[0]
    right, wrong = (_label(model, processor, word) for word in (probe.answer, probe.wrong))
    final = logits[-1] if logits.ndim == 2 else logits
    return final[right] - final[wrong]


def _label(model: Any, processor: Any, word: str) -> int:
    if word in (getattr(model.config, "label2id", None) or {}):
        return int(model.config.label2id[word])
    inner = getattr(processor, "tokenizer", processor)
    (token,) = inner(word, add_special_tokens=False)["input_ids"]
    return int(token)


def record(
    model: nn.Module, sites: Sequence[str], run: Callable[[], Tensor]
) -> tuple[float, dict[str, Tensor], dict[str, Tensor]]:
    """The metric, each head's z, and the metric's gradient by it."""
    kept: dict[str, Tensor] = {}

    def keep(site: str) -> Change:
        def change(z: Tensor) -> Tensor:
            kept[site] = z if z.requires_grad else z.requires_grad_()
            return kept[site]

        return change

    with changed(model, {site: keep(site) for site in sites}), torch.enable_grad():
        value = run()
        gradients = torch.autograd.grad(value, list(kept.values()), allow_unused=True)
    zeros = (torch.zeros_like(z) if g is None else g for g, z in zip(gradients, kept.values(), strict=True))
    return value.item(), {site: z.detach() for site, z in kept.items()}, dict(zip(kept, zeros, strict=True))


def zero(z: Tensor) -> Tensor:
    """Nothing."""
    return torch.zeros_like(z)


def put(value: Tensor) -> Change:
    """Another run's z."""
    return lambda z: value
