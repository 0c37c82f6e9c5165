"""A model is looked into as it is held: offloaded, packed, adapted or compiled, with the numbers of the plain model."""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import interp
from interp.hooks.errors import ModelError
from interp.hooks.examples.example import example
from interp.hooks.sites import Site
from interp.hooks.survey.capabilities import _Attempt, capabilities
from interp.hooks.survey.checks import Report
from interp.hooks.survey.trace import trace
from interp.zoo.every import build
from interp.zoo.families import tiny

HERE = torch.device("cpu")
TARGETS = ["q_proj", "v_proj", "o_proj", "down_proj"]


@dataclass
class Case:
    """A model as it is held, and a plain one that computes the same."""

    held: Any
    plain: nn.Module
    words: str
    exact: bool = True


def cpu(_: Path) -> Case:
    from accelerate import cpu_offload

    model = tiny("llama")
    cpu_offload(model, HERE)
    return Case(model, tiny("llama"), "21 of 21 parameters offloaded")


def disk(folder: Path) -> Case:
    from accelerate import disk_offload

    model = tiny("llama")
    disk_offload(model, str(folder), HERE)
    return Case(model, tiny("llama"), "21 of 21 parameters offloaded")


def device_map(folder: Path) -> Case:
    from accelerate import dispatch_model

    where = {"model.embed_tokens": "cpu", "model.layers.0": "disk", "model.layers.1": "cpu", "model.norm": "disk"}
    where |= {"model.rotary_emb": "cpu", "lm_head": "cpu"}
    model = dispatch_model(tiny("llama"), where, main_device="cpu", offload_dir=str(folder), force_hooks=True)
    return Case(model, tiny("llama"), "10 of 21 parameters offloaded")


def packed(_: Path) -> Case:
    """bitsandbytes' NF4: weight-only, and its kernels run on a CPU."""
    bnb = pytest.importorskip("bitsandbytes")
    model, plain = tiny("llama"), tiny("llama")
    for name, linear in [(n, c) for n, c in model.named_modules() if type(c) is nn.Linear and "layers" in n]:
        new = bnb.nn.Linear4bit(
            linear.in_features, linear.out_features, bias=False, quant_type="nf4", compute_dtype=torch.float32
        )
        new.load_state_dict(linear.state_dict())
        new = new.to(HERE).eval()
        new.support_avx512bf16_for_cpu = False  # only some CPUs have that kernel, which wants widths of 64
        model.set_submodule(name, new)
        unpacked = bnb.functional.dequantize_4bit(new.weight.data, new.weight.quant_state)
        plain.get_submodule(name).weight.data = unpacked.float()
    return Case(model, plain, "quantised: Linear4bit (bitsandbytes) in 14 projections", exact=False)


def adapted() -> Any:
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=4, lora_alpha=6, target_modules=TARGETS, init_lora_weights=False)
    return get_peft_model(tiny("llama"), config).eval()


def by_hand(adapter: Any) -> nn.Module:
    """W + (alpha / r) B A, written from the paper's definition (Hu et al., 2021)."""
    plain = tiny("llama")
    for name, child in adapter.base_model.model.named_modules():
        if hasattr(child, "lora_A"):
            low, high = (getattr(child, part)["default"].weight.detach() for part in ("lora_A", "lora_B"))
            plain.get_submodule(name).weight.data += 6 / 4 * high @ low
    return plain


def lora(_: Path) -> Case:
    model = adapted()
    return Case(model, by_hand(model), "default attached in 8 projections", exact=False)


def lora_merged(_: Path) -> Case:
    model = adapted()
    plain = by_hand(model)
    model.merge_adapter()
    return Case(model, plain, "merged in 8 projections", exact=False)


def lora_gone(_: Path) -> Case:
    model = adapted()
    plain = by_hand(model)
    return Case(model.merge_and_unload(), plain, "plain", exact=False)


def compiled(_: Path) -> Case:
    return Case(torch.compile(tiny("llama"), backend="eager"), tiny("llama"), "compiled; run eagerly")


