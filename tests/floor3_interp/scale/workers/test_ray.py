"""Ray really started on this machine, with everything that may go wrong made to go wrong (`tests/raying.py`)."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from house import ROOT
from toiling import Little, Toil

import interp
from interp.cells.work import chunks

pytest.importorskip("ray", reason="Ray is not installed: pip install 'interp[dist]' (`make scale` does it)")
pytestmark = pytest.mark.scale

MANY = ("plain", "once", "raises", "hopeless", "deadly", "memory", "zero_copy", "by_name", "calls",
        "corpus")  # fmt: skip
# the environment of these tests speaks to nobody, and a token would be kept in somebody's home
ENV = {**os.environ, "RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0", "OMP_NUM_THREADS": "1",
       "RAY_worker_niceness": "0",
       "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), str(ROOT / "tests"), os.environ.get("PYTHONPATH")]))
      }  # fmt: skip


# what Ray imports only if it is there, and takes seconds to: an environment with JupyterLab has it
SLOW = 'raise ImportError("rfc3987_syntax takes seconds, in each of the six processes that Ray starts")'


@pytest.fixture(scope="module", autouse=True)
def quick(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Ray gives its agents 15 seconds, in which two busy processors do not import what it can do without."""
    folder = tmp_path_factory.mktemp("quick")
    (folder / "rfc3987_syntax.py").write_text(SLOW)
    ENV["PYTHONPATH"] = os.pathsep.join([str(folder), ENV["PYTHONPATH"]])


