"""Edge scores are their papers' definitions, in float64; grouped heads sum; memory stays that of a block."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from edge_oracle import LENGTH, Oracle, Wide, asked, attached, difference
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import interp
from interp.circuits.graph import changes
from interp.circuits.graph.nodes import Graph
from interp.hooks.errors import InputsError, ModelError
from interp.metrics.shipped import KL, Accuracy, LogitDifference
from interp.zoo.families import tiny

FAMILIES = ["gpt2", "gpt_neox", "llama", "gemma2", "opt", "vit", "llava"]


def sampled(e: interp.circuits.Edges) -> list[tuple[str, str, Tensor]]:
    """An edge into every kind of receiver, from senders of every kind, with their scores."""
    kept: dict[str, tuple[str, str, Tensor]] = {}
    for n, (u, v) in enumerate(e.graph.edges):
        sender, receiver = e.graph.senders[u], e.graph.receivers[v]
        if receiver.layer != 0 and sender.component == {"q_in": "attention", "k_in": "mlp_write"}.get(
            receiver.component, sender.component
        ):
            kept[receiver.component] = str(sender), str(receiver), e.values[n]
    return list(kept.values())


def near(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, atol=1e-8, rtol=1e-6)


@pytest.mark.parametrize("name", ["llama", "gemma2"])
def test_the_oracle_computes_in_float64_all_the_way(name: str) -> None:
    """A step of 1e-7 is lost in float32 and moves a float64 run by as much as its slope says."""
    m, base, _ = asked(name)
    site = "L0.mlp_write"
    write = m.run(base, record=site)[site]

    def moved(size: float) -> Tensor:
        return difference(m.run(base, edits=[interp.Set(site, write + size * write)])["logits"], None)

    with Wide():
        small, large = ((moved(size) - moved(-size)) / (2 * size) for size in (1e-7, 1e-5))
        near(small, large)
    rounded = (moved(1e-7) - moved(-1e-7)) / 2e-7
    assert float((rounded - large).abs().max()) > 1e-3


@pytest.mark.parametrize("name", FAMILIES)
def test_eap_is_the_slope_of_every_edge(name: str) -> None:
    m, base, source = asked(name)
    with Wide():
        e = interp.edges(m, base=base, source=source, metric=difference, method="eap")
        oracle = Oracle(m, base, source)
        for sender, receiver, found in sampled(e):
            near(found, oracle.slope(sender, receiver))


@pytest.mark.parametrize("name", ["gpt2", "llama", "gemma2"])
def test_eap_ig_is_the_mean_slope_on_the_midpoints_between_the_embeddings(name: str) -> None:
    m, base, source = asked(name)
    with Wide():
        e = interp.edges(m, base=base, source=source, metric=difference, method="eap-ig", steps=2)
        start, end = (m.run(x, record="embed")["embed"] for x in (base, source))
        points = [Oracle(m, base, source, (interp.Set("embed", start + a * (end - start)),)) for a in (0.25, 0.75)]
        for sender, receiver, found in sampled(e):
            near(found, torch.stack([point.slope(sender, receiver) for point in points]).mean(0))
    assert e.meta["grid"] == [0.25, 0.75]


def test_eap_ig_activations_moves_each_group_of_senders() -> None:
    m, base, source = asked("gpt2")
    e = interp.edges(m, base=base, source=source, metric=difference, method="eap-ig-activations", steps=2)
    old, new = (m.run(x, record=["L*.z", "L*.mlp_write"]) for x in (base, source))
    for sender, site in (("L0.H2", "L0.z"), ("L0.mlp_write", "L0.mlp_write"), ("L1.H0", "L1.z")):
        edits = [interp.Set(site, old[site] + alpha * (new[site] - old[site])) for alpha in (0.25, 0.75)]
        points = [Oracle(m, base, source, (edit,)) for edit in edits]
        receivers = ["logits", "L1.mlp_in"] + (["L1.H1.q_in", "L1.K3.v_in"] if sender.startswith("L0") else [])
        for receiver in receivers:
            expected = torch.stack([point.slope(sender, receiver) for point in points]).mean(0)
            torch.testing.assert_close(e[f"{sender}->{receiver}"], expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["gpt2", "gpt_neox", "llama", "gemma2", "vit"])
def test_exact_scores_are_full_passes(name: str) -> None:
    m, base, source = asked(name)
    e = interp.edges(m, base=base, source=source, metric=difference, method="exact")
    oracle = Oracle(m, base, source)
    for sender, receiver, found in sampled(e):
        torch.testing.assert_close(found, oracle.exact(sender, receiver), atol=1e-6, rtol=1e-5)


def test_relp_is_eap_under_the_rules() -> None:
    m, base, source = asked("llama")
    e = interp.edges(m, base=base, source=source, metric=difference, method="relp")
    assert e.meta["rules"] == ("ln", "identity", "half")
    plain = interp.edges(m, base=base, source=source, metric=difference, method="eap")
    assert not torch.allclose(e.values, plain.values, rtol=0.01)
    by_head = interp.attribute(m, base=base, source=source, metric=difference, sites="L*.H*.z", method="relp", verify=0)
    for n, site in enumerate(by_head.sites):  # what a head's edges say together is what the head says
        u = e.graph.senders.index(m.anatomy.one(site.removesuffix(".z")))
        total = torch.stack([e.values[k] for k, (s, _) in enumerate(e.graph.edges) if s == u]).sum(0)
        torch.testing.assert_close(total, by_head.values[n], atol=1e-4, rtol=1e-3)


def test_information_flow_is_its_definition() -> None:
    m, base, _ = asked("gpt2")
    e = interp.edges(m, base=base, metric=difference, method="flow")
    tape = m.run(base, record=["embed", "L*.result", "L*.mlp_write", "L1.resid_pre", "L1.resid_post"])
    heads = [tape["L0.result"][:, :, h] for h in range(4)]
    writes, into = [tape["embed"], *heads, tape["L0.mlp_write"]], tape["L1.resid_pre"]
    near = torch.stack([(into.abs().sum(-1) - (into - w).abs().sum(-1)).clamp(min=0) for w in writes])
    share = (near / near.sum(0)).mean(-1)
    for n, sender in enumerate(("embed", "L0.H0", "L0.H1", "L0.H2", "L0.H3", "L0.mlp_write")):
        for receiver in ("L1.H2.q_in", "L1.K0.k_in"):
            torch.testing.assert_close(e[f"{sender}->{receiver}"], share[n])
    assert bool((e.values >= 0).all())


def ungrouped(m: interp.Model) -> interp.Model:
    """The same function with a k and v head of its own for every query head."""
    wide = tiny("llama", dtype=torch.float64)
    state, group = m.module.state_dict(), 2
    config = type(wide.config)(**{**wide.config.to_dict(), "num_key_value_heads": 4})
    with torch.random.fork_rng(devices=[]):
        made = type(wide)(config).double().eval()
    for name, value in state.items():
        if "k_proj" in name or "v_proj" in name:
            by_head = value.unflatten(0, (2, -1))
            state[name] = by_head.repeat_interleave(group, 0).flatten(0, 1)
    made.load_state_dict(state)
    return interp.attach(made)


@pytest.mark.parametrize("method", ["eap", "eap-ig"])
def test_a_kv_heads_score_is_the_sum_over_its_group(method: str) -> None:
    m, base, source = asked("llama")
    how = {"base": base, "source": source, "metric": difference, "method": method, "steps": 2}
    e, wide = interp.edges(m, **how), interp.edges(ungrouped(m), **how)
    assert torch.equal(e.base, wide.base) or torch.allclose(e.base, wide.base)
    for part in "kv":
        for kv in (0, 1):
            mine = e[f"L0.H1->L1.K{kv}.{part}_in"]
            theirs = sum(wide[f"L0.H1->L1.K{2 * kv + n}.{part}_in"] for n in (0, 1))
            torch.testing.assert_close(mine, theirs, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(e["L0.H1->L1.H3.q_in"], wide["L0.H1->L1.H3.q_in"])


def test_the_graph_has_the_edges_it_should() -> None:
    grouped, parallel = (
        Graph.of(m.anatomy, m.anatomy.tower(None, text="")) for m in map(attached, ("llama", "gpt_neox"))
    )
    assert len(grouped.senders) == 11
    assert len(grouped.edges) == (8 * 1 + 5) + (8 * 6 + 10) + 11
    assert len(parallel.edges) == (12 + 1) * 1 + (12 + 1) * 6 + 11
    with pytest.raises(interp.InterpError, match="does not come before"):
        grouped.edge("L1.H0", "L0.mlp_in")
    with pytest.raises(interp.InterpError, match="Did you mean"):
        grouped.edge("L1.H9", "logits")


def test_rows_are_scored_apart_and_padding_counts_for_nothing() -> None:
    m = attached("llama")
    base, source = (torch.randint(5, 90, (3, LENGTH)) for _ in range(2))
    e = interp.edges(m, base={"input_ids": base}, source={"input_ids": source}, metric=difference, method="eap")
    one = interp.edges(
        m, base={"input_ids": base[1:2]}, source={"input_ids": source[1:2]}, metric=difference, method="eap"
    )
    torch.testing.assert_close(e.values[:, 1:2], one.values)
    mask = torch.tensor([[0, 0, 1, 1, 1, 1, 1]])
    pad = torch.zeros(1, 2, dtype=torch.long)
    long = {"input_ids": torch.cat([pad, base[1:2]], 1), "attention_mask": mask}
    other = {"input_ids": torch.cat([pad + 7, source[1:2]], 1), "attention_mask": mask}
    padded = interp.edges(m, base=long, source=other, metric=difference, method="eap")
    torch.testing.assert_close(padded.values, one.values, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("name", ["gpt2", "gemma2"])
@pytest.mark.parametrize("method", ["eap-ig", "eap-ig-activations", "relp"])
def test_rows_walked_one_by_one_give_the_same_scores(name: str, method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    m = attached(name)
    base, source = ({"input_ids": torch.randint(5, 90, (3, LENGTH)), "attention_mask": torch.ones(3, LENGTH).long()}
                    for _ in range(2))  # fmt: skip
    if name == "gpt2":
        base["attention_mask"][1, :2] = source["attention_mask"][1, :2] = 0
    how: dict[str, Any] = {"base": base, "source": source, "metric": difference, "method": method, "steps": 1}
    whole = interp.edges(m, **how)
    monkeypatch.setattr(changes, "GRAPH", 0)
    pair = changes.GraphPair(m, base, source, difference)
    assert pair.parts() == [slice(0, 1), slice(1, 2), slice(2, 3)]
    apart = interp.edges(m, **how)
    torch.testing.assert_close(apart.values, whole.values, atol=1e-9, rtol=1e-9)
    torch.testing.assert_close(apart.base, whole.base)
    torch.testing.assert_close(apart.source, whole.source)


def test_rows_that_share_something_are_run_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(changes, "GRAPH", 0)
    for name, source, count in (("gpt2", None, 2), ("gpt2", "zero", 2), ("gpt2", "mean", 1), ("vit", None, 2),
                                ("llava", None, 1)):  # fmt: skip
        m, base, other = asked(name)
        assert len(changes.GraphPair(m, base, source or other, difference).parts()) == count, (name, source)


class Largest(TorchDispatchMode):
    """The largest tensor that any operation gave."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0
        self.ending: dict[int, int] = {}
        """By the size of the last axis."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for one in out if isinstance(out, (tuple, list)) else [out]:
            if torch.is_tensor(one):
                self.elements = max(self.elements, one.untyped_storage().nbytes() // max(one.element_size(), 1))
                last = one.shape[-1] if one.ndim else 0
                self.ending[last] = max(self.ending.get(last, 0), one.numel())
        return out


@pytest.mark.parametrize("method", ["eap", "eap-ig", "eap-ig-activations", "relp"])
def test_nothing_of_positions_nodes_and_width_is_ever_made(method: str) -> None:
    m = attached("llama")
    base, source = ({"input_ids": torch.randint(5, 90, (2, 60))} for _ in range(2))
    metric = LogitDifference(((7,),) * 2, ((8,),) * 2)
    interp.edges(m, base=base, source=source, metric=metric, method=method, steps=1)
    with Largest() as seen:
        interp.edges(m, base=base, source=source, metric=metric, method=method, steps=1)
    width = m.anatomy.tower(None, text="").width
    assert seen.elements < 2 * 60 * 11 * width
    assert seen.elements <= 2 * 60 * 9 * width  # the slopes of what one layer's 4 + 2 + 2 heads and its MLP read
    vocabulary = m.module.config.vocab_size
    assert seen.ending.get(vocabulary, 0) < 2 * 60 * vocabulary  # of the logits only what the metric reads


def test_zero_and_mean_are_sources() -> None:
    m, base, _ = asked("gpt2")
    e = interp.edges(m, base=base, source="zero", metric=difference, method="eap")
    tape = m.run(base, record=["L1.mlp_write", "L1.resid_post"], grad=True)
    (slope,) = torch.autograd.grad(difference(tape["logits"], None).sum(), tape["L1.resid_post"])
    expected = (-tape["L1.mlp_write"] * slope).sum((1, 2)).detach()
    torch.testing.assert_close(e["L1.mlp_write->logits"], expected)
    mean = interp.edges(m, base=base, source="mean", metric=difference, method="eap")
    write = tape["L1.mlp_write"].detach()
    torch.testing.assert_close(
        mean["L1.mlp_write->logits"], ((write.mean((0, 1)) - write) * slope).sum((1, 2)).detach()
    )


def test_a_result_is_saved_and_read_back(tmp_path: Any) -> None:
    m, base, source = asked("llama")
    e = interp.edges(m, base=base, source=source, metric=difference, method="eap")
    e.save(tmp_path / "e")
    back = interp.open(tmp_path / "e")
    assert isinstance(back, interp.circuits.Edges)
    assert back.graph == e.graph
    assert torch.equal(back.values, e.values)
    assert back.direction == e.direction
    best = e.top(1).iloc[0]
    assert abs(best["score"]) == float(e.mean.abs().max())
    assert f"{best['sender']}->{best['receiver']}" in repr(e)
    with pytest.raises(interp.InterpError, match=r"edges\.json"):
        interp.circuits.Edges.load(tmp_path)


def test_what_cannot_be_is_refused() -> None:
    m, base, source = asked("gpt2")
    how: dict[str, Any] = {"base": base, "source": source, "metric": difference}
    with pytest.raises(InputsError, match="no edge method"):
        interp.edges(m, **{**how, "method": "magic"})
    with pytest.raises(InputsError, match="give source="):
        interp.edges(m, base=base, metric=difference)
    with pytest.raises(InputsError, match="needs two runs"):
        interp.edges(m, base=base, source="zero", metric=difference, method="eap-ig")
    with pytest.raises(InputsError, match="at least one step"):
        interp.edges(m, method="eap-ig", steps=0, **how)
    with pytest.raises(InputsError, match="carries no gradient"):
        interp.edges(m, base=base, source=source, metric=Accuracy(((7,),) * 2), method="eap")
    own = KL.to(m.run(base)["logits"], m.inputs(base))
    with pytest.raises(InputsError, match="method='eap-ig'"):
        interp.edges(m, base=base, source=source, metric=own, method="eap")
    assert float(interp.edges(m, base=base, source=source, metric=own, steps=2).mean.abs().max()) > 0
    with pytest.raises(InputsError, match="line up"):
        interp.edges(m, base=base, source={"input_ids": source["input_ids"][:, 1:]}, metric=difference)
    for name, why in (("bert", "do not add up"), ("t5", "several attentions"), ("gptj", "not seen")):
        other, x, y = asked(name)
        with pytest.raises(ModelError, match=why):
            interp.edges(other, base=x, source=y, metric=difference, method="eap")
    with pytest.raises(interp.InterpError, match="fraction= or n="):
        interp.edges(m, method="eap", **how).circuit()
