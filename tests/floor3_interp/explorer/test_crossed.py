"""Cross-attention in the page: rows and keys by their names, weights as they are recorded, padding left out."""

from __future__ import annotations

import pytest
import torch
from spoken import tone, whisper

import interp
from interp.explorer import crossed
from interp.explorer.build import payload
from interp.explorer.page import page
from interp.hooks.examples.example import example
from interp.zoo.families import tiny


def listening() -> tuple[interp.Model, interp.Inputs]:
    m = interp.attach(*whisper())
    x = m.prepare(audio=[tone(0.3), tone(0.8, seed=1)], language="en", continuation=[" yes or no", " in"])
    return m, x


def test_frames_are_shown_by_their_time() -> None:
    m, x = listening()
    made = payload(m, x, examples=2)
    assert not [text for text in made["warnings"] if "cross" in text]
    names = [one["name"] for one in made["examples"]]
    n = names.index("example 0, cross")
    one = made["examples"][n]
    rows = int(x.valid[0].sum())
    assert one["tokens"][:2] == ["<|startoftranscript|>", "<|en|>"]
    assert one["tokens"][rows : rows + 2] == ["audio 0.00 s", "audio 0.02 s"]
    assert len(one["tokens"]) == rows + 15
    assert "35 keys that are padding" in one["note"]
    [block] = [b for b in made["patterns"] if b["example"] == n]
    assert block["rows"] == list(range(rows))
    assert block["keys"] == list(range(rows, rows + 15))
    p = m.run(x, record="cross.L1.pattern")["cross.L1.pattern"]
    torch.testing.assert_close(block["weights"][block["sites"].index("cross.L1.H1")], p[0, 1, :rows, :15])
    measured = {row["method"] for row in made["scores"] if row["site"].startswith("cross.")}
    assert measured == {"entropy", "first"}
    page(made)


def test_of_a_long_source_the_heaviest_real_keys_are_kept() -> None:
    m, x = listening()
    [one], _ = crossed.crossings(m, x)
    blocks = crossed.crossed_patterns(m, x, one, range(2), 4 * 2 * 8 * 5 * 3)
    p = m.run(x, record="cross.L0.pattern")["cross.L0.pattern"]
    for row, (block, frames) in enumerate(zip(blocks, (15, 40), strict=True)):
        after = int(x.valid[row].sum())
        for n, at in enumerate(block["rows"]):
            top = p[row, 0, at, :frames].topk(8)
            torch.testing.assert_close(block["weights"][0, n], top.values, atol=1e-5, rtol=1e-4)
            assert (block["indices"][0, n] - after).tolist() == top.indices.tolist()


@pytest.mark.parametrize("name", ["t5", "bart", "mllama"])
def test_other_models_are_shown_too(name: str) -> None:
    m = interp.attach(tiny(name))
    call = dict(example(m.module, batch=2, seed=1))
    if name == "mllama":
        some = payload(m, m.inputs(call))
        assert any("where cross-attention looks is not shown" in text for text in some["warnings"])
        call["aspect_ratio_mask"] = torch.ones_like(call["aspect_ratio_mask"])
    made = payload(m, m.inputs(call))
    assert any("cross" in one["name"] for one in made["examples"])
    page(made)
