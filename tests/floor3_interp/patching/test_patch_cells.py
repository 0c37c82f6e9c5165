"""What can be patched, and with what: every kind of cell and source is the loop over full passes with edits."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import interp
from interp.hooks.errors import CheckFailed, InputsError, SiteError
from interp.metrics.shipped import LogitDifference, LogProb
from interp.zoo.families import tiny

KINDS = ["L*.H*.q", "L*.K*.k", "L*.K*.v", "L*.H*.z", "L*.H*.result", "L*.H*.pattern", "L*.attn_out", "L*.mlp_out",
         "L*.resid_pre", "L*.neurons", "L*.mlp_in", "embed"]  # fmt: skip
METRIC = LogitDifference(answers=((7,), (8,)), wrong=((10,), (11,)))


def pair(name: str = "gpt2", *, shared: int = 3, length: int = 7) -> tuple[interp.Model, Any, Any]:
    """A model in float64 and two batches that agree in their first columns."""
    m = interp.attach(tiny(name).double())
    base = torch.randint(5, 90, (2, length))
    source = torch.cat([base[:, :shared], torch.randint(5, 90, (2, length - shared))], 1)
    return m, {"input_ids": base}, {"input_ids": source}


def by_hand(m: interp.Model, base: Any, edits: list[Any], metric: Any = METRIC) -> Tensor:
    """The metric after a full pass with these edits, less before."""
    x = m.inputs(base)
    return metric(m.run(x, edits=edits)["logits"], x) - metric(m.run(x)["logits"], x)


def close(found: Tensor, expected: Tensor, *, name: str = "gpt2") -> None:
    """GPT-2 is float64 throughout, so the two differ by rounding in another order, some hundred units in the last
    place; the others compute norms or a softmax in float32 whatever the dtype, so by some of its units."""
    atol = 1e-11 if name == "gpt2" else 16 * torch.finfo(torch.float32).eps * max(1.0, float(expected.abs().max()))
    torch.testing.assert_close(found, expected, atol=atol, rtol=0)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["gpt2", "llama", "gemma2"])
def test_every_kind_of_site_is_the_loop(name: str, kind: str) -> None:
    m, base, source = pair(name)
    values = m.run(source, record=kind)
    e = interp.patch(m, base=base, source=source, metric=METRIC, sites=kind)
    assert float(e.mean.abs().max()) > 1e-6
    assert e.meta["engine"] == "Replay"
    for n, site in enumerate(e.sites):
        close(e.values[n], by_hand(m, base, [interp.Set(site, values[site])]), name=name)


def test_units_groups_and_joint_heads_are_the_loop() -> None:
    m, base, source = pair()
    old, new = (m.run(x, record=["L*.z", "L*.neurons", "L*.attn_out", "L*.pattern"]) for x in (base, source))
    cells = [["L0.H1.z", "L1.H2.z"], ("L1.neurons", 5), [("L0.neurons", [2, 7]), "L1.H0.z"], "L0.H*.z",
             ["L0.attn_out", "L1.H1.pattern"]]  # fmt: skip
    e = interp.patch(m, base=base, source=source, metric=METRIC, cells=cells)
    assert e.sites == ("L0.H1.z + L1.H2.z", "L1.neurons[5]", "L0.neurons[2, 7] + L1.H0.z",
                       "L0.H0.z + L0.H1.z + L0.H2.z + L0.H3.z", "L0.attn_out + L1.H1.pattern")  # fmt: skip

    def units(site: str, index: list[int]) -> interp.Set:
        value = old[site].clone()
        value[..., index] = new[site][..., index]
        return interp.Set(site, value)

    def put(site: str) -> interp.Set:
        return interp.Set(site, new[site])

    loops = [
        [put("L0.H1.z"), put("L1.H2.z")],
        [units("L1.neurons", [5])],
        [units("L0.neurons", [2, 7]), put("L1.H0.z")],
        [put("L0.z")],
        [put("L0.attn_out"), put("L1.H1.pattern")],
    ]
    for n, edits in enumerate(loops):
        close(e.values[n], by_hand(m, base, edits))
    frame = e.to_frame()
    assert frame["component"].tolist()[:2] == ["z", "neurons"]
    assert frame["layer"].isna().tolist() == [True, False, True, False, True]
    assert list(e.to_array()["site"].values) == list(e.sites)


def test_windows_of_layers() -> None:
    m, base, source = pair("gemma2")
    values = m.run(source, record="L*.mlp_out")
    e = interp.patch(m, base=base, source=source, metric=METRIC, sites="L*.mlp_out", window=2)
    layers = len(m.anatomy.tower(None, text="").layers)
    assert e.sites == tuple(f"L{n}-{n + 1}.mlp_out" for n in range(layers - 1))
    for n in range(layers - 1):
        edits = [interp.Set(f"L{k}.mlp_out", values[f"L{k}.mlp_out"]) for k in (n, n + 1)]
        close(e.values[n], by_hand(m, base, edits), name="gemma2")
    assert e.to_array().dims == ("layer",)
    with pytest.raises(SiteError, match="without heads"):
        interp.patch(m, base=base, source=source, metric=METRIC, sites="L*.H*.z", window=2)


def test_pairs_show_what_two_heads_do_beyond_their_sum() -> None:
    m, base, source = pair()
    e = interp.patch(m, base=base, source=source, metric=METRIC, sites=["L0.H0-1.z", "L1.H2.z"], pairs=True)
    frame, values = e.interactions(), m.run(source, record="L*.z")
    assert list(zip(frame["a"], frame["b"], strict=True)) == [
        ("L0.H0.z", "L0.H1.z"), ("L0.H0.z", "L1.H2.z"), ("L0.H1.z", "L1.H2.z")
    ]  # fmt: skip
    alone = {s: by_hand(m, base, [interp.Set(s, values[s])]) for s in ("L0.H0.z", "L1.H2.z")}
    joint = by_hand(m, base, [interp.Set(s, values[s]) for s in alone])
    expected = float((joint - sum(alone.values())).mean())
    assert abs(expected) > 1e-9
    assert frame["interaction"][1] == pytest.approx(expected, abs=1e-11)
    single = interp.patch(m, base=base, source=source, metric=METRIC, sites="L*.H*.z")
    with pytest.raises(interp.InterpError, match="pairs=True"):
        single.interactions()


def test_a_backup_head_shows_in_pairs_and_not_alone() -> None:
    from interp.planted import build, key

    answers = key("planted-backup")
    m, asked = interp.attach(*build("planted-backup")), answers.probes[0]
    right, wrong = (m.tokenizer.convert_tokens_to_ids(word) for word in (asked.answer, asked.wrong))
    metric = LogitDifference(answers=((right,),), wrong=((wrong,),))
    e = interp.patch(m, base=asked.clean, source="zero", metric=metric, sites="L*.H*.z", pairs=True)
    frame = e.interactions().set_index(["a", "b"])
    both = frame.loc[("L0.H1.z", "L1.H2.z")]
    assert both[["effect_a", "effect_b", "joint"]].tolist() == pytest.approx([-0.5, 0.0, -2.0], abs=1e-3)
    assert both["interaction"] == frame["interaction"].min() == pytest.approx(-1.5, abs=1e-3)
    assert frame["interaction"].abs().nlargest(2).iloc[1] < 1e-3


def test_several_metrics_are_each_what_they_are_alone() -> None:
    m, base, source = pair()
    metrics = {"difference": METRIC, "log-probability": LogProb(((7,), (8,))),
               "other place": LogitDifference(answers=((3,), (4,)), wrong=((5,), (6,)), positions=((5,), (-1,))),
               "by hand": lambda g, x: g[:, -1, 3]}  # fmt: skip
    together = interp.patch(m, base=base, source=source, metric=metrics, sites="L*.H*.z")
    assert list(together) == list(metrics)
    for name, metric in metrics.items():
        alone = interp.patch(m, base=base, source=source, metric=metric, sites="L*.H*.z")
        close(together[name].values, alone.values)
        close(together[name].base, alone.base)


def test_both_directions_in_one_call(tmp_path: Any) -> None:
    m, base, source = pair()
    e = interp.patch(m, base=base, source=source, metric=METRIC, sites="L*.H*.z", both=True)
    back = interp.patch(m, base=source, source=base, metric=METRIC, sites="L*.H*.z")
    assert e.reverse is not None
    assert torch.equal(e.reverse.values, back.values)
    again = interp.patching.Effects.load(e.save(tmp_path))
    assert again.reverse is not None
    assert torch.equal(again.reverse.values, back.values)
    with pytest.raises(InputsError, match="turns base and source around"):
        interp.patch(m, base=base, source="zero", metric=METRIC, sites="L*.z", both=True)


def test_the_mean_of_a_dataset_pooled_and_by_position() -> None:
    m, base, _ = pair()
    data = {"input_ids": torch.randint(5, 90, (5, 7))}
    z = m.run(data, record="L1.z")["L1.z"]
    for by_position, mean in ((False, z.flatten(0, 1).mean(0)), (True, z.mean(0))):
        e = interp.patch(
            m, base=base, source=interp.patching.Average(data, by_position=by_position), metric=METRIC, sites="L1.z"
        )
        close(e.values[0], by_hand(m, base, [interp.Set("L1.z", mean)]))
        assert e.source is None
    with pytest.raises(InputsError, match="rows as long"):
        interp.patch(
            m,
            base={"input_ids": base["input_ids"][:, :-1]},
            source=interp.patching.Average(data, by_position=True),
            metric=METRIC,
            sites="L1.z",
        )


def test_noise_is_seeded_and_scaled_by_the_embeddings() -> None:
    m, base, _ = pair()
    how = {"base": base, "metric": METRIC, "sites": "embed"}
    a, b, other = (
        interp.patch(m, source=noise, **how)
        for noise in ("noise", interp.patching.Noise(3.0, 0), interp.patching.Noise(3.0, 1))
    )
    assert torch.equal(a.values, b.values)
    assert not torch.equal(a.values, other.values)
    spread = 3.0 * m.module.get_input_embeddings().weight.std()
    old = m.run(base, record="embed")["embed"]
    draw = torch.randn(old.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float32)
    close(a.values[0], by_hand(m, base, [interp.Set("embed", old + spread * draw.double())]))


def test_a_tape_is_a_source_and_must_hold_the_sites() -> None:
    m, base, source = pair()
    tape = m.run(source, record="L*.z")
    e, run = (interp.patch(m, base=base, source=s, metric=METRIC, sites="L*.H*.z") for s in (tape, source))
    close(e.values, run.values)
    close(e.source, run.source)
    with pytest.raises(SiteError, match="was not recorded"):
        interp.patch(m, base=base, source=tape, metric=METRIC, sites="L*.mlp_out")


def test_pairs_of_unequal_length_by_index_suffix_and_spans() -> None:
    m, base, _ = pair()
    source = {"input_ids": torch.randint(5, 90, (2, 9))}
    z = m.run(source, record="L1.z")["L1.z"]
    front, back = z[:, :7], z[:, -7:]
    for how, value in (("index", front), ("suffix", back)):
        e = interp.patch(m, base=base, source=source, metric=METRIC, sites="L1.z", align=how)
        close(e.values[0], by_hand(m, base, [interp.Set("L1.z", value)]))
    from interp.hooks.inputs.positions import Span

    here, there = Span(((2, 4), (4, 6)), "a"), Span(((3, 6), (1, 4)), "b")
    old = m.run(base, record="L1.z")["L1.z"]
    mean, last = old.clone(), old.clone()
    for b in range(2):
        (lo, hi), (slo, shi) = here.rows[b] or (0, 0), there.rows[b] or (0, 0)
        mean[b, lo:hi], last[b, hi - 1] = z[b, slo:shi].mean(0), z[b, shi - 1]
    spans: dict[str, Any] = {"base": base, "source": source, "metric": METRIC, "sites": "L1.z"}
    spans["align"] = interp.patching.align(here, there)
    for reduce, value in (("mean", mean), ("last", last)):
        close(interp.patch(m, **spans, reduce=reduce).values[0], by_hand(m, base, [interp.Set("L1.z", value)]))
    with pytest.raises(InputsError, match="reduce='last' or"):
        interp.patch(m, **spans)
    with pytest.raises(InputsError, match="line up"):
        interp.patch(m, base=base, source=source, metric=METRIC, sites="L1.z")


def test_another_models_values() -> None:
    m, base, _ = pair()
    other = interp.attach(tiny("gpt2", seed=5).double())
    values = other.run(base, record="L*.z")
    e = interp.patch(m, base=base, source=base, source_model=other, metric=METRIC, sites="L*.H*.z")
    for n, site in enumerate(e.sites):
        close(e.values[n], by_hand(m, base, [interp.Set(site, values[site])]))


def test_position_zero_and_every_position() -> None:
    m, base, source = pair(shared=0)
    values = m.run(source, record="L*.resid_pre")
    e = interp.patch(m, base=base, source=source, metric=METRIC, sites="L*.resid_pre", positions="each")
    for n, site in enumerate(e.sites):
        p = n % 7
        close(e.values[n], by_hand(m, base, [interp.Set(site, values[site], positions=[p])]))


def test_what_cannot_be_asked_is_refused() -> None:
    m, base, source = pair()
    how = {"base": base, "source": source, "metric": METRIC}
    for more, message in (
        ({"sites": "L0.H1.k"}, "write K"), ({"cells": [[]]}, "empty"), ({"cells": [("L0.H1.z", 3)]}, "without heads"),
        ({"sites": "L*.scores"}, "values per layer"), ({"sites": "L*.mlp_out", "window": 0}, "at least 1"),
        ({"sites": "L*.mlp_out", "window": 9}, "neighbouring"),
        ({"sites": "L*.pattern", "source": "zero"}, "another run's pattern"),
    ):  # fmt: skip
        with pytest.raises(interp.InterpError, match=message):
            interp.patch(m, **{**how, **more})
    with pytest.raises(InputsError, match="no metric"):
        interp.patch(m, base=base, source=source, metric={}, sites="L*.z")


def test_a_model_that_is_not_deterministic_is_refused() -> None:
    module: Any = tiny("llama")
    module.model.layers[0].mlp.register_forward_hook(lambda _, args, out: out + 0.1 * torch.randn_like(out))
    m = interp.attach(module)
    _, base, source = pair()
    with pytest.raises(CheckFailed, match="not deterministic"):
        interp.patch(m, base=base, source=source, metric=METRIC, sites="L*.z")
