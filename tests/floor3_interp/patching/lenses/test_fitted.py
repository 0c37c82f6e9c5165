"""Lenses that are fitted, and gradients read as words: slopes, losses and gradients are torch's own in float64."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from models import attached, planted
from torch import Tensor

import interp
from interp.hooks.errors import InputsError, SiteError
from interp.hooks.examples.example import example
from interp.patching.lenses.fitted import FittedLens
from interp.planted.probes import probe_task


@cache
def texts(name: str = "llama", batch: int = 4, length: int = 8) -> Any:
    m = attached(name)
    return m.inputs(dict(example(m.module, batch=batch, length=length, seed=3)))


@cache
def jacobian() -> FittedLens:
    return interp.patching.jacobian_lens(attached("llama"), texts(), skip=1)


def test_the_jacobian_is_the_mean_of_whole_slopes() -> None:
    """Every pair of positions by autograd over the module's blocks, summed over later and averaged over earlier."""
    m, x = attached("llama"), texts()
    ids = x.ids
    module = m.module.model
    total = torch.zeros(32, 32).double()
    for row in range(len(ids)):
        hidden = m.run(x, record="L0.resid_post")["L0.resid_post"][row : row + 1].detach()

        def last(h: Tensor) -> Tensor:
            place = torch.arange(h.shape[1])[None]
            turned = module.rotary_emb(h, place)
            made = module.layers[1](h, position_embeddings=turned, position_ids=place, attention_mask=None)
            return made[0] if isinstance(made, tuple) else made

        whole = torch.autograd.functional.jacobian(last, hidden)[0, :, :, 0].double()  # [t', out, t, in]
        counted = range(1, ids.shape[1] - 1)
        total += sum(whole[t2, :, t].T for t in counted for t2 in counted) / len(counted)
    assert torch.allclose(jacobian().matrices[0].double(), total / len(ids), atol=1e-5)
    assert jacobian().sites == ("L0.resid_post",)


def test_a_fitted_lens_reads_as_the_head_behind_its_map() -> None:
    m, x = attached("llama"), texts()
    seen = jacobian().read(m, x, positions=[3], answers=[[5]] * 4, top=2)
    h = m.run(x, record="L0.resid_post")["L0.resid_post"][:, 3]
    logits = m.module.lm_head(m.module.model.norm(h @ jacobian().matrices[0])).double()
    assert seen.top[0, :, 0].tolist() == logits.topk(2).indices.tolist()
    assert seen.logprob is not None
    assert torch.allclose(seen.logprob[0, :, 0].double(), logits.log_softmax(-1)[:, 5], atol=1e-5)


def kl(m: interp.Model, x: Any, matrix: Tensor, bias: Tensor, rows: Tensor) -> float:
    tape = m.run(x, record="L0.resid_post")
    wanted = tape["logits"][rows].double().log_softmax(-1)
    h = tape["L0.resid_post"][rows] @ matrix + bias
    said = m.module.lm_head(m.module.model.norm(h)).double().log_softmax(-1)
    return float((wanted.exp() * (wanted - said)).sum(-1).mean().detach())


@cache
def tuned() -> FittedLens:
    x = texts(batch=48, length=12)
    return interp.patching.tuned_lens(attached("llama"), x, steps=30, rate=1e-2, held_out=0.25, seeds=2)


def test_a_tuned_lens_is_nearer_to_the_model_on_rows_that_were_kept_back() -> None:
    """And what it says of itself is the divergence by its definition, on the very rows that the seed kept."""
    found, m, x = tuned(), attached("llama"), texts(batch=48, length=12)
    assert found.kl.shape == (1, 2)
    assert bool((found.kl < found.plain).all())
    kept = torch.zeros(48, 12, dtype=torch.bool)
    kept[torch.randperm(48, generator=torch.Generator().manual_seed(0))[:12]] = True
    assert float(found.kl[0, 0]) == pytest.approx(kl(m, x, found.matrices[0], found.biases[0], kept), rel=1e-4)
    assert float(found.plain[0, 0]) == pytest.approx(kl(m, x, torch.eye(32), torch.zeros(32), kept), rel=1e-4)


def test_without_steps_the_better_start_is_kept() -> None:
    found = interp.patching.tuned_lens(attached("llama"), texts(batch=48, length=12), steps=0)
    rows = torch.ones(48, 12, dtype=torch.bool)
    rows[torch.randperm(48, generator=torch.Generator().manual_seed(0))[:12]] = False
    x = texts(batch=48, length=12)
    fitted = kl(attached("llama"), x, found.matrices[0], found.biases[0], rows)
    assert fitted <= kl(attached("llama"), x, torch.eye(32), torch.zeros(32), rows) + 1e-6


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_gradients_are_torchs_and_words_are_their_products(name: str) -> None:
    m, x = attached(name), texts(name)
    metric = interp.metrics.LogitDifference(answers=[[5]] * 4, wrong=[[6]] * 4)
    found = interp.patching.backward_lens(m, x, metric=metric, sites="L0.mlp_out", positions="last", top=3)
    block = m.module.model.layers[0].mlp if name == "llama" else m.module.transformer.h[0].mlp
    kept: list[Tensor] = []
    handle = block.register_forward_hook(lambda _, __, out: kept.append(out.requires_grad_()))
    with torch.enable_grad():
        logits = m.module(**x.kwargs).logits[:, -1].double()
        (slope,) = torch.autograd.grad((logits[:, 5] - logits[:, 6]).sum(), kept[0])
    handle.remove()
    slope = slope[:, -1].double()
    assert torch.allclose(found.size[0, :, 0], slope.norm(dim=-1), rtol=1e-5)
    norm = m.module.model.norm if name == "llama" else m.module.transformer.ln_f
    spoken = norm.weight.double()[:, None] * m.module.lm_head.weight.double().T
    spoken = spoken - spoken.mean(0) if name == "gpt2" else spoken
    values = slope @ spoken
    assert found.raising[0, :, 0].tolist() == values.topk(3).indices.tolist()
    assert found.lowering[0, :, 0].tolist() == (-values).topk(3).indices.tolist()


