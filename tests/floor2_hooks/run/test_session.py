"""What happens to a model while somebody looks into it, and that nothing of it is left afterwards."""

from __future__ import annotations

import copy
import gc
import importlib
import pickle
import threading
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

import pytest
import torch
from house import python
from torch import Tensor, nn
from transformers.modeling_utils import AttentionInterface

import interp
from interp.hooks.edits.edits import ValueEdit
from interp.hooks.errors import BudgetError, ModelError, NotFired
from interp.hooks.examples.example import example
from interp.hooks.run.session import Session
from interp.hooks.stand.call import Call, Tap
from interp.hooks.stand.interface import Switch
from interp.zoo.families import tiny

OWN = AttentionInterface.get_interface
FAMILIES = ["gpt2", "llama", "bloom", "bart"]


@cache
def attached(name: str) -> interp.Model:
    m = interp.attach(tiny(name))
    m.ready()
    return m


def given(m: interp.Model) -> dict[str, Any]:
    return example(m.module, batch=2, length=6)


def first(m: interp.Model) -> str:
    return "L1.z" if len(m.towers) == 1 else "decoder.L1.z"


def logits(module: nn.Module, kwargs: dict[str, Any]) -> Tensor:
    with torch.no_grad():
        return module(**kwargs).logits


def hooks_on(module: nn.Module) -> list[str]:
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks", "_state_dict_hooks")
    return [f"{name}.{kind}" for name, child in module.named_modules() for kind in kinds if getattr(child, kind)]


def assert_clean(m: interp.Model) -> None:
    assert hooks_on(m.module) == []
    assert AttentionInterface.get_interface is OWN
    assert "_interp_wrapper" not in AttentionInterface.__dict__
    assert Switch.watched() == 0
    assert m.handles() == []


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    yield
    assert AttentionInterface.get_interface is OWN
    assert Switch.watched() == 0


class Raises(ValueEdit):
    """An edit that fails when the model reaches it."""

    def __init__(self, site: str, error: BaseException) -> None:
        object.__setattr__(self, "error", error)
        super().__init__(site)

    def change(self, x: Tensor, valid: Tensor | None) -> Tensor:
        raise self.error


@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_is_after_as_it_was_before(family: str) -> None:
    module = tiny(family)
    twin = copy.deepcopy(module)
    names = set(vars(module)) | {n for child in module.modules() for n in vars(child)}
    kwargs = example(module, batch=2)
    before = logits(module, kwargs)
    m = interp.attach(module)
    x = m.inputs(kwargs)
    m.check()
    m.run(x, record=["logits", first(m)], edits=[interp.Scale(first(m), 0.5)])
    m.run(x, record=first(m), grad=True).grad(lambda logits, inputs: logits[:, -1, 0])
    with m.edited([interp.Zero(first(m))]):
        assert not torch.equal(logits(module, kwargs), before)
    assert_clean(m)
    assert torch.equal(logits(module, kwargs), before)
    assert {n for child in module.modules() for n in vars(child)} | set(vars(module)) == names
    for (name, a), (_, b) in zip(module.state_dict().items(), twin.state_dict().items(), strict=True):
        assert torch.equal(a, b), name
    assert list(module.state_dict()) == list(twin.state_dict())
    assert [b.shape for b in module.buffers()] == [b.shape for b in twin.buffers()]
    assert all(p.requires_grad and p.grad is None for p in module.parameters())
    assert not module.training
    assert torch.equal(logits(pickle.loads(pickle.dumps(module)), kwargs), before)
    assert torch.equal(logits(copy.deepcopy(module), kwargs), before)


