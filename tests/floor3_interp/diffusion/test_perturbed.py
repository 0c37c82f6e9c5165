"""Guidance by heads that look at themselves, against the definition in float64 and diffusers' own pipelines."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from denoisers import denoiser, flux, pipeline, pixart, sd3, sdxl, wan
from torch import Tensor

import interp
from interp.edits import SoftIdentity
from interp.hooks.denoisers.calls import call_of
from interp.hooks.errors import EditError, InputsError, ModelError

CELLS, WORDS = 24, 7
RUNS: dict[str, tuple[str, str, Callable[[Any], Tensor]]] = {
    "sd3": ("StableDiffusion3Pipeline", "SD3Transformer2DModel", sd3),
    "flux": ("FluxPipeline", "FluxTransformer2DModel", flux),
    "flux in turns": ("FluxPipeline", "FluxTransformer2DModel", lambda p: flux(p, true=2.0)),
    "pixart": ("PixArtSigmaPipeline", "PixArtTransformer2DModel", pixart),
    "sdxl": ("StableDiffusionXLPipeline", "UNet2DConditionModel", sdxl),
    "wan": ("WanPipeline", "WanTransformer3DModel", wan),
}


def made(case: str, **changes: Any) -> tuple[interp.Model, Callable[[], Tensor]]:
    kind, name, run = RUNS[case]
    pipe = pipeline(kind, denoiser(name, **changes))
    return interp.attach(pipe), lambda: run(pipe)


@pytest.mark.parametrize("case", RUNS)
def test_an_amount_of_zero_is_the_sample_without(case: str) -> None:
    m, run = made(case)
    plain = run()
    with interp.diffusion.perturbed(m, "L0-1.H*", amount=0.0) as doing:
        torch.testing.assert_close(run(), plain, atol=2e-5, rtol=0)
    assert doing.calls == {"sd3": 4, "wan": 2}.get(case, 3)
    with interp.diffusion.perturbed(m, "L0-1.H*"):
        assert float((run() - plain).abs().max()) > 1e-3
    assert torch.equal(run(), plain)


@pytest.mark.parametrize("guidance", [3.0, 1.0])
def test_a_whole_layer_of_sd3_is_diffusers_own(guidance: float) -> None:
    """Its processors leave out the norms of q and k, so the model has none here."""
    m, _ = made("sd3", qk_norm=None)
    pipe = m.processor
    own = pipeline("StableDiffusion3PAGPipeline", pipe.transformer, pag_applied_layers=["blocks.1"])
    with interp.diffusion.perturbed(m, "L1", weight=2.0):
        ours = sd3(pipe, guidance=guidance)
    theirs = sd3(own, guidance=guidance, pag_scale=2.0)
    torch.testing.assert_close(ours, theirs, atol=2e-5, rtol=0)
    assert float((ours - sd3(pipe, guidance=guidance)).abs().max()) > 1e-2


@pytest.mark.parametrize("guidance", [3.0, 1.0])
def test_a_whole_layer_of_pixart_is_diffusers_own(guidance: float) -> None:
    m, _ = made("pixart")
    pipe = m.processor
    own = pipeline("PixArtSigmaPAGPipeline", pipe.transformer, pag_applied_layers=["blocks.1"])
    with interp.diffusion.perturbed(m, "L1.H*", weight=2.0):
        ours = pixart(pipe, guidance=guidance)
    theirs = pixart(own, guidance=guidance, pag_scale=2.0)
    torch.testing.assert_close(ours, theirs, atol=2e-5, rtol=0)
    assert float((ours - pixart(pipe, guidance=guidance)).abs().max()) > 1e-2


def test_the_middle_of_a_unet_is_diffusers_own() -> None:
    m, run = made("sdxl")
    own = pipeline("StableDiffusionXLPAGPipeline", m.module, pag_applied_layers=["mid"])
    with interp.diffusion.perturbed(m, ["denoiser.L2", "denoiser.L3"], weight=2.0):
        ours = run()
    torch.testing.assert_close(ours, sdxl(own, pag_scale=2.0), atol=5e-5, rtol=0)
    assert float((ours - run()).abs().max()) > 1e-2


def test_one_head_by_half_is_the_definition() -> None:
    """SD3: cells look at themselves and at the words; words as ever; other heads as ever."""
    module = denoiser("SD3Transformer2DModel").double()
    m = interp.attach(module)
    given = call_of(module, batch=2, random=torch.Generator().manual_seed(0))
    given = {name: x.double() if x.is_floating_point() else x for name, x in given.items()}
    sites = [f"L1.{one}" for one in ("q", "k", "v", "z", "pattern")]
    plain = m.run(given, record=sites)
    tape = m.run(given, record=sites, edits=[SoftIdentity("L1.H1", 0.5)])
    q, k, v = (plain[f"L1.{one}"][:, :, 1] for one in "qkv")
    scores = q @ k.mT / 8**0.5
    allowed = torch.eye(CELLS + WORDS, dtype=torch.bool)
    allowed[:, CELLS:] = True
    alone = scores.masked_fill(~allowed, -torch.inf).softmax(-1)
    wanted = scores.softmax(-1)
    wanted[:, :CELLS] = 0.5 * wanted[:, :CELLS] + 0.5 * alone[:, :CELLS]
    torch.testing.assert_close(tape["L1.pattern"][:, 1].double(), wanted, atol=1e-6, rtol=0)
    torch.testing.assert_close(tape["L1.z"][:, :, 1], wanted @ v, atol=1e-6, rtol=0)
    assert torch.equal(tape["L1.z"][:, :, 0], plain["L1.z"][:, :, 0])


def test_masked_words_are_not_looked_at() -> None:
    module = denoiser("HunyuanVideoTransformer3DModel")
    m = interp.attach(module)
    given = call_of(module, batch=2, random=torch.Generator().manual_seed(0))
    given["encoder_attention_mask"][1, 4:] = 0
    tape = m.run(given, record="denoiser.L1.pattern", edits=[SoftIdentity("denoiser.L1.H0", 1.0)])
    cells = 72
    weights = tape["denoiser.L1.pattern"][1, 0, :cells]
    seen = torch.eye(cells, cells + WORDS).bool()
    seen[:, cells : cells + 4] = True
    assert torch.equal(weights > 0, seen)
    torch.testing.assert_close(weights.sum(-1), torch.ones(cells))


def test_without_words_it_is_the_identity() -> None:
    module = denoiser("DiTTransformer2DModel")
    m = interp.attach(module)
    given = m.example()
    ours = m.run(given, record="L1.z", edits=[SoftIdentity("L1", 0.3, keep=None)])
    blend = m.run(given, record="L1.z", edits=[interp.Blend("L1", to="identity", amount=0.3)])
    torch.testing.assert_close(ours["L1.z"], blend["L1.z"], atol=1e-6, rtol=0)


def test_only_the_steps_asked_for_have_a_row_more() -> None:
    m, run = made("sd3")
    with m.watch(record="L0.z") as tape, interp.diffusion.perturbed(m, "L1", steps="1-2") as doing:
        run()
    assert doing.calls == 2
    assert [len(tape.branches[step]) for step in range(4)] == [4, 6, 6, 4]
    assert tape.branches[1][-2:] == ("perturbed", "perturbed")


def test_a_step_that_is_not_asked_for_is_left_alone() -> None:
    m, run = made("sd3")
    calls: list[tuple[Any, Any, Any]] = []

    def seen(module: Any, args: Any, kwargs: Any, output: Any) -> None:
        calls.append((args, kwargs, output[0]))

    with interp.diffusion.perturbed(m, "L1", steps=1):
        handle = m.module.register_forward_hook(seen, with_kwargs=True)
        run()
        handle.remove()
    assert len(calls) == 4
    for step, (args, kwargs, output) in enumerate(calls):
        with torch.no_grad():
            assert torch.equal(m.module(*args, **kwargs)[0], output) == (step != 1), step


def test_what_has_no_meaning_is_refused() -> None:
    m, run = made("pixart")
    with pytest.raises(InputsError, match="only heads of self-attention"), interp.diffusion.perturbed(m, "cross.L1"):
        run()
    with pytest.raises(EditError, match="from 0 to 1"), interp.diffusion.perturbed(m, "L1", amount=1.5):
        run()
    with pytest.raises(InputsError, match="at least one head"), interp.diffusion.perturbed(m, []):
        run()
    own = pipeline("PixArtSigmaPAGPipeline", denoiser("PixArtTransformer2DModel"), pag_applied_layers=["blocks.1"])
    other = interp.attach(own)
    other.ready()
    with pytest.raises(ModelError, match="already perturbs attention"), interp.diffusion.perturbed(other, "L1"):
        pixart(own, pag_scale=2.0)
    assert not m.module._forward_hooks
    assert not m.module._forward_pre_hooks
    assert torch.equal(run(), run())


def test_a_call_without_the_prompt_first_is_refused() -> None:
    m, _ = made("wan")
    given = call_of(m.module, batch=1, random=torch.Generator().manual_seed(0))
    refused = pytest.raises(ModelError, match="first without the prompt and then with it")
    with refused, interp.diffusion.perturbed(m, "L1"), m.module.cache_context("uncond"):
        m.module(**given)


def far(sample: Tensor, other: Tensor) -> Tensor:
    return -(sample - other).flatten(1).norm(dim=1)


def test_a_hunt_finds_the_heads_that_made_the_sample() -> None:
    """The objective is to be near a sample that two known heads made: they are taken, one after the other."""
    m, run = made("sd3")
    with interp.diffusion.perturbed(m, ["L0.H1", "L2.H0"], weight=2.0):
        target = run()
    found = interp.diffusion.hunt(m, run, lambda sample: far(sample, target), rounds=2, weight=2.0)
    assert set(found.heads) == {"denoiser.L0.H1", "denoiser.L2.H0"}
    assert found.values.shape == (2, 6, 2)
    torch.testing.assert_close(found.base, far(run(), target))
    first = found.sites.index(found.chosen[0][0])
    assert int(found.values[0].mean(1).argmax()) == first
    with interp.diffusion.perturbed(m, found.chosen[0], weight=2.0):
        torch.testing.assert_close(found.values[0, first], far(run(), target))
    assert float(found.values[1].mean(1).max()) > -1e-3
    frame = found.to_frame()
    assert dict(zip(frame["site"], frame["round"], strict=True))[found.chosen[1][0]] == 1


def test_two_heads_a_round_and_what_a_hunt_refuses(tmp_path: Any) -> None:
    m, run = made("sd3")
    plain = run()
    found = interp.diffusion.hunt(m, run, lambda sample: -far(sample, plain), k=2, rounds=1, heads="L1-2.H*")
    order = found.values[0].mean(1).argsort(descending=True)[:2]
    assert found.chosen == (tuple(found.sites[n] for n in order),)
    found.save(tmp_path)
    again = interp.open(tmp_path)
    assert again.chosen == found.chosen
    assert torch.equal(again.values, found.values)
    with pytest.raises(InputsError, match="same noise"):
        interp.diffusion.hunt(m, lambda: torch.randn(2, 3), lambda sample: sample.mean(1))
    with pytest.raises(InputsError, match="one finite number per example"):
        interp.diffusion.hunt(m, run, lambda sample: sample)
    with pytest.raises(InputsError, match="more than the 6 there are"):
        interp.diffusion.hunt(m, run, lambda sample: far(sample, plain), rounds=7)
