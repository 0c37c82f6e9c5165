"""CARVE: the contrast step by step from its formula, the mask pixel by pixel, and the second picture."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pictured import PROCESSOR, pictured
from PIL import Image
from tokens import PLACEHOLDERS

import interp
from interp.hooks.errors import InputsError, ModelError
from interp.vision.maps.carve import _paper, cut_out, kept_of

pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning:transformers.models.paligemma"),
    pytest.mark.filterwarnings("ignore:.*two BOS"),
]
GENERAL = "describe the image ."


@cache
def model() -> interp.Model:
    return interp.load("zoo:shapes-lvlm")


@cache
def task() -> Any:
    return interp.tasks.shapes(model(), n=2, split="heldout")


@cache
def found() -> Any:
    return interp.vision.carve(
        model(), [row.image for row in task().rows], [row.clean for row in task().rows], general=GENERAL,
        second="alone", short="", max_new_tokens=5, layers=[1, 2],
    )  # fmt: skip


def weights(text: str, picture: Any, layer: int) -> torch.Tensor:
    """[step, image token] from a loop of full prompts, one token longer each step."""
    m, rows, ids = model(), [], []
    prompt = m.prepare([text], images=[[picture]])
    for _ in range(5):
        x = m.prepare([text], images=[[picture]], continuation=[ids]) if ids else prompt
        tape = m.run(x, record=[f"text.L{layer}.pattern"])
        rows.append(tape[f"text.L{layer}.pattern"][0, :, -1].double().mean(0)[x.mask("image")[0]])
        ids.append(int(tape["logits"][0, -1].argmax()))
        if ids[-1] == m.tokenizer.eos_token_id:
            break
    return torch.stack(rows)


def test_the_map_is_the_formula() -> None:
    row = task().rows[0]
    total = torch.zeros(6, 6, dtype=torch.float64)
    for layer in (1, 2):
        mine, theirs = weights(row.clean, row.image, layer), weights(f"<image> {GENERAL}", row.image, layer)
        for t in range(min(len(mine), len(theirs))):
            total += (t + 1) * (mine[t] / (theirs[t] + 1e-8)).reshape(6, 6)
    seen = found().maps[0].reshape(6, 8, 6, 8).mean((1, 3))
    torch.testing.assert_close(seen, total, atol=1e-3, rtol=1e-3)
    mine = torch.stack([weights(row.clean, row.image, layer)[-1] for layer in (1, 2)])
    assert float(found().entropy[0]) == pytest.approx(float(-(mine * mine.log()).sum(1).mean()), rel=1e-3)


def test_what_is_kept() -> None:
    seen = torch.zeros(10, 10)
    for n, (y, x) in enumerate([(0, 0), (0, 4), (0, 8), (4, 0), (8, 8)]):
        seen[y : y + 2, x : x + 2] = n + 1.0
    kept = kept_of(seen, 0.2)  # 20 of 100 pixels, five regions, of which three are kept
    assert int(kept.sum()) == 12
    assert bool(kept[8, 8])
    assert bool(kept[0, 8])
    assert not bool(kept[0, 0])
    got = found()
    assert bool((got.maps[0][got.kept[0]] >= np.quantile(got.maps[0].numpy(), 0.8)).all())


def test_the_cut_picture_is_masked_and_covers_the_original() -> None:
    rng = np.random.default_rng(0)
    original = Image.fromarray(rng.integers(1, 255, (20, 40, 3), dtype=np.uint8))
    kept = torch.zeros(20, 40).bool()
    kept[4:8, 10:20] = True
    kept[6, 12] = False
    cut = cut_out(original, kept, (10, 4, 20, 8))
    assert cut.size == (50, 20)  # 10 x 4 five times as large, so that both sides are covered
    assert original.crop((10, 4, 20, 8)).size == (10, 4)
    got = found()
    made = got.picture(0, task().rows[0].image)
    assert (made.width >= 48, made.height >= 48, min(made.size)) == (True, True, 48)


def test_layers_of_the_paper_and_of_small_models() -> None:
    assert [n for n in range(28) if _paper(n, 28)] == list(range(20, 26))
    assert [n for n in range(4) if _paper(n, 4)] == [2, 3]
    assert [n for n in range(1) if _paper(n, 1)] == [0]


def test_answers_are_those_of_the_pictures() -> None:
    got, row = found(), task().rows[1]
    m = model()
    assert got.first[1] == m.generate(m.prepare([row.clean], images=[[row.image]]), max_new_tokens=5).text.strip()
    again = m.prepare([row.clean], images=[[got.picture(1, row.image)]])
    assert got.second[1] == m.generate(again, max_new_tokens=5).text.strip()
    assert list(got.to_frame()["first"]) == list(got.first)


@pytest.mark.parametrize("name", ["llava_next", "qwen2_5_vl", "internvl", "smolvlm", "gemma3", "paligemma", "qwen3_vl"])
def test_every_family_is_carved_and_asked_again_with_both(name: str) -> None:
    held = interp.attach(*pictured(name))
    place = PLACEHOLDERS[PROCESSOR.get(name, name)]
    got = interp.vision.carve(
        held, [Image.new("RGB", (90, 60), (9, 200, 9))], [f"{place}What is it?"], general=f"{place}describe",
        chat=False, max_new_tokens=3, second="none" if name == "paligemma" else "both",
    )  # fmt: skip
    assert tuple(got.maps[0].shape) == (60, 90)
    assert len(got.second) == (name != "paligemma")


def test_bad_input_is_refused() -> None:
    rows = [row.image for row in task().rows], [row.clean for row in task().rows]
    with pytest.raises(InputsError, match="p= is a share"):
        interp.vision.carve(model(), *rows, p=1.5)
    with pytest.raises(InputsError, match="2 pictures for 1 questions"):
        interp.vision.carve(model(), rows[0], rows[1][:1])
    with pytest.raises(InputsError, match="layers= are some of 0 to 3"):
        interp.vision.carve(model(), *rows, layers=[9])
    blip = interp.attach(*pictured("blip-2"))
    with pytest.raises(InputsError, match="no map from tokens to patches"):
        interp.vision.carve(blip, [Image.new("RGB", (60, 60))], ["What?"], general="Why?", chat=False)
    mllama = interp.attach(*pictured("mllama"))
    with pytest.raises(ModelError, match="cross-attention"):
        interp.vision.carve(mllama, [Image.new("RGB", (60, 60))], [f"{PLACEHOLDERS['mllama']}a"], chat=False)


def test_it_is_saved_and_read_back(tmp_path: Path) -> None:
    found().save(tmp_path)
    again = interp.open(tmp_path)
    assert (repr(again), again.boxes, again.first) == (repr(found()), found().boxes, found().first)
    assert torch.equal(again.maps[1], found().maps[1])
