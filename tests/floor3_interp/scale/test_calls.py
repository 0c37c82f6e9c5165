"""Every call that takes shard=: its shards merged are one run, byte for byte."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import interp
from interp.hooks.sealed import SEAL
from interp.metrics.shipped import LogitDifference
from interp.scale import merge, status
from interp.zoo.families import tiny

METRIC = LogitDifference(answers=((7,), (8,)), wrong=((10,), (11,)))
TIMES = ("seconds", "processor seconds", "started", "finished", "seconds in all", "first page", "peak_memory_mb",
         "memory_before_mb", "cost", SEAL, "sha256")  # fmt: skip
OF = 3


@functools.cache
def llama() -> interp.Model:
    return interp.attach(tiny("llama"))


def pair() -> dict[str, Any]:
    draw = torch.Generator().manual_seed(3)
    base = torch.randint(5, 90, (2, 9), generator=draw)
    source = torch.cat([base[:, :3], torch.randint(5, 90, (2, 6), generator=draw)], 1)
    return {"base": {"input_ids": base}, "source": {"input_ids": source}, "metric": METRIC}


def patch(**how: Any) -> Any:
    metrics = {"difference": METRIC, "other": LogitDifference(answers=((9,), (9,)), wrong=((3,), (4,)))}
    return interp.patch(llama(), **{**pair(), "metric": metrics}, sites="L*.H*.z", both=True, budget=4000, **how)


def influence(**how: Any) -> Any:
    m = interp.load("zoo:needle")
    texts = [f"the code of the {word} is {n}" for n, word in enumerate("red blue green grey black white pink".split())]
    return interp.long.influence(m, texts, heads=["L1.H0"], chunk=2, batch=2, **how)


def retrieval(**how: Any) -> Any:
    m = interp.load("zoo:needle")
    task = interp.tasks.needle(m, whole=True, n=6, lengths=[40, 60], depths=[0.5])
    return interp.retrieval_heads(m, task, batch=2, **how)


def edges(**how: Any) -> Any:
    return interp.edges(llama(), **pair(), method="exact", **how)


@functools.cache
def warmed(m: interp.Model) -> None:
    """A model's first attribution tries its rules, which counts as passes."""
    interp.attribute(m, **pair(), sites="L*.H*.z", method="relp", verify=0)


def attribute(**how: Any) -> Any:
    m, asked = llama(), pair()
    warmed(m)
    return interp.attribute(m, **asked, sites="L*.H*.z", positions="each", method="relp", verify=12, **how)


def importance(**how: Any) -> Any:
    m, asked = llama(), pair()
    warmed(m)
    measures = ["zero", "kl", "mean", "resample", "gradient", "attribution", "entropy"]
    return interp.importance(m, asked["base"], metric=METRIC, labels=[7, 8], source=asked["source"], by=measures,
                             draws=2, verify=12, **how)  # fmt: skip


def experiment(**how: Any) -> Any:
    grid = {"models": ["zoo:planted-backup"], "seeds": [0, 1],
            "report": {"circuit": False, "draws": 1, "examples": 1}}  # fmt: skip
    return interp.reporting.experiment(grid, **how)


DEFAULT = {"patch": patch}
"""Those that take no time."""
CALLS: dict[str, Callable[..., Any]] = {
    **DEFAULT,
    "influence": influence,
    "retrieval_heads": retrieval,
    "edges": edges,
    "attribute": attribute,
    "importance": importance,
    "experiment": experiment,
}


def without(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: without(one) for name, one in value.items() if name not in TIMES}
    return [without(one) for one in value] if isinstance(value, list) else value


def held(folder: Path) -> dict[str, Any]:
    """Every file by its bytes, and run.json but for times."""
    return {
        path.relative_to(folder).as_posix(): without(json.loads(path.read_text()))
        if path.name == "run.json"
        else path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.mark.parametrize("name", [n if n in DEFAULT else pytest.param(n, marks=pytest.mark.scale) for n in CALLS])
def test_shards_merged_are_one_run(name: str, tmp_path: Path) -> None:
    call = CALLS[name]
    call(out=tmp_path / "whole")
    folders = [tmp_path / f"shard{n}" for n in range(OF)]
    done = [call(out=folder, shard=(n, OF)) for n, folder in enumerate(folders)]
    assert sum(one.chunks for one in done) == done[0].of_chunks
    assert max(one.chunks for one in done) < done[0].of_chunks
    found = merge(folders, tmp_path / "out")
    whole, out = held(tmp_path / "whole"), held(tmp_path / "out")
    assert sorted(out) == sorted(whole)
    assert [file for file in whole if whole[file] != out[file]] == []
    again = repr(call(out=tmp_path / "whole")).replace(str(tmp_path / "whole"), str(tmp_path / "out"))
    assert repr(found) == again
    assert all(status(folder).finished for folder in [tmp_path / "out", *folders])
