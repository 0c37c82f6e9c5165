"""A model that gives logits for more positions than its inputs name (GIT puts its picture before the words)."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

import interp
from interp.hooks.examples.example import example
from interp.metrics.ids import MetricError
from interp.metrics.shipped import LogitDifference


def last(logits: Tensor, inputs: Any) -> Tensor:
    return logits[:, -1, 3] - logits[:, -1, 5]


def test_a_function_is_given_all_logits_and_a_metric_by_position_is_refused() -> None:
    torch.manual_seed(0)
    small = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
    ids = {"vocab_size": 40, "bos_token_id": 1, "eos_token_id": 2}
    config = transformers.GitConfig(vision_config={**small, "image_size": 16, "patch_size": 8}, **ids, **small)
    module = transformers.GitForCausalLM(config).eval()
    with torch.no_grad():
        for weight in module.parameters():
            weight.mul_(8.0 if weight.ndim > 1 else 1.0)
    m = interp.attach(module)
    base, source = example(module), example(module, seed=1)
    with torch.no_grad():
        plain = module(**base).logits
    assert plain.shape[1] == base["input_ids"].shape[1] + 5  # a class token and 2 x 2 patches
    site = "L1.H0.z" if len(m.towers) == 1 else "vision.L1.H0.z"
    found = interp.patch(m, base=base, source=source, metric=last, sites=site)
    projection = module.get_submodule(m.towers["vision"].layers[1].out)
    kept: list[Tensor] = []
    handle = projection.register_forward_pre_hook(lambda _, args: kept.append(args[0].clone()))
    with torch.no_grad():
        module(**source)
    handle.remove()

    def put(_: torch.nn.Module, args: tuple[Tensor]) -> tuple[Tensor]:
        changed = args[0].clone()
        changed[..., :8] = kept[0][..., :8]
        return (changed,)

    handle = projection.register_forward_pre_hook(put)
    with torch.no_grad():
        expected = last(module(**base).logits, None) - last(plain, None)
    handle.remove()
    torch.testing.assert_close(found.values[0].float(), expected, rtol=1e-2, atol=2e-6)
    assert float(expected.abs()) > 0
    with pytest.raises(MetricError, match="give a metric of your own"):
        interp.patch(m, base=base, source=source, metric=LogitDifference(((3,),), ((5,),)), sites=site)