@pytest.mark.parametrize("error", [RuntimeError("no"), KeyboardInterrupt(), MemoryError(), torch.OutOfMemoryError()])
@pytest.mark.parametrize("family", FAMILIES)
def test_an_error_inside_leaves_the_model_clean_and_the_memory_free(family: str, error: BaseException) -> None:
    m = attached(family)
    kwargs = given(m)
    before = logits(m.module, kwargs)
    kept: list[weakref.ref[Tensor]] = []

    class Watching(Raises):
        def change(self, x: Tensor, valid: Tensor | None) -> Tensor:
            pieces = m.handles()[0].pieces
            kept.extend(weakref.ref(tensor) for parts in pieces.values() for tensor in parts)
            raise self.error

    tower = "" if len(m.towers) == 1 else "decoder."
    with pytest.raises(type(error)):
        m.run(kwargs, record=[f"{tower}L0.z", f"{tower}L0.resid_post"], edits=[Watching(f"{tower}L1.z", error)])
    error.__traceback__ = None
    gc.collect()
    assert len(kept) == 2
    assert [one() for one in kept] == [None, None]
    with pytest.raises(type(error)), m.edited([interp.Zero(first(m))]):
        raise error
    assert_clean(m)
    assert torch.equal(logits(m.module, kwargs), before)


def test_two_models_at_once_do_not_touch_each_other() -> None:
    one, two = attached("gpt2"), interp.attach(tiny("gpt2", seed=1))
    kwargs = given(one)
    before = logits(two.module, kwargs)
    with one.edited([interp.Zero("L0.z")]):
        assert torch.equal(logits(two.module, kwargs), before)
        with two.edited([interp.Scale("L1.z", 2.0)]):
            both = logits(two.module, kwargs)
            assert torch.equal(one.run(kwargs, record="L0.z")["L0.z"], torch.zeros(2, 6, 4, 8))
        assert torch.equal(two.run(kwargs, edits=[interp.Scale("L1.z", 2.0)])["logits"], both)
        assert AttentionInterface.get_interface is not OWN
    assert_clean(one)
    assert_clean(two)


@pytest.mark.parametrize("family", FAMILIES)
def test_inner_hooks_that_remove_outer_ones(family: str) -> None:
    """Contexts nest: leaving the inner one leaves the outer one's edits, on the same head and on others."""
    m = attached(family)
    kwargs, site = given(m), first(m)
    head = site.replace(".z", ".H1.z")
    outer = m.run(kwargs, edits=[interp.Scale(head, 0.5)])["logits"]
    with m.edited([interp.Scale(head, 0.5)]):
        with m.edited([interp.Zero(site.replace(".z", ".H0.z"))]), m.edited([interp.Scale(head, 3.0)]):
            both = logits(m.module, kwargs)
            assert len(m.handles()) == 3
        assert torch.equal(logits(m.module, kwargs), outer)
        tape = m.run(kwargs, record=head)
        assert torch.equal(tape["logits"], outer)
        assert torch.equal(logits(m.module, kwargs), outer)
    listed = [interp.Scale(head, 0.5), interp.Zero(site.replace(".z", ".H0.z")), interp.Scale(head, 3.0)]
    torch.testing.assert_close(m.run(kwargs, edits=listed)["logits"], both)
    assert_clean(m)


def test_hooks_of_the_user_stay() -> None:
    m = attached("gpt2")
    seen: list[int] = []
    target = m.module.transformer.h[0].attn.c_proj
    handle = target.register_forward_pre_hook(lambda *_: seen.append(1))
    try:
        m.run(given(m), record="L0.z", edits=[interp.Zero("L0.H0.result")])
        logits(m.module, given(m))
        assert len(seen) == 2
        assert len(target._forward_pre_hooks) == 1
    finally:
        handle.remove()


