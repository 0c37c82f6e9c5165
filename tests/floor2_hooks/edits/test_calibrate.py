"""Calibrated and streaming heads against their definitions: whole patterns, row by row, in float64."""

from __future__ import annotations

from functools import cache, partial
from typing import Any

import pytest
import torch
from torch import Tensor

import interp
from interp.hooks.errors import EditError
from interp.hooks.examples.example import example
from interp.hooks.stand import near
from interp.zoo.families import tiny

PADDINGS = [None, "left", "right"]


@cache
def attached(name: str) -> interp.Model:
    return interp.attach(tiny(name, dtype=torch.float32 if name == "gpt_oss" else torch.float64))


def made(name: str, *, length: int = 12, padding: str | None = None) -> tuple[interp.Model, Any]:
    m = attached(name)
    return m, m.inputs(dict(example(m.module, batch=3, length=length, padding=padding, seed=2)))


def calibrated(a: Tensor, valid: Tensor, threshold: float, keep: float, least: int) -> tuple[Tensor, Tensor]:
    """The paper's steps on one pattern [row, key]: column means, sinks but for the first token, freed weight given to
    the others in proportion. Returns the new pattern and the sinks."""
    real = valid.nonzero().flatten().tolist()
    out, sinks = a.clone(), []
    for j in real[1:]:
        rows = [i for i in real if i >= j]
        if sum(float(a[i, j]) for i in rows) / len(rows) > threshold and len(rows) >= least:
            sinks.append(j)
    others = [j for j in real if j not in sinks]
    for i in real:
        freed = sum((1 - keep) * float(a[i, s]) for s in sinks)
        rest = sum(float(a[i, t]) for t in others)
        for s in sinks:
            out[i, s] = keep * a[i, s]
        for t in others:
            out[i, t] = a[i, t] * (1 + freed / rest)
    return out, torch.tensor([j in sinks for j in range(len(valid))])


