"""Comparing operators, fitting them, and putting them everywhere, against loops from the definitions."""

from __future__ import annotations

import itertools
import math
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from operator_parts import part
from torch import Tensor

import interp
from interp.hooks.errors import EditError, InputsError, ModelError
from interp.hooks.examples.example import example
from interp.kernels.masks.symbols import Window
from interp.operators import (
    Agent,
    Channels,
    InLine,
    Linear,
    LocalLinear,
    Masked,
    PrefixScan,
    RankAugmented,
    StaticQK,
    compare,
    find_blocks,
    mimic,
    replaceable,
)
from interp.operators.readouts import NAMES, effective_rank, label, read
from interp.zoo.families import tiny


@cache
def model(name: str = "llama") -> interp.Model:
    return interp.attach(tiny(name, dtype=torch.float64))


def inputs(m: interp.Model, seed: int = 1, padding: Any = "left", batch: int = 2) -> Any:
    return m.inputs(dict(example(m.module, batch=batch, length=9, padding=padding, seed=seed)))


def rank(x: Tensor) -> float:
    values = torch.linalg.svdvals(x)
    shares = [float(v / values.sum()) for v in values if v > 0]
    return math.exp(-sum(v * math.log(v) for v in shares))


def by_hand(a: Tensor, p: Tensor, s: Tensor, real: list[int]) -> dict[str, float]:
    """One head of one example: weights, the softmax's, and scores, [row, key]."""
    found: dict[str, list[float]] = {name: [] for name in NAMES[:7]}
    for i in real:
        seen = [j for j in range(a.shape[1]) if s[i, j] > -math.inf]
        total = sum(abs(float(a[i, j])) for j in seen)
        b = {j: abs(float(a[i, j])) / total for j in seen}
        found["moved"].append(sum(abs(float(a[i, j] - p[i, j])) for j in seen) / 2)
        found["kl"].append(sum(b[j] * math.log(b[j] / float(p[i, j])) for j in seen if b[j] > 0))
        found["kept"].append(sum(float(p[i, j]) for j in seen if a[i, j] != 0))
        found["entropy"].append(-sum(x * math.log(x) for x in b.values() if x > 0))
        found["distance"].append(sum(b[j] * abs(i - j) for j in seen))
        order = sorted(seen, key=lambda j: float(s[i, j]))
        pairs = list(itertools.pairwise(order))
        found["monotone"].append(sum(bool(a[i, y] >= a[i, x] - 1e-9) for x, y in pairs) / len(pairs) if pairs else 1.0)
        found["nearest"].append(min(float((a[i] - a[r]).abs().sum()) for r in real if r != i))
    means = {name: sum(x) / len(x) for name, x in found.items()}
    return {**means, "rank map": rank(a[real])}


@pytest.mark.parametrize("operator", [
    StaticQK("", q="own"), Linear(""), InLine(""), RankAugmented(""), Masked("", Window(2)), LocalLinear(""),
], ids=label)  # fmt: skip
@pytest.mark.parametrize("call", ["causal", "left"])
def test_readouts_are_their_definitions(operator: Any, call: str) -> None:
    p = part(call)
    real = torch.ones(2, 11, dtype=torch.bool)
    if call == "left":
        real[1, :5] = False
    found = read(operator, p, real)
    a, own, s = operator.pattern(p).double(), p.softmax(p.scores()), p.scores()
    z = operator.z(p)
    for b in range(2):
        for h in range(4):
            rows = real[b].nonzero().flatten().tolist()
            want = by_hand(a[b, h], own[b, h], s[b, h], rows)
            want["rank z"] = rank(z[b, h, rows].double())
            other = own[b, h] @ p.values[b, h]
            want["error"] = float((z[b, h, rows] - other[rows]).norm() / other[rows].norm())
            for name, value in want.items():
                assert abs(float(found[name][b, h]) - value) < 1e-6 * max(1, abs(value)), (name, b, h)
    assert bool(found["rank state"].isnan().all()) == (not hasattr(operator, "state"))


