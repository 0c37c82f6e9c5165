"""Calls for models that take the parts of something: what other models have made of pictures or words, the steps of a
player, a picture with an example that was solved, patches with their place written into them.

Limits: noise, in the widths that the config says; which of them a model takes is tried on the model (`tried`).
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn

from interp.hooks.examples.joined import Call
from interp.hooks.examples.sizes import number, pictures, with_inner
from interp.hooks.pictures.asked import Ask

MANY = 6
"""Patches, regions or steps an example."""


def parts(ask: Ask) -> Iterator[Call]:
    """Calls to be tried."""
    if {"states", "actions", "returns_to_go"} <= ask.accepts:
        yield _played(ask)
    if "flattened_patches" in ask.accepts:
        yield _flattened(ask)
    if {"visual_feats", "visual_pos"} <= ask.accepts:
        yield _regions(ask)
    if "query_embeds" in ask.accepts:
        yield from _queries(ask)
    if "prompt_pixel_values" in ask.accepts:  # the two are put one above the other
        half = pictures(ask).shape[2] // 2
        yield {name: pictures(ask)[:, :, :half] for name in ("pixel_values", "prompt_pixel_values", "prompt_masks")}
    if "task_inputs" in ask.accepts:
        length = number(ask.config, "task_seq_len", otherwise=ask.length)
        yield {"pixel_values": pictures(ask), "task_inputs": ask.noise(ask.batch, length)}
    if "inputs_embeds" in ask.accepts and "input_ids" not in ask.accepts:
        for config in with_inner(ask.config):
            if isinstance(width := getattr(config, "hidden_size", None), int):
                yield {"inputs_embeds": ask.noise(ask.batch, ask.length, width)}
    if "noise_embeds" in ask.accepts:
        width = number(ask.config, "hidden_size", otherwise=1)
        sizes = (part.in_features for part in ask.module.modules() if isinstance(part, nn.Linear))
        for size in dict.fromkeys(size for size in sizes if size >= width and size % width == 0):
            noise, context = (ask.noise(ask.batch, ask.length, some) for some in (width, size))
            yield {"noise_embeds": noise, "context_hidden_states": context}


def _played(ask: Ask) -> Call:
    """Steps of a game: what was seen, done and won at each, and what is still to win."""
    b, steps = ask.batch, MANY
    return {
        "states": ask.noise(b, steps, number(ask.config, "state_dim", otherwise=17)),
        "actions": ask.noise(b, steps, number(ask.config, "act_dim", otherwise=4)),
        "rewards": ask.noise(b, steps, 1),
        "returns_to_go": ask.noise(b, steps, 1),
        "timesteps": torch.arange(steps).expand(b, -1),
        "attention_mask": torch.ones(b, steps, dtype=torch.long),
    }


def _flattened(ask: Ask) -> Call:
    """Patches as rows of numbers, of which the first two say the patch's row and column, counted from one."""
    values = number(ask.config, "patch_embed_hidden_size", otherwise=768)
    patches = ask.noise(ask.batch, MANY, 2 + values)
    patches[..., 0] = torch.tensor([1.0] * (MANY // 2) + [2.0] * (MANY - MANY // 2))
    patches[..., 1] = torch.arange(MANY) % (MANY // 2) + 1.0
    return {"flattened_patches": patches, "attention_mask": torch.ones(ask.batch, MANY)}


def _regions(ask: Ask) -> Call:
    """Words, and regions that a detector has found, with where they are."""
    ids, mask = ask.stack([ask.draw(count) for count in ask.lengths(ask.length)], ask.length)
    feats = ask.noise(ask.batch, MANY, number(ask.config, "visual_feat_dim", otherwise=2048))
    places = ask.noise(ask.batch, MANY, number(ask.config, "visual_pos_dim", otherwise=4))
    return {"input_ids": ids, "attention_mask": mask, "visual_feats": feats, "visual_pos": places}


def _queries(ask: Ask) -> Iterator[Call]:
    """Learned queries, and what they read of a picture."""
    width = number(ask.config, "hidden_size", otherwise=1)
    asks = {"query_embeds": ask.noise(ask.batch, MANY, width)}
    for reads in (number(ask.config, "encoder_hidden_size", otherwise=width), width):
        yield asks | {"encoder_hidden_states": ask.noise(ask.batch, 2 * MANY, reads)}
