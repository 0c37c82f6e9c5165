"""What is read is what others read: the bare model, TransformerLens, nnsight, eager weights, finite differences."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import interp
from interp.hooks.examples.example import example
from interp.hooks.survey.answers import answer
from interp.zoo.families import tiny

FAMILIES = ["gpt2", "llama", "t5", "bert", "vit", "llava"]


@pytest.mark.parametrize("family", FAMILIES)
def test_attached_and_recording_gives_the_same_bits(family: str) -> None:
    module = tiny(family)
    padding = None if family == "vit" else "left" if family in ("gpt2", "llama", "llava") else "right"
    kwargs = example(module, batch=2, padding=padding)
    with torch.no_grad():
        before = answer(module(**kwargs))
    m = interp.attach(module)
    towers = [""] if len(m.towers) == 1 else [f"{name}." for name in m.towers]
    tape = m.run(kwargs, record=[f"{t}L*.{c}" for t in towers for c in ("z", "q", "v", "pattern", "attn_out")])
    with torch.no_grad():
        after = answer(module(**kwargs))
    assert torch.equal(before, after)
    assert torch.equal(before, tape["logits"])


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_z_and_residuals_are_transformer_lens(family: str) -> None:
    from transformer_lens.model_bridge.sources._bridge_builder import build_bridge_from_module

    module = tiny(family, attn="eager")
    ids = example(module, batch=2)["input_ids"]
    m = interp.attach(module)
    names = ["attn.hook_z", "attn.hook_v", "attn.hook_pattern", "hook_resid_pre", "hook_resid_post", "hook_mlp_out"]
    ours = m.run({"input_ids": ids}, record=[f"blocks.1.{n}" for n in names])
    twin = tiny(family, attn="eager")
    bridge = build_bridge_from_module(twin, type(twin).__name__, hf_config=twin.config)
    with torch.no_grad():
        _, theirs = bridge.run_with_cache(ids)
    for name in names:
        mine, peer = ours[f"blocks.1.{name}"], theirs[f"blocks.1.{name}"]
        torch.testing.assert_close(
            mine, peer.reshape(mine.shape), rtol=1e-5, atol=1e-5, msg=lambda s, n=name: f"{n}: {s}"
        )


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_z_is_what_nnsight_sees_enter_the_output_projection(family: str) -> None:
    from nnsight import NNsight

    module = tiny(family)
    kwargs = example(module, batch=2, padding="left")
    peer = NNsight(module)
    with torch.no_grad(), peer.trace(**kwargs):
        if family == "gpt2":
            entered = peer.transformer.h[1].attn.c_proj.input.save()
        else:
            entered = peer.model.layers[1].self_attn.o_proj.input.save()
    z = interp.attach(module).run(kwargs, record="L1.z")["L1.z"]
    assert torch.equal(z.flatten(-2), entered)
    attached = interp.attach(NNsight(module))
    assert torch.equal(attached.run(kwargs, record="L1.z")["L1.z"], z)


@pytest.mark.parametrize("padding", ["left", "right"])
@pytest.mark.parametrize("family", ["gpt2", "llama", "mistral", "t5", "bert", "whisper"])
def test_patterns_are_eager_weights(family: str, padding: Any) -> None:
    """Recomputed beside eager: the same q and k, 1e-6 in every layer. Under sdpa: rounding of earlier layers on top."""
    eager, fused = (tiny(family, attn=attn) for attn in ("eager", "sdpa"))
    kwargs = example(eager, batch=3, length=9, padding=None if family == "whisper" else padding)
    with torch.no_grad():
        out = eager(**kwargs, output_attentions=True)
    for module, deeper in ((eager, 1e-6), (fused, 1e-5)):
        m = interp.attach(module)
        x = m.inputs(kwargs)
        for tower, weights in _eager_weights(m, out).items():
            tape = m.run(x, record=f"{tower}L*.pattern")
            for layer, expected in enumerate(weights):
                real = x.valid_of({"": "text", "cross.": "decoder"}.get(tower, tower.rstrip(".")))[:, None, :, None]
                difference = (tape[f"{tower}L{layer}.pattern"] - expected).abs().masked_fill(~real, 0.0)
                assert float(difference.max()) <= (deeper if layer or tower == "cross." else 1e-6), f"{tower}L{layer}"


def _eager_weights(m: interp.Model, out: Any) -> dict[str, Any]:
    if len(m.towers) == 1:
        return {"": out.attentions}
    return {f"{name}.": getattr(out, f"{name}_attentions") for name in m.towers}


SITES = ["z", "q", "k", "v", "resid_pre", "resid_mid", "mlp_out", "attn_out", "attn_write", "resid_post"]


@pytest.mark.parametrize(
    ("family", "frozen", "step", "tolerance"),
    [
        ("gpt2", False, 1e-3, 1e-7),
        ("gpt2", True, 1e-3, 1e-7),
        ("bart", False, 1e-3, 1e-7),
        ("llama", False, 1e-2, 1e-3),
        ("gemma2", True, 1e-2, 1e-3),
    ],
)
def test_gradients_at_sites_are_finite_differences(family: str, frozen: bool, step: float, tolerance: float) -> None:
    """To fourth order in float64; Llama's norms and Gemma's attention compute in float32 whatever the model is in."""
    module = tiny(family, dtype=torch.float64)
    module.requires_grad_(not frozen)
    m, kwargs = interp.attach(module), example(module, batch=2, length=5)
    prefix = "" if len(m.towers) == 1 else "decoder."
    direction = torch.randn(module.get_output_embeddings().weight.shape[0], dtype=torch.float64)

    def metric(logits: Tensor, inputs: Any = None) -> Tensor:
        return (logits[:, -1] * direction).sum(-1)

    sites = [f"{prefix}L1.{c}" for c in SITES]
    tape = m.run(kwargs, record=sites, grad=True)
    gradients = tape.grad(metric, sites)
    for site in sites:
        nudge = torch.randn_like(tape[site].detach())
        values = [
            float(metric(m.run(kwargs, edits=[interp.Add(site, nudge, amount=n * step)])["logits"]).sum())
            for n in (-2, -1, 1, 2)
        ]
        expected = (values[0] - 8 * values[1] + 8 * values[2] - values[3]) / (12 * step)
        found = float((gradients[site] * nudge).sum())
        assert abs(found - expected) <= tolerance * max(1.0, abs(expected)), f"{site}: {found} against {expected}"
    assert all(p.grad is None for p in module.parameters()), "asking for gradients at sites left some on parameters"
    assert all(p.requires_grad != frozen for p in module.parameters())


def test_gradients_reach_single_heads() -> None:
    module = tiny("llama", dtype=torch.float64)
    m, kwargs = interp.attach(module), example(module, batch=2, length=5)

    def metric(logits: Tensor, inputs: Any) -> Tensor:
        return logits[:, -1, 3]

    whole = m.run(kwargs, record="L0.z", grad=True).grad(metric)["L0.z"]
    part = m.run(kwargs, record="L0.H2,1.z", grad=True).grad(metric)["L0.H2,1.z"]
    torch.testing.assert_close(part, whole[:, :, [2, 1]])


def test_a_gradient_retained_on_a_view() -> None:
    """Several sites that are views of one another each get their own gradient, in one backward pass."""
    module = tiny("gpt2", dtype=torch.float64)
    m, kwargs = interp.attach(module), example(module, batch=2, length=5)
    sites = ["L0.q", "L0.k", "L0.v", "L0.z", "L0.attn_out", "L1.resid_pre", "L1.v", "L1.z"]

    def metric(logits: Tensor, inputs: Any) -> Tensor:
        return logits[:, -1, 3]

    together = m.run(kwargs, record=sites, grad=True).grad(metric)
    for site in sites:
        alone = m.run(kwargs, record=site, grad=True).grad(metric)[site]
        assert float(alone.abs().max()) > 0
        torch.testing.assert_close(together[site], alone)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_heads_sliced_after_the_output_projection(family: str) -> None:
    """A head is a slice of what enters the projection: cutting its columns there changes what zeroing z changes."""
    module = tiny(family, dtype=torch.float64)
    m, kwargs = interp.attach(module), example(module, batch=2)
    edited = m.run(kwargs, edits=[interp.Zero("L1.H2.z")])["logits"]
    twin = tiny(family, dtype=torch.float64)
    with torch.no_grad():
        if family == "gpt2":
            twin.transformer.h[1].attn.c_proj.weight[16:24] = 0
        else:
            twin.model.layers[1].self_attn.o_proj.weight[:, 16:24] = 0
        expected = twin(**kwargs).logits
    torch.testing.assert_close(edited, expected)


def test_scores_read_after_the_softmax() -> None:
    """Scores are before the softmax and the mask's hidden keys are -inf; the pattern is their softmax."""
    m = interp.attach(tiny("llama", dtype=torch.float64))
    x = m.inputs(example(m.module, batch=2, padding="right"))
    tape = m.run(x, record=["L0.scores", "L0.pattern", "L0.q", "L0.k"])
    raw = torch.einsum("bihd,bjhd->bhij", tape["L0.q"], tape["L0.k"].repeat_interleave(2, 2)) / 8**0.5
    later = torch.ones(x.length, x.length, dtype=torch.bool).triu(1)
    hidden = (later | ~x.valid[:, None, None, :]).expand_as(raw)
    assert bool(tape["L0.scores"][hidden].isneginf().all())
    torch.testing.assert_close(tape["L0.scores"][~hidden], raw[~hidden])
    torch.testing.assert_close(torch.softmax(tape["L0.scores"], -1), tape["L0.pattern"])


