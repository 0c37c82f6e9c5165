"""Damage on disk is never silent: bits that flip, shards that do not cover, indexes that point elsewhere."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jaxtyping import TypeCheckError

import interp
from interp.hooks.sealed import SEAL, sealed
from interp.metrics import LogitDifference
from interp.zoo.families import tiny

pytestmark = pytest.mark.faults
METRIC = LogitDifference(answers=((7,), (8,)), wrong=((10,), (11,)))
FLIPS = 200


def pair() -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    base = torch.arange(5, 23).view(2, 9)
    return {"input_ids": base}, {"input_ids": torch.cat([base[:, :3], base[:, 3:] + 40], 1)}


def sweep(m: interp.Model, out: Path | None) -> interp.Effects:
    base, source = pair()
    return interp.patch(m, base=base, source=source, metric=METRIC, sites="L*.H*.z", out=out, budget=4000)


def flipped(folder: Path, reading: Callable[[Path], Any], scratch: Path) -> int:
    """How many of 200 single bits, drawn over all files, are refused; the others leave every number as it is."""
    want, chance, refused = reading(Path(shutil.copytree(folder, scratch / "undamaged"))), random.Random(11), 0
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    sizes = [path.stat().st_size for path in files]
    for n in range(FLIPS):
        file = chance.choices(files, sizes)[0] if n % 2 else chance.choice(files)
        copy = scratch / str(n)
        shutil.copytree(folder, copy)
        hurt = copy / file.relative_to(folder)
        data = bytearray(hurt.read_bytes())
        at = chance.randrange(8 * len(data))
        data[at // 8] ^= 1 << at % 8
        hurt.write_bytes(data)
        said = refusal(reading, copy)
        refused += said is not None
        if said is None:
            assert reading(copy) == want, (file, at)
        else:
            assert file.name in said or str(copy) in said, said
        shutil.rmtree(copy)
    return refused


def refusal(reading: Callable[[Path], Any], folder: Path) -> str | None:
    """In which words a directory is refused, None where it is read."""
    try:
        reading(folder)
    except interp.InterpError as why:
        return str(why)
    except TypeCheckError as why:  # the type checks of this suite look at a tensor of a tape, and wrap what that raises
        inner: BaseException | None = why
        while inner is not None and not isinstance(inner, interp.InterpError):
            inner = inner.__cause__
        return str(inner) if inner is not None else None
    return None


def numbers(e: Any) -> Any:
    return {name: value.tolist() for name, value in e.tensors().items()}, e.facts()


def test_no_flipped_bit_of_a_saved_result_is_silent(tmp_path: Path) -> None:
    m = interp.attach(tiny("llama"))
    sweep(m, None).save(tmp_path / "saved")
    assert {file.name for file in (tmp_path / "saved").iterdir()} == {
        "run.json",
        "effects.safetensors",
        "effects.parquet",
    }
    assert flipped(tmp_path / "saved", lambda folder: numbers(interp.open(folder)), tmp_path) > 0.9 * FLIPS


def test_no_flipped_bit_of_a_journaled_sweep_is_silent(tmp_path: Path) -> None:
    """Gone on with from its shards, all of which are there."""
    m = interp.attach(tiny("llama"))
    m.ready()
    sweep(m, tmp_path / "done")
    for name in ("run.json", "effects.safetensors", "effects.parquet"):
        (tmp_path / "done" / name).unlink()

    def again(folder: Path) -> Any:
        e = sweep(m, folder)
        return e.values.tolist(), e.noise_floor

    assert flipped(tmp_path / "done", again, tmp_path) > 0.9 * FLIPS


def test_no_flipped_bit_of_a_tape_is_silent(tmp_path: Path) -> None:
    m = interp.attach(tiny("llama"))
    x = m.prepare(pair()[0]["input_ids"].tolist())
    m.run(x, record=["L*.z", "L0.pattern"]).save(tmp_path / "tape")

    def everything(folder: Path) -> Any:
        tape = interp.open(folder)
        return {site: tape[site].tolist() for site in tape}, tape.inputs.digest(), str(tape.anatomy), tape.meta

    assert flipped(tmp_path / "tape", everything, tmp_path) > 0.9 * FLIPS


def test_a_shard_covers_its_chunk(tmp_path: Path) -> None:
    m = interp.attach(tiny("llama"))
    sweep(m, tmp_path)
    first, second, *_ = sorted((tmp_path / "chunks").glob("*.parquet"))
    data = first.read_bytes()
    shutil.copy(second, first)
    with pytest.raises(interp.InterpError, match=rf"{first.name} is damaged.*checksum"):
        sweep(m, tmp_path)
    from interp.cells.journal import _sum

    first.with_suffix(".sha256").write_bytes(_sum(first, first.read_bytes()))
    with pytest.raises(interp.InterpError, match="does not cover cells 0 to"):
        sweep(m, tmp_path)
    first.write_bytes(data)
    first.with_suffix(".sha256").unlink()
    with pytest.raises(interp.InterpError, match="Remove both"):
        sweep(m, tmp_path)
    first.unlink()
    sweep(m, tmp_path)


def resealed(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """A JSON that somebody changed on purpose, with a seal of its own."""
    about = json.loads(path.read_text())
    files = about.pop("sha256")
    about.pop(SEAL)
    change(about)
    path.write_bytes(sealed(about, files))


def test_chunks_of_a_plan_are_all_the_cells(tmp_path: Path) -> None:
    m = interp.attach(tiny("llama"))
    sweep(m, tmp_path)
    whole = (tmp_path / "plan.json").read_bytes()
    resealed(tmp_path / "plan.json", lambda plan: plan["chunks"].pop())
    with pytest.raises(interp.InterpError, match="do not cover the"):
        sweep(m, tmp_path)
    (tmp_path / "plan.json").write_bytes(whole)
    resealed(tmp_path / "plan.json", lambda plan: plan["chunks"].pop(1))
    with pytest.raises(interp.InterpError, match="do not follow each other"):
        sweep(m, tmp_path)


def test_an_index_points_into_its_own_directory(tmp_path: Path) -> None:
    m = interp.attach(tiny("llama"))
    m.run(pair()[0], record="L*.z").save(tmp_path / "tape")
    shutil.copy(tmp_path / "tape" / "00000.safetensors", tmp_path / "elsewhere.safetensors")
    for name in ("../elsewhere.safetensors", str(tmp_path / "elsewhere.safetensors"), "", "a\0b", 3):
        resealed(tmp_path / "tape" / "tape.json", lambda about, name=name: about["files"][0].__setitem__(1, name))
        with pytest.raises(interp.InterpError, match="an index names"):
            interp.open(tmp_path / "tape")
    sweep(m, None).save(tmp_path / "saved")
    about = json.loads((tmp_path / "saved" / "run.json").read_text())
    about.pop(SEAL)
    files = {**about.pop("sha256"), "../elsewhere.safetensors": "0" * 64}
    (tmp_path / "saved" / "run.json").write_bytes(sealed(about, files))
    with pytest.raises(interp.InterpError, match="outside of this directory"):
        interp.open(tmp_path / "saved")


def test_inputs_name_towers_in_their_own_directory(tmp_path: Path) -> None:
    m = interp.attach(tiny("t5"))
    from interp.hooks.examples.example import example
    from interp.hooks.inputs.inputs import Inputs

    m.inputs(dict(example(m.module))).save(tmp_path / "x")
    assert Inputs.load(tmp_path / "x").digest()
    resealed(tmp_path / "x" / "inputs.json", lambda about: about["towers"].update({"../../x": None}))
    with pytest.raises(interp.InterpError, match="outside of this directory"):
        Inputs.load(tmp_path / "x")


def test_a_table_that_was_changed_is_named_and_can_be_removed(tmp_path: Path) -> None:
    m = interp.attach(tiny("llama"))
    e = sweep(m, None)
    e.save(tmp_path)
    (tmp_path / "effects.parquet").write_bytes(b"PAR1")
    with pytest.raises(interp.InterpError, match=r"effects\.parquet is damaged"):
        interp.open(tmp_path)
    (tmp_path / "effects.parquet").unlink()
    assert torch.equal(interp.open(tmp_path).values, e.values)
    (tmp_path / "effects.safetensors").unlink()
    with pytest.raises(interp.InterpError, match=r"effects\.safetensors is missing"):
        interp.open(tmp_path)


ANY = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 50) | st.floats() | st.sampled_from(["L0.z", "text", "a"]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
FEW = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tape, a sweep that is not finished, and inputs, all without seals, as version 0.2 wrote them."""
    folder = tmp_path_factory.mktemp("kept")
    m = interp.attach(tiny("llama"))
    m.run(pair()[0], record=["L*.z"]).save(folder / "tape")
    sweep(m, folder / "sweep")
    (folder / "sweep" / "run.json").unlink()
    for file in folder.rglob("*.json"):
        about = json.loads(file.read_text())
        file.write_text(json.dumps({name: value for name, value in about.items() if name not in (SEAL, "sha256")}))
    return folder


