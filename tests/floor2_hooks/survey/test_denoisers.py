"""Denoisers of diffusers, both generations of its attention, against hooks made by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from denoisers import HEADS, TINY, denoiser, library
from torch import Tensor, nn

import interp
from interp.hooks.denoisers.calls import call_of
from interp.hooks.errors import ModelError, UnknownPositions
from interp.hooks.inputs.denoised import denoised
from interp.kernels.errors import InterpError

pytestmark = [
    pytest.mark.families,
    pytest.mark.filterwarnings("ignore:In CPU autocast:UserWarning"),  # Mochi asks for float32 autocast on the CPU
]
JOINT = ("FluxTransformer2DModel", "QwenImageTransformer2DModel", "SD3Transformer2DModel", "AuraFlowTransformer2DModel",
         "CogVideoXTransformer3DModel", "CogView4Transformer2DModel", "HunyuanVideoTransformer3DModel",
         "MochiTransformer3DModel", "Lumina2Transformer2DModel")  # fmt: skip
APART = ("PixArtTransformer2DModel", "DiTTransformer2DModel", "WanTransformer3DModel", "LTXVideoTransformer3DModel",
         "SanaTransformer2DModel")  # fmt: skip
CROSS = (*APART[2:], APART[0], "UNet2DConditionModel")
ONLY_ENDS = ("CogVideoXTransformer3DModel", "CogView4Transformer2DModel")
HEADED = {"UNet2DConditionModel": 4, "Lumina2Transformer2DModel": 3}
WORDS, CELLS = 7, 24


def call(module: nn.Module, *, batch: int = 1, seed: int = 0) -> dict[str, Any]:
    return call_of(module, batch=batch, random=torch.Generator().manual_seed(seed))


def run(module: nn.Module, given: dict[str, Any]) -> Tensor:
    with torch.no_grad():
        made: Tensor = module(**given).sample
    return made


@pytest.mark.parametrize("name", TINY)
def test_it_is_held_whole_from_a_call_made_up(name: str) -> None:
    m = interp.attach(denoiser(name))
    report = m.check()
    report.raise_failed()
    ends = "words" in m.towers and all(layer.out is None for layer in m.towers["words"].layers)
    assert ends == (name in ONLY_ENDS)  # their words have a residual, and nothing of their own inside the block
    lines = [line for line in report.lines if line.name != "heads" and not (ends and line.name.startswith("words."))]
    verdicts = {line.name.rpartition(".")[2]: line.verdict for line in lines}
    assert verdicts["sum"] == verdicts["zero"] == "pass"
    assert verdicts["off"] == verdicts["fired"] == "pass"
    towers = m.towers
    assert ("cross" in towers) == (name in CROSS)
    assert all(layer.heads == HEADED.get(name, HEADS) for layer in towers["denoiser"].layers)
    without = "denoiser" if name == "SanaTransformer2DModel" else "words"
    for tower in towers.values():
        seen = {line.verdict for line in report.lines if line.name in ("pattern", f"{tower.name}.pattern")}
        assert seen == ({"n/a"} if tower.name == without else {"pass"})
    assert m.anatomy.main == "denoiser"


@pytest.mark.parametrize(("name", "layers"), [
    ("FluxTransformer2DModel", ["transformer_blocks.0", "transformer_blocks.1", "single_transformer_blocks.0",
                                "single_transformer_blocks.1"]),
    ("HunyuanVideoTransformer3DModel", ["transformer_blocks.0", "single_transformer_blocks.0",
                                        "single_transformer_blocks.1"]),
])  # fmt: skip
def test_joint_and_single_blocks_are_one_tower_in_the_order_they_run(name: str, layers: list[str]) -> None:
    tower = interp.attach(denoiser(name)).towers["denoiser"]
    assert [layer.block for layer in tower.layers] == layers
    assert [layer.index for layer in tower.layers] == list(range(len(layers)))


def test_the_levels_of_a_unet_are_one_tower_in_the_order_they_run() -> None:
    m = interp.attach(denoiser("UNet2DConditionModel"))
    for name in ("denoiser", "cross"):
        blocks = [layer.block.partition(".")[0] for layer in m.towers[name].layers]
        assert blocks == ["down_blocks"] * 2 + ["mid_block"] * 2 + ["up_blocks"] * 4


class _Read:
    """What a module was given in its last call, by a hook made by hand."""

    def __init__(self, module: nn.Module, zeroed: slice | None = None) -> None:
        self.zeroed = zeroed
        module.register_forward_pre_hook(self)

    def __call__(self, module: nn.Module, args: Any) -> Any:
        self.x = args[0]
        if self.zeroed is None:
            return None
        x = args[0].clone()
        x[..., self.zeroed] = 0
        return (x, *args[1:])


def test_a_second_attention_over_cells_alone_is_a_tower_of_its_own() -> None:
    m = interp.attach(denoiser("SD3Transformer2DModel", dual_attention_layers=(0, 1)))
    m.check().raise_failed()
    assert [layer.attention for layer in m.towers["denoiser2"].layers] == [
        f"transformer_blocks.{n}.attn2" for n in (0, 1)
    ]
    z = m.run(call(m.module), record=["denoiser.L0.z", "denoiser2.L0.z"])
    assert (z["denoiser.L0.z"].shape[1], z["denoiser2.L0.z"].shape[1]) == (CELLS + WORDS, CELLS)


def test_blocks_that_look_at_words_twice_are_two_towers() -> None:
    m = interp.attach(denoiser("UNet2DConditionModel", only_cross_attention=True))
    m.check().raise_failed()
    assert [len(m.towers[name].layers) for name in ("cross", "cross2", "denoiser")] == [8, 6, 2]


def test_calls_for_words_and_for_a_first_frame_are_passes() -> None:
    """Wan with a picture attends to words and to the picture in one module, and adds both up."""
    module = denoiser("WanTransformer3DModel", image_dim=8, added_kv_proj_dim=16)
    m = interp.attach(module)
    m.check().raise_failed()
    assert m.towers["cross"].passes == {0: 2, 1: 2}
    given, read = call(module), _Read(module.blocks[1].attn2.to_out[0])
    tape = m.run(given, record=["cross.L1@0.z", "cross.L1@1.z", "cross.L1@0.pattern", "cross.L1@1.pattern"])
    assert [tape[f"cross.L1@{n}.pattern"].shape[-1] for n in (0, 1)] == [5, 512]
    both = tape["cross.L1@0.z"] + tape["cross.L1@1.z"]
    torch.testing.assert_close(both.flatten(2), read.x)


@pytest.mark.parametrize("name", ["UNet2DConditionModel", "QwenImageTransformer2DModel", "FluxTransformer2DModel"])
def test_tapes_are_saved_with_their_calls(name: str, tmp_path: Any) -> None:
    module = denoiser(name)
    m = interp.attach(module)
    tape = m.run(call(module), record="denoiser.L1.z" if len(m.towers) > 1 else "L1.z")
    tape.save(tmp_path)
    again = interp.open(tmp_path)
    for site in tape.sites:
        assert torch.equal(again[site], tape[site])
    assert torch.equal(m.run(again.inputs)["logits"], tape["logits"])


def test_z_of_flux_is_what_its_projections_read() -> None:
    module = denoiser("FluxTransformer2DModel")
    m, given = interp.attach(module), call(module, batch=2)
    joint, single = module.transformer_blocks[1].attn, module.single_transformer_blocks[0]
    words, cells, both = _Read(joint.to_add_out), _Read(joint.to_out[0]), _Read(single.proj_out)
    tape = m.run(given, record=["L1.z", "L2.z"])
    assert torch.equal(tape["L1.z"].flatten(2), torch.cat([words.x, cells.x], 1))
    assert torch.equal(tape["L2.z"].flatten(2), both.x[..., :16])
    assert tape["L1.z"].shape == (2, WORDS + CELLS, HEADS, 8)


@pytest.mark.parametrize(("layer", "projections"), [
    (1, ["transformer_blocks.1.attn.to_add_out", "transformer_blocks.1.attn.to_out.0"]),
    (3, ["single_transformer_blocks.1.proj_out"]),
])  # fmt: skip
def test_a_head_of_flux_at_zero_is_its_columns_at_zero(layer: int, projections: list[str]) -> None:
    module, hand = denoiser("FluxTransformer2DModel"), denoiser("FluxTransformer2DModel")
    given = call(module, batch=2)
    for name in projections:
        _Read(hand.get_submodule(name), slice(8, 16))
    with interp.attach(module).edited([interp.Scale(f"L{layer}.H1.z", 0.0)]):
        edited = run(module, given)
    assert torch.equal(edited, run(hand, given))
    assert not torch.equal(edited, run(module, given))


@pytest.mark.filterwarnings("ignore:.*patched in full forward passes:UserWarning")
@pytest.mark.parametrize("name", ["FluxTransformer2DModel", "PixArtTransformer2DModel"])
def test_a_sweep_is_a_loop_over_hooks_by_hand(name: str) -> None:
    module = denoiser(name)
    m, base, source = interp.attach(module), call(module, batch=2), call(module, batch=2, seed=1)
    sites = "L*.H*.z" if len(m.towers) == 1 else "denoiser.L*.H*.z"
    found = interp.patch(m, base=base, source=source, metric=_mean, sites=sites)
    tape, plain = m.run(source, record=sites), _mean(run(module, base), None)
    for site, effect in zip(found.sites, found.values, strict=True):
        one = m.anatomy.one(site)
        layer, (head,) = m.anatomy.layer(one), one.heads
        z = tape[str(one.whole)][:, :, head]
        readers = {reader.module: reader.end for reader in layer.readers} or {layer.out: "all"}
        handles = [
            module.get_submodule(path).register_forward_pre_hook(_put(z, head, end)) for path, end in readers.items()
        ]
        torch.testing.assert_close(effect.float(), _mean(run(module, base), None) - plain, atol=1e-5, rtol=0)
        for handle in handles:
            handle.remove()
    assert float(found.values.abs().max()) > 1e-3


def _put(z: Tensor, head: int, end: str) -> Any:
    """A hook that puts a head's part of z into what a projection reads."""

    def hook(_: nn.Module, args: Any) -> tuple[Tensor]:
        x = args[0].clone()
        part = z[:, : x.shape[1]] if end == "first" else z[:, z.shape[1] - x.shape[1] :]
        x[..., head * 8 : (head + 1) * 8] = part
        return (x,)

    return hook


