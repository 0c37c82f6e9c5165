"""ACT against its definition, head by head with whole patterns; a head that was distracted is found and cured."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pandas
import pytest
import torch
from torch import Tensor

import interp
from interp.hooks.errors import InputsError
from interp.planted import build
from interp.sink.act import Act


@cache
def planted() -> interp.Model:
    return interp.attach(*build("planted-decoder"))


@cache
def task() -> Any:
    return interp.tasks.key_value(planted(), n=6)


def distracted() -> list[Any]:
    """The retrieval head gives about half its weight to the first comma, in a direction its keys do not use."""
    along = torch.zeros(128)
    along[127] = 4.1
    return [interp.Add("L1.H2.q", along), interp.Add("L1.K2.k", along, positions=[4])]


def calibrated(a: Tensor, *, threshold: float, keep: float) -> Tensor:
    """One pattern [row, key] in float64, by the paper's steps."""
    n = len(a)
    means = [float(a[j:, j].mean()) for j in range(n)]
    sinks = torch.tensor([j > 0 and means[j] > threshold for j in range(n)])
    out = torch.where(sinks, keep * a, a)
    freed = (1 - keep) * (a * sinks).sum(1, keepdim=True)
    rest = (a * ~sinks).sum(1, keepdim=True)
    return torch.where(sinks, out, a + freed * a / rest)


@cache
def found() -> Act:
    with planted().edited(distracted()):
        return interp.sink.act(planted(), task(), draws=5)


def test_a_heads_gain_is_that_of_its_calibrated_pattern() -> None:
    m, a = planted(), found()
    x, metric = task().clean, task().metric
    with m.edited(distracted()):
        tape = m.run(x, record="L*.pattern")
        base = metric(tape["logits"], x).double()
        for site in ("L1.H2", "L0.H1", "L1.H0"):
            pattern = tape[f"{site}.pattern"][:, 0].double()
            new = torch.stack([calibrated(one, threshold=0.1, keep=0.4) for one in pattern])
            edited = m.run(x, edits=[interp.Set(f"{site}.pattern", new[:, None].float())])["logits"]
            want = metric(edited, x).double() - base
            torch.testing.assert_close(a.effects[a.sites.index(site)], want, atol=2e-4, rtol=1e-3)


def test_the_distracted_head_is_found_and_gains_on_new_prompts() -> None:
    a = found()
    assert a.top(1)["site"].item() == "L1.H2"
    assert float(a.effects[a.sites.index("L1.H2")].min()) > 1
    assert any(edit.site == "L1.H2" or "2" in edit.site.partition("L1.H")[2] for edit in a.edits)
    assert a.gain > 1
    judged = a.judged().set_index("heads")
    assert judged.loc["kept", "low"] > judged.loc["random", "estimate"]
    with planted().edited([*distracted(), *a.edits]):
        again = task().heldout
        torch.testing.assert_close(again.metric(planted().run(again.clean)["logits"], again.clean).double(), a.after)


def test_heads_without_sinks_have_no_effect_at_all() -> None:
    a = found()
    idle = a.sinks == 0
    assert 0 < int(idle.sum()) < len(idle)
    assert float(a.effects[idle].abs().max()) == 0
    assert not bool(a.kept[idle].any())


def test_a_result_is_read_back_as_it_was(tmp_path: Path) -> None:
    a = found()
    back = interp.open(a.save(tmp_path / "act"))
    pandas.testing.assert_frame_equal(back.to_frame(), a.to_frame())
    pandas.testing.assert_frame_equal(back.judged(), a.judged())
    assert back.edits == a.edits
    assert repr(back) == repr(a)
    columns = ["site", "tower", "layer", "head", "method", "estimate", "low", "high", "n"]
    assert list(a.to_frame().columns[:9]) == columns
    assert a.plot().data[0].z.shape == (2, 6)


def test_with_sure_only_heads_whose_whole_interval_gains_are_kept() -> None:
    with planted().edited(distracted()):
        a = interp.sink.act(planted(), task(), draws=1, sure=True, heads="L1")
    frame = a.to_frame()
    assert (frame["low"] > 0).tolist() == frame["kept"].tolist()
    assert frame.set_index("site").loc["L1.H2", "kept"]


def test_what_has_no_meaning_is_refused() -> None:
    m = planted()
    with pytest.raises(InputsError, match="expected a task"):
        interp.sink.act(m, "some text")
    with pytest.raises(InputsError, match="no head can be calibrated"):
        interp.sink.act(m, task(), threshold=1.0)
    with pytest.raises(InputsError, match="at least 1"):
        interp.sink.act(m, task(), draws=0)
