"""Sink strength is the definition's, from whole patterns in float64; the planted sink ranks first; nothing is left."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pandas
import pytest
import torch
from models import attached
from torch import Tensor

import interp
from interp.hooks.errors import InputsError, SiteError
from interp.hooks.examples.example import example
from interp.planted import build

TEXTS = ["fox = apple , lake = stone , fox =", "moon = river , moon ="]


@cache
def planted() -> interp.Model:
    return interp.attach(*build("planted-decoder"))


def alphas(pattern: Tensor, valid: Tensor, *, causal: bool) -> list[list[list[float]]]:
    """Gu et al.: alpha_k = sum over the rows that see k of A[i, k] / how many there are, [example][head][key]."""
    out = []
    for a, real in zip(pattern.double(), valid, strict=True):
        columns = real.nonzero().flatten().tolist()
        heads = []
        for head in a:
            rows = [[i for i in columns if i >= k or not causal] for k in range(len(real))]
            heads.append([float(sum(head[i, k] for i in rows[k])) / len(rows[k]) if real[k] else 0.0
                          for k in range(len(real))])  # fmt: skip
        out.append(heads)
    return out


@pytest.mark.parametrize("name", ["llama", "gpt2", "vit"])
def test_strengths_are_those_of_the_definition(name: str) -> None:
    m = attached(name)
    x = m.inputs(dict(example(m.module, batch=2, length=9, seed=3)))
    s = interp.sinks(m, x, least=1)
    tower = m.anatomy.tower(None, text="")
    for layer in tower.layers:
        pattern = m.run(x, record=f"L{layer.index}.pattern")[f"L{layer.index}.pattern"]
        valid = torch.ones(pattern.shape[0], pattern.shape[-1], dtype=torch.bool)
        want = torch.tensor(alphas(pattern, valid, causal=not tower.bidirectional), dtype=torch.float64)
        at = [n for n, site in enumerate(s.sites) if site.startswith(f"L{layer.index}.")]
        torch.testing.assert_close(s.received[at].transpose(0, 1), want, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(s.first[at].T, want[:, :, 0], atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(s.first_mass[at].T, pattern.double()[..., 0].mean(2), atol=1e-5, rtol=1e-4)


def test_the_planted_sink_ranks_first_and_padding_is_no_token() -> None:
    m = planted()
    both = interp.sinks(m, TEXTS, least=2)
    assert both.top(1)["site"].item() == "L0.H3"
    assert float(both.first[both.sites.index("L0.H3")].min()) == pytest.approx(1.0, abs=1e-6)
    assert both.top(1, by="first_mass")["site"].item() == "L0.H3"
    alone = interp.sinks(m, TEXTS[1], least=2)
    pad = both.received.shape[2] - alone.received.shape[2]
    assert pad > 0
    assert both.start.tolist() == [0, pad]
    torch.testing.assert_close(both.first[:, 1], alone.first[:, 0], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(both.received[:, 1, pad:], alone.received[:, 0], atol=1e-5, rtol=1e-4)


def test_the_epsilon_metric_counts_heads_per_example() -> None:
    s = interp.sinks(planted(), TEXTS)
    by_hand = [sum(float(v) > 0.3 for v in s.first[:, b]) / len(s.sites) for b in range(2)]
    assert s.metric() == pytest.approx(sum(by_hand) / 2)
    assert 0 < s.metric(0.99) < s.metric(0.3) < s.metric(0.0) == 1
    assert s.to_frame()["share"].mean() == pytest.approx(s.metric())


def test_later_sinks_are_found_where_they_are_put() -> None:
    m = attached("gpt2")
    x = dict(example(m.module, batch=1, length=12, seed=1))
    along = torch.zeros(m.anatomy.tower(None, text="").layers[1].d_head)
    along[0] = 40.0
    with m.edited([interp.Add("L1.H2.q", along), interp.Add("L1.K2.k", along, positions=[4])]):
        s = interp.sinks(m, x)
    found = s.later()
    assert found.iloc[0][["site", "position"]].tolist() == ["L1.H2", 4]
    assert s.top(1, by="later")["site"].item() == "L1.H2"


def test_massive_activations_are_found_with_their_dimensions() -> None:
    m = attached("llama")
    x = dict(example(m.module, batch=2, length=10, seed=2))
    assert interp.sinks(m, x).massive().empty
    width = m.anatomy.tower(None, text="").width
    big = torch.zeros(width)
    big[3], big[width - 2] = 5e3, -9e3
    with m.edited([interp.Add("L0.resid_post", big, positions=[4])]):
        found = interp.sinks(m, x).massive()
    assert set(found["dim"]) == {3, width - 2}
    assert set(found["position"]) == {4}
    assert set(found["example"]) == {0, 1}
    residual = m.run(x, record="L0.resid_post")["L0.resid_post"].double().abs()
    top, dims, median = interp.sinks(m, x).activations["L0.resid_post"]
    torch.testing.assert_close(top[..., 0].double(), residual.amax(-1))
    assert torch.equal(dims[..., 0], residual.argmax(-1))
    assert median.tolist() == pytest.approx([float(row.median(-1).values.median()) for row in residual])


def test_chunks_give_what_one_pass_gives_and_nothing_stays_on_the_model() -> None:
    m = attached("llama")
    x = dict(example(m.module, batch=1, length=20, seed=5))
    whole, parts = interp.sinks(m, x), interp.sinks(m, x, chunk=7)
    torch.testing.assert_close(whole.received, parts.received, atol=1e-5, rtol=1e-4)
    for site in whole.activations:
        torch.testing.assert_close(whole.activations[site][0], parts.activations[site][0], atol=1e-4, rtol=1e-4)
    assert interp.sinks(m, x, activations=False).activations == {}
    assert not any(module._forward_hooks for module in m.module.modules())


def test_learned_sinks_have_their_share() -> None:
    """softmax over [scores, s_h]: the sink's part is e^s_h over it and the sum of the others, for each row."""
    m = attached("gpt_oss")
    x = m.inputs(dict(example(m.module, batch=2, length=9, seed=0, padding="left")))
    s = interp.sinks(m, x)
    for layer in (0, 1):
        scores = m.run(x, record=f"L{layer}.scores")[f"L{layer}.scores"].double()
        learned = m.module.model.layers[layer].self_attn.sinks.detach().double().exp()[None, :, None]
        part = learned / (learned + scores.exp().sum(-1))
        real = x.valid[:, None].double()
        want = (part * real).sum(2) / real.sum(2)
        at = [n for n, site in enumerate(s.sites) if site.startswith(f"L{layer}.")]
        torch.testing.assert_close(s.learned[at].T, want, atol=1e-5, rtol=1e-4)
    assert float(interp.sinks(planted(), TEXTS).learned.abs().max()) == 0


