"""What every method promises, asked of its record: a test a promise, over all calls, their choices and kinds of model.

Cost is counted twice. `calls` are those of the model's own forward, by a hook on it; `work` are the multiplications of
every matrix product under the call, over those of one forward pass on the same inputs, which also sees blocks that are
driven one by one, backward passes and products beside the model. A record's `passes` bounds the work, and is not loose.
"""

from __future__ import annotations

import copy
import importlib.util
import inspect
import re
import sys
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any

import numpy
import pytest
import torch
from house import ROOT
from models import trial
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

import interp
from interp import records
from interp.heads.importance import measures
from interp.records import KINDS, Kind, Method, Trial, Variant, asks, every, numbers_of, papers_of, part, variants

OVER, UNDER = 1.1, 1 / 5
"""How far the work may pass what the record says, and how far it may stay below."""
NO_METHODS = {
    "attach": "a model", "compare": "a task", "load": "a model", "open": "what was saved",
    "reporting.difference": "two reports that are there", "reporting.experiment": "reports, one a cell",
    "scale.merge": "shards that are there", "scale.status": "a directory that is there",
    "patching.align": "which tokens belong together", "families.register": "a family of models",
    "diffusion.columns": "which tokens hold a word", "diffusion.encoders": "models",
    "diffusion.pointing": "which points lie in boxes", "directions.mean_difference": "a vector for edits",
    "directions.random_like": "vectors for edits", "Zero": "an edit", "operators.find_blocks": "operators for edits",
    "heads.head_matrix": "a head's matrices",
    "scale.LossWithout": "a measure for a corpus", "scale.Ray": "who computes",
    "scale.hosted": "a model that runs elsewhere", "scale.ring_attention": "statistics, as Model.attention",
    "scale.vllm": "an engine whose heads are read", "scale.vllm_arguments": "how to start it",
    "operators.dependency_tree": "a tree of a pattern", "operators.slopes": "rates for an operator",
}  # fmt: skip
"""Public calls that measure nothing themselves, and what they give."""
NOT_ROOMS = ("tasks", "metrics", "formats", "edits", "figures")
"""Rooms whose calls make questions, judges, files and figures."""


class Products(TorchDispatchMode):
    """Counts the multiplications of matrix products."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        counted = flop_registry.get(func._overloadpacket)
        self.count += counted(*args, **(kwargs or {}), out_val=found) if counted else 0
        return found


def choices(method: Method) -> Iterator[Variant | None]:
    yield None
    yield from variants(method.name).values()


LONG = {("interp.report", "lvlm")}
"""What takes too long here; its parts are asked one by one. Choices of a call are asked on a decoder and a ViT, the
call itself on every kind."""
ASKED = [(m, v) for m in every() for v in choices(m)]
CASES = [
    pytest.param(m, v, kind, id=f"{m.name.removeprefix('interp.')}{f'-{v.name}' if v else ''}-{kind}")
    for m, v in ASKED
    for kind in KINDS
    if kind in ("decoder", "vit") or (v is None and (m.name, kind) not in LONG)
]


def unfit(method: Method, variant: Variant | None) -> Mapping[Kind, str]:
    return {**method.unfit, **(variant.unfit if variant else {})}


FIT = [case for case in CASES if case.values[2] not in unfit(*case.values[:2])]
UNFIT = [case for case in CASES if case.values[2] in unfit(*case.values[:2])]


@pytest.fixture(scope="session")
def trials(tmp_path_factory: pytest.TempPathFactory) -> Mapping[Kind, Trial]:
    made = {kind: trial(kind, tmp_path_factory.mktemp(kind)) for kind in KINDS}
    for one in made.values():
        one.model.ready()
    return made


def ask(method: Method, variant: Variant | None, on: Trial) -> Any:
    how = {} if variant is None else {variant.argument: variant.name, **variant.example}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # a rule that changes nothing on these weights says so
        torch.manual_seed(0)
        return method.example(on, **how)


@dataclass(frozen=True)
class Outcome:
    """What two calls gave, and what the second one left and took."""

    first: Any
    second: Any
    changed: list[str]
    hooks: tuple[list[int], list[int]]
    handles: Any
    calls: int
    work: float
    passes: float


SEEN: dict[tuple[str, str, Kind], Outcome] = {}


def outcome(method: Method, variant: Variant | None, on: Trial) -> Outcome:
    key = (method.name, variant.name if variant else "", on.kind)
    if key not in SEEN:
        SEEN[key] = _outcome(method, variant, on)
    return SEEN[key]


def _outcome(method: Method, variant: Variant | None, on: Trial) -> Outcome:
    model = on.reader if "needles" in method.needs else on.model
    before, hung = bits(model.module), hooks(model.module)
    with Products():  # under a mode some operators choose another algorithm, so both calls are under one
        first = ask(method, variant, on)
    calls: list[int] = []
    handle = model.module.register_forward_pre_hook(lambda *_: calls.append(1))
    with (
        Products() as products,
        torch.no_grad(),
    ):  # as many notebooks say at their top: what needs gradients turns them on
        second = ask(method, variant, on)
    handle.remove()
    changed = [name for name, value in bits(model.module).items() if not same(value, before[name])]
    passes = variant.passes if variant is not None and variant.passes is not None else method.passes
    data = on.needles.clean if "needles" in method.needs and on.kind == "decoder" else on.base
    return Outcome(
        first, second, changed, (hung, hooks(model.module)), model.handles(), len(calls),
        products.count / one_pass(model, data), passes(on),
    )  # fmt: skip


def one_pass(model: interp.Model, x: Any) -> int:
    with Products() as products:
        model.run(x)
    return products.count


def bits(module: nn.Module) -> dict[str, torch.Tensor]:
    named = [*module.named_parameters(), *module.named_buffers()]
    return {name: value.detach().clone() for name, value in named}


def hooks(module: nn.Module) -> list[int]:
    """How many hang on each module; transformers hangs some of its own on LLaVA's vision tower."""
    return [
        len(m._forward_hooks) + len(m._forward_pre_hooks) + len(m._backward_hooks) + len(m._backward_pre_hooks)
        for m in module.modules()
    ]


