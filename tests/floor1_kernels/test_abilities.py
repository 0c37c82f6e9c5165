"""What implementations declare is what they do: the unknown is refused by name everywhere, the known is right."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import pytest
import torch
from attention_calls import EDITS, check
from torch import Tensor

from interp.kernels import attention, stats
from interp.kernels import edits as E
from interp.kernels.abilities import OPTIONS
from interp.kernels.attention import IMPLEMENTATIONS, Implementation
from interp.kernels.cpu import reference, tiles
from interp.kernels.errors import AttentionError
from interp.kernels.gpu import fused
from interp.kernels.masks import symbols as M
from interp.kernels.native import library, marshal
from interp.kernels.request import Request, request

EVERY = {i.name: i for i in IMPLEMENTATIONS}
FAST = [n for n in EVERY if n != "reference"]
KEYS = torch.arange(6)


@pytest.fixture(autouse=True)
def interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    if not torch.cuda.is_available():
        monkeypatch.setenv("TRITON_INTERPRET", "1")


@pytest.fixture(params=EVERY)
def impl(request: pytest.FixtureRequest) -> Implementation:
    if request.param == "triton" and importlib.util.find_spec("triton") is None:
        pytest.skip("triton is not installed")
    return EVERY[request.param]


def tensors() -> list[Tensor]:
    g = torch.Generator().manual_seed(3)
    return [torch.randn(1, h, 6, 8, generator=g) for h in (2, 1, 1)]


@dataclass(frozen=True, eq=False)
class Square(E.Edit):
    """Scores of all keys become their squares; an edit that nobody knows."""

    stage: ClassVar[int] = 2
    amount: float = 1.0
    heads: tuple[int, ...] | None = None
    rows: Tensor | None = None


def at_stage(n: int) -> E.Edit:
    return type("Foreign", (Square,), {"stage": n})()


class OfGate(E.Gate):
    """A subclass, of which nothing is known either."""


def blend_to(name: str) -> E.Blend:
    found = E.Blend("uniform", 0.5)
    object.__setattr__(found, "to", name)
    return found


STRANGERS: dict[str, E.Edit] = {
    **{f"stage {n}": at_stage(n) for n in range(1, 9)},
    "subclass": OfGate(0.5),
    "a name": blend_to("previous"),
}


def raw(impl: Implementation, made: Request) -> None:
    """Past all checks, into the implementation's own dispatch."""
    impl.run(made)


@pytest.mark.parametrize("name", STRANGERS)
def test_an_unknown_edit_is_refused_by_every_implementation(impl: Implementation, name: str) -> None:
    edit = STRANGERS[name]
    said = {"subclass": "OfGate", "a name": "Blend to previous"}.get(name, "Foreign")
    with pytest.raises(AttentionError, match=f"impl='{impl.name}' cannot compute this: edit {said} is not"):
        attention.attend(*tensors(), edits=edit, impl=impl.name)
    with pytest.raises(AttentionError, match=f"edit {said} is not"):
        raw(impl, request(*tensors(), edits=edit))
    with pytest.raises(AttentionError, match=f"no implementation can compute this: .*edit {said} is not"):
        attention.attend(*tensors(), edits=edit)