def _mean(sample: Tensor, inputs: Any) -> Tensor:
    return sample.flatten(1).mean(1)


def test_statistics_are_those_of_the_pattern() -> None:
    module = denoiser("FluxTransformer2DModel")
    m, given = interp.attach(module), call(module, batch=2)
    stats = m.attention(given, stats=["mass:text", "entropy", "distance"])
    tape = m.run(given, record="L1.pattern")
    weights = tape["L1.pattern"].double()
    roles = tape.inputs.roles
    torch.testing.assert_close(
        stats.at("denoiser.L1", "mass:text").double(), weights[..., :WORDS].sum(-1), atol=1e-6, rtol=0
    )
    entropy = -(weights * weights.log()).sum(-1)
    torch.testing.assert_close(stats.at("denoiser.L1", "entropy").double(), entropy, atol=1e-5, rtol=0)
    at = torch.stack([roles.row[0, WORDS:], roles.col[0, WORDS:]], -1).double()
    cells = weights[:, :, WORDS:, WORDS:]
    far = (cells * torch.cdist(at, at)).sum(-1) / cells.sum(-1)
    torch.testing.assert_close(stats.at("denoiser.L1", "distance")[..., WORDS:].double(), far, atol=1e-4, rtol=0)


def test_patterns_of_sd3_are_those_of_its_weights() -> None:
    """Cells first, then words, in one softmax; written from the definition in float64."""
    module = denoiser("SD3Transformer2DModel").double()
    m, given = interp.attach(module), call(module, batch=2)
    given = {name: x.double() if x.is_floating_point() else x for name, x in given.items()}
    attn, seen = module.transformer_blocks[1].attn, {}
    attn.register_forward_pre_hook(lambda _, args, kwargs: seen.update(kwargs), with_kwargs=True)
    tape = m.run(given, record=["L1.pattern", "L1.z"])
    x, words = seen["hidden_states"], seen["encoder_hidden_states"]

    def normed(y: Tensor, norm: nn.Module) -> Tensor:
        y = y.unflatten(-1, (HEADS, 8))
        return y * (y.square().mean(-1, keepdim=True) + norm.eps).rsqrt() * norm.weight

    q = torch.cat([normed(attn.to_q(x), attn.norm_q), normed(attn.add_q_proj(words), attn.norm_added_q)], 1)
    k = torch.cat([normed(attn.to_k(x), attn.norm_k), normed(attn.add_k_proj(words), attn.norm_added_k)], 1)
    v = torch.cat([attn.to_v(x), attn.add_v_proj(words)], 1).unflatten(-1, (HEADS, 8))
    pattern = (torch.einsum("bihd,bjhd->bhij", q, k) / 8**0.5).softmax(-1)
    torch.testing.assert_close(tape["L1.pattern"].double(), pattern, atol=1e-6, rtol=0)
    torch.testing.assert_close(tape["L1.z"], torch.einsum("bhij,bjhd->bihd", pattern, v), atol=1e-6, rtol=0)


