"""A sweep that is killed goes on where it was and ends with the same bytes; chunks can be run elsewhere."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tqdm import tqdm

import interp
from interp.cells.journal import Journal, progress
from interp.metrics.shipped import LogitDifference
from interp.saving import renamed
from interp.zoo.families import tiny

METRIC = LogitDifference(answers=((7,), (8,)), wrong=((10,), (11,)))
KILLS = """
import os, random, signal, sys, time, torch, interp
from pathlib import Path
from interp.zoo.families import tiny
from interp.cells.journal import Journal, progress
from interp.metrics import LogitDifference
torch.set_num_threads(1)
m = interp.attach(tiny("llama"))
m.ready()
g = torch.Generator().manual_seed(3)
base = torch.randint(5, 90, (2, 9), generator=g)
source = torch.cat([base[:, :3], torch.randint(5, 90, (2, 6), generator=g)], 1)
metric = LogitDifference(answers=((7,), (8,)), wrong=((10,), (11,)))
def sweep(folder):
    interp.patch(m, base={"input_ids": base}, source={"input_ids": source}, metric=metric, sites="L*.resid_pre",
                 positions="each", out=folder, budget=4000)
root, points = Path(sys.argv[1]), int(sys.argv[2])
sweep(root / "whole")
chance = random.Random(5)
for n in range(points):
    folder = root / str(n)
    child = os.fork()  # one thread so far, so the copy is a whole process
    if child == 0:
        sweep(folder)
        os._exit(0)
    while len(list(folder.glob("chunks/*.parquet"))) < n % 4:
        time.sleep(0.001)
    time.sleep(0.02 * chance.random())
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    print(n, progress(folder))
    sweep(folder)
"""


def pair() -> tuple[interp.Model, dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    m = interp.attach(tiny("llama"))
    base = torch.randint(5, 90, (2, 9))
    return m, {"input_ids": base}, {"input_ids": torch.cat([base[:, :3], torch.randint(5, 90, (2, 6))], 1)}


def written(folder: Path) -> dict[str, bytes]:
    """Every file but run.json, which holds the time it took."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != "run.json")
    return {str(path.relative_to(folder)): path.read_bytes() for path in files if ".part" not in path.name}


