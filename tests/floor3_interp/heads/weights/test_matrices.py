"""A head's weights by name, against slices of what each family keeps."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from models import attached
from torch import Tensor

import interp
from interp.kernels.errors import InterpError

D, HEAD = 8, 2
MINE = slice(HEAD * D, (HEAD + 1) * D)


def of_gpt2(module: Any) -> list[Tensor]:
    """Thirds of a transposed matrix."""
    attention = module.transformer.h[1].attn
    width = attention.c_proj.weight.shape[0]
    thirds = attention.c_attn.weight.split(width, 1)
    return [*(third[:, MINE] for third in thirds), attention.c_proj.weight[MINE]]


def of_llama(module: Any) -> list[Tensor]:
    """Two query heads on each kv head."""
    attention = module.model.layers[1].self_attn
    group = slice(HEAD // 2 * D, (HEAD // 2 + 1) * D)
    out = attention.o_proj.weight[:, MINE].T
    return [
        attention.q_proj.weight[MINE].T,
        *(one.weight[group].T for one in (attention.k_proj, attention.v_proj)),
        out,
    ]


def of_gpt_neox(module: Any) -> list[Tensor]:
    """q, k and v of a head side by side, and biases."""
    attention = module.gpt_neox.layers[1].attention
    fused = attention.query_key_value.weight.view(-1, 3, D, attention.dense.weight.shape[1])[HEAD]
    return [*(one.T for one in fused), attention.dense.weight[:, MINE].T]


def of_vit(module: Any) -> list[Tensor]:
    """A tower of pictures."""
    attention = module.vit.layers[1].attention
    mine = slice(HEAD * 16, (HEAD + 1) * 16)
    parts = [one.weight[mine].T for one in (attention.q_proj, attention.k_proj, attention.v_proj)]
    return [*parts, attention.o_proj.weight[:, mine].T]


@pytest.mark.parametrize(("name", "wanted"), [("gpt2", of_gpt2), ("llama", of_llama), ("gpt_neox", of_gpt_neox),
                                              ("vit", of_vit)])  # fmt: skip
def test_weights_are_those_of_the_models_own_layout(name: str, wanted: Any) -> None:
    m = attached(name)
    found = interp.heads.head_matrix(m, f"L1.H{HEAD}")
    for mine, theirs in zip((found.W_Q, found.W_K, found.W_V, found.W_O), wanted(m.module), strict=True):
        assert mine.shape == theirs.shape
        assert torch.allclose(mine, theirs.double(), atol=1e-6)


@pytest.mark.parametrize(
    ("head", "said"), [("L1", "is not one head"), ("L*.H0", "expected one"), ("L1.H9", "H9|head 9")]
)
def test_one_head_is_named(head: str, said: str) -> None:
    with pytest.raises(InterpError, match=said):
        interp.heads.head_matrix(attached("llama"), head)


def test_queries_that_are_normalised_have_no_matrix() -> None:
    with pytest.raises(InterpError, match="normalised after the projection"):
        interp.heads.head_matrix(attached("qwen3"), "L1.H0")
