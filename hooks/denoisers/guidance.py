"""Which rows of a denoiser's call are guided by what: with the prompt, without it, or with attention perturbed.

Guidance runs the denoiser for several branches of one sample, in one batch or in calls one after the other. Who is who
is read off, in this order: rows that `interp.diffusion` added itself; the name that the pipeline gives the call
(`cache_context("cond")`, which the newer ones do); and the latents, which are the same in every branch and in nothing
else (random latents of two samples never are). Branches of one batch are `uncond` then `cond`, as everywhere in
diffusers but for DiT, whose rows without a class say so; thirds are `uncond`, `cond`, `perturbed`. A call without
guidance is `cond` throughout. Limits: two prompts that start from the same latents look like guidance.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

BRANCHES = ("uncond", "cond", "perturbed")


class _Now(threading.local):
    """What is known of the call that runs in a thread."""

    def __init__(self) -> None:
        self.named: list[str] = []
        self.rows: list[tuple[str, ...]] = []


_NOW = _Now()


_LOCK = threading.Lock()
_LISTENERS: weakref.WeakKeyDictionary[nn.Module, int] = weakref.WeakKeyDictionary()


def listen(module: nn.Module) -> Callable[[], None]:
    """Hear what the pipeline calls each call, until what this returns is called; counted, since sessions of several
    threads end in any order."""
    own = getattr(module, "cache_context", None)
    if own is None:
        return lambda: None

    @contextmanager
    def heard(name: str, **kwargs: Any) -> Iterator[None]:
        _NOW.named.append(name)
        try:
            with own(name, **kwargs):
                yield
        finally:
            _NOW.named.pop()

    with _LOCK:
        if not _LISTENERS.get(module):
            vars(module)["cache_context"] = heard
        _LISTENERS[module] = _LISTENERS.get(module, 0) + 1
    return partial(_deaf, module)


def _deaf(module: nn.Module) -> None:
    with _LOCK:
        _LISTENERS[module] -= 1
        if not _LISTENERS[module]:
            vars(module).pop("cache_context", None)


@contextmanager
def said(rows: tuple[str, ...]) -> Iterator[None]:
    """Rows whose branches are known, while their call runs."""
    _NOW.rows.append(rows)
    try:
        yield
    finally:
        _NOW.rows.pop()


def branches(module: nn.Module, call: Mapping[str, Any]) -> tuple[str, ...]:
    """The branch of each row of a call."""
    latents = call.get("hidden_states", call.get("sample"))
    count = len(latents) if torch.is_tensor(latents) else 0
    if _NOW.rows and len(_NOW.rows[-1]) == count:
        return _NOW.rows[-1]
    name = _NOW.named[-1] if _NOW.named else ""
    if name and name != "cond_uncond":
        return ("uncond" if name.startswith("uncond") else "cond",) * count
    for parts in (3, 2):
        if torch.is_tensor(latents) and _same(latents, parts) and not _same_words(call, parts):
            order = _order(module, call) if parts == 2 else BRANCHES
            return tuple(branch for branch in order for _ in range(count // parts))
    return ("cond",) * count


def _same(x: Tensor, parts: int) -> bool:
    """Whether a batch is the same rows so many times over."""
    if len(x) < parts or len(x) % parts:
        return False
    first, *others = x.chunk(parts)
    return all(torch.equal(first, other) for other in others)


def _same_words(call: Mapping[str, Any], parts: int) -> bool:
    """Whether what the picture shall show is the same in every part, too: then nothing tells branches apart."""
    if parts == 3:
        return False
    given = (call.get("encoder_hidden_states"), call.get("class_labels"))
    found = [x for x in given if torch.is_tensor(x)]
    return bool(found) and all(_same(x, parts) for x in found)


def _order(module: nn.Module, call: Mapping[str, Any]) -> tuple[str, str]:
    """DiT's pipeline has the rows of no class last; no class has the number of classes as its label."""
    labels, classes = call.get("class_labels"), getattr(module, "config", {}).get("num_embeds_ada_norm")
    last = torch.is_tensor(labels) and classes is not None and bool((labels[len(labels) // 2 :] == classes).all())
    return ("cond", "uncond") if last else ("uncond", "cond")