def test_rows_of_inline_differ_where_those_of_linear_attention_may_not() -> None:
    """Queries along one direction: linear attention by relu attends alike for all of them, InLine does not."""
    p = part("full", heads=1, kv=1)
    along = torch.linspace(0.5, 3, 11, dtype=torch.float64)[:, None] * torch.tensor([1.0, 2.0, 0.5, 1.0])
    p = type(p)(along[None, None], p.k[:1], p.v[:1], None, 0.5, None, None, None, (0,))
    real = torch.ones(1, 11, dtype=torch.bool)
    assert float(read(Linear("", "relu"), p, real)["nearest"]) < 1e-9
    assert float(read(InLine(""), p, real)["nearest"]) > 1e-3


def test_the_state_of_linear_attention_is_what_rows_read() -> None:
    p = part("full")
    for operator in (Linear("", "relu"), InLine(""), RankAugmented("")):
        state = operator.state(p)
        assert float(effective_rank(state).min()) > 1
        if isinstance(operator, Linear):
            y = torch.relu(p.q) @ state
            total = torch.relu(p.q) @ torch.relu(p.keys).sum(2)[..., None]
            torch.testing.assert_close(operator.z(p), torch.where(total > 0, y / total, 0.0))


@pytest.mark.parametrize("kind", ["llama", "gpt2", "vit", "bert"])
def test_a_comparison_has_the_softmax_first_and_zero_error_there(kind: str) -> None:
    m = model(kind)
    x = inputs(m, padding=None if kind == "vit" else "left")
    found = compare(m, x, [Linear("L*", "taylor"), InLine("L*"), Masked("L*", Window(3))], "L*.H1-2")
    assert found.operators[0] == "softmax"
    assert found.values.shape == (4, 2 * len(m.ready().tower(None, text="L*").layers), 2)
    assert float(found.values[0].abs().max()) < 1e-6
    assert float(found.values[1:].amin((1, 2)).max()) > 1e-4
    table = found.to_frame()
    window = label(Masked("", Window(3)))
    assert list(table["method"].unique()) == ["softmax", "Linear(feature='taylor')", "InLine", window]
    assert table[table["method"] == "softmax"]["monotone"].min() == 1.0


def test_an_error_is_that_of_a_run() -> None:
    m = model()
    x = inputs(m)
    found = compare(m, x, [Linear("L*")], "L1.H2")
    real = x.valid[:, :, None]
    new, own = (m.run(x, edits=edits, record="L1.z")["L1.z"][:, :, 2] * real for edits in ([Linear("L1.H2")], []))
    want = (new - own).norm(dim=(1, 2)) / own.norm(dim=(1, 2))
    torch.testing.assert_close(found.values[1, 0], want.double(), atol=1e-6, rtol=1e-6)


def test_results_come_back_from_files(tmp_path: Path) -> None:
    m = model()
    x = inputs(m)
    one = compare(m, x, [InLine("L*")], "L1.H*")
    two = mimic(m, x, heldout=inputs(m, 2), sites="L1.H*", steps=2)
    three = replaceable(m, x, InLine("L*"), metric=last, sites="L1.H*")
    for n, result in enumerate((one, two, three)):
        result.save(tmp_path / str(n))
        again = interp.open(tmp_path / str(n))
        assert type(again) is type(result)
        assert again.to_frame().equals(result.to_frame())
        assert again.sites == result.sites
        assert repr(result)


def last(logits: Tensor, x: Any) -> Tensor:
    return logits[:, -1, 0] - logits[:, -1, 1]


NOTES = "note : lisbon amber violin . the river is wide . note : paris copper guitar . the hill is green ."
FITTED = [NOTES, "the river is green . note : amber violin paris . the hill is wide ."]
JUDGED = ["the hill is wide . note : lisbon copper violin . the river is green . note : paris amber guitar ."]


