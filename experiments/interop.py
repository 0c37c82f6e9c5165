"""The same numbers through other people's tools: nnsight, captum and TransformerLens, on tiny random models.

    .venv/bin/python experiments/interop.py

Each function is one example to copy: it uses the other tool as its documentation does, uses interp beside it or inside
it, and returns how far the two are apart, which is asserted. Nothing is downloaded; it takes a few seconds.
"""

from __future__ import annotations

import json
from typing import Any

import torch
from torch import Tensor

import interp
from interp.zoo.families import tiny


def nnsight_beside() -> float:
    """Attach a model that nnsight holds: its traces and our runs read the same tensors."""
    from nnsight import NNsight

    traced = NNsight(tiny("llama"))
    m = interp.attach(traced)
    ids = torch.tensor([[5, 17, 23, 42, 8]])
    tape = m.run({"input_ids": ids}, record="L1.z")
    with torch.no_grad(), traced.trace(input_ids=ids):
        entered = traced.model.layers[1].self_attn.o_proj.input.save()
    return gap(tape["L1.z"].flatten(-2), entered)


def nnsight_sees_our_edits() -> float:
    """A trace inside `m.edited(...)` sees the edited run."""
    from nnsight import NNsight

    traced = NNsight(tiny("llama"))
    m = interp.attach(traced)
    ids, edits = torch.tensor([[5, 17, 23, 42, 8]]), [interp.Zero("L1.H2.z"), interp.MaskKeys("L0.H*", keys=[0])]
    with torch.no_grad(), m.edited(edits), traced.trace(input_ids=ids):
        logits = traced.lm_head.output.save()
    return gap(m.run({"input_ids": ids}, edits=edits)["logits"], logits)


def nnsight_uses_our_sites() -> float:
    """A site says which module of a trace has the head, and which columns of it are the head's."""
    from nnsight import NNsight

    traced = NNsight(tiny("llama"))
    m = interp.attach(traced)
    ids, site = torch.tensor([[5, 17, 23, 42, 8]]), m.anatomy.one("L1.H2.z")
    layer, head = m.anatomy.layer(site), site.heads[0]
    projection = traced.get(layer.out)
    columns = slice(head * layer.d_value, (head + 1) * layer.d_value)
    with torch.no_grad(), traced.trace(input_ids=ids):
        projection.input[..., columns] = 0
        logits = traced.lm_head.output.save()
    return gap(m.run({"input_ids": ids}, edits=[interp.Zero(str(site))])["logits"], logits)


def captum_attributes_the_edited_model() -> float:
    """Integrated gradients of a model with a head taken out: completeness holds for the edited model."""
    from captum.attr import LayerIntegratedGradients

    model = tiny("llama")
    m = interp.attach(model)
    ids, baseline, target = torch.tensor([[5, 17, 23, 42, 8]]), torch.full((1, 5), 3), 31

    def forward(input_ids: Tensor) -> Tensor:
        with m.edited([interp.Zero("L1.H2.z")]):
            return model(input_ids=input_ids).logits[:, -1]

    explain = LayerIntegratedGradients(forward, model.get_input_embeddings())
    attributions = explain.attribute(ids, baselines=baseline, target=target, n_steps=400)
    with torch.no_grad():
        moved = forward(ids)[0, target] - forward(baseline)[0, target]
        unedited = model(ids).logits[0, -1, target] - model(baseline).logits[0, -1, target]
    assert abs(moved - unedited) > 0.05, "the head that was taken out does nothing here"
    return gap(attributions.sum(), moved)


def captum_attributes_a_head() -> float:
    """Gradient times value of one head's z, from captum's layer at the projection and from our tape."""
    from captum.attr import LayerGradientXActivation

    model = tiny("llama")
    m = interp.attach(model)
    ids, target, head = torch.tensor([[5, 17, 23, 42, 8]]), 31, 2
    layer = m.anatomy.layer(m.anatomy.one("L1.z"))
    explain = LayerGradientXActivation(lambda x: model(input_ids=x).logits[:, -1], model.get_submodule(layer.out))
    theirs = explain.attribute(ids, target=target, attribute_to_layer_input=True).unflatten(-1, (layer.heads, -1))
    tape = m.run({"input_ids": ids}, record="L1.z", grad=True)
    ours = tape.grad(tape["logits"][:, -1, target])["L1.z"] * tape["L1.z"]
    return gap(ours[:, :, head], theirs[:, :, head])


def transformer_lens_bridge() -> float:
    """Attach a TransformerBridge, record under its names, hand over an ActivationCache, and compare with its own."""
    bridge = lens(tiny("gpt2", attn="eager"))
    m = interp.attach(bridge)
    ids = torch.tensor([[5, 17, 23, 42, 8]])
    hooks = ["attn.hook_z", "attn.hook_v", "hook_resid_pre", "hook_resid_post", "hook_mlp_out"]
    names = [f"blocks.{layer}.{hook}" for layer in (0, 1) for hook in hooks]
    cache = m.run({"input_ids": ids}, record=names).to_transformer_lens()
    with torch.no_grad():
        _, theirs = bridge.run_with_cache(ids)
    assert set(cache) == set(names)
    return max(gap(cache[name], theirs[name]) for name in cache)


def transformer_lens_hooks() -> float:
    """A head zeroed by a hook of TransformerLens' and by an edit under the same name."""
    bridge = lens(tiny("gpt2", attn="eager"))
    m = interp.attach(bridge)
    ids, name, head = torch.tensor([[5, 17, 23, 42, 8]]), "blocks.1.attn.hook_z", 2

    def zero(z: Tensor, hook: Any) -> Tensor:
        z = z.unflatten(-1, (4, -1)) if z.ndim == 3 else z
        z[:, :, head] = 0
        return z

    with torch.no_grad():
        theirs = bridge.run_with_hooks(ids, fwd_hooks=[(name, zero)])
    return gap(m.run({"input_ids": ids}, edits=[interp.Zero(f"L1.H{head}.z")])["logits"], theirs)


def lens(model: Any) -> Any:
    """A TransformerBridge around a model that is in memory already."""
    from transformer_lens.model_bridge.sources._bridge_builder import build_bridge_from_module

    return build_bridge_from_module(model, type(model).__name__, hf_config=model.config)


def gap(ours: Tensor, theirs: Tensor) -> float:
    """The largest difference."""
    assert ours.shape == theirs.shape, f"{list(ours.shape)} here and {list(theirs.shape)} there"
    return float((ours.detach().double() - theirs.detach().double()).abs().max())


EXAMPLES = {
    nnsight_beside: 0.0,
    nnsight_sees_our_edits: 0.0,
    nnsight_uses_our_sites: 0.0,
    captum_attributes_the_edited_model: 5e-3,
    captum_attributes_a_head: 1e-5,
    transformer_lens_bridge: 1e-5,
    transformer_lens_hooks: 1e-5,
}
"""Each example with the largest difference that counts as agreement; integrating in 400 steps leaves the largest."""


def main() -> None:
    torch.set_num_threads(1)
    gaps = {}
    for run, allowed in EXAMPLES.items():
        gaps[run.__name__] = found = run()
        assert found <= allowed, f"{run.__name__}: the two sides differ by {found:.3g}, more than {allowed:g}"
        print(f"{run.__name__:<36} agrees to {found:.1g}   {(run.__doc__ or '').splitlines()[0]}")
    print(json.dumps({"experiment": "interop", **gaps}))


if __name__ == "__main__":
    main()