def compiled_in_place(_: Path) -> Case:
    model = tiny("llama")
    model.compile(backend="eager")
    return Case(model, tiny("llama"), "compiled in place")


def plain(_: Path) -> Case:
    return Case(tiny("llama"), tiny("llama"), "plain")


KINDS: list[Callable[[Path], Case]] = [
    plain, cpu, disk, device_map, packed, lora, lora_merged, lora_gone, compiled, compiled_in_place,
]  # fmt: skip


@pytest.fixture(params=KINDS, ids=lambda kind: kind.__name__)
def case(request: pytest.FixtureRequest, tmp_path: Path) -> Case:
    return request.param(tmp_path)


def agree(case: Case, got: Tensor, expected: Tensor) -> None:
    if case.exact:
        assert torch.equal(got, expected)
    else:
        torch.testing.assert_close(got, expected, rtol=2e-5, atol=2e-5 * float(expected.abs().max()))


def projection(model: nn.Module, layer: int) -> nn.Linear:
    return model.get_submodule(f"model.layers.{layer}.self_attn.o_proj")


def ids() -> dict[str, Tensor]:
    return {"input_ids": torch.randint(4, 150, (2, 7), generator=torch.Generator().manual_seed(3))}


def test_z_and_logits_are_the_plain_models(case: Case) -> None:
    tape = interp.attach(case.held).run(ids(), record="L*.z")
    expected: dict[int, Tensor] = {}
    for layer in (0, 1):
        projection(case.plain, layer).register_forward_pre_hook(lambda _, a, n=layer: expected.__setitem__(n, a[0]))
    with torch.no_grad():
        logits = case.plain(**ids()).logits
    for layer, z in expected.items():
        agree(case, tape[f"L{layer}.z"].flatten(-2), z)
    agree(case, tape["logits"], logits)


def test_a_zeroed_head_is_a_head_without_columns(case: Case) -> None:
    m = interp.attach(case.held)
    got = m.run(ids(), edits=[interp.Zero("L0.H2.z")])["logits"]
    with torch.no_grad():
        projection(case.plain, 0).weight[:, 16:24] = 0
        expected = case.plain(**ids()).logits
    torch.testing.assert_close(got, expected, rtol=2e-5, atol=2e-4)
    assert not torch.allclose(got, m.run(ids())["logits"], atol=1e-2)