def test_a_table_has_intervals_and_is_read_back_as_it_was(tmp_path: Path) -> None:
    s = interp.sinks(planted(), TEXTS)
    frame = s.to_frame()
    assert list(frame.columns[:9]) == ["site", "tower", "layer", "head", "method", "estimate", "low", "high", "n"]
    assert bool(((frame["low"] <= frame["estimate"]) & (frame["estimate"] <= frame["high"])).all())
    assert frame["estimate"].tolist() == s.first.mean(1).tolist()
    moves = (s.first[:, 0] - s.first[:, 1]).abs() > 1e-3
    assert bool(moves.any())
    assert ((frame["high"] - frame["low"]) > 1e-3).tolist() == moves.tolist()
    assert s.meta["model_hash"]
    back = interp.open(s.save(tmp_path / "sinks"))
    pandas.testing.assert_frame_equal(back.to_frame(), frame)
    pandas.testing.assert_frame_equal(back.by_kind(), s.by_kind())
    assert torch.equal(back.received, s.received)
    for site, value in s.norms.items():
        assert torch.equal(back.norms[site], value)
        assert all(torch.equal(a, b) for a, b in zip(back.activations[site], s.activations[site], strict=True))
    assert (back.sites, back.kinds, back.meta["least"]) == (s.sites, s.kinds, 8)
    assert repr(back) == repr(s)
    assert s.plot().data[0].z.shape == (2, 6)


def test_norms_that_stand_apart_are_found_in_every_layer_by_its_own_measure() -> None:
    m = interp.load("zoo:shapes-vit-registers")
    x = interp.tasks.shapes(m, n=4).clean
    plain = interp.sinks(m, x)
    residual = m.run(x, record="L1.resid_post")["L1.resid_post"].double()
    torch.testing.assert_close(plain.norms["L1.resid_post"].double(), residual.square().sum(-1).sqrt())
    middle = residual[:, 5:].norm(dim=-1).median()
    with m.edited([interp.Add("L1.resid_post", 20 * middle * torch.eye(64)[3], positions=[9], rows=(2,))]):
        found = interp.sinks(m, x).outliers()
    mine = found[(found["site"] == "L1.resid_post") & (found["kind"] == "image")]
    assert [2, 9] in mine[["example", "position"]].values.tolist()
    assert mine.iloc[0]["times_median"] == pytest.approx(20, rel=0.3)
    assert plain.outliers(times=1e6).empty


def test_kinds_of_tokens_share_all_attention() -> None:
    m = interp.load("zoo:shapes-vit-registers")
    x = interp.tasks.shapes(m, n=3).clean
    s = interp.sinks(m, x, least=1)
    table = s.by_kind()
    assert table.groupby("kind")["tokens"].first().to_dict() == {"cls": 1, "image": 36, "register": 4}
    pattern = m.run(x, record="L2.pattern")["L2.pattern"].double()
    want = pattern[:, 1, :, 1:5].sum(-1).mean()
    row = table[(table["site"] == "L2.H1") & (table["kind"] == "register")]
    assert row["share"].item() == pytest.approx(float(want), rel=1e-4)
    assert row["even"].item() == pytest.approx(4 / 41)
    assert table.groupby("site")["share"].sum().tolist() == pytest.approx([1.0] * 16)


def test_what_has_no_meaning_is_refused() -> None:
    m = planted()
    refused: list[tuple[Any, dict[str, Any], type[Exception], str]] = [
        ([], {}, InputsError, "empty"),
        ("", {}, InputsError, "empty"),
        (torch.tensor([[1]]), {}, InputsError, "at least two tokens"),
        (TEXTS, {"least": 0}, InputsError, "at least 1"),
        ({"input_ids": torch.full((1, 300), 7)}, {}, InputsError, "positions for 256 tokens"),
        (TEXTS, {"heads": "L9"}, SiteError, "no layer"),
    ]
    for inputs, how, kind, says in refused:
        with pytest.raises(kind, match=says):
            interp.sinks(m, inputs, **how)
    with pytest.raises(InputsError, match="ranked by"):
        interp.sinks(m, TEXTS).top(1, by="strength")
