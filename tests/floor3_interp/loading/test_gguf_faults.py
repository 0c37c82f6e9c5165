"""GGUF files with bytes changed anywhere in their header, and facts of any kind: an error of ours, and nothing else."""

from __future__ import annotations

import random
import warnings
from contextlib import suppress
from pathlib import Path
from typing import Any

import ggufs
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import interp
from interp.loading.gguf.header import read

pytest.importorskip("gguf", reason="the extra gguf is not installed: pip install 'interp[gguf]'")
pytestmark = pytest.mark.faults
FEW = settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INTERP_CACHE", str(tmp_path / "cache"))


def test_300_bytes_of_a_header_changed_one_at_a_time(tmp_path: Path) -> None:
    ggufs.saved(tmp_path / "m.gguf")
    whole, chance = (tmp_path / "m.gguf").read_bytes(), random.Random(2)
    first = min(stored.start for stored in read(tmp_path / "m.gguf").tensors.values())
    for n in range(300):
        data = bytearray(whole)
        data[chance.randrange(first)] = chance.choice((0, 1, 8, 9, 127, 255, chance.randrange(256)))
        (tmp_path / "x.gguf").write_bytes(data if n % 3 else data[: chance.randrange(len(data))])
        with suppress(interp.InterpError):
            read(tmp_path / "x.gguf")


FACTS = ("general.alignment", "general.type", "split.count", "tokenizer.ggml.eot_token_id", "llama.vocab_size",
         "llama.block_count", "llama.attention.head_count", "llama.embedding_length", "llama.rope.freq_base",
         "llama.context_length", "tokenizer.ggml.model", "llama.feed_forward_length")  # fmt: skip


@given(
    st.sampled_from(FACTS), st.integers(0, 40) | st.booleans() | st.floats(width=32) | st.text(min_size=1, max_size=6)
)
@FEW
def test_facts_of_any_kind(tmp_path: Path, name: str, value: Any) -> None:
    module = ggufs.model("llama")
    own = {name.removeprefix("llama."): value} if name.startswith("llama.") else {}
    said = ggufs.facts("llama", module.config) | own
    more = {} if own else {name: value}
    path = ggufs.write(tmp_path / "m.gguf", "llama", said, ggufs.tensors("llama", module), more=more)
    with suppress(interp.InterpError), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch and transformers, of a width of 0 and the like
        interp.load(path)