TIMES = {"seconds", "started", "finished", "cost", "probe_seconds", "passes"}


def same(a: Any, b: Any) -> bool:
    """Two results alike bit for bit, in all but what they took."""
    if torch.is_tensor(a):
        return torch.is_tensor(b) and a.shape == b.shape and torch.equal(torch.nan_to_num(a), torch.nan_to_num(b))
    if isinstance(a, Mapping):
        return a.keys() == b.keys() and all(same(a[name], b[name]) for name in a if name not in TIMES)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    if hasattr(a, "equals"):
        return bool(a.equals(b))
    if is_dataclass(a):
        return all(same(getattr(a, f.name), getattr(b, f.name)) for f in fields(a) if f.name not in TIMES)
    if isinstance(a, numpy.ndarray):
        return bool(numpy.array_equal(a, b))
    return type(a) is type(b) and (not isinstance(a, (int, float, str, bool, type(None))) or a == b or a != a)


@pytest.mark.parametrize(("method", "variant", "kind"), FIT)
def test_the_same_question_has_the_same_answer(
    method: Method, variant: Variant | None, kind: Kind, trials: Mapping[Kind, Trial]
) -> None:
    found = outcome(method, variant, trials[kind])
    assert same(found.first, found.second)


@pytest.mark.parametrize(("method", "variant", "kind"), FIT)
def test_the_model_is_as_it_was(
    method: Method, variant: Variant | None, kind: Kind, trials: Mapping[Kind, Trial]
) -> None:
    found = outcome(method, variant, trials[kind])
    assert found.changed == []
    assert found.hooks[0] == found.hooks[1]
    assert not found.handles


@pytest.mark.parametrize(("method", "variant", "kind"), UNFIT)
def test_what_has_no_meaning_on_a_kind_of_model_is_refused_with_a_reason(
    method: Method, variant: Variant | None, kind: Kind, trials: Mapping[Kind, Trial]
) -> None:
    assert unfit(method, variant)[kind]
    with pytest.raises(interp.InterpError) as told:
        ask(method, variant, trials[kind])
    assert len(str(told.value).split()) >= 6


@pytest.mark.parametrize(("method", "variant", "kind"), [c for c in FIT if c.values[0].values is not None])
def test_values_are_kept_per_example(
    method: Method, variant: Variant | None, kind: Kind, trials: Mapping[Kind, Trial]
) -> None:
    on = trials[kind]
    values = getattr(outcome(method, variant, on).first, method.values or "")
    values = next(iter(values.values())) if isinstance(values, Mapping) else values
    assert values.shape[method.examples] == (len(on.texts) if "needles" in method.needs else len(on.base.valid))


@pytest.mark.parametrize(("method", "variant", "kind"), FIT)
def test_it_takes_what_its_record_says(
    method: Method, variant: Variant | None, kind: Kind, trials: Mapping[Kind, Trial]
) -> None:
    found = outcome(method, variant, trials[kind])
    said = f"{found.calls} calls of the model, {found.work:.1f} passes of work; the record says {found.passes:.1f}"
    assert found.work <= OVER * found.passes, said
    assert max(found.calls, found.work) >= UNDER * found.passes, said


