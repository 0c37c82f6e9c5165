"""Weights, key attributions, correlations and deletion curves, each against its definition from whole patterns."""

from __future__ import annotations

import sys
from functools import cache
from pathlib import Path
from typing import Any

import pandas.testing
import pytest
import torch
from spoken import tone, whisper
from torch import Tensor

import interp
from interp.hooks.errors import InputsError, ModelError, SiteError
from interp.hooks.examples.example import example
from interp.planted import build
from interp.planted.probes import probe_task
from interp.results.agreement import Agreement
from interp.zoo.families import tiny


@cache
def double(name: str) -> interp.Model:
    """In float64, but for experts that torch multiplies in float32 alone."""
    return interp.attach(tiny(name) if name == "gpt_oss" else tiny(name).double())


def rows(m: interp.Model, **how: Any) -> Any:
    kwargs = dict(example(m.module, batch=2, seed=3, **how))
    return m.inputs({n: v.to(m.dtype) if v.is_floating_point() else v for n, v in kwargs.items()})


def right(logits: Tensor, inputs: Any) -> Tensor:
    """Not linear, at the last real position or of the class."""
    if logits.ndim == 3:
        last = (inputs.valid * torch.arange(inputs.valid.shape[1])).amax(1)
        logits = logits[torch.arange(len(logits)), last]
    return logits.log_softmax(-1)[:, 1]


@cache
def read(name: str, padding: str | None = None) -> tuple[interp.Model, Any, Agreement]:
    m = double(name)
    x = rows(m, **({} if padding is None else {"padding": padding}))
    return m, x, interp.attribution.agree(m, x, metric=right, random=2, shares=(0.0, 0.4, 1.0))


CASES = [("gpt2", "left"), ("llama", "right"), ("vit", None), ("gpt_oss", None)]


def chosen(m: interp.Model, x: Any, row: int) -> list[int]:
    """The rows that are read: all of an image, the last token of a text."""
    real = x.valid[row].nonzero().flatten().tolist()
    return real if m.anatomy.tower(None, text="").bidirectional else real[-1:]


@pytest.mark.parametrize(("name", "padding"), CASES)
def test_weights_and_worth_are_those_of_whole_patterns(name: str, padding: str | None) -> None:
    m, x, found = read(name, padding)
    near: dict[str, Any] = {"atol": 1e-5, "rtol": 1e-4}
    slopes = m.run(x, record="L*.z", grad=True).grad(right)
    for layer in m.anatomy.tower(None, text="").layers:
        tape = m.run(x, record=[f"L{layer.index}.{c}" for c in ("pattern", "v")])
        p, g = tape[f"L{layer.index}.pattern"].double(), slopes[f"L{layer.index}.z"].double()
        v = tape[f"L{layer.index}.v"].double().repeat_interleave(layer.group, 2)
        for head in range(layer.heads):
            n = found.sites.index(f"L{layer.index}.H{head}")
            for row in range(x.batch):
                at = chosen(m, x, row)
                torch.testing.assert_close(found.attention[n, row], p[row, head, at].mean(0), **near)
                worth = sum(_falls(p[row, head, i], v[row, :, head], g[row, i, head]) for i in at)
                torch.testing.assert_close(found.own[n, row], worth, **near)


def _falls(a: Tensor, v: Tensor, g: Tensor) -> Tensor:
    """By how much <g, z> falls when one key is hidden and the other weights (the sink's too) are renormalised."""
    falls = []
    for j in range(len(a)):
        kept = a.clone()
        kept[j] = 0.0
        falls.append(g @ (a @ v) - g @ (kept / (1 - a[j]) @ v) if float(kept.sum()) else g[0] * 0)
    return torch.stack(falls)


@pytest.mark.parametrize(("name", "padding"), CASES[:3])
def test_relevance_is_gradient_times_input_and_correlations_are_taken_over_the_keys_that_are_seen(
    name: str, padding: str | None
) -> None:
    m, x, found = read(name, padding)
    tape = m.run(x, record="embed", grad=True)
    worth = (tape["embed"] * tape.grad(right)["embed"]).sum(-1).detach()
    torch.testing.assert_close(found.relevance, worth, atol=1e-8, rtol=1e-5)
    assert torch.equal(found.counted, x.valid)
    names, made = found.correlations()
    n = names.index("L1.H1")
    for row in range(x.batch):
        keep = x.valid[row]
        pair = torch.stack([found.attention[n, row, keep], worth[row, keep].abs()])
        assert float(made["input pearson"][n, row]) == pytest.approx(float(torch.corrcoef(pair)[0, 1]), abs=1e-6)
        order = torch.stack([one.argsort().argsort().double() for one in pair])
        assert float(made["input spearman"][n, row]) == pytest.approx(float(torch.corrcoef(order)[0, 1]), abs=1e-6)
        pair = torch.stack([found.attention[n, row, keep], found.own[n, row, keep].abs()])
        assert float(made["head pearson"][n, row]) == pytest.approx(float(torch.corrcoef(pair)[0, 1]), abs=1e-6)


