"""GGUF files that cannot be read, or not without guessing: one sentence each, before anything is unpacked."""

from __future__ import annotations

import struct
import sys
from pathlib import Path
from typing import Any

import ggufs
import numpy as np
import pytest

import interp
from interp.hooks.errors import ModelError
from interp.kernels.errors import InterpError

pytest.importorskip("gguf", reason="the extra gguf is not installed: pip install 'interp[gguf]'")


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INTERP_CACHE", str(tmp_path / "cache"))


def refused(path: Path, match: str, **how: Any) -> None:
    with pytest.raises(InterpError, match=match) as caught:
        interp.load(path, **how)
    assert "\n" not in str(caught.value)
    assert not list((path.parent / "cache").rglob("*.safetensors"))


def changed(tmp_path: Path, architecture: str = "llama", **changes: Any) -> Path:
    """A tiny model's file with other facts (None takes one out), tensors, whole keys, or another architecture."""
    module = ggufs.model(architecture)
    said = ggufs.facts(architecture, module.config) | changes.get("facts", {})
    weights = ggufs.tensors(architecture, module) | changes.get("tensors", {})
    named = changes.get("named", architecture)
    kept = ({key: value for key, value in table.items() if value is not None} for table in (said, weights))
    return ggufs.write(tmp_path / "m.gguf", named, *kept, more=changes.get("more"))


@pytest.mark.parametrize(
    ("architecture", "match"),
    [
        ("mamba", r"holds architecture 'mamba': from a GGUF this version reads gemma2, gemma3, .*interp\.attach"),
        ("lfm2", r"holds architecture 'lfm2' \(transformers keeps it as packed blocks"),
        ("qwen35", r"holds architecture 'qwen35' \(transformers keeps it as packed blocks"),
    ],
)
def test_an_unknown_architecture(architecture: str, match: str, tmp_path: Path) -> None:
    refused(changed(tmp_path, named=architecture), match)


FREQUENCIES = {"rope_freqs.weight": np.ones(4, dtype=np.float32)}


@pytest.mark.parametrize(
    ("architecture", "changes", "match"),
    [
        ("llama", {"tensors": FREQUENCIES}, r"holds rope_freqs\.weight: its rope is scaled, as in Llama-3\.1 and 3\.2"),
        ("llama", {"facts": {"rope.scaling.type": "yarn"}}, r"scales its rope \(llama\.rope\.scaling\.type = yarn\)"),
        (
            "gemma3",
            {"facts": {"rope.scaling.factor": 8.0}},
            r"scales its rope \(gemma3\.rope\.scaling\.factor = 8\.0\)",
        ),
        (
            "gemma3",
            {"facts": {"block_count": 34}},
            r"does not say the rope scaling of the global layers of Gemma-3 of 4 B",
        ),
        (
            "gemma3",
            {"facts": {"attention.key_length": 128}},
            r"does not say the scale of scores \(query_pre_attn_scalar\)",
        ),
        (
            "gemma3",
            {"facts": {"rope.freq_base_swa": 5e4}},
            r"rope\.freq_base_swa = 50000\.0, where only 10000\.0 is known",
        ),
        (
            "gemma2",
            {"facts": {"attention.key_length": 128}},
            r"does not say the scale of scores \(query_pre_attn_scalar\)",
        ),
        ("llama", {"facts": {"expert_count": 8}}, r"says llama\.expert_count = 8, where only 0 is known"),
        ("llama", {"facts": {"attention.causal": False}}, r"says llama\.attention\.causal = False"),
        (
            "llama",
            {"facts": {"attention.sliding_window": 4}},
            r"attention\.sliding_window = 4, which nothing here reads",
        ),
        ("llama", {"facts": {"rope.dimension_count": 4}}, r"attn_q\.weight has shape \(32, 32\), .* \(16, 32\)"),
        ("llama", {"facts": {"vocab_size": 100}}, r"says llama\.vocab_size = 100 where the rest of it says 96"),
        (
            "llama",
            {"facts": {"attention.head_count_kv": [2, 1]}},
            r"says llama\.attention\.head_count_kv layer by layer",
        ),
        ("llama", {"facts": {"attention.head_count": None}}, r"does not say llama\.attention\.head_count, which Llama"),
        ("llama", {"more": {"split.count": 3}}, "is one of 3 files: join them"),
        ("llama", {"more": {"general.type": "adapter"}}, "is of type 'adapter': expected a model"),
    ],
)
def test_what_a_file_leaves_out_or_nothing_reads(architecture: str, changes: Any, match: str, tmp_path: Path) -> None:
    refused(changed(tmp_path, architecture, **changes), match)


