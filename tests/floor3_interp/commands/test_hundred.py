"""A hundred types, fixed, of every kind and cause: what `interp doctor --all` says of each is what is written here.

A verdict that changes is a change of what the toolkit promises, for better or worse: it is written down beside it.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping

import pytest

pytestmark = pytest.mark.families

EXPECTED: Mapping[str, tuple[str, ...]] = {
    "pass": (
        # words, one after another
        *("llama", "gpt2", "gpt_neo", "gpt_neox", "gptj", "opt", "bloom", "mpt", "falcon", "codegen", "mistral", "phi"),
        *("qwen2", "qwen3", "gemma2", "gemma3_text", "gemma3n_text", "cohere2", "cohere_compass_text", "olmo2"),
        *("granite", "starcoder2", "bitnet", "xlm"),
        # experts, latent attention, gates, layers that are no attention
        *("mixtral", "dbrx", "glm4_moe", "deepseek_v2", "deepseek_v3", "longcat_flash", "afmoe", "qwen3_next"),
        *("jamba", "bamba", "falcon_h1", "nemotron_h", "zamba", "kimi_linear", "lfm2", "recurrent_gemma"),
        "inkling_text",
        # words, all at once
        *("bert", "roberta", "distilbert", "electra", "modernbert", "mpnet", "deberta-v2", "rembert", "roformer"),
        *("layoutlm", "lilt", "bros", "esm", "mobilebert", "xmod"),
        # one model reads, another answers
        *("bart", "marian", "pegasus", "whisper", "speech_to_text"),
        # pictures
        *("vit", "deit", "beit", "dinov2", "dinov3_vit", "swinv2", "radio", "sapiens2", "dpt", "segformer", "videomae"),
        "donut-swin",
        # pictures and words
        *("clip", "siglip", "llava", "llava_next", "qwen2_vl", "qwen2_5_vl", "paligemma", "aya_vision"),
        # sound
        *("csm", "clap", "audio-spectrogram-transformer"),
    ),
    "no heads": ("fnet", "mamba2", "xlstm", "convnext", "resnet", "hgnet_v2", "efficientnet", "bit"),
    "refused": ("convbert", "xlnet", "diffllama", "hy_v4", "jetmoe", "levit"),
    "not built": ("layoutlmv2", "voxtral_realtime_text"),
}
"""The types that have a verdict."""
VERDICTS = {model_type: verdict for verdict, types in EXPECTED.items() for model_type in types}


def test_there_are_a_hundred() -> None:
    assert len(VERDICTS) == sum(map(len, EXPECTED.values())) == 100


def test_the_command_finds_of_each_what_is_written_here() -> None:
    """In a process of its own, as a user runs it: the checks of shapes that tests carry would double its time."""
    command = [sys.executable, "-m", "interp", "doctor", "--all", *VERDICTS, "--json"]
    said = subprocess.run(command, capture_output=True, text=True, check=False)
    *lines, totals = map(json.loads, said.stdout.splitlines())
    rows = {row["model_type"]: row for row in lines}
    assert (totals["types"], set(rows)) == (len(VERDICTS), set(VERDICTS)), said.stderr[-2000:]
    assert {name: row for name, row in rows.items() if row["verdict"] != VERDICTS[name]} == {}
    assert not [name for name, row in rows.items() if not row["why"] and row["verdict"] != "pass"]
