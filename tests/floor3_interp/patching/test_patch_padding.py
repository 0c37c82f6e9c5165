"""Patching where some positions are padding: they are never patched and never counted, and where it is not known which
they are, patching says so."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

import interp
from interp.circuits.graph.changes import filled
from interp.heads.measures.asked import Asked
from interp.hooks.drive.sweep import Sweep
from interp.hooks.errors import InputsError
from interp.hooks.examples.example import example
from interp.hooks.inputs.positions import real
from interp.hooks.run.tape import real_positions
from interp.zoo.families import tiny


def made(name: str) -> tuple[interp.Model, dict[str, Any]]:
    m = interp.attach(tiny(name))
    return m, dict(example(m.module, batch=2, seed=1))


def metric(logits: Tensor, inputs: Any) -> Tensor:
    return logits[:, -1, 3] - logits[:, -1, 4]


@pytest.fixture(scope="module")
def mllama() -> tuple[interp.Model, interp.Inputs, Tensor]:
    """Pictures of one tile where there is room for two. A tile is 10 patches, filled up to 16 in the image towers; the
    text's keys are the patches alone. With the towers' real positions, written out."""
    m, call = made("mllama")
    call["aspect_ratio_ids"] = torch.ones_like(call["aspect_ratio_ids"])
    call["aspect_ratio_mask"] = torch.tensor([[[1, 0]], [[1, 0]]])
    call["cross_attention_mask"][..., 1] = 0
    return m, m.inputs(call), (torch.arange(32) < 10).expand(2, -1)


@pytest.mark.parametrize("site", ["vision2.L0.resid_pre", "vision2.L1.z"])
def test_a_mean_is_taken_over_real_tiles_and_put_on_them(mllama: Any, site: str) -> None:
    """`vision2` are the global layers that Mllama has after its vision tower."""
    m, x, where = mllama
    value = m.run(x, record=site)[site]
    assert value.shape[:2] == where.shape
    with pytest.warns(UserWarning, match="full forward passes"):
        found = interp.patch(m, base=x, source="mean", metric=metric, sites=site)
    expected = torch.where(where.view(*where.shape, *[1] * (value.ndim - 2)), value[where].mean(0), value)
    gap = metric(m.run(x, edits=[interp.Set(site, expected)])["logits"], x) - metric(m.run(x)["logits"], x)
    torch.testing.assert_close(found.values[0], gap.double(), atol=1e-5, rtol=1e-4)
    everywhere = value.flatten(0, 1).mean(0).expand(value.shape)
    other = metric(m.run(x, edits=[interp.Set(site, everywhere)])["logits"], x) - metric(m.run(x)["logits"], x)
    assert not torch.allclose(other, gap, atol=1e-3)


@pytest.mark.parametrize("sites", ["vision.L*.H*.z", "vision.L*.resid_post", "vision.L1.mlp_out"])
def test_a_vision_tower_of_which_the_text_reads_several_layers_goes_by_full_passes(mllama: Any, sites: str) -> None:
    """Mllama's text looks at it by cross-attention. What it ends with was put in front of the text, which reads
    nothing there, and effects were 0 until the check against a full pass failed."""
    m, x, where = mllama
    y = m.inputs({**x.kwargs, "pixel_values": x.kwargs["pixel_values"].flip(0)})
    with pytest.warns(UserWarning, match=r"reads the vision tower by cross-attention, and its layers \[0, 1\]"):
        found = interp.patch(m, base=x, source=y, metric=metric, sites=sites)
    clean = metric(m.run(x)["logits"], x)
    for n, name in enumerate(found.sites):
        mine, theirs = (m.run(run, record=name)[name] for run in (x, y))
        put = torch.where(where.view(*where.shape, *[1] * (mine.ndim - 2)), theirs, mine)
        gap = metric(m.run(x, edits=[interp.Set(name, put)])["logits"], x) - clean
        torch.testing.assert_close(found.values[n], gap.double(), atol=1e-5, rtol=1e-4)
    assert found.values.abs().max() > 1e-3


def test_keys_of_tiles_that_are_padding_are_refused(mllama: Any) -> None:
    m, x, _ = mllama
    with pytest.raises(InputsError, match="some tiles are padding"), pytest.warns(UserWarning, match="full forward"):
        interp.patch(m, base=x, source="mean", metric=metric, sites="text.L1.K0.k")
    call = made("mllama")[1]
    full = m.inputs({**call, "aspect_ratio_mask": torch.ones_like(call["aspect_ratio_mask"])})
    site = m.anatomy.sites("text.L1.k")[0]
    assert torch.equal(real_positions(m.anatomy, full, site, (2, 20)), torch.ones(2, 20, dtype=torch.bool))


def test_a_q_formers_queries_are_real_and_its_instructions_padding_is_not() -> None:
    m, call = made("instructblip")
    whole = m.inputs(call)
    sites = {name: m.anatomy.sites(name)[0] for name in ("qformer.L0.z", "cross.L0.z", "cross.L0.k")}
    shapes = {"qformer.L0.z": (2, 13), "cross.L0.z": (2, 5), "cross.L0.k": (2, 10)}
    for name, site in sites.items():
        assert bool(real_positions(m.anatomy, whole, site, shapes[name]).all())
        assert real_positions(m.anatomy, whole, site, shapes[name]).shape == shapes[name]
    mask = torch.ones_like(call["qformer_attention_mask"])
    mask[0, -3:] = 0
    padded = m.inputs({**call, "qformer_attention_mask": mask})
    with pytest.raises(InputsError, match="instructions with padding"), pytest.warns(UserWarning, match="full forward"):
        interp.patch(m, base=padded, source="mean", metric=metric, sites="qformer.L0.H*.z")
    assert bool(real_positions(m.anatomy, padded, sites["cross.L0.z"], (2, 5)).all())


@pytest.mark.parametrize("source", ["mean", "zero"])
def test_a_tower_whose_positions_are_not_known_is_refused_with_the_reason(source: str) -> None:
    """Where a call has no padding its positions are known by number; where it has some, not which of them are real."""
    m, call = made("idefics3")
    mask = torch.ones(*call["pixel_values"].shape[:2], *call["pixel_values"].shape[3:], dtype=torch.bool)
    known = m.inputs({**call, "pixel_attention_mask": mask})
    mask = mask.clone()
    mask[0, 0, -8:] = False
    m.check()
    padded = replace(m.inputs({**call, "pixel_attention_mask": mask}), towers={"vision": "an order nobody knows"})
    with pytest.raises(InputsError, match=r"the tower 'vision' has \d+ positions in this call, which has padding"):
        interp.patch(m, base=padded, source=source, metric=metric, sites="vision.L0.H*.z")
    found = interp.patch(
        m, base=replace(known, towers={"vision": "an order nobody knows"}), source=source, metric=metric,
        sites="vision.L0.H*.z",
    )  # fmt: skip
    expected = interp.patch(m, base=known, source=source, metric=metric, sites="vision.L0.H*.z")
    assert torch.equal(found.values, expected.values)


@pytest.mark.parametrize("shape", [(4, 3), (2, 7), (1, 12)])
def test_padding_that_does_not_fit_what_was_recorded_is_refused_wherever_it_is_asked(shape: Sequence[int]) -> None:
    """Windows and images folded into rows; without any padding all of it is real."""
    whole = torch.ones(2, 6, dtype=torch.bool)
    padded = whole.clone()
    padded[0, 0] = False
    value = torch.randn(*shape, 5)
    assert torch.equal(real(padded, (2, 6), "z"), padded)
    assert torch.equal(real(whole, shape, "z"), torch.ones(*shape, dtype=torch.bool))
    torch.testing.assert_close(filled("mean", value, whole), value.flatten(0, 1).mean(0).expand(value.shape))
    for ask in (lambda: real(padded, shape, "z"), lambda: filled("mean", value, padded)):
        with pytest.raises(InputsError, match="some of them padding"):
            ask()


def test_a_measure_of_heads_does_not_take_padding_for_words() -> None:
    m, call = made("gpt2")
    call["attention_mask"] = torch.ones_like(call["input_ids"])
    call["attention_mask"][0, :3] = 0
    asked = SimpleNamespace(model=m, x=m.inputs(call))
    site = m.anatomy.sites("L0.z")[0]
    value = m.run(asked.x, record="L0.z")["L0.z"]
    assert torch.equal(Asked.real(asked, site, value), call["attention_mask"].bool())  # type: ignore[arg-type]
    with pytest.raises(InputsError, match="some of them padding"):
        Asked.real(asked, site, value[:, :5])  # type: ignore[arg-type]


def test_a_row_goes_on_to_its_last_column_where_padding_is_not_known() -> None:
    m, call = made("gpt2")
    call["attention_mask"] = torch.ones_like(call["input_ids"])
    call["attention_mask"][0, 5:] = 0
    known = m.inputs(call)
    unknown = replace(known, main="vision")
    ends = [Sweep(m.module, m.anatomy, x, m.called_with(x.kwargs)).engine(None).ends for x in (known, unknown)]  # type: ignore[union-attr]
    assert [list(one) for one in ends] == [[5, 8], [8, 8]]
