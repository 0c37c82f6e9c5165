"""Weights read through the model are the weights; scores are those of whole matrices in float64; planted ones rank."""

from __future__ import annotations

from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from models import attached
from torch import Tensor

import interp
from interp.heads.weights.matrices import HeadMatrices
from interp.hooks.errors import InputsError, ModelError, SiteError
from interp.kernels.errors import InterpError
from interp.planted import build, key
from interp.results.weights import RESIDUAL, VOCABULARY, HeadCircuits


@cache
def planted() -> interp.Model:
    return interp.attach(*build("planted-decoder"))


@cache
def of_small() -> HeadCircuits:
    return interp.heads.head_circuits(attached("gpt2"), top=2)


def matrices(m: interp.Model) -> HeadMatrices:
    return HeadMatrices(m, m.anatomy.tower(None, text=""))


def centred(w: Tensor) -> Tensor:
    return w - w.mean(0)


def of_gpt2(m: interp.Model, layer: int) -> dict[str, Tensor]:
    block = m.module.transformer.h[layer]
    weights = (block.ln_1.weight.double()[:, None] * block.attn.c_attn.weight.double()).detach().split(32, 1)
    found = {n: centred(w).unflatten(1, (4, 8)).transpose(0, 1) for n, w in zip("qkv", weights, strict=True)}
    return {**found, "o": block.attn.c_proj.weight.double().detach().unflatten(0, (4, 8))}


def of_llama(m: interp.Model, layer: int) -> dict[str, Tensor]:
    block = m.module.model.layers[layer]
    gain, attn = block.input_layernorm.weight.double().detach()[:, None], block.self_attn
    found = {
        n: (gain * getattr(attn, f"{n}_proj").weight.double().detach().T).unflatten(1, (-1, 8)).transpose(0, 1)
        for n in "qkv"
    }
    shared = {n: found[n].repeat_interleave(2, 0) for n in "kv"}
    return {**found, **shared, "o": attn.o_proj.weight.double().detach().T.unflatten(0, (4, 8))}


def of_phi3(m: interp.Model, layer: int) -> dict[str, Tensor]:
    block = m.module.model.layers[layer]
    fused = (block.input_layernorm.weight[:, None] * block.self_attn.qkv_proj.weight.T).double().detach()
    q, k, v = (w.unflatten(1, (-1, 8)).transpose(0, 1) for w in fused.split([32, 16, 16], 1))
    o = block.self_attn.o_proj.weight.double().detach().T.unflatten(0, (4, 8))
    return {"q": q, "k": k.repeat_interleave(2, 0), "v": v.repeat_interleave(2, 0), "o": o}


@pytest.mark.parametrize(("name", "by_hand"), [("gpt2", of_gpt2), ("llama", of_llama), ("phi3", of_phi3)])
def test_matrices_are_the_weights_with_the_norm_folded_in(name: str, by_hand: Any) -> None:
    m = attached(name)
    found = matrices(m)
    for layer in (0, 1):
        for component, want in by_hand(m, layer).items():
            torch.testing.assert_close(getattr(found.of(layer), component), want, atol=2e-6, rtol=1e-5)


def test_layers_asked_about_one_by_one_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    m = attached("llama")
    together = matrices(m)
    together.of(0)
    assert set(together._layers) == {0, 1}
    monkeypatch.setattr(import_module("interp.heads.weights.matrices"), "NUMBERS", 1)
    monkeypatch.setattr(import_module("interp.heads.weights.matrices"), "TOGETHER", 40)
    alone = matrices(m)
    for layer in (0, 1):
        for name in "qkvo":
            torch.testing.assert_close(getattr(alone.of(layer), name), getattr(together.of(layer), name))


def test_a_norm_behind_the_output_projection_is_in_w_o() -> None:
    m = attached("gemma2")
    block = m.module.model.layers[1]
    raw = block.self_attn.o_proj.weight.double().detach().T
    want = raw * (1 + block.post_attention_layernorm.weight.double().detach())
    got = matrices(m).of(1).o.flatten(0, 1)
    ratio = (got * want).sum() / want.square().sum()
    assert float(ratio) > 0
    torch.testing.assert_close(got, ratio * want, atol=1e-5, rtol=1e-4)


