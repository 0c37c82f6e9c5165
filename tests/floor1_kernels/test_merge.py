"""Edits as a merge of spans, and the learned sink of rows that see nothing, against the fp64 reference."""

from __future__ import annotations

import pytest
import torch

from interp.kernels import edits as E
from interp.kernels.attention import attend, explain
from interp.kernels.errors import AttentionError
from interp.kernels.masks import symbols as M


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


def sets(keys: int, step: int) -> torch.Tensor:
    return torch.arange(keys) % step == 0


REFUSED: dict[str, tuple[int, int, dict[str, object]]] = {
    "key sets that differ between examples": (
        6, 6, {"edits": E.MaskKeys(torch.stack([sets(6, 2), ~sets(6, 2)]))},
    ),
    "more queries than keys under a causal mask": (5, 3, {"mask": M.Causal()}),
    "key sets of more than 32 runs": (40, 40, {"edits": E.MaskKeys(sets(40, 2))}),
    "statistic entropy is not one of lse, mass, sink": (6, 6, {"stats": "entropy"}),
    "edit Emphasize is not among what it can do": (6, 6, {"edits": E.Emphasize(sets(6, 2), 0.5)}),
    "masses of a blended pattern": (
        6, 6, {"edits": E.Blend("uniform", 0.5), "stats": "mass:even", "key_sets": {"even": sets(6, 2)}},
    ),
    "a soft cap is not among what it can do": (6, 6, {"softcap": 2.0}),
    "a choice of rows is not among what it can do": (6, 6, {"rows": [1]}),
    "mask Power is not one of Causal, Full": (6, 6, {"mask": M.Power()}),
}  # fmt: skip


@pytest.mark.parametrize("reason", REFUSED)
def test_what_spans_cannot_give_is_refused_and_given_by_another(reason: str) -> None:
    queries, keys, arguments = REFUSED[reason]
    q, k, v = (torch.randn(2, h, n, 8) for h, n in ((4, queries), (2, keys), (2, keys)))
    assert explain(q, k, v, **arguments)["merge"] == reason
    with pytest.raises(AttentionError, match=reason):
        attend(q, k, v, impl="merge", **arguments)
    found, exact = (attend(q, k, v, impl=i, **arguments) for i in ("auto", "reference"))
    torch.testing.assert_close(found.z, exact.z, rtol=1e-5, atol=2e-6)


def test_thirty_two_runs_are_still_merged() -> None:
    q, k, v = (torch.randn(1, 1, 32, 8) for _ in range(3))
    arguments = {"edits": E.MaskKeys(sets(32, 2)), "stats": "lse"}
    found, exact = (attend(q, k, v, impl=i, **arguments) for i in ("merge", "reference"))
    torch.testing.assert_close(found.z, exact.z, rtol=1e-5, atol=2e-6)
    torch.testing.assert_close(found.lse, exact.lse, rtol=1e-5, atol=3e-6)
