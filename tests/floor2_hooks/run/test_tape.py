"""Tapes: what they hold, what is cut out of them, on disk and in TransformerLens' terms."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import interp
from interp.hooks.errors import BudgetError, EditError, InputsError, NotFired, SiteError
from interp.hooks.examples.example import example
from interp.hooks.sites import Site
from interp.kernels.errors import InterpError
from interp.zoo.families import tiny


@pytest.fixture(scope="module")
def m() -> interp.Model:
    return interp.attach(tiny("llama"))


@pytest.fixture(scope="module")
def x(m: interp.Model) -> Any:
    return m.inputs(example(m.module, batch=3, length=7, padding="left"))


def metric(logits: Tensor, inputs: Any) -> Tensor:
    return logits[:, -1, 3]


def test_one_layer_is_a_tensor_several_a_dict(m: interp.Model, x: Any) -> None:
    tape = m.run(x, record=["L*.z", "L0.H1.pattern", "embed"])
    assert tape["L0.z"].shape == (3, 7, 4, 8)
    assert list(tape["L*.z"]) == ["L0.z", "L1.z"]
    assert tape["L0.H1.pattern"].shape == (3, 1, 7, 7)
    assert tape["L0.H2,0.z"].equal(tape["L0.z"][:, :, [2, 0]])
    assert tape[Site(None, 0, "z")] is tape["L0.z"]
    assert "L0.z" in tape
    assert "L0.q" not in tape
    assert set(tape) == {"L0.z", "L1.z", "L0.H1.pattern", "embed", "logits"}
    assert "L1.z: [3, 7, 4, 8] float32" in repr(tape)
    with pytest.raises(SiteError, match=r"'L0\.q' was not recorded; this tape has L0\.z"):
        tape["L0.q"]
    with pytest.raises(SiteError, match="was not recorded"):
        tape["L0.H2.pattern"]
    with pytest.raises(SiteError, match="no layer 5"):
        tape["L5.z"]


def test_heads_are_recorded_in_the_order_written(m: interp.Model, x: Any) -> None:
    whole = m.run(x, record="L0.z")["L0.z"]
    tape = m.run(x, record="L0.H3,1.z")
    assert torch.equal(tape["L0.H3,1.z"], whole[:, :, [3, 1]])
    assert torch.equal(tape["L0.H3.z"], whole[:, :, [3]])
    assert torch.equal(tape["L0.H1,3.z"], whole[:, :, [1, 3]])


def test_every_component_has_the_shape_it_is_said_to_have(m: interp.Model, x: Any) -> None:
    shapes = {
        **dict.fromkeys(["resid_pre", "resid_mid", "resid_post", "attn_in", "attn_out", "attn_write"], (3, 7, 32)),
        **dict.fromkeys(["mlp_in", "mlp_out", "mlp_write"], (3, 7, 32)),
        **dict.fromkeys(["q", "z"], (3, 7, 4, 8)),
        **dict.fromkeys(["k", "v"], (3, 7, 2, 8)),
        **dict.fromkeys(["pattern", "scores"], (3, 4, 7, 7)),
        "result": (3, 7, 4, 32), "q_in": (3, 7, 4, 32), "k_in": (3, 7, 2, 32), "neurons": (3, 7, 48),
    }  # fmt: skip
    tape = m.run(x, record=[f"L1.{c}" for c in shapes] + ["embed", "final_norm", "logits"])
    assert {c: tuple(tape[f"L1.{c}"].shape) for c in shapes} == shapes
    assert torch.equal(tape["L1.q_in"][:, :, 2], tape["L1.resid_pre"])
    assert torch.equal(tape["embed"], m.module.model.embed_tokens(x.kwargs["input_ids"]))
    assert torch.equal(m.module.lm_head(tape["final_norm"]), tape["logits"])
    torch.testing.assert_close(tape["L1.result"].sum(2), tape["L1.attn_out"])


def test_positions_and_keys_cut_while_recording(m: interp.Model, x: Any) -> None:
    sites = ["L0.z", "L0.k", "L1.resid_pre", "L0.H1.pattern", "embed", "L1.result"]
    whole, part = m.run(x, record=sites), m.run(x, record=sites, positions=[-1, -2], keys="last")
    columns = torch.stack([mask.nonzero().flatten() for mask in x.mask([-1, -2])])
    for site in ("L0.z", "L0.k", "L1.resid_pre", "embed", "L1.result"):
        expected = torch.stack([row[at] for row, at in zip(whole[site], columns, strict=True)])
        torch.testing.assert_close(part[site], expected)
    last = x.mask("last").nonzero()[:, 1]
    rows = [w[:, at][..., [j]] for w, at, j in zip(whole["L0.H1.pattern"], columns, last, strict=True)]
    torch.testing.assert_close(part["L0.H1.pattern"], torch.stack(rows))
    assert part["logits"].shape == whole["logits"].shape
    with pytest.raises(InputsError, match="different numbers of positions"):
        m.run(x, record="L0.z", positions="all")


def test_at_is_the_last_real_token(m: interp.Model) -> None:
    right = m.inputs(example(m.module, batch=3, length=7, padding="right"))
    tape = m.run(right, record=["L0.z", "L0.pattern", "L0.resid_post"])
    last = right.valid.sum(1) - 1
    rows = torch.arange(3)
    assert torch.equal(tape.at("last")["L0.z"], tape["L0.z"][rows, last])
    assert torch.equal(tape.at("last")["logits"], tape["logits"][rows, last])
    assert torch.equal(tape.at("last")["L0.pattern"], tape["L0.pattern"][rows, :, last])
    assert tape.at([-1], "L0.z").shape == (3, 1, 4, 8)
    assert "L0.z: [3, 4, 8]" in repr(tape.at("last"))


def test_at_where_the_answer_has_no_positions_and_towers_differ() -> None:
    vit = interp.attach(tiny("vit"))
    tape = vit.run(example(vit.module, batch=2), record="L0.z").at("cls")
    assert set(tape) == {"L0.z"}
    assert tape["L0.z"].shape == (2, 3, 16)
    llava = interp.attach(tiny("llava"))
    tape = llava.run(example(llava.module, batch=2), record=["vision.L0.z", "text.L0.z"])
    assert tape.at("image")["text.L0.z"].shape[1] == 9
    assert "text.L0.z" in repr(tape.at("image"))


def test_calls_one_after_the_other_are_joined() -> None:
    """Qwen's image tower attends image by image: the recording is the images one after the other."""
    qwen = interp.attach(tiny("qwen2_vl"))
    one, two = (example(qwen.module, batch=n) for n in (1, 2))
    first, both = (qwen.run(kwargs, record=["vision.L0.z", "vision.L0.pattern"]) for kwargs in (one, two))
    n = first["vision.L0.z"].shape[1]
    assert both["vision.L0.z"].shape[1] == 2 * n
    weights = both["vision.L0.pattern"]
    assert weights.shape[2:] == (2 * n, 2 * n)
    assert bool((weights[..., :n, n:] == 0).all())
    torch.testing.assert_close(weights.sum(-1), torch.ones_like(weights[..., 0]))


