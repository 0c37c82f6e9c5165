"""Heads are found by what depends on what: fused, in thirds of heads, with parts that are no heads, or not at all."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import interp
from interp.hooks.errors import ModelError
from interp.hooks.examples.example import example
from interp.hooks.unseen.guess import guessed
from interp.zoo.every import build

pytestmark = [pytest.mark.families, pytest.mark.filterwarnings("ignore")]

FOUND = {
    "imagegpt": ("c_attn", "thirds", "c_proj"),
    "openai-gpt": ("c_attn", "thirds", "c_proj"),
    "vitdet": ("qkv", "thirds", "proj"),
    "mgp-str": ("qkv", "thirds", "proj"),
    "gpt_neox_japanese": ("query_key_value", "per_head", "dense"),
    "deberta": ("self.in_proj", "per_head", "output.dense"),
}


@pytest.mark.parametrize("model_type", FOUND)
def test_a_fused_projection_is_cut_as_the_model_cuts_it(model_type: str) -> None:
    module = build(model_type)
    family = guessed(module, example(module))
    assert family is not None
    name, layout, out = FOUND[model_type]
    assert family.out == out
    for part, projection in enumerate((family.q, family.k, family.v)):
        assert projection is not None
        assert (projection.module, projection.view) == (name, f"{layout}:{part}")


@pytest.mark.parametrize("model_type", ["imagegpt", "gpt_neox_japanese", "ibert", "openai-gpt", "deberta"])
def test_zero_z_is_a_projection_without_the_heads_columns(model_type: str) -> None:
    """By torch's own hook on the output projection, and by its weight; v of the tape is the model's own v."""
    module = build(model_type)
    m = interp.attach(module)
    assert m.check().passed
    (tower,) = m.towers.values()
    layer = tower.layers[1]
    out = module.get_submodule(str(layer.out))
    kwargs = dict(m.called_with(example(module)))
    columns = slice(layer.d_value, 2 * layer.d_value)
    with torch.no_grad():
        edited = m.run(kwargs, edits=[interp.Zero("L1.H1.z")], record=["logits"])["logits"]
        weight = out.get_parameter("weight")
        kept = weight.clone()
        axis = 0 if type(out).__name__ == "Conv1D" else 1
        weight.index_fill_(axis, torch.arange(columns.start, columns.stop), 0.0)
        by_hand = module(**kwargs).logits
        weight.copy_(kept)
        plain = module(**kwargs).logits
    assert torch.allclose(edited, by_hand, atol=1e-6)
    assert not torch.allclose(edited, plain, atol=1e-6)


class Attending(nn.Module):
    """One attention with a softmax of its own; `how` is what is unusual about it."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how, self.num_heads = how, 4
        self.first, self.second, self.third = (nn.Linear(32, 32) for _ in range(3))
        self.last = nn.Linear(32, 32)
        self.mix = nn.Linear(32, 32)

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor
        heads = (x.shape[0], x.shape[1], self.num_heads, -1)
        k, v, q = (layer(x).view(heads).transpose(1, 2) for layer in (self.first, self.second, self.third))
        weights = (q @ k.transpose(2, 3) / 8**0.5).softmax(-1)
        z = (weights @ v).transpose(1, 2).flatten(2)
        if self.how == "mixed":
            z = z @ self.mix.weight
        if self.how == "joined":
            z = z + x
        if self.how == "positions":
            z = z.transpose(0, 1)
        made = self.last(z)
        return made.transpose(0, 1) if self.how == "positions" else made


class Small(nn.Module):
    """Two blocks of it."""

    def __init__(self, how: str = "") -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.ModuleDict({"attn": Attending(how), "mlp": nn.Linear(32, 32)}) for _ in range(2))
        self.head = nn.Linear(32, 9)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            assert isinstance(layer, nn.ModuleDict)
            x = x + layer["attn"](x)
            x = x + layer["mlp"](x).relu()
        made: Tensor = self.head(x)
        return made


def test_no_name_is_needed() -> None:
    """k, v and q are called first, second and third."""
    torch.manual_seed(0)
    family = guessed(Small().eval(), {"x": torch.randn(2, 6, 32)})
    assert family is not None
    assert family.out == "last"
    names = [one.module for one in (family.q, family.k, family.v) if one is not None]
    assert names == ["third", "first", "second"]


def test_a_wrong_number_of_heads_is_not_believed() -> None:
    """It is what q and k show, not what an attribute says."""
    module = Small().eval()
    for layer in module.layers:
        assert isinstance(layer, nn.ModuleDict)
        layer["attn"].num_attention_heads = 2  # type: ignore[assignment]
    family = guessed(module, {"x": torch.randn(2, 6, 32)})
    assert family is not None
    assert family.heads == "num_heads"


def test_heads_that_are_mixed_are_not_believed() -> None:
    assert guessed(Small("mixed").eval(), {"x": torch.randn(2, 6, 32)}) is None


def test_heads_with_something_added_are_what_the_matrix_reads() -> None:
    """As where relative positions add to z (VITS): heads stay apart."""
    module = Small("joined").eval()
    family = guessed(module, {"x": torch.randn(2, 6, 32)})
    assert family is not None
    assert family.out == "last"


def test_positions_before_rows_are_refused() -> None:
    with pytest.raises(ModelError, match=r"\[position, batch, d\]"):
        guessed(Small("positions").eval(), {"x": torch.randn(2, 6, 32)})


def test_probing_leaves_nothing() -> None:
    module = build("imagegpt")
    kwargs = example(module)
    before = module(**kwargs).logits
    guessed(module, kwargs)
    assert not any(child._forward_hooks or child._forward_pre_hooks for child in module.modules())
    assert torch.equal(module(**kwargs).logits, before)
