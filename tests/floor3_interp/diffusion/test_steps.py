"""Steps of pipelines: calls of the denoiser, branches of guidance told apart, edits of one step or one branch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import denoisers
import pytest
import torch
from denoisers import aura, cog, denoiser, flux, ltx, pipeline, pixart, sd3, sdxl, wan
from torch import Tensor

import interp
from interp.hooks.errors import EditError, InputsError, ModelError, NotFired

U, C = "uncond", "cond"
CASES: dict[str, tuple[str, str, Callable[[Any], Tensor], list[tuple[str, ...]]]] = {
    "sd3": ("StableDiffusion3Pipeline", "SD3Transformer2DModel", sd3, [(U, U, C, C)] * 4),
    "sd3 alone": ("StableDiffusion3Pipeline", "SD3Transformer2DModel", lambda p: sd3(p, guidance=1.0), [(C, C)] * 4),
    "flux": ("FluxPipeline", "FluxTransformer2DModel", flux, [(C, C)] * 3),
    "flux in turns": ("FluxPipeline", "FluxTransformer2DModel", lambda p: flux(p, true=2.0), [(C, C), (U, U)] * 3),
    "pixart": ("PixArtSigmaPipeline", "PixArtTransformer2DModel", pixart, [(U, U, C, C)] * 3),
    "sdxl": ("StableDiffusionXLPipeline", "UNet2DConditionModel", sdxl, [(U, U, C, C)] * 3),
    "aura": ("AuraFlowPipeline", "AuraFlowTransformer2DModel", aura, [(U, U, C, C)] * 3),
    "ltx": ("LTXPipeline", "LTXVideoTransformer3DModel", ltx, [(U, C)] * 2),
    "cog": ("CogVideoXPipeline", "CogVideoXTransformer3DModel", cog, [(U, C)] * 2),
    "wan": ("WanPipeline", "WanTransformer3DModel", wan, [(C,), (U,)] * 2),
}


def made(case: str) -> tuple[interp.Model, Callable[[], Tensor]]:
    kind, name, run, _ = CASES[case]
    pipe = pipeline(kind, denoiser(name))
    return interp.attach(pipe), lambda: run(pipe)


@pytest.mark.parametrize("case", CASES)
def test_calls_are_steps_and_rows_are_branches(case: str) -> None:
    m, run = made(case)
    plain = run()
    with m.watch(record="denoiser.L1.z" if len(m.towers) > 1 else "L1.z") as tape:
        watched = run()
    assert torch.equal(plain, watched)
    assert [tape.branches[step] for step in range(tape.calls)] == CASES[case][3]
    assert tape.calls == len(tape.steps) == len(CASES[case][3])


def test_contexts_that_end_in_any_order_hear_the_branches() -> None:
    m, run = made("wan")
    first, second = m.watch(record="denoiser.L0.z"), m.watch(record="denoiser.L0.z")
    one = first.__enter__()
    run()
    other = second.__enter__()
    first.__exit__(None, None, None)
    run()
    second.__exit__(None, None, None)
    assert list(one.branches.values()) == list(other.branches.values()) == [(C,), (U,)] * 2
    assert "cache_context" not in vars(m.module)


def test_rows_of_no_class_are_the_branch_without() -> None:
    """DiT's pipeline has them last, and decodes whatever happens."""
    home = denoisers.library()
    vae = home.AutoencoderKL(block_out_channels=(8,), norm_num_groups=4, latent_channels=4).eval()
    transformer = denoiser("DiTTransformer2DModel", num_embeds_ada_norm=1000, out_channels=8)
    pipe = home.DiTPipeline(transformer, vae, home.DDIMScheduler())
    pipe.set_progress_bar_config(disable=True)
    with interp.attach(pipe).watch(record="L0.z") as tape:
        pipe([3, 5], guidance_scale=2.0, num_inference_steps=2, output_type="np")
    assert tape.branches == dict.fromkeys((0, 1), (C, C, U, U))