def test_layers_and_the_whole_take_mean_weights_and_summed_worth() -> None:
    _, x, found = read("gpt2", "left")
    for level, picks in (("layer", {"L0": range(4), "L1": range(4, 8)}), ("all", {"all": range(8)})):
        names, made = found.correlations(level)
        assert names == tuple(picks)
        for n, some in enumerate(picks.values()):
            keep = x.valid[0]
            looks, owes = (one[list(some), 0][:, keep] for one in (found.attention, found.own))
            pair = torch.stack([looks.mean(0), owes.sum(0).abs()])
            assert float(made["head pearson"][n, 0]) == pytest.approx(float(torch.corrcoef(pair)[0, 1]), abs=1e-6)


@pytest.mark.parametrize(("name", "padding"), CASES[:3])
def test_deletion_hides_the_first_keys_of_an_order_from_everything(name: str, padding: str | None) -> None:
    m, x, found = read(name, padding)
    orders = {"attention": found.attention.mean(0), "attribution": found.relevance}
    for n, order in enumerate(orders.values()):
        assert found.curves[n, 0].tolist() == pytest.approx(right(m.run(x)["logits"], x).tolist())
        for step, share in ((1, 0.4), (2, 1.0)):
            gone = torch.zeros_like(x.valid)
            for row in range(x.batch):
                own = [] if name == "vit" else chosen(m, x, row)
                keys = [k for k in x.valid[row].nonzero().flatten().tolist() if k not in own]
                sizes = {k: -float(order[row, k]) for k in keys}
                gone[row, sorted(keys, key=sizes.__getitem__)[: round(share * len(keys))]] = True
            edits = [interp.MaskKeys("L*.H*", keys=gone)]
            want = right(m.run(x, edits=edits)["logits"], x)
            assert found.curves[n, step].tolist() == pytest.approx(want.tolist(), abs=1e-9)
    assert found.random.shape == (2, 3, x.batch)
    torch.testing.assert_close(found.random[:, 2], found.curves[:, 2])  # everything is gone either way


def test_curves_and_areas_are_tables() -> None:
    _, _, found = read("gpt2", "left")
    table = found.deletion()
    assert table["order"].unique().tolist() == ["attention", "attribution", "random"]
    assert ((table["low"] <= table["metric"]) & (table["metric"] <= table["high"])).all()
    area = found.auc().set_index("order")
    steps, curve = found.shares.tolist(), found.curves[1].mean(1).tolist()
    by_hand = sum((steps[i + 1] - steps[i]) * (curve[i] + curve[i + 1]) / 2 for i in range(2))
    assert area.loc["attribution", "auc"] == pytest.approx(by_hand)
    assert area.loc["random", "below_random"] == 0
    assert area.loc["attribution", "below_random"] == pytest.approx(
        area.loc["random", "auc"] - area.loc["attribution", "auc"]
    )


def test_the_planted_head_looks_where_its_answer_rests_and_idle_heads_have_no_correlation() -> None:
    m = interp.attach(*build("planted-decoder"))
    task = probe_task("planted-decoder", "induction", model=m)
    found = interp.attribution.agree(m, task.clean, metric=task.metric, random=4, shares=(0.0, 0.2, 0.5))
    frame = found.to_frame().set_index(["method", "site"])
    assert frame.loc[("head pearson", "L1.H4"), "estimate"] == pytest.approx(1, abs=1e-3)
    assert frame.loc[("head pearson", "L1.H0"), "n"] == 0
    area = found.auc().set_index("order")["below_random"]
    assert area["attribution"] > 0
    assert area["attention"] > 0


def test_rows_are_read_a_few_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    m, x, _ = read("llama", "right")
    how: dict[str, Any] = {"metric": right, "rows": "all", "shares": ()}
    whole = interp.attribution.agree(m, x, **how)
    monkeypatch.setattr(sys.modules["interp.attribution.agree"], "NUMBERS", 1)
    parts = interp.attribution.agree(m, x, **how)
    torch.testing.assert_close(parts.attention, whole.attention)
    torch.testing.assert_close(parts.own, whole.own)


def test_some_heads_are_those_of_all() -> None:
    m, x, whole = read("gpt2", "left")
    some = interp.attribution.agree(m, x, metric=right, heads="L1.H2,0", shares=())
    assert some.sites == ("L1.H2", "L1.H0")
    torch.testing.assert_close(some.own[0], whole.own[whole.sites.index("L1.H2")])
    torch.testing.assert_close(some.attention[1], whole.attention[whole.sites.index("L1.H0")])


