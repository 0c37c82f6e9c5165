"""A replay that stops, or gives other numbers, half way: each cell is answered once, by the tower that it is in."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from models import attached
from torch import Tensor, nn

import interp
from interp.hooks.drive import sweep
from interp.hooks.drive.recording import CannotDrive
from interp.hooks.examples.example import example
from interp.hooks.examples.tried import tried
from interp.hooks.pictures.asked import Ask


def _metric(logits: Tensor, inputs: Any) -> Tensor:
    return logits[:, -1, 3] - logits[:, -1, 5]


def _pair(name: str) -> tuple[interp.Model, dict[str, Any]]:
    m = attached(name)
    base, source = (dict(example(m.module, batch=2, seed=seed)) for seed in (0, 1))
    return m, {"base": base, "source": source, "metric": _metric}


@pytest.mark.filterwarnings("ignore:.*full forward passes")
def test_the_tower_that_differs_is_the_one_that_is_not_believed(monkeypatch: pytest.MonkeyPatch) -> None:
    m, asked = _pair("llava")
    sites = ["text.L0.H0.z", "text.L1.H1.z", "vision.L0.H0.z", "vision.L1.H1.z"]
    expected = interp.patch(m, sites=sites, **asked)
    own = sweep._gap

    def gap(cell: sweep.Cell, whole: Tensor, found: Tensor) -> float:
        if cell.site.tower == "vision":
            raise sweep.ReplayDiffers(cell, "another number")
        return own(cell, whole, found)

    monkeypatch.setattr(sweep, "_gap", gap)
    found = interp.patch(m, sites=sites, **asked)
    torch.testing.assert_close(found.values, expected.values, atol=1e-5, rtol=0)


@pytest.mark.filterwarnings("ignore:.*full forward passes")
def test_cells_that_were_answered_before_a_replay_stops_are_not_answered_again(monkeypatch: pytest.MonkeyPatch) -> None:
    m, asked = _pair("llama")
    expected = interp.patch(m, sites="L*.H*.z", **asked)
    own, numbers = sweep.Sweep._replayed, list[int]()

    def stops(self: sweep.Sweep, engine: Any, cells: Any, mine: Any, reads: Any) -> Iterator[Any]:
        for count, answer in enumerate(own(self, engine, cells, mine, reads)):
            if count == 3:
                raise CannotDrive(engine.base.tower, "it stops")
            yield answer

    monkeypatch.setattr(sweep.Sweep, "_replayed", stops)
    whole = sweep.Sweep.chunk
    monkeypatch.setattr(sweep.Sweep, "chunk", lambda *args: (numbers.append(one.number) or one for one in whole(*args)))
    found = interp.patch(m, sites="L*.H*.z", **asked)
    assert sorted(numbers) == list(range(len(found.sites)))
    torch.testing.assert_close(found.values, expected.values, atol=1e-5, rtol=0)


def test_a_model_that_answers_with_a_bare_tensor_takes_what_is_tried() -> None:
    class Listens(nn.Module):
        config = SimpleNamespace(model_type="listens", num_mel_bins=4)

        def forward(self, input_features: Tensor) -> Tensor:
            assert input_features.shape[1] == 4
            return input_features.mean(-1)

    found = tried(Ask(Listens(), 2, 8, None, torch.Generator().manual_seed(0)), lambda ask: {})
    assert found is not None
    assert found["input_features"].shape[:2] == (2, 4)