def test_results_are_z_times_each_heads_columns(case: Case) -> None:
    tape = interp.attach(case.held).run(ids(), record=["L0.z", "L0.result", "L0.attn_out"])
    by_head = projection(case.plain, 0).weight.detach().T.unflatten(0, (4, 8))
    expected = torch.einsum("bshd,hdo->bsho", tape["L0.z"], by_head)
    torch.testing.assert_close(tape["L0.result"], expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(tape["L0.result"].sum(2), tape["L0.attn_out"], rtol=1e-4, atol=1e-5)


def test_gradients_at_z_are_the_plain_models(case: Case) -> None:
    def slope(model: Any) -> Tensor:
        tape = interp.attach(model).run(ids(), record="L0.z", grad=True)
        return tape.grad(tape["logits"][:, -1, 7])["L0.z"]

    torch.testing.assert_close(slope(case.held), slope(case.plain), rtol=1e-3, atol=1e-5)


def test_the_table_says_so(case: Case) -> None:
    table = capabilities(case.held)
    assert case.words in str(table)
    assert {row.what: row.answer for row in table.rows} == {"record": "yes", "edit": "yes", "gradient": "yes"}
    checked = str(interp.attach(case.held).check())
    assert "held:" in checked
    assert "sweep      yes" in checked


def test_nothing_is_moved_merged_or_left_behind(case: Case) -> None:
    root = getattr(case.held, "_orig_mod", case.held)

    away = any(p.device.type == "meta" for p in root.parameters())

    def state() -> list[Any]:
        """accelerate puts new placeholders there after every call, so those of an offloaded model have no identity."""
        said: list[Any] = [(n, 0 if away else id(p), p.device.type, p.dtype) for n, p in root.named_parameters()]
        for name, child in root.named_modules():
            hooks = (child._forward_hooks, child._forward_pre_hooks, child._backward_hooks)
            said.append((name, type(child), id(child.forward.__func__) if hasattr(child.forward, "__func__") else 0))
            said.append((len(hooks[0]), len(hooks[1]), len(hooks[2]), child.training, getattr(child, "merged", None)))
            said.append(id(getattr(child, "_hf_hook", None)))
        return said

    values = {name: t.clone() for name, t in root.state_dict().items() if isinstance(t, Tensor) and t.device == HERE}
    with torch.no_grad():
        before, logits = state(), case.held(**ids()).logits
    m = interp.attach(case.held)
    print(m.check())
    m.run(ids(), record=["L*.z", "L*.result"], edits=[interp.Zero("L1.H0.z")])
    assert state() == before
    for name, value in values.items():
        assert torch.equal(root.state_dict()[name], value), name
    with torch.no_grad():
        assert torch.equal(case.held(**ids()).logits, logits)


def test_a_projection_that_rounds_its_input_has_no_sum_of_heads() -> None:
    """LLM.int8 is not weight-only: the check says that results do not add up, and the rest still works."""
    bnb = pytest.importorskip("bitsandbytes")
    model = tiny("llama", dtype=torch.float16)
    for name, linear in [(n, c) for n, c in model.named_modules() if type(c) is nn.Linear and "layers" in n]:
        new = bnb.nn.Linear8bitLt(linear.in_features, linear.out_features, bias=False, has_fp16_weights=False)
        new.load_state_dict(linear.state_dict())
        model.set_submodule(name, new.eval())
    report = interp.attach(model).check()
    lines = {line.name: line for line in report.lines}
    assert report.passed
    assert lines["sum"].verdict == "n/a"
    assert "rounds its input" in lines["sum"].note
    assert "finite and not zero" in str(report)


def test_what_does_not_work_is_said_with_the_reason() -> None:
    with torch.inference_mode():
        model = tiny("llama")
    table = capabilities(model)
    assert table["record"].answer == table["edit"].answer == "yes"
    assert table["gradient"].answer == "no"
    assert "nference tensors" in table["gradient"].note


def test_a_recording_that_is_not_what_the_projection_reads_is_a_no() -> None:
    """Something put between the attention call and the projection after the model was traced."""
    model = tiny("llama")
    anatomy = interp.attach(model).anatomy
    gate = projection(model, 1).register_forward_pre_hook(lambda _, args: (args[0] * 0.5,), prepend=True)
    table = capabilities(model, anatomy=anatomy)
    gate.remove()
    assert table["record"].answer == "no"
    assert "L1.z is not what its output projection reads" in table["record"].note


def test_asked_for_only_when_printed() -> None:
    asked = []
    report = Report("Model", (), ask=lambda: asked.append(1) or capabilities(tiny("gpt2")))
    assert copy.copy(report).passed
    assert not asked
    assert "gradient" in str(report) + str(report)
    assert asked == [1]


@pytest.mark.parametrize("model_type", ["gemma3", "mllama", "blt"])
def test_behind_a_gate_at_zero_the_towers_own_last_residual_is_differentiated(model_type: str) -> None:
    row = capabilities(build(model_type))["gradient"]
    assert row.answer == "yes"
    assert "resid_post; the logits have none there, by hand neither" in row.note


def test_a_pass_that_runs_without_gradients_is_named_and_a_later_one_is_differentiated() -> None:
    row = capabilities(build("hrm_text"))["gradient"]
    assert row.answer == "yes"
    assert "; none reaches" in row.note


class _Severed(_Attempt):
    """A hook layer that loses the graph between z and the logits."""

    def _slope(self, site: Site, read: Site | None) -> tuple[Tensor, Tensor | None, Tensor]:
        z, slope, made = super()._slope(site, read)
        return z, None if read is None else slope, made


def test_a_gradient_that_torch_finds_by_hand_may_not_be_missing() -> None:
    module = tiny("llama")
    kwargs = example(module)
    with pytest.raises(ModelError, match=r"by hand, at the input of .*o_proj, it is not"):
        _Severed(module, trace(module, kwargs), kwargs, None).gradient()