@pytest.mark.parametrize("name", [*JOINT, *APART])
def test_roles_are_where_the_tokens_are(name: str) -> None:
    """Changing one word, or the latents of one cell, changes the queries of the first layer that are called so."""
    module = denoiser(name)
    m, given = interp.attach(module), call(module)
    inputs = denoised(module, given)
    own = m.run(given, record=["denoiser.L0.q"])["denoiser.L0.q" if len(m.towers) > 1 else "L0.q"]
    assert own.shape[1] == inputs.length

    def moved(**changes: Tensor) -> Tensor:
        other = m.run({**given, **changes}, record=["denoiser.L0.q"])["denoiser.L0.q" if len(m.towers) > 1 else "L0.q"]
        return (other != own).flatten(2).any(-1)[0]

    latents = given["hidden_states"].clone()
    row, column = 2, 1
    frame = int(inputs.roles.frame.max())
    wide = int(inputs.roles.col.max()) + 1
    if latents.ndim == 3:
        latents[:, (frame * 4 + row) * wide + column] += 1
    else:
        side = latents.shape[-1] // wide
        where = latents if latents.ndim == 4 else latents[:, frame if name.startswith("CogVideoX") else slice(None)]
        where = where[:, :, frame] if latents.ndim == 5 and not name.startswith("CogVideoX") else where
        where[..., row * side, column * side + side - 1] += 1
    roles = inputs.roles
    expected = (roles.row == row) & (roles.col == column) & (roles.frame == frame)
    changed = moved(hidden_states=latents)
    mixed = name == "Lumina2Transformer2DModel"  # cells attend to each other before its first joint layer
    assert expected.sum() == 1
    assert torch.equal(changed, roles.patch[0] if mixed else expected[0])
    if "encoder_hidden_states" not in given or name in APART or name.startswith("Mochi"):
        return  # Mochi's words tell every token the time, too
    words = given["encoder_hidden_states"].clone()
    words[:, 2] += 1
    changed = moved(encoder_hidden_states=words)
    text = inputs.mask("text")[0]
    assert int(text.sum()) == WORDS
    assert not bool((changed & ~text).any())
    refined = any(name.startswith(kind) for kind in ("HunyuanVideo", "Lumina2", "Mochi"))
    assert bool(changed.any()) if refined else changed.nonzero().item() == text.nonzero()[2].item()