@pytest.mark.faults
@pytest.mark.parametrize("points", [20, pytest.param(50, marks=pytest.mark.slow)])
def test_a_sweep_killed_at_random_points_resumes_to_the_same_bytes(points: int, tmp_path: Path) -> None:
    env = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    command = [sys.executable, "-c", KILLS, str(tmp_path), str(points)]
    done = subprocess.run(command, capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr
    whole = written(tmp_path / "whole")
    assert len(whole) > 5
    for n in range(points):
        assert written(tmp_path / str(n)) == whole
    midway = [line for line in done.stdout.splitlines() if "None" not in line and "(0," not in line]
    assert midway, done.stdout


def test_an_unfinished_sweep_says_so(tmp_path: Path) -> None:
    m, base, source = pair()
    interp.patch(m, base=base, source=source, metric=METRIC, sites="L*.z", out=tmp_path, budget=1)
    (tmp_path / "run.json").unlink()
    next((tmp_path / "chunks").glob("*.parquet")).unlink()
    with pytest.raises(interp.InterpError, match="unfinished sweep, 1 of 2 chunks"):
        interp.open(tmp_path)


def test_what_was_done_is_not_done_again_and_comes_back_from_disk(tmp_path: Path) -> None:
    m, base, source = pair()
    how = {"base": base, "source": source, "metric": METRIC, "sites": "L*.H*.z", "budget": 4000}
    e = interp.patch(m, **how, out=tmp_path)
    assert progress(tmp_path) == (len(json.loads((tmp_path / "plan.json").read_text())["chunks"]),) * 2
    done = progress(tmp_path)
    assert done is not None
    assert done[1] > 2
    journal = Journal(tmp_path)
    low, high = json.loads((tmp_path / "plan.json").read_text())["chunks"][1]
    known = journal.read(low, high)
    assert known is not None
    values, floors = known
    journal.write(low, high, {"": values[""] + 1.0}, floors)
    again = interp.patch(m, **how, out=tmp_path)
    assert torch.equal(again.values[low:high], e.values[low:high] + 1.0)
    opened = interp.open(tmp_path)
    assert torch.equal(opened.values, again.values)
    assert opened.meta["seconds"] >= 0
    plain = interp.patch(m, **{**how, "budget": None})
    torch.testing.assert_close(plain.values, e.values, atol=2 * max(e.noise_floor, 1e-6), rtol=0)


def test_a_sweep_killed_in_its_second_direction_says_so(tmp_path: Path) -> None:
    m, base, source = pair()
    interp.patch(m, base=base, source=source, metric=METRIC, sites="L*.z", out=tmp_path, both=True)
    assert interp.open(tmp_path).reverse is not None
    (tmp_path / "reverse" / "run.json").unlink()
    with pytest.raises(interp.InterpError, match="reverse holds an unfinished sweep"):
        interp.open(tmp_path)


def test_a_long_sweep_shows_how_far_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    m, base, source = pair()
    seen = []

    class Seen(tqdm):
        def update(self, n: float | None = 1) -> bool | None:
            seen.append((n, self.total))
            return super().update(n)

    monkeypatch.setattr("tqdm.tqdm", Seen)
    how = {"base": base, "source": source, "metric": METRIC, "sites": "L*.resid_pre", "positions": "each"}
    interp.patch(m, **how, out=tmp_path, budget=4000)
    done, total = sum(n for n, _ in seen), {total for _, total in seen}
    assert total == {2 * sum(6 - n for n in range(6)) * 3}  # two prompts, suffixes, tokens times layers of 2 and 1
    assert done >= seen[0][1]


def test_another_sweep_does_not_write_into_the_same_directory(tmp_path: Path) -> None:
    m, base, source = pair()
    interp.patch(m, base=base, source=source, metric=METRIC, sites="L*.z", out=tmp_path)
    with pytest.raises(interp.InterpError, match="another sweep: its targets"):
        interp.patch(m, base=base, source=source, metric=METRIC, sites="L*.mlp_out", out=tmp_path)
    other = interp.attach(tiny("gpt2"))
    with pytest.raises(interp.InterpError, match="another sweep: its model is 'LlamaForCausalLM', this one's is 'GPT2"):
        interp.patch(other, base=base, source=source, metric=METRIC, sites="L*.z", out=tmp_path)
    with pytest.raises(interp.InterpError, match="another sweep: its source"):
        interp.patch(m, base=base, source="zero", metric=METRIC, sites="L*.z", out=tmp_path)


def test_several_metrics_and_both_directions_are_read_back(tmp_path: Path) -> None:
    m, base, source = pair()
    metrics = {"difference": METRIC, "three": lambda g, x: g[:, -1, 3]}
    found = interp.patch(m, base=base, source=source, metric=metrics, sites="L*.z", out=tmp_path, both=True)
    again = interp.open(tmp_path)
    assert list(again) == list(found)
    for name, e in found.items():
        assert torch.equal(again[name].values, e.values)
        assert torch.equal(again[name].reverse.values, e.reverse.values)
    reverse = interp.open(tmp_path / "reverse")
    assert torch.equal(reverse["three"].values, found["three"].reverse.values)


def test_a_file_is_there_whole_or_not_at_all(tmp_path: Path) -> None:
    renamed(tmp_path / "a", b"one")
    renamed(tmp_path / "a", b"two")
    assert (tmp_path / "a").read_bytes() == b"two"
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    with pytest.raises(interp.InterpError, match="holds nothing that interp saved"):
        interp.open(tmp_path)


def test_cells_and_chunks_are_values_that_another_process_can_run(tmp_path: Path) -> None:
    import pickle

    from interp.hooks.drive.sweep import Sweep
    from interp.patching.cells import targets
    from interp.patching.exact import Question, prepare

    m, base, source = pair()
    m.ready()
    question = Question(m, targets(m, "L*.H*.z", [], 1, pairs=False))
    ready = prepare(question, m.inputs(base), source, {"": METRIC})
    chunk = (ready.cells[2:6], ready.judges.reads, m.inputs(base), ready.sweep.product)
    cells, reads, x, product = pickle.loads(pickle.dumps(chunk))
    other = interp.attach(tiny("llama"))
    sweep = Sweep(other.module, other.anatomy, x, other.called_with(x.kwargs), product=product)
    here, there = list(ready.sweep.chunk(ready.cells[2:6], ready.judges.reads)), list(sweep.chunk(cells, reads))
    assert len(here) == 4
    for a, b in zip(here, there, strict=True):
        assert torch.equal(a.logits, b.logits)
