"""Circuits of a real size: what is built for them, how they are drawn, and gaps too small to be faithful to."""

from __future__ import annotations

import re
from collections import Counter
from itertools import combinations
from typing import Any
from xml.etree import ElementTree

import pytest
import torch
from edge_oracle import asked, difference
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import interp
from interp.circuits.found.drawing import MOST, held
from interp.circuits.graph.nodes import Graph, LayerShape
from interp.circuits.graph.random import like
from interp.circuits.judged import Faithfulness
from interp.hooks.sites import Site
from interp.results.figures.colours import LESS, MORE

LARGE = Graph(None, tuple(LayerShape(n, 9, 3, True, False) for n in range(30)))


def circuit(fraction: float, *, seed: int = 0) -> interp.Circuit:
    """A random circuit of a graph of 30 layers of 9 heads over 3 kv heads, with scores."""
    draw = torch.Generator().manual_seed(seed)
    scores = torch.randn(LARGE.exists.shape, generator=draw, dtype=torch.float64) * LARGE.exists
    size = scores.abs()[LARGE.exists].quantile(1 - fraction)
    return interp.Circuit(LARGE, scores.abs() > size, "edge", {}, scores)


def test_a_circuit_of_many_edges_is_a_picture_one_can_look_at() -> None:
    one = circuit(0.015)
    assert len(one) > 1000
    made = one.draw(title="large")
    root = ElementTree.fromstring(made)
    width, height = map(float, root.attrib["viewBox"].split()[2:])
    assert height <= 1100
    assert width <= 1000
    assert len(made) < 120_000
    names = re.findall(r"<title>([^<]*)</title><path", made)
    drawn = {name.split(" ")[0].replace("&gt;", ">") for name in names}
    assert one.scores is not None
    largest = sorted(held(LARGE, one.mask), key=lambda edge: -abs(float(one.scores[edge])))[:MOST]
    assert drawn == {LARGE.name(edge) for edge in largest}
    said = f"the {MOST} largest of {len(one):,} edges"
    assert made.count(said) == 2


def test_the_picture_of_a_model_of_many_layers_is_no_larger() -> None:
    deep = Graph(None, tuple(LayerShape(n, 16, 4, True, False) for n in range(90)))
    scores = torch.zeros(deep.exists.shape)
    for n in range(0, 89, 4):
        u = deep.sender_at[Site(None, n, "attention", (n % 16,))]
        v = deep.receivers.index(Site(None, n + 1, "q_in", ((n + 1) % 16,)))
        scores[u, v] = n - 40.5
    made = interp.Circuit(deep, scores != 0, "edge", {}, scores).draw()
    width, height = map(float, ElementTree.fromstring(made).attrib["viewBox"].split()[2:])
    assert width <= 1200
    assert height <= 1100
    boxes = [
        tuple(map(int, found))
        for found in re.findall(r'<rect x="(\d+)" y="(\d+)" width="(\d+)" height="(\d+)" rx', made)
    ]
    assert len(boxes) == 2 + 2 * len(range(0, 89, 4))
    apart = (
        a[0] + a[2] <= b[0] or b[0] + b[2] <= a[0] or a[1] + a[3] <= b[1] or b[1] + b[3] <= a[1]
        for a, b in combinations(boxes, 2)
    )
    assert all(apart), "boxes overlap"
    assert {MORE, LESS} <= set(re.findall(r'stroke="(#\w+)"', made))


def test_a_small_circuit_is_drawn_whole_and_roomy() -> None:
    one = circuit(0.0004)
    assert 0 < len(one) <= MOST
    made = one.draw()
    assert "largest of" not in made
    assert made.count("<path") >= len(one)


def test_edges_are_listed_in_the_graphs_order() -> None:
    one = circuit(0.01)
    expected = [edge for edge in LARGE.edges if bool(one.mask[edge])]
    assert list(held(LARGE, one.mask)) == expected
    assert one.edges[:3] == tuple(map(LARGE.name, expected[:3]))


def test_random_circuits_keep_the_profile() -> None:
    mask = circuit(0.01).mask
    drawn = like(LARGE, mask, "edge", torch.Generator().manual_seed(1))

    def profile(some: Tensor) -> Counter[Any]:
        ends = [(LARGE.senders[u], LARGE.receivers[v]) for u, v in some.nonzero().tolist()]
        return Counter((u.layer, u.component, v.layer, v.component) for u, v in ends)

    assert profile(drawn) == profile(mask)
    assert not torch.equal(drawn, mask)
    assert bool((drawn <= LARGE.exists).all())
    again = like(LARGE, mask, "edge", torch.Generator().manual_seed(1))
    assert torch.equal(again, drawn)


class Masks(TorchDispatchMode):
    """Counts tensors of a graph's shape that are made."""

    def __init__(self, shape: torch.Size) -> None:
        super().__init__()
        self.shape, self.count = shape, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        self.count += torch.is_tensor(made) and made.dtype == torch.bool and made.shape == self.shape
        return made


def test_no_mask_is_made_that_nobody_asked_for() -> None:
    m, base, source = asked("gpt2")
    graph = interp.edges(m, base=base, source=source, metric=difference, method="eap").graph
    counts = []
    for every in (9, 2):
        one = interp.Circuit(graph, graph.mask(graph.edges[::every]))
        with Masks(graph.exists.shape) as masks:
            interp.faithfulness(m, one, base=base, source=source, metric=difference, random=0, parts=0)
        counts.append((len(one), masks.count))
    assert counts[1][0] > 4 * counts[0][0]
    assert counts[1][1] == counts[0][1] < 12


def judged(gaps: list[float], share: float = 0.9) -> Faithfulness:
    nothing = torch.zeros(len(gaps)).double()
    whole = torch.tensor(gaps).double()
    return Faithfulness(share * whole, whole, nothing, torch.empty(0), float("nan"), (), ())


def test_a_gap_that_is_not_told_apart_from_zero_is_nothing_to_be_faithful_to() -> None:
    weak = judged([3.0, -2.5, 1.0, -1.4])
    assert not weak.sound
    assert repr(weak).startswith("There is nothing to be faithful to: on 4 prompts the metric of the model is +0.025 [")
    low, high = weak.gap_interval()
    assert low < 0 < high
    summary = weak.summary()
    assert summary["sound"] is False
    assert summary["magnitude"] is None
    firm = judged([3.0, 2.5, 1.0, 1.4])
    assert firm.sound
    assert repr(firm).startswith("Faithfulness 0.900")
    assert judged([2.0]).sound  # one prompt has no interval


def test_circuits_of_a_list_are_judged_as_they_are_alone() -> None:
    m, base, source = asked("gpt2")
    graph = interp.edges(m, base=base, source=source, metric=difference, method="eap").graph
    some = [interp.Circuit(graph, graph.mask(graph.edges[::every])) for every in (2, 3)]
    how: dict[str, Any] = {"base": base, "source": source, "metric": difference, "random": 3, "parts": 4}
    told: list[int] = []
    both = interp.faithfulness(m, some, **how, tell=told.append)
    for one, found in zip(some, both, strict=True):
        alone = interp.faithfulness(m, one, **how)
        assert alone.f == pytest.approx(found.f, abs=1e-9)
        assert alone.random.tolist() == pytest.approx(found.random.tolist(), abs=1e-9)
        assert alone.minimality == pytest.approx(found.minimality, abs=1e-9)
    assert told == list(range(1, len(told) + 1))
