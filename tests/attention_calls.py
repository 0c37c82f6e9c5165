"""Attention calls drawn by hypothesis, and how near two computations of one must come.

Calls are drawn from what an implementation declares that it can do. Some are refused all the same, and a refusal is no
comparison: `compared` counts those that were made.

The tolerance is not a number somebody liked: it is the error that the dense reference itself makes when it is computed
in the precision of the implementation, on the same inputs, times four, and no less than a score's rounding does to
exp(s).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from interp.kernels import attention
from interp.kernels import edits as E
from interp.kernels.abilities import Abilities
from interp.kernels.cpu import reference
from interp.kernels.masks import symbols as M
from interp.kernels.request import request
from interp.kernels.stats import parse

STATS = [
    "lse", "entropy", "max", "argmax", "topk:1", "topk:4", "distance", "first", "previous", "self", "sink",
    "mass:some", "mass:none", "received", "seen", "received_mean",
]  # fmt: skip


@st.composite
def calls(draw: st.DrawFn, able: Abilities = reference.ABLE) -> dict[str, Any]:
    """The shape of a call of what is declared; tensors are made from its seed."""
    takes, dtypes = able.options, ["float32", "float32", "float64", "bfloat16"]
    masks = [n for n, kind in KINDS.items() if kind in able.masks]
    edits = [n for n, form in FORMS.items() if form in able.edits]
    stats = [n for n in STATS if parse(n).kind in able.stats]
    return {
        "seed": draw(st.integers(0, 2**16)),
        "batch": draw(st.integers(1, 2)),
        "kv": draw(st.integers(1, 2)),
        "group": draw(st.integers(1, 3)),
        "queries": draw(st.integers(1, 20)),
        "more": draw(st.integers(-3, 9)),
        "d": draw(st.sampled_from([1, 4, 8, 17])),
        "dv": draw(st.sampled_from([None, 3, 16] if "width" in takes else [None])),
        "mask": draw(st.sampled_from(masks)),
        "edits": draw(st.lists(st.sampled_from(edits), max_size=4)),
        "stats": draw(st.lists(st.sampled_from(stats), max_size=8, unique=True)),
        "softcap": draw(st.sampled_from([None, 2.0] if "softcap" in takes else [None])),
        "sinks": draw(st.booleans() if "sinks" in takes else st.just(False)),
        "bias": draw(st.booleans() if "bias" in takes else st.just(False)),
        "rows": draw(st.booleans() if "rows" in takes else st.just(False)),
        "size": draw(st.sampled_from([0.3, 1.0, 4.0])),
        "dtype": draw(st.sampled_from([x for x in dtypes if getattr(torch, x) in able.dtypes])),
    }


def compared(calls: st.SearchStrategy[dict[str, Any]], compare: Callable[[dict[str, Any]], bool], *, most: int) -> int:
    """How many of the calls were compared, of up to so many that are drawn; `compare` says whether it did."""
    made = 0

    @given(call=calls)
    @settings(max_examples=most, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
    def each(call: dict[str, Any]) -> None:
        nonlocal made
        made += compare(call)

    each()
    return made


def _ids(g: torch.Generator, keys: int) -> Tensor:
    return torch.randint(0, 3, (keys,), generator=g).sort().values - torch.randint(0, 2, (1,), generator=g)


MASKS = {
    "none": lambda g, b, h, n, m: None,
    "causal": lambda g, b, h, n, m: M.Causal(),
    "sliding": lambda g, b, h, n, m: M.Causal() & M.Window(3),
    "prefix": lambda g, b, h, n, m: M.Causal() | M.Prefix(2),
    "documents": lambda g, b, h, n, m: M.Documents(_ids(g, m)) & M.Causal() if n <= m else M.Full(),
    "padding": lambda g, b, h, n, m: M.Padding(torch.randint(0, m + 1, (b,), generator=g)) & M.Causal(),
    "left": lambda g, b, h, n, m: M.Padding(torch.randint(0, m + 1, (b,), generator=g), "left", m) & M.Causal(),
    "heads": lambda g, b, h, n, m: M.PerHead((M.Causal(), M.Full(), M.Strided(3), M.Power(), M.Full(), M.Causal())[:h]),
    "bool": lambda g, b, h, n, m: torch.rand(b, 1, n, m, generator=g) > 0.6,
    "additive": lambda g, b, h, n, m: torch.where(
        torch.rand(1, h, n, m, generator=g) > 0.3, torch.randn(1, h, n, m, generator=g), torch.finfo(torch.float32).min
    ),
    "alibi": lambda g, b, h, n, m: M.Alibi(torch.rand(h, generator=g)) & M.Causal(),
}  # fmt: skip


def _some(g: torch.Generator, *shape: int) -> Tensor:
    return torch.rand(*shape, generator=g) > 0.5


def _disjoint(g: torch.Generator, keys: int) -> tuple[Tensor, Tensor]:
    kind = torch.randint(0, 3, (keys,), generator=g)
    return kind == 0, kind == 1


EDITS = {
    "temperature": lambda g, b, h, n, m: E.Temperature(0.7, heads=(0,)),
    "temperatures": lambda g, b, h, n, m: E.Temperature(torch.rand(h, generator=g) + 0.5, rows=_some(g, b, n)),
    "bias": lambda g, b, h, n, m: E.BiasKeys(_some(g, b, m), -1.5, heads=(h - 1,)),
    "emphasize": lambda g, b, h, n, m: E.Emphasize(_some(g, m), 0.5, rows=_some(g, 1, n)),
    "mask": lambda g, b, h, n, m: E.MaskKeys(_some(g, b, m), heads=(0, h - 1)),
    "redistribute": lambda g, b, h, n, m: E.Redistribute(*_disjoint(g, m), 0.6, rows=_some(g, b, n)),
    "redistribute all": lambda g, b, h, n, m: E.Redistribute(*_disjoint(g, m), 1.0, heads=(0,)),
    "identity": lambda g, b, h, n, m: E.Blend("identity" if n <= m else "uniform", 0.4),
    "uniform": lambda g, b, h, n, m: E.Blend("uniform", 0.3, heads=(0,), rows=_some(g, b, n)),
    "gate": lambda g, b, h, n, m: E.Gate(0.25, heads=(h - 1,)),
    "gates": lambda g, b, h, n, m: E.Gate(torch.rand(h, generator=g), rows=_some(g, b, n)),
}  # fmt: skip


_SMALL = (torch.Generator().manual_seed(0), 1, 2, 3, 3)
KINDS = {n: type(M.as_mask(make(*_SMALL))) for n, make in MASKS.items()}
FORMS = {n: make(*_SMALL).form for n, make in EDITS.items()}
"""What an implementation must declare to be drawn each of them."""


def build(call: dict[str, Any]) -> tuple[Tensor, Tensor, Tensor, dict[str, Any]]:
    g = torch.Generator().manual_seed(call["seed"])
    b, h, n = call["batch"], call["kv"] * call["group"], call["queries"]
    m, d, dtype = max(1, n + call["more"]), call["d"], getattr(torch, call["dtype"])
    q = (torch.randn(b, h, n, d, generator=g) * call["size"]).to(dtype)
    k = (torch.randn(b, m, call["kv"], d, generator=g) * call["size"]).to(dtype).transpose(1, 2)
    v = torch.randn(b, call["kv"], m, call["dv"] or d, generator=g).to(dtype)
    more = {
        "mask": MASKS[call["mask"]](g, b, h, n, m),
        "softcap": call["softcap"],
        "sinks": torch.randn(h, generator=g) if call["sinks"] else None,
        "bias": torch.randn(1, h, 1, m, generator=g) if call["bias"] else None,
        "edits": [EDITS[e](g, b, h, n, m) for e in call["edits"]],
        "stats": call["stats"],
        "rows": sorted({int(x) for x in torch.randint(0, n, (3,), generator=g)}) if call["rows"] else None,
        "key_sets": {"some": _some(g, b, m), "none": torch.zeros(m, dtype=torch.bool)},
    }
    return q, k, v, more


def tolerance(low: Tensor, high: Tensor, scores: float) -> float:
    """Four times the error of the same mathematics in the same precision, and no less than rounding the scores does."""
    real = high.isfinite()
    if not bool(real.any()):
        return 0.0
    error = (low.double() - high.double())[real].abs().amax()
    return float(4 * error + 4 * torch.finfo(low.dtype).eps * (2 + scores) * high[real].abs().amax().clamp(min=1.0))


def compare(found: Tensor, low: Tensor, high: Tensor, scores: float, what: str) -> None:
    assert found.shape == high.shape, what
    assert bool((found.isfinite() == high.isfinite()).all()), what
    rounding = 0.0 if found.dtype == low.dtype else float(torch.finfo(found.dtype).eps * high.abs().amax())
    torch.testing.assert_close(
        found.double(),
        high.double(),
        rtol=0,
        atol=tolerance(low, high, scores) + rounding,
        msg=lambda text: f"{what}: {text}",
    )


def check(q: Tensor, k: Tensor, v: Tensor, more: dict[str, Any], impl: str) -> None:
    made = request(q, k, v, **more)
    out = attention.attend(q, k, v, impl=impl, **more)
    z, lse, stats, counts = reference.attend(made, dtype=torch.float64)
    z_low, lse_low, stats_low, _ = reference.attend(made, dtype=made.accumulate)
    p = reference.pattern(made)
    size = float(reference.edited_scores(made, torch.float64)[0].clamp(-1e4, 1e4).abs().amax())
    near = tolerance(reference.pattern(made, dtype=made.accumulate), p, size)
    assert out.impl == impl
    assert z is not None
    assert z_low is not None
    assert out.z is not None
    compare(out.z, z_low, z, size, "z")
    compare(out.lse, lse_low, lse, size, "lse")
    assert set(out.stats) == set(stats)
    for name, expected in stats.items():
        if name == "argmax" or name.endswith(".keys"):
            same_keys(out.stats[name], expected, p, near)
        elif name == "seen":
            assert torch.equal(out.stats[name].long(), expected)
        else:
            compare(out.stats[name], stats_low[name], expected, size, name)
    assert int(out.counts["blind"]) == int(counts["blind"])
    assert int(out.counts["unmoved"]) == int(counts["unmoved"])


def same_keys(found: Tensor, expected: Tensor, p: Tensor, near: float) -> None:
    """The same keys, or others of the same weight."""
    at, of = (x.reshape(*p.shape[:3], -1) for x in (found, expected))
    assert bool(((at < 0) == (of < 0)).all())
    torch.testing.assert_close(
        p.gather(-1, at.clamp(min=0)), p.gather(-1, of.clamp(min=0)), rtol=0, atol=2 * near + 1e-9
    )