def test_facts_that_change_nothing_are_taken(tmp_path: Path) -> None:
    harmless = {"rope.scaling.type": "none", "expert_count": 0, "attention.causal": True}
    assert interp.load(changed(tmp_path, facts=harmless)).check().passed


@pytest.mark.parametrize(
    ("tensors", "match"),
    [
        ({"blk.1.ffn_up.weight": None}, r"lacks blk\.1\.ffn_up\.weight, which LlamaForCausalLM needs \(1 missing"),
        ({"token_embd.weight": None}, r"holds no token_embd\.weight, which LlamaForCausalLM needs"),
        ({"blk.0.attn_q.bias": np.ones(32, np.float32)}, r"holds blk\.0\.attn_q\.bias, for which Llama.* has no place"),
        (
            {"output_norm.weight": np.ones(31, np.float32)},
            r"output_norm\.weight has shape \(31,\), the rest .* \(32,\)",
        ),
        ({"blk.0.ffn_up.weight": np.ones((32, 64), np.float32)}, r"ffn_up\.weight has shape \(32, 64\), .* \(64, 32\)"),
        (
            {"blk.0.ffn_up.weight": np.ones((64, 32), np.int8)},
            r"ffn_up\.weight is packed as I8, which gguf cannot unpack",
        ),
    ],
)
def test_tensors_that_are_missing_or_do_not_fit(tensors: Any, match: str, tmp_path: Path) -> None:
    refused(changed(tmp_path, tensors=tensors), match)


def test_bytes_that_are_no_gguf_or_end_early(tmp_path: Path) -> None:
    path = changed(tmp_path)
    whole = path.read_bytes()
    damaged = [
        (b"", "is no GGUF file"),
        (b"PK\x03\x04" + whole[4:], "is no GGUF file: it does not begin with the bytes GGUF"),
        (whole[:4] + struct.pack(">I", 3) + whole[8:], "says it is GGUF version 50331648"),
        (whole[:20], "is truncated: its 20 bytes end inside the header"),
        (whole[:400], "is truncated: its 400 bytes end inside the header"),
        (whole[:-1000], r"is truncated: .*\.weight ends at byte [\d,]+, the file at [\d,]+"),
        (whole[:24] + struct.pack("<Q", 2**60) + whole[32:], "is truncated"),
        (whole.replace(b"general.architecture", b"general.brchitecture", 1), "does not say its architecture"),
        (whole.replace(b"llama.block_count", b"\xff\xfeama.block_count", 1), "is damaged: a text of its header"),
        (whole.replace(b"blk.0.attn_q.weight", b"blk.0.attn_k.weight", 1), "is damaged: two of its 21 tensors"),
    ]
    for data, match in damaged:
        path.write_bytes(data)
        refused(path, match)


def test_a_file_that_is_not_there_or_something_else(tmp_path: Path) -> None:
    refused(tmp_path / "nowhere.gguf", "no file .*nowhere.gguf")
    (tmp_path / "weights.txt").write_text("no weights")
    refused(tmp_path / "weights.txt", "is no GGUF file")
    with pytest.raises(ModelError, match="give the path of the GGUF file itself"):
        interp.load("some/repository", gguf_file="m.gguf")


def test_a_model_larger_than_memory_is_refused_before_it_is_read(tmp_path: Path) -> None:
    path = changed(tmp_path)
    header = bytearray(path.read_bytes())
    name = b"token_embd.weight"
    at = header.index(name) + len(name) + 4
    struct.pack_into("<QQ", header, at, 2**20, 2**20)  # a million by a million, in a file with a hole
    path.write_bytes(header)
    with path.open("r+b") as file:
        file.truncate(2**42 + len(header))
    refused(path, r"m\.gguf has 1,099,5\d\d,\d\d\d,\d\d\d numbers, 4398\.\d GB at 4 bytes each, and .* are free")
    refused(path, "2199.0 GB at 2 bytes each", dtype="float16")


def test_without_the_extra_it_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = changed(tmp_path)
    monkeypatch.setitem(sys.modules, "gguf", None)
    refused(path, r"m\.gguf: reading a GGUF needs the gguf package: pip install 'interp\[gguf\]'")
