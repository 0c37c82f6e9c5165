"""Path patching equals its definition (three passes a sender), adds up where it must, and finds planted edges."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from models import attached
from torch import Tensor

import interp
from interp.hooks.edits.edits import Edit
from interp.hooks.errors import InputsError, ModelError, SiteError
from interp.hooks.examples.example import example
from interp.metrics.shipped import LogitDifference
from interp.planted import build, key
from interp.planted.probes import probe_task

RECEIVERS = ["L1.H2.q_in", "L1.K1.k_in", "L1.K0.v_in", "L1.mlp_in", "logits"]


def difference(logits: Tensor, inputs: Any) -> Tensor:
    last = logits if logits.ndim == 2 else logits[:, -1]
    return last[:, 0] - last[:, 1]


def asked(name: str) -> tuple[interp.Model, dict[str, Tensor], dict[str, Tensor]]:
    m = attached(name)
    base, source = (dict(example(m.module, batch=2, length=5, seed=seed)) for seed in (1, 2))
    return m, base, source


Recorded = tuple[list[str], list[str], Any, Any]


def recorded(m: interp.Model, base: Any, source: Any) -> Recorded:
    """Layers with heads, layers with MLPs, and both runs with what they gave."""
    name = "decoder." if "decoder" in m.anatomy.towers else ""
    layers = [f"{name}L{layer}" for layer in m.anatomy.tower(name[:-1] or None, text="").by_index]
    heads = layers if not name else [*layers, *(layer.replace("decoder", "cross") for layer in layers)]
    sites = [*(f"{layer}.z" for layer in heads), *(f"{layer}.mlp_out" for layer in layers), f"{name}embed"]
    return heads, layers, *(m.run(x, record=sites) for x in (base, source))


def naive(m: interp.Model, base: Any, runs: Recorded, sender: str, receiver: str, freeze: str) -> Tensor:
    """Wang et al., appendix B, by full passes: record both runs, run the base with everything but the sender frozen
    and record the receiver, run the base with the receiver put in."""
    heads, layers, old, new = runs
    frozen: list[Edit] = [interp.Set(f"{layer}.z", old[f"{layer}.z"]) for layer in heads]
    if freeze == "all":
        frozen += [interp.Set(f"{layer}.mlp_out", old[f"{layer}.mlp_out"]) for layer in layers]
    site = sender.replace("mlp_write", "mlp_out")
    site = f"{site}.z" if "H" in site else site
    frozen = [edit for edit in frozen if edit.site != site]
    moved = [*frozen, interp.Set(site, new[site])]
    if receiver == "logits":
        return difference(m.run(base, edits=moved)["logits"], None) - difference(old["logits"], None)
    put = receiver if receiver.endswith("mlp_in") else receiver.replace("_in", "")
    value = m.run(base, edits=moved, record=[put])[put]
    return difference(m.run(base, edits=[interp.Set(put, value)])["logits"], None) - difference(old["logits"], None)


@pytest.mark.parametrize("freeze", ["heads", "all"])
@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt_neox", "opt", "vit"])
def test_every_path_is_that_of_the_definition(name: str, freeze: Any) -> None:
    m, base, source = asked(name)
    runs = recorded(m, base, source)
    for receiver in RECEIVERS if name == "llama" else ["L1.H2.q_in", "L1.mlp_in", "logits"]:
        senders = ["L*.H1", "L*.mlp_write", "embed"]
        e = interp.path_patch(
            m, base=base, source=source, metric=difference, senders=senders, receivers=receiver, freeze=freeze
        )
        assert float(e.values.abs().max()) > 1e-3
        for n in (0, len(e.sites) - 2, len(e.sites) - 1):
            sender = e.sites[n].removesuffix(".result")
            expected = naive(m, base, runs, sender, receiver, freeze)
            torch.testing.assert_close(
                e.values[n].float(), expected, atol=3e-5, rtol=1e-3, msg=f"{sender} to {receiver}"
            )


@pytest.mark.parametrize("freeze", ["heads", "all"])
def test_a_decoder_with_cross_attention_has_all_of_it_frozen(freeze: Any) -> None:
    m, base, source = asked("t5")
    source = {**source, "input_ids": base["input_ids"].flip(1)}
    runs = recorded(m, base, source)
    for receiver in ("decoder.L1.H2.q_in", "decoder.L1.mlp_in", "logits"):
        senders = ["decoder.L0.H1", "cross.L0.H2", "decoder.L0.mlp_write", "decoder.embed"]
        e = interp.path_patch(
            m, base=base, source=source, metric=difference, senders=senders, receivers=receiver, freeze=freeze
        )
        for n, sender in enumerate(senders):
            expected = naive(m, base, runs, sender, receiver, freeze)
            torch.testing.assert_close(
                e.values[n].float(), expected, atol=3e-5, rtol=1e-3, msg=f"{sender} to {receiver}"
            )
        assert float(e.values[1].abs().max()) > 1e-4


@pytest.mark.parametrize("name", ["gpt2", "gemma2", "vit"])
def test_with_norms_held_and_everything_frozen_the_paths_into_the_logits_add_up(name: str) -> None:
    """All writes together are the source's last residual, less what no part writes: `norm_held(resid(source))`."""
    m, base, source = asked(name)
    senders = ["embed", "L*.H*", "L*.mlp_write"]
    linear = lambda g, x: difference(g, x)  # noqa: E731
    if name == "gemma2":  # its logits are capped; undo the cap, so that the metric is linear in the residual
        linear = lambda g, x: difference(torch.atanh(g / 3.0), x)  # noqa: E731
    e = interp.path_patch(
        m, base=base, source=source, metric=linear, senders=senders, receivers="logits", freeze="all", ln="freeze"
    )
    direct = [interp.patching.direct_effect(m, x, metric=linear) for x in (base, source)]
    if name == "gpt2":  # the same sum by hand, the norm at the base's scale
        model: Any = m.module
        left = [m.run(x, record="L1.resid_post")["L1.resid_post"][:, -1].double() for x in (base, source)]
        sigma = (left[0].var(-1, unbiased=False, keepdim=True) + model.transformer.ln_f.eps).sqrt()
        gap = left[1] - left[0]
        normed = (gap - gap.mean(-1, keepdim=True)) / sigma * model.transformer.ln_f.weight.detach().double()
        w = model.lm_head.weight.detach().double()
        torch.testing.assert_close(e.values.sum(0), normed @ (w[0] - w[1]), atol=1e-5, rtol=1e-5)
    assert direct[0].sites[: len(e.sites)] != ()
    pair = interp.path_patch(
        m, base=base, source=source, metric=linear, senders=["L0.H0", "L0.H1"], receivers="logits", freeze="all",
        ln="freeze",
    )  # fmt: skip
    both = dict(zip(e.sites, e.values, strict=True))
    torch.testing.assert_close(pair.values[0], both["L0.H0.result"], atol=1e-6, rtol=1e-6)


