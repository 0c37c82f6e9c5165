"""Shards merged are one run, byte for byte; shards that do not belong together say what differs."""

from __future__ import annotations

import json
import resource
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import interp
from interp.cells.journal import PLAN, Journal
from interp.cells.shards import MARK, ShardDone, asked
from interp.cli import main
from interp.hooks.sealed import SEAL, sealed
from interp.metrics.shipped import LogitDifference
from interp.scale import merge, status
from interp.zoo.families import tiny

METRIC = LogitDifference(answers=((7,), (8,)), wrong=((10,), (11,)))
OF = 3


def bytes_of(folder: Path) -> dict[str, bytes]:
    """Every file but those that hold the time it took."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name not in ("run.json", "frame.json")
    }


def sweep(out: Path | None, *, kind: str = "llama", start: int = 3, seed: int = 3, **how: Any) -> Any:
    m = interp.attach(tiny(kind))
    draw = torch.Generator().manual_seed(seed)
    base = torch.randint(5, 90, (2, 9), generator=draw)
    source = torch.cat([base[:, :start], torch.randint(5, 90, (2, 9 - start), generator=draw)], 1)
    how = {"metric": METRIC, "sites": "L*.H*.z", "budget": 4000, **how}
    return interp.patch(m, base={"input_ids": base}, source={"input_ids": source}, out=out, **how)


def shards(folder: Path, of: int = OF, **how: Any) -> list[Path]:
    found = [folder / f"shard{n}" for n in range(of)]
    for n, one in enumerate(found):
        sweep(one, shard=(n, of), **how)
    return found


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Path]]:
    """One run and its shards; not to be changed."""
    folder = tmp_path_factory.mktemp("made")
    sweep(folder / "whole")
    return folder / "whole", shards(folder)


@pytest.fixture
def copied(made: tuple[Path, list[Path]], tmp_path: Path) -> list[Path]:
    """Shards of one's own."""
    return [Path(shutil.copytree(one, tmp_path / one.name)) for one in made[1]]


