"""A checkpoint that is not whole is refused: weights missing or over, files cut short, indexes that point elsewhere."""

from __future__ import annotations

import json
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from transformers import logging

import interp
from interp.zoo.families import tiny

pytestmark = pytest.mark.faults
MISSING = "model.layers.0.self_attn.o_proj.weight"
ANY = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 70) | st.floats(allow_nan=True) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


@pytest.fixture(autouse=True)
def _quiet() -> None:
    logging.set_verbosity_error()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tiny("llama").save_pretrained(tmp_path)
    return tmp_path


def changed(folder: Path, **change: torch.Tensor | None) -> None:
    file = folder / "model.safetensors"
    held = {**load_file(file), **change}
    save_file({name: value for name, value in held.items() if value is not None}, file, metadata={"format": "pt"})


def test_a_missing_weight_is_refused_unless_asked_for(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    changed(folder, **{MISSING: None})
    with pytest.raises(interp.InterpError, match=rf"weights 1 missing: {MISSING}\. .*partial=True"):
        interp.load(folder)
    interp.load(folder, partial=True)
    assert f"1 missing: {MISSING}" in capsys.readouterr().err


def test_a_weight_too_many_or_of_another_shape_is_refused(folder: Path) -> None:
    changed(folder, more=torch.ones(2))
    with pytest.raises(interp.InterpError, match="1 not in the model: more"):
        interp.load(folder)
    changed(folder, more=None, **{MISSING: torch.ones(3, 3)})
    with pytest.raises(interp.InterpError, match=f"1 of another shape: {MISSING}"):
        interp.load(folder)
    assert interp.load(folder, ignore_mismatched_sizes=True).module is not None


@pytest.mark.parametrize("family", ["gpt2", "t5", "bert", "llava", "whisper", "vit"])
def test_tied_and_known_weights_are_not_missed(family: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny(family).save_pretrained(tmp_path)
    interp.load(tmp_path)
    assert "in part" not in capsys.readouterr().err


def test_weights_in_several_files_and_an_index_that_points_elsewhere(folder: Path, tmp_path: Path) -> None:
    (folder / "model.safetensors").unlink()
    tiny("llama").save_pretrained(folder, max_shard_size="30KB")
    index = folder / "model.safetensors.index.json"
    said = json.loads(index.read_text())
    assert len(set(said["weight_map"].values())) > 1
    assert interp.load(folder).module is not None
    outside = tmp_path.parent / f"{tmp_path.name}-outside.safetensors"
    shutil.copy(folder / said["weight_map"][MISSING], outside)
    for name, why in ((f"../{outside.name}", "outside of this directory"), (str(outside), "outside of this directory"),
                      (3, "names 3"), ("model-9.safetensors", "no such"), ("config.json", "no such")):  # fmt: skip
        index.write_text(json.dumps({**said, "weight_map": {**said["weight_map"], MISSING: name}}))
        with pytest.raises(interp.InterpError, match=why):
            interp.load(folder)
    for wrong in ([], {}, {"weight_map": 3}, {"weight_map": [1]}, {"weight_map": {}}):
        index.write_text(json.dumps(wrong))
        with pytest.raises(interp.InterpError):
            interp.load(folder)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_files_cut_short_or_made_of_noise_are_refused(folder: Path, name: str) -> None:
    data = (folder / name).read_bytes()
    for broken in (b"", data[:7], data[: len(data) // 2], data[:-3], b"\xff" * 40, b"null", b"[" * 100_000):
        (folder / name).write_bytes(broken)
        with pytest.raises(interp.InterpError):
            interp.load(folder)


SIZES = ("architectures", "hidden_size", "num_attention_heads", "num_hidden_layers", "vocab_size", "model_type",
         "num_key_value_heads", "dtype", "rope_parameters", "hidden_act", "head_dim", "pad_token_id")  # fmt: skip


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors:UserWarning")  # torch, of a width of 0
@given(st.sampled_from(SIZES), ANY)
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
def test_a_config_of_any_shape_loads_or_is_refused(folder: Path, name: str, value: Any) -> None:
    file = folder / "config.json"
    whole = file.read_text()
    file.write_text(json.dumps({**json.loads(whole), name: value}))
    with suppress(interp.InterpError):
        interp.load(folder)
    file.write_text(whole)


@given(ANY, st.sampled_from(("vocab", "d_model", "heads", "layers", "norm", "architectures", "context")))
@settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))
def test_our_own_class_as_well(tmp_path: Path, value: Any, name: str) -> None:
    from interp.zoo import catalog

    folder = tmp_path / "copy"
    shutil.rmtree(folder, ignore_errors=True)
    catalog.export("induction", folder)
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), name: value}))
    with suppress(interp.InterpError):
        interp.load(folder)
