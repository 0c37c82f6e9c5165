"""Every family is traced, checked, recorded, edited and differentiated on two devices, and some in bfloat16."""

from __future__ import annotations

import pytest
import torch
from placed import Place

from interp.zoo.families import FAMILIES

WHOLE = {
    "transformer_bridge": "TransformerBridge holds its modules twice, and accelerate follows both",
    "mllama": "transformers joins the hidden states of all vision layers, which then lie on several devices",
}
"""Families that cannot be split, by whom and why; they are tried on one device."""
SOME = ("llama", "gemma2", "gpt_oss", "bert", "bart", "vit", "swin", "qwen2_5_vl")


def check(name: str, place: Place) -> None:
    m = place.model(name)
    m.check().raise_failed()
    table = m.capabilities()
    assert {row.what: row.note for row in table.rows if row.answer == "no"} == {}


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_passes_its_checks_on_two_devices(name: str) -> None:
    check(name, Place("one" if name in WHOLE else "two"))


@pytest.mark.parametrize("name", SOME)
def test_a_family_passes_its_checks_in_bfloat16(name: str) -> None:
    check(name, Place("one", torch.bfloat16))
