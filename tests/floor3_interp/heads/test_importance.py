"""Each measure is its definition, written out in float64; planted heads rank first; what agrees, and what is drawn."""

from __future__ import annotations

import math
from functools import cache
from pathlib import Path
from typing import Any

import pandas.testing
import pytest
import torch
from torch import Tensor

import interp
from interp.heads.measures.measured import Measured
from interp.heads.measures.table import Importance
from interp.hooks.edits.edits import Scale
from interp.hooks.errors import InputsError, ModelError, SiteError
from interp.hooks.examples.example import example
from interp.metrics.shipped import LogProb
from interp.planted import build, key
from interp.planted.probes import probe_task
from interp.results import intervals as bootstrap
from interp.zoo.families import tiny

FIRST_ORDER = ("gradient", "gradient-l2", "gradient-token", "gradient-signed")


@cache
def double(name: str) -> interp.Model:
    return interp.attach(tiny(name).double())


def right(logits: Tensor, inputs: Any) -> Tensor:
    """Not linear in the logits, so that a mistake in the gradient shows; classes or the last position."""
    last = logits if logits.ndim == 2 else logits[torch.arange(len(logits)), _last(inputs)]
    return last.log_softmax(-1)[:, 1]


def _last(inputs: Any) -> Tensor:
    valid: Tensor = inputs.valid
    return (valid * torch.arange(valid.shape[1])).amax(1)


def rows(m: interp.Model, batch: int = 3, **how: Any) -> Any:
    return m.inputs(_doubled(dict(example(m.module, batch=batch, seed=3, **how))))


def _doubled(kwargs: dict[str, Any]) -> dict[str, Any]:
    return {n: v.double() if torch.is_tensor(v) and v.is_floating_point() else v for n, v in kwargs.items()}


def value(found: Importance, method: str, site: str) -> Tensor:
    return found.measure(method).values[found.sites.index(site)]


PLANTED = [
    ("planted-decoder", "induction", "L*.H*"),
    ("planted-vit", "mark", "L*.H*"),
    ("planted-lvlm", "picture", ["text.L*.H*", "vision.L*.H*"]),
]


@cache
def planted(name: str) -> interp.Model:
    return interp.attach(*build(name))


@pytest.mark.parametrize(("name", "probe", "heads"), PLANTED)
def test_exact_measures_rank_the_planted_heads_first_and_null_heads_do_nothing(
    name: str, probe: str, heads: Any
) -> None:
    m = planted(name)
    task = probe_task(name, probe, model=m)
    by = ["zero", "resample", "gradient-signed", "atp", "loss", "prediction", "fisher", "norm"]
    found = interp.importance(m, task, by=by, heads=heads, verify=0, draws=1)
    wanted = set(key(name).probe(probe).heads)
    assert set(found.top(len(wanted), method="resample")["site"]) == wanted
    worst = min(found.scores("zero")[site] for site in wanted)
    assert all(score <= worst for site, score in found.scores("zero").items() if site not in wanted)
    null = [site for site in key(name).null if site in found.sites]
    assert null
    for method in by:
        assert [found.scores(method)[site] for site in null] == [0.0] * len(null)


def test_values_of_the_measures_that_are_no_ablation_are_pinned() -> None:
    """Worked out for the planted decoder: two heads in a chain, the second of which writes the logit of 16."""
    task = probe_task("planted-decoder", "induction", model=planted("planted-decoder"))
    by = ["gradient", "gradient-l2", "direct_effect", "norm", "entropy", "confidence", "prediction", "probability"]
    found = interp.importance(planted("planted-decoder"), task, by=by).wide().set_index("site")
    last, before = found.loc["L1.H4"], found.loc["L0.H1"]
    assert (last["gradient"], last["direct_effect"]) == (pytest.approx(15.96, abs=0.01),) * 2
    assert before["direct_effect"] == 0
    assert before["gradient"] == pytest.approx(0.635, abs=0.001)  # a softmax that is nearly saturated hides it
    assert (before["gradient-l2"], last["gradient-l2"]) == (pytest.approx(1),) * 2
    assert (last["prediction"], before["prediction"]) == (1, 1)
    assert last["probability"] == pytest.approx(0.9993, abs=1e-4)
    assert (before["norm"], last["norm"]) == (pytest.approx(1.01, abs=0.01), pytest.approx(3.226, abs=0.001))
    assert last["confidence"] > 0.999
    assert last["entropy"] < 0.01


