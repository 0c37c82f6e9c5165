"""A report of a model that has no logits: texts held against other texts, pictures against themselves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from encoders import final, headless, many_patches, mean, pairs
from PIL import Image
from torch import Tensor

import interp
from interp.prompts.vocabulary import TaskError
from interp.reporting.sections.patterns import patterns
from interp.reporting.steps.subject import Subject, Wanted
from interp.tasks.task import Row, Task


def words() -> Task:
    x, y = pairs("bert", padded=False)
    rows = [Row(tuple(a.tolist()), tuple(b.tolist()), ()) for a, b in
            zip(x["input_ids"], y["input_ids"], strict=True)]  # fmt: skip
    return Task("near itself", tuple(rows), "similarity")


def pictures() -> Task:
    draw = torch.Generator().manual_seed(0)
    made = (torch.rand(2, 48, 48, 3, generator=draw) * 255).to(torch.uint8).numpy()
    clean, corrupt = map(Image.fromarray, made)
    rows = (Row("", "", (), image=clean, corrupt_image=corrupt),)
    return Task("one picture", rows, "similarity", reads=("final_norm", "cls"))


def test_a_similarity_is_to_the_clean_rows_own_vector_where_no_text_is_named(tmp_path: Path) -> None:
    m = headless("bert")
    task = words().on(m)
    x, y = (dict(one.kwargs) for one in (task.clean, task.corrupt))
    mine, theirs = mean(final(m.module, x), x), mean(final(m.module, y), y)
    found = task.metric(final(m.module, y), task.corrupt)
    torch.testing.assert_close(found.double(), torch.cosine_similarity(mine, theirs), atol=1e-6, rtol=1e-5)
    assert task.right() == (True, True, True)
    again = Task.load(task.save(tmp_path / "task.jsonl"), m)
    assert (again.rows, again.score, again.reads) == (task.rows, task.score, task.reads)


def test_rows_of_a_similarity_that_do_not_fit_are_refused() -> None:
    clean = (5, 6, 7)
    for rows, said in (
        ([Row(clean, clean, ("a", "b"))], "to one text"),
        ([Row(clean, clean, (), ("b",))], "without a right"),
        ([Row(clean, clean, ("a",)), Row(clean, clean, ())], "differ in whether"),
        ([Row(clean, clean, (7,))], "to one text"),
    ):
        with pytest.raises(TaskError, match=said):
            Task("t", tuple(rows), "similarity")


@pytest.mark.parametrize("kind", ["bert", "dinov2"])
def test_a_report_works_end_to_end(kind: str, tmp_path: Path) -> None:
    m, task = (headless("bert"), words()) if kind == "bert" else (many_patches(), pictures())
    made = interp.report(m, task=task, out=tmp_path / "r", examples=1, draws=1, random=1, top=2, circuit=False)
    rows = made.rows
    exact = rows[(rows["method"] == "patch") & (rows["direction"] == "denoise")]
    assert len(exact) == 12
    assert set(exact["metric"]) == {"Similarity"}
    on = task.on(m)
    found = interp.patch(m, base=on.corrupt, source=on.clean, metric=on.metric, sites="L*.H*.z")
    by_site = dict(zip(exact["site"], exact["estimate"], strict=True))
    for site, value in zip(found.sites, found.mean.tolist(), strict=True):
        assert by_site[site.removesuffix(".z")] == pytest.approx(value, abs=1e-5, rel=1e-4)
    assert "largest effect by patch" in made.finding
    assert (tmp_path / "r" / "report.html").is_file()


def test_long_pictures_are_drawn_from_all_keys_on_a_scale_of_their_own() -> None:
    m = many_patches()
    task = pictures().on(m)
    found = patterns(Subject(m, "tiny", task, Wanted(examples=1)), ["L1.H2", "L2.H0"])
    assert [block["sites"] for block in found["blocks"]] == [["L1.H2"], ["L2.H0"]]
    top = 0.0
    for block in found["blocks"]:
        (site,) = block["sites"]
        exact = m.run(task.clean, record=f"{site}.pattern")[f"{site}.pattern"][0][:, block["rows"]]
        assert block["indices"] is None
        assert block["shape"] == [1, len(block["rows"]), 257]
        assert (block["rows"][0], block["rows"][-1]) == (0, 256)
        top = max(top, float(exact.max()))
        stored = _stored(block)
        assert float((stored - exact).abs().max()) <= block["scale"] / 255 / 2 + 1e-6
    assert found["blocks"][0]["scale"] == pytest.approx(top, abs=1e-6)


def _stored(block: dict[str, Any]) -> Tensor:
    import base64

    packed = torch.frombuffer(bytearray(base64.b64decode(block["weights"])), dtype=torch.uint8)
    return packed.reshape(block["shape"]).float() * block["scale"] / 255
