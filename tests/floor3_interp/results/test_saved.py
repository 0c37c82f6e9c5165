"""Results on disk: what version 0.1 wrote still opens, another format is refused, every kind of file has a reader."""

from __future__ import annotations

import json
from contextlib import suppress
from importlib import import_module
from operator import attrgetter
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

import interp
from interp.opening import SAVED

SITES = ["L0.H0", "L0.H1"]
META = {"method": "x", "metric": "m"}
VALUES = torch.arange(6, dtype=torch.float64).view(2, 3)
ROW, FLAGS = VALUES[0], torch.tensor([True, True, False])
# The layout of version 0.1, spelled out: the JSON, and the tensors beside it.
OLD: dict[str, tuple[str, dict[str, Any], dict[str, torch.Tensor]]] = {
    "gates": ("gates.json", {"sites": SITES, "towers": ["text"] * 2, "meta": META},
              {"value": VALUES, "openness": VALUES}),
    "retrieval": ("retrieval.json", {"sites": SITES, "mode": "event", "cells": [{"length": 8}] * 3, "meta": META},
                  {"scores": VALUES, "kept": FLAGS, "recall": ROW}),
    "roles": ("roles.json", {"sites": SITES, "kinds": ["b", "a"], "notes": {"a": ["x", "y"]}, "left_out": {"c": "no"},
                             "meta": META}, {"a": VALUES, "b": VALUES + 1}),
    "sinks": ("sinks.json", {"sites": SITES, "kinds": ["word"], "layers": ["L0.resid_post"], "meta": META},
              {"first": VALUES, "first_mass": VALUES, "learned": VALUES, "received": VALUES[..., None],
               "start": torch.zeros(3).long(), "kind": torch.zeros(3, 1).long(), "norms L0.resid_post": ROW[:, None],
               **{f"activations {n} L0.resid_post": ROW[:, None, None] for n in range(2)},
               "activations 2 L0.resid_post": ROW}),
    "circuits": ("circuits.json", {"sites": SITES, "order": {"scores": ["v"], "eigenvalues": ["v"], "pairs": [],
                                                             "composition": [], "baseline": []},
                                   "names": {"3": "c"}, "left_out": {}, "meta": META},
                 {"scores/v": ROW[:2], "eigenvalues/v": VALUES.view(2, 3, 1).expand(2, 3, 2).contiguous()}),
    "agreement": ("agreement.json", {"sites": SITES, "towers": ["text"] * 2, "meta": META},
                  {"attention": VALUES.view(2, 3, 1), "own": VALUES.view(2, 3, 1), "relevance": ROW[:, None],
                   "counted": torch.ones(3, 1).bool(), "shares": ROW, "curves": VALUES[:, None].expand(2, 3, 3),
                   "random": VALUES[:, None].expand(2, 3, 3)}),
    "importance": ("importance.json", {"sites": SITES, "towers": ["text"] * 2, "groups": ["a", "b", "b"], "classes": [],
                                       "seed": 3, "meta": META, "measures": [
                                           {"method": "norm", "order": "high", "reduce": "mean", "unit": "example",
                                            "other_groups": [], "passes": 1.0, "notes": {}}]}, {"0.values": VALUES}),
    "atlas": ("atlas.json", {"sites": SITES, "bands": [[0, 0], [1, 2]], "measures": ["distance"],
                             "explained": [0.5, 0.6], "left_out": {}, "meta": META},
              {"codes": VALUES[..., None], "labels": torch.zeros(2).long(), "settled": ROW[:2],
               "maps": VALUES[..., None], "profile": VALUES[..., None], "values/distance": VALUES}),
    "masking": ("masking.json", {"heads": SITES, "counts": [1], "meta": META}, {"recall": VALUES, "controls": VALUES}),
    "influence": ("influence.json", {"heads": SITES, "random_heads": [["L1.H0"]], "meta": META},
                  {"base": ROW, "masked": ROW, "random": ROW[None], "tokens": ROW.long(), "cut": FLAGS}),
    "act": ("act.json", {"sites": SITES, "meta": {**META, "calibrate": {"threshold": 0.1, "keep": 0.4, "least": 1}}},
            {"effects": VALUES, "sinks": ROW[:2], "kept": FLAGS[1:], "before": ROW, "after": ROW, "random": VALUES,
             "every": ROW}),
    "sink_knockout": ("sink_knockout.json", {"heads": SITES, "tokens": 1.5, "weight": [0.5, 0.1], "meta": META},
                      {"base": ROW, "sinks": ROW, "random": VALUES}),
    "effects": ("run.json", {"sites": SITES, "positions": None, "noise_floor": 0.1, "meta": META},
                {"values": VALUES, "base": ROW}),
    "edges": ("edges.json", {"graph": {"tower": None, "layers": [
        {"index": 0, "heads": 1, "kv_heads": 1, "mlp": False, "parallel": False}]}, "meta": META},
        {"values": torch.ones(5, 3, dtype=torch.float64), "base": ROW, "source": ROW + 1}),
    "faithfulness": ("faithfulness.json", {"summary": {}, "meta": META, "magnitude": 0.1, "completeness": [0.2],
                                           "minimality": [], "grid": [0.1, 1.0], "signed": None, "unsigned": [0.1, 1.0],
                                           "groups": []},
                     {"values": ROW, "whole": ROW + 1, "nothing": ROW - 1, "random": ROW}),
    "lens": ("run.json", {"sites": SITES, "names": {"0": "a"}, "meta": META},
             {"positions": ROW[:, None].long(), "top": torch.zeros(2, 3, 1, 2).long(),
              "top_logprobs": -torch.ones(2, 3, 1, 2)}),
    "curve": ("curve.json", {"rows": [{"order": "scores", "kept": 2, "share": 1.0, "metric": 0.5, "low": 0.4,
                                       "high": 0.6, "seconds": 0.1, "ratio": 1.0}], "meta": META}, {}),
}  # fmt: skip


