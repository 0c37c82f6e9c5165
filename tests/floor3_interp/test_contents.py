"""A metric is known by its content: in another process, at another address, and by whatever it reads."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import interp
from interp.contents import content, named
from interp.metrics import KL, At, LogitDifference, RecoveredFraction, Similarity
from interp.zoo.families import tiny

pytestmark = pytest.mark.faults
SCALE, TABLE = 2.0, torch.arange(4.0)


def pair() -> dict[str, Any]:
    base = torch.arange(5, 23).view(2, 9)
    source = torch.cat([base[:, :3], base[:, 3:] + 40], 1)
    return {"base": {"input_ids": base}, "source": {"input_ids": source}, "sites": "L*.z"}


def column(n: int) -> Callable[..., Tensor]:
    return lambda logits, x: logits[:, -1, n]


def helped(logits: Tensor, x: Any) -> Tensor:
    return doubled(logits[:, -1, 3])


def doubled(x: Tensor) -> Tensor:
    return x * SCALE


def around(n: int) -> int:
    return around(n - 1) if n else 0


@dataclass(frozen=True)
class Mine:
    answer: int

    def __call__(self, logits: Tensor, x: Any) -> Tensor:
        return logits[:, -1, self.answer]


class Plain:
    def __call__(self, logits: Tensor, x: Any) -> Tensor:
        return logits[:, -1, 3]


def test_a_lambda_at_the_address_of_another_is_another_metric(tmp_path: Path) -> None:
    """As a loop over answers makes them: the first is gone when the second is made, and its address is free."""
    m = interp.attach(tiny("llama"))
    interp.patch(m, **pair(), metric=column(3), out=tmp_path)
    with pytest.raises(interp.InterpError, match="another sweep: its metrics"):
        interp.patch(m, **pair(), metric=column(4), out=tmp_path)
    again = interp.patch(m, **pair(), metric=column(3), out=tmp_path)
    assert torch.equal(again.values, interp.patch(m, **pair(), metric=column(3)).values)


SCRIPT = """
import sys, torch, interp
from interp.zoo.families import tiny
base = torch.arange(5, 23).view(2, 9)
source = torch.cat([base[:, :3], base[:, 3:] + 40], 1)
weights = {"w": torch.arange(3.0), "names": {"b", "a", "c"}}
def inner(x): return x * weights["w"][2]
def mine(logits, x, at=3):
    return inner(logits[:, -1, at])