def whole(m: interp.Model, n: int) -> Tensor:
    """W_E W_V W_O W_U of one GPT-2 head, every entry."""
    w = of_gpt2(m, n // 4)
    spoken = centred(m.module.transformer.ln_f.weight.double().detach()[:, None] * m.module.lm_head.weight.double().T)
    made: Tensor = m.module.transformer.wte.weight.double() @ w["v"][n % 4] @ w["o"][n % 4] @ spoken
    return made.detach()


def test_copying_scores_are_those_of_all_eigenvalues() -> None:
    m, found = attached("gpt2"), of_small()
    for n in range(8):
        values = torch.linalg.eigvals(whole(m, n))
        want = float(values.real.sum() / values.abs().sum())
        assert float(found.scores[VOCABULARY][n]) == pytest.approx(want, abs=1e-4)
        largest = values[values.abs().argsort(descending=True)][:8].abs()
        torch.testing.assert_close(found.eigenvalues[VOCABULARY][n].abs(), largest, atol=1e-4, rtol=1e-4)
        w = of_gpt2(m, n // 4)
        inside = torch.linalg.eigvals(w["v"][n % 4] @ w["o"][n % 4])
        assert float(found.scores[RESIDUAL][n]) == pytest.approx(
            float(inside.real.sum() / inside.abs().sum()), abs=1e-5
        )


def test_tokens_are_the_largest_and_smallest_entries_of_the_whole_circuit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(import_module("interp.heads.weights.word_pairs"), "ROWS", 50)
    m = attached("gpt2")
    found = interp.heads.head_circuits(m, "L1.H2", top=6)
    every = whole(m, 6)
    every = every - every.mean(1, keepdim=True)
    for sign, name in ((1, "promoted"), (-1, "suppressed")):
        flat = (sign * every).flatten().topk(6).indices.tolist()
        assert [(int(s), int(t)) for s, t, _ in found.pairs[name][0].tolist()] == [divmod(i, 160) for i in flat]
        want = [float(every.flatten()[i]) for i in flat]
        assert found.pairs[name][0, :, 2].tolist() == pytest.approx(want, abs=1e-4)
    assert found.own is not None
    assert float(found.own) == pytest.approx(float((every.argmax(1) == torch.arange(160)).double().mean()))


def test_composition_is_that_of_whole_matrices() -> None:
    m = attached("llama")
    found = interp.heads.head_circuits(m, draws=3)
    low, high = of_llama(m, 0), of_llama(m, 1)
    norm = torch.linalg.norm
    for a in range(4):
        ov = low["v"][a] @ low["o"][a]
        for b in range(4):
            qk = high["q"][b] @ high["k"][b].T
            for side, other in (("q", qk), ("k", qk.T), ("v", high["v"][b] @ high["o"][b])):
                want = float(norm(ov @ other) / norm(ov) / norm(other))
                assert float(found.composition[side][a, 4 + b]) == pytest.approx(want, abs=1e-5)
    for side in "qkv":
        assert float(found.composition[side][4:].abs().max()) == 0
        assert float(found.composition[side][:, :4].abs().max()) == 0


def test_the_baseline_is_what_random_matrices_give() -> None:
    random = torch.Generator().manual_seed(5)
    draws = []
    for _ in range(200):
        v, o, q, k = (torch.randn(*shape, generator=random, dtype=torch.double) for shape in ((32, 8), (8, 32)) * 2)
        draws.append(float(torch.linalg.norm(v @ o @ q @ k) / torch.linalg.norm(v @ o) / torch.linalg.norm(q @ k)))
    found = interp.heads.head_circuits(attached("gpt2"), draws=50)
    assert float(found.baseline["q"][0, 4]) == pytest.approx(sum(draws) / len(draws), rel=0.05)


def test_planted_circuits_are_in_the_weights() -> None:
    found = interp.heads.head_circuits(planted())
    inside = {(e.sender, e.receiver) for e in key("planted-decoder").edges if e.receiver != "logits"}
    frame = found.pairings(len(inside))
    assert {
        (a, f"{b}.{side}") for a, b, side in zip(frame["sender"], frame["receiver"], frame["side"], strict=True)
    } == inside
    scores = dict(zip(found.sites, found.scores[VOCABULARY].tolist(), strict=True))
    assert {site for site, score in scores.items() if score > 0.99} == {"L1.H2", "L1.H4"}
    assert all(scores[site] == 0 for site in key("planted-decoder").null)
    tokens = interp.heads.head_circuits(planted(), "L1.H4", top=5).tokens("L1.H4")
    promoted = tokens[tokens["sign"] == "promoted"]
    assert (promoted["source"] == promoted["target"]).all()


def test_the_circuit_of_a_trained_model_is_in_its_weights() -> None:
    m = interp.load("zoo:induction")
    found = interp.heads.head_circuits(m)
    best = found.pairings(6)
    assert set(best["side"]) == {"k"}
    assert set(best["receiver"]) == {f"L1.H{h}" for h in range(6)}
    before = interp.head_roles(m, n=3, kinds=["previous token"]).top(1, kind="previous token")["site"].item()
    assert set(best["sender"]) == {before}


def test_a_result_can_be_saved_read_and_drawn(tmp_path: Path) -> None:
    found = of_small()
    again = interp.open(found.save(tmp_path / "circuits"))
    assert again.to_frame().equals(found.to_frame())
    assert again.tokens("L0.H1").equals(found.tokens("L0.H1"))
    assert again.pairings(5).equals(found.pairings(5))
    assert torch.equal(again.eigenvalues[RESIDUAL], found.eigenvalues[RESIDUAL])
    assert {"site", "tower", "layer", "head", "method", "estimate", "low", "high", "n"} <= set(found.to_frame().columns)
    assert len(found.plot().data) == 2
    assert found.plot("k").data[0].z.shape == (8, 8)
    assert "highest" in repr(found)


def test_nothing_stays_on_the_model_and_the_answer_is_the_same_twice() -> None:
    m = attached("gpt2")
    before = {name: value.clone() for name, value in m.module.state_dict().items()}
    first, second = interp.heads.head_circuits(m), of_small()
    assert torch.equal(first.composition["q"], second.composition["q"])
    assert all(torch.equal(before[name], value) for name, value in m.module.state_dict().items())
    assert m.handles() == []


def test_what_the_weights_do_not_say_is_said() -> None:
    qwen = interp.heads.head_circuits(attached("qwen3"))
    assert set(qwen.composition) == {"v"}
    assert "normalised" in qwen.left_out["composition"]
    picture = interp.heads.head_circuits(attached("vit"))
    assert set(picture.scores) == {RESIDUAL}
    with pytest.raises(InterpError, match="embeddings"):
        picture.tokens()
    masked = interp.heads.head_circuits(attached("bert"))
    assert "more than one matrix" in masked.left_out["tokens"]
    one = interp.heads.head_circuits(attached("gpt2"), "L0.H1")
    with pytest.raises(InterpError, match="one layer"):
        one.pairings()
    refused: list[tuple[str, dict[str, Any], type[Exception], str]] = [
        ("deepseek_v3", {}, ModelError, "normalised after the projection"),
        ("gpt2", {"heads": "L9"}, SiteError, "no layer"),
        ("gpt2", {"draws": 0}, InputsError, "at least one draw"),
        ("t5", {"heads": "cross.L*"}, SiteError, "cross-attention"),
        ("qwen2_vl", {"heads": "vision.L*"}, ModelError, "unit vectors"),
        ("swin", {}, ModelError, "one width"),
        ("swin", {"heads": "L0"}, ModelError, "windows"),
    ]
    for name, how, kind, says in refused:
        with pytest.raises(kind, match=says):
            interp.heads.head_circuits(attached(name), **how)
    with pytest.raises(InterpError, match="no weights of"):
        one.tokens("L1.H1")
