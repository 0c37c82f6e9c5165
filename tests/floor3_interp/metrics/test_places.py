"""Metrics of places inside a model: their definitions in float64, and every engine that is handed one, held against
hand-made hooks on models without a head."""

from __future__ import annotations

import threading
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from encoders import built, final, headless, mean, pairs, patched_by_hand
from models import attached
from torch import Tensor

import interp
from interp.heads.gates import gates
from interp.hooks.errors import InputsError, ModelError, SiteError
from interp.hooks.examples.example import example
from interp.hooks.stand.output import answers
from interp.metrics import KL, Along, At, Distance, Logit, MetricError, Similarity
from interp.metrics.places import Pooled
from interp.metrics.reading import reading
from interp.patching.direct_effect import direct_effect

NAMES = ("bert", "gpt2", "vit", "dinov2")
CLOSE = {"atol": 2e-6, "rtol": 1e-5}


def cosine(a: Tensor, b: Tensor) -> Tensor:
    a, b = a.double(), b.double()
    return (a * b).sum(-1) / (a.square().sum(-1).sqrt() * b.square().sum(-1).sqrt())


@pytest.fixture
def hidden() -> Tensor:
    """Three rows, right-padded to six; the padding would show."""
    found = torch.randn(3, 6, 5)
    for row, count in enumerate((3, 6, 5)):
        found[row, count:] = torch.nan
    return found


@pytest.fixture
def inputs() -> dict[str, Tensor]:
    return {"attention_mask": torch.tensor([[1] * n + [0] * (6 - n) for n in (3, 6, 5)])}


def test_definitions_row_by_row(hidden: Tensor, inputs: dict[str, Tensor]) -> None:
    target, away, direction = torch.randn(3, 5), torch.randn(5), torch.randn(3, 5)
    made = {
        "similar": Similarity(target=target), "between": Similarity(target=target, away=away),
        "mse": Distance(target=target), "norm": Distance(target=target, kind="norm", negate=False),
        "along": Along(direction=direction),
    }  # fmt: skip
    found = {name: metric(hidden, inputs) for name, metric in made.items()}
    for row, count in enumerate((3, 6, 5)):
        v = sum(hidden[row, i].double() for i in range(count)) / count
        gap = v - target[row].double()
        expected = {
            "similar": cosine(v, target[row]), "between": cosine(v, target[row]) - cosine(v, away),
            "mse": -(gap**2).sum() / 5, "norm": (gap**2).sum().sqrt(),
            "along": (v * direction[row].double()).sum() / (direction[row].double() ** 2).sum().sqrt(),
        }  # fmt: skip
        for name, value in expected.items():
            assert float(found[name][row]) == pytest.approx(float(value), abs=1e-6), name


@pytest.mark.parametrize(("pool", "at"), [("cls", lambda n: 0), ("last", lambda n: n - 1)])
def test_one_position_is_the_vector(hidden: Tensor, inputs: dict[str, Tensor], pool: Any, at: Any) -> None:
    direction = torch.randn(5)
    found = Along(pool=pool, direction=direction)(hidden, inputs)
    unit = direction / direction.norm()
    for row, count in enumerate((3, 6, 5)):
        assert float(found[row]) == pytest.approx(float(hidden[row, at(count)] @ unit), abs=1e-5)


def test_padding_may_stand_on_either_side(hidden: Tensor, inputs: dict[str, Tensor]) -> None:
    metric = Similarity(target=torch.randn(3, 5))
    rolled = torch.stack([torch.roll(h, 6 - n, 0) for h, n in zip(hidden, (3, 6, 5), strict=True)])
    masks = [torch.roll(m, 6 - n, 0) for m, n in zip(inputs["attention_mask"], (3, 6, 5), strict=True)]
    torch.testing.assert_close(metric(hidden, inputs), metric(rolled, {"attention_mask": torch.stack(masks)}))
    some = metric.take([2, 0])(hidden[[2, 0]], {"attention_mask": inputs["attention_mask"][[2, 0]]})
    torch.testing.assert_close(some, metric(hidden, inputs)[[2, 0]])


