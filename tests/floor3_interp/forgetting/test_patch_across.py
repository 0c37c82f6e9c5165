"""Activations across models, against one edited run a site, and on a class whose way through the model is known."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import forgetful as f
import pytest
import torch
from models import attached, difference
from torch import Tensor

import interp
from interp.forgetting import AcrossModels, dampen, patch_across
from interp.kernels.errors import InterpError
from interp.pruning.cut import copied


def changed(name: str, where: str = "") -> interp.Model:
    """A copy whose weights moved a little, those whose names hold a word."""
    own, random = copied(attached(name)), torch.Generator().manual_seed(3)
    with torch.no_grad():
        for named, p in own.module.named_parameters():
            if where in named:
                p.add_(0.05 * torch.randn(p.shape, generator=random))
    return own


@pytest.mark.parametrize("name", ["llama", "gemma2"])
def test_every_number_is_one_edited_run(name: str) -> None:
    before, after = attached(name), changed(name)
    x = {"input_ids": torch.randint(5, 90, (3, 6), generator=torch.Generator().manual_seed(1))}
    found = patch_across(after, before, x, metric=difference, sites=("L*.resid_post", "L1.H*.z", "L0.mlp_out"))

    def patched(host: interp.Model, guest: interp.Model, site: str) -> Tensor:
        value = guest.run(x, record=site)[site]
        return difference(host.run(x, edits=interp.Set(site, value))["logits"], None).double()

    wanted = torch.stack([torch.stack([patched(*pair, site) for site in found.sites])
                          for pair in ((before, after), (after, before))])  # fmt: skip
    assert torch.allclose(found.values, wanted, atol=1e-4)
    knew, forgot = (difference(one.run(x)["logits"], None).double() for one in (before, after))
    gap = (knew - forgot).mean()
    assert torch.allclose(found.left, 1 - (knew - wanted[0]).mean(1) / gap, atol=1e-3)
    assert torch.allclose(found.healed, (wanted[1] - forgot).mean(1) / gap, atol=1e-3)


def test_what_a_dampened_head_forgot_is_nowhere_behind_it_and_the_head_alone_heals_it() -> None:
    how: dict[str, Any] = {"labels": f.named(0), "retain_labels": f.named(1, 2, 3)}
    own = dampen(f.knows(), f.asked(0), f.asked(1, 2, 3), **how).on(f.knows())
    every = ("L*.resid_pre", "L*.resid_post", "L*.H*.z")
    frame = patch_across(own, f.knows(), f.asked(0, 0), metric=f.margin, sites=every).to_frame().set_index("site")
    assert frame.loc["L0.resid_pre", "estimate"] == pytest.approx(1, abs=0.02), "the word itself is still read"
    assert frame.loc["L0.resid_post", "estimate"] == pytest.approx(0, abs=0.02)
    assert frame.loc["L1.resid_post", "healed"] == pytest.approx(1, abs=0.02)
    head = f"L0.H{f.ALONE}.z"
    others = [site for site in frame.index if ".H" in site and site != head]
    assert frame.loc[head, "estimate"] == pytest.approx(0, abs=0.02)
    assert frame.loc[others, "estimate"].to_numpy() == pytest.approx(1, abs=0.02)
    assert frame.loc[others, "healed"].to_numpy() == pytest.approx(0, abs=0.02)


def test_what_is_hidden_by_a_last_layer_is_still_there_before_it() -> None:
    every = ("L*.resid_post", "L1.attn_out", "L1.H*.z")
    frame = patch_across(f.hides(), f.knows(), f.asked(0), metric=f.margin, sites=every).to_frame().set_index("site")
    assert frame.loc["L0.resid_post", "estimate"] == pytest.approx(1, abs=0.02)
    assert frame.loc["L1.resid_post", "estimate"] == pytest.approx(0, abs=0.02)
    assert frame.loc["L0.resid_post", "healed"] == pytest.approx(0, abs=0.02)
    assert frame.loc["L1.attn_out", ["estimate", "healed"]].tolist() == pytest.approx([0, 1], abs=0.02)
    assert frame.loc["L1.H3.z", "healed"] > 0.9, "not 1: the other model's output matrix reads a z that is not for it"


def test_intervals_draw_examples_of_both_parts_of_a_share(tmp_path: Path) -> None:
    before, after = attached("llama"), changed("llama", ".layers.")
    x = {"input_ids": torch.randint(5, 90, (6, 4), generator=torch.Generator().manual_seed(1))}
    found = patch_across(after, before, x, metric=difference, sites="L*.resid_post")
    frame = found.to_frame()
    last = frame[frame["site"] == "L1.resid_post"]
    assert last[["estimate", "low", "high"]].to_numpy() == pytest.approx(0, abs=1e-3), "the last residual is everything"
    found.save(tmp_path)
    again = interp.open(tmp_path)
    assert isinstance(again, AcrossModels)
    assert torch.equal(again.values, found.values)
    assert found.plot().data
    assert found.top(1)["site"].tolist() == ["L1.resid_post"]
    assert "heals" in repr(found)


def test_models_that_agree_or_do_not_match_are_refused() -> None:
    with pytest.raises(InterpError, match="nothing was forgotten"):
        patch_across(f.knows(), f.knows(), f.asked(0), metric=f.margin)
    with pytest.raises(InterpError, match="other towers"):
        patch_across(f.knows(), attached("llama"), f.asked(0), metric=f.margin)
    with pytest.raises(InterpError, match="no sites"):
        patch_across(f.hides(), f.knows(), f.asked(0), metric=f.margin, sites=())