def test_gradients_of_what_was_not_recorded_or_does_not_matter(m: interp.Model, x: Any) -> None:
    tape = m.run(x, record=["L0.z", "L0.pattern"], grad=True)
    with pytest.raises(InterpError, match=r"does not depend on L0\.pattern"):
        tape.grad(metric)
    tape = m.run(x, record=["L0.z", "L1.z"], grad=True)
    with pytest.raises(SiteError, match=r"L0\.q not recorded exactly so"):
        tape.grad(metric, "L0.q")
    assert set(tape.grad(metric, "L0.z", keep_graph=True)) == {"L0.z"}
    assert set(tape.grad(metric(tape["logits"], x), ["L0.z", "L1.z"])) == {"L0.z", "L1.z"}
    with pytest.raises(InterpError, match="grad=True"):
        m.run(x, record="L0.z").grad(metric)
    with pytest.raises(InterpError, match="grad=True"):
        m.run(x, record="L0.z", grad=True).grad(lambda logits, inputs: logits.detach().sum())
    with pytest.raises(InputsError, match=r"leave out positions="):
        m.run(x, record="L0.z", grad=True, positions="last")


def assert_same(found: interp.Tape, expected: interp.Tape) -> None:
    assert list(found) == list(expected)
    for site, tensor in expected.items():
        assert torch.equal(found[site], tensor), site


def test_saved_and_opened_again(m: interp.Model, x: Any, tmp_path: Path) -> None:
    sites = ["L*.z", "L0.H3,1.pattern", "L1.K1.k", "L0.H3.v", "L1.attn_write", "embed"]
    tape = m.run(x, record=sites)
    folder = tape.save(tmp_path / "a" / "tape")
    found = interp.open(folder)
    assert_same(found, tape)
    assert str(found.anatomy) == str(m.anatomy)
    assert found.meta["model_hash"] == tape.meta["model_hash"]
    assert torch.equal(found.inputs.valid, x.valid)
    assert torch.equal(found.at("last")["L0.z"], tape.at("last")["L0.z"])
    assert_same(interp.open(found.save(folder)), tape)


def test_opened_tapes_read_a_tensor_when_it_is_asked_for(m: interp.Model, x: Any, tmp_path: Path) -> None:
    folder = m.run(x, record=["L0.z", "L1.z"]).save(tmp_path)
    found = interp.open(folder)
    for file in list(folder.glob("*.safetensors"))[1:]:
        if "inputs" not in file.name:
            file.unlink()
    assert len(found) == 3
    readable = [site for site in found if _reads(found, site)]
    assert len(readable) == 1


def _reads(tape: interp.Tape, site: str) -> bool:
    try:
        return torch.is_tensor(tape[site])
    except InterpError:
        return False