def test_the_gradient_of_a_weight_is_made_of_what_went_in_and_the_slope_that_is_read() -> None:
    """Katz et al.: x^T delta, summed over positions."""
    m, x = attached("gpt2"), texts("gpt2")
    projection = m.module.transformer.h[1].mlp.c_proj
    slopes: list[Tensor] = []
    entering: list[Tensor] = []

    def keep(_: Any, ins: Any, out: Tensor) -> None:
        entering.append(ins[0].detach())
        slopes.append(out)

    handle = projection.register_forward_hook(keep)
    with torch.enable_grad():
        logits = m.module(**x.kwargs).logits[:, -1]
        value = (logits[:, 5] - logits[:, 6]).sum()
        weight, delta = torch.autograd.grad(value, [projection.weight, slopes[0]])
    handle.remove()
    metric = interp.metrics.LogitDifference(answers=[[5]] * 4, wrong=[[6]] * 4)
    found = interp.patching.backward_lens(m, x, metric=metric, sites="L1.mlp_out", positions=list(range(8)), top=1)
    assert torch.allclose(torch.einsum("bpi,bpo->io", entering[0], delta), weight, atol=1e-5)
    assert torch.allclose(found.size[0], delta.norm(dim=-1).double(), rtol=1e-4, atol=1e-6)


def test_what_would_have_to_be_written_is_the_answer() -> None:
    """In the planted decoder logits are the output wires, so the slope of a difference is its two words."""
    task = probe_task("planted-decoder", model=planted("planted-decoder"))
    found = interp.patching.backward_lens(task.model, task.clean, metric=task.metric, sites="L1.resid_post", top=1)
    row = found.to_frame().iloc[0]
    assert [row["raising"][0].strip(), row["lowering"][0].strip()] == ["apple", "stone"]


def test_they_are_saved_and_read_back(tmp_path: Path) -> None:
    m, x = attached("llama"), texts()
    metric = interp.metrics.LogitDifference(answers=[[5]] * 4, wrong=[[6]] * 4)
    for n, one in enumerate((tuned(), jacobian(), interp.patching.backward_lens(m, x, metric=metric))):
        one.save(tmp_path / str(n))
        again = interp.open(tmp_path / str(n))
        assert repr(again) == repr(one)
        assert again.to_frame().equals(one.to_frame())
    assert tuned().plot().data
    with pytest.raises(InputsError, match="nothing was kept back"):
        jacobian().plot()


def test_other_families_and_half_precision() -> None:
    half = attached("llama", dtype=torch.bfloat16)
    found = interp.patching.tuned_lens(half, half.inputs(dict(example(half.module, batch=4, length=6))), steps=1)
    assert bool(found.kl.isfinite().all())
    assert interp.patching.jacobian_lens(attached("bert"), texts("bert"), skip=0).matrices.shape[0] == 1
    vit = attached("vit")
    with pytest.raises(InputsError, match="position by position"):
        interp.patching.tuned_lens(vit, vit.inputs(dict(example(vit.module, batch=2))))


@pytest.mark.parametrize(
    ("call", "how", "says"),
    [
        ("tuned_lens", {"held_out": 1.0}, "held_out between 0 and 1"),
        ("tuned_lens", {"sites": "L1.resid_post"}, "needs no fitted lens"),
        ("jacobian_lens", {"skip": -1}, "0 or more"),
        ("jacobian_lens", {"skip": 7}, "no position behind the first 7"),
    ],
)
def test_wrong_input_is_refused(call: str, how: dict[str, Any], says: str) -> None:
    with pytest.raises((InputsError, SiteError), match=says):
        getattr(interp.patching, call)(attached("llama"), texts(), **how)


def test_places_that_are_no_residual_and_lenses_of_another_width_are_refused() -> None:
    with pytest.raises(SiteError, match="is no residual"):
        interp.patching.tuned_lens(attached("llama"), texts(), sites="L0.mlp_out")
    metric = interp.metrics.LogitDifference(answers=[[5]] * 4, wrong=[[6]] * 4)
    with pytest.raises(SiteError, match="what heads write"):
        interp.patching.backward_lens(attached("llama"), texts(), metric=metric, sites="L0.H1.result")
    with pytest.raises(InputsError, match="of width 32"):
        jacobian().read(planted("planted-decoder"), "fox apple lake")
    with pytest.raises(InputsError, match="two or more"):
        interp.patching.tuned_lens(attached("llama"), texts(batch=1))
