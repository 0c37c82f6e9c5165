"""Operators in real models: every tower's heads, padding, caches, sweeps and gradients."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

import interp
from interp.hooks.errors import EditError
from interp.hooks.examples.example import example
from interp.kernels.errors import InterpError
from interp.kernels.masks.symbols import After, Power, PowerBlocks, Window, Windows
from interp.operators.linear.agent import Agent
from interp.operators.linear.inline import InLine
from interp.operators.linear.linear import Linear
from interp.operators.linear.local_linear import LocalLinear
from interp.operators.linear.rank_augmented import RankAugmented
from interp.operators.linear.scan import PrefixScan
from interp.operators.other.channels import Channels
from interp.operators.other.memory import MemoryTokens
from interp.operators.other.relative import RelativeScores
from interp.operators.other.reversed import Reversed
from interp.operators.other.static import StaticQK
from interp.operators.routed.chunks import Chunks
from interp.operators.routed.clusters import Clusters
from interp.operators.routed.dynamic_mask import DynamicMask
from interp.operators.routed.estimated import Estimated
from interp.operators.routed.landmarks import Landmarks
from interp.operators.routed.low_rank import LowRank
from interp.operators.routed.two_level import TwoLevel
from interp.operators.windows.masked import Masked
from interp.zoo.families import tiny

WIDTH = 8
"""What heads of the tiny families are wide."""


def drawn(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


def operators(site: str, width: int = WIDTH) -> dict[str, Any]:
    return {
        **{name: Linear(site, name) for name in ("elu", "relu", "exp", "taylor")},
        "random": Linear(site, "random", count=16),
        "hedgehog": Linear(site, "hedgehog", maps=drawn(2, 1, 4, width)),
        "lightning": Linear(site, "silu", rate=0.1, normalize=False),
        "inline": InLine(site), "rala": RankAugmented(site), "agent": Agent(site, 3),
        "local linear": LocalLinear(site), "scan": PrefixScan(site, drawn(1, width)), "mean scan": PrefixScan(site),
        "window": Masked(site, Window(3)), "power": Masked(site, Power()), "blocks": Masked(site, PowerBlocks(2, 1)),
        "windows": Masked(site, After(1, Windows((0,), 3, 1))),
        "clusters": Clusters(site, 3), "given clusters": Clusters(site, centers=drawn(1, 3, width)),
        "two level": TwoLevel(site, size=3, keep=1), "chunks": Chunks(site, budget=2, count=3),
        "dynamic": DynamicMask(site, keep=2), "low rank": LowRank(site, 2), "estimated": Estimated(site, 4, 2),
        "landmarks": Landmarks(site, 3), "reversed": Reversed(site), "senders": Reversed(site, "senders"),
        "mean query": StaticQK(site), "random scores": StaticQK(site, "random", "random"),
        "relative": RelativeScores(site, drawn(1, 5, width)),
        "memory": MemoryTokens(site, drawn(1, 2, width), drawn(1, 2, width)), "channels": Channels(site),
    }  # fmt: skip


NAMES = list(operators("L0"))
AHEAD = {"agent", "senders", "channels"}
"""Refused where a tower hides later keys."""
WHOLE = {"rala", "agent", "mean scan", "clusters", "two level", "chunks", "low rank", "reversed", "senders",
         "mean query", "channels"}  # fmt: skip
"""Refused in a call that goes on from a cache."""
PLACED = {"lightning", "window", "power", "blocks", "windows", "two level", "chunks", "landmarks", "random scores",
          "relative", "clusters", "given clusters", "low rank"}  # fmt: skip
"""Refused in cross-attention."""
ADDED = {"elu", "relu", "exp", "taylor", "random", "hedgehog", "lightning", "inline", "rala", "agent", "scan",
         "mean scan", "channels"}  # fmt: skip
"""Refused where a bias is added to the scores."""
KINDS: dict[str, tuple[str, str, set[str]]] = {
    "gpt2": ("gpt2", "L1", AHEAD),
    "llama": ("llama", "L1", AHEAD),
    "vit": ("vit", "L1", set()),
    "bert": ("bert", "L1", set()),
    "t5": ("t5", "encoder.L1", ADDED),
    "bart": ("bart", "cross.L1", PLACED | {"channels", "senders"}),
    "llava": ("llava", "vision.L1", set()),
    "text": ("llava", "text.L1", AHEAD),
    "mpt": ("mpt", "L1", set(NAMES)),
}


@cache
def model(name: str) -> interp.Model:
    return interp.attach(tiny(name, dtype=torch.float64))


def made(kind: str) -> tuple[interp.Model, Any, str, int]:
    name, where, _ = KINDS[kind]
    m = model(name)
    padding = "left" if name in ("gpt2", "llama", "bert") else None
    x = m.inputs(dict(example(m.module, batch=2, length=9, padding=padding, seed=3)))
    width = int(m.ready().tower(where.rpartition(".")[0] or None, text=where).layers[1].d_value)
    return m, x, where, width


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "mpt"])
def test_an_operator_attends_in_any_tower_or_is_refused_by_name(kind: str) -> None:
    m, x, where, width = made(kind)
    plain = m.run(x)["logits"]
    for name, operator in operators(f"{where}.H1", width).items():
        if name in KINDS[kind][2]:
            with pytest.raises(EditError, match=type(operator).__name__):
                m.run(x, edits=[operator])
            continue
        has_pattern = name != "channels"
        sites = [f"{where}.{one}" for one in ("z", "v", *(("H1.pattern",) if has_pattern else ()))]
        tape = m.run(x, edits=[operator], record=sites)
        z = tape[f"{where}.z"][:, :, 1]
        if has_pattern and name != "memory":
            v = tape[f"{where}.v"]
            v = v[:, :, 1 // (tape[f"{where}.z"].shape[2] // v.shape[2])]
            torch.testing.assert_close(z, tape[f"{where}.H1.pattern"][:, 0] @ v, atol=1e-5, rtol=1e-5, msg=name)
        assert float((tape["logits"] - plain).abs().max()) > 1e-7, name


def test_a_model_whose_heads_are_not_seen_refuses_operators() -> None:
    from models import mpt

    m = mpt()
    x = m.inputs(dict(example(m.module, batch=1, length=6, seed=3)))
    with pytest.raises(InterpError):
        m.run(x, edits=[Linear("L1.H1")])


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_generating_with_a_cache_is_generating_without(kind: str, name: str) -> None:
    m = model(kind)
    x = m.inputs(dict(example(m.module, batch=2, length=7, padding="left", seed=3)))
    operator = operators("L1.H*", int(m.ready().tower(None, text="L1").layers[1].d_value))[name]
    if name in WHOLE:
        with pytest.raises(EditError, match=type(operator).__name__):
            m.generate(x, edits=[operator], max_new_tokens=3)
        return
    out = m.generate(x, edits=[operator], max_new_tokens=4)
    ids, mask = x.kwargs["input_ids"], x.kwargs["attention_mask"]
    for step in range(4):
        places = (mask.cumsum(1) - 1).clamp(min=0)
        whole = m.inputs({"input_ids": ids, "attention_mask": mask, "position_ids": places})
        logprobs = m.run(whole, edits=[operator])["logits"][:, -1].log_softmax(-1)
        picked = logprobs.argmax(-1, keepdim=True)
        assert out.ids[:, step].tolist() == picked[:, 0].tolist()
        for row, said in enumerate(out.logprobs):
            assert abs(float(said[step]) - float(logprobs[row, picked[row]])) < 1e-5
        ids, mask = torch.cat([ids, picked], 1), torch.cat([mask, torch.ones_like(picked)], 1)


@pytest.mark.parametrize("name", ["elu", "window", "landmarks"])
def test_a_sweep_under_an_operator_is_the_loop(name: str) -> None:
    m = interp.load("zoo:ioi")
    task = interp.tasks.ioi(m, n=2)
    operator = operators("L0.H*", 32)[name]
    with m.edited([operator]):
        with pytest.warns(UserWarning, match="does not do the same to every token"):
            found = interp.patch(m, base=task.corrupt, source=task.clean, metric=task.metric, sites="L1.H0-1.z")
        source, base = m.run(task.clean, record="L1.z"), task.metric(m.run(task.corrupt)["logits"], task.corrupt)
        for n, site in enumerate(found.sites):
            one = m.run(task.corrupt, edits=[interp.Set(str(site), source[str(site)])])["logits"]
            want = (task.metric(one, task.corrupt) - base).double()
            torch.testing.assert_close(found.values[n].flatten().double(), want, atol=1e-4, rtol=1e-4)


def test_an_attribution_goes_through_an_operator() -> None:
    """The derivative of the metric along a head's z, by finite differences of whole runs."""
    m = model("gpt2")
    x, y = (m.inputs(dict(example(m.module, batch=1, length=7, seed=seed))) for seed in (1, 2))

    def metric(logits: Tensor, inputs: Any) -> Tensor:
        return logits[:, -1, 0] - logits[:, -1, 1]

    with m.edited([Linear("L1.H*", "taylor"), InLine("L0.H0")]):
        found = interp.attribute(m, base=x, source=y, metric=metric, sites="L0.H1.z", method="atp", verify=0)
        gap = m.run(y, record="L0.z")["L0.z"] - m.run(x, record="L0.z")["L0.z"]
        step = 1e-5
        ends = [
            metric(m.run(x, edits=[interp.Add("L0.H1.z", sign * step * gap[:, :, 1:2])])["logits"], x)
            for sign in (1, -1)
        ]
    slope = (ends[0] - ends[1]) / (2 * step)
    torch.testing.assert_close(found.values.flatten().double(), slope.flatten(), atol=1e-5, rtol=1e-4)


