"""Relevance rolled out through attention, layer by layer (Chefer et al.).

    chefer          Transformer attribution (2021, arXiv 2012.09838): per layer the mean over heads of the positive part
                    of gradient times relevance of the pattern, relevance by `relprop.py`; C = product of (1 + A)
    chefer-generic  Generic attention explainability (2021, arXiv 2103.15679): the pattern itself in place of its
                    relevance, R <- R + A R; needs no relevance propagation and fits any self-attention tower

Row `to` of the product is the relevance of every position for that one; what is reported is the mean over the rows that
the metric reads, whichever they are: the class token of a ViT, the last token of a decoder, every real token of a
sentence encoder that takes their mean. They are the rows of the last layer where the metric has a gradient.
Cost: one forward pass and one backward (two of each for `chefer`), with every pattern in memory: this is the one method
that needs rows * keys numbers per head. Limits: self-attention towers within transformers' interface; rows count alike,
however much of the metric comes from each; `chefer` starts from logits, not from values at another place.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, nullcontext
from threading import get_ident
from typing import Any

import torch
from torch import Tensor, nn

from interp.attribution.relprop import Relprop
from interp.hooks.anatomy.towers import Tower
from interp.hooks.anatomy.unwrap import forced_eager
from interp.hooks.errors import InputsError, ModelError
from interp.hooks.slopes.gradients import frozen
from interp.hooks.stand.call import Call, Tap, part_of
from interp.hooks.stand.output import logits_of, no_logits
from interp.hooks.stand.standpoints import watch

Score = Callable[[Tensor], Tensor]


class _Pattern(Tap):
    """Attends with the pattern as a tensor of the graph, and keeps it."""

    def __init__(self) -> None:
        self.patterns: list[Tensor] = []
        self.thread = get_ident()

    def __str__(self) -> str:
        return "the rollout of relevance"

    def attends(self) -> bool:
        return True

    def attend(self, call: Call, inner: Callable[[], None]) -> None:
        part = part_of(call, tuple(range(call.q.shape[1])))
        pattern = part.softmax(part.scores())
        self.patterns.append(pattern)
        call.z = part.read(pattern).transpose(1, 2).to(call.q.dtype)


class _Explicit(_Pattern):
    """The same in plain operators, which relevance can be propagated through."""

    def attend(self, call: Call, inner: Callable[[], None]) -> None:
        part = part_of(call, tuple(range(call.q.shape[1])))
        if part.softcap or part.sinks is not None or part.bias is not None:
            raise ModelError("relevance propagation knows plain softmax attention only: use method='chefer-generic'.")
        scores = torch.matmul(part.q, part.keys.transpose(-1, -2)) * call.scale
        if part.mask is not None:
            seen = part.mask.dense(call.q.shape[2], call.k.shape[2], device=call.q.device)
            scores = scores.masked_fill(~seen, -1e30)
        pattern = torch.softmax(scores, -1)
        self.patterns.append(pattern)
        call.z = torch.matmul(pattern, part.values).transpose(1, 2)


def rolled_out(
    module: nn.Module, tower: Tower, kwargs: Mapping[str, Any], score: Score, *, propagated: bool
) -> tuple[Tensor, Tensor]:
    """[row, to, from], what each position owes to each position of the tower's input; and [row, to], which positions
    the metric reads."""
    if any(not layer.seen or layer.kind == "cross" for layer in tower.layers):
        raise ModelError(f"the tower {tower.name!r} has attention that is not self-attention within the interface.")
    patterns, slopes = _slopes(module, tower, kwargs, score, _Pattern())
    shares: Sequence[Tensor] = patterns
    if propagated:
        shares = _slopes(module, tower, kwargs, score, _Explicit())[1]
    length = patterns[0].shape[-1]
    wide = torch.promote_types(patterns[0].dtype, torch.float32)
    total = torch.eye(length, dtype=wide).expand(len(patterns[0]), -1, -1)
    for share, slope in zip(shares, slopes, strict=True):
        step = (share.detach().to(wide) * slope.to(wide)).clamp(min=0).mean(1).cpu()
        total = total + step @ total
    return total, _read(tower, slopes)


def _read(tower: Tower, slopes: Sequence[Tensor]) -> Tensor:
    """[row, position] whose attention in the last layer that counts the metric feels: a row's pattern moves that row
    alone, so these are the rows that are read from there on."""
    for slope in reversed(slopes):
        felt = (slope != 0).any(-1).any(1).cpu()
        if bool(felt.any(1).all()):
            return felt
    raise InputsError(
        f"the metric has no gradient at any attention of the tower {tower.name!r} in some row, so nothing is relevant"
        " for it there: it is flat, or reads another tower."
    )


def _slopes(
    module: nn.Module, tower: Tower, kwargs: Mapping[str, Any], score: Score, tap: _Pattern
) -> tuple[list[Tensor], Sequence[Tensor]]:
    """Each layer's pattern, and what comes back to it from the metric."""
    with ExitStack() as undo:
        undo.enter_context(frozen(module))
        undo.enter_context(forced_eager())
        for layer in tower.layers:
            undo.callback(watch(module, layer, tap))
        undo.enter_context(torch.enable_grad())
        first = module.get_submodule(tower.layers[0].block)
        undo.callback(first.register_forward_pre_hook(_leaf, with_kwargs=True).remove)
        with Relprop() if isinstance(tap, _Explicit) else nullcontext():
            logits = logits_of(module(**kwargs))
        if logits is None:
            raise no_logits(module)
        leaf = logits.detach().requires_grad_()
        (start,) = torch.autograd.grad(score(leaf).sum(), leaf)
        grads = torch.autograd.grad(logits, tap.patterns, start, allow_unused=True)
    if len(tap.patterns) != len(tower.layers):
        raise ModelError(f"the tower {tower.name!r} attended {len(tap.patterns)} times in {len(tower.layers)} layers.")
    found = [torch.zeros_like(p) if g is None else g for p, g in zip(tap.patterns, grads, strict=True)]
    return [p.detach() for p in tap.patterns], found  # a layer whose output is dropped has gradient 0


def _leaf(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The tower's input as the start of the graph."""
    if args and torch.is_tensor(args[0]):
        return (args[0].detach().requires_grad_(), *args[1:]), kwargs
    return args, {**kwargs, "hidden_states": kwargs["hidden_states"].detach().requires_grad_()}