def resealed(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    about = json.loads(path.read_text())
    files = about.pop("sha256")
    about.pop(SEAL)
    change(about)
    path.write_bytes(sealed(about, files))


def test_shards_of_a_sweep_are_one_run(made: tuple[Path, list[Path]], tmp_path: Path) -> None:
    whole, parts = made
    found = merge(parts[::-1], tmp_path / "out")
    assert bytes_of(tmp_path / "out") == bytes_of(whole)
    here, there = (json.loads((one / "run.json").read_text()) for one in (whole, tmp_path / "out"))
    for about in (here, there):
        about["meta"].pop("seconds")
        about.pop(SEAL)
    assert here == there
    assert torch.equal(found.values, interp.open(whole).values)


def test_what_a_shard_gives_back_says_what_comes_next(made: tuple[Path, list[Path]], tmp_path: Path) -> None:
    done = sweep(tmp_path / "s", shard="1/3")
    assert isinstance(done, ShardDone)
    assert 0 < done.chunks < done.of_chunks
    assert "Shard 1/3 of interp.patch" in repr(done)
    assert "interp merge" in repr(done)
    assert bytes_of(tmp_path / "s") == bytes_of(made[1][1])


def test_a_shard_that_was_killed_goes_on(copied: list[Path], made: tuple[Path, list[Path]], tmp_path: Path) -> None:
    (copied[1] / "frame.json").unlink()
    first = next((copied[1] / "chunks").glob("*.parquet"))
    first.unlink()
    with pytest.raises(interp.InterpError, match=r"shard1\)|shard1 is not finished"):
        merge(copied, tmp_path / "out")
    said = status(copied[1])
    assert not said.finished
    assert said.missing == ("-".join(str(int(n) - k) for k, n in enumerate(first.stem.split("-"))),)
    assert said.done + len(said.missing) <= said.of
    sweep(copied[1], shard=(1, OF))
    merge(copied, tmp_path / "out")
    assert bytes_of(tmp_path / "out") == bytes_of(made[0])


@pytest.mark.parametrize("shard", [(3, 3), (-1, 2), (0, 0), "a/b", "1", (0.0, 2), 4, (True, 2)])
def test_a_shard_is_an_index_of_a_number(shard: Any, tmp_path: Path) -> None:
    with pytest.raises(interp.InterpError, match="shard= is "):
        asked(shard, tmp_path)


def test_a_shard_needs_a_directory_of_its_own(copied: list[Path], made: tuple[Path, list[Path]]) -> None:
    with pytest.raises(interp.InterpError, match="needs out="):
        sweep(None, shard=(0, 2))
    with pytest.raises(interp.InterpError, match="holds shard 0/3"):
        sweep(copied[0], shard=(1, OF))
    with pytest.raises(interp.InterpError, match="give that shard= to continue it"):
        sweep(copied[0])
    with pytest.raises(interp.InterpError, match="is not empty and has no shard"):
        sweep(made[0], shard=(0, OF))


def test_shards_that_are_missing_or_there_twice_are_named(copied: list[Path], made: Any, tmp_path: Path) -> None:
    a, b, c = copied
    with pytest.raises(interp.InterpError, match="missing: 1/3"):
        merge([a, c], tmp_path / "out")
    with pytest.raises(interp.InterpError, match="the same shard, 0/3"):
        merge([a, b, c, a], tmp_path / "out")
    with pytest.raises(interp.InterpError, match="is no shard"):
        merge([a, b, made[0]], tmp_path / "out")
    with pytest.raises(interp.InterpError, match="no shards were given"):
        merge([], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_merge_goes_into_a_directory_of_its_own(copied: list[Path], tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    merge(copied, tmp_path / "out")
    before = bytes_of(tmp_path / "out")
    with pytest.raises(interp.InterpError, match="merged before"):
        merge(copied, tmp_path / "out")
    with pytest.raises(interp.InterpError, match="is not empty"):
        merge(copied, copied[0])
    assert bytes_of(tmp_path / "out") == before


def test_shards_of_other_models_data_code_or_chunks_say_so(copied: list[Path], tmp_path: Path) -> None:
    a, b, c = copied
    other = tmp_path / "other"
    sweep(other / "model", shard=(1, OF), kind="gpt2")
    with pytest.raises(interp.InterpError, match="their model is 'LlamaForCausalLM' and 'GPT2LMHeadModel'"):
        merge([a, other / "model", c], tmp_path / "out")
    sweep(other / "data", shard=(1, OF), seed=4)
    with pytest.raises(interp.InterpError, match="their inputs_hash is"):
        merge([a, other / "data", c], tmp_path / "out")
    sweep(other / "chunks", shard=(1, OF), budget=9000)
    with pytest.raises(interp.InterpError, match="their chunks is"):
        merge([a, other / "chunks", c], tmp_path / "out")
    resealed(b / MARK, lambda about: about["code"].update(sources="0" * 16))
    with pytest.raises(interp.InterpError, match="a digest of its sources"):
        merge([a, b, c], tmp_path / "out")


def test_a_damaged_shard_is_found(copied: list[Path], tmp_path: Path) -> None:
    file = next((copied[2] / "chunks").glob("*.parquet"))
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    with pytest.raises(interp.InterpError, match=f"{file.name} is damaged"):
        merge(copied, tmp_path / "out")
    assert list(tmp_path.glob("out*")) == []
    (copied[1] / PLAN).write_bytes((copied[1] / PLAN).read_bytes().replace(b"llama", b"lLama", 1)[:-2])
    with pytest.raises(interp.InterpError, match="damaged"):
        merge(copied, tmp_path / "out")


def test_shards_with_the_same_chunk_have_the_same_numbers(copied: list[Path], made: Any, tmp_path: Path) -> None:
    (chunk, *_) = sorted((copied[0] / "chunks").glob("*"))
    for file in (copied[0] / "chunks").glob(f"{chunk.stem}.*"):
        shutil.copy(file, copied[1] / "chunks" / file.name)
    merge(copied, tmp_path / "out")
    assert bytes_of(tmp_path / "out") == bytes_of(made[0])
    low, high = map(int, chunk.stem.split("-"))
    done = Journal(copied[0]).read(low, high)
    assert done is not None
    Journal(copied[1]).write(low, high, {"": done[0][""] + 1}, done[1])
    with pytest.raises(interp.InterpError, match="with other numbers"):
        merge(copied, tmp_path / "again")


def test_a_full_disk_loses_nothing(made: tuple[Path, list[Path]], copied: list[Path], tmp_path: Path) -> None:
    """A file that may not grow fails as a disk that is full does."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        with pytest.raises(interp.InterpError, match="cannot be written: File too large"):
            sweep(tmp_path / "late", shard=(0, OF))
        with pytest.raises(interp.InterpError, match="cannot be written"):
            merge(copied, tmp_path / "out")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert list(tmp_path.glob("out*")) == []
    sweep(tmp_path / "late", shard=(0, OF))
    merge([tmp_path / "late", *copied[1:]], tmp_path / "out")
    assert bytes_of(tmp_path / "out") == bytes_of(made[0])


def test_a_cell_that_failed_is_named(tmp_path: Path) -> None:
    def broken(logits: torch.Tensor, inputs: Any) -> torch.Tensor:
        if len(list(tmp_path.rglob("*.parquet"))) >= 2:
            raise ValueError("this prompt has no answer")
        return logits[:, -1, 3]

    with pytest.raises(ValueError, match="no answer"):
        sweep(tmp_path, metric=broken)
    said = status(tmp_path)
    assert len(said.failed) == 1
    assert "ValueError: this prompt has no answer" in said.failed[0]
    assert said.done > 0
    assert said.seconds is not None
    assert "FAILED" in repr(said)


def test_an_empty_directory_has_no_status(tmp_path: Path) -> None:
    with pytest.raises(interp.InterpError, match="holds no saved work"):
        status(tmp_path)


def test_the_command_refuses_a_wrong_part_before_any_work(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["patch", "zoo:nowhere", "--shard", "2/2", "--out", "s"])
    assert "such as 0/4 to 3/4, got '2/2'" in capsys.readouterr().err
    assert main(["patch", "zoo:nowhere", "--shard", "0/2"]) == 2
    assert "--shard needs --out" in capsys.readouterr().err


def test_the_commands_say_how_far_shards_are_and_merge_them(
    made: tuple[Path, list[Path]], copied: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names, out = [str(one) for one in copied], tmp_path / "merged"
    assert main(["status", *names, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)["directories"]
    assert [one["finished"] for one in told] == [True] * OF
    assert main(["merge", *names[1:], "--out", str(out)]) == 2
    assert "0/3" in capsys.readouterr().err
    assert not out.exists()
    assert main(["merge", *names, "--out", str(out)]) == 0
    assert f"from {OF} shards" in capsys.readouterr().out
    assert bytes_of(out) == bytes_of(made[0])
    for lacking, remedy in ((["merge", "--out", str(out)], "interp merge runs/s0"), (["status"], "interp status runs")):
        assert main(lacking) == 2
        assert remedy in capsys.readouterr().err
    assert main(["merge", *names]) == 2
    assert "--out" in capsys.readouterr().err
