"""timm's models: fused attention and its own softmax, windows, and the tokens of a DINO, against hooks made by hand."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from timms import timm
from torch import Tensor, nn

import interp
from interp.hooks.errors import ModelError

pytestmark = pytest.mark.families
SMALL: dict[str, Any] = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 4}
SWIN: dict[str, Any] = {"img_size": 32, "window_size": 4, "embed_dim": 16, "depths": (2, 2), "num_heads": (2, 4)}
KINDS: dict[str, dict[str, Any]] = {
    "vit_base_patch16_224": SMALL, "vit_small_patch14_reg4_dinov2": SMALL, "vit_small_patch16_dinov3": SMALL,
    "deit3_small_patch16_224": SMALL, "beit_base_patch16_224": SMALL, "eva02_tiny_patch14_224": SMALL,
    "swin_tiny_patch4_window7_224": SWIN,
}  # fmt: skip


@pytest.fixture(autouse=True)
def fused() -> Iterator[None]:
    """Whatever a test sets is set back; windows are fused where that is asked for twice."""
    layers = timm().layers
    layers.set_fused_attn(True, True)
    yield
    layers.set_fused_attn(True)


def random(kind: str, **changes: Any) -> nn.Module:
    torch.manual_seed(0)
    made: nn.Module = timm().create_model(kind, **{**KINDS[kind], **changes}).eval()
    for parameter in made.parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=0.1)
    return made


def pictures(*, seed: int = 0) -> Tensor:
    return torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_held_with_its_patterns(kind: str) -> None:
    m = interp.attach(random(kind))
    report = m.check()
    report.raise_failed()
    verdicts = {line.name: line.verdict for line in report.lines}
    assert {verdicts[name] for name in ("off", "fired", "sum", "zero", "pattern")} == {"pass"}
    assert {layer.standpoint for layer in m.towers["vision"].layers} == {"sdpa"}


@pytest.mark.parametrize("kind", ["vit_base_patch16_224", "swin_tiny_patch4_window7_224"])
def test_its_own_softmax_is_held_at_its_borders(kind: str) -> None:
    own, both = random(kind), random(kind)
    timm().layers.set_fused_attn(False)
    m = interp.attach(random(kind))
    m.check().raise_failed()
    assert {layer.standpoint for layer in m.towers["vision"].layers} == {"border"}
    z = m.run(pictures(), record="L1.z")["L1.z"]
    torch.testing.assert_close(z, interp.attach(own).run(pictures(), record="L1.z")["L1.z"], atol=1e-5, rtol=0)
    with m.edited([interp.Scale("L1.H1.z", 0.0)]), torch.no_grad():
        edited = m.module(pictures())
    with interp.attach(both).edited([interp.Scale("L1.H1.z", 0.0)]), torch.no_grad():
        torch.testing.assert_close(edited, both(pictures()), atol=1e-5, rtol=0)


def test_a_head_of_a_vit_is_that_of_its_weights() -> None:
    """q, k and v from the fused projection, the pattern from its definition, in float64."""
    module = random("vit_base_patch16_224").double()
    m, attn, seen = interp.attach(module), module.blocks[1].attn, []
    attn.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    tape = m.run(pictures().double(), record=["L1.pattern", "L1.z", "L1.q"])
    q, k, v = (nn.functional.linear(seen[-1], attn.qkv.weight, attn.qkv.bias)).reshape(2, 17, 3, 4, 8).unbind(2)
    pattern = (torch.einsum("bihd,bjhd->bhij", q, k) / 8**0.5).softmax(-1)
    torch.testing.assert_close(tape["L1.q"], q, atol=1e-12, rtol=0)
    torch.testing.assert_close(tape["L1.pattern"].double(), pattern, atol=1e-6, rtol=0)
    torch.testing.assert_close(tape["L1.z"], torch.einsum("bhij,bjhd->bihd", pattern, v), atol=1e-6, rtol=0)


@pytest.mark.parametrize(("kind", "path", "width"), [
    ("vit_small_patch14_reg4_dinov2", "blocks.1.attn.proj", 8),
    ("swin_tiny_patch4_window7_224", "layers.0.blocks.1.attn.proj", 8),
])  # fmt: skip
def test_a_head_at_zero_is_its_columns_at_zero(kind: str, path: str, width: int) -> None:
    module, hand = random(kind), random(kind)

    def without(_: nn.Module, args: Any) -> tuple[Tensor]:
        x = args[0].clone()
        x[..., width : 2 * width] = 0
        return (x,)

    hand.get_submodule(path).register_forward_pre_hook(without)
    with interp.attach(module).edited([interp.Scale("L1.H1.z", 0.0)]), torch.no_grad():
        edited = module(pictures())
    with torch.no_grad():
        assert torch.equal(edited, hand(pictures()))
        assert not torch.equal(edited, module(pictures()))


def test_the_tokens_of_a_dino_are_told_apart() -> None:
    x = interp.attach(random("vit_small_patch14_reg4_dinov2")).inputs(pictures())
    assert x.mask("cls")[0].nonzero().flatten().tolist() == [0]
    assert x.mask("register")[0].nonzero().flatten().tolist() == [1, 2, 3, 4]
    assert int(x.mask("image")[0].sum()) == 16


def test_windows_before_heads_are_refused_by_name() -> None:
    module = timm().create_model("hiera_tiny_224", num_classes=5).eval()
    with pytest.raises(ModelError, match="heads before windows"):
        _ = interp.attach(module).anatomy