@pytest.mark.parametrize("case", ["sd3", "flux", "pixart"])
def test_an_edit_of_one_step_leaves_those_before_it(case: str) -> None:
    m, run = made(case)
    sites = ["denoiser.L0.q", "denoiser.L1.q"] if len(m.towers) > 1 else ["L0.q", "L1.q"]
    edit = interp.Scale(sites[0].replace("q", "H1.z"), 0.0, steps=1)
    with m.watch(record=sites) as plain:
        run()
    with m.watch(record=sites, edits=[edit]) as edited:
        run()
    first, second = (
        [torch.equal(plain.at(step)[m.anatomy.one(site)], edited.at(step)[m.anatomy.one(site)]) for step in range(3)]
        for site in sites
    )
    assert first == [True, True, False]  # what enters the edited call is as it was
    assert second == [True, False, False]


@pytest.mark.parametrize(("case", "branch"), [("sd3", C), ("sd3", U), ("flux in turns", U), ("flux in turns", C)])
def test_an_edit_of_one_branch_leaves_the_other(case: str, branch: str) -> None:
    m, run = made(case)
    with m.watch(record="L1.q") as plain:
        run()
    with m.watch(record="L1.q", edits=[interp.Scale("L0.H1.z", 0.0, branch=branch)]) as edited:
        run()
    site = m.anatomy.one("L1.q")
    turn = 1 if case == "sd3" else 2
    for step in range(turn):  # later ones start from other latents
        for row, own in enumerate(plain.branches[step]):
            same = torch.equal(plain.at(step)[site][row], edited.at(step)[site][row])
            assert same == (own != branch)


def test_attention_of_one_branch_is_edited_too() -> None:
    m, run = made("sd3")
    with m.watch(record="L0.pattern", edits=[interp.MaskKeys("L0.H0", keys="text", branch=C)], steps=0) as tape:
        run()
    weights = tape["L0.pattern"][0]
    text = weights[:, 0, :, 24:].sum((1, 2))
    assert (text > 0).tolist() == [True, True, False, False]
    assert bool((weights[:, 1, :, 24:] > 0).all())


def test_what_is_kept_of_a_long_loop_is_what_was_made_of_it() -> None:
    m, run = made("sd3")
    keep = m.anatomy.one("L1.z")
    with m.watch(record="L1.z", reduce=lambda step, values: values[keep].norm(dim=-1).mean((0, 1))) as small:
        run()
    with m.watch(record="L1.z") as whole:
        run()
    for step in whole.steps:
        torch.testing.assert_close(small.at(step), whole.at(step)[keep].norm(dim=-1).mean((0, 1)))


def test_more_steps_than_there_were_are_refused() -> None:
    m, run = made("flux")
    with pytest.raises(NotFired, match="call 9 of the model, and there were 3"), m.watch(record="L0.z", steps="1,9"):
        run()


def test_branches_of_a_model_without_guidance_are_refused() -> None:
    from interp.zoo.families import tiny

    m = interp.attach(tiny("llama"))
    with pytest.raises(EditError, match="this model is none"):
        m.run([[5, 6, 7]], edits=[interp.Scale("L0.H0.z", 0.0, branch=C)])


def test_a_pipeline_is_held_by_its_denoiser() -> None:
    pipe = pipeline("FluxPipeline", denoiser("FluxTransformer2DModel"))
    m = interp.attach(pipe)
    assert m.module is pipe.transformer
    assert interp.attach(pipe) is m
    assert interp.attach(pipe.transformer) is m
    assert "the transformer of a FluxPipeline" in repr(m)
    with pytest.raises(InputsError, match="called by its pipeline"):
        m.prepare(["a cat"])


def test_a_pipeline_of_ones_own_is_held_too() -> None:
    class Mine(denoisers.library().FluxPipeline):
        pass

    pipe = pipeline("FluxPipeline", denoiser("FluxTransformer2DModel"))
    own = Mine(**pipe.components)
    m = interp.attach(own)
    assert m.module is pipe.transformer
    assert "the transformer of a Mine" in repr(m)