@pytest.mark.parametrize("polite", [True, False])
def test_a_wrapper_that_another_library_puts_over_ours_stays(polite: bool) -> None:
    import functools

    m, seen = attached("llama"), []
    kwargs = given(m)
    before = logits(m.module, kwargs)
    with m.edited([interp.Zero("L0.z")]):
        ours = AttentionInterface.get_interface

        def theirs(self: Any, name: str, default: Any) -> Any:
            seen.append(name)
            return ours(self, name, default)

        AttentionInterface.get_interface = functools.wraps(ours)(theirs) if polite else theirs
        mine = AttentionInterface.get_interface
    try:
        assert AttentionInterface.get_interface is mine
        assert torch.equal(logits(m.module, kwargs), before)
        assert torch.equal(
            m.run(kwargs, edits=[interp.Zero("L0.z")])["logits"], m.run(kwargs, edits=[interp.Zero("L0.z")])["logits"]
        )
        assert not torch.equal(m.run(kwargs, edits=[interp.Zero("L0.z")])["logits"], before)
        assert seen
    finally:
        AttentionInterface.get_interface = ours
        m.run(kwargs, record="L0.z")
    assert_clean(m)


def test_edits_that_never_fired_are_reported_when_the_context_ends() -> None:
    m = attached("gpt2")
    with pytest.raises(NotFired, match="phase='decode'"), m.edited([interp.Zero("L0.z", phase="decode")]):
        logits(m.module, given(m))
    with m.edited([interp.Zero("L0.z")]):
        pass
    assert_clean(m)


def test_reset_takes_off_what_was_left_on() -> None:
    m = attached("llama")
    before = logits(m.module, given(m))
    left = m.edited([interp.Zero("L0.z")])
    left.__enter__()
    assert len(m.handles()) == 1
    m.reset()
    assert_clean(m)
    assert torch.equal(logits(m.module, given(m)), before)
    left.__exit__(None, None, None)
    m.reset()
    assert_clean(m)


def test_a_context_that_is_forgotten_takes_itself_off() -> None:
    m = attached("llama")
    left = m.edited([interp.Zero("L0.z")])
    left.__enter__()
    del left
    gc.collect()
    assert_clean(m)


RELOADED = """
import importlib, torch, interp
import interp.hooks.stand.interface as module
from interp.zoo.families import tiny
from interp.hooks.examples.example import example
from transformers.modeling_utils import AttentionInterface

own = AttentionInterface.get_interface
m = interp.attach(tiny("llama"))
kwargs = example(m.module, batch=2)
logits = lambda: m.module(**kwargs).logits.detach()
before, zeroed = logits(), m.run(kwargs, edits=[interp.Zero("L0.z")])["logits"]
with m.edited([interp.Zero("L0.z")]):
    CLEAR
    importlib.reload(module)
    assert torch.equal(logits(), zeroed)
    assert not torch.equal(m.run(kwargs, edits=[interp.Scale("L1.z", 2.0)])["logits"], zeroed)
    assert torch.equal(logits(), zeroed)
assert module.Switch.watched() == 0
assert AttentionInterface.get_interface is own
assert torch.equal(logits(), before)
assert torch.equal(m.run(kwargs, edits=[interp.Zero("L0.z")])["logits"], zeroed)
print("clean")
"""
CLEARED = """kept = {name: vars(module)[name] for name in ("__name__", "__loader__", "__spec__", "__file__")}
    vars(module).clear()
    vars(module).update(kept)"""


@pytest.mark.parametrize("clear", ["pass", CLEARED])
def test_a_module_reloaded_while_something_is_on(clear: str) -> None:
    """By importlib, and as IPython's autoreload does it, which empties the module first."""
    assert python(RELOADED.replace("CLEAR", clear)).endswith("clean")


@pytest.mark.parametrize("family", ["llama", "bloom", "bart"])
def test_threads_run_their_own_sessions_on_one_model(family: str) -> None:
    """A run in one thread neither sees nor changes that of another."""
    m = attached(family)
    kwargs, site = given(m), first(m)
    expected = {f: m.run(kwargs, record=site, edits=[interp.Scale(site, f)]) for f in (0.0, 0.5, 2.0, 3.0)}
    gate = threading.Barrier(4)

    def one(factor: float) -> list[Any]:
        gate.wait()
        return [m.run(kwargs, record=site, edits=[interp.Scale(site, factor)]) for _ in range(4)]

    with ThreadPoolExecutor(4) as pool:
        found = dict(zip(expected, pool.map(one, expected), strict=True))
    for factor, tapes in found.items():
        for tape in tapes:
            assert torch.equal(tape[site], expected[factor][site])
            assert torch.equal(tape["logits"], expected[factor]["logits"])
    assert_clean(m)


