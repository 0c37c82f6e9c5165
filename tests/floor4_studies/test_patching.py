"""The patching experiments run as their docstrings say, end in one JSON line, and write their reports."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from house import ROOT
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from interp import tasks


def said(script: str, *arguments: Any) -> dict[str, Any]:
    """The JSON line a script ends with."""
    ran = subprocess.run(
        [sys.executable, f"experiments/{script}.py", *map(str, arguments)],
        cwd=ROOT, capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stdout + ran.stderr
    found: dict[str, Any] = json.loads(ran.stdout.splitlines()[-1])
    assert found["experiment"] == script
    return found


def test_greater_than_says_why_a_model_without_years_cannot_be_asked() -> None:
    found = said("greater_than", "--model", "zoo:ioi")
    assert not found["ran"]
    assert "splits years" in found["why"]


def test_greater_than_runs_on_a_local_directory(tmp_path: Path) -> None:
    """A random model has nothing to find; that it is asked, patched and written down is what is tested."""
    tokenizer = digit_pairs()
    model = GPT2LMHeadModel(GPT2Config(vocab_size=len(tokenizer), n_positions=64, n_embd=32, n_layer=2, n_head=2))
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    found = said("greater_than", "--model", tmp_path / "model", "--n", 4, "--out", tmp_path / "out")
    assert found["ran"]
    assert found["rows"] == 4
    assert len(found["paths"]) == 5
    assert (tmp_path / "out" / "paths" / "effects.parquet").exists()


def digit_pairs() -> PreTrainedTokenizerFast:
    inner = Tokenizer(models.BPE())
    pieces = pre_tokenizers.Split(Regex(r" ?\d{1,2}| ?[^\s\d]+|\s+"), "isolated")
    inner.pre_tokenizer = pre_tokenizers.Sequence(
        [pieces, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    inner.decoder = decoders.ByteLevel()
    texts = [row.clean for row in tasks.greater_than(None, n=200).rows]
    texts += [f" {a}{b:02d}" for a in range(11, 18) for b in range(100)] * 3
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    inner.train_from_iterator(
        texts, trainers.BpeTrainer(vocab_size=2000, initial_alphabet=alphabet, show_progress=False)
    )
    return PreTrainedTokenizerFast(tokenizer_object=inner)


@pytest.mark.slow
def test_ioi(tmp_path: Path) -> None:
    found = said("ioi", "--n", 8, "--out", tmp_path)
    assert found["logit_difference"] > 0
    assert found["movers"]
    assert (tmp_path / "paths" / "effects.parquet").exists()


@pytest.mark.slow
def test_how_a_picture_reaches_the_answer(tmp_path: Path) -> None:
    found = said("shapes_lvlm_flow", "--n", 12, "--out", tmp_path)
    assert found["flow"]["pictures"]["image"][0] == pytest.approx(1.0, abs=1e-3)
    assert found["flow"]["questions"]["image"][0] == 0.0
    assert found["share_in_touching_patches"][0] > found["share_of_the_picture_they_are"]
    assert (tmp_path / "patches.png").stat().st_size > 0
    assert "patches.png" in (tmp_path / "report.html").read_text()