def test_an_attribution_of_ones_own_and_keys_left_out() -> None:
    m, x, whole = read("gpt2", "left")
    given = torch.rand(whole.relevance.shape, generator=torch.Generator().manual_seed(0))
    keys = [list(range(int(v.int().argmax()) + 1, x.length)) for v in x.valid]
    found = interp.attribution.agree(m, x, metric=right, attribution=given, keys=keys, shares=())
    assert torch.equal(found.relevance, given.double())
    assert found.counted.sum(1).tolist() == [len(some) for some in keys]
    with pytest.raises(InputsError, match="does not fit"):
        interp.attribution.agree(m, x, metric=right, attribution=given[:, 1:], shares=())
    with pytest.raises(InputsError, match="not finite"):
        interp.attribution.agree(m, x, metric=right, attribution=given / 0, shares=())


def test_relevance_by_another_method_is_taken() -> None:
    pytest.importorskip("captum")
    m, x, whole = read("gpt2", "left")
    taken = interp.relevance(m, x, metric=right)
    found = interp.attribution.agree(m, x, metric=right, attribution=taken, shares=())
    torch.testing.assert_close(found.relevance, whole.relevance, atol=1e-6, rtol=1e-4)


encoder_decoder = cache(lambda: interp.attach(tiny("t5")))


@pytest.mark.parametrize("heads", ["encoder.L*.H*", "decoder.L*.H*", "cross.L*.H*"])
def test_every_tower_of_an_encoder_decoder(heads: str) -> None:
    m = encoder_decoder()
    x = m.inputs(dict(example(m.module, batch=2, seed=1)))
    found = interp.attribution.agree(m, x, metric=right, heads=heads, random=1, shares=(0.0, 1.0))
    keys = x.length if heads.startswith("decoder") else x.tower("encoder").length
    assert found.attention.shape == (8, 2, keys)
    torch.testing.assert_close(found.attention.sum(-1), torch.ones(8, 2).double(), atol=1e-5, rtol=1e-5)
    assert not torch.allclose(found.curves[0, 0], found.curves[0, 1])


def test_padding_that_a_model_looks_at_is_not_compared() -> None:
    """Whisper sees the frames that fill its window, where weight and attribution agree on next to nothing."""
    m = interp.attach(*whisper())
    x = m.prepare(audio=[tone(0.3), tone(0.8, seed=1)], language="en", continuation=" yes")
    found = interp.attribution.agree(m, x, metric=right, heads="cross.L*.H*", random=1, shares=(0.0, 1.0))
    assert found.counted.sum(1).tolist() == [15, 40]
    _, got = found.correlations("all")
    for row, frames in ((0, 15), (1, 40)):
        looks = found.attention[:, row, :frames].mean(0)
        owed = found.relevance[row, :frames].abs()
        expected = torch.corrcoef(torch.stack([looks, owed]))[0, 1]
        assert float(got["input pearson"][0, row]) == pytest.approx(float(expected), abs=1e-9)


def test_saved_loaded_drawn_and_told(tmp_path: Path) -> None:
    m, x, found = read("gpt2", "left")
    again = interp.open(found.save(tmp_path))
    for level in ("head", "layer", "all"):
        pandas.testing.assert_frame_equal(again.to_frame(level), found.to_frame(level))
    assert repr(again) == repr(found)
    assert list(found.to_frame().columns) == [
        "site", "tower", "layer", "head", "method", "estimate", "low", "high", "n",
    ]  # fmt: skip
    assert len(found.top(3)) == 3
    assert len(found.plot().data) == 3
    bare = interp.attribution.agree(m, x, metric=right, shares=())
    assert bare.plot().data[0].z.shape == (2, 4)
    assert bare.meta["passes"] == 2
    with pytest.raises(interp.InterpError, match="nothing was deleted"):
        bare.auc()
    with pytest.raises(interp.InterpError, match="no method"):
        bare.top(method="kendall")
    with pytest.raises(interp.InterpError, match="level is one of"):
        bare.correlations("tower")
    assert not m.handles()


def test_what_has_no_meaning_is_refused() -> None:
    m, x, _ = read("gpt2", "left")
    refused: list[tuple[dict[str, Any], type[Exception], str]] = [
        ({"heads": "L*"}, SiteError, "name heads"),
        ({"shares": (0.5, 0.1)}, InputsError, "in order"),
        ({"shares": (0.5, 2.0)}, InputsError, "from 0 to 1"),
        ({"random": 0}, InputsError, "at least 1"),
        ({"keys": "last"}, InputsError, "at least 3 keys"),
        ({"rows": "image"}, InputsError, "select nothing"),
        ({"metric": lambda logits, x: logits[:, -1].argmax(-1).double()}, InputsError, "no gradient"),
    ]
    for how, kind, says in refused:
        with pytest.raises(kind, match=says):
            interp.attribution.agree(m, x, **{"metric": right, **how})
    outside = interp.attach(tiny("gptj"))
    with pytest.raises(ModelError, match="attention call is not seen"):
        interp.attribution.agree(outside, dict(example(outside.module, batch=1)), metric=right)