def test_pictures_it_is_made_from_are_further_frames() -> None:
    module = denoiser("QwenImageTransformer2DModel")
    m, given = interp.attach(module), call(module)
    given["img_shapes"] = [[(1, 4, 6), (1, 2, 3)]]
    given["hidden_states"] = torch.randn(1, 30, 4)
    inputs = denoised(module, given)
    assert inputs.length == WORDS + 30
    assert (inputs.roles.frame[0] == 1).nonzero().flatten().tolist() == list(range(WORDS + 24, WORDS + 30))
    assert m.run(given, record="L0.z")["L0.z"].shape[1] == inputs.length


def test_words_of_mochi_stand_after_its_cells() -> None:
    module = denoiser("MochiTransformer3DModel")
    m, given, seen = interp.attach(module), call(module), []
    module.transformer_blocks[0].attn1.norm_added_q.register_forward_hook(lambda *args: seen.append(args[-1]))
    tape = m.run(given, record=["denoiser.L0.q"])
    assert torch.equal(tape["denoiser.L0.q"][:, tape.inputs.mask("text")[0]], seen[-1])


def test_words_are_the_keys_of_cross_attention() -> None:
    module = denoiser("PixArtTransformer2DModel")
    m, given = interp.attach(module), call(module, batch=2)
    given["encoder_attention_mask"] = torch.ones(2, WORDS, dtype=torch.long)
    given["encoder_attention_mask"][1, 5:] = 0
    tape = m.run(given, record=["cross.L1.pattern"])
    assert tape["cross.L1.pattern"].shape == (2, HEADS, CELLS, WORDS)
    assert not tape["cross.L1.pattern"][1, ..., 5:].any()
    assert tape.inputs.tower("text").valid.tolist()[1] == [True] * 5 + [False] * 2
    away = m.run(given, record=["cross.L1.pattern"], edits=[interp.MaskKeys("cross.L1.H0", keys=[2])])
    assert not away["cross.L1.pattern"][:, 0, :, 2].any()
    assert bool(away["cross.L1.pattern"][:, 1, :, 2].all())


