"""What is asked of Ray, and what is said where it cannot be had."""

from __future__ import annotations

import socket
import sys
from pathlib import Path

import pytest
import torch
from toiling import Faults, Little, Toil

import interp
from interp.cells.failures import CellsFailed, GivenUp
from interp.cells.work import chunks
from interp.hooks.errors import BudgetError, ModelError
from interp.scale import Ray
from interp.scale.workers import actor
from interp.scale.workers.cluster import ClusterError, _answering, _on
from interp.scale.workers.transport import packed


@pytest.mark.parametrize(
    "how", [{"workers": 0}, {"gpus": 1.5}, {"gpus": -1}, {"threads": 0}, {"tries": 0}, {"workers": True}, {"wait": -1}]
)
def test_numbers_that_mean_nothing_are_refused(how: dict[str, int]) -> None:
    with pytest.raises(interp.InterpError, match="workers, threads, tries and deaths"):
        Ray(**how)


def test_an_address_that_does_not_answer_is_said_at_once() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(ClusterError, match=f"no Ray cluster answers at 127.0.0.1:{port} .*ray start --head"):
        _answering(f"127.0.0.1:{port}")
    for wrong in ("ray://127.0.0.1:10001", "here", "127.0.0.1", ":6379", "127.0.0.1:x"):
        with pytest.raises(ClusterError, match="HOST:PORT"):
            _answering(wrong)
    with pytest.raises(ClusterError, match="no Ray cluster answers"):
        _answering("127.0.0.1:99999")


def test_without_ray_it_is_said_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    work = Toil(interp.attach(Little()), 4, 2)
    with pytest.raises(ClusterError, match=r"pip install 'interp\[dist\]'"):
        list(chunks(work, engine="ray"))
    with pytest.raises(interp.InterpError, match="'ray'"):
        list(chunks(work, engine="dask"))


def test_workers_on_a_node_by_processors_and_parts_of_devices() -> None:
    assert _on({"CPU": 8.0, "GPU": 2.0}, 2, 0.25) == 4
    assert _on({"CPU": 64.0, "GPU": 2.0}, 2, 0.25) == 8
    assert _on({"CPU": 64.0, "GPU": 3.0}, 1, 2) == 1
    assert _on({"CPU": 3.0}, 2, 0) == 1
    assert _on({"CPU": 3.0}, 1, 0.5) == 0
    assert _on({"GPU": 1.0}, 1, 0) == 0


def test_a_worker_makes_the_same_work_and_refuses_another() -> None:
    m = interp.attach(Little())
    work = Toil(m, 6, 2)
    pickled, arrays = packed((work.recipe, m, actor.facts(work)))
    there = actor.made(actor.said(), pickled, arrays, False, torch.get_num_threads())
    assert there.compute(2, 4)[0]["first"].equal(work.compute(2, 4)[0]["first"])
    other, arrays = packed((work.recipe, interp.attach(Little()), actor.facts(work)))
    with pytest.raises(ModelError, match=r"its model is .* the one that was given"):
        actor.made(actor.said(), other, arrays, False, torch.get_num_threads())
    with pytest.raises(ModelError, match=r"other versions .* torch 9\.9 there and"):
        actor.made({**actor.said(), "torch": "9.9"}, pickled, arrays, False, 1)


def test_too_much_memory_is_tried_in_halves_down_to_one_cell() -> None:
    m = interp.attach(Little())
    whole = Toil(m, 9, 9)
    _, _, values, floors = actor.computed(Toil(m, 9, 9, Faults(most=2)), 0, 9)
    assert values["first"].equal(whole.compute(0, 9)[0]["first"])
    assert floors == whole.compute(0, 9)[1]
    with pytest.raises(BudgetError, match="the single cell 0"):
        actor.computed(Toil(m, 9, 9, Faults(most=0)), 0, 9)


class Losing:
    """An engine that gives cell 3 up."""

    def __init__(self) -> None:
        self.closed = 0

    def run(self, work: Toil, bounds: list[tuple[int, int]]):  # type: ignore[no-untyped-def]
        try:
            for low, high in bounds:
                if not low <= 3 < high:
                    yield low, high, *work.compute(low, high)
        finally:
            self.closed += 1
        if (2, 4) in bounds:
            raise CellsFailed([GivenUp((2, 4), 3, 4, "ValueError: no")], work.count, "The others are done.")


def test_cells_that_were_given_up_are_written_down_and_the_rest_is_kept(tmp_path: Path) -> None:
    work = Toil(interp.attach(Little()), 6, 2)
    with pytest.raises(CellsFailed, match="1 of 6 cells failed: cell 3: ValueError: no"):
        list(chunks(work, out=tmp_path / "out", engine=Losing()))
    kept = sorted(file.name for file in (tmp_path / "out" / "chunks").iterdir())
    assert [name for name in kept if name.endswith(".parquet")] == ["000000-000002.parquet", "000004-000006.parquet"]
    assert [name for name in kept if name.startswith("000002")]
    assert len(list(chunks(work, out=tmp_path / "out"))) == 3
    assert len([f for f in (tmp_path / "out" / "chunks").iterdir() if f.suffix == ".parquet"]) == 3


def test_an_engine_is_told_when_nobody_asks_any_more() -> None:
    engine, work = Losing(), Toil(interp.attach(Little()), 6, 2)
    walk = chunks(work, engine=engine)
    next(walk)
    walk.close()  # type: ignore[attr-defined]
    assert engine.closed == 1