def written(folder: Path, name: str, *, version: int = 1) -> Path:
    file, about, tensors = OLD[name]
    folder.mkdir(exist_ok=True)
    (folder / file).write_text(json.dumps({"format": version, **about}))
    if tensors:
        own = {key: value.clone().contiguous() for key, value in tensors.items()}
        save_file(own, str(folder / f"{name}.safetensors"))
    return folder


@pytest.mark.parametrize("name", OLD)
def test_what_version_0_1_wrote_opens_and_comes_back_as_it_was(name: str, tmp_path: Path) -> None:
    old = interp.open(written(tmp_path / "old", name))
    again = interp.open(old.save(tmp_path / "new"))
    assert type(again) is type(old)
    assert repr(again) == repr(old)
    assert again.facts() == old.facts()
    assert {key: value.tolist() for key, value in again.tensors().items()} == {
        key: value.tolist() for key, value in OLD[name][2].items()
    }
    assert again.to_frame().equals(old.to_frame())


@pytest.mark.parametrize("name", OLD)
def test_another_format_is_refused_in_a_sentence(name: str, tmp_path: Path) -> None:
    with pytest.raises(interp.InterpError, match="was written in format 7; this version reads 1"):
        interp.open(written(tmp_path, name, version=7))


@pytest.mark.parametrize("home", SAVED.values())
def test_every_kind_of_file_has_its_reader(home: str) -> None:
    module, _, read = home.partition(":")
    assert callable(attrgetter(read)(import_module(module)))


ANY = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 50) | st.floats() | st.text(max_size=5) | st.sampled_from(SITES),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
FEW = settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))


@pytest.mark.faults
@pytest.mark.parametrize("name", OLD)
@given(st.data())
@FEW
def test_json_of_another_shape_is_an_error_of_the_file(name: str, tmp_path: Path, data: st.DataObject) -> None:
    """In files without a seal, which version 0.2 wrote: of the others the seal says so."""
    file = written(tmp_path / "old", name) / OLD[name][0]
    about = json.loads(file.read_text())
    field = data.draw(st.sampled_from([*OLD[name][1], "format"]))
    change = data.draw(ANY)
    file.write_text(json.dumps({**about, field: change}))
    with suppress(interp.InterpError):
        interp.open(tmp_path / "old")
    file.write_text(json.dumps({key: value for key, value in about.items() if key != field}))
    with suppress(interp.InterpError):
        interp.open(tmp_path / "old")
    file.write_text(json.dumps(change))
    with suppress(interp.InterpError):
        interp.open(tmp_path / "old")


@pytest.mark.faults
@pytest.mark.parametrize("name", [name for name in OLD if OLD[name][2]])
@given(st.data())
@FEW
def test_tensors_of_another_shape_are_an_error_of_the_file(name: str, tmp_path: Path, data: st.DataObject) -> None:
    folder = written(tmp_path / "old", name)
    held = {key: value.clone().contiguous() for key, value in OLD[name][2].items()}
    key = data.draw(st.sampled_from([*held]))
    shape = data.draw(st.lists(st.integers(0, 3), max_size=3))
    dtype = data.draw(st.sampled_from([torch.float32, torch.int64, torch.bool, torch.float64]))
    save_file({**held, key: torch.zeros(shape, dtype=dtype)}, str(folder / f"{name}.safetensors"))
    with suppress(interp.InterpError):
        interp.open(folder)
    save_file({k: v for k, v in held.items() if k != key}, str(folder / f"{name}.safetensors"))
    with suppress(interp.InterpError):
        interp.open(folder)
    (folder / f"{name}.safetensors").write_bytes(data.draw(st.binary(max_size=80)))
    with pytest.raises(interp.InterpError):
        interp.open(folder)


@pytest.mark.faults
@pytest.mark.parametrize(
    "name", sorted({file for file, _, _ in OLD.values()} | {"plan.json", "tape.json", "prune.json"})
)
@given(st.binary(max_size=60))
@FEW
def test_bytes_of_any_kind_are_an_error_of_the_file(name: str, tmp_path: Path, noise: bytes) -> None:
    for data in (noise, b'{"format": 1, ' + noise, b"[" * 100_000, b"9" * 5000):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(interp.InterpError):
            interp.open(tmp_path)