def test_two_operators_at_one_head_are_refused() -> None:
    m, x, where, _ = made("llama")
    with pytest.raises(EditError, match=r"Linear.*InLine"):
        m.run(x, edits=[Linear(f"{where}.H1"), InLine(f"{where}.H*")])


@pytest.mark.parametrize("name", NAMES)
def test_an_operator_is_a_value(name: str) -> None:
    one, same, other = (operators(site)[name] for site in ("L0.H1", "L0.H1", "L0.H2"))
    assert one == same
    assert hash(one) == hash(same)
    assert one != other
    assert repr(one).startswith(f"{type(one).__name__}('L0.H1'")
    assert one.written == same.written


def test_rows_and_positions_keep_an_operator_to_them() -> None:
    m, x, where, _ = made("gpt2")
    plain, tape = (m.run(x, record=f"{where}.z", edits=edits) for edits in (
        [], [InLine(f"{where}.H1", positions="last", rows=(1,))]))  # fmt: skip
    moved = (plain[f"{where}.z"] - tape[f"{where}.z"]).abs().amax(-1) > 1e-9
    assert moved.nonzero().tolist() == [[1, 8, 1]]


def test_bfloat16_stays_bfloat16() -> None:
    m = interp.attach(tiny("llama", dtype=torch.bfloat16))
    x = m.inputs(dict(example(m.module, batch=1, length=9, seed=3)))
    for name, operator in operators("L1.H*", int(m.ready().tower(None, text="L1").layers[1].d_value)).items():
        if name not in AHEAD:
            assert m.run(x, edits=[operator], record="L1.z")["L1.z"].dtype == torch.bfloat16, name