@pytest.mark.parametrize("family", ["llama", "bloom"])
def test_edited_reaches_every_thread_with_inputs_of_its_own(family: str) -> None:
    m = attached(family)
    batches = [example(m.module, batch=2, length=5 + n, padding="left", seed=n) for n in range(4)]
    edits = [interp.Set("L1.z", 0.5, positions="last"), interp.Scale("L0.H1.result", 2.0)]
    expected = [m.run(kwargs, edits=edits)["logits"] for kwargs in batches]
    with m.edited(edits), ThreadPoolExecutor(4) as pool:
        for _ in range(3):
            for found, wanted in zip(pool.map(lambda kw: logits(m.module, kw), batches), expected, strict=True):
                assert torch.equal(found, wanted)
    assert_clean(m)


def test_replicas_as_data_parallel_makes_them_are_never_edited_in_silence() -> None:
    m = attached("llama")
    kwargs = given(m)

    def replica_of(module: nn.Module) -> nn.Module:
        twin = module._replicate_for_data_parallel()
        twin._parameters = dict(module._parameters)
        twin._modules = {name: replica_of(child) for name, child in module._modules.items()}
        return twin

    with pytest.raises(NotFired), m.edited([interp.Zero("L0.z")]):
        logits(replica_of(m.module), kwargs)
    assert_clean(m)
    inside = nn.DataParallel(m.module) if not torch.cuda.is_available() else m.module
    assert interp.attach(inside).module is m.module


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_a_compiled_model_is_read_and_edited_and_stays_compiled(backend: str) -> None:
    module = tiny("gpt2")
    kwargs = example(module, batch=2)
    compiled = torch.compile(module, backend=backend)
    with torch.no_grad():
        before = compiled(**kwargs).logits
    counted = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    m = interp.attach(compiled)
    assert m is interp.attach(module)
    with torch.no_grad():
        with m.edited([interp.Zero("L0.z")]):
            edited = compiled(**kwargs).logits
            assert torch.equal(edited, m.run(kwargs, edits=[interp.Zero("L0.z")])["logits"])
        assert not torch.allclose(edited, before)
        assert torch.equal(compiled(**kwargs).logits, before)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == counted, "it was compiled anew"
    assert torch._dynamo.eval_frame._stance.stance == "default"
    assert_clean(m)
    torch._dynamo.reset()


def test_forced_eager_ends_with_the_last_of_several_threads() -> None:
    from interp.hooks.anatomy.unwrap import forced_eager

    importlib.import_module("torch._dynamo")

    def stance() -> str:
        return str(torch._dynamo.eval_frame._stance.stance)

    one, two = forced_eager(), forced_eager()
    one.__enter__()
    two.__enter__()
    one.__exit__(None, None, None)
    assert stance() == "force_eager"
    two.__exit__(None, None, None)
    assert stance() == "default"


def test_attaching_twice_gives_one_model_which_keeps_nothing_alive() -> None:
    module = tiny("gpt2")
    m = interp.attach(module)
    assert interp.attach(module) is m
    m.run(example(module), record="L0.z")
    alive = weakref.ref(module)
    del m, module
    gc.collect()
    assert alive() is None


