"""Circuits as values and in files; discovery edge by edge is the textbook loop; a circuit's run is the model's."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch
from edge_oracle import asked, difference
from torch import Tensor

import interp
from interp.circuits.graph.changes import GraphPair
from interp.circuits.graph.running import Runner
from interp.circuits.judged import Faithfulness
from interp.hooks.errors import InputsError, SiteError
from interp.reading import FormatError

FAMILIES = ["gpt2", "llama", "gemma2", "vit"]


def runner(name: str) -> Runner:
    m, base, source = asked(name)
    return Runner(GraphPair(m, base, source, difference, None))


def circuit_of(name: str, *, every: int = 3) -> interp.Circuit:
    """Every third edge of a tiny model, with scores that tell edges apart."""
    m, base, source = asked(name)
    graph = GraphPair(m, base, source, difference, None).graph
    scores = torch.arange(graph.exists.numel(), dtype=torch.float64).view(graph.exists.shape) / 64 * graph.exists
    return interp.Circuit(graph, graph.mask(graph.edges[::every]), "edge", {}, scores)


@pytest.mark.parametrize("name", FAMILIES)
def test_all_edges_are_the_base_run_and_none_are_the_source_run(name: str) -> None:
    run = runner(name)
    torch.testing.assert_close(run(run.graph.exists).double(), run.base.double(), atol=2e-5, rtol=1e-5)
    nothing = run(torch.zeros_like(run.graph.exists))
    torch.testing.assert_close(nothing.double(), run.source.double(), atol=2e-5, rtol=1e-5)
    assert float((run.base - run.source).abs().max()) > 1e-3


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_a_run_without_one_edge_is_that_edge_patched(name: str) -> None:
    m, base, source = asked(name)
    run = runner(name)
    exact = interp.edges(m, base=base, source=source, metric=difference, method="exact")
    for n in range(0, len(run.graph.edges), max(1, len(run.graph.edges) // 12)):
        edge = run.graph.edges[n]
        effect = run(run.graph.exists & ~run.graph.mask([edge])).double() - run.base.double()
        torch.testing.assert_close(effect, exact.values[n].double(), atol=5e-5, rtol=1e-4)


def textbook(run: Runner, threshold: float) -> Tensor:
    """Conmy et al.'s loop as written: from the logits down, every edge is tried in a whole run, none is skipped."""
    sign = -1.0 if float(run.base.mean()) >= float(run.source.double().mean()) else 1.0
    kept = run.graph.exists.clone()
    before = sign * float(run(kept).mean())
    for v in reversed(range(kept.shape[1])):
        for u in reversed(range(kept.shape[0])):
            if kept[u, v]:
                tried = kept.clone()
                tried[u, v] = False
                now = sign * float(run(tried).mean())
                if now - before < threshold:
                    kept, before = tried, now
    return kept


@pytest.mark.parametrize("threshold", [0.003, 0.05])
def test_acdc_is_the_textbook_loop(threshold: float) -> None:
    m, base, source = asked("gpt2")
    found = interp.circuits.acdc(m, base=base, source=source, metric=difference, threshold=threshold)
    run = runner("gpt2")
    kept = run.graph.pruned(textbook(run, threshold))
    assert torch.equal(found.mask, kept)
    assert 0 < len(found) < len(run.graph.edges)
    assert found.meta["passes"] <= len(run.graph.edges) + 1


def test_a_threshold_is_positive() -> None:
    m, base, source = asked("gpt2")
    with pytest.raises(InputsError, match="positive"):
        interp.circuits.acdc(m, base=base, source=source, metric=difference, threshold=0.0)


@pytest.mark.parametrize("kind", [".json", ".pt"])
@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_files_bring_circuits_back(name: str, kind: str, tmp_path: Path) -> None:
    circuit = circuit_of(name)
    again = interp.Circuit.load(circuit.save(tmp_path / f"c{kind}"), graph=circuit.graph)
    assert again == circuit
    assert again.scores is not None
    assert circuit.scores is not None
    torch.testing.assert_close(again.scores, circuit.scores, atol=1e-5, rtol=1e-5)
    assert [path.name for path in tmp_path.iterdir()] == [f"c{kind}"]


def test_a_file_that_is_none_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("{")
    (tmp_path / "b.json").write_text('{"cfg": {}, "nodes": {}}')
    (tmp_path / "c.json").write_text(
        '{"cfg": {"n_layers": 1, "n_heads": 1}, "nodes": {}, "edges": {"a9.h9->logits": {}}}'
    )
    for name, why in (("a", "not a circuit file"), ("b", "no 'edges'"), ("c", "no edge 'a9.h9->logits'")):
        with pytest.raises(FormatError, match=why):
            interp.Circuit.load(tmp_path / f"{name}.json")
    with pytest.raises(FormatError, match="written as"):
        circuit_of("gpt2").save(tmp_path / "c.txt")


def test_two_circuits_are_compared_and_named_edges_make_one() -> None:
    third = circuit_of("gpt2")
    names = third.edges
    other = interp.Circuit.of(third.graph, edges=names[: len(names) // 2])
    said = third.compare(other)
    assert said.shared == other.edges
    assert said.second == ()
    assert said.jaccard == pytest.approx(len(other) / len(third))
    assert len(third.to_frame()) == len(third)
    with pytest.raises(SiteError):
        interp.Circuit.of(third.graph, nodes=["L9.H9"])
    nodes = interp.Circuit.of(third.graph, nodes=["embed"])
    assert nodes.nodes == ("embed",)


def test_the_drawing_is_well_formed_and_says_what_it_shows(tmp_path: Path) -> None:
    circuit = circuit_of("gpt2").pruned()
    made = circuit.draw(tmp_path / "c.svg", title="<script>alert(1)</script> & more")
    root = ElementTree.fromstring(made)
    space = root.tag.partition("}")[0] + "}"
    assert root.tag == f"{space}svg"
    assert root.findtext(f"{space}title") == "<script>alert(1)</script> & more"
    assert root.findtext(f"{space}desc")
    assert not list(root.iter(f"{space}script"))
    assert (tmp_path / "c.svg").read_text(encoding="utf-8") == made


def test_the_whole_graph_is_faithful_and_an_empty_circuit_is_not(tmp_path: Path) -> None:
    m, base, source = asked("gpt2")
    third = circuit_of("gpt2")
    whole = interp.Circuit(third.graph, third.graph.exists)
    how = {"base": base, "source": source, "metric": difference, "random": 3, "parts": 4}
    full, part = interp.faithfulness(m, [whole, third], **how)
    assert full.f == pytest.approx(1.0, abs=1e-4)
    assert full.random.tolist() == pytest.approx([1.0] * 3, abs=1e-4)
    empty = interp.faithfulness(m, interp.Circuit(third.graph, torch.zeros_like(third.mask)), **how)
    assert empty.f == pytest.approx(0.0, abs=1e-4)
    run = runner("gpt2")
    gap = float((run.base - run.source).double().mean())
    expected = float((run(third.mask) - run.source).double().mean()) / gap
    assert part.f == pytest.approx(expected, abs=1e-3)
    again = Faithfulness.load(part.save(tmp_path))
    assert again.summary() == part.summary()


def test_a_circuit_of_another_model_is_refused() -> None:
    m, base, source = asked("gpt2")
    with pytest.raises(InputsError, match="another graph"):
        interp.faithfulness(m, circuit_of("llama"), base=base, source=source, metric=difference)