m = interp.attach(tiny("llama"))
interp.patch(m, base={"input_ids": base}, source={"input_ids": source}, sites="L*.z", metric=mine, out=sys.argv[1])
"""


def test_a_function_is_known_again_in_a_new_process(tmp_path: Path) -> None:
    for seed in ("1", "2"):
        command = [sys.executable, "-c", SCRIPT, str(tmp_path)]
        done = subprocess.run(command, capture_output=True, text=True, env={**_env(), "PYTHONHASHSEED": seed})
        assert done.returncode == 0, done.stderr
    other = SCRIPT.replace("arange(3.0)", "arange(3.0) + 1")
    done = subprocess.run([sys.executable, "-c", other, str(tmp_path)], capture_output=True, text=True, env=_env())
    assert "another sweep: its metrics" in done.stderr


def _env() -> dict[str, str]:
    import os

    return {**os.environ, "OMP_NUM_THREADS": "1"}


def test_what_a_function_is() -> None:
    first, second = (lambda x: x + 1), (lambda x: x + 1)
    assert content(first) == content(second)
    assert content(column(3)) == content(column(3)) != content(column(4))
    assert content(lambda x: x + 1) != content(lambda x: x + 2)
    assert content(lambda x: x.sin()) != content(lambda x: x.cos())
    assert content(lambda x, n=1: x) != content(lambda x, n=2: x)
    assert content(lambda x, *, n=1: x) != content(lambda x, *, n=2: x)
    assert content(lambda x: lambda: 1) != content(lambda x: lambda: 2)
    assert content(partial(doubled)) != content(partial(helped))
    assert content(around)
    assert content(torch.relu) != content(torch.sigmoid)
    assert content(torch.nn.functional.relu) != content(torch.nn.functional.gelu)
    assert content("".join) != content(",".join)


def test_what_a_function_reads_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    before = content(helped)
    monkeypatch.setitem(globals(), "SCALE", 3.0)
    assert content(helped) != before
    monkeypatch.setitem(globals(), "SCALE", 2.0)
    assert content(helped) == before
    monkeypatch.setitem(globals(), "doubled", lambda x: x * SCALE * 1)
    assert content(helped) != before
    reads = lambda x: x @ TABLE  # noqa: E731
    before = content(reads)
    monkeypatch.setitem(globals(), "TABLE", TABLE + 1)
    assert content(reads) != before


def test_values_are_their_content() -> None:
    x = torch.randn(3, 4)
    same = [(x, x.clone()), (x.bfloat16(), x.bfloat16().clone()), ([1, 2], [1, 2]), ({"a": x}, {"a": x.clone()}),
            ({3, 1}, {1, 3}), (Mine(3), Mine(3)), (x.T, x.T.contiguous())]  # fmt: skip
    other = [(x, x + 1), (x, x.double()), (x, x.view(4, 3)), (1, 1.0), (1, True), ("1", 1), ([1, 2], (1, 2)),
             ([1], [1, 1]), (Mine(3), Mine(4)), ([[1], 2], [1, [2]]), (float("nan"), 0.0), (-0.0, 0.0)]  # fmt: skip
    assert all(content(a) == content(b) for a, b in same)
    assert not any(content(a) == content(b) for a, b in other)
    layer, twin = nn.Linear(2, 2), nn.Linear(2, 2)
    assert content(layer) != content(twin)
    twin.load_state_dict(layer.state_dict())
    assert content(layer) == content(twin)


def test_shipped_metrics_are_their_content() -> None:
    logits = torch.randn(2, 1, 5)
    difference = LogitDifference(((1,), (2,)), ((3,), (4,)))
    pairs: list[tuple[Any, Any, Any]] = [
        (difference, LogitDifference(((1,), (2,)), ((3,), (4,))), LogitDifference(((1,), (2,)), ((3,), (0,)))),
        (KL(logits), KL(logits.clone()), KL(logits + torch.arange(5))),
        (RecoveredFraction(difference, 0.0, 1.0), RecoveredFraction(difference, 0.0, 1.0),
         RecoveredFraction(difference, 0.0, 2.0)),
        (Similarity(target=logits[:, 0]), Similarity(target=logits[:, 0].clone()), Similarity(target=logits[0, 0])),
        (At("L0.z", lambda v, x: v[:, 0, 0]), At("L0.z", lambda v, x: v[:, 0, 0]), At("L0.z", lambda v, x: v[:, 0, 1])),
    ]  # fmt: skip
    for one, same, other in pairs:
        assert named(one) == named(same)
        assert named(one) != named(other)


def test_what_has_no_content_is_refused_in_words(tmp_path: Path) -> None:
    m = interp.attach(tiny("llama"))
    with pytest.raises(interp.InterpError, match=r"Plain cannot be told by its content.*named function.*dataclass"):
        interp.patch(m, **pair(), metric=Plain(), out=tmp_path)
    closed = Plain()
    with pytest.raises(interp.InterpError, match="holds a Plain"):
        interp.patch(m, **pair(), metric=lambda logits, x: closed(logits, x), out=tmp_path)
    assert interp.patch(m, **pair(), metric=Plain()).values.shape


def test_two_tapes_and_two_means_are_two_sources(tmp_path: Path) -> None:
    from interp.patching.sources import Average

    m = interp.attach(tiny("llama"))
    how = {**pair(), "metric": column(3)}
    x = how.pop("source")
    plain, other = m.run(x, record="L*.z"), m.run(x, record="L*.z", edits=[interp.Zero("L0.z")])
    interp.patch(m, **how, source=plain, out=tmp_path / "tape")
    interp.patch(m, **how, source=plain, out=tmp_path / "tape")
    with pytest.raises(interp.InterpError, match="another sweep: its source"):
        interp.patch(m, **how, source=other, out=tmp_path / "tape")
    ids = x["input_ids"]
    interp.patch(m, **how, source=Average({"input_ids": ids}), out=tmp_path / "mean")
    with pytest.raises(interp.InterpError, match="another sweep: its source"):
        interp.patch(m, **how, source=Average({"input_ids": ids + 1}), out=tmp_path / "mean")
