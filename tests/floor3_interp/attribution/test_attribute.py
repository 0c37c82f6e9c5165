"""Estimates: exact where the model is linear, what the answer keys say on planted models, and held against patching."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from torch import Tensor

import interp
from interp.attribution.attribute import attribute
from interp.hooks.errors import InputsError, ModelError, SiteError
from interp.hooks.examples.example import example
from interp.metrics.shipped import KL, Accuracy, LogitDifference
from interp.planted import GATES, build, key
from interp.zoo.families import tiny

FIRST_ORDER = ("atp", "atp-qk", "relp", "attnlrp", "cp-lrp", "gim")
LINEAR = "ignore:Rules.*plain gradient, bit for bit"


@functools.cache
def built(name: str) -> interp.Model:
    m = interp.attach(*build(name))
    m.ready()
    return m


def planted(name: str, probe: str | None = None) -> tuple[interp.Model, Any, LogitDifference]:
    m, answers = built(name), key(name)
    asked = answers.probe(probe) if probe else answers.probes[0]
    right, wrong = (m.tokenizer.convert_tokens_to_ids(word) for word in (asked.answer, asked.wrong))
    return m, asked, LogitDifference(answers=((right,),), wrong=((wrong,),))


def by_head(effects: interp.patching.Effects) -> dict[str, float]:
    return dict(zip((s.removesuffix(".z") for s in effects.sites), effects.mean.tolist(), strict=True))


@pytest.mark.filterwarnings(LINEAR)
@pytest.mark.parametrize("name", GATES)
def test_what_each_method_finds_and_misses_is_what_the_answer_key_says(name: str) -> None:
    m, probe, metric = planted(name)
    for method, base, source in (
        ("attribute-denoise", probe.corrupt, probe.clean),
        ("attribute-noise", probe.clean, probe.corrupt),
    ):
        wanted = {e.heads[0]: e for e in key(name).expected if e.method == method and len(e.heads) == 1}
        for how in FIRST_ORDER:
            found = by_head(
                attribute(m, base=base, source=source, metric=metric, sites="L*.H*.z", method=how, verify=0)
            )
            for head, expected in wanted.items():
                assert found[head] == pytest.approx(expected.effect, abs=1e-3), (how, head)
                assert (abs(found[head]) > 1e-3) == expected.finds, (how, head)
            assert all(found[head] == 0 for head in key(name).null)


def test_a_path_finds_the_and_gate_and_a_saturated_softmax_only_where_its_grid_does() -> None:
    m, probe, metric = planted("planted-and")
    asked: dict[str, Any] = {"base": probe.corrupt, "source": probe.clean, "metric": metric, "verify": 0}
    found = by_head(attribute(m, sites="L*.H*.z", method="ig", **asked))
    assert [found[h] for h in ("L0.H1", "L0.H2")] == pytest.approx([1.0, 1.0], abs=1e-3)
    m, probe, metric = planted("planted-saturated")
    asked |= {"base": probe.corrupt, "source": probe.clean, "metric": metric}
    missed, hit = (by_head(attribute(m, sites="L*.H*.z", method="ig", steps=n, **asked)) for n in (10, 11))
    assert missed["L0.H1"] == pytest.approx(0, abs=0.01)
    assert hit["L0.H1"] == pytest.approx(240 / 11, abs=0.1)
    plain, repaired = (attribute(m, sites="L1.H2.q", method=how, **asked).mean for how in ("atp", "atp-qk"))
    assert float(plain) == pytest.approx(0, abs=1e-3)
    assert float(repaired) == pytest.approx(4, abs=1e-3)


@pytest.mark.filterwarnings(LINEAR)
@pytest.mark.parametrize("probe", ["induction", "pairs"])
def test_planted_heads_come_first_under_every_method(probe: str) -> None:
    m, asked, metric = planted("planted-decoder", probe)
    for how in ("atp", "atp*", "relp", "cp-lrp", "gim", "conductance"):
        found = by_head(
            attribute(m, base=asked.corrupt, source=asked.clean, metric=metric, sites="L*.H*.z", method=how, steps=3,
                      verify=0)
        )  # fmt: skip
        assert max(abs(found[head]) for head in key("planted-decoder").null) == 0
        silent = {head for head in asked.heads if abs(found[head]) < 1e-3}
        assert silent == (BEHIND_ATTENTION[probe] if how in ("cp-lrp", "atp*") else set()), how


BEHIND_ATTENTION = {"induction": {"L0.H1"}, "pairs": {"L0.H4"}}
"""Heads that act only through a later head's q or k: the attention rule lets nothing pass there, and of two
layers GradDrop always drops one that they need."""


@functools.cache
def model(name: str) -> interp.Model:
    m = interp.attach(tiny(name))
    m.ready()
    return m


def random_pair(name: str = "llama", *, rows: int = 3) -> tuple[interp.Model, dict[str, Any]]:
    m = model(name)
    base = torch.randint(5, 90, (rows, 8))
    source = torch.cat([base[:, :4], torch.randint(5, 90, (rows, 4))], 1)
    metric = LogitDifference(answers=((7,), (8,), (9,))[:rows], wrong=((10,), (11,), (12,))[:rows])
    return m, {"base": {"input_ids": base}, "source": {"input_ids": source}, "metric": metric}


@pytest.mark.filterwarnings("ignore:AttentionOnly.*full forward passes")
@pytest.mark.parametrize("method", ["atp", "atp-qk", "ig", "conductance"])
def test_where_the_metric_is_linear_in_the_site_estimates_are_exact(method: str) -> None:
    m, asked = random_pair("plain")
    exact = interp.patch(m, sites="L1.H*.z", positions="last", **asked)
    found = attribute(m, sites="L1.H*.z", positions="last", method=method, verify=0, **asked)
    assert found.sites == exact.sites
    torch.testing.assert_close(found.values, exact.values, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(found.base, exact.base, atol=1e-5, rtol=1e-5)
    assert found.source is not None
    torch.testing.assert_close(found.source, exact.source, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("positions", ["joint", "each", "last", slice(5, 7)])
def test_cells_are_those_of_patching(positions: Any) -> None:
    m, asked = random_pair()
    for sites in ("L*.H*.z", ["L1.resid_pre", "L0.K1.k"]):
        if positions == "each" and sites != "L*.H*.z":
            continue
        exact = interp.patch(m, sites=sites, positions=positions, **asked)
        found = attribute(m, sites=sites, positions=positions, verify=0, **asked)
        assert (found.sites, found.positions) == (exact.sites, exact.positions)
        assert found.values.shape == exact.values.shape
        assert bool((found.values[exact.values == 0] == 0).all())


def test_sums_over_positions_are_sums_of_positions_and_results_are_their_heads_z() -> None:
    m, asked = random_pair()
    each, joint, result = (
        attribute(m, sites=s, positions=p, method="relp", verify=0, **asked).values
        for s, p in (("L*.H*.z", "each"), ("L*.H*.z", "joint"), ("L*.H*.result", "joint"))
    )
    torch.testing.assert_close(each.unflatten(0, (8, 8)).sum(1), joint, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(result, joint)


def test_conductance_over_a_cut_is_the_difference_of_the_runs_and_so_is_the_path_at_its_start() -> None:
    m, asked = random_pair("gpt2")
    table = m.module.get_input_embeddings()
    base, there = (table(asked[side]["input_ids"]).detach() for side in ("base", "source"))
    near = {"base": {"inputs_embeds": base}, "source": {"inputs_embeds": base + 0.2 * (there - base)}}
    for sites, method in (("L1.resid_pre", "conductance"), ("L0.resid_pre", "ig")):
        found = attribute(m, sites=sites, method=method, steps=16, verify=0, metric=asked["metric"], **near)
        assert found.source is not None
        torch.testing.assert_close(found.values[0], (found.source - found.base).double(), atol=2e-3, rtol=2e-3)
    assert found.meta["grid"][:2] == [0.03125, 0.09375]


def test_integrated_gradients_are_captums() -> None:
    captum = pytest.importorskip("captum.attr")
    m, asked = random_pair("gpt2")
    x, y = (m.inputs(asked[side]) for side in ("base", "source"))
    start, end = (m.run(side, record="embed")["embed"] for side in (x, y))

    def forward(embedded: Tensor) -> Tensor:
        with m.edited([interp.Set("embed", embedded)]):
            return asked["metric"](m.module(**x.kwargs).logits, x)

    theirs = captum.IntegratedGradients(forward).attribute(
        end, baselines=start, n_steps=12, method="riemann_middle", internal_batch_size=3
    )
    ours = attribute(m, sites="L0.resid_pre", positions="each", method="ig", steps=12, verify=0, **asked)
    torch.testing.assert_close(ours.values.T.float(), theirs.sum(-1).detach(), atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("how", ["all", 6])
def test_agreement_is_that_of_exact_patching_in_both_directions(how: Any) -> None:
    m, asked = random_pair()
    found = attribute(m, sites="L*.H*.z", positions="each", verify=how, **asked)
    there = found.meta["verify"]["source into base"]
    assert there["cells"] == 64
    assert there["changed"] == 32
    assert there["patched"] == (32 if how == "all" else 6)
    exact = interp.patch(m, sites="L*.H*.z", positions="each", **asked)
    if how == "all":
        both = torch.stack([found.mean, exact.mean])
        assert there["pearson"] == pytest.approx(float(torch.corrcoef(both)[0, 1]), abs=1e-4)
        gap = (found.mean - exact.mean).abs()
        worst = int(gap.argmax())
        assert there["worst miss"]["site"] == found.sites[worst]
        assert there["worst miss"]["position"] == worst % 8
        assert "group test" not in there
        back = found.meta["verify"]["base into source"]
        turned = {**asked, "base": asked["source"], "source": asked["base"]}
        other = torch.stack([attribute(m, sites="L*.H*.z", positions="each", verify=0, **turned).mean,
                             interp.patch(m, sites="L*.H*.z", positions="each", **turned).mean])  # fmt: skip
        assert back["pearson"] == pytest.approx(float(torch.corrcoef(other)[0, 1]), abs=1e-4)
    else:
        assert there["group test"]["of"] == 26
        assert abs(there["group test"]["largest"]) > 0
        for name in ("pearson", "spearman"):
            low, high = there[f"{name} interval"]
            assert -1 <= low <= there[name] <= high <= 1


def test_a_sample_costs_what_its_cells_cost_and_says_where_all_cells_cost_no_more() -> None:
    m, asked = random_pair()
    calls = []
    handle = m.module.register_forward_hook(lambda *_: calls.append(1))
    counts, said = {}, {}
    for how in (1, "all"):
        calls.clear()
        found = attribute(m, sites="L*.H*.z", positions="each", verify=how, **asked)
        counts[how], said[how] = len(calls), found.meta["verify"]["source into base"]
    handle.remove()
    assert counts[1] == counts["all"]  # halves are patched together in the sweep, not in full passes
    assert said[1]["passes of all"] == said["all"]["passes of all"]
    assert said[1]["passes"] < said[1]["passes of all"] + 2 + 8
    assert "interp.patch" in said["all"]["instead"]


def test_halves_are_their_cells_patched_together() -> None:
    from interp.attribution.pair import paired
    from interp.attribution.verify import _prepared, _some
    from interp.patching.swept import exactly

    m, asked = random_pair()
    pair = paired(m, asked["base"], asked["source"], asked["metric"], ["L*.H*.z"], "each")
    ready = _prepared(pair, 0)
    some = [n for n, cell in enumerate(ready.cells) if bool(cell.changed.any())][1::3]
    moved = exactly(_some(ready, [], [some]))[""][0]
    edits = [edit for n in some for edit in ready.cells[n].edits()]
    plain, edited = (asked["metric"](m.run(asked["base"], edits=e)["logits"], pair.base) for e in ((), edits))
    torch.testing.assert_close(moved, (edited - plain).double(), atol=1e-5, rtol=1e-4)


def test_intervals_hold_the_correlation_over_all_cells() -> None:
    from interp.attribution.verify import HALVES, Checked, _drawn, _intervals, pearson

    random = torch.Generator().manual_seed(0)
    held = {10: 0, 40: 0}
    for n in held:
        for seed in range(30):
            exact = torch.randn(270, generator=random).double() ** 5
            estimate = exact * (0.6 + 0.4 * torch.rand(270, generator=random).double())
            estimate[exact.abs().argsort()[-4:-2]] /= 20  # saturated heads
            whole = pearson(estimate, exact, torch.ones(270).double())
            numbers, weights = _drawn(estimate.abs(), torch.ones(270).bool(), n, torch.Generator().manual_seed(seed))
            rest = torch.ones(270).bool()
            rest[numbers] = False
            halves = [rest & (torch.rand(270, generator=random) < 0.5) for _ in range(HALVES)]
            moved, owed = (torch.stack([x[half].sum() for half in halves]) for x in (exact, estimate))
            checked = Checked(numbers, exact[numbers][:, None], weights, moved, owed)
            ends = _intervals(estimate[numbers], exact[numbers], weights, checked)["pearson"]
            assert ends is not None
            assert whole is not None
            held[n] += ends[0] <= whole <= ends[1]
    assert held[40] >= 27  # without what the halves say, 18
    assert held[10] >= 26


def test_weights_make_a_sample_stand_for_all() -> None:
    from interp.attribution.verify import _drawn, pearson, ranks

    size = torch.rand(200, dtype=torch.float64)
    live = torch.ones(200, dtype=torch.bool)
    for seed in range(20):
        numbers, weights = _drawn(size, live, 40, torch.Generator().manual_seed(seed))
        assert len(set(numbers.tolist())) == len(numbers) == 40
        assert float(weights.sum()) == pytest.approx(200)
        assert set(size.topk(10).indices.tolist()) <= set(numbers.tolist())
    x, y = torch.randn(2, 30, dtype=torch.float64)
    weights = torch.randint(1, 4, (30,)).double()
    many = [t.repeat_interleave(weights.long()) for t in (x, y)]
    ones = torch.ones(len(many[0]), dtype=torch.float64)
    assert pearson(x, y, weights) == pytest.approx(float(torch.corrcoef(torch.stack(many))[0, 1]))
    assert pearson(ranks(x, weights), ranks(y, weights), weights) == pytest.approx(
        pearson(*(ranks(t, ones) for t in many), ones)
    )


def test_half_precision_is_summed_in_float32() -> None:
    _, asked = random_pair()
    wide, narrow = (
        attribute(interp.attach(tiny("llama", dtype=dtype)), sites="L*.H*.z", method="relp", verify=0, **asked).mean
        for dtype in (torch.float32, torch.bfloat16)
    )
    torch.testing.assert_close(wide, narrow, atol=0.1 * float(wide.abs().max()), rtol=0.1)


def test_pictures_and_embeddings_are_inputs_too() -> None:
    vit = model("vit")
    a, b = (dict(example(vit.module, batch=2, seed=seed)) for seed in (1, 2))
    found = attribute(vit, base=a, source=b, metric=lambda g, x: g[:, 0] - g[:, 1], sites="L*.H*.z", method="relp")
    assert found.meta["verify"]["source into base"]["patched"] == 9
    llava = interp.attach(tiny("llava"))
    x = dict(example(llava.module, seed=1))
    y = {**x, "pixel_values": torch.randn_like(x["pixel_values"])}
    seen = attribute(llava, base=x, source=y, metric=lambda g, i: g[:, -1, 3] - g[:, -1, 4],
                     sites=["vision.L1.H*.z", "text.L*.H*.z"], method="attnlrp", verify=0)  # fmt: skip
    assert bool((seen.values != 0).all())
    m, asked = random_pair(rows=1)
    table = m.module.get_input_embeddings()
    by_ids = attribute(m, sites="L*.H*.z", verify=0, **asked)
    embedded = {side: {"inputs_embeds": table(asked[side]["input_ids"]).detach()} for side in ("base", "source")}
    by_value = attribute(m, sites="L*.H*.z", verify=0, metric=asked["metric"], **embedded)
    torch.testing.assert_close(by_ids.values, by_value.values, atol=1e-5, rtol=1e-4)


def test_zero_and_mean_sources_and_the_model_left_as_it_was() -> None:
    m, asked = random_pair()
    before = {n: (p.clone(), p.requires_grad, p._version) for n, p in m.module.named_parameters()}
    for source in ("zero", "mean", "noise"):
        found = attribute(
            m, base=asked["base"], source=source, metric=asked["metric"], sites="L1.H*.z", method="relp", verify=2
        )
        assert list(found.meta["verify"]) == ["source into base"]
        assert found.meta["corruption"] == source
    assert all(
        torch.equal(p, before[n][0]) and p.requires_grad == before[n][1] and p._version == before[n][2]
        for n, p in m.module.named_parameters()
    )
    assert not m.handles()
    again = [attribute(m, sites="L1.H*.z", verify=2, **asked) for _ in range(2)]
    assert torch.equal(again[0].values, again[1].values)
    assert again[0].meta["verify"] == again[1].meta["verify"]
    assert again[0].meta["passes"] == 3
    tape = m.run(asked["source"], record="L1.z")
    of_tape = attribute(m, base=asked["base"], source=tape, metric=asked["metric"], sites="L1.H*.z", verify=0)
    torch.testing.assert_close(of_tape.values, again[0].values)


def test_what_has_no_gradient_or_no_meaning_is_refused() -> None:
    m, asked = random_pair()
    x = m.inputs(asked["base"])
    more = {n: asked[n] for n in ("base", "source")} | {"sites": "L*.H*.z", "verify": 0}
    with pytest.raises(InputsError, match="carries no gradient"):
        attribute(m, metric=Accuracy(((7,), (8,), (9,))), **more)
    here = KL.to(m.run(x)["logits"], x)
    with pytest.raises(InputsError, match="method='ig'"):
        attribute(m, metric=here, **more)
    assert float(attribute(m, metric=here, method="ig", **more).mean.abs().max()) > 1e-3
    there = KL.to(m.run(asked["source"])["logits"], x)
    assert float(attribute(m, metric=there, **more).mean.abs().max()) > 1e-3
    with pytest.raises(InputsError, match="no attribution method 'lrp'"):
        attribute(m, method="lrp", **asked, sites="L*.z")
    with pytest.raises(InputsError, match="rules= belongs to relp"):
        attribute(m, rules=("ln",), **asked, sites="L*.z")
    with pytest.raises(InputsError, match="needs two runs"):
        attribute(m, base=asked["base"], source="zero", metric=asked["metric"], sites="L*.z", method="ig")
    with pytest.raises(SiteError, match="values per layer"):
        attribute(m, **asked, sites="L*.H*.pattern")
    with pytest.raises(InputsError, match="line up"):
        attribute(m, **{**asked, "source": {"input_ids": asked["source"]["input_ids"][:, :-1]}}, sites="L*.z")
    with pytest.raises(InputsError, match="verify is"):
        attribute(m, **asked, sites="L*.z", verify=-1)
    gpt2, asked = random_pair("gpt2")
    with pytest.raises(ModelError, match="no gated MLP"):
        attribute(gpt2, **asked, sites="L*.z", method="relp", rules=("ln", "identity", "half"))
    assert attribute(gpt2, **asked, sites="L*.z", method="relp", verify=0).meta["rules"] == ("ln", "identity")


def test_weights_that_round_what_they_read_are_refused() -> None:
    bnb = pytest.importorskip("bitsandbytes")
    _, asked = random_pair()
    m = interp.attach(tiny("llama"))
    for layer in m.module.model.layers:
        old = layer.mlp.down_proj
        layer.mlp.down_proj = bnb.nn.Linear8bitLt(old.in_features, old.out_features, bias=False, has_fp16_weights=True)
        layer.mlp.down_proj.weight.data = old.weight.data
    with pytest.raises(ModelError, match="rounds what it reads"):
        attribute(m, **asked, sites="L*.z")