def test_recorded_straight_to_a_directory(m: interp.Model, x: Any, tmp_path: Path) -> None:
    sites = ["L*.z", "L0.pattern", "L*.resid_post"]
    expected = m.run(x, record=sites)
    tape = m.run(x, record=sites, store=tmp_path / "run")
    assert_same(tape, expected)
    assert_same(interp.open(tmp_path / "run"), expected)
    again = m.run(x, record="L1.z", store=tmp_path / "run")
    assert set(interp.open(tmp_path / "run")) == set(again) == {"L1.z", "logits"}
    qwen = interp.attach(tiny("qwen2_vl"))
    kwargs = example(qwen.module, batch=3)
    kept = qwen.run(kwargs, record=["vision.L0.z", "vision.L0.pattern"], store=tmp_path / "qwen")
    plain = qwen.run(kwargs, record=["vision.L0.z", "vision.L0.pattern"])
    for site, tensor in plain.items():
        assert torch.equal(kept[site], tensor)


def test_a_directory_holds_one_tensor_in_memory_at_a_time(m: interp.Model, x: Any, tmp_path: Path) -> None:
    from interp.hooks.run.keeper import Wish
    from interp.hooks.run.session import Session
    from interp.hooks.run.shelf import Shelf

    sites = m.anatomy.sites("L*.z")
    session = Session(m.module, m.anatomy, wish=Wish(sites, shelf=Shelf(tmp_path), cpu=True), inputs=x)
    with session, torch.no_grad():
        m.module(**x.kwargs)
    assert sum(part.numel() for parts in session.pieces.values() for part in parts) == 0
    assert len(list(tmp_path.glob("*.safetensors"))) == 2


def test_a_run_that_breaks_off_leaves_no_tape(m: interp.Model, x: Any, tmp_path: Path) -> None:
    m.run(x, record="L0.z", store=tmp_path)
    with pytest.raises(BudgetError):
        m.run(x, record="L*.z", store=tmp_path, budget=4000)
    assert set(interp.open(tmp_path)) == {"L0.z", "logits"}, "nothing was written yet"
    with pytest.raises(EditError):
        m.run(x, record="L*.z", store=tmp_path, edits=[interp.Set("L1.z", torch.zeros(5))])
    with pytest.raises(InterpError, match="holds nothing"):
        interp.open(tmp_path)
    with pytest.raises(InterpError, match="holds nothing"):
        interp.open(tmp_path / "nowhere")
    assert not (tmp_path / "nowhere").exists()


def test_a_tape_in_another_format_is_refused(m: interp.Model, x: Any, tmp_path: Path) -> None:
    folder = m.run(x, record="L0.z").save(tmp_path)
    about = folder / "tape.json"
    about.write_text(about.read_text().replace('"format": 1', '"format": 99'))
    with pytest.raises(InterpError, match="format 99"):
        interp.open(folder)


def test_as_a_transformer_lens_cache(m: interp.Model, x: Any) -> None:
    from transformer_lens import ActivationCache

    tape = m.run(x, record=["L*.z", "L*.k", "L*.pattern", "L*.resid_pre", "L1.resid_post", "embed", "final_norm"])
    cache = tape.to_transformer_lens()
    assert isinstance(cache, ActivationCache)
    assert cache["z", 1] is tape["L1.z"]
    assert cache["blocks.0.attn.hook_k"].shape == (3, 7, 2, 8)
    assert cache["pattern", 0].shape == (3, 4, 7, 7)
    assert cache["hook_embed"] is tape["embed"]
    assert set(cache.keys()) == {
        *(f"blocks.{n}.attn.hook_{c}" for n in (0, 1) for c in ("z", "k", "pattern")),
        "blocks.0.hook_resid_pre", "blocks.1.hook_resid_pre",
        "blocks.1.hook_resid_post", "hook_embed", "ln_final.hook_normalized",
    }  # fmt: skip
    for name in cache:
        assert torch.equal(tape[name], cache[name])
    with pytest.raises(SiteError, match=r"record 'L0\.z'"):
        m.run(x, record="L0.H1.z").to_transformer_lens()


def test_a_tower_that_did_not_run_is_said() -> None:
    llava = interp.attach(tiny("llava"))
    words = {"input_ids": torch.tensor([[5, 6, 7]]), "attention_mask": torch.ones(1, 3, dtype=torch.long)}
    with pytest.raises((NotFired, InputsError), match=r"never ran|vision"):
        llava.run(words, record="vision.L0.z")
    assert llava.run(words, record="text.L0.z")["text.L0.z"].shape[1] == 3


def test_stream_is_one_tape_a_batch(m: interp.Model) -> None:
    batches = [m.inputs(example(m.module, batch=2, length=n)) for n in (4, 6)]
    tapes = list(m.stream(iter(batches), record="L0.z", batch=1))
    assert [t["L0.z"].shape[1] for t in tapes] == [4, 6]
    assert torch.equal(tapes[1]["L0.z"], m.run(batches[1], record="L0.z")["L0.z"])