def test_what_a_receiver_reads_adds_up_with_its_norm_held() -> None:
    """q of a Llama head is linear in its normed input (no bias, rotary): all senders together move it as far as the
    sum of each."""
    from interp.hooks.drive.chain import Chain

    m, base, _ = asked("llama")
    chain = Chain(m.module, m.anatomy, m.anatomy.tower(None, text=""), m.called_with(base))
    more = [torch.randn(chain.left.shape) for _ in range(3)]
    plain = chain.plain(1, "q")
    moved = [chain.read_held(1, "q", part) - plain for part in more]
    together = chain.read_held(1, "q", torch.stack(more).sum(0)) - plain
    torch.testing.assert_close(torch.stack(moved).sum(0), together, atol=1e-4, rtol=1e-4)
    free = [
        chain.read(1, "q", chain.plain(1, "resid_pre") + part) - plain for part in (more[0], torch.stack(more).sum(0))
    ]
    assert not torch.allclose(free[1], together, atol=1e-2)


@pytest.mark.parametrize("freeze", ["heads", "all"])
def test_planted_edges_carry_everything_and_null_heads_exactly_nothing(freeze: Any) -> None:
    m = interp.attach(*build("planted-decoder"))
    task = probe_task("planted-decoder", "induction", model=m)
    how = {"base": task.corrupt, "source": task.clean, "metric": task.metric, "freeze": freeze}
    into_keys = interp.path_patch(m, receivers="L1.H4.k_in", **how)
    assert into_keys.top(1)["site"].item() == "L0.H1.result"
    assert float(into_keys.normalised.max()) == pytest.approx(1.0, abs=1e-2)
    into_queries = interp.path_patch(m, receivers="L1.H4.q_in", **how)
    assert float(into_queries.values.abs().max()) == 0.0
    straight = interp.path_patch(m, receivers="logits", **how)
    assert straight.top(1)["site"].item() == "L1.H4.result"
    for e in (into_keys, straight):
        assert e.noise_floor < 1e-4
        for site, value in zip(e.sites, e.mean.tolist(), strict=True):
            assert value == 0.0 or site.removesuffix(".result") not in key("planted-decoder").null