def test_a_fit_comes_nearer_on_data_it_has_not_seen() -> None:
    m = interp.load("zoo:needle")
    x, y = (m.prepare(texts) for texts in (FITTED, JUDGED))
    how: dict[str, Any] = {"heldout": y, "sites": "L0.H*", "steps": 100}
    found = mimic(m, x, **how)
    assert float(found.values.mean()) < 0.6 * float(found.before.mean())
    assert torch.equal(found.maps, mimic(m, x, **how).maps)
    assert not torch.equal(found.maps, mimic(m, x, **how, seed=1).maps)
    fitted = found.operators()
    assert [one.site for one in fitted] == [f"L0.H{','.join(map(str, range(len(found.sites))))}"]
    tape = m.run(y, edits=[fitted[0]], record="L0.pattern")["L0.pattern"]
    own = m.run(y, record="L0.pattern")["L0.pattern"]
    gap = torch.where(own > 0, own * (own / tape.clamp(min=1e-30)).log(), 0.0).sum(-1)
    counted = y.valid[:, None].expand(gap.shape)
    want = (gap * counted).sum(-1) / counted.sum(-1)
    torch.testing.assert_close(found.values, want.T.double(), atol=1e-4, rtol=1e-3)


def test_a_fit_of_no_steps_is_where_it_begins() -> None:
    m = model()
    found = mimic(m, inputs(m), heldout=inputs(m, 2), sites="L1.H1", steps=0, features=3)
    assert torch.equal(found.values, found.before)
    assert found.maps.shape == (1, 2, 3, 8)


def test_who_is_replaced_is_what_the_loop_says() -> None:
    m = model()
    x, y = inputs(m), inputs(m, 2)
    found = replaceable(m, x, InLine("L*"), metric=last, sites="L*.H*", tolerance=0.2, heldout=y)
    base = last(m.run(x)["logits"], x)
    for n, site in enumerate(found.sites):
        new = last(m.run(x, edits=[InLine(site)])["logits"], x)
        torch.testing.assert_close(found.values[n], (new - base).double())
    order = sorted(range(8), key=lambda n: -float(found.values[n].mean()))
    kept: list[int] = []
    for n in order:
        trial = last(m.run(x, edits=[InLine(found.sites[r]) for r in [*kept, n]])["logits"], x).mean()
        if float(trial) >= float(base.mean()) - 0.2 * abs(float(base.mean())):
            kept.append(n)
    assert found.replaced == tuple(found.sites[n] for n in sorted(kept))
    chosen = last(m.run(y, edits=[InLine(site) for site in found.replaced])["logits"], y)
    torch.testing.assert_close(found.together, chosen.double())
    torch.testing.assert_close(found.every, last(m.run(x, edits=[InLine("L*.H*")])["logits"], x).double())


def test_softmax_itself_is_replaced_everywhere_at_no_loss() -> None:
    m = model()
    found = replaceable(m, inputs(m), StaticQK("L*", q="own"), metric=last, tolerance=1e-9)
    assert bool(found.kept.all())
    assert float(found.values.abs().max()) < 1e-6
    assert found.saved == 1.0


def test_what_is_saved_is_what_is_multiplied() -> None:
    p = part("full", d=4)
    pairs = 11 * 11
    assert StaticQK("", q="own").products(p) == pairs * (4 + 5)
    assert Linear("").products(p) == (11 + 11) * 4 * (5 + 1)
    assert Linear("", "taylor").products(p) == (11 + 11) * (1 + 4 + 10) * 6
    assert Masked("", Window(1)).products(p) == 11 * 9
    assert Agent("", 2).products(p) == 22 * 2 * 9
    assert PrefixScan("", torch.ones(1, 4)).products(p) == 11 * (4 + 4 * 2 * 6)