def ran(folder: Path, *names: str) -> dict[str, dict[str, Any]]:
    done = subprocess.run(
        [sys.executable, str(ROOT / "tests" / "raying.py"), str(folder), *names],
        cwd=folder, env=ENV, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"scenario"')]
    return {line["scenario"]: line for line in lines}


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """What scenarios on one cluster found."""
    return ran(tmp_path_factory.mktemp("many"), *MANY)


def test_workers_give_the_numbers_and_the_bytes_of_one_process(found: dict[str, Any]) -> None:
    assert found["plain"]["equal"]
    assert found["plain"]["bytes"]


def test_a_killed_worker_a_cell_that_raises_once_and_little_memory_change_nothing(found: dict[str, Any]) -> None:
    assert found["once"]["equal"]
    assert found["once"]["bytes"]


def test_a_cell_that_raises_is_named_the_rest_is_kept_and_the_same_call_goes_on(found: dict[str, Any]) -> None:
    one = found["raises"]
    assert "CellsFailed: 1 of 24 cells failed: cell 5: ValueError: nothing good comes of 5." in one["error"]
    assert one["kept"] == 5
    assert one["bytes"]


def test_where_every_cell_raises_it_ends_soon(found: dict[str, Any]) -> None:
    assert "12 of 24 cells failed" in found["hopeless"]["error"] or "16 of 24" in found["hopeless"]["error"]
    assert "None was finished" in found["hopeless"]["error"]
    assert found["hopeless"]["kept"] == 0


def test_a_cell_that_kills_every_worker_is_named(found: dict[str, Any]) -> None:
    assert "4 of 24 cells failed: cells 4 to 7: 2 workers died over it" in found["deadly"]["error"]
    assert found["deadly"]["kept"] == 5


def test_a_cell_that_no_memory_is_enough_for_is_named(found: dict[str, Any]) -> None:
    assert "cell 0: BudgetError: memory ran out on the single cell 0" in found["memory"]["error"]


def test_weights_lie_in_shared_memory_once_and_tied_ones_stay_tied(found: dict[str, Any]) -> None:
    assert found["zero_copy"]["shared"] == [[1.0] * 3] * 2
    assert found["zero_copy"]["tied"] == [[1.0]] * 2


def test_a_worker_loads_a_model_by_name_and_refuses_another_one(found: dict[str, Any]) -> None:
    assert found["by_name"]["equal"]
    assert "a worker has other work" in found["by_name"]["error"]


def test_patching_and_influence_save_the_same_bytes(found: dict[str, Any]) -> None:
    one = found["calls"]
    assert one["chunks"] > 4
    assert one["patch-here"]
    assert one["patch table"]
    assert one["long-here/journal"]
    assert one["long table"]


def test_a_corpus_saves_the_same_bytes(found: dict[str, Any]) -> None:
    assert len(found["corpus"]["files"]) > 1
    assert not found["corpus"]["differ"]


def test_thirty_random_kills_change_no_byte(tmp_path: Path) -> None:
    one = ran(tmp_path, "kills")["kills"]
    assert not one["error"]
    assert one["killed"] == 30
    assert one["equal"]
    assert one["bytes"]


def test_nodes_leave_and_join_and_one_that_is_too_small_is_said(tmp_path: Path) -> None:
    one = ran(tmp_path, "nodes")["nodes"]
    assert one["moved"] == [1, 2]
    assert one["equal"]
    assert one["bytes"]
    assert "no node of the cluster can hold a worker of 64 CPUs" in one["too_small"]


LACKING = """
import sys
class No:
    def find_spec(self, name, path=None, target=None):
        if name == "interp":
            raise ModuleNotFoundError("No module named 'interp'", name=name)
sys.meta_path.insert(0, No())
"""
WITHOUT = """
import sys, ray, interp
from pathlib import Path
from toiling import Little, Toil
from interp.cells.work import chunks
ray.init(address="local", num_cpus=1, include_dashboard=False, log_to_driver=False, logging_level="ERROR",
         runtime_env={"env_vars": {"PYTHONPATH": sys.argv[1]}})
try:
    list(chunks(Toil(interp.attach(Little()), 2, 1), engine="ray"))
except interp.InterpError as why:
    print("SAID", why)
"""


def test_a_worker_without_the_package_says_so(tmp_path: Path) -> None:
    (tmp_path / "lacking").mkdir()  # a directory of its own: where the caller is, the caller would import it too
    (tmp_path / "lacking" / "sitecustomize.py").write_text(LACKING)
    call = [sys.executable, "-c", WITHOUT, str(tmp_path / "lacking")]
    done = subprocess.run(call, cwd=tmp_path, env=ENV, capture_output=True, text=True)
    assert "cannot import what it needs (No module named 'interp'): install the same version" in done.stdout, done


def test_ctrl_c_leaves_a_directory_that_goes_on_and_no_process(tmp_path: Path) -> None:
    """The terminal sends it to the whole group of processes."""
    call = [sys.executable, str(ROOT / "tests" / "raying.py"), str(tmp_path), "stopped"]
    process = subprocess.Popen(call, env=ENV, stderr=subprocess.PIPE, text=True, start_new_session=True)
    while process.poll() is None and not list(tmp_path.rglob("*.parquet")):
        time.sleep(0.1)
    assert process.poll() is None, process.stderr and process.stderr.read()
    family = psutil.Process(process.pid).children(recursive=True)
    assert {"raylet", "gcs_server"} <= {part.name() for part in family}
    os.killpg(process.pid, signal.SIGINT)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 130, said
    _, alive = psutil.wait_procs(family, timeout=60)
    assert not alive
    out, whole = tmp_path / "stopped", tmp_path / "whole"
    torch.manual_seed(0)
    work = Toil(interp.attach(Little()), 400, 2)
    done = len(list(out.rglob("*.parquet")))
    assert 0 < done < 200
    torch.set_num_threads(1)
    assert len(list(chunks(work, out=out))) == len(list(chunks(work, out=whole))) == 200
    assert all((out / "chunks" / file.name).read_bytes() == file.read_bytes() for file in (whole / "chunks").iterdir())


def test_the_command_takes_the_engine(tmp_path: Path) -> None:
    call = [sys.executable, "-m", "interp", "patch", "zoo:induction", "--task", "induction", "-n", "4"]
    for name, more in (("here", []), ("there", ["--engine", "ray"])):
        done = subprocess.run(
            [*call, "--out", str(tmp_path / name), *more], env=ENV, cwd=tmp_path, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
    same = [(tmp_path / name / "effects.parquet").read_bytes() for name in ("here", "there")]
    assert same[0] == same[1]