def broken(model: interp.Model, tower: str) -> interp.Model:
    """A copy, checked and found well, that then gets a NaN where its first layer writes."""
    made = interp.attach(copy.deepcopy(model.module), model.processor)
    made.check()
    out = made.ready().tower(tower.rstrip(".") or None, text=tower).layers[0].out
    assert out is not None
    with torch.no_grad():
        made.module.get_submodule(out).weight.view(-1)[0] = torch.nan
    return made


@pytest.fixture(scope="session")
def sick(trials: Mapping[Kind, Trial]) -> Mapping[Kind, Trial]:
    return {kind: _sick(trials[kind]) for kind in KINDS}


def _sick(on: Trial) -> Trial:
    for name in ("interp.edges", "interp.sinks"):
        if on.kind not in next(m for m in every() if m.name == name).unfit:
            on.of(name)
    model = broken(on.model, on.tower)
    reader = model if on.reader is on.model else broken(on.reader, "")
    task, needles = (None if one is None else one.on(m) for one, m in ((on.task, model), (on.needles, reader)))
    return replace(on, model=model, task=task, needles=needles)


MEASURING = [
    c for c in FIT if c.values[1] is None and c.values[0].shown != "none" and c.values[0].name != "interp.prune"
]


@pytest.mark.parametrize(("method", "variant", "kind"), MEASURING)
def test_nan_never_passes(method: Method, variant: Variant | None, kind: Kind, sick: Mapping[Kind, Trial]) -> None:
    try:
        found = ask(method, variant, sick[kind])
    except interp.InterpError:
        return
    assert method.name == "interp.head", "only a card says part by part what could not be measured"
    assert found.left_out
    assert not found.to_frame()["estimate"].isna().any()


def functions() -> dict[str, object]:
    """Public calls by name, those of rooms too."""
    spec = importlib.util.spec_from_file_location("docs_surface", ROOT / "docs" / "made" / "surface.py")
    assert spec is not None
    assert spec.loader is not None
    made = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = made  # its dataclasses look themselves up
    spec.loader.exec_module(made)
    return {name: thing for name, thing in made.surface().items() if inspect.isfunction(thing)}


def test_every_public_call_has_a_record_or_a_reason_why_not() -> None:
    recorded = {method.name.removeprefix("interp.") for method in every()}
    others = {n for n in functions() if n in NO_METHODS or n.partition(".")[0] in NOT_ROOMS}
    assert not set(functions()) - recorded - others
    assert not recorded & others
    assert recorded <= set(functions())


@pytest.mark.parametrize(("method", "variant"), ASKED, ids=lambda one: getattr(one, "name", "-"))
def test_a_record_says_what_documentation_needs(method: Method, variant: Variant | None) -> None:
    record = variant or method
    assert record.number
    if variant is None:
        assert asks(method)
        assert part(method, "Cost")
        assert part(method, "Limits")
    assert len(papers_of(record)) == len(numbers_of(record))
    page = (ROOT / "docs" / "methods.md").read_text()
    assert f"`{method.name}`" in page
    assert variant is None or re.search(rf"`{re.escape(variant.name)}`", page)


def test_a_record_of_a_composition_names_methods() -> None:
    known = {method.name for method in every()}
    assert not {made for method in every() for made in method.made_of} - known


def test_a_new_way_of_attribution_is_its_registration(
    monkeypatch: pytest.MonkeyPatch, trials: Mapping[Kind, Trial]
) -> None:
    monkeypatch.setattr(records, "_VARIANTS", dict(records._VARIANTS))

    def doubled(pair: Any, setting: Any) -> torch.Tensor:
        return 2 * variants("interp.attribute")["atp"].run(pair, setting)

    records.register(Variant("interp.attribute", "doubled", number="twice as much", run=doubled))
    t = trials["decoder"]
    once, twice = (
        ask(records.of("interp.attribute"), variants("interp.attribute")[name], t) for name in ("atp", "doubled")
    )
    assert torch.equal(2 * once.values, twice.values)
    assert "doubled" in records.Choices("interp.attribute", room="attribution")
    assert "doubled" in measures()
    asked = interp.importance(t.model, t.base, by="doubled", metric=t.metric, source=t.source, heads=t.heads, verify=0)
    assert asked.measures[0].values.allclose(-twice.values.double())
