"""Activation patching finds what was planted, agrees with TransformerLens, and refuses what has no meaning."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import interp
from interp.hooks.errors import InputsError, SiteError
from interp.metrics.shipped import LogitDifference
from interp.planted import build, key
from interp.zoo.families import tiny


def planted(name: str, probe: str) -> tuple[interp.Model, Any, LogitDifference]:
    m, asked = interp.attach(*build(name)), key(name).probe(probe)
    right, wrong = (m.tokenizer.convert_tokens_to_ids(word) for word in (asked.answer, asked.wrong))
    return m, asked, LogitDifference(answers=((right,),), wrong=((wrong,),))


def random_pair(name: str = "llama") -> tuple[interp.Model, dict[str, Tensor], dict[str, Tensor], LogitDifference]:
    m = interp.attach(tiny(name))
    base = torch.randint(5, 90, (3, 9))
    source = torch.cat([base[:, :4], torch.randint(5, 90, (3, 5))], 1)
    return (
        m,
        {"input_ids": base},
        {"input_ids": source},
        LogitDifference(answers=((7,), (8,), (9,)), wrong=((10,), (11,), (12,))),
    )


@pytest.mark.parametrize("direction", ["denoise", "noise"])
def test_the_planted_induction_circuit_comes_first_and_null_heads_are_exactly_zero(direction: str) -> None:
    m, probe, metric = planted("planted-decoder", "induction")
    base, source = (probe.corrupt, probe.clean) if direction == "denoise" else (probe.clean, probe.corrupt)
    e = interp.patch(m, base=base, source=source, metric=metric, sites="L*.H*.z")
    assert set(e.top(2)["site"]) == {f"{head}.z" for head in probe.heads}
    for site, value in zip(e.sites, e.mean.tolist(), strict=True):
        if site.removesuffix(".z") in key("planted-decoder").null:
            assert value == 0.0
    assert float(e.normalised.max()) == pytest.approx(1.0, abs=1e-3)


def test_effects_are_those_of_the_definition() -> None:
    m, base, source, metric = random_pair()
    e = interp.patch(m, base=base, source=source, metric=metric, sites="L*.H*.z")
    plain, values = metric(m.run(base)["logits"], m.inputs(base)), m.run(source, record="L*.z")
    for n, site in enumerate(e.sites):
        edited = m.run(base, edits=[interp.Set(site, values[site])])["logits"]
        torch.testing.assert_close(e.values[n].float(), metric(edited, m.inputs(base)) - plain, atol=2e-5, rtol=1e-4)


def test_any_callable_is_a_metric() -> None:
    m, base, source, metric = random_pair()
    right, wrong = torch.tensor([7, 8, 9]), torch.tensor([10, 11, 12])

    def by_hand(logits: Tensor, inputs: Any) -> Tensor:
        rows = torch.arange(3)
        return logits[rows, -1, right] - logits[rows, -1, wrong]

    ours, theirs = (
        interp.patch(m, base=base, source=source, metric=f, sites="L*.resid_pre", positions="each")
        for f in (metric, by_hand)
    )
    torch.testing.assert_close(ours.values, theirs.values, atol=2e-5, rtol=1e-4)


def test_positions_as_an_axis_jointly_and_by_name() -> None:
    m, base, source, metric = random_pair()
    each = interp.patch(m, base=base, source=source, metric=metric, sites="L*.resid_pre", positions="each")
    assert each.to_array().dims == ("layer", "position")
    assert bool((each.to_array().values[:, :4] == 0).all())
    last = interp.patch(m, base=base, source=source, metric=metric, sites="L*.resid_pre", positions="last")
    torch.testing.assert_close(last.mean, torch.tensor(each.to_array().values[:, -1]), atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("source", ["zero", "mean"])
def test_zero_and_mean_sources(source: str) -> None:
    m, base, _, metric = random_pair()
    e = interp.patch(m, base=base, source=source, metric=metric, sites="L1.H*.z")
    edit = interp.Zero("L1.H2.z") if source == "zero" else interp.Mean("L1.H2.z")
    x = m.inputs(base)
    expected = metric(m.run(x, edits=[edit])["logits"], x) - metric(m.run(x)["logits"], x)
    torch.testing.assert_close(e.values[2].float(), expected, atol=2e-5, rtol=1e-4)
    with pytest.raises(interp.InterpError, match="cannot be normalised"):
        _ = e.normalised


@pytest.mark.parametrize("name", ["gpt2"])
def test_numbers_are_transformer_lens_numbers(name: str) -> None:
    lens = pytest.importorskip("transformer_lens.patching")
    bridge = tiny("transformer_bridge")
    m = interp.attach(bridge)
    base = torch.randint(5, 90, (2, 8))
    source = torch.cat([base[:, :3], torch.randint(5, 90, (2, 5))], 1)
    _, cache = bridge.run_with_cache(source)
    theirs = lens.get_act_patch_attn_head_out_all_pos(
        bridge, base, cache, lambda logits: (logits[:, -1, 7] - logits[:, -1, 9]).mean()
    )
    with pytest.warns(UserWarning, match="full forward"):
        e = interp.patch(
            m,
            base={"input_ids": base},
            source={"input_ids": source},
            metric=lambda g, x: g[:, -1, 7] - g[:, -1, 9],
            sites="L*.H*.z",
        )
    expected = torch.as_tensor(theirs).double() - float(e.base.mean())
    torch.testing.assert_close(torch.tensor(e.to_array().values), expected, atol=1e-4, rtol=1e-4)


def test_a_vision_transformer_and_the_text_of_a_language_vision_model() -> None:
    from interp.hooks.examples.example import example

    vit = interp.attach(tiny("vit"))
    a, b = example(vit.module, batch=2, seed=1), example(vit.module, batch=2, seed=2)
    e = interp.patch(vit, base=a, source=b, metric=lambda g, x: g[:, 0] - g[:, 1], sites="L*.H*.z")
    assert e.to_array().shape == (3, 3)
    llava = interp.attach(tiny("llava"))
    x = dict(example(llava.module, seed=1))
    y = {**x, "pixel_values": torch.randn_like(x["pixel_values"])}
    e = interp.patch(
        llava,
        base=x,
        source=y,
        metric=lambda g, i: g[:, -1, 3] - g[:, -1, 4],
        sites="text.L*.resid_pre",
        positions="image",
    )
    whole = interp.patch(
        llava, base=x, source=y, metric=lambda g, i: g[:, -1, 3] - g[:, -1, 4], sites="text.L0.resid_pre"
    )
    assert float(e.normalised[0]) == pytest.approx(float(whole.normalised[0]), abs=1e-4)
    assert float(whole.normalised[0]) == pytest.approx(1.0, abs=1e-4)


def test_results_print_rank_and_come_back_from_disk(tmp_path: Path) -> None:
    m, base, source, metric = random_pair()
    e = interp.patch(m, base=base, source=source, metric=metric, sites="L*.H*.z")
    again = interp.patching.Effects.load(e.save(tmp_path))
    assert torch.equal(again.values, e.values)
    assert again.to_frame().equals(e.to_frame())
    low, high = e.interval()
    assert bool((low <= e.mean + 1e-12).all())
    assert bool((e.mean <= high + 1e-12).all())
    assert e.noise_floor < 1e-3
    assert "largest" in repr(e)
    assert list(e.top(3)["estimate"].abs()) == sorted(e.top(3)["estimate"].abs(), reverse=True)


def test_what_has_no_meaning_is_refused() -> None:
    m, base, source, metric = random_pair()
    with pytest.raises(InputsError, match="line up"):
        interp.patch(m, base=base, source={"input_ids": source["input_ids"][:, :-1]}, metric=metric, sites="L*.z")
    with pytest.raises(InputsError, match="one number per row"):
        interp.patch(m, base=base, source=source, metric=lambda g, x: g[:, -1], sites="L*.z")
    with pytest.raises(InputsError, match="not finite"):
        interp.patch(m, base=base, source=source, metric=lambda g, x: g[:, -1, 0] * float("nan"), sites="L*.z")
    with pytest.raises(SiteError, match="at least one"):
        interp.patch(m, base=base, source=source, metric=metric, sites=[])
    with pytest.raises(SiteError, match="values per layer"):
        interp.patch(m, base=base, source=source, metric=metric, sites="L*.H*.scores")
    with pytest.raises(interp.InterpError, match="cannot be divided by it"):
        _ = interp.patch(m, base=base, source=base, metric=metric, sites="L*.z").normalised