@pytest.mark.parametrize("name", ["tape/tape.json", "tape/inputs/inputs.json", "sweep/plan.json"])
@given(st.data())
@FEW
def test_json_of_any_shape_is_read_or_refused(name: str, kept: Path, data: st.DataObject) -> None:
    file = kept / name
    whole = file.read_text()
    about = json.loads(whole)
    field = data.draw(st.sampled_from([*about]))
    inner = about[field]
    if isinstance(inner, dict) and inner and data.draw(st.booleans()):
        key = data.draw(st.sampled_from([*inner]))
        about[field] = {**inner, key: data.draw(ANY)}
    else:
        about[field] = data.draw(ANY)
    file.write_text(json.dumps(about))
    try:
        with suppress(interp.InterpError):
            interp.open(kept / name.partition("/")[0])
        with suppress(interp.InterpError):
            sweep(interp.attach(tiny("llama")), kept / "sweep") if "plan" in name else None
    finally:
        file.write_text(whole)
        (kept / "sweep" / "run.json").unlink(missing_ok=True)


@given(st.binary(max_size=60), st.integers(0, 3000), st.sampled_from(["parquet", "sha256", "safetensors", "json"]))
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
def test_noise_in_any_file_is_read_or_refused(kept: Path, noise: bytes, at: int, kind: str) -> None:
    file = sorted(kept.rglob(f"*.{kind}"))[at % len(list(kept.rglob(f"*.{kind}")))]
    whole = file.read_bytes()
    file.write_bytes(whole[:at] + noise + whole[at:] if at % 2 else noise)
    try:
        for folder in ("tape", "sweep"):
            if (said := refusal(interp.open, kept / folder)) is not None:
                assert said
    finally:
        file.write_bytes(whole)
