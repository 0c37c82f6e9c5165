"""Answers whose axes are not the positions of the inputs: a transducer's logits are of frames and of tokens."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import interp
from interp.hooks.examples.example import example
from interp.metrics import LogitDifference
from interp.metrics.ids import MetricError
from interp.zoo.every import build

pytestmark = [pytest.mark.families, pytest.mark.filterwarnings("ignore")]


def last_frame(logits: Tensor, inputs: Any) -> Tensor:
    assert logits.shape[1:] == (8, 6, 99)  # frames, tokens, words
    return logits[:, -1, -1, 3]


def _double(inputs: dict[str, Any]) -> dict[str, Any]:
    return {key: x.double() if torch.is_tensor(x) and x.is_floating_point() else x for key, x in inputs.items()}


def test_a_metric_of_ones_own_gets_all_frames_of_a_transducer() -> None:
    module = build("parakeet_rnnt").double()
    base, source = (_double(example(module, seed=seed)) for seed in (0, 1))
    m = interp.attach(module, example=base)
    layer = m.towers["encoder"].layers[1]
    found = interp.patch(m, base=base, source=source, metric=last_frame, sites=["L1.H2.z"])
    projection = module.get_submodule(str(layer.out))
    read: list[Tensor] = []

    def put(_: Any, args: tuple[Any, ...]) -> tuple[Any, ...]:
        new = args[0].clone()
        new[..., 16:24] = read[0][..., 16:24]
        return (new,)

    with torch.no_grad():
        handle = projection.register_forward_pre_hook(lambda _, args: read.append(args[0].clone()))
        module(**source)
        handle.remove()
        plain = last_frame(module(**base).logits, None)
        handle = projection.register_forward_pre_hook(put)
        patched = last_frame(module(**base).logits, None)
        handle.remove()
    assert torch.allclose(found.values.flatten(), (patched - plain).double(), atol=1e-9)


def test_a_metric_of_positions_is_refused_there() -> None:
    module = build("parakeet_rnnt")
    base, source = example(module), example(module, seed=1)
    m = interp.attach(module, example=base)
    with pytest.raises(MetricError, match=r"of which there are 6, and the logits are \[1, 8, 6, 99\]"):
        interp.patch(m, base=base, source=source, metric=LogitDifference(((3,),), ((4,),)), sites=["L1.H2.z"])
