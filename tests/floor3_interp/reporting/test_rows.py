"""The table of heads: its schema, where its numbers come from, and how two of them are compared."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pytest
import torch
from models import attached

import interp
from interp.heads.rows import COLUMNS, SCHEMA, head_rows, joined, ranked, read_rows, write_rows
from interp.metrics import Logit
from interp.reporting.difference import difference
from interp.reporting.sections.agreement import agreement
from interp.results.effects import Effects


def effects(model: interp.Model, *, seed: int = 0, rows: int = 5, **meta: Any) -> Effects:
    """Effects of every head from numbers drawn, denoising; their reverse is noising."""
    g = torch.Generator().manual_seed(seed)
    layers = model.anatomy.tower(None, text="").layers
    sites = tuple(f"L{layer.index}.H{h}.z" for layer in layers for h in range(layer.heads))
    values = torch.randn(len(sites), rows, generator=g, dtype=torch.float64)
    base, source = torch.zeros(rows).double(), torch.ones(rows).double()
    about = {"corruption": "run", "metric": "LogitDifference(answers=1)", **meta}
    back = Effects(sites, None, -values, source, base, 1e-6, about)
    return Effects(sites, None, values, base, source, 1e-6, about, back)


def test_rows_hold_the_numbers_of_the_result_and_its_meaning() -> None:
    m = attached("llama")
    e = effects(m)
    rows = head_rows(e, m.anatomy, model="tiny", task="ioi", split="train")
    assert list(rows.columns) == list(COLUMNS)
    assert {name: str(kind) for name, kind in rows.dtypes.items()} == COLUMNS
    first, back = rows[rows["direction"] == "denoise"], rows[rows["direction"] == "noise"]
    assert len(first) == len(back) == len(e.sites)
    assert first["estimate"].tolist() == [float(f"{float(v):.6g}") for v in e.mean]
    low, high = e.interval()
    np.testing.assert_allclose(first[["low", "high"]].to_numpy(), torch.stack([low, high], 1).numpy(), rtol=1e-5)
    assert set(rows["ablation"]) == {"resample"}
    assert set(rows["metric"]) == {"LogitDifference"}
    assert set(rows["n"]) == {5}
    assert set(rows["schema"]) == {SCHEMA}
    assert first["site"].tolist() == [site.removesuffix(".z") for site in e.sites]


def test_what_stands_in_a_heads_place_is_what_the_result_says_and_never_a_default() -> None:
    m = attached("llama")
    silent = replace(effects(m), meta={"metric": "x"}, reverse=None)
    assert set(head_rows(silent, m.anatomy)["ablation"]) == {"not said"}
    x = m.inputs({"input_ids": torch.randint(5, 90, (2, 6))})
    y = m.inputs({"input_ids": torch.randint(5, 90, (2, 6))})
    metric = Logit(((5,), (6,)))
    made = {
        "none": interp.patching.direct_effect(m, x, metric=metric),
        "resample": interp.path_patch(m, base=x, source=y, metric=metric, receivers="logits", senders="L0.H*"),
        "zero": interp.patch(m, base=x, source="zero", metric=metric, sites="L0.H*.z"),
    }
    for ablation, result in made.items():
        assert set(head_rows(result, m.anatomy)["ablation"]) == {ablation}
    hidden = interp.patching.knockout(m, x, metric=metric, edges=[("first", "last")], heads="L*.H*")
    assert hidden.meta["corruption"] == "hidden keys"
    averaged = interp.patch(m, base=x, source=interp.patching.Average([y]), metric=metric, sites="L0.H*.z")
    assert set(head_rows(averaged, m.anatomy)["direction"]) == {"noise"}


def test_query_heads_know_the_kv_group_they_share() -> None:
    m = attached("llama")
    layer = m.anatomy.tower(None, text="").layers[0]
    assert layer.heads > layer.kv_heads
    rows = head_rows(effects(m), m.anatomy)
    assert rows["kv_group"].tolist() == [head // (layer.heads // layer.kv_heads) for head in rows["head"]]


def test_ranks_are_by_magnitude_within_method_direction_and_tower() -> None:
    m = attached("llama")
    rows = head_rows(effects(m), m.anatomy)
    for _, mine in rows.groupby(["method", "direction", "tower"]):
        ordered = mine.sort_values("rank")["estimate"].abs().tolist()
        assert ordered == sorted(ordered, reverse=True)
        assert sorted(mine["rank"]) == list(range(1, len(mine) + 1))
    again = ranked(rows.sample(frac=1.0, random_state=1))
    assert again.sort_index()["rank"].tolist() == rows["rank"].tolist()


@pytest.mark.parametrize("spoil", ["positions", "layers", "nothing"])
def test_what_is_not_heads_is_refused(spoil: str) -> None:
    m = attached("llama")
    e = effects(m, rows=2)
    if spoil == "positions":
        result: Any = Effects(e.sites[:1], (0, 1), torch.zeros(2, 2), e.base[:2], e.source, 0.0)
    elif spoil == "layers":
        result = Effects(("L0.resid_pre",), None, torch.zeros(1, 2), e.base[:2], None, 0.0)
    else:
        result = pandas.DataFrame({"edge": ["a->b"], "score": [1.0]})
    with pytest.raises(interp.InterpError, match=r"head|site"):
        head_rows(result, m.anatomy)


def test_any_table_of_sites_becomes_rows_and_keeps_its_methods() -> None:
    m = attached("llama")
    frame = pandas.DataFrame(
        {"site": ["L0.H0", "L1.H3"], "method": ["norm", "entropy"], "estimate": [1.0, np.nan], "n": [4, 4]}
    )
    rows = head_rows(frame, m.anatomy, model="tiny")
    assert rows["method"].tolist() == ["norm", "entropy"]
    assert rows["model"].tolist() == ["tiny", "tiny"]
    assert rows["estimate"].isna().tolist() == [False, True]
    sinks = interp.sinks(m, {"input_ids": torch.arange(1, 11)[None]}, activations=False, least=2)
    found = head_rows(sinks, m.anatomy, method="sink")
    np.testing.assert_allclose(found["estimate"], sinks.first.mean(1), rtol=1e-5)
    assert set(found["method"]) == {"sink"}


def test_rows_come_back_from_disk_as_they_went(tmp_path: Path) -> None:
    m = attached("llama")
    rows = head_rows(effects(m), m.anatomy, model='<img src=x onerror=alert(1)>, "quoted"')
    csv, _ = write_rows(rows, tmp_path)
    pandas.testing.assert_frame_equal(read_rows(tmp_path), rows)
    plain = pandas.read_csv(csv)
    assert plain["model"].tolist() == rows["model"].tolist()
    np.testing.assert_allclose(plain["estimate"], rows["estimate"], rtol=1e-5)
    assert len(joined([])) == 0
    assert list(joined([]).columns) == list(COLUMNS)
    write_rows(rows.assign(schema=SCHEMA + 1), tmp_path)
    with pytest.raises(interp.InterpError, match=f"schema {SCHEMA + 1}"):
        read_rows(tmp_path)
    with pytest.raises(interp.InterpError, match=r"heads\.parquet"):
        read_rows(tmp_path / "nowhere")


def spearman(a: np.ndarray, b: np.ndarray) -> float:
    """From ranks counted by hand, ties in the middle."""
    ranks = [np.array([(x < v).sum() + ((x == v).sum() + 1) / 2 for v in x]) for x in (a, b)]
    return float(np.corrcoef(ranks)[0, 1])


def test_agreement_is_spearmans_and_the_share_of_common_heads() -> None:
    m = attached("llama")
    one, two = effects(m, seed=1), effects(m, seed=2, method="relp")
    two = Effects(two.sites, None, one.values + 0.5 * two.values, two.base, two.source, 0.0, two.meta)
    rows = agreement({"patch text": one, "relp text": two}, ["text"])
    assert [(row["first"], row["second"]) for row in rows] == [
        ("patch (denoise)", "patch (noise)"), ("patch (denoise)", "relp"), ("patch (noise)", "relp"),
    ]  # fmt: skip
    assert rows[0]["spearman"] == pytest.approx(1.0)  # the reverse was made as the negative
    a, b = one.mean.numpy(), two.mean.numpy()
    assert rows[1]["spearman"] == pytest.approx(spearman(a, b))
    k = rows[1]["k"]
    top = [set(np.argsort(-np.abs(x))[:k]) for x in (a, b)]
    assert rows[1]["overlap"] == pytest.approx(len(top[0] & top[1]) / k)
    assert rows[1]["spearman low"] <= rows[1]["spearman"] <= rows[1]["spearman high"]


def test_a_difference_names_the_heads_that_moved(tmp_path: Path) -> None:
    m = attached("llama")
    rows = head_rows(effects(m), m.anatomy, model="a")
    write_rows(rows, tmp_path / "a")
    moved = (rows["site"] == "L1.H2").to_numpy(dtype=float)
    shifted = rows.assign(**{name: rows[name] + 10.0 * moved for name in ("estimate", "low", "high")})
    write_rows(shifted, tmp_path / "b")
    same = difference(tmp_path / "a", tmp_path / "a", k=3)
    assert not same.heads["moved"].any()
    assert same.methods["spearman"].tolist() == pytest.approx([1.0, 1.0])
    assert "No head moved" in repr(same)
    other = difference(tmp_path / "a", tmp_path / "b", k=3)
    assert set(other.heads[other.heads["moved"]]["site"]) == {"L1.H2"}
    assert "L1.H2" in repr(other)
    assert (other.methods["overlap"] < 1).any() or (other.methods["spearman"] < 1).any()
    write_rows(rows.assign(method="atp"), tmp_path / "c")
    with pytest.raises(interp.InterpError, match="in common"):
        difference(tmp_path / "a", tmp_path / "c")
