"""Circuits in other tools' files: what is written is what they ask for, and comes back as the same circuit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from edge_oracle import asked, attached, difference

import interp
from interp.circuits.graph.changes import GraphPair
from interp.circuits.graph.nodes import Graph
from interp.circuits.graph.running import Runner

FORMS = ("eap-ig", "circuit-kit", "circuit-tracer")


def circuit(name: str) -> interp.Circuit:
    m = attached(name)
    graph = Graph.of(m.anatomy, m.anatomy.tower(None, text=""))
    draw = torch.Generator().manual_seed(3)
    mask = (torch.rand(graph.exists.shape, generator=draw) < 0.2) & graph.exists
    scores = torch.where(graph.exists, torch.randn(mask.shape, generator=draw, dtype=torch.float64), torch.nan)
    return interp.Circuit(graph, mask, scores=scores)


def written(path: Path, form: Any, name: str = "gpt2") -> Any:
    return json.loads(circuit(name).save(path / f"{form}.json", form=form, tokens=("a", " b")).read_text("utf-8"))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", ["gpt2", "llama", "gpt_neox"])
def test_a_circuit_comes_back(name: str, form: Any, tmp_path: Path) -> None:
    made = circuit(name)
    back = interp.Circuit.load(made.save(tmp_path / "c.json", form=form), graph=made.graph)
    assert back == made
    assert made.scores is not None
    assert back.scores is not None
    mine, theirs = made.scores[made.mask], back.scores[made.mask]
    if form == "circuit-kit":  # magnitudes, the largest of a group's shares being 1
        assert float(theirs.min()) >= 0
        if name != "llama":
            torch.testing.assert_close(theirs, mine.abs() / mine.abs().max())
    else:
        torch.testing.assert_close(theirs, mine)


def test_eap_ig_can_build_its_graph_from_the_cfg(tmp_path: Path) -> None:
    """Its reader makes arrays of `d_model` for every node, then goes through nodes and edges by name."""
    m, base, source = asked("gpt2")
    e = interp.edges(m, base=base, source=source, metric=lambda logits, _: logits[:, -1, 0], method="eap")
    said = json.loads(e.circuit(n=9).save(tmp_path / "c.json").read_text("utf-8"))
    assert said["cfg"] == {"n_layers": 2, "n_heads": 4, "parallel_attn_mlp": False, "d_model": m.module.config.n_embd}
    nodes = ["input", *(f"{kind}" for n in range(2) for kind in (*(f"a{n}.h{h}" for h in range(4)), f"m{n}")), "logits"]
    assert list(said["nodes"]) == nodes
    assert all(set(one) == {"score", "in_graph"} for one in said["edges"].values())
    assert len(said["edges"]) == 12 * 1 + 5 + 12 * 6 + 10 + 11  # by layer q, k, v and MLP, and the logits
    assert interp.Circuit.load(tmp_path / "c.json").graph.width == said["cfg"]["d_model"]
    e.save(tmp_path / "e")
    assert interp.open(tmp_path / "e").graph.width == said["cfg"]["d_model"]


def test_the_viewer_gets_nodes_and_links_as_it_asks(tmp_path: Path) -> None:
    said = written(tmp_path, "circuit-tracer")
    assert set(said["metadata"]) >= {"slug", "scan", "transcoder_list", "prompt_tokens", "prompt"}
    assert said["metadata"]["prompt_tokens"] == ["a", " b"]
    assert set(said["qParams"]) == {"pinnedIds", "supernodes", "linkType", "clickedId", "sg_pos"}
    ids = [node["node_id"] for node in said["nodes"]]
    assert len(set(ids)) == len(ids)
    for node in said["nodes"]:
        kinds = {"node_id": str, "feature": int, "layer": str, "ctx_idx": int, "feature_type": str, "jsNodeId": str}
        assert all(type(node[key]) is kind for key, kind in kinds.items())
        assert node["ctx_idx"] == 1
    assert {end for link in said["links"] for end in (link["source"], link["target"])} == set(ids)
    assert all(type(link["weight"]) is float for link in said["links"])
    assert len(said["links"]) == len(circuit("gpt2"))


def test_an_artifact_keeps_to_its_schema(tmp_path: Path) -> None:
    said = written(tmp_path, "circuit-kit")
    assert said["version"] == "1.0"
    assert {"model_id", "discovery_method", "task", "dataset", "granularity", "threshold"} <= set(said["metadata"])
    for node in said["nodes"].values():
        assert set(node) == {"layer_idx", "node_type", "index", "importance", "name"}
        assert node["node_type"] in {"attn_head", "mlp_layer", "embedding", "residual"}
        assert 0 <= node["importance"] <= 1
        assert node["layer_idx"] >= 0
    for edge in said["edges"].values():
        assert set(edge) == {"src_id", "dst_id", "weight", "attribution"}
        assert 0 <= edge["weight"] <= 1
        assert {edge["src_id"], edge["dst_id"]} <= set(said["nodes"])


def test_files_of_something_else_are_refused(tmp_path: Path) -> None:
    made = circuit("gpt2")
    with pytest.raises(interp.InterpError, match=r"as \.json"):
        made.save(tmp_path / "c.pt", form="circuit-kit")
    said = written(tmp_path, "circuit-tracer")
    for change, why in (
        ({"graph": None}, "transcoder features"), ({"links": [{**said["links"][0], "sender": "L9.H9"}]}, "no sender")
    ):  # fmt: skip
        file = tmp_path / "wrong.json"
        file.write_text(json.dumps({k: v for k, v in {**said, **change}.items() if v is not None}))
        with pytest.raises(interp.InterpError, match=why):
            interp.Circuit.load(file)
    kit = written(tmp_path, "circuit-kit")
    kit["metadata"]["algorithm_params"] = {}
    file.write_text(json.dumps(kit))
    with pytest.raises(interp.InterpError, match="no n_heads"):
        interp.Circuit.load(file)


def test_scores_of_nodes_come_back_without_their_signs(tmp_path: Path) -> None:
    scores = {"L0.H1": 0.5, "L3.mlp_write": -0.25, "L11.H0.z": 0.0}
    file = interp.formats.write_node_scores(tmp_path / "s.json", scores, task="ioi", model="gpt2")
    said = json.loads(file.read_text("utf-8"))
    assert said["node_scores"] == {"A0.1": 0.5, "MLP 3": 0.25, "A11.0": 0.0}
    assert interp.formats.node_scores(file) == {"L0.H1": 0.5, "L3.mlp_write": 0.25, "L11.H0": 0.0}
    changes: tuple[tuple[dict[str, Any], str], ...] = (
        ({"level": "neuron"}, "scores of nodes"), ({"node_scores": {"L3.42": 1.0}}, "expected nodes"),
        ({"node_scores": {"A0.1": -1}}, "0 or more"), ({"node_scores": {}}, "at least one"),
    )  # fmt: skip
    for change, why in changes:
        file.write_text(json.dumps({**said, **change}))
        with pytest.raises(interp.InterpError, match=why):
            interp.formats.node_scores(file)


def test_positions_can_stay_where_embeddings_are_ablated_as_in_eap_ig(monkeypatch: pytest.MonkeyPatch) -> None:
    m, base, source = asked("gpt2")
    pair = GraphPair(m, base, source, difference)
    words, places = m.module.transformer.wte, m.module.transformer.wpe
    length = base["input_ids"].shape[1]
    positions = places(torch.arange(length)).detach().expand(2, -1, -1)
    tokens = words(source["input_ids"]).detach()
    for ablation, left in (("zero", 0.0), ("mean", tokens.mean((0, 1)))):
        there = Runner(pair, ablation, "tokens").there.embed  # type: ignore[arg-type]
        torch.testing.assert_close(there, positions + left)
        assert not torch.allclose(there, Runner(pair, ablation).there.embed)  # type: ignore[arg-type]
    circuit = interp.Circuit(pair.graph, pair.graph.exists.clone())
    how: Any = {"base": base, "source": source, "metric": difference, "random": 0, "parts": 0}
    for ablation in ("resample", "zero"):
        found = interp.faithfulness(m, circuit, ablation=ablation, embed="tokens", **how)
        assert found.f == pytest.approx(1)
    scaled = torch.nn.Embedding.from_pretrained(2 * words.weight.detach())
    monkeypatch.setattr(m.module, "get_input_embeddings", lambda: scaled)
    with pytest.raises(interp.InterpError, match="depends on the tokens"):
        Runner(pair, "zero", "tokens")
    m, base, source = asked("vit")
    with pytest.raises(interp.InterpError, match="table of token embeddings"):
        Runner(GraphPair(m, base, source, difference), "zero", "tokens")
