"""The matrix that turns what comes out of the final norm into logits [d, vocabulary], biases and soft caps left out."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from interp.hooks.drive.sweep import Reads
from interp.hooks.drive.tail import Tail
from interp.hooks.errors import ModelError


def unembedding(tail: Tail) -> Tensor:
    """Off the head's weight where the model says which module that is, else by asking it for every unit vector."""
    head = tail.readout.head
    if tail.readout.by_position and type(head) is nn.Linear:
        return head.weight.detach().T
    return _asked(tail)


def _asked(tail: Tail) -> Tensor:
    left, logits = tail.left, tail.readout.logits
    width = left.shape[-1]
    if logits.ndim not in (2, 3) or (logits.ndim == 3 and logits.shape[1] != left.shape[1]):
        raise ModelError(f"logits {list(logits.shape)} are not made position by position, so no matrix makes them.")
    classes = logits.ndim == 2
    each = len(left) if classes else len(left) * left.shape[1]
    units = torch.eye(width, dtype=left.dtype, device=left.device)
    nothing = _logits(tail, torch.zeros_like(left))
    parts = []
    for start in range(0, width, each):
        some = units[start : start + each]
        whole = torch.zeros_like(left)
        if classes:
            whole[: len(some)] = some[:, None]
        else:
            whole.view(-1, width)[: len(some)] = some
        made = _logits(tail, whole) - nothing
        parts.append(made.reshape(-1, made.shape[-1])[: len(some)])
    found = torch.cat(parts)
    _check_linear(tail, found, nothing)
    return found


def _check_linear(tail: Tail, found: Tensor, nothing: Tensor) -> None:
    """A head with more than a matrix in it (a masked language model's) is refused."""
    random = torch.randn(found.shape[0], generator=torch.Generator().manual_seed(0)).to(tail.left)
    made = _logits(tail, random.expand(tail.left.shape).clone()) - nothing
    gap, size = float((made[0, 0] - random.to(found.device) @ found).abs().max()), float(made[0, 0].abs().max())
    if not gap <= 1e-3 * max(size, 1e-12):
        raise ModelError(
            f"the head of {type(tail.module).__name__} is more than one matrix (off by {gap:.3g} of {size:.3g}), so"
            " what a head writes cannot be taken straight to the logits."
        )


def _logits(tail: Tail, normed: Tensor) -> Tensor:
    rows = len(normed)
    count = 1 if tail.readout.logits.ndim == 2 else normed.shape[1]
    reads = Reads(torch.arange(count).expand(rows, -1), None)
    with torch.no_grad():
        return tail.logits(normed, reads)
