"""A model that listens, on two pretend accelerators: prepared, measured and aligned with the CPU's numbers."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from placed import split
from pretend import start
from spoken import tone, whisper

import interp


def asked(m: interp.Model) -> dict[str, Any]:
    x = m.prepare(audio=[tone(0.3), tone(0.8, seed=1)], language="en", continuation=" yes or no")
    spans = [[(" yes", (0.0, 0.1))], [(" no", (0.2, 0.4))]]
    seen, real = (
        m.attention(x, stats=["entropy", "mass:pad", "received"], heads="cross.L*", keys=k) for k in ("seen", "real")
    )
    frames = m.attention(x, stats=["distance", "mass:audio"], heads="encoder.L*")
    aligned = interp.heads.alignment(m, x, spans=spans)
    page = interp.explore(m, x).payload
    found = {f"{n} {site} {name}": value for n, one in enumerate((seen, real, frames))
             for site, some in one.values.items() for name, value in some.items()}  # fmt: skip
    return {**found, **aligned.values, **{f"page {n}": b["weights"] for n, b in enumerate(page["patterns"])}}


@pytest.mark.parametrize("where", ["two"])
def test_sound_on_accelerators(where: str) -> None:
    model, processor = whisper()
    here = asked(interp.attach(model, processor))
    start()
    there = asked(interp.attach(split(copy.deepcopy(model)), processor))
    assert here.keys() == there.keys()
    for name, value in here.items():
        assert there[name].device.type == "cpu"
        torch.testing.assert_close(there[name], value, atol=1e-4, rtol=1e-3, msg=name)
