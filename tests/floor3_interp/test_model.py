"""The Model: what it says about itself, and the ways in."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest
import torch
from torch import nn

import interp
from interp import held
from interp.hooks.errors import CheckFailed, InputsError, ModelError
from interp.hooks.examples.example import example
from interp.zoo.families import tiny


def test_attach_changes_nothing_about_the_module() -> None:
    module = tiny("gpt2", dtype=torch.bfloat16).train()
    before = {name: (p.data_ptr(), p.dtype, p.requires_grad) for name, p in module.named_parameters()}
    m = interp.attach(module)
    assert m.module is module
    assert module.training
    assert {name: (p.data_ptr(), p.dtype, p.requires_grad) for name, p in module.named_parameters()} == before
    assert "not traced yet" in repr(m)


def test_towers_are_printed_once_known() -> None:
    m = interp.attach(tiny("bart"))
    m.check()
    for line in ("encoder: 2 layers, width 32, 4 heads x 8", "cross: 2 layers", "decoder: 2 layers"):
        assert line in repr(m)
    assert "over 2 kv heads" in repr(interp.attach(tiny("llama")).anatomy.__str__())


def test_checks_are_run_once_printed_and_run_again_when_asked() -> None:
    m = interp.attach(tiny("llama"))
    report = m.check()
    assert m.check() is report
    assert m.check(again=True) is not report
    assert [line.name for line in report.lines] == ["off", "fired", "sum", "zero", "pattern", "residual"]
    assert "pattern    pass" in str(report)


def test_a_failed_check_stops_everything() -> None:
    """A model whose attention call lies about what it returns is not to be trusted."""

    class Dishonest(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner = inner
            self.calls = 0

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.calls += 1
            return self.inner(x) + 1e-3 * self.calls

    module = tiny("llama")
    module.model.layers[1].self_attn.o_proj = Dishonest(module.model.layers[1].self_attn.o_proj).eval()
    m = interp.attach(module)
    with pytest.raises(interp.InterpError, match="check 'off' failed"):
        m.run(example(module), record="L0.z")


def test_a_source_model_is_recorded_under_this_models_sites() -> None:
    base, tuned = (interp.attach(tiny("llama", seed=s)) for s in (0, 1))
    kwargs = example(base.module, batch=2)
    found = base.run(kwargs, record="L1.z", source_model=tuned)
    assert torch.equal(found["L1.z"], tuned.run(kwargs, record="L1.z")["L1.z"])
    patched = base.run(kwargs, record="L1.z", edits=[interp.Set("L1.z", found["L1.z"])])
    assert torch.equal(patched["L1.z"], found["L1.z"])
    with pytest.raises(ModelError, match="other towers"):
        base.run(kwargs, record="L1.z", source_model=interp.attach(tiny("qwen3")))


def test_what_is_to_be_recorded_needs_a_component() -> None:
    m = interp.attach(tiny("llama"))
    with pytest.raises(InputsError, match=r"write 'L1\.H2\.z'"):
        m.run(example(m.module), record="L1.H2")


def test_a_transformer_bridge_gives_its_underlying_model() -> None:
    bridge = tiny("transformer_bridge")
    m = interp.attach(bridge)
    kwargs = example(bridge, batch=2)
    z = m.run(kwargs, record="blocks.0.attn.hook_z")["L0.z"]
    _, cache = bridge.run_with_cache(kwargs["input_ids"])
    torch.testing.assert_close(z, cache["blocks.0.attn.hook_z"].reshape(z.shape), rtol=1e-5, atol=1e-5)
    edited = m.run(kwargs, edits=[interp.Zero("L1.H1.z")])["logits"]
    assert not torch.allclose(edited, m.run(kwargs)["logits"])


def test_weights_that_change_change_the_hash() -> None:
    module = tiny("gpt2")
    m, kwargs = interp.attach(module), example(module)
    before = m.run(kwargs).meta["model_hash"]
    assert m.run(kwargs).meta["model_hash"] == before
    with torch.no_grad():
        module.transformer.h[0].attn.c_proj.weight.mul_(2)
    doubled = m.run(kwargs).meta["model_hash"]
    module.transformer.h[0].attn.c_proj.weight = nn.Parameter(
        torch.zeros_like(module.transformer.h[0].attn.c_proj.weight)
    )
    assert len({before, doubled, m.run(kwargs).meta["model_hash"]}) == 3


def test_a_model_built_in_inference_mode_is_read() -> None:
    with torch.inference_mode():
        module = tiny("gpt2")
    assert interp.attach(module).run(example(module), record="L0.z")["L0.z"].shape[2] == 4


def test_rounding_of_large_scores_is_not_taken_for_a_wrong_pattern() -> None:
    module = tiny("llama")
    with torch.no_grad():
        for layer in module.model.layers:
            layer.self_attn.q_proj.weight.mul_(100)
    interp.attach(module).check().raise_failed()


@pytest.mark.faults
def test_the_first_use_by_several_threads_is_one_trace_and_one_check(monkeypatch: pytest.MonkeyPatch) -> None:
    counted: list[str] = []
    for name in ("traced", "check"):
        own = getattr(held, name)
        monkeypatch.setattr(held, name, lambda *a, _own=own, _name=name, **k: counted.append(_name) or _own(*a, **k))
    m, start = interp.attach(tiny("llama")), Barrier(6)

    def first(n: int) -> object:
        start.wait()
        return m.check() if n % 2 else m.ready()

    with ThreadPoolExecutor(6) as pool:
        found = list(pool.map(first, range(6)))
    assert counted == ["traced", "check"]
    assert len({id(one) for one in found}) == 2


@pytest.mark.faults
def test_a_check_that_failed_for_a_reason_that_goes_away_is_made_again() -> None:
    m = interp.attach(tiny("llama"))
    assert m.anatomy
    layer = m.module.model.layers[0].self_attn.o_proj
    turn = layer.register_forward_pre_hook(lambda module, args: (args[0].roll(8, -1),))  # heads in another order
    assert not m.check().passed
    with pytest.raises(CheckFailed):
        m.ready()
    turn.remove()
    assert m.check().passed
    m.ready()
