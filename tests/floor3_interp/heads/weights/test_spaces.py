"""Overlap, directions and chains of heads are those of whole matrices in float64; planted readers overlap."""

from __future__ import annotations

import math
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from models import attached, planted
from torch import Tensor

import interp
from interp.heads.weights.spaces import weights_of
from interp.hooks.errors import InputsError, ModelError

NAMES = [f"L{layer}.H{head}" for layer in range(2) for head in range(4)]


@cache
def llama() -> dict[str, dict[str, Tensor]]:
    """W_Q, W_K, W_V [d, 8] with the norm's gain and W_O [8, d], off the weights themselves."""
    found = {}
    for n, block in enumerate(attached("llama").module.model.layers):
        gain, attn = block.input_layernorm.weight.double().detach()[:, None], block.self_attn
        for h in range(4):
            ends = {"q": h, "k": h // 2, "v": h // 2}
            one = {s: gain * getattr(attn, f"{s}_proj").weight.double().detach().T[:, 8 * i : 8 * i + 8]
                   for s, i in ends.items()}  # fmt: skip
            found[f"L{n}.H{h}"] = one | {"o": attn.o_proj.weight.double().detach()[:, 8 * h : 8 * h + 8].T}
    return found


def projector(columns: Tensor) -> Tensor:
    return columns @ torch.linalg.pinv(columns)


@pytest.mark.parametrize("space", ["oq", "ok", "ov", "oo", "kk"])
def test_overlap_is_the_inner_product_of_projectors(space: str) -> None:
    found = interp.heads.head_overlap(attached("llama"), space=space)
    w = llama()
    ends = [{n: projector(w[n]["o"].T if side == "o" else w[n][side]) for n in NAMES} for side in space]
    for i, a in enumerate(NAMES):
        for j, b in enumerate(NAMES):
            if math.isnan(float(found.values[i, j])):
                assert (a == b) if space[0] == space[1] else a[:2] >= b[:2]
                continue
            assert float(found.values[i, j]) == pytest.approx(float((ends[0][a] * ends[1][b]).sum()) / 8, abs=1e-6)
    assert float(found.baseline[0, 1]) == pytest.approx(8 / 32)
    if space == "kk":  # query heads of one kv head have one key space
        assert float(found.values[0, 1]) == pytest.approx(1)


def test_the_planted_induction_head_reads_its_keys_where_the_previous_token_head_writes() -> None:
    found = interp.heads.head_overlap(planted("planted-decoder"), space="ok")
    assert found.top(3).set_index("sender").loc["L0.H1", "receiver"] == "L1.H4"


def test_directions_are_singular_vectors_of_the_whole_matrix() -> None:
    m, w = attached("llama"), llama()["L1.H2"]
    for circuit, matrix in (("ov", w["v"] @ w["o"]), ("qk", w["q"] @ w["k"].T)):
        found = interp.heads.head_directions(m, "L1.H2", circuit=circuit, directions=8, top=3)
        sizes = torch.linalg.svdvals(matrix)
        assert torch.allclose(found.sizes[0], sizes[:8], rtol=1e-5)
        assert float(found.shares.sum()) == pytest.approx(1)
        made = torch.einsum("id,i,ie->de", found.reads[0].double(), found.sizes[0], found.writes[0].double())
        assert torch.allclose(made, matrix, atol=1e-6 * float(sizes[0]))
        embedding = m.module.model.embed_tokens.weight.double()
        best = (found.reads[0, 0].double() @ embedding.T).topk(3).indices
        assert found.words[0, 0, 0, 0].tolist() == best.tolist()


def test_a_planted_head_reads_and_writes_in_words() -> None:
    found = interp.heads.head_directions(planted("planted-decoder"), "L0.H2", directions=1, top=1)
    row = found.to_frame().iloc[0]
    assert row["share"] == pytest.approx(1)
    assert "again" in (row["writes +"][0], row["writes -"][0])


@pytest.mark.parametrize(("length", "side"), [(2, "v"), (2, "k"), (3, "v"), (3, "q")])
def test_chains_are_products_of_whole_matrices(length: int, side: str) -> None:
    m = three()
    _, every = weights_of(m, "L*")
    whole = {one.name: one.v @ one.o for one in every}
    scores = {one.name: one.qk()[0] @ one.qk()[1].mT for one in every}
    last = {name: {"v": whole[name], "q": score, "k": score.mT} for name, score in scores.items()}
    found = interp.heads.virtual_heads(m, length=length, side=side, top=200, draws=3)
    assert len(found.chains) == {2: 3 * 16, 3: 64}[length]
    for chain, strength, copying in zip(found.chains, found.strength, found.copying, strict=True):
        factors = [*(whole[name] for name in chain[:-1]), last[chain[-1]][side]]
        made = torch.linalg.multi_dot(factors)
        size = math.prod(float(one.norm()) for one in factors)
        assert float(strength) == pytest.approx(float(made.norm()) / size, rel=1e-6)
        if side == "v":
            values = torch.linalg.eigvals(made)
            assert float(copying) == pytest.approx(float(values.real.sum() / values.abs().sum()), abs=1e-4)
    assert found.strength.tolist() == sorted(found.strength.tolist(), reverse=True)


@cache
def three() -> interp.Model:
    import transformers

    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=50, hidden_size=32, intermediate_size=32, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2,
    )  # fmt: skip
    return interp.attach(transformers.LlamaForCausalLM(config).eval())


def test_pictures_have_directions_without_words_and_normed_keys_are_refused() -> None:
    found = interp.heads.head_directions(attached("vit"), "L0.H1", directions=2)
    assert found.why
    assert "reads +" not in found.to_frame()
    with pytest.raises(ModelError, match="normalised"):
        interp.heads.head_overlap(attached("qwen3"), space="oq")
    assert interp.heads.head_overlap(attached("qwen3"), space="ov").to_frame()["overlap"].between(0, 1).all()


def test_they_are_saved_and_read_back(tmp_path: Path) -> None:
    m = attached("llama")
    for n, one in enumerate((interp.heads.head_overlap(m), interp.heads.head_directions(m, "L1.H*", top=2),
                             interp.heads.virtual_heads(m, length=2, draws=2))):  # fmt: skip
        one.save(tmp_path / str(n))
        again = interp.open(tmp_path / str(n))
        assert again.to_frame().equals(one.to_frame())
        assert again.plot().data
        assert repr(again) == repr(one)


@pytest.mark.parametrize(
    ("call", "how", "says"),
    [
        ("head_overlap", {"space": "qo"}, "space is one of"),
        ("head_directions", {"heads": "L0.H0", "circuit": "vo"}, "'ov' or 'qk'"),
        ("head_directions", {"heads": "L0.H0", "directions": 9}, "1 to 8 directions"),
        ("head_directions", {"heads": "L0.H0", "top": 0}, "top is 1 to"),
        ("virtual_heads", {"length": 3}, "needs heads of 3 layers"),
        ("virtual_heads", {"length": 2, "draws": 0}, "draws of 1 or more"),
    ],
)
def test_wrong_input_is_refused(call: str, how: dict[str, Any], says: str) -> None:
    with pytest.raises(InputsError, match=says):
        getattr(interp.heads, call)(attached("llama"), **how)
