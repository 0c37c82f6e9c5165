"""Edits as a merge of spans, and the learned sink of rows that see nothing, against the fp64 reference."""

from __future__ import annotations

import pytest
import torch

from interp.kernels import edits as E
from interp.kernels import masks as M
from interp.kernels.attention import attend


def edits(name: str, keys: int) -> list[E.Edit]:
    at = torch.arange(keys)
    near, far = (at >= 1) & (at < 3), (at >= 3) & (at < 5)
    return {
        "none": [],
        "scores": [E.Temperature(2.0, heads=(1,)), E.BiasKeys(near, 1.0), E.MaskKeys(at == 4, heads=(0, 1))],
        "moved": [E.Redistribute(near, far, 0.5), E.Gate(0.5)],
        "blended": [E.MaskKeys(at < 2), E.Blend("identity", 0.3, heads=(0, 2)), E.Blend("uniform", 0.2)],
    }[name]


@pytest.mark.parametrize("name", ["none", "scores", "moved", "blended"])
@pytest.mark.parametrize("shape", [(7, 7), (5, 9), (1, 6)])
@pytest.mark.parametrize("mask", [M.Full(), M.Causal()])
@pytest.mark.parametrize("sinks", [None, torch.tensor([0.5, -1.0, 2.0, 0.0])])
def test_spans_are_the_whole(name: str, shape: tuple[int, int], mask: M.Mask, sinks: torch.Tensor | None) -> None:
    q, k, v = (torch.randn(2, h, n, 8) for h, n in ((4, shape[0]), (2, shape[1]), (2, shape[1])))
    sets = {"near": (torch.arange(shape[1]) >= 1) & (torch.arange(shape[1]) < 3)}
    names = ["lse", "sink"] + ([] if name == "blended" else ["mass:near"])
    arguments = {"mask": mask, "stats": names, "key_sets": sets, "edits": edits(name, shape[1]), "sinks": sinks}
    found, exact = (attend(q, k, v, impl=i, **arguments) for i in ("merge", "reference"))
    torch.testing.assert_close(found.z, exact.z, rtol=1e-5, atol=2e-6)
    for n, expected in exact.stats.items():
        torch.testing.assert_close(found.stats[n], expected, rtol=1e-5, atol=3e-6, msg=lambda text, n=n: f"{n}: {text}")
    assert {n: int(x) for n, x in found.counts.items()} == {n: int(x) for n, x in exact.counts.items()}


@pytest.mark.parametrize("impl", ["rows", "sweep", "native"])
def test_the_sink_takes_all_of_a_blind_row(impl: str) -> None:
    q, k, v = (torch.randn(1, 2, 3, 8) for _ in range(3))
    hidden = M.Padding(torch.tensor([0]))
    out = attend(q, k, v, mask=hidden, sinks=torch.zeros(2), stats=["sink", "entropy", "max"], impl=impl)
    assert out.stats["sink"].tolist() == [[[1.0] * 3] * 2]
    assert float(out.stats["entropy"].abs().max()) == float(out.stats["max"].max()) == 0.0