@pytest.mark.parametrize(
    ("name", "padding", "step", "near"),
    [
        ("gpt2", "left", 1e-5, 1e-7),
        ("llama", "right", 1e-3, 1e-2),  # its norms compute in float32
        ("vit", None, 1e-5, 1e-7),
        ("bert", "right", 1e-5, 1e-7),
    ],
)
def test_the_gate_gradient_is_a_finite_difference_of_a_gate(
    name: str, padding: str | None, step: float, near: float
) -> None:
    m = double(name)
    x = rows(m, 3, padding=padding)
    found = interp.importance(m, x, metric=right, by=FIRST_ORDER, heads="L*.H1")
    for site in found.sites:
        up, down = (right(m.run(x, edits=[Scale(f"{site}.z", 1 + s)])["logits"], x) for s in (step, -step))
        slope = (up - down) / (2 * step)
        assert float(slope.abs().max()) > 10 * near
        torch.testing.assert_close(value(found, "gradient-signed", site), slope, atol=near, rtol=near)
        torch.testing.assert_close(value(found, "gradient", site), slope.abs(), atol=near, rtol=near)


def test_the_codes_gradient_takes_magnitudes_before_positions_are_summed_and_both_have_the_layers_norm() -> None:
    m = double("gpt2")
    x = rows(m, padding="left")
    found = interp.importance(m, x, metric=right, by=FIRST_ORDER)
    tape = m.run(x, record="L*.z", grad=True)
    slopes = tape.grad(right)
    for layer in range(2):
        each = (tape[f"L{layer}.z"] * slopes[f"L{layer}.z"]).sum(-1).detach() * x.valid[..., None]
        for method, mean in (("gradient-token", each.abs().sum(1).mean(0)), ("gradient-l2", each.sum(1).abs().mean(0))):
            mine = found.estimate(method)[[n for n, s in enumerate(found.sites) if s.startswith(f"L{layer}.")]]
            torch.testing.assert_close(mine, mean / mean.norm())
    assert not torch.allclose(found.estimate("gradient-token"), found.estimate("gradient-l2"), atol=1e-3)


@pytest.mark.parametrize("name", ["gpt2", "llama", "vit"])
def test_norms_and_entropies_are_those_of_whole_outputs_and_whole_patterns(name: str) -> None:
    m = double(name)
    x = rows(m, 3, padding=None if name == "vit" else "left")
    found = interp.importance(m, x, by=["norm", "entropy", "confidence"])
    for layer in range(len(m.anatomy.tower(None, text="").layers)):
        tape = m.run(x, record=[f"L{layer}.result", f"L{layer}.pattern"])
        written, p = tape[f"L{layer}.result"], tape[f"L{layer}.pattern"]
        valid = torch.ones(p.shape[0], p.shape[2], dtype=torch.bool) if name == "vit" else x.valid
        for head in range(p.shape[1]):
            site = f"L{layer}.H{head}"
            size = torch.stack([w[r].norm(dim=-1).mean() for w, r in zip(written[:, :, head], valid, strict=True)])
            torch.testing.assert_close(value(found, "norm", site), size, atol=1e-9, rtol=1e-7)
            rows_ = -(p[:, head] * p[:, head].clamp(min=1e-300).log()).sum(-1)
            mean = torch.stack([r[real].mean() for r, real in zip(rows_, valid, strict=True)])
            torch.testing.assert_close(value(found, "entropy", site), mean, atol=1e-6, rtol=1e-5)
            top = torch.stack([r[real].mean() for r, real in zip(p[:, head].amax(-1), valid, strict=True)])
            torch.testing.assert_close(value(found, "confidence", site), top, atol=1e-6, rtol=1e-5)
    assert found.top(1, method="entropy")["estimate"].item() == float(found.estimate("entropy").min())


