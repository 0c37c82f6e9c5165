"""Measures of patterns are their definitions, in float64; heads made alike are put together; codes are reproducible."""

from __future__ import annotations

import math
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from models import attached
from torch import Tensor

import interp
from interp.heads.patterns.embed import clusters, embed, plane
from interp.hooks.errors import InputsError, SiteError
from interp.hooks.examples.example import example
from interp.hooks.stand import call as stand_call
from interp.kernels.errors import InterpError
from interp.planted import build


def inputs(m: interp.Model, length: int = 13, batch: int = 2) -> Any:
    return m.inputs(dict(example(m.module, batch=batch, length=length, seed=2)))


def patterns(m: interp.Model, x: Any) -> Tensor:
    """[head of any layer, example, row, key]."""
    found = m.run(x, record="L*.pattern")
    return torch.cat([found[s].double().transpose(0, 1) for s in map(str, found.sites) if "pattern" in s])


def pooled(a: Tensor, bins: int) -> list[list[float]]:
    n = len(a)
    rows = [[i for i in range(n) if i * bins // n == g] for g in range(bins)]
    return [[sum(float(a[i, j]) for i in at for j in to) / len(at) for to in rows] for at in rows]


@pytest.mark.parametrize("name", ["gpt2", "bert"])
def test_measures_of_texts_are_those_of_the_definitions(name: str) -> None:
    m = attached(name)
    x = inputs(m)
    found = interp.heads.atlas(m, x, bins=4, steps=5)
    assert found.bands == ((0, 0), (1, 1), (2, 2), (3, 3), (4, 7), (8, 15))
    causal = not m.anatomy.tower(None, text="").bidirectional
    for h, each in enumerate(patterns(m, x)):
        maps = torch.tensor([pooled(a, 4) for a in each], dtype=torch.double).mean(0)
        torch.testing.assert_close(found.maps[h], maps, atol=1e-5, rtol=1e-4)
        for b, a in enumerate(each):
            n = len(a)
            for d, (low, high) in enumerate(found.bands):
                want = sum(float(a[i, j]) for i in range(n) for j in range(n) if low <= abs(i - j) <= high) / n
                assert float(found.profile[h, b, d]) == pytest.approx(want, abs=1e-5)
            away = sum(float(a[i, j]) * abs(i - j) for i in range(n) for j in range(n)) / n
            assert float(found.values["distance"][h, b]) == pytest.approx(away, abs=1e-4)
            rows = [-sum(float(p) * math.log(float(p)) for p in row if float(p) > 0) for row in a]
            assert float(found.values["entropy"][h, b]) == pytest.approx(sum(rows) / n, abs=1e-4)
            share = [e / math.log(max(2, i + 1 if causal else n)) for i, e in enumerate(rows)]
            assert float(found.values["relative entropy"][h, b]) == pytest.approx(sum(share) / n, abs=1e-4)
            sizes = torch.linalg.svdvals(a)
            rank = math.exp(-sum(float(s / sizes.sum()) * math.log(float(s / sizes.sum())) for s in sizes if s > 0))
            assert float(found.values["effective rank"][h, b]) == pytest.approx(rank, rel=1e-3)


def test_in_a_picture_distance_is_that_of_the_grid() -> None:
    m = attached("vit")  # patches of 3 x 4 behind a class token
    x = m.inputs(dict(example(m.module, batch=1)))
    found = interp.heads.atlas(m, x, steps=5)
    cells = list(zip(x.roles.row[0].tolist(), x.roles.col[0].tolist(), strict=True))
    patches = [i for i, (row, _) in enumerate(cells) if row >= 0]
    for h, (a,) in enumerate(patterns(m, x)):
        strength = [0.0] * len(found.bands)
        for i in patches:
            for j in patches:
                strength[max(abs(cells[i][0] - cells[j][0]), abs(cells[i][1] - cells[j][1]))] += float(a[i, j])
        assert found.profile[h, 0].tolist() == pytest.approx([s / len(patches) for s in strength], abs=1e-5)
        away = 0.0
        for i in patches:
            near = [max(abs(cells[i][0] - cells[j][0]), abs(cells[i][1] - cells[j][1])) for j in patches]
            away += sum(float(a[i, j]) * d for j, d in zip(patches, near, strict=True)) / float(a[i, patches].sum())
        assert float(found.values["distance"][h, 0]) == pytest.approx(away / len(patches), abs=1e-4)


def shaped(length: int) -> dict[str, Tensor]:
    """Patterns of four forms [row, key]."""
    eye = torch.eye(length)
    before = torch.cat([eye[:1], eye[:-1]])
    first = torch.zeros(length, length)
    first[:, 0] = 1.0
    even = torch.ones(length, length).tril()
    return {"before": before, "first": first, "even": even / even.sum(1, keepdim=True), "self": eye}


def test_heads_made_alike_are_put_together_and_are_each_others_nearest() -> None:
    m = attached("gpt2")
    x = inputs(m, length=12, batch=3)
    forms = shaped(12)
    order = {0: ["before", "first", "even", "self"], 1: ["self", "before", "first", "even"]}
    of = {f"L{layer}.H{h}": form for layer, names in order.items() for h, form in enumerate(names)}
    with m.edited([interp.Set(f"{site}.pattern", forms[form]) for site, form in of.items()]):
        found = interp.heads.atlas(m, x, clusters=4)
    table = found.heads().set_index("site")
    for site, form in of.items():
        other = next(s for s, f in of.items() if f == form and s != site)
        assert found.nearest(site, 1)["site"].item() == other
        assert table.loc[site, "cluster"] == table.loc[other, "cluster"]
        assert table.loc[site, "settled"] == 1.0
    assert table["cluster"].nunique() == 4
    assert found.explained[0] > 0.95
    assert found.top(2, by="distance")["site"].tolist() == ["L0.H1", "L1.H2"]
    assert table.loc["L0.H1", "effective rank"] == pytest.approx(1.0, abs=1e-3)
    assert table.loc["L0.H3", "effective rank"] == pytest.approx(12.0, abs=1e-3)


def test_the_planted_sink_and_the_head_that_rests_beside_it_are_alike() -> None:
    m = interp.attach(*build("planted-decoder"))
    found = interp.heads.atlas(m, ["fox apple lake stone moon river", "lake moon fox apple river stone arrow"])
    assert found.nearest("L0.H3", 2)["site"].tolist()[0] in ("L1.H2", "L1.H4", "L0.H2")
    trend = found.trend()
    assert trend["layer"].tolist() == [0, 1]
    rows = found.heads()
    assert trend["entropy"].tolist() == pytest.approx([rows[rows["layer"] == n]["entropy"].mean() for n in (0, 1)])


def test_padding_and_pieces_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    m = interp.attach(*build("planted-decoder"))
    texts = ["fox apple lake stone moon river fox apple", "lake moon fox apple river"]
    both, alone = interp.heads.atlas(m, texts, bins=4, steps=3), interp.heads.atlas(m, texts[1], bins=4, steps=3)
    for name in both.values:
        torch.testing.assert_close(both.values[name][:, 1], alone.values[name][:, 0], atol=1e-5, rtol=1e-4)
    assert m.handles() == []
    monkeypatch.setattr(stand_call, "NUMBERS", 200)
    parts = interp.heads.atlas(m, texts, bins=4, steps=3)
    torch.testing.assert_close(parts.maps, both.maps, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(parts.values["effective rank"], both.values["effective rank"], atol=1e-5, rtol=1e-5)


def test_of_long_inputs_no_whole_pattern_is_held(monkeypatch: pytest.MonkeyPatch) -> None:
    m = attached("llama")
    monkeypatch.setattr(import_module("interp.heads.atlas"), "SHORT", 10)
    found = interp.heads.atlas(m, inputs(m, length=20), steps=3)
    assert "effective rank" not in found.values
    with pytest.raises(InterpError, match="at most 10 tokens"):
        found.top(by="effective rank")
    assert not found.to_frame().isna()[["estimate", "low", "high"]].any(axis=None)


def test_codes_are_the_same_twice_and_explain_more_than_nothing() -> None:
    random = torch.Generator().manual_seed(0)
    x = torch.randn(40, 3, generator=random) @ torch.randn(3, 20, generator=random)
    one, two, other = embed(x, 3, steps=400, seed=1), embed(x, 3, steps=400, seed=1), embed(x, 3, steps=400, seed=2)
    assert torch.equal(one.codes, two.codes)
    assert not torch.equal(one.codes, other.codes)
    assert one.principal == pytest.approx(1.0, abs=1e-4)
    assert one.explained > 0.97


def test_clusters_are_found_wherever_they_lie() -> None:
    random = torch.Generator().manual_seed(3)
    centres = 10 * torch.randn(4, 5, generator=random, dtype=torch.double)
    truth = torch.arange(40) % 4
    points = centres[truth] + 0.1 * torch.randn(40, 5, generator=random, dtype=torch.double)
    labels, found = clusters(points, 4)
    assert torch.equal(labels, truth)
    torch.testing.assert_close(found, torch.stack([points[truth == c].mean(0) for c in range(4)]))
    assert len(set(clusters(torch.ones(6, 2, dtype=torch.double), 3)[0].tolist())) == 1
    flat = plane(points)
    assert torch.equal(flat, plane(points))
    assert float(flat[:, 0].var()) >= float(flat[:, 1].var())


def test_a_result_can_be_saved_read_and_drawn(tmp_path: Path) -> None:
    m = attached("gpt2")
    found = interp.heads.atlas(m, inputs(m), steps=5)
    again = interp.open(found.save(tmp_path / "atlas"))
    assert again.to_frame().equals(found.to_frame())
    assert again.strength().equals(found.strength())
    assert repr(again) == repr(found)
    assert {"site", "tower", "layer", "head", "method", "estimate", "low", "high", "n"} <= set(found.to_frame().columns)
    assert sum(len(part.x) for part in found.plot().data) == 8
    assert found.plot_map("L0.H1").data[0].z.shape == (8, 8)


def test_what_has_no_meaning_is_refused() -> None:
    m = attached("gpt2")
    refused: list[tuple[Any, dict[str, Any], type[Exception], str]] = [
        (torch.tensor([[5]]), {}, InputsError, "at least two tokens"),
        (inputs(m), {"heads": "L0.H1"}, InputsError, "compares heads"),
        (inputs(m), {"clusters": 0}, InputsError, "at least 1"),
        (inputs(m), {"heads": "L7"}, SiteError, "no layer"),
    ]
    for data, how, kind, says in refused:
        with pytest.raises(kind, match=says):
            interp.heads.atlas(m, data, **how)
    with pytest.raises(InterpError, match="no pattern of"):
        interp.heads.atlas(m, inputs(m), steps=2).nearest("L5.H1")