def test_what_the_next_token_reads_is_what_is_kept() -> None:
    p = part("full", d=4)
    assert StaticQK("", q="own").numbers(p) == 11 * (4 + 5)
    assert Linear("").numbers(p) == 4 * (5 + 1)
    assert Linear("", "random", count=7).numbers(p) == 7 * (5 + 1) + 1
    assert InLine("").numbers(p) == 1 + 4 + 5 + 4 * 5
    assert PrefixScan("", torch.ones(1, 4)).numbers(p) == 1 + 1 + 5
    assert Masked("", Window(3)).numbers(part("causal")) == 3 * 9


def test_time_is_measured_where_an_operator_is_fast() -> None:
    m, found = model(), {}
    for operator in (Linear("L*"), LocalLinear("L*")):
        found[label(operator)] = replaceable(m, inputs(m), operator, metric=last, sites="L1.H0", timed=True)
    fast, slow = found.values()
    assert fast.faster == fast.meta["seconds"]["attention"] / fast.meta["seconds"]["operator"] > 0
    assert slow.faster is None
    assert fast.smaller == 8 * 16 / (8 * 9)  # 9 keys and 7, of which the mean


def test_blocks_that_are_read_most_are_found() -> None:
    m = model("bert")
    x = m.inputs(dict(example(m.module, batch=1, length=9, seed=1)))
    found = find_blocks(m, x, sites="L1.H*", size=3, keep=0.4)
    pattern = m.run(x, record="L1.pattern")["L1.pattern"][0]
    table = found[0].mask.table  # type: ignore[union-attr]
    for h in range(pattern.shape[0]):
        for w in range(3):
            means = [float(pattern[h, 3 * w : 3 * w + 3, 3 * c : 3 * c + 3].mean()) for c in range(3)]
            best = sorted(range(3), key=lambda c: -means[c])[: int(3 * 0.4) + 1]
            assert sorted(table[h, w].nonzero().flatten().tolist()) == sorted(best)
    tape = m.run(x, edits=found, record="L1.pattern")["L1.pattern"][0]
    seen = table.repeat_interleave(3, 1).repeat_interleave(3, 2)
    assert bool(((tape > 0) == seen).all())
    kept = find_blocks(m, x, sites="L1.H*", size=3, keep=0.0, apart=6)[0].mask.table  # type: ignore[union-attr]
    assert bool((kept[..., :2].sum(-1) == 1).all())
    assert bool(kept[..., 2].all())


def test_blocks_of_a_causal_tower_are_those_it_sees() -> None:
    m = model()
    found = find_blocks(m, inputs(m, padding=None), sites="L1.H0", size=3, keep=1.0)[0]
    assert found.site == "L1.H0"
    assert found.mask.table[0].tolist() == torch.ones(3, 3).tril().bool().tolist()  # type: ignore[union-attr]


def test_what_cannot_be_is_said() -> None:
    m = model()
    x = inputs(m)
    with pytest.raises(InputsError, match="is a list of operators"):
        compare(m, x, [])
    with pytest.raises(EditError, match="see different keys"):
        compare(m, x, [Agent("L*")])
    with pytest.raises(EditError, match="names no heads"):
        compare(m, x, [InLine("L*")], "L1.z")
    with pytest.raises(InputsError, match="expected an operator"):
        replaceable(m, x, InLine("L*"), metric=last, tolerance=-1.0)
    with pytest.raises(InputsError, match="at least"):
        mimic(m, x, heldout=x, steps=-1)
    with pytest.raises(InputsError, match="keep in"):
        find_blocks(m, x, keep=2.0)
    swin = interp.attach(tiny("swin"))
    with pytest.raises(ModelError, match="not one number"):
        compare(swin, swin.inputs(dict(example(swin.module, batch=2, length=6, seed=1))), [InLine("L*")])


def test_a_readout_without_a_pattern_is_missing() -> None:
    m = model("vit")
    found = compare(m, inputs(m, padding=None), [Channels("L*")], "L1.H0").to_frame()
    row = found[found["method"] == "Channels"].iloc[0]
    assert row["entropy"] != row["entropy"]
    assert row["error"] > 0