def test_fisher_is_the_square_of_each_examples_slope_and_is_held_against_another_set() -> None:
    m = double("gpt2")
    x, y = rows(m, 3), m.inputs(dict(example(m.module, batch=2, seed=8)))
    found = interp.importance(
        m, x, metric=right, by=["fisher", "fisher-ratio", "fisher-difference"], retain=y, heads="L1.H*"
    )
    for head in range(4):
        own, other = ([_slope(m, data, f"L1.H{head}.z", row) ** 2 for row in range(data.batch)] for data in (x, y))
        torch.testing.assert_close(value(found, "fisher", f"L1.H{head}"), torch.stack(own), rtol=1e-6, atol=1e-12)
        f, r = torch.stack(own).mean(), torch.stack(other).mean()
        torch.testing.assert_close(found.estimate("fisher-ratio")[head], f / r)
        torch.testing.assert_close(found.estimate("fisher-difference")[head], f - r)


def _slope(m: interp.Model, x: Any, site: str, row: int) -> Tensor:
    """The gradient by a gate of one example, by a gate in the graph."""
    gate = torch.ones((), dtype=torch.float64, requires_grad=True)
    logits = m.run(x, edits=[Scale(site, gate)], grad=True)["logits"]
    (found,) = torch.autograd.grad(right(logits, x)[row], gate)
    return found


def test_what_the_answers_make_of_fisher_is_their_log_probability() -> None:
    m = planted("planted-decoder")
    task = probe_task("planted-decoder", "induction", model=m)
    plain = interp.importance(m, task.clean, metric=LogProb(task.answer_ids), by="fisher")
    assert torch.equal(interp.importance(m, task, by="fisher").estimate("fisher"), plain.estimate("fisher"))


def test_a_ratio_without_a_denominator_takes_the_smallest_there_is() -> None:
    one = Measured("fisher-ratio", torch.tensor([[4.0], [6.0], [0.0]]).double(), reduce="ratio",
                   other=torch.tensor([[2.0], [0.0], [8.0]]).double(), other_groups=("0",))  # fmt: skip
    even = torch.ones(1, 1, dtype=torch.float64)
    assert one.estimates(even, torch.zeros(3, dtype=torch.long), even).tolist() == [[2.0, 3.0, 0.0]]


@pytest.mark.parametrize("name", ["vit", "gpt2"])
def test_changes_of_the_prediction_are_those_of_two_distributions(name: str) -> None:
    m = double(name)
    x = rows(m, 4)
    by = ["prediction", "probability", "loss", "kl", "js", "zero"]
    found = interp.importance(m, x, by=by, labels=[1, 1, 1, 1], metric=right)
    p = _last_logits(m.run(x)["logits"], x).softmax(-1)
    for site in found.sites:
        q = _last_logits(m.run(x, edits=[interp.Zero(f"{site}.z")])["logits"], x).softmax(-1)
        middle = (p + q) / 2
        want = {
            "prediction": (p.argmax(-1) != q.argmax(-1)).double(),
            "probability": p[:, 1] - q[:, 1],
            "loss": p[:, 1].log() - q[:, 1].log(),
            "zero": p[:, 1].log() - q[:, 1].log(),
            "kl": (p * (p / q).log()).sum(-1),
            "js": ((p * (p / middle).log()).sum(-1) + (q * (q / middle).log()).sum(-1)) / 2,
        }
        for method, expected in want.items():
            torch.testing.assert_close(value(found, method, site), expected, atol=1e-9, rtol=1e-6)
    assert 0 < float(found.estimate("js").max()) < math.log(2)


def _last_logits(logits: Tensor, x: Any) -> Tensor:
    return logits if logits.ndim == 2 else logits[torch.arange(len(logits)), _last(x)]


