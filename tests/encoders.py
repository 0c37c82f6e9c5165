"""Tiny random models without a head, and their final vectors and heads' writes by plain torch."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
import transformers
from torch import Tensor

import interp
from interp.zoo.families import stir

SMALL = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4}
TEXT = {**SMALL, "vocab_size": 160, "max_position_embeddings": 64, "hidden_act": "gelu"}
END = 3
VISION = {**SMALL, "image_size": 24, "patch_size": 8}
BUILT: dict[str, Callable[[], Any]] = {
    "bert": lambda: transformers.BertModel(transformers.BertConfig(**TEXT)),
    "gpt2": lambda: transformers.GPT2Model(
        transformers.GPT2Config(vocab_size=160, n_embd=32, n_layer=3, n_head=4, n_positions=64)
    ),
    "vit": lambda: transformers.ViTModel(transformers.ViTConfig(**VISION)),
    "dinov2": lambda: transformers.Dinov2Model(transformers.Dinov2Config(**VISION)),
    "clip_text": lambda: transformers.CLIPTextModelWithProjection(
        transformers.CLIPTextConfig(**TEXT, projection_dim=16, eos_token_id=END, bos_token_id=2)
    ),
    "clip_vision": lambda: transformers.CLIPVisionModelWithProjection(
        transformers.CLIPVisionConfig(**VISION, projection_dim=16)
    ),
}


@cache
def headless(name: str) -> interp.Model:
    """A tiny random model. Shared: a test that changes it builds its own."""
    return interp.attach(built(name))


@cache
def many_patches() -> interp.Model:
    """A tiny feature extractor that reads 256 patches and a class token, with the processor of shapes."""
    config = transformers.Dinov2Config(**SMALL, image_size=48, patch_size=3)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = transformers.Dinov2Model(config)
        stir(module)
    return interp.attach(module.eval(), interp.load("zoo:shapes-vit").processor)


def built(name: str, seed: int = 0) -> Any:
    """The module, in eval mode."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = BUILT[name]()
        stir(module)
    return module.eval()


def pairs(name: str, *, padded: bool = True) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Two batches of three that differ in part: texts of several lengths, or pictures."""
    draw = torch.Generator().manual_seed(1)
    if name in ("vit", "dinov2", "clip_vision"):
        one, two = torch.randn(2, 3, 3, 24, 24, generator=draw)
        two[..., 12:, :] = one[..., 12:, :]
        return {"pixel_values": one}, {"pixel_values": two}
    ids = torch.randint(5, 150, (3, 9), generator=draw)
    other = ids.clone()
    other[:, 2:4] = torch.randint(5, 150, (3, 2), generator=draw)
    mask = torch.ones_like(ids)
    if padded:
        mask[1, 6:], mask[2, 7:] = 0, 0
    ends = (mask.sum(1) - 1)[:, None]
    ids, other = (one.scatter(1, ends, END) for one in (ids, other))
    return {"input_ids": ids, "attention_mask": mask}, {"input_ids": other, "attention_mask": mask}


def final(module: Any, x: dict[str, Tensor]) -> Tensor:
    """The last hidden states, by the model's own word."""
    with torch.no_grad():
        found: Tensor = module(**x).last_hidden_state
    return found


def mean(hidden: Tensor, x: dict[str, Tensor]) -> Tensor:
    """One vector a row: the mean over real tokens, in float64."""
    mask = x.get("attention_mask", torch.ones(hidden.shape[:2])).double()
    return torch.stack([(h.double() * m[:, None]).sum(0) / m.sum() for h, m in zip(hidden, mask, strict=True)])


def projection(module: Any, layer: int) -> Any:
    """The output projection of a layer's attention, whose input is z."""
    if hasattr(module, "h"):
        return module.h[layer].attn.c_proj
    blocks = module.encoder.layer if hasattr(module, "encoder") else module.layers
    attention = blocks[layer].attention
    return attention.output.dense if hasattr(attention, "output") else attention.o_proj


def patched_by_hand(
    module: Any, layer: int, head: int, x: dict[str, Tensor], y: dict[str, Tensor], *, width: int = 8
) -> Tensor:
    """The last hidden states of x with one head's z from y, by plain hooks."""
    columns, held = slice(head * width, head * width + width), {}

    def keep(_: Any, inputs: tuple[Tensor, ...]) -> None:
        held["z"] = inputs[0][..., columns].clone()

    def put(_: Any, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        changed = inputs[0].clone()
        changed[..., columns] = held["z"]
        return (changed,)

    out = projection(module, layer)
    for one, hook in ((y, keep), (x, put)):
        handle = out.register_forward_pre_hook(hook)
        hidden = final(module, one)
        handle.remove()
    return hidden