@pytest.mark.parametrize("padding", PADDINGS)
def test_calibration_is_its_definition(padding: str | None) -> None:
    m, x = made("llama", padding=padding)
    plain = m.run(x, record=["L1.pattern", "L1.v", "L1.z"])
    edit = interp.edits.Calibrate("L1.H1,2", threshold=0.12, keep=0.3, least=2)
    tape = m.run(x, record=["L1.pattern", "L1.z"], edits=[edit])
    per_example = set()
    for b in range(3):
        for h in (1, 2):
            want, sinks = calibrated(plain["L1.pattern"][b, h].double(), x.valid[b], 0.12, 0.3, 2)
            per_example.add(tuple(sinks.tolist()))
            real = x.valid[b]
            torch.testing.assert_close(tape["L1.pattern"][b, h][real].double(), want[real], atol=1e-6, rtol=1e-6)
            z = want @ plain["L1.v"][b, :, h // 2]
            torch.testing.assert_close(tape["L1.z"][b, real, h], z[real], atol=1e-6, rtol=1e-6)
    assert len(per_example) > 2, "heads and examples have sinks of their own, or this tests little"
    assert torch.equal(tape["L1.z"][:, :, [0, 3]], plain["L1.z"][:, :, [0, 3]])


def test_heads_without_sinks_stay_as_they_are_and_keep_of_one_changes_nothing() -> None:
    m, x = made("llama")
    plain = m.run(x, record="L1.z")["L1.z"]
    none = m.run(x, record="L1.z", edits=[interp.edits.Calibrate("L1.H*", threshold=1.0)])["L1.z"]
    assert torch.equal(none, plain)
    same = m.run(x, record="L1.z", edits=[interp.edits.Calibrate("L1.H*", threshold=0.05, keep=1.0)])["L1.z"]
    torch.testing.assert_close(same, plain)


def test_calibration_is_of_the_prefill_unless_said_otherwise() -> None:
    m, x = made("llama")
    edit = interp.edits.Calibrate("L*.H*", threshold=0.05)
    plain = m.generate(x, max_new_tokens=3).logprobs
    own, prefill, decode = (
        m.generate(x, edits=[edit], phase=phase, max_new_tokens=3).logprobs for phase in (None, "prefill", "decode")
    )
    assert torch.equal(own, prefill)
    assert bool((own[:, 0] != plain[:, 0]).all())
    torch.testing.assert_close(decode[:, 0], plain[:, 0])
    assert bool((decode[:, 1] != plain[:, 1]).any())


def seen(rows: int, keys: int, valid: Tensor, first: int, recent: int) -> Tensor:
    """Whether row i sees key j: one of the first real tokens, or near enough; never later, never padding."""
    start = int(valid.nonzero()[0])
    out = torch.zeros(rows, keys, dtype=torch.bool)
    for i in range(rows):
        for j in range(keys):
            out[i, j] = bool(valid[j]) and j <= i and (j < start + first or i - j < recent)
    return out


@pytest.mark.parametrize(
    ("name", "padding", "block"),
    [*(("llama", padding, block) for padding in PADDINGS for block in (3, 512)), ("gpt_oss", "left", 3)],
)
def test_streaming_is_its_definition(name: str, padding: str | None, block: int, monkeypatch: Any) -> None:
    monkeypatch.setattr(near, "ROWS", block)
    m, x = made(name, padding=padding)
    plain = m.run(x, record=["L1.scores", "L1.v", "L1.z", "L1.pattern"])
    learned = m.module.model.layers[1].self_attn.sinks.detach().double().exp() if name == "gpt_oss" else torch.zeros(4)
    tape = m.run(x, record=["L1.z", "L1.pattern"], edits=[interp.edits.Streaming("L1.H1,2", first=2, recent=3)])
    close = partial(torch.testing.assert_close, atol=2e-6, rtol=1e-5)
    group = m.anatomy.towers["text"].layer(1).group
    for b in range(3):
        real = x.valid[b]
        sees = seen(12, 12, real, 2, 3)
        for h in (1, 2):
            kept = plain["L1.pattern"][b, h].double() * sees
            s = plain["L1.scores"][b, h].double().masked_fill(~sees, -torch.inf)
            want = s.exp() / (s.exp().sum(-1) + learned[h])[:, None]
            assert bool((kept[real] != plain["L1.pattern"][b, h][real]).any())
            close(tape["L1.pattern"][b, h][real].double(), want[real])
            close(tape["L1.z"][b, real, h].double(), (want @ plain["L1.v"][b, :, h // group].double())[real])
    assert torch.equal(tape["L1.z"][:, :, [0, 3]], plain["L1.z"][:, :, [0, 3]])


@pytest.mark.parametrize("block", [2, 512])
def test_streaming_stands_beside_other_edits_of_the_head(block: int, monkeypatch: Any) -> None:
    """Blocks are exactly the whole call with a dense mask, whatever else is changed there."""
    monkeypatch.setattr(near, "ROWS", block)
    m, x = made("llama", padding="left")
    others = [
        interp.edits.Temperature("L1.H*", value=1.7),
        interp.edits.BiasKeys("L1.H0,2", keys=[-1, -4], amount=1.0),
        interp.edits.Redistribute("L1.H2", source=[-2], target=[-1, -3], fraction=0.5, positions="last"),
        interp.Blend("L1.H1", to="identity", amount=0.3),
    ]
    stream = [interp.edits.Streaming("L1.H0-2", first=1, recent=2)]
    tape = m.run(x, record=["L1.pattern", "L1.z", "L1.v"], edits=[*others, *stream])
    for h in range(4):
        z = tape["L1.pattern"][:, h].double() @ tape["L1.v"][:, :, h // 2].double()
        torch.testing.assert_close(tape["L1.z"][:, :, h][x.valid], z[x.valid], atol=1e-6, rtol=1e-6)
    for b, h in ((0, 0), (1, 1), (2, 2)):
        hidden = ~seen(12, 12, x.valid[b], 1, 2)[x.valid[b]]
        assert float(tape["L1.pattern"][b, h][x.valid[b]][hidden].abs().max()) == 0
    apart = m.run(x, record="L1.pattern", edits=[*others, *stream], positions=[[-1], [-2], [-3]])["L1.pattern"]
    whole = tape["L1.pattern"]
    for b, row in enumerate((-1, -2, -3)):
        torch.testing.assert_close(apart[b, :, 0], whole[b, :, row])


def test_streaming_at_some_rows_leaves_the_others() -> None:
    m, x = made("llama")
    plain = m.run(x, record="L1.z")["L1.z"]
    wide = m.run(x, record="L1.z", edits=[interp.edits.Streaming("L1.H1", first=1, recent=2)])["L1.z"]
    some = m.run(
        x,
        record="L1.z",
        edits=[
            interp.edits.Streaming("L1.H1", first=1, recent=2, positions=[7, 9]),
            interp.edits.Temperature("L1.H1", value=1.0),
        ],
    )["L1.z"]
    at = torch.zeros(12, dtype=torch.bool)
    at[[7, 9]] = True
    torch.testing.assert_close(some[:, at], wide[:, at])
    torch.testing.assert_close(some[:, ~at], plain[:, ~at])


def test_two_views_of_one_head_leave_what_both_show() -> None:
    m, x = made("llama")
    edits = [interp.edits.Streaming("L1.H1", first=1, recent=4), interp.edits.Streaming("L1.H1", first=3, recent=2)]
    tape = m.run(x, record=["L1.pattern", "L1.z", "L1.v"], edits=edits)
    both = seen(12, 12, x.valid[0], 1, 4) & seen(12, 12, x.valid[0], 3, 2)
    assert torch.equal(tape["L1.pattern"][0, 1] > 0, both)
    z = tape["L1.pattern"][:, 1].double() @ tape["L1.v"][:, :, 0].double()
    torch.testing.assert_close(tape["L1.z"][:, :, 1], z, atol=1e-6, rtol=1e-6)


def test_streaming_with_a_cache_is_streaming_without() -> None:
    m, x = made("llama", padding="left")
    edits = [interp.edits.Streaming("L*.H*", first=2, recent=4)]
    cached = m.generate(x, edits=edits, max_new_tokens=5)
    ids = torch.cat([x.kwargs["input_ids"], cached.ids], 1)
    mask = torch.cat([x.kwargs["attention_mask"], torch.ones_like(cached.ids)], 1)
    logits = m.run({"input_ids": ids, "attention_mask": mask}, edits=edits)["logits"]
    said = logits[:, -6:-1].log_softmax(-1).gather(2, cached.ids[..., None]).squeeze(2)
    torch.testing.assert_close(cached.logprobs.double(), said.double(), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["vit", "t5", "gpt2"])
def test_both_edits_run_in_other_kinds_of_tower(name: str) -> None:
    m, x = made(name)
    tower = "" if len(m.towers) == 1 else "encoder."
    for edit in (
        interp.edits.Calibrate(f"{tower}L1.H0", threshold=0.05),
        interp.edits.Streaming(f"{tower}L1.H0", recent=2),
    ):
        tape = m.run(x, record=[f"{tower}L1.pattern", f"{tower}L1.z", f"{tower}L1.v"], edits=[edit])
        z = tape[f"{tower}L1.pattern"][:, 0].double() @ tape[f"{tower}L1.v"][:, :, 0].double()
        torch.testing.assert_close(tape[f"{tower}L1.z"][:, :, 0].double(), z, atol=1e-6, rtol=1e-6)


def test_statistics_of_edited_heads_are_those_of_the_edited_pattern() -> None:
    m, x = made("llama")
    edits = [interp.edits.Streaming("L1.H0,1", first=1, recent=2), interp.edits.Calibrate("L1.H2", threshold=0.05)]
    pattern = m.run(x, record="L1.pattern", edits=edits)["L1.pattern"].double()
    with m.edited(edits):
        found = m.attention(x, stats=["received", "first"], heads="L1").at("L1", "received")
    torch.testing.assert_close(found.double(), pattern.sum(2), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    "edit", [lambda: interp.edits.Calibrate("L0", threshold=2.0), lambda: interp.edits.Calibrate("L0", keep=-0.1),
             lambda: interp.edits.Streaming("L0", recent=0), lambda: interp.edits.Streaming("L0", first=-1)]
)  # fmt: skip
def test_numbers_without_a_meaning_are_refused(edit: Any) -> None:
    with pytest.raises(EditError, match="at least"):
        edit()


def test_a_value_site_is_refused() -> None:
    m, x = made("llama")
    with pytest.raises(EditError, match="no component"):
        m.run(x, edits=[interp.edits.Streaming("L1.z")])