def test_what_does_not_fit_is_refused_with_a_remedy(hidden: Tensor, inputs: dict[str, Tensor]) -> None:
    with pytest.raises(MetricError, match=r"no target.*\.to\(model, inputs\)"):
        Similarity()(hidden, inputs)
    with pytest.raises(MetricError, match=r"target is \[4\]"):
        Similarity(target=torch.ones(4))(hidden, inputs)
    with pytest.raises(MetricError, match=r"metric\.take"):
        Similarity(target=torch.ones(2, 5))(hidden, inputs)
    assert repr(Similarity(target=torch.ones(2))) != repr(Similarity(target=torch.zeros(2)))


@pytest.mark.parametrize("name", NAMES)
def test_a_target_is_the_vector_of_another_run(name: str) -> None:
    m, (_, y) = headless(name), pairs(name)
    metric = Similarity("final_norm", pool="mean").to(m, y)
    expected = mean(final(m.module, y), y)
    torch.testing.assert_close(metric.target.double(), expected, atol=1e-5, rtol=1e-5)
    lone = Similarity("final_norm", pool="mean").to(m, {n: v[:1] for n, v in y.items()})
    torch.testing.assert_close(lone.target.double(), expected[0], atol=1e-5, rtol=1e-5)
    assert not answers()


@pytest.mark.parametrize(
    ("name", "pool"), [*((name, "mean") for name in NAMES), ("bert", "cls"), ("bert", "last"), ("gpt2", "cls")]
)
def test_a_sweep_of_heads_is_a_loop_with_hand_made_hooks(name: str, pool: Any) -> None:
    m, (x, y) = headless(name), pairs(name)
    metric = Similarity("final_norm", pool=pool).to(m, y)
    found = interp.patch(m, base=x, source=y, metric=metric, sites="L*.H*.z")
    assert found.meta["engine"] == "Replay"
    plain = metric(final(m.module, x), m.inputs(x))
    torch.testing.assert_close(found.base, plain, **CLOSE)
    torch.testing.assert_close(found.source, torch.ones(3), **CLOSE)
    for n, site in enumerate(found.sites):
        head = m.anatomy.one(site)
        hidden = patched_by_hand(m.module, head.layer, head.heads[0], x, y)
        expected = metric(hidden, m.inputs(x)).double() - plain.double()
        torch.testing.assert_close(found.values[n], expected, **CLOSE)
    blind = name == "gpt2" and pool == "cls"  # its first token sees nothing of what differs
    assert (float(found.values.abs().max()) > 1e-3) is not blind
    assert not m.handles()
    assert not answers()


@pytest.mark.parametrize("name", NAMES)
def test_gradients_are_finite_differences(name: str) -> None:
    m = interp.attach(built(name).double())
    x, y = ({n: v.double() if v.is_floating_point() else v for n, v in one.items()} for one in pairs(name))
    metric = Similarity("final_norm", pool="mean").to(m, y)
    sites = ["L0.H1.z", "L1.H3.z", "L2.H0.z", "L1.resid_post"]
    found = interp.attribute(m, base=x, source=y, metric=metric, sites=sites, verify=0)
    step = 1e-6
    for n, site in enumerate(sites):
        old, new = (m.run(one, record=site)[site] for one in (x, y))
        moved = [metric(_final(m, x, site, old + s * step * (new - old)), m.inputs(x)) for s in (1, -1)]
        slope = (moved[0] - moved[1]) / (2 * step)
        torch.testing.assert_close(found.values[n].double(), slope, atol=1e-6, rtol=1e-4)


def _final(m: interp.Model, x: Any, site: str, value: Tensor) -> Tensor:
    with m.edited([interp.Set(site, value)]):
        return final(m.module, x)