def test_resampling_puts_another_row_of_the_same_length_in_and_never_the_row_itself() -> None:
    m = double("gpt2")
    x = rows(m, 3)
    found = interp.importance(m, x, metric=right, by="resample", heads="L0.H1", draws=4)
    z, base = m.run(x, record="L0.z")["L0.z"], right(m.run(x)["logits"], x)
    by_donor = {}
    for shift in (1, 2):
        donor = z.roll(shift, 0)[:, :, 1]
        by_donor[shift] = base - right(m.run(x, edits=[interp.Set("L0.H1.z", donor[:, :, None])])["logits"], x)
    seeds = found.measure("resample").seeds
    assert seeds is not None
    for mean in seeds[:, 0].tolist():
        sums = [sum(float(by_donor[s][row]) for row, s in enumerate(how)) / 3 for how in _choices(3)]
        assert min(abs(mean - one) for one in sums) < 1e-9
    assert len(set(seeds[:, 0].tolist())) > 1
    torch.testing.assert_close(found.estimate("resample"), seeds.mean(0))


def _choices(n: int) -> list[tuple[int, ...]]:
    return [tuple(1 + (code >> i & 1) for i in range(n)) for code in range(2**n)]


def test_classes_have_tables_of_their_own() -> None:
    m = double("vit")
    found = interp.importance(m, rows(m, 4), by=["loss", "norm"], labels=[0, 1, 0, 1])
    table = found.by_class()
    assert set(table["class"]) == {"0", "1"}
    assert set(table["n"]) == {2}
    site = found.sites[4]
    mine = table[(table["site"] == site) & (table["method"] == "loss")].set_index("class")["estimate"]
    assert mine["0"] == pytest.approx(float(value(found, "loss", site)[[0, 2]].mean()))
    assert (mine["0"] + mine["1"]) / 2 == pytest.approx(float(found.estimate("loss")[4]))


@pytest.mark.parametrize("name", ["t5", "llava", "qwen2_5_vl"])
def test_other_towers_and_families(name: str) -> None:
    m = interp.attach(tiny(name))
    x = m.inputs(dict(example(m.module, batch=2, seed=1)))
    towers = [tower for tower in m.anatomy.towers if tower != "qformer"]
    for tower in towers:
        heads = "L*.H*" if len(towers) == 1 else f"{tower}.L*.H*"
        by = ["gradient", "norm"]
        if name == "qwen2_5_vl" and tower == "vision":
            with pytest.raises(InputsError, match=r"leave this tower out|has \d+ rows"):
                interp.importance(m, x, metric=right, by="gradient", heads=heads)
            continue
        found = interp.importance(m, x, metric=right, by=by, heads=heads)
        assert set(found.towers) == {tower}
        assert len(found.sites) == sum(layer.heads for layer in m.anatomy.tower(tower, text="").layers)
        assert float(found.estimate("gradient").min()) >= 0
        assert float(found.estimate("norm").min()) > 0


@cache
def table() -> Importance:
    m = double("gpt2")
    x, y = rows(m, 5), m.inputs(dict(example(m.module, batch=5, seed=6)))
    by = ["ablation", "gradient", "attribution", "norm"]
    return interp.importance(m, x, metric=right, source=y, by=by, draws=2)


def test_the_table_is_long_wide_ranked_saved_and_drawn(tmp_path: Path) -> None:
    found = table()
    long = found.to_frame()
    assert list(long.columns[:9]) == ["site", "tower", "layer", "head", "method", "estimate", "low", "high", "n"]
    assert len(long) == 8 * len(found.methods)
    assert ((long["low"] <= long["estimate"]) & (long["estimate"] <= long["high"])).all()
    assert found.methods == ("zero", "mean", "resample", "gradient", "relp", "norm")
    assert found.wide()["zero"].tolist() == found.estimate("zero").tolist()
    ranks = found.ranks(k=3)
    assert ((ranks["low"] <= ranks["high"]) & ranks["among_3"].between(0, 1)).all()
    assert ranks.groupby("method")["among_3"].sum().tolist() == pytest.approx([3.0] * 6)
    seeded = ranks[ranks["seed_low"].notna()]
    assert set(seeded["method"]) == {"resample"}
    assert (seeded["seed_low"] <= seeded["seed_high"]).all()
    assert found.top(3)["rank"].tolist() == [1, 2, 3]
    assert list(found.scores("zero", signed=True).values()) == found.estimate("zero").tolist()
    assert list(found.scores("zero").values()) == found.estimate("zero").abs().tolist()
    found.save(tmp_path)
    again = interp.open(tmp_path)
    pandas.testing.assert_frame_equal(again.to_frame(), long)
    pandas.testing.assert_frame_equal(again.agreement(), found.agreement())
    assert repr(again) == repr(found)
    assert found.plot().data[0].z.shape == (6, 8)
    assert found.meta["passes"]["resample"] == 2 * found.meta["passes"]["zero"]
    assert "verify" in found.meta["notes"]["relp"]


