"""Readers of foreign files meet bytes and JSON of any kind: what they refuse is an error of ours, and nothing else."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import interp
from interp import formats
from interp.circuits.found.circuit import Circuit
from interp.configs import read_config
from interp.heads.rows import read_rows
from interp.tasks import needle

pytestmark = pytest.mark.faults
FEW = settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
NAMES = (
    "prompt clean corrupt answers prompts image_id caption id query image text label question_id needle question"
    " real_needle arg1 index input outputs length clean_prefix patch_prefix clean_answer patch_answer images categories"
    " annotations 0-1 cfg nodes edges n_layers n_heads wrong_answers metadata choices case"
).split()
ODD = ["a b", "yes", "0-1", "a0.h0->logits"]
ANY = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 9) | st.floats() | st.sampled_from(ODD),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(NAMES), inner, max_size=6),
    max_leaves=14,
)
READERS: dict[str, tuple[str, Callable[[Path], Any]]] = {
    "amber": ("a.json", lambda p: formats.amber(p, p, p)),
    "auto_circuit": ("a.json", formats.auto_circuit),
    "chair": ("a.json", lambda p: formats.chair(p, p)),
    "eap_ig": ("a.csv", formats.eap_ig),
    "head_scores": ("a.json", formats.head_scores),
    "mib": ("a.jsonl", formats.mib),
    "mib of parquet": ("a.parquet", formats.mib),
    "needles": ("a.jsonl", formats.needles),
    "pope": ("a.json", formats.pope),
    "ruler": ("a.jsonl", formats.ruler),
    "sva": ("a.json", formats.sva),
    "config of json": ("a.json", read_config),
    "config of yaml": ("a.yaml", read_config),
    "circuit of json": ("a.json", Circuit.load),
    "circuit of torch": ("a.pt", Circuit.load),
    "rows of a report": ("heads.parquet", lambda p: read_rows(p.parent)),
    "haystack": ("a.txt", lambda p: needle(None, lengths=(64,), haystack=p)),
}


@pytest.mark.parametrize("name", READERS)
@given(noise=st.binary(max_size=80), text=st.text(max_size=40), value=ANY)
@FEW
def test_whatever_a_file_holds(name: str, tmp_path: Path, noise: bytes, text: str, value: Any) -> None:
    file, read = READERS[name]
    several = [value] * 2 if not isinstance(value, list) else value
    lines = "\n".join(json.dumps(one) for one in several)
    for data in (
        noise,
        text.encode("utf-8", "replace"),
        json.dumps(value).encode(),
        lines.encode(),
        b"PAR1" + noise + b"PAR1",
    ):
        (tmp_path / file).write_bytes(data)
        with suppress(interp.InterpError):
            read(tmp_path / file)


@pytest.mark.parametrize("name", READERS)
def test_files_that_are_not_there_too_deep_or_too_long(name: str, tmp_path: Path) -> None:
    file, read = READERS[name]
    with pytest.raises(interp.InterpError):
        read(tmp_path / file)
    for data in (b"[" * 100_000, b'{"a": ' + b"9" * 5000 + b"}", b"", b"\xff\xfe", b"\0" * 10, b'"' * 3):
        (tmp_path / file).write_bytes(data)
        with suppress(interp.InterpError):
            read(tmp_path / file)