@pytest.mark.parametrize("site", ["L1.resid_post", "L2.resid_post", "L1.H2.z", "L2.mlp_out", "L1.K0.k", "embed"])
def test_any_site_may_be_read_and_is_read_behind_every_edit(site: str) -> None:
    """Also where the place that is patched is the place that is read."""
    m, (x, y) = headless("gpt2"), pairs("gpt2", padded=False)
    direction = torch.randn(m.run(x, record=site)[site].flatten(2).shape[-1])
    metric = Along(site, pool="mean", direction=direction)
    old, new = (m.run(one, record=site)[site].flatten(2) for one in (x, y))
    patched = "L0.resid_pre" if site == "embed" else site
    before = pytest.warns(UserWarning, match="a place before the end")
    with nullcontext() if site == "L2.resid_post" else before:
        found = interp.patch(m, base=x, source=y, metric=metric, sites=patched)
    expected = metric(new, {}) - metric(old, {})
    torch.testing.assert_close(found.values[0], expected.double(), **CLOSE)
    torch.testing.assert_close(found.source, metric(new, {}), **CLOSE)
    later = interp.attribute(m, base=x, source=y, metric=metric, sites=patched, verify=0)
    torch.testing.assert_close(later.values[0], expected.double(), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("name", "site"),
    [
        ("bert", "pooler_output"),
        ("vit", "pooler_output"),
        ("clip_text", "text_embeds"),
        ("clip_vision", "image_embeds"),
    ],
)
def test_a_vector_that_the_model_returns_may_be_read(name: str, site: str) -> None:
    m, (x, y) = headless(name), pairs(name)
    metric = Similarity(site).to(m, y)
    with torch.no_grad():
        own, other = (getattr(m.module(**one), site) for one in (x, y))
    torch.testing.assert_close(metric.target, other)
    found = interp.patch(m, base=x, source=y, metric=metric, sites=["L0.resid_post", "L2.resid_post"])
    torch.testing.assert_close(found.base.double(), cosine(own, other), **CLOSE)
    last = found.values[1] + found.base.double()
    torch.testing.assert_close(last, torch.ones(3, dtype=torch.float64), **CLOSE)
    rows = interp.attribute(m, base=x, source=y, metric=metric, sites="L*.H*.z", verify=0)
    assert bool(rows.values.abs().gt(0).any())


def test_a_model_with_logits_may_be_read_elsewhere_and_its_logits_are_left_alone() -> None:
    m = attached("llama")
    x, y = (m.inputs(example(m.module, batch=2, length=7, seed=s, padding="left")) for s in (1, 2))
    metric = Similarity("final_norm", pool="last").to(m, y)
    before = m.run(x)["logits"]
    found = interp.patch(m, base=x, source=y, metric=metric, sites="L*.H*.z")
    assert found.meta["engine"] == "Replay"
    for n in (0, len(found.sites) - 1):
        z = m.run(y, record=found.sites[n])[found.sites[n]]
        tape = m.run(x, record="final_norm", edits=[interp.Set(found.sites[n], z)])
        expected = metric(tape["final_norm"], x).double() - found.base.double()
        torch.testing.assert_close(found.values[n], expected, **CLOSE)
    assert torch.equal(m.run(x)["logits"], before)
    with reading(m, metric), reading(m, Logit(((5,), (5,)))):
        assert torch.equal(m.run(x)["logits"], before)  # a call inside that reads logits gets logits
    logit = interp.patch(m, base=x, source=y, metric=Logit(((5,), (6,))), sites="L0.H0.z")
    assert float(logit.base[0]) == pytest.approx(float(before[0, -1, 5]))


def test_direct_effects_add_up_to_the_place_that_is_read() -> None:
    m, (x, _) = headless("gpt2"), pairs("gpt2", padded=False)
    metric = Along("final_norm", pool="mean", direction=torch.randn(32))
    found = direct_effect(m, x, metric=metric)
    torch.testing.assert_close(found.values.sum(0), metric(final(m.module, x), {}).double(), atol=1e-4, rtol=1e-4)
    assert float(found.values[-1].abs().max()) < 1e-4  # no remainder: the metric is linear
    with pytest.raises(ModelError, match="does not pass there"):
        direct_effect(m, x, metric=Along("L0.resid_post", direction=torch.randn(32)))


@pytest.mark.parametrize("name", ["bert", "dinov2"])
def test_the_other_engines_take_it_too(name: str) -> None:
    m, (x, y) = headless(name), pairs(name)
    metric = Similarity("final_norm", pool="mean").to(m, y)
    table = interp.importance(m, x, by=["zero", "gradient", "atp"], metric=metric, source=y, verify=0)
    hidden = patched_by_hand(m.module, 1, 2, x, x)
    torch.testing.assert_close(hidden, final(m.module, x))
    at = list(table.sites).index("L1.H2")
    zeroed = _final(m, x, "L1.H2.z", torch.zeros(8))
    lost = metric(final(m.module, x), m.inputs(x)) - metric(zeroed, m.inputs(x))
    torch.testing.assert_close(table.measures[0].values[at], lost.double(), **CLOSE)
    agreed = interp.attribution.agree(m, x, metric=metric, shares=(0.0, 0.5), random=1)
    torch.testing.assert_close(agreed.curves[0, 0], metric(final(m.module, x), m.inputs(x)).double(), **CLOSE)
    with pytest.raises(InputsError, match="use method='chefer-generic'"):
        interp.relevance(m, x, metric=metric, method="chefer")
    for method in ("gradient_x_input", "chefer-generic"):
        assert interp.relevance(m, x, metric=metric, method=method).values.abs().sum() > 0
    if name == "dinov2":  # BERT normalises after adding, so it has no edges
        assert interp.edges(m, base=x, source=y, metric=metric, method="eap").values.abs().sum() > 0
    opened = gates(m, x, loss=metric, steps=2, seeds=1)
    assert opened.openness.shape[0] == 12
    assert not answers()