@pytest.mark.parametrize("per", ["row", "key"])
def test_an_unknown_statistic_is_refused_by_every_implementation(
    impl: Implementation, per: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(AttentionError, match="no statistic 'spread'"):
        attention.attend(*tensors(), stats=["spread"], impl=impl.name)
    monkeypatch.setitem(stats.KINDS, "spread", stats.Kind("spread", per))
    with pytest.raises(AttentionError, match=f"impl='{impl.name}' cannot compute this: statistic spread is not"):
        attention.attend(*tensors(), stats=["spread"], impl=impl.name)
    with pytest.raises(AttentionError, match="statistic spread is not"):
        raw(impl, request(*tensors(), stats=["spread"]))


@dataclass(frozen=True, eq=False)
class Diagonals(M.Mask):
    """Every third diagonal, and keys 0 and 1; a mask that nobody knows."""

    def visible(self, i: Tensor, j: Tensor) -> Tensor:
        return (((i[:, None] - j[None, :]) % 3 == 0) | (j < 2)[None, :])[None, None]


def test_an_unknown_mask_is_computed_by_what_it_says_or_refused(impl: Implementation) -> None:
    q, k, v = tensors()
    if impl.name == "merge":
        with pytest.raises(AttentionError, match="cannot compute this: mask Diagonals is not one of Causal, Full"):
            attention.attend(q, k, v, mask=Diagonals(), impl="merge")
        with pytest.raises(AttentionError, match="mask Diagonals is not"):
            raw(impl, request(q, k, v, mask=Diagonals()))
        return
    found = attention.attend(q, k, v, mask=Diagonals(), impl=impl.name)
    seen = (KEYS[:, None] - KEYS) % 3 == 0
    s = (q @ k.transpose(-1, -2) * 8**-0.5).masked_fill(~(seen | (KEYS < 2)), -torch.inf)
    torch.testing.assert_close(found.z, s.softmax(-1) @ v)


def test_a_subclass_of_a_mask_does_not_pass_for_it() -> None:
    same = type("Renamed", (M.Causal,), {})()
    assert attention.explain(*tensors(), mask=same)["merge"] == "mask Renamed is not one of Causal, Full"
    with pytest.raises(AttentionError, match="mask Wrong has its own `visible` and `reach` of Causal: write reach"):
        type("Wrong", (M.Causal,), {"visible": Diagonals.visible})


def test_a_mask_that_says_nothing_is_refused(impl: Implementation) -> None:
    with pytest.raises(AttentionError, match="mask Silent does not say what is visible"):
        attention.attend(*tensors(), mask=type("Silent", (M.Mask,), {})(), impl=impl.name)


@dataclass(frozen=True, eq=False)
class Wider(Request):
    """A request with an option that came later."""

    twist: Tensor | None = None


def test_an_option_that_nobody_declares_is_refused(impl: Implementation) -> None:
    made = request(*tensors())
    later = Wider(**{f: getattr(made, f) for f in Request.__dataclass_fields__})
    assert impl.cannot(later) is None
    assert impl.cannot(replace(later, twist=torch.ones(1))) == "twist is not among what it can do"


ASKED: dict[str, dict[str, Any]] = {
    "softcap": {"softcap": 2.0},
    "bias": {"bias": torch.linspace(-1, 1, 6)},
    "sinks": {"sinks": torch.tensor([0.5, -1.0])},
    "rows": {"rows": [1, 4]},
    "no v": {},
    "width": {},
    "places": {"stats": ["distance"], "places": torch.arange(12.0).reshape(6, 2)},
    "lse": {"lse": torch.zeros(1, 2, 6)},
}


@pytest.mark.parametrize("option", OPTIONS)
def test_an_option_is_taken_where_it_is_declared_and_nowhere_else(impl: Implementation, option: str) -> None:
    q, k, v = tensors()
    values = None if option in ("no v", "lse") else v[..., :5] if option == "width" else v
    made = request(q, k, values, **ASKED[option])
    assert option in made.options
    assert (impl.cannot(made) is None) == (set(made.options) <= set(impl.able().options))
    if option in impl.able().options and option not in ("no v", "lse"):
        check(q, k, values, {"stats": [], **ASKED[option]}, impl.name)


@pytest.mark.parametrize("name", stats.KINDS)
def test_every_statistic_is_right_where_it_is_declared_and_else_refused(impl: Implementation, name: str) -> None:
    argument = {"topk": ":2", "mass": ":odd"}.get(name, "")
    more = {"mask": M.Causal(), "stats": [name + argument], "key_sets": {"odd": KEYS % 2 == 1}}
    if name in impl.able().stats:
        check(*tensors(), more, impl.name)
    else:
        assert attention.explain(*tensors(), **more)[impl.name].startswith(f"statistic {name} is not")


@pytest.mark.parametrize("name", EDITS)
def test_every_edit_is_right_where_it_is_declared_and_else_refused(impl: Implementation, name: str) -> None:
    edit = EDITS[name](torch.Generator().manual_seed(1), 1, 2, 6, 6)
    more = {"mask": M.Causal(), "edits": edit}
    if edit.form in impl.able().edits:
        check(*tensors(), {**more, "stats": []}, impl.name)
    else:
        assert attention.explain(*tensors(), **more)[impl.name].startswith("edit Emphasize is not")


def test_all_edits_there_are_stand_in_the_reference_and_are_tried_here() -> None:
    g = torch.Generator().manual_seed(1)
    assert {make(g, 1, 2, 6, 6).form for make in EDITS.values()} == set(reference.EDITS)
    assert set(stats.KINDS) == set(reference.STATS)


def squared(edit: Square, made: Request, scores: Tensor, visible: Tensor) -> tuple[Tensor, Tensor]:
    return scores.square() * edit.amount, visible


def test_a_new_edit_is_its_definition_in_the_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(reference.EDITS, Square, squared)
    q, k, v = tensors()
    said = attention.explain(q, k, v, edits=Square(0.5, heads=(1,)))
    assert said["reference"] == "taken"
    assert all(said[n].startswith("edit Square is not") for n in FAST)
    out = attention.attend(q, k, v, edits=[Square(0.5, heads=(1,)), E.Gate(2.0)])
    assert out.impl == "reference"
    s = q.double() @ k.double().transpose(-1, -2) * 8**-0.5
    s[:, 1] = 0.5 * s[:, 1].square()
    torch.testing.assert_close(out.z, (2 * s.softmax(-1) @ v.double()).float())


def spread(s: stats.Stat, of: reference.Pattern) -> Tensor:
    """The standard deviation of the key that a row looks at."""
    j = torch.arange(of.p.shape[-1]).to(of.p)
    mean = (of.p * j).sum(-1, keepdim=True)
    return (of.p * (j - mean).square()).sum(-1).sqrt()


def test_a_new_statistic_is_its_definition_in_the_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(stats.KINDS, "spread", stats.Kind("spread"))
    monkeypatch.setitem(reference.STATS, "spread", spread)
    q, k, v = tensors()
    said = attention.explain(q, k, v, stats=["spread", "entropy"])
    assert said["reference"] == "taken"
    assert all("is not" in said[n] for n in FAST)
    out = attention.attend(q, k, v, stats=["spread", "entropy"])
    assert out.impl == "reference"
    p = (q.double() @ k.double().transpose(-1, -2) * 8**-0.5).softmax(-1)
    second, first = (p * KEYS.square()).sum(-1), (p * KEYS).sum(-1)
    torch.testing.assert_close(out.stats["spread"].double(), (second - first.square()).sqrt(), rtol=1e-5, atol=1e-6)
    halves = [attention.attend(q, k, v, stats="spread", rows=r).stats for r in ([0, 1, 2], [3, 4, 5])]
    assert torch.equal(stats.concat(halves)["spread"], out.stats["spread"])


def test_numbers_per_key_that_do_not_add_up_are_not_merged_over_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(stats.KINDS, "most", stats.Kind("most", "key"))
    with pytest.raises(AttentionError, match="`most` of chunks of queries does not add up"):
        stats.concat([{"most": torch.ones(1, 1, 3)}] * 2)


def test_a_fast_version_that_learns_it_is_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(reference.EDITS, Square, squared)
    monkeypatch.setitem(tiles.EDITS, Square, lambda edit, tile, s, visible: (s.square() * edit.amount, visible))
    monkeypatch.setattr(tiles, "ABLE", replace(tiles.ABLE, edits={*tiles.EDITS, E.Gate}))
    out = attention.attend(*tensors(), edits=Square(0.5))
    assert out.impl == "rows"
    torch.testing.assert_close(out.z, attention.attend(*tensors(), edits=Square(0.5), impl="reference").z)


@pytest.mark.parametrize("name", ["dense", "alibi"])
def test_a_gradient_of_what_a_mask_holds_is_given_or_refused(name: str) -> None:
    held = torch.zeros(*{"dense": (6, 6), "alibi": (2,)}[name], requires_grad=True)
    mask: M.Mask = M.Dense(held) if name == "dense" else M.Causal() & M.Alibi(held)
    said = attention.explain(*tensors(), mask=mask)
    assert said["native"] == "a gradient of bias is not one of Gate.value, k, q, sinks, v"
    out = attention.attend(*tensors(), mask=mask)
    assert out.z is not None
    assert bool(torch.autograd.grad(out.z.square().sum(), held)[0].any())


def test_dtypes_and_devices_are_declared(monkeypatch: pytest.MonkeyPatch) -> None:
    q, k, v = (x.to(torch.float8_e4m3fn) for x in tensors())
    with pytest.raises(AttentionError, match=r"rows: dtype torch\.float8_e4m3fn is not one of torch\.bfloat16, "):
        attention.attend(q, k, v)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    assert attention.explain(*tensors())["triton"] == "device cpu is not one of cuda"
    assert "cpu" not in fused.COMPILED.devices


def test_scores_and_patterns_refuse_what_they_do_not_know() -> None:
    q, k, _ = tensors()
    for found in (tiles.pattern, tiles.scores):
        with pytest.raises(AttentionError, match="edit Square is not"):
            found(q, k, edits=Square())
    with pytest.raises(AttentionError, match="Gate act after the scores"):
        tiles.scores(q, k, edits=E.Gate(0.5))


def test_the_compiled_library_refuses_a_kind_of_edit_it_does_not_know(monkeypatch: pytest.MonkeyPatch) -> None:
    if library.library().reason is not None:
        pytest.skip(str(library.library().reason))
    q, k, v = tensors()
    edits = [E.Temperature(2.0), E.MaskKeys(KEYS == 3)]
    z = attention.attend(q.requires_grad_(), k, v, edits=edits, impl="native").z
    assert z is not None
    for number in (0, -1, 9):
        monkeypatch.setitem(marshal.KINDS, E.MaskKeys, (number, None))
        with pytest.raises(AttentionError, match="does not know what edit MaskKeys is"):
            attention.attend(q.detach(), k, v, edits=edits, impl="native")
        with pytest.raises(AttentionError, match="does not know what edit MaskKeys is"):
            torch.autograd.grad(z.sum(), q, retain_graph=True)


def test_a_pointer_that_the_compiled_library_has_not_is_refused() -> None:
    with pytest.raises(AttentionError, match="the library knows no 'spread' in CallStruct"):
        marshal.point(library.CallStruct(), "spread", torch.zeros(1))


def test_a_blend_to_uniform_is_in_the_dtype_of_its_call() -> None:
    q, k, v = (x.double() for x in tensors())
    p = (q @ k.transpose(-1, -2) * 8**-0.5).softmax(-1)
    out = tiles.attend(request(q, k, v, edits=E.Blend("uniform", 0.3)))[0]
    assert out is not None
    torch.testing.assert_close(out, (0.7 * p + 0.3 / 6) @ v, rtol=0, atol=1e-14)


def test_an_edit_needs_a_stage() -> None:
    late = type("Late", (E.Edit,), {"heads": None, "rows": None})()
    with pytest.raises(AttentionError, match="Late needs a stage"):
        attention.attend(*tensors(), edits=late)