def test_agreement_is_one_with_itself_and_has_intervals() -> None:
    found = table()
    made = found.agreement(k=3)
    assert len(made) == 15
    assert ((made["low"] <= made["high"]) & (made["overlap_low"] <= made["overlap_high"])).all()
    assert made["chance"].tolist() == [3 / 8] * 15
    a, b = found.measure("zero"), found.measure("relp")
    x, y = (one.oriented(one.values.mean(1)) for one in (a, b))
    by_hand = torch.corrcoef(torch.stack([bootstrap.ranks(x), bootstrap.ranks(y)]))[0, 1]
    row = made[(made["a"] == "zero") & (made["b"] == "relp")].iloc[0]
    assert row["spearman"] == pytest.approx(float(by_hand))
    top = [set(one.argsort(descending=True)[:3].tolist()) for one in (x, y)]
    assert row["overlap"] == pytest.approx(len(top[0] & top[1]) / 3)
    twins = Importance(("L0.H0", "L0.H1", "L1.H0"), ("text",) * 3, (
        Measured("a", torch.tensor([[1.0, 2.0], [5.0, 4.0], [-9.0, -9.0]]).double(), order="abs"),
        Measured("b", torch.tensor([[1.0, 2.0], [5.0, 4.0], [-9.0, -9.0]]).double()),
    ), ("0", "1"))  # fmt: skip
    alike = twins.agreement(k=1).iloc[0]
    assert (alike["spearman"], alike["overlap"]) == (pytest.approx(-0.5), 0.0)  # ranks 3 2 1 and 2 1 3


def test_the_same_seed_gives_the_same_table_and_the_model_stays_as_it_was() -> None:
    m = double("gpt2")
    x = rows(m, 3)
    before = {name: p.clone() for name, p in m.module.named_parameters()}
    one, two, other = (
        interp.importance(m, x, metric=right, by=["resample", "gradient"], draws=2, seed=s) for s in (0, 0, 1)
    )
    assert one.to_frame().equals(two.to_frame())
    assert not one.to_frame().equals(other.to_frame())
    assert all(torch.equal(p, before[name]) and p.grad is None for name, p in m.module.named_parameters())
    assert not m.handles()
    assert not any(module._forward_hooks for module in m.module.modules())


def test_draws_take_templates_first_and_ties_at_the_border_are_shared() -> None:
    alone = bootstrap.weights(("a", "b", "c", "d"), draws=500, seed=0)
    torch.testing.assert_close(alone.sum(1), torch.ones(500, dtype=torch.float64))
    shared = bootstrap.weights(("x", "x", "x", "y"), draws=4000, seed=0)
    torch.testing.assert_close(shared.sum(1), torch.ones(4000, dtype=torch.float64))
    only_y = float((shared[:, 3] == 1).double().mean())
    assert only_y == pytest.approx(0.25, abs=0.03)  # both draws of two templates are y; rows alone would give 1/256
    values = torch.tensor([5.0, 3.0, 3.0, 3.0, 1.0])
    assert bootstrap.membership(values, 2).tolist() == pytest.approx([1, 1 / 3, 1 / 3, 1 / 3, 0])
    assert bootstrap.ranks(values).tolist() == [1, 3, 3, 3, 5]
    assert math.isnan(float(bootstrap.spearman(values, torch.ones(5))))


def test_learned_gates_stand_beside_the_others() -> None:
    m = double("gpt2")
    x = rows(m, 3)
    found = interp.importance(m, x, metric=right, by=["gates", "zero"], gates={"steps": 3, "seeds": 2})
    gates = found.measure("gates")
    assert gates.values.shape == (8, 2)
    assert gates.unit == "seed"
    assert set(found.to_frame().groupby("method")["n"].first()) == {2, 3}
    assert found.ranks().query("method == 'gates'")["seed_low"].notna().all()
    assert len(found.agreement()) == 1


