"""Attention of a sweep's rows, which share their prompts' keys before the patch, against one softmax a row."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from interp.hooks.drive.packed import Shared, attend
from interp.hooks.drive.versions import RowBatch

HEADS, KV, LENGTH, START, D = 4, 2, 7, 3, 8
ORDERS = [[0, 1, 0, 1], [1, 0, 1, 0], [0, 0, 1, 1], [2, 0, 1, 2, 0], [0, 1, 2, 2], [1], [2, 2]]


def one(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    """z [query, head, d] of one row, with all of its keys."""
    group = HEADS // KV
    scores = torch.einsum("hqd,hkd->hqk", q, k.repeat_interleave(group, 0)) * 0.3 + bias
    return torch.einsum("hqk,hkd->qhd", scores.softmax(-1), v.repeat_interleave(group, 0))


@pytest.mark.parametrize("start", [0, START])
@pytest.mark.parametrize("weights", [2**25, 1])
@pytest.mark.parametrize(
    "order", [[0, 1, 0, 1], [1, 0, 1, 0], [0, 0, 1, 1], [2, 0, 1, 2, 0], [0, 1, 2, 2], [1], [2, 2]]
)
def test_rows_of_prompts_in_any_order(
    order: list[int], weights: int, start: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("interp.hooks.drive.packed.WEIGHTS", weights)
    width, rows = LENGTH - start, len(order)
    seen = torch.ones(LENGTH, LENGTH).tril()[None, None] * torch.ones(3, 1, 1, 1)
    seen[1, ..., 0] = 0.0  # the second prompt has a hidden first key
    seen[..., 0, 0] = 1.0
    bias = torch.where(seen > 0, 0.1 * torch.randn(3, 1, LENGTH, LENGTH), -torch.inf).double()
    base_k, base_v = torch.randn(2, 3, KV, LENGTH, D).double()
    q, (k, v) = torch.randn(rows, HEADS, width, D).double(), torch.randn(2, rows, KV, width, D).double()
    shared = Shared(base_k, base_v, bias, 0.3, None, None)
    made = attend(
        q.transpose(0, 1).flatten(1, 2)[None], [k], [v], [RowBatch(torch.tensor(order), start, LENGTH)], shared
    )
    for n, prompt in enumerate(order):
        whole_k, whole_v = (torch.cat([a[prompt][:, :start], b[n]], 1) for a, b in ((base_k, k), (base_v, v)))
        torch.testing.assert_close(
            made[0, n * width : (n + 1) * width], one(q[n], whole_k, whole_v, bias[prompt, :, start:])
        )
