"""One table of heads: its numbers against definitions by hand, of one example no interval, one reading for all."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pandas
import pytest
import torch

import interp
from interp.circuits.graph.nodes import Graph, LayerShape
from interp.circuits.judged import Faithfulness
from interp.heads.measures.measured import Measured
from interp.heads.measures.table import Importance
from interp.heads.patterns.result import Atlas
from interp.long.masking import Masking
from interp.results.agreement import Agreement
from interp.results.card import HeadCard, Number
from interp.results.effects import Effects
from interp.results.gates import Gates
from interp.results.heads_table import HeadTable, read_heads
from interp.results.intervals import interval, mean_interval, spanned
from interp.results.retrieval import RetrievalHeads
from interp.results.roles import HeadRoles
from interp.results.sinks import Sinks
from interp.results.weights import HeadCircuits
from interp.sink.act import Act
from interp.sink.sink_knockout import SinkKnockout

ENDS = r"(^|_)(low|high)$"
SITES = ("L0.H0", "L0.H1", "L1.H0", "L1.H1")


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def results(n: int) -> dict[str, Any]:
    """Every result that speaks of heads or has intervals, of n examples (or seeds, or draws)."""
    rows, keys = drawn(4, n), 6
    measured = (Measured("norm", rows), Measured("change", rows, reduce="difference", other=drawn(4, n, seed=1),
                                                 other_groups=tuple(map(str, range(n)))))  # fmt: skip
    how = {"threshold": 0.1, "keep": 0.4, "least": 1}
    groups = tuple(map(str, range(n)))
    return {
        "gates": Gates(SITES, ("text",) * 4, rows, drawn(4, n, seed=2)),
        "retrieval": RetrievalHeads(SITES, rows, torch.ones(n, dtype=torch.bool), drawn(n), "event"),
        "roles": HeadRoles(SITES, {"previous": rows}),
        "sinks": Sinks(SITES, rows, rows, rows, drawn(4, n, keys), torch.zeros(n).long(), torch.zeros(n, keys).long(),
                       ("word",)),
        "importance": Importance(SITES, ("text",) * 4, measured, groups, ("yes",) * n),
        "atlas": Atlas(SITES, drawn(4, n, 3), torch.tensor([0, 0, 1, 1]), drawn(4), drawn(4, 8, 8), drawn(4, n, 2),
                       ((0, 0), (1, 2)), {"distance": rows}, (0.5, 0.6)),
        "act": Act(SITES, rows, drawn(4), torch.zeros(4, dtype=torch.bool), (), drawn(n), drawn(n), drawn(2, n),
                   drawn(n), {"calibrate": how}),
        "agreement": Agreement(SITES, ("text",) * 4, drawn(4, n, keys), drawn(4, n, keys, seed=3), drawn(n, keys),
                               torch.ones(n, keys, dtype=torch.bool), torch.tensor([0.0, 0.5, 1.0]).double(),
                               drawn(2, 3, n), drawn(2, 3, n)),
        "effects": Effects(tuple(f"{site}.z" for site in SITES), None, rows, drawn(n), drawn(n) + 1, 0.0),
        "masking": Masking(SITES[:2], (1, 2), drawn(3, n), drawn(2, n)),
        "sink_knockout": SinkKnockout(SITES[:2], 1.0, drawn(n), drawn(n), drawn(3, n), (0.5, 0.1)),
    }  # fmt: skip


HEADS = ("gates", "retrieval", "roles", "sinks", "importance", "atlas", "act", "agreement")


@pytest.mark.parametrize("name", HEADS)
def test_a_table_of_heads_has_the_same_columns_whatever_found_it(name: str) -> None:
    frame = results(5)[name].to_frame()
    assert list(frame.columns[:9]) == ["site", "tower", "layer", "head", "method", "estimate", "low", "high", "n"]
    for _, mine in frame.groupby("method"):
        assert tuple(mine["site"]) == SITES
        assert mine[["layer", "head"]].to_numpy().tolist() == [[0, 0], [0, 1], [1, 0], [1, 1]]
    assert (frame["low"] <= frame["high"]).all()


@pytest.mark.parametrize("name", HEADS)
def test_the_labelled_array_holds_the_estimates_of_the_table(name: str) -> None:
    result = results(5)[name]
    array, frame = result.to_xarray(), result.to_frame()
    for row in frame.itertuples():
        at = {"layer": row.layer, "head": row.head} | ({"method": row.method} if "method" in array.dims else {})
        assert float(array.sel(at)) == pytest.approx(row.estimate)
    assert ("method" in array.dims) == (frame["method"].nunique() > 1)


def test_an_interval_is_the_middle_of_the_means_of_drawn_examples() -> None:
    values = drawn(3, 7)
    low, high = mean_interval(values, 0.9, draws=500, seed=4)
    picks = torch.randint(7, (500, 7), generator=torch.Generator().manual_seed(4))
    for row, a, b in zip(values, low, high, strict=True):
        means = [sum(float(row[i]) for i in one) / 7 for one in picks.tolist()]
        assert [float(a), float(b)] == pytest.approx(np.quantile(means, [0.05, 0.95]).tolist())
    frame = HeadTable(SITES[:3], values, "mine").frame()
    assert frame["estimate"].tolist() == pytest.approx(values.mean(1).tolist())
    assert frame["n"].tolist() == [7, 7, 7]


@pytest.mark.parametrize("name", sorted(results(1)))
def test_of_one_example_there_is_no_interval(name: str) -> None:
    result = results(1)[name]
    frame = result.to_frame()
    assert frame["estimate"].notna().all()
    assert frame.filter(regex=ENDS).isna().all(axis=None)
    result.plot().to_json()
    assert "nan" not in repr(result)


def test_intervals_of_one_example_elsewhere() -> None:
    one, several = results(1), results(5)
    for frame in (one["importance"].by_class(), one["importance"].ranks(), one["importance"].agreement(k=2),
                  one["agreement"].deletion(), one["agreement"].auc(), one["act"].judged()):  # fmt: skip
        assert frame.filter(regex=ENDS).isna().all(axis=None)
    assert several["importance"].by_class()[["low", "high"]].notna().all(axis=None)
    alone = Faithfulness(drawn(1), drawn(1) + 1, drawn(1) - 1, drawn(4), 0.5, (), ())
    assert all(map(math.isnan, alone.interval()))
    assert alone.summary()["low"] is None
    assert "[" not in repr(alone)
    assert spanned(math.nan, math.nan) == ""
    assert spanned(-1.0, 2.0) == " [-1, +2]"


def test_an_interval_knows_how_much_it_was_drawn_from() -> None:
    draws = drawn(100, 2)
    low, high = interval(draws, n=torch.tensor([1, 3]))
    assert low.isnan().tolist() == [True, False]
    assert float(high[1]) == pytest.approx(float(draws[:, 1].quantile(0.975)))


def test_weights_have_no_examples_and_are_exact() -> None:
    scores = {"copying": drawn(4)}
    frame = HeadCircuits(SITES, scores, {"copying": torch.complex(drawn(4, 2), drawn(4, 2))}).to_frame()
    assert frame["estimate"].tolist() == scores["copying"].tolist()
    assert set(frame["n"]) == {0}
    assert frame["low"].tolist() == frame["high"].tolist() == frame["estimate"].tolist()


def test_a_card_of_one_example_has_no_intervals_and_is_json() -> None:
    card = HeadCard("L0.H0", "tiny", attention=(Number("entropy", 1.5, math.nan, math.nan, 1),))
    assert "[" not in str(card["entropy"])
    assert json.loads(json.dumps(card.to_dict(), allow_nan=False))["scores"][0]["low"] is None


@pytest.mark.parametrize("name", HEADS)
def test_the_first_heads_are_those_with_the_highest_estimates_of_one_method(name: str) -> None:
    result = results(5)[name]
    first = result.top(2)
    assert first["method"].nunique() == 1
    if name != "importance":  # ranks may be of low numbers
        every = result.to_frame()
        mine = every[every["method"] == first["method"].iloc[0]]["estimate"]
        assert first["estimate"].tolist() == sorted(mine, reverse=True)[:2]


def test_a_result_is_read_as_heads_once_for_all() -> None:
    values = drawn(4, 3)
    mixed = Effects(("L0.H1.z", "L0.mlp_write", "bias", "L1.K0.k"), None, values, drawn(3), None, 0.0)
    assert read_heads(mixed)["site"].tolist() == ["L0.H1.z"]
    table = pandas.DataFrame({"site": ["L0.H0", "vision.L1.H2"], "score": [1.0, 2.0]})
    assert read_heads(table)["estimate"].tolist() == [1.0, 2.0]
    for wrong, why in (
        ([1], "no to_frame"), (table.rename(columns={"score": "size"}), "site, size"),
        (table.replace("L0.H0", "L0.resid_pre"), "not one head"),
        (Effects(("L0.mlp_write",), None, values[:1], drawn(3), None, 0.0), "no heads among"),
        (Effects(("L0.H0.z",) * 2, (0, 1), values[:2], drawn(3), None, 0.0), "position axis"),
    ):  # fmt: skip
        with pytest.raises(interp.InterpError, match=why):
            read_heads(wrong)


def test_the_graph_of_edges_has_layers_of_its_own_kind() -> None:
    graph = Graph(None, (LayerShape(0, 2, 1, True, False),))
    assert Graph.read(graph.described()) == graph
