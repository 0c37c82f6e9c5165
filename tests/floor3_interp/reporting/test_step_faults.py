"""Steps of a report whose files were damaged: gone on with unharmed, or refused by name."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import pytest

import interp
from interp.reporting.steps.steps import Steps

pytestmark = pytest.mark.faults
PLAN = {"model": "x", "seed": 3}
ANSWER = {"number": 0.1234567, "rows": [1, 2, 3], "text": "a\u2028b", "nan": float("nan")}


def gone_on(folder: Path) -> str | None:
    """The step's answer, done again where it is not there; None where the directory is refused."""
    try:
        return repr(Steps(folder, PLAN, resume=True, overwrite=False).do("one", lambda: ANSWER))
    except interp.InterpError:
        return None


def test_no_flipped_bit_of_a_step_is_silent(tmp_path: Path) -> None:
    Steps(tmp_path / "whole", PLAN, resume=False, overwrite=False).do("one", lambda: ANSWER)
    want, chance, refused = gone_on(tmp_path / "whole"), random.Random(4), 0
    for n in range(200):
        folder = Path(shutil.copytree(tmp_path / "whole", tmp_path / str(n)))
        file = folder / "steps" / chance.choice(("plan.json", "one.json"))
        data = bytearray(file.read_bytes())
        data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
        file.write_bytes(data)
        found = gone_on(folder)
        refused += found is None
        assert found in (None, want)
    assert refused > 180


@pytest.mark.parametrize("data", [b"", b"null", b"[]", b"\xff", b"[" * 100_000, b"{", b"9" * 5000])
def test_a_step_that_is_no_object_is_refused(data: bytes, tmp_path: Path) -> None:
    Steps(tmp_path, PLAN, resume=False, overwrite=False).do("one", lambda: ANSWER)
    for name in ("one.json", "plan.json"):
        (tmp_path / "steps" / name).write_bytes(data)
        assert gone_on(tmp_path) is None
