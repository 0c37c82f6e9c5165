"""What refuses gated MLPs, and with them the decoder that records are tried on, on a model of two devices without."""

from __future__ import annotations

import pytest
import torch
from models import difference
from placed import Place
from torch.nn.attention import SDPBackend, sdpa_kernel

import interp


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_contextual_decomposition_has_the_cpus_numbers(dtype: torch.dtype) -> None:
    with sdpa_kernel(SDPBackend.MATH):
        here, there = (
            interp.edges(place.model("gpt2"), **place.pair("gpt2"), metric=difference, method="cd-t").values
            for place in (Place("cpu", dtype), Place("two", dtype))
        )
    assert float(here.abs().max()) > 0.1
    torch.testing.assert_close(there.cpu(), here, atol=1e-5, rtol=1e-4)
