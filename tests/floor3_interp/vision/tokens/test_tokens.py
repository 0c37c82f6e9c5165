"""Importance from its formula, stages that no later layer reads, recycling, and calls that are really shorter."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from looking import picture
from pictured import PROCESSOR, pictured
from PIL import Image
from tokens import PLACEHOLDERS

import interp
from interp.hooks.edits.merge import MergeTokens
from interp.hooks.errors import EditError, InputsError, ModelError

pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning:transformers.models.paligemma"),
    pytest.mark.filterwarnings("ignore:.*two BOS"),
]


@cache
def model() -> interp.Model:
    return interp.load("zoo:shapes-lvlm")


@cache
def task() -> Any:
    return interp.tasks.shapes(model(), n=3, split="heldout")


@cache
def found() -> Any:
    return interp.vision.token_importance(model(), task().clean)


def test_importance_is_the_formula() -> None:
    x = task().clean
    pattern = model().run(x, record=["vision.L2.pattern"])["vision.L2.pattern"].double().mean(1)
    for row in range(x.batch):
        a = pattern[row, 1:, 1:]  # patches alone
        received = a.sum(0)
        much = received >= np.quantile(received.numpy(), 0.95)
        expected = a[much].mean(0)
        torch.testing.assert_close(found().values[row][x.mask("image")[row]], expected, atol=1e-6, rtol=1e-4)
        assert not found().values[row][~x.mask("image")[row]].any()
    t = float(pattern[:, 1:, 1:].sum(1).amax(1).min()) * 0.9
    given = interp.vision.token_importance(model(), x, t=t)
    a = pattern[1, 1:, 1:]
    torch.testing.assert_close(given.values[1][x.mask("image")[1]], a[a.sum(0) > t].mean(0), atol=1e-6, rtol=1e-4)


def test_importance_by_text_and_by_entropy() -> None:
    x = task().clean
    last = model().run(x, record=["text.L1.pattern"])["text.L1.pattern"][:, :, -1].double().mean(1)
    got = interp.vision.token_importance(model(), x, by="text", layer=1)
    torch.testing.assert_close(got.values, last * x.mask("image"), atol=1e-7, rtol=1e-5)
    rows = task().rows
    pictures = [row.image for row in rows], [row.clean for row in rows]
    more = interp.vision.token_importance(model(), *pictures, alpha=2.0)
    bits = []
    for n in range(36):
        grey = np.asarray(rows[0].image, float)[n // 6 * 8 : n // 6 * 8 + 8, n % 6 * 8 : n % 6 * 8 + 8].mean(-1)
        share = np.unique(grey.astype(np.uint8), return_counts=True)[1] / 64
        bits.append(float(-(share * np.log2(share)).sum()))
    added = (more.values - found().values)[0][x.mask("image")[0]]
    torch.testing.assert_close(added, 2 * torch.tensor(bits).double().softmax(0), atol=1e-6, rtol=1e-4)


def test_what_is_kept_is_what_matters_most() -> None:
    got = found()
    kept = got.kept(0.25)
    assert kept.sum(1).tolist() == [9, 9, 9]
    for row in range(3):
        assert got.values[row][kept[row]].min() >= got.values[row][got.image[row] & ~kept[row]].max()
    (first, second), none = got.stages([0.5, 0.5])
    assert none is None
    assert (first.sum(1).tolist(), second.sum(1).tolist()) == ([18] * 3, [9] * 3)
    assert torch.equal(second, kept)
    assert got.mean_retention([0.5, 0.5], [0, 2]) == pytest.approx((0.5 * 2 + 0.25 * 2) / 4)
    assert got.mean_retention([0.5], [1]) == pytest.approx((1 + 0.5 * 3) / 4)


def test_no_later_layer_reads_a_pruned_token() -> None:
    """The gradient of the answer at a pruned token is zero from its stage on, and is not before."""
    m, x, got = model(), task().clean, found()
    edits = got.pruned([0.5, 0.5], layers=[1, 3])
    (first, second), _ = got.stages([0.5, 0.5])
    layers, kept = m.module.model.language_model.layers, {}

    def hold(name: int) -> Any:
        def tap(module: Any, args: Any, kwargs: Any) -> Any:
            value = (args[0] if args else kwargs["hidden_states"]).detach().requires_grad_()
            kept[name] = value
            return ((value, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": value})

        return tap

    for layer, gone in ((0, None), (1, first), (2, first), (3, second)):
        handle = layers[layer].register_forward_pre_hook(hold(layer), with_kwargs=True)
        with m.edited(edits):
            logits = m.module(**x.kwargs).logits
        handle.remove()
        (gradient,) = torch.autograd.grad(logits[:, -1].logsumexp(-1).sum(), kept[layer])
        size = gradient.abs().sum(-1)
        if gone is None:
            assert bool((size[got.image] > 0).all())
        else:
            assert not size[got.image & ~gone].any(), layer
            assert bool((size[gone] > 0).all())


def test_a_shorter_call_is_the_same_as_hidden_tokens() -> None:
    m, x, got = model(), task().clean, found()
    for cell in (None, 2.0):
        hidden = m.run(x, edits=got.pruned([0.25], cell=cell))["logits"][:, -1]
        call = got.shorter(m, x, 0.25, cell=cell)
        assert call["inputs_embeds"].shape[1] == x.length - 27
        with torch.no_grad():
            short = m.module(**call).logits[:, -1]
        torch.testing.assert_close(short, hidden, atol=2e-4, rtol=1e-3)
        assert not torch.allclose(short, m.run(x)["logits"][:, -1], atol=1e-3)


def test_recycling_merges_by_importance_and_keeps_the_budget() -> None:
    m, x, got = model(), task().clean, found()
    (kept,), lines = got.stages([0.5], cell=3.0)
    assert lines is not None
    assert kept.sum(1).tolist() == [18] * 3
    merge, *_ = got.pruned([0.5], cell=3.0)
    assert isinstance(merge, MergeTokens)
    plain = m.run(x, record=["text.L0.resid_pre"])["text.L0.resid_pre"].double()
    edited = m.run(x, edits=[merge], record=["text.L0.resid_pre"])["text.L0.resid_pre"].double()
    for row in range(3):
        for target in {int(one[2]) for one in lines if int(one[0]) == row}:
            sources = [int(one[1]) for one in lines if int(one[0]) == row and int(one[2]) == target]
            cells = {(int(x.roles.row[row, s]) // 3, int(x.roles.col[row, s]) // 3) for s in sources}
            assert len(cells) == 1
            weight = got.values[row, sources]
            assert float(weight.max()) == float(got.values[row, target])
            mean = (weight[:, None] * plain[row, sources]).sum(0) / weight.sum()
            torch.testing.assert_close(edited[row, target], mean, atol=1e-5, rtol=1e-4)
        others = [n for n in range(x.length) if n not in {int(one[2]) for one in lines if int(one[0]) == row}]
        assert torch.equal(edited[row, others], plain[row, others])


def test_pruning_goes_on_in_generated_text() -> None:
    m, x, got = model(), task().clean, found()
    edits = got.pruned([0.1])
    ids = m.generate(x, edits=edits, max_new_tokens=3).ids
    whole = m.prepare([row.clean for row in task().rows], images=[[row.image] for row in task().rows],
                      continuation=ids[:, :2].tolist())  # fmt: skip
    wide = torch.zeros(3, whole.length, dtype=torch.bool)
    wide[:, : x.length] = got.image & ~got.kept(0.1)
    logits = m.run(whole, edits=[interp.MaskKeys("text.L*.H*", keys=wide)])["logits"]
    assert torch.equal(logits[:, -3:].argmax(-1), ids)


FAMILIES = ["llava", "llava_next", "qwen2_vl", "qwen3_vl", "internvl", "paligemma", "smolvlm", "gemma3"]


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_keeps_the_tokens_whose_patches_matter(name: str) -> None:
    held = interp.attach(*pictured(name))
    place = PLACEHOLDERS[PROCESSOR.get(name, name)]
    pictures = [picture(90, 60)]  # noise, so that no two tiles are alike
    got = interp.vision.token_importance(held, pictures, [f"{place}What is it?"], chat=False)
    x = held.prepare([f"{place}What is it?"], images=[pictures], chat=False)
    assert bool((got.values[got.image] > 0).all())
    if name == "llava_next":
        newline = x.roles.newline[0]
        assert bool((got.values[0][newline] == 1).all())
        assert bool(got.kept(0.5)[0][newline].all())
    if name == "internvl":  # a token is two by two patches of its own tile
        own = x.tower("vision")
        pattern = held.run(x, record=["vision.L0.pattern"])["vision.L0.pattern"].double().mean(1)[:, 1:, 1:]
        received = pattern.sum(1)
        much = received >= torch.tensor([np.quantile(one.numpy(), 0.95) for one in received])[:, None]
        each = torch.stack([a[k].mean(0) for a, k in zip(pattern, much, strict=True)])
        pooled = each.reshape(-1, 2, 2, 2, 2).mean((2, 4)).reshape(-1)
        torch.testing.assert_close(got.values[got.image], pooled, atol=1e-7, rtol=1e-4)
        assert own.batch == len(each)
    before = held.run(x)["logits"]
    after = held.run(x, edits=got.pruned([0.5], cell=2.0))["logits"]
    assert not torch.equal(before[:, -1], after[:, -1])


def test_tiles_that_fill_their_picture_are_not_taken_for_its_base_view() -> None:
    held = interp.attach(*pictured("llava_next"))
    got = interp.vision.token_importance(held, [picture(56, 28)], ["<image>What is it?"], chat=False)
    x = held.prepare(["<image>What is it?"], images=[[picture(56, 28)]], chat=False)
    pattern = held.run(x, record=["vision.L0.pattern"])["vision.L0.pattern"].double().mean(1)[:, 1:, 1:]
    received = pattern.sum(1)
    much = received >= torch.tensor([np.quantile(one.numpy(), 0.95) for one in received])[:, None]
    base, left, right = (a[k].mean(0).view(4, 4) for a, k in zip(pattern, much, strict=True))
    wide = torch.nn.functional.pad(torch.cat([left, right], 1), (0, 1), value=1.0)  # newlines count 1
    torch.testing.assert_close(got.values[got.image], torch.cat([base.flatten(), wide.flatten()]), atol=1e-7, rtol=1e-4)


def test_bad_input_is_refused() -> None:
    m, x, got = model(), task().clean, found()
    with pytest.raises(InputsError, match="receives more than t=99"):
        interp.vision.token_importance(m, x, t=99.0)
    with pytest.raises(InputsError, match="layer= is one of 0 to 2"):
        interp.vision.token_importance(m, x, layer=7)
    with pytest.raises(InputsError, match="give images= and questions="):
        interp.vision.token_importance(m, x, alpha=1.0)
    with pytest.raises(InputsError, match="above 0 and at most 1"):
        got.kept(0.0)
    with pytest.raises(InputsError, match="rising, one a retention"):
        got.pruned([0.5, 0.5], layers=[2, 1])
    with pytest.raises(InputsError, match="got a stage at 9"):
        got.pruned([0.5], layers=[9])
    with pytest.raises(InputsError, match="side of a cell"):
        got.pruned([0.5], cell=0.5)
    with pytest.raises(EditError, match="needs lines"):
        MergeTokens("L0.resid_pre", torch.zeros(2, 2, dtype=torch.long), torch.zeros(2))
    qwen = interp.attach(*pictured("qwen2_5_vl"))
    text = f"{PLACEHOLDERS['qwen2_5_vl']}What?"
    with pytest.raises(ModelError, match="attend in windows"):
        interp.vision.token_importance(qwen, [Image.new("RGB", (90, 90))], [text], chat=False)
    blip = interp.attach(*pictured("blip-2"))
    with pytest.raises(InputsError, match="no map from tokens to patches"):
        interp.vision.token_importance(blip, [Image.new("RGB", (60, 60))], ["What?"], chat=False)
    mllama = interp.attach(*pictured("mllama"))
    with pytest.raises(ModelError, match="cross-attention"):
        interp.vision.token_importance(mllama, [Image.new("RGB", (60, 60))], [f"{PLACEHOLDERS['mllama']}a"], chat=False)


def test_it_is_saved_and_read_back(tmp_path: Path) -> None:
    found().save(tmp_path)
    again = interp.open(tmp_path)
    assert repr(again) == repr(found())
    assert again.pruned([0.5], cell=2.0) == found().pruned([0.5], cell=2.0)