@pytest.mark.parametrize(
    ("how", "kind", "says"),
    [
        ({"by": "taylor"}, InputsError, "no measure 'taylor'"),
        ({"by": []}, InputsError, "by= is empty"),
        ({"by": "zero"}, InputsError, "give metric="),
        ({"by": "loss"}, InputsError, "needs the right answers"),
        ({"by": "loss", "labels": [1]}, InputsError, "one a row"),
        ({"by": "fisher-ratio", "metric": right}, InputsError, "retain="),
        ({"by": "resample", "metric": right, "draws": 0}, InputsError, "at least 1"),
        ({"by": "zero", "metric": lambda logits, x: right(logits, x) * torch.nan}, InputsError, "not finite"),
        ({"by": "gradient", "metric": lambda logits, x: logits[:, -1].argmax(-1)}, InputsError, "no gradient"),
        ({"by": "norm", "heads": "L*"}, SiteError, "per head"),
        ({"by": "norm", "heads": "L7.H*"}, SiteError, "no layer 7"),
    ],
)
def test_bad_questions_are_answered(how: dict[str, Any], kind: type[Exception], says: str) -> None:
    m = double("gpt2")
    with pytest.raises(kind, match=says):
        interp.importance(m, rows(m, 2), **how)


def test_one_row_has_nothing_to_be_resampled_from_and_one_head_nothing_to_agree_with() -> None:
    m = double("gpt2")
    with pytest.raises(InputsError, match="no other row of the same length"):
        interp.importance(m, rows(m, 1), metric=right, by="resample")
    one = interp.importance(m, rows(m, 1), metric=right, by=["zero", "gradient"], heads="L0.H2")
    assert one.to_frame()["rank"].tolist() == [1, 1]
    assert one.ranks()["among_1"].tolist() == [1, 1]
    with pytest.raises(interp.InterpError, match="at least two heads"):
        one.agreement()
    with pytest.raises(interp.InterpError, match="from 1 to 1"):
        one.ranks(k=2)
    with pytest.raises(interp.InterpError, match="no measure 'norm'"):
        one.top(method="norm")
    with pytest.raises(interp.InterpError, match="right answers are not known"):
        one.by_class()


def test_measures_of_one_tower_or_one_likelihood_say_so() -> None:
    m, both = planted("planted-lvlm"), ["text.L*.H*", "vision.L*.H*"]
    task = probe_task("planted-lvlm", "picture", model=m)
    with pytest.raises(InputsError, match="of the tower that answers"):
        interp.importance(m, task, by="direct_effect", heads=both)
    with pytest.raises(InputsError, match="gates of one pattern"):
        interp.importance(m, task, by="gates", heads=both)
    with pytest.raises(InputsError, match="need one likelihood"):
        interp.importance(m, task, by="fisher-ratio", retain=task.clean, metric=task.metric, heads="text.L*.H*")


def test_not_a_number_never_passes() -> None:
    with pytest.raises(ModelError, match="head number 1"):
        Measured("norm", torch.tensor([[1.0], [torch.nan]]).double())


def test_a_projection_that_rounds_what_it_reads_has_no_gradient_and_no_norm() -> None:
    bnb = pytest.importorskip("bitsandbytes")
    m = interp.attach(tiny("llama"))
    x = m.inputs(dict(example(m.module, batch=2, seed=3)))
    m.ready()
    for layer in m.module.model.layers:
        old = layer.self_attn.o_proj
        layer.self_attn.o_proj = bnb.nn.Linear8bitLt(
            old.in_features, old.out_features, bias=False, has_fp16_weights=True
        )
        layer.self_attn.o_proj.weight.data = old.weight.data
    with pytest.raises(ModelError, match="rounds what it reads"):
        interp.importance(m, x, metric=right, by="gradient")
    with pytest.raises(ModelError, match="rounds what it reads"):
        interp.importance(m, x, by="norm")
