"""Our AttnLRP and CP-LRP are LXT's, number by number, on the same tiny Llama.

The numbers were written by `experiments/lxt_fixture.py`, in an environment where LXT can be imported.
"""

from __future__ import annotations

import json
from functools import cache
from typing import Any

import pytest
import torch
from house import ROOT
from safetensors import safe_open
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

import interp
from interp.attribution.relevance import relevance

FILE = ROOT / "tests" / "data" / "lxt.safetensors"
RULES = ("attnlrp", "cp-lrp")


@cache
def kept() -> tuple[dict[str, Tensor], dict[str, Any]]:
    with safe_open(FILE, "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, json.loads(file.metadata()["config"])  # noqa: SIM118


@cache
def model() -> interp.Model:
    tensors, config = kept()
    made = LlamaForCausalLM(LlamaConfig(**config)).eval()
    made.load_state_dict({n.removeprefix("weights."): t for n, t in tensors.items() if n.startswith("weights.")})
    return interp.attach(made)


def asked() -> dict[str, Tensor]:
    return {"input_ids": kept()[0]["ids"]}


def explained(logits: Tensor, inputs: Any) -> Tensor:
    return logits[torch.arange(len(logits)), -1, kept()[0]["targets"]]


def near(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-5 * float(expected.abs().max()))


def test_it_is_the_same_model() -> None:
    near(model().run(asked())["logits"], kept()[0]["logits"])


@pytest.mark.parametrize("rule", RULES)
def test_relevance_of_the_tokens(rule: str) -> None:
    pytest.importorskip("captum")
    tensors = kept()[0]
    expected = (tensors[f"{rule}.L0.value"] * tensors[f"{rule}.L0.slope"]).sum(-1)
    found = relevance(model(), asked(), metric=explained, method=rule)
    near(found.values, expected)
    plain = relevance(model(), asked(), metric=explained, method="gradient_x_input")
    assert float((plain.values - expected).abs().max()) > 0.1 * float(expected.abs().max())


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("layer", [0, 1])
def test_relevance_of_the_residual(rule: str, layer: int) -> None:
    """Against a source of zeros an estimate is minus the relevance."""
    tensors = kept()[0]
    expected = -(tensors[f"{rule}.L{layer}.value"] * tensors[f"{rule}.L{layer}.slope"]).sum(-1)
    found = interp.attribute(
        model(), base=asked(), source="zero", metric=explained, sites=f"L{layer}.resid_pre", positions="each",
        method=rule, verify=0,
    )  # fmt: skip
    near(found.values.T.float(), expected)


def test_the_two_rules_differ() -> None:
    one, other = (kept()[0][f"{rule}.L0.slope"] for rule in RULES)
    assert float((one - other).abs().max()) > 0.1 * float(one.abs().max())