def test_memory_is_what_was_asked_for() -> None:
    """z of one layer keeps one layer: no storage behind the tape is larger than what it shows."""
    m = attached("gpt2")
    kwargs = example(m.module, batch=4, length=32)
    whole = 4 * 32 * 32 * 4
    for record, bytes_ in (
        ("L0.z", whole),
        ("L1.H2.z", whole // 4),
        ("L0.q", whole),
        ("L1.v", whole),
        ("L0.resid_post", whole),
        ("L0.H1.pattern", 4 * 32 * 32 * 4),
        ("L1.neurons", 4 * whole),
    ):
        tape = m.run(kwargs, record=record)
        site = next(s for s in tape.sites if s.component != "logits")
        tensor = tape[site]
        assert tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size() == bytes_, record
        assert not tensor.requires_grad
        assert tensor._base is None or tensor._base.numel() == tensor.numel()
    gc.collect()
    before = sum(1 for o in gc.get_objects() if type(o) is Tensor)
    tape = m.run(kwargs, record="L0.z")
    gc.collect()
    grown = sum(1 for o in gc.get_objects() if type(o) is Tensor) - before
    assert grown <= 12, "more than the tape's two tensors and its inputs' few are alive"


def test_a_recording_is_a_copy_that_the_model_does_not_write_into() -> None:
    for family in ("gpt2", "falcon", "opt"):
        m = attached(family)
        kwargs = given(m)
        tape = m.run(kwargs, record=["L0.resid_pre", "L0.attn_out", "L0.resid_post"])
        copies = {s: t.clone() for s, t in tape.items()}
        m.run(kwargs, edits=[interp.Set("L0.resid_pre", 7.0), interp.Set("L0.attn_out", 7.0)])
        logits(m.module, kwargs)
        for site, tensor in tape.items():
            assert torch.equal(tensor, copies[site]), f"{family} {site}"


def test_a_budget_is_kept() -> None:
    m = attached("gpt2")
    kwargs = given(m)
    for record, budget in (("L*.z", 2000), ("L0.neurons", 2000)):
        with pytest.raises(BudgetError, match=r"allowed|passed the budget"):
            m.run(kwargs, record=record, budget=budget)
        assert_clean(m)
    m.run(kwargs, record="L*.z", budget=10_000)


def test_dtype_and_cpu_store() -> None:
    m = attached("gpt2")
    tape = m.run(given(m), record=["L0.z", "L0.pattern"], dtype=torch.float16, store="cpu")
    assert tape["L0.z"].dtype == tape["L0.pattern"].dtype == torch.float16
    assert tape["L0.z"].device.type == "cpu"


def test_train_mode_is_refused_each_time() -> None:
    module = tiny("gpt2")
    m = interp.attach(module)
    m.run(example(module), record="L0.z")
    module.train()
    with pytest.raises(ModelError, match=r"train mode.*model\.eval"):
        m.run(example(module), record="L0.z")
    assert module.training
    module.eval()
    module.transformer.h[1].attn.attn_dropout.train()
    with pytest.raises(ModelError, match="attn_dropout is in train mode"):
        m.generate(example(module))


class Stopped(Exception):
    """The attention of a layer was not run to its end."""


class Stops(Tap):
    """Ends a run at an attention."""

    def attends(self) -> bool:
        return True

    def attend(self, call: Call, inner: Callable[[], None]) -> None:
        raise Stopped


def failing(x: Tensor) -> Tensor:
    raise Stopped


@pytest.mark.parametrize(
    "edit",
    [
        interp.edits.Temperature("L1.H1", value=2.0),
        interp.Scale("L1.pattern", 0.5),
        interp.edits.Program("L1.H1", lambda part: part.read(part.softmax(part.scores()))),
        interp.Apply("L0.z", failing),
    ],
)
def test_an_edit_is_noted_when_it_has_acted_and_not_before(edit: Any) -> None:
    m = attached("llama")
    x = m.inputs(given(m))
    attention = m.module.model.layers[1].self_attn
    session, tap = Session(m.module, m.anatomy, edits=[edit], inputs=x), Stops()
    Switch.watch(attention, tap)
    try:
        with session, pytest.raises(Stopped):
            m.module(**x.kwargs)
    finally:
        Switch.forget(attention, tap)
    with pytest.raises(NotFired, match=type(edit).__name__):
        session.check_fired()
    if edit.site != "L0.z":
        with session:
            m.module(**x.kwargs)
        session.check_fired()
