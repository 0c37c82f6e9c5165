"""What attends and is not held is named, each with its reason; what is not attention is no head."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
import transformers
from torch import nn

import interp
from interp.hooks.errors import ModelError
from interp.hooks.examples.example import example
from interp.zoo.every import build

pytestmark = [pytest.mark.families, pytest.mark.filterwarnings("ignore")]

SAID = {
    "minimax": "not held: model.layers.*.self_attn: it ran, and no softmax of scores was seen in it",
    "qwen3_next": "not held: model.layers.*: it has no attention heads: Qwen3NextGatedDeltaNet mixes its positions",
    "trocr": "not held: model.decoder.layers.*.encoder_attn (2 modules): it did not run on the inputs",
    "mask2former": "it ran, and attends to places that it samples (deformable attention)",
    "longt5": "LocalSelfAttention (2 modules): it computes its own softmax",
    "evolla": "not held: model.layers.*.adapter (2 modules): it ran, and no softmax",
}


def held(model_type: str) -> interp.Model:
    module = build(model_type)
    return interp.attach(module, example=example(module))


@pytest.mark.parametrize("model_type", SAID)
def test_what_is_not_held_is_printed_and_in_the_checks(model_type: str) -> None:
    m = held(model_type)
    notes = [line.note for line in m.check().lines if line.name == "heads"]
    assert SAID[model_type] in str(m)
    assert any(SAID[model_type] in note for note in notes)


def test_a_detectors_deformable_attention_is_named() -> None:
    backbone = transformers.ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 8, 8, 8], depths=[1, 1, 1, 1], out_features=["stage2", "stage3", "stage4"]
    )
    config = transformers.DeformableDetrConfig(
        use_timm_backbone=False, backbone=None, backbone_config=backbone, use_pretrained_backbone=False, d_model=32,
        encoder_layers=1, decoder_layers=1, encoder_attention_heads=4, decoder_attention_heads=4, encoder_ffn_dim=16,
        decoder_ffn_dim=16, num_queries=5, num_feature_levels=3,
    )  # fmt: skip
    module = transformers.DeformableDetrModel(config).eval()
    m = interp.attach(module, example={"pixel_values": torch.randn(1, 3, 64, 64)})
    assert m.check().passed
    said = str(m)
    assert "encoder.layers.*.self_attn: it ran, and attends to places that it samples" in said
    assert "decoder.layers.*.encoder_attn: it ran, and attends to places that it samples" in said


@pytest.mark.parametrize(
    ("model_type", "reason"),
    [
        ("xlnet", "its projections are parameters and no modules"),
        ("squeezebert", "its projections are convolutions"),
        ("wavlm", "torch's multi_head_attention_forward"),
        ("convbert", "mixed or joined with something else"),
        ("jetmoe", "has router slots, not heads"),
        ("patchtsmixer", "has no attention heads"),
        ("rwkv", "'rwkv.blocks.0.attention' (RwkvSelfAttention) ran without either"),
    ],
)
def test_a_model_of_which_nothing_is_held_says_why(model_type: str, reason: str) -> None:
    with pytest.raises(ModelError, match=re.escape(reason)):
        held(model_type).ready()


@pytest.mark.parametrize("model_type", ["bert", "llama", "t5", "whisper", "clip", "swin", "led", "bailing_hybrid"])
def test_every_module_called_attention_is_held_or_named(model_type: str) -> None:
    """By torch's own hooks: each that ran is a layer of a tower, inside or around one, or on the list."""
    m = held(model_type)
    layers = [layer.attention for tower in m.towers.values() for layer in tower.layers]
    ran: list[str] = []
    called = [(n, c) for n, c in m.module.named_modules() if "attention" in type(c).__name__.lower() and n]

    def keep(name: str) -> Any:
        return lambda *_: ran.append(name)

    handles = [child.register_forward_hook(keep(name)) for name, child in called]
    with torch.no_grad():
        m.module(**m.called_with(m.example()))
    for handle in handles:
        handle.remove()
    assert ran
    known = [*layers, *m.anatomy.unheld]
    for name in ran:
        assert any(f"{name}.".startswith(f"{one}.") or f"{one}.".startswith(f"{name}.") for one in known), name


class Gate(nn.Module):
    """A softmax that is multiplied into its input is no attention."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(8, 8)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.layers[0](x).softmax(-1)


def test_a_gate_is_no_attention() -> None:
    with pytest.raises(ModelError, match="has no attention heads"):
        interp.attach(Gate().eval(), example={"x": torch.randn(1, 2, 4, 8)}).ready()
