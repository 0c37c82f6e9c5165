"""Visual sinks, image-centric heads and redistribution against the definitions of the paper, in float64."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas
import pytest
import torch
from looking import asked, family, picture
from models import planted
from torch import Tensor

import interp
from interp.hooks.errors import InputsError
from interp.planted.probes import probe_task
from interp.vision import hide_sinks, redistribute, sinks
from interp.vision.hide_sinks import other_tokens
from interp.vision.redistribute import after_the_image

NUMPY = "ignore:__array__ implementation:DeprecationWarning:transformers.models.paligemma"
pytestmark = pytest.mark.filterwarnings(NUMPY)


def phi(x: Tensor, dims: list[int]) -> float:
    """max over D of |x[d]| / RMS(x)."""
    rms = (sum(float(v) ** 2 for v in x.double()) / len(x) + 1e-6) ** 0.5
    return max(abs(float(x[d])) / rms for d in dims)


@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl", "smolvlm", "paligemma"])
def test_sinks_and_heads_are_those_of_the_definition(name: str) -> None:
    m, x = asked(name)
    dims, tau = [3, 11], 1.2
    found = sinks(m, x, tau=tau, dims=dims, first_layer=1)
    tape = m.run(x, record=["text.L*.resid_pre", "text.L*.pattern"])
    image = x.roles.where("image")
    assert torch.equal(found.image, image)
    assert not bool(found.sinks[0].any()), "layers before first_layer have none"
    for row in range(2):
        for j in range(x.length):
            want = phi(tape["text.L1.resid_pre"][row, j], dims) if bool(x.valid[row, j]) else 0.0
            assert float(found.phi[1, row, j]) == pytest.approx(want, rel=1e-5)
            assert bool(found.visual[1, row, j]) == (bool(image[row, j]) and want >= tau)
    assert 0 < int(found.visual[1].sum()) < int(image.sum())
    for n, site in enumerate(found.sites):
        layer, head = int(site[6]), int(site[9])
        for row in range(2):
            a = tape[f"text.L{layer}.pattern"][row, head, int(x.valid[row].nonzero().max())].double()
            whole = float(sum(a[j] for j in range(x.length) if image[row, j]))
            rest = float(sum(a[j] for j in range(x.length) if image[row, j] and not found.visual[layer, row, j]))
            assert float(found.mass[n, row]) == pytest.approx(whole, rel=1e-5)
            assert float(found.ratio[n, row]) == pytest.approx(rest / whole, rel=1e-5)
            centric = bool(found.image_centric(rho=0.6, least=0.3)[n, row])
            assert centric == (whole >= 0.3 and rest >= 0.6 * whole)


def test_dimensions_are_discovered_where_the_first_token_stands_out() -> None:
    """Values put into the residual of <bos> and of one image token: these dimensions, and that token, are found."""
    m, x = asked("llava")
    image = x.roles.where("image")
    places = x.roles.where("bos").clone()
    for row in range(2):
        places[row, image[row].nonzero().flatten()[5 + row]] = True
    spike = torch.zeros(16)
    spike[[4, 9]] = torch.tensor([80.0, -80.0])
    with m.edited([interp.Add("text.L0.resid_post", spike, positions=places)]):
        found = sinks(m, x, tau=2.7, first_layer=1)
    assert found.dims == (4, 9)
    assert torch.equal(found.sinks[1], places)
    assert torch.equal(found.visual[1], places & image)
    assert sinks(m, x, tau=3.9).dims == ()


def test_a_model_without_them_has_none_and_says_so() -> None:
    m, x = asked("llava")
    found = sinks(m, x)
    assert found.dims == ()
    assert not bool(found.sinks.any())
    assert "0 visual sinks" in repr(found)
    with pytest.raises(InputsError, match=r"phi reaches 0, a sink needs 20 \(dimensions \[\]\)"):
        redistribute(m, x, found)
    with pytest.raises(InputsError, match="no visual sink to hide"):
        hide_sinks(m, x, metric=last, sinks=found)


def last(logits: Tensor, x: Any) -> Tensor:
    return logits[:, -1, 30] - logits[:, -1, 40]


def test_padding_on_the_right_and_a_batch_give_what_rows_give_alone() -> None:
    m, _ = asked("llava")
    texts = ["<image>What is in the image?", "<image>describe"]
    pictures = [[picture(40, 60, n)] for n in range(2)]
    both = {
        side: sinks(m, m.prepare(texts, images=pictures, chat=False, padding=side), dims=[3], tau=1.0, first_layer=0)
        for side in ("left", "right")
    }
    for row, text in enumerate(texts):
        alone = sinks(m, m.prepare([text], images=[pictures[row]], chat=False), dims=[3], tau=1.0, first_layer=0)
        for found in both.values():
            torch.testing.assert_close(found.mass[:, row], alone.mass[:, 0], atol=1e-5, rtol=1e-4)
            torch.testing.assert_close(found.ratio[:, row], alone.ratio[:, 0], atol=1e-5, rtol=1e-4)


def test_redistribution_moves_exactly_the_mass_it_says_in_every_step_of_decoding() -> None:
    m, x = asked("llava")
    found = sinks(m, x, tau=1.2, dims=[3, 11], first_layer=1)
    edits = redistribute(m, x, found, fraction_moved=0.3, rho=0.1, least=0.1, last_layer=True)
    assert [edit.site for edit in edits] == ["text.L1.H0,1"]
    plain = m.run(x, record="text.L1.pattern")["text.L1.pattern"].double()
    now = m.run(x, record="text.L1.pattern", edits=edits)["text.L1.pattern"].double()
    rows = after_the_image(x.valid, found.image)
    for row in range(2):
        has = bool(found.visual[1, row].any())
        s = found.sinks[1, row]
        t = found.image[row] & ~s
        for i in x.valid[row].nonzero().flatten().tolist():
            a, b = plain[row, :, i], now[row, :, i]
            if not (has and rows[row, i]):
                torch.testing.assert_close(b, a)
                continue
            torch.testing.assert_close(a[:, s].sum(-1) - b[:, s].sum(-1), 0.3 * a[:, s].sum(-1), atol=1e-6, rtol=1e-5)
            torch.testing.assert_close(b[:, t].sum(-1) - a[:, t].sum(-1), 0.3 * a[:, s].sum(-1), atol=1e-6, rtol=1e-5)
            torch.testing.assert_close(b[:, ~s & ~t], a[:, ~s & ~t], atol=1e-6, rtol=1e-5)
    with m.watch(record="text.L1.pattern", edits=edits) as steps:
        m.generate(x, max_new_tokens=3)
    for call in (1, 2):
        b = steps.at(call)[m.anatomy.one("text.L1.pattern")][..., 0, :].double()
        assert bool((b.sum(-1) - 1).abs().max() < 1e-5)
    assert len(redistribute(m, x, found, rho=0.1, least=0.1, last_layer=True, heads=["text.L1.H1"])) == 1
    with pytest.raises(InputsError, match="no layer that may be changed"):
        redistribute(m, x, found)


def test_rows_are_those_behind_the_image_and_all_words_where_it_comes_last() -> None:
    valid = torch.tensor([[0, 1, 1, 1, 1], [1, 1, 1, 1, 1]]).bool()
    image = torch.tensor([[0, 0, 1, 1, 0], [0, 0, 0, 1, 1]]).bool()
    assert after_the_image(valid, image).tolist() == [
        [False, False, False, False, True], [True, True, True, False, False],
    ]  # fmt: skip


def test_hiding_sinks_is_hiding_these_keys_and_the_control_as_many_others(tmp_path: Path) -> None:
    m, x = asked("llava")
    found = sinks(m, x, tau=1.5, dims=[3, 11], first_layer=1)
    rows = after_the_image(x.valid, found.image)
    k = hide_sinks(m, x, metric=last, sinks=found, draws=4)
    hidden = [interp.MaskKeys("text.L1.H*", keys=found.visual[1], positions=rows)]
    want = last(m.run(x, edits=hidden)["logits"], x).double() - last(m.run(x)["logits"], x).double()
    torch.testing.assert_close(k.sinks, want)
    assert k.random.shape == (4, 2)
    assert k.layers == (1,)
    draw = torch.Generator().manual_seed(3)
    for _ in range(5):
        other = other_tokens(found.visual, found.image & ~found.sinks, draw)
        assert torch.equal(other.sum(-1), found.visual.sum(-1))
        assert not bool((other & (found.sinks | ~found.image)).any())
    back = interp.open(k.save(tmp_path / "k"))
    pandas.testing.assert_frame_equal(back.to_frame(), k.to_frame())
    assert repr(back) == repr(k)
    assert k.plot().layout.xaxis.title.text == "effect"


def test_it_saves_and_shows(tmp_path: Path) -> None:
    m, x = asked("llava")
    found = sinks(m, x, tau=1.5, dims=[3, 11], first_layer=1)
    back = interp.open(found.save(tmp_path / "s"))
    pandas.testing.assert_frame_equal(back.to_frame(), found.to_frame())
    assert repr(back) == repr(found)
    assert torch.equal(back.visual, found.visual)
    assert {"mass", "visual_sinks", "image_centric", "estimate"} <= set(found.to_frame())
    assert found.plot() is not None


def test_what_has_no_image_among_its_words_is_refused() -> None:
    m, x = asked("llava")
    text = m.prepare(["What is"], chat=False)
    refused: list[tuple[Any, Any, dict[str, Any], str]] = [
        (m, text, {}, "row 0 holds no image token"),
        (m, x, {"tau": 0.0}, "tau= is what phi must reach"),
        (m, x, {"dims": [99]}, "dims= are dimensions of the residual stream, 0 to 15"),
        (*asked("blip-2"), {}, "no map from tokens to patches"),
        (*asked("mllama"), {}, "cross-attention"),
        (planted("planted-decoder"), "fox = apple", {}, "holds no image token"),
        (planted("planted-vit"), probe_task("planted-vit", model=planted("planted-vit")).clean, {}, "main tower is"),
    ]
    for model, inputs, how, says in refused:
        with pytest.raises(interp.InterpError, match=says):
            sinks(model, inputs, **how)
    found = sinks(m, x, dims=[3], tau=1.0)
    other = m.prepare(["<image>describe it"], images=[[picture()]], chat=False)
    with pytest.raises(InputsError, match=r"give what interp\.vision\.sinks was given"):
        redistribute(m, other, found)
    assert family("llava").handles() == []


def test_the_trained_bench_has_sinks_where_the_paper_says_and_redistribution_moves_their_weight() -> None:
    """Everything at its default: one dimension, empty corners and <bos>, layers from the third on."""
    m = interp.load("zoo:shapes-lvlm-sinks")
    task = interp.tasks.shapes(m, n=6, style="yes_no")
    x, found = task.clean, sinks(m, task.clean)
    assert len(found.dims) == 1
    assert not bool(found.sinks[:2].any())
    assert bool(found.sinks[2:, :, 0].all()), "<bos> is one"
    assert int(found.visual[2].any(1).sum()) >= 5
    for row, layer in ((n, layer) for n in range(6) for layer in (2, 3)):
        for j in found.visual[layer, row].nonzero().flatten().tolist():
            y, z = int(x.roles.row[row, j]), int(x.roles.col[row, j])
            assert {y, z} <= {0, 5}
            for x0, y0, x1, y1 in task.rows[row].meta["boxes"]:
                assert x1 <= 8 * z or x0 >= 8 * z + 8 or y1 <= 8 * y or y0 >= 8 * y + 8
    (edit,) = redistribute(m, x, found, least=0.0, rho=0.0)
    assert edit.site.startswith("text.L2.")
    before, after = (m.run(x, record="text.L2.pattern", edits=e)["text.L2.pattern"][:, :, -1] for e in ((), [edit]))
    at = found.sinks[2][:, None] & found.visual[2].any(1)[:, None, None]
    kept = torch.where(at, 0.6 * before, before)
    torch.testing.assert_close(after[at.expand_as(after)], kept[at.expand_as(kept)], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(after.sum(-1), before.sum(-1))
    hidden = hide_sinks(m, x, metric=task.metric, sinks=found, draws=3)
    assert hidden.layers == (2, 3)
