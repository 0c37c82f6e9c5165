"""The model's digest: the same for the same weights wherever they are held, another one after any change."""

from pathlib import Path

import pytest
import torch
from torch import nn

from interp.provenance import about, model_hash
from interp.zoo.families import tiny


def test_a_weight_too_large_for_float_indices_is_hashed() -> None:
    """A float32 count of GPT-2's 38,597,376 embeddings ends one past the last."""
    large = nn.Module()
    large.weight = nn.Parameter(torch.zeros(38_597_376, dtype=torch.float16), requires_grad=False)
    before = model_hash(large)
    with torch.no_grad():
        large.weight[-1] = 1.0
    assert model_hash(large) != before


def test_same_weights_same_hash_and_training_changes_it() -> None:
    one, other = tiny("gpt2"), tiny("gpt2")
    assert model_hash(one) == model_hash(other) != model_hash(tiny("gpt2", seed=1))
    before = model_hash(one)
    with torch.no_grad():
        one.get_parameter("transformer.h.1.attn.c_proj.weight").mul_(1.5)
    assert model_hash(one) != before


@pytest.mark.parametrize("where", ["cpu", "disk"])
def test_offloaded_weights_are_hashed_where_they_are_held(where: str, tmp_path: Path) -> None:
    from accelerate import cpu_offload, disk_offload

    def offloaded(seed: int) -> nn.Module:
        model = tiny("llama", seed=seed)
        if where == "cpu":
            cpu_offload(model, torch.device("cpu"))
        else:
            disk_offload(model, str(tmp_path / str(seed)), torch.device("cpu"))
        return model

    assert model_hash(offloaded(0)) == model_hash(tiny("llama")) != model_hash(offloaded(1))


def test_about_says_what_was_computed_with() -> None:
    said = about(tiny("gpt2", attn="eager", dtype=torch.bfloat16), None)
    assert said["model"] == "GPT2LMHeadModel"
    assert said["attention"] == "eager"
    assert said["dtype"] == "bfloat16"
    assert (
        said["versions"]["torch"] == torch.__version__.partition("+")[0]
        or said["versions"]["torch"] == torch.__version__
    )
