"""What makes replay quick changes no numbers that matter and is given back."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel

import interp
from interp.hooks.drive.faster import DEFAULT, ONEDNN, PACKED, exact, fused, packed, products, quicker
from interp.metrics.shipped import LogitDifference

MATMUL: Any = getattr(torch.backends.mkldnn, "matmul")  # noqa: B009, torch puts it there when it is imported


def settings() -> tuple[str, str]:
    return MATMUL.fp32_precision, torch.get_float32_matmul_precision()


@pytest.mark.parametrize("name", [ONEDNN, PACKED])
def test_the_setting_is_given_back_even_after_an_error(name: str) -> None:
    before = settings()

    def work() -> None:
        with products(name):
            assert MATMUL.fp32_precision == "bf16"
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        work()
    assert settings() == before


def test_only_wide_float32_on_a_cpu_is_chosen_for() -> None:
    assert quicker(torch.empty(0, 64)) == DEFAULT
    assert quicker(torch.empty(0, 768, dtype=torch.float64)) == DEFAULT
    assert quicker(torch.empty(0, 768)) in (DEFAULT, ONEDNN, PACKED)
    assert exact(quicker(torch.empty(0, 768)), 768)
    assert quicker(torch.empty(0, 768)) == quicker(torch.empty(0, 768))


def test_laid_out_layers_are_the_same_layers() -> None:
    from transformers.pytorch_utils import Conv1D

    block = nn.ModuleDict({"a": nn.Linear(48, 80), "b": nn.Linear(48, 80, bias=False), "c": Conv1D(80, 48)})
    nn.init.normal_(block["c"].get_parameter("bias"))
    x = torch.randn(1, 600, 48)
    with torch.no_grad():
        before = {name: layer(x) for name, layer in block.items()}
        with packed(block, PACKED, 600):
            for name, layer in block.items():
                assert "forward" in vars(layer)
                exact = before[name].double()
                assert float((layer(x).double() - exact).abs().max()) < 48 * 2**-22 * float(exact.abs().max())
        with packed(block, PACKED, 8), packed(block, ONEDNN, 600):
            assert not any("forward" in vars(layer) for layer in block.values())
    assert not any("forward" in vars(layer) for layer in block.values())


@pytest.mark.parametrize("name", [DEFAULT, ONEDNN, PACKED])
def test_a_sweep_gives_the_same_effects_whichever_products_it_takes(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Products that a processor makes coarser (AMX) are noticed, and the sweep goes in full passes, with a warning."""
    monkeypatch.setattr("interp.hooks.drive.sweep.quicker", lambda x: name)
    config = GPT2Config(
        n_layer=2, n_embd=64, n_head=4, vocab_size=90, initializer_range=0.2, bos_token_id=1, eos_token_id=2
    )
    m = interp.attach(GPT2LMHeadModel(config).eval())
    base = torch.randint(5, 90, (8, 12))
    source = torch.cat([base[:, :3], torch.randint(5, 90, (8, 9))], 1)
    metric = LogitDifference(answers=((7,),) * 8, wrong=((8,),) * 8)
    with nullcontext() if exact(name, 64) else pytest.warns(UserWarning, match="in full forward passes"):
        e = interp.patch(m, base={"input_ids": base}, source={"input_ids": source}, metric=metric, sites="L*.H*.z")
    assert e.meta["products"] == name
    if not exact(name, 64):
        return
    values, x = m.run(source, record="L*.z"), m.inputs({"input_ids": base})
    plain = metric(m.run(x)["logits"], x)
    for n, site in enumerate(e.sites):
        gap = metric(m.run(x, edits=[interp.Set(site, values[site])])["logits"], x) - plain
        torch.testing.assert_close(e.values[n].float(), gap, atol=2e-5, rtol=0)
    assert not any("forward" in vars(child) for child in m.module.modules())
    assert settings()[1] == "highest"


def test_fused_activations_are_given_back() -> None:
    module = GPT2LMHeadModel(GPT2Config(n_layer=1, n_embd=32, n_head=2, vocab_size=50)).eval()
    x = torch.randn(4, 7)
    act = module.transformer.h[0].mlp.act
    own = act(x)
    with torch.no_grad(), fused(module):
        torch.testing.assert_close(act(x), own, atol=1e-6, rtol=1e-6)
        assert "forward" in vars(act)
    assert "forward" not in vars(act)