def test_logits_of_a_model_without_a_head_are_refused_with_the_remedy() -> None:
    m, (x, y) = headless("gpt2"), pairs("gpt2")
    metric = Logit(((1,), (1,), (1,)))
    asked = {
        "patch": lambda: interp.patch(m, base=x, source=y, metric=metric, sites="L*.H*.z"),
        "attribute": lambda: interp.attribute(m, base=x, source=y, metric=metric, sites="L*.H*.z"),
        "relevance": lambda: interp.relevance(m, x, metric=metric),
        "importance": lambda: interp.importance(m, x, metric=metric),
        "direct": lambda: direct_effect(m, x, metric=metric),
        "edges": lambda: interp.edges(m, base=x, source=y, metric=metric),
    }
    for call in asked.values():
        with pytest.raises(interp.InterpError, match="Similarity"):
            call()


def test_what_cannot_be_read_is_refused() -> None:
    m, (x, y) = headless("bert"), pairs("bert")
    with pytest.raises(SiteError, match="reads numbers by position"):
        Similarity("L0.pattern").to(m, y)
    with pytest.raises(ModelError, match="has 0 times"):
        Similarity("image_embeds").to(m, y)
    two = {"a": Similarity().to(m, y), "b": Similarity("L0.resid_post").to(m, y)}
    with pytest.raises(MetricError, match="one call reads one"):
        interp.patch(m, base=x, source=y, metric=two, sites="L*.H*.z")
    two = {"a": Similarity().to(m, y), "b": Along(pool="cls", direction=torch.ones(32))}
    both = interp.patch(m, base=x, source=y, metric=two, sites="L*.H*.z")
    for name, metric in two.items():
        alone = interp.patch(m, base=x, source=y, metric=metric, sites="L*.H*.z")
        torch.testing.assert_close(both[name].values, alone.values, **CLOSE)


def test_a_metric_of_logits_inside_a_call_that_reads_elsewhere_is_refused() -> None:
    from interp.metrics.judge import reads_of

    m, (x, y) = headless("bert"), pairs("bert")
    with reading(m, Similarity().to(m, y)), pytest.raises(MetricError, match="it is handed 'final_norm'"):
        reads_of(KL(torch.zeros(3, 1, 4)), m.inputs(x), torch.zeros(3, 9, 4))
    with pytest.raises(MetricError, match="it is handed 'logits'"):
        reads_of(Similarity(), m.inputs(x), torch.zeros(3, 9, 4))


def test_a_function_of_a_place() -> None:
    m, (x, y) = headless("bert"), pairs("bert")
    third = At("final_norm", lambda value, inputs: value[:, 0, 3])
    found = interp.patch(m, base=x, source=y, metric=third, sites="L1.H1.z")
    hidden = patched_by_hand(m.module, 1, 1, x, y)
    torch.testing.assert_close(found.values[0], (hidden - final(m.module, x))[:, 0, 3].double(), **CLOSE)
    with pytest.raises(InputsError, match="one number per row"):
        interp.patch(m, base=x, source=y, metric=At("final_norm", lambda v, i: v), sites="L1.H1.z")


def test_other_threads_get_the_models_own_answer() -> None:
    m, (x, y) = interp.attach(built("bert")), pairs("bert")
    found: list[Any] = []
    with reading(m, Similarity().to(m, y)):
        thread = threading.Thread(target=lambda: found.append(m.module(**x)))
        thread.start()
        thread.join()
        assert "logits" in m.run(x)
    assert type(found[0]).__name__.startswith("BaseModelOutput")
    assert "logits" not in m.run(x)


def test_every_shipped_metric_of_a_place_says_its_rows() -> None:
    for kind in Pooled.__subclasses__():
        assert set(kind.ROWS) <= set(kind.__dataclass_fields__)