def test_a_loop_whose_third_step_is_edited_is_one_with_a_hook_there() -> None:
    module, hand = denoiser("SD3Transformer2DModel"), denoiser("SD3Transformer2DModel")
    m, given, calls = interp.attach(module), call(module, batch=2), []

    def loop(net: nn.Module) -> Tensor:
        x = given["hidden_states"]
        for step in range(5):
            calls.append(step)
            x = x - 0.2 * run(net, {**given, "hidden_states": x, "timestep": torch.full((2,), 1 - step / 5)})
        return x

    attn = hand.transformer_blocks[1].attn
    for projection in (attn.to_out[0], attn.to_add_out):
        projection.register_forward_pre_hook(
            lambda _, args: None if calls[-1] != 3 else (args[0] * torch.tensor([0.0] * 8 + [1.0] * 8),)
        )
    with m.watch(record=["L0.z", "L2.q"], steps="2-4", edits=[interp.Scale("L1.H0.z", 0.0, steps="3")]) as tape:
        edited = loop(module)
    assert tape.calls == 5
    assert tape.steps == (2, 3, 4)
    torch.testing.assert_close(edited, loop(hand), atol=0, rtol=0)
    with m.watch(record=["L0.z", "L2.q"]) as plain:
        untouched = loop(module)
    assert not torch.equal(edited, untouched)
    for step in (2, 3, 4):  # the third call is as it was, up to the layer that is edited
        assert torch.equal(plain.at(step)[m.anatomy.one("L0.z")], tape.at(step)[m.anatomy.one("L0.z")]) == (step < 4)
    assert not torch.equal(plain.at(3)[m.anatomy.one("L2.q")], tape.at(3)[m.anatomy.one("L2.q")])


@pytest.mark.filterwarnings("ignore:flex_attention called without:UserWarning")
@pytest.mark.parametrize("name", ["FluxTransformer2DModel", "QwenImageTransformer2DModel"])
def test_a_backend_of_the_registry_is_seen_and_put_back(name: str) -> None:
    registry = library().models.attention_dispatch._AttentionBackendRegistry
    own = dict(registry._backends)
    fused, flex = denoiser(name), denoiser(name)
    active = registry._active_backend
    flex.set_attention_backend("flex")
    registry._active_backend = active
    m, other = interp.attach(fused), interp.attach(flex)
    given = call(fused, batch=2)
    assert {layer.standpoint for layer in other.towers["denoiser"].layers} == {"registry"}
    assert {layer.standpoint for layer in m.towers["denoiser"].layers} == {"sdpa"}
    edits = [interp.Blend("L1.H0", to="identity", amount=0.5), interp.Scale("L1.H1.z", 0.5)]
    tapes = [one.run(given, record=["L*.z", "L1.pattern", "L0.q"], edits=edits) for one in (m, other)]
    for site in tapes[0].sites:
        torch.testing.assert_close(tapes[0][site], tapes[1][site], atol=2e-5, rtol=0)
    assert registry._backends == own


def test_eager_attention_is_held_at_its_borders() -> None:
    """`AttnProcessor` computes its softmax itself: z is seen, the pattern is not."""
    module = denoiser("UNet2DConditionModel")
    module.set_attn_processor(library().models.attention_processor.AttnProcessor())
    m = interp.attach(module)
    m.check().raise_failed()
    assert {layer.standpoint for tower in m.towers.values() for layer in tower.layers} == {"border"}
    other = denoiser("UNet2DConditionModel")
    given = call(module)
    site = "denoiser.L5.z"
    z = m.run(given, record=[site])[site]
    torch.testing.assert_close(z, interp.attach(other).run(given, record=[site])[site], atol=1e-5, rtol=0)


def test_rows_that_attend_one_by_one_are_refused() -> None:
    module = denoiser("MochiTransformer3DModel")
    m = interp.attach(module)
    m.run(call(module), record=["denoiser.L0.z"])
    with pytest.raises(ModelError, match="one row at a time"):
        m.run(call(module, batch=2), record=["denoiser.L0.z"])


def test_a_class_of_no_table_has_no_positions_and_says_so() -> None:
    module = denoiser("SD3Transformer2DModel")
    unknown = type("OwnTransformer2DModel", (type(module),), {})
    module.__class__ = unknown
    with pytest.raises(UnknownPositions, match="OwnTransformer2DModel"):
        denoised(module, call(module))
    m = interp.attach(module)
    assert m.run(call(module), record="L1.z")["L1.z"].shape == (1, CELLS + WORDS, HEADS, 8)
    with pytest.raises(InterpError, match="'text' select nothing"):
        m.run(call(module), edits=[interp.MaskKeys("L1", keys="text")])