def test_two_denoisers_that_take_over_are_two_models_around_one_run() -> None:
    """Wan 2.2: the steps of both are the pipeline's, the second's go on where the first's end."""
    first, second = denoiser("WanTransformer3DModel"), denoiser("WanTransformer3DModel", seed=1)
    pipe = pipeline("WanPipeline", first, transformer_2=second, boundary_ratio=0.9)
    high, low = interp.attach(first), interp.attach(second)
    plain = wan(pipe, steps=4)
    with high.watch(record="denoiser.L0.z") as one, low.watch(record="denoiser.L0.z") as two:
        assert torch.equal(wan(pipe, steps=4), plain)
    assert one.calls + two.calls == 8  # guidance calls twice
    assert min(one.calls, two.calls) >= 2
    assert one.branches[0] == two.branches[0] == (C,)
    with low.edited([interp.Scale("denoiser.L0.H0.z", 0.0)]), high.watch(record="denoiser.L0.z") as again:
        assert not torch.equal(wan(pipe, steps=4), plain)
    assert torch.equal(again["denoiser.L0.z"], one["denoiser.L0.z"])


def test_pipelines_that_cannot_be_held_say_why() -> None:
    home = denoisers.library()
    two = pipeline("WanPipeline", denoiser("WanTransformer3DModel"), transformer_2=denoiser("WanTransformer3DModel"))
    with pytest.raises(ModelError, match="transformer, transformer_2"):
        interp.attach(two)
    small: dict[str, Any] = {
        "sample_size": 8,
        "block_out_channels": (8, 8),
        "norm_num_groups": 4,
        "layers_per_block": 1,
    }
    none = home.UNet2DModel(**small, down_block_types=("DownBlock2D",) * 2, up_block_types=("UpBlock2D",) * 2,
                       mid_block_type=None).eval()  # fmt: skip
    with pytest.raises(ModelError, match="no attention heads"):
        _ = interp.attach(home.DDPMPipeline(none, home.DDPMScheduler())).anatomy
    empty = pipeline("FluxPipeline", None)  # type: ignore[arg-type]
    with pytest.raises(ModelError, match="no denoiser"):
        interp.attach(empty)


def test_a_compiled_denoiser_runs_uncompiled_while_it_is_watched() -> None:
    transformer = denoiser("SD3Transformer2DModel")
    pipe = pipeline("StableDiffusion3Pipeline", transformer)
    m = interp.attach(pipe)
    with m.watch(record="L1.z") as plain:
        sd3(pipe, steps=1)
    pipe.transformer = torch.compile(transformer, backend="eager")
    with interp.attach(pipe).watch(record="L1.z") as tape:
        sd3(pipe, steps=1)
    assert torch.equal(plain["L1.z"], tape["L1.z"])
    transformer.compile(backend="eager")
    with m.watch(record="L1.z") as tape:
        sd3(pipe, steps=1)
    assert torch.equal(plain["L1.z"], tape["L1.z"])


def test_context_parallel_is_refused() -> None:
    transformer = denoiser("FluxTransformer2DModel")
    m = interp.attach(transformer)
    m.ready()
    for block in transformer.transformer_blocks:
        block.attn.processor._parallel_config = object()
    with pytest.raises(ModelError, match="context parallel"):
        m.run(m.example(), record="L0.z")


def test_words_of_a_pipeline_are_those_of_its_run() -> None:
    m, run = made("sd3")
    with m.watch(record="L0.pattern", edits=[interp.MaskKeys("L*", keys="text")]) as tape:
        run()
    assert not tape["L0.pattern"][..., denoisers.ROWS * denoisers.COLUMNS :].any()


def test_weights_in_another_dtype_are_refused_and_offloaded_ones_are_not() -> None:
    cast, away, plain = (denoiser("FluxTransformer2DModel") for _ in range(3))
    cast.enable_layerwise_casting(storage_dtype=torch.bfloat16, compute_dtype=torch.float32)
    with pytest.raises(ModelError, match="layerwise casting"):
        _ = interp.attach(cast).anatomy
    cpu = torch.device("cpu")
    away.enable_group_offload(cpu, offload_device=cpu, offload_type="block_level", num_blocks_per_group=1)
    tapes = []
    for module in (away, plain):
        m = interp.attach(module)
        with m.watch(record="L1.z", edits=[interp.Scale("L0.H0.z", 0.0)]) as tape:
            tapes.append((tape, flux(pipeline("FluxPipeline", module))))
    assert torch.equal(tapes[0][0]["L1.z"], tapes[1][0]["L1.z"])
    assert torch.equal(tapes[0][1], tapes[1][1])