@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_a_new_attention_name_that_loses_the_mask(family: str) -> None:
    """Padding and causality hold while something is on the model, and the implementation keeps its name."""
    module = tiny(family, dtype=torch.float64)
    m = interp.attach(module)
    name = module.config._attn_implementation
    padded = example(module, batch=3, padding="left")
    real = padded["attention_mask"].bool()
    with m.edited([interp.Scale("L*.z", 1.0)]), torch.no_grad():
        assert module.config._attn_implementation == name
        together = module(**padded).logits
        for row in range(3):
            alone = module(input_ids=padded["input_ids"][row : row + 1, real[row]]).logits
            torch.testing.assert_close(together[row, real[row]], alone[0], rtol=1e-9, atol=1e-9)
        ids = padded["input_ids"][:1, real[0]].clone()
        first = module(input_ids=ids).logits[:, :-1]
        ids[:, -1] = 7
        assert torch.equal(module(input_ids=ids).logits[:, :-1], first)


def test_a_backward_hook_that_leaks() -> None:
    """A run with gradients leaves no hook, no graph and no gradient behind."""
    import gc
    import weakref

    module = tiny("gpt2", dtype=torch.float64)
    m, kwargs = interp.attach(module), example(module)
    tape = m.run(kwargs, record="L*.z", grad=True)
    tape.grad(lambda logits, inputs: logits[:, -1, 3])
    watched = weakref.ref(tape["L0.z"])
    del tape
    gc.collect()
    assert watched() is None
    for child in module.modules():
        kinds = (child._forward_hooks, child._forward_pre_hooks, child._backward_hooks, child._backward_pre_hooks)
        assert not any(kinds)
    assert all(p.grad is None for p in module.parameters())
    assert not any(p._backward_hooks for p in module.parameters())
    with torch.no_grad():
        assert not module(**kwargs).logits.requires_grad