def test_only_the_positions_named_are_moved() -> None:
    m = interp.attach(*build("planted-decoder"))
    task = probe_task("planted-decoder", "induction", model=m)
    how = {"base": task.corrupt, "source": task.clean, "metric": task.metric, "receivers": "L1.H4.k_in"}
    somewhere = interp.path_patch(m, positions=[2], senders="L0.H1", **how)
    last = interp.path_patch(m, positions="last", senders="L0.H1", **how)
    whole = interp.path_patch(m, senders="L0.H1", **how)
    assert float(somewhere.mean) > 0.4 * float(whole.mean)
    assert float(last.mean) == 0.0


def test_the_language_tower_of_an_image_model() -> None:
    m = interp.attach(*build("planted-lvlm"))
    task = probe_task("planted-lvlm", "picture", model=m)
    how = {"base": task.corrupt, "source": task.clean, "metric": task.metric}
    e = interp.path_patch(m, senders="embed", receivers="text.L1.H1.v_in", **how)
    assert float(e.normalised) == pytest.approx(1.0, abs=1e-2)
    keys = interp.path_patch(m, senders="embed", receivers="text.L1.H1.q_in", **how)
    assert abs(float(keys.normalised)) < 1e-3


def test_several_receivers_are_patched_together() -> None:
    m, base, source = asked("llama")
    how = {"base": base, "source": source, "metric": difference, "senders": "L0.H1"}
    receivers = ["L1.H0.q_in", "L1.H3.q_in", "L1.K0.v_in"]
    e = interp.path_patch(m, receivers=receivers, **how)
    frozen = m.run(base, record=["L*.z"])
    moved = [*(interp.Set(f"L{n}.z", frozen[f"L{n}.z"]) for n in (0, 1))]
    moved.append(interp.Set("L0.H1.z", m.run(source, record="L0.z")["L0.H1.z"]))
    put = ["L1.H0.q", "L1.H3.q", "L1.K0.v"]
    got = m.run(base, edits=moved, record=put)
    patched = m.run(base, edits=[interp.Set(site, got[site]) for site in put])["logits"]
    expected = difference(patched, None) - difference(m.run(base)["logits"], None)
    torch.testing.assert_close(e.values[0].float(), expected, atol=3e-5, rtol=1e-3)


def test_what_has_no_meaning_is_refused() -> None:
    m, base, source = asked("llama")
    how: dict[str, Any] = {"base": base, "source": source, "metric": LogitDifference(((1,),) * 2, ((2,),) * 2)}
    with pytest.raises(SiteError, match="does not come before"):
        interp.path_patch(m, senders="L1.H0", receivers="L1.H2.q_in", **how)
    with pytest.raises(SiteError, match="does not come before"):
        interp.path_patch(m, senders="L*.H*", receivers="L0.H2.q_in", **how)
    with pytest.raises(SiteError, match="is no sender"):
        interp.path_patch(m, senders="L0.resid_pre", receivers="logits", **how)
    with pytest.raises(SiteError, match="reads nothing by a path"):
        interp.path_patch(m, receivers="L1.H2.z", **how)
    with pytest.raises(SiteError, match=r"L1\.K1\.k_in"):
        interp.path_patch(m, receivers="L1.H2.k_in", **how)
    with pytest.raises(SiteError, match="no layer 7"):
        interp.path_patch(m, receivers="L7.H2.q_in", **how)
    with pytest.raises(SiteError, match="only receiver"):
        interp.path_patch(m, receivers=["logits", "L1.H0.q_in"], **how)
    with pytest.raises(SiteError, match="no receivers"):
        interp.path_patch(m, receivers=[], **how)
    shorter = {"input_ids": base["input_ids"][:, :-1]}
    with pytest.raises(InputsError, match="line up"):
        interp.path_patch(m, receivers="logits", **{**how, "source": shorter})
    how = {"metric": difference, "receivers": "logits"}
    t5, x, y = asked("t5")
    with pytest.raises(SiteError, match="followed in the tower 'decoder'"):
        interp.path_patch(t5, base=x, source=y, **{**how, "receivers": "cross.L0.H1.q_in"})
    bert, x, y = asked("bert")
    with pytest.raises(ModelError, match="do not add up"):
        interp.path_patch(bert, base=x, source=y, freeze="all", **how)
    swin, x, y = asked("swin")
    with pytest.raises(ModelError):
        interp.path_patch(swin, base=x, source=y, **how)
