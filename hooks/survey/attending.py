"""Who attends in a model: one pass watched from both standpoints, and what a family says where neither sees a call."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from threading import get_ident
from typing import Any

import torch
from torch import Tensor, nn

from interp.hooks.anatomy.family import Family
from interp.hooks.anatomy.towers import Standpoint
from interp.hooks.errors import ModelError
from interp.hooks.stand.call import REGISTRY, Call, Tap
from interp.hooks.stand.interface import Switch
from interp.hooks.stand.sdpa import Sdpa


@dataclass
class Seen:
    """What one attention module did in the traced call."""

    name: str
    heads: int
    kv_heads: int
    d_head: int
    d_value: int
    cross: bool
    standpoint: Standpoint
    bidirectional: bool = False
    implementation: str = ""
    length: int | None = None
    """Queries of its first call."""
    z: list[Tensor] = field(default_factory=list)
    """Of each call since the run of its block began."""


class _Watch(Tap):
    """A tap that only looks, at the calls of the thread that traces, from one standpoint."""

    def __init__(self, names: Mapping[nn.Module, str], standpoint: Standpoint) -> None:
        self.names, self.standpoint = names, standpoint
        self.thread = get_ident()
        self.seen: dict[str, Seen] = {}
        self.keep = False

    def record(self, call: Call) -> None:
        name = self.names[call.module]
        if isinstance(call.module, nn.MultiheadAttention) and not call.module.batch_first:
            raise ModelError(
                f"{name} takes [position, batch, d] (batch_first=False), and a site here is [batch, position, d]: build"
                " the model with batch_first=True; the weights are the same."
            )
        z = call.z
        seen = self.seen.setdefault(
            name,
            Seen(
                name,
                call.q.shape[1],
                call.k.shape[1],
                call.q.shape[-1],
                call.v.shape[-1],
                cross=_is_cross(call, name) or (self.standpoint == "sdpa" and call.q.shape[2] != call.k.shape[2]),
                standpoint="registry" if call.implementation.startswith(REGISTRY) else self.standpoint,
                bidirectional=_looks_ahead(call),
                implementation=call.implementation,
                length=call.q.shape[2],
            ),
        )
        if self.keep:
            seen.z.append(z.detach())


class Watches:
    """The taps of both standpoints; no call passes both, since what stands at the interface is not looked at below."""

    def __init__(self, root: nn.Module) -> None:
        names = {child: name for name, child in root.named_modules()}
        self.root, self.interface, self.sdpa = root, _Watch(names, "interface"), _Watch(names, "sdpa")

    @property
    def seen(self) -> dict[str, Seen]:
        """Who attended, by name."""
        return {**self.sdpa.seen, **self.interface.seen}

    @contextmanager
    def on(self, *, keep: bool = False) -> Iterator[None]:
        """Watch every module; `keep` what each call gave."""
        with ExitStack() as undo:
            for tap, switch in ((self.interface, Switch), (self.sdpa, Sdpa)):
                tap.keep = keep
                for child in self.root.modules():
                    switch.watch(child, tap)
                    undo.callback(switch.forget, child, tap)
            yield


def _is_cross(call: Call, name: str) -> bool:
    """Cross-attention reads another sequence: transformers names it so, or marks the module, in every family that has
    it, and torch's own decoder layer does."""
    said = getattr(call.module, "is_cross_attention", None)
    return bool(said) or _named_cross(name, call.module)


def _named_cross(name: str, module: nn.Module) -> bool:
    called = f"{name} {type(module).__name__}"
    return bool(re.search(r"cross|encoder_attn|encoder_decoder|EncDec|multihead_attn\b", called, re.IGNORECASE))


def _looks_ahead(call: Call) -> bool:
    if call.mask is None or not torch.is_tensor(call.mask) or call.mask.ndim != 4:
        return not call.causal
    upper = torch.ones(call.mask.shape[-2:], dtype=torch.bool, device=call.mask.device).triu(
        1 + call.mask.shape[-1] - call.mask.shape[-2]
    )
    visible = call.mask if call.mask.dtype == torch.bool else call.mask > torch.finfo(call.mask.dtype).min / 2
    return bool((visible & upper).any())


LEARNED = "it has no attention heads: its queries are a parameter, used at each position alone"
"""A softmax over the states of earlier blocks (Inkling-2), in the shape of a call whose heads are positions."""


def learned(root: nn.Module, seen: Mapping[str, Seen]) -> dict[str, str]:
    """Modules whose queries are a parameter of their own and that have no projection, with the reason."""
    found = {}
    for name, one in seen.items():
        place = root.get_submodule(name)
        matrices = any(p.ndim >= 2 for child in place.children() for p in child.parameters())
        own = [p.numel() for p in place.parameters(recurse=False)]
        if one.standpoint == "sdpa" and not matrices and own == [(one.length or 0) * one.d_head]:
            found[name] = LEARNED
    return found


def at_borders(root: nn.Module, family: Family) -> list[tuple[str, Seen]]:
    """The attention modules that a family names, with the sizes it says."""
    found = []
    for name, attention in family.attentions(root):
        heads = family.count(family.heads, root, attention)
        crosses = bool(getattr(attention, "is_cross_attention", False)) or _named_cross(name, attention)
        kv_heads = family.count(family.kv_heads, root, attention, otherwise=heads) if family.kv_heads else heads
        for part in filter(None, (family.q, family.k, family.v)):
            family.part(attention, part.module)
        d_head = _input_width(family.part(attention, family.out)) // heads
        found.append(
            (
                name,
                Seen(name, heads, kv_heads, d_head, d_head, cross=crosses, standpoint="border"),
            )
        )
    if not found:
        raise ModelError(
            f"the family {family.name!r} expects attention modules named {family.attention!r};"
            f" {type(root).__name__} has none."
        )
    return found


def _input_width(out: nn.Module) -> int:
    out = getattr(out, "_original_component", out)
    weight: Any = out.weight
    return int(weight.shape[0 if type(out).__name__ == "Conv1D" else 1])
