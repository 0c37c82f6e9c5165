"""Head programs: any attention in the place of a head's softmax, against definitions by hand in float64."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

import interp
from interp.edits import Program
from interp.hooks.errors import EditError, InputsError, NotFired
from interp.hooks.examples.example import example
from interp.hooks.stand.call import Call, Tap, received
from interp.hooks.stand.interface import Switch
from interp.hooks.stand.part import Part
from interp.kernels.errors import InterpError
from interp.zoo.families import tiny

PADDINGS = [None, "left", "right"]


@cache
def attached(name: str, attn: Any = "sdpa") -> interp.Model:
    return interp.attach(tiny(name, dtype=torch.float32 if name in ("gpt_oss", "gemma2") else torch.float64, attn=attn))


def made(name: str, padding: str | None = None, attn: Any = "sdpa") -> tuple[interp.Model, Any]:
    m = attached(name, attn)
    return m, m.inputs(dict(example(m.module, batch=3, length=7, padding=padding, seed=1)))


class Own:
    """The model's own softmax, written as a program."""

    def pattern(self, part: Part) -> Tensor:
        return part.softmax(part.scores())

    def z(self, part: Part) -> Tensor:
        return part.read(self.pattern(part))


class Power(Own):
    """Weights in proportion to a power of the softmax's."""

    def __init__(self, power: Any = 2.0) -> None:
        self.power = power

    def pattern(self, part: Part) -> Tensor:
        weights = super().pattern(part).clamp(min=1e-300) ** self.power * (part.scores() > -torch.inf)
        return weights / weights.sum(-1, keepdim=True).clamp(min=1e-30)


def blind(part: Part) -> Tensor:
    """The mean of all values, whatever the mask says: a function, which has no pattern."""
    return part.values.mean(2, keepdim=True).expand(*part.q.shape[:3], -1)


KINDS = [
    *((name, "sdpa", "left") for name in ("gpt2", "llama", "bert", "bart")), ("llama", "eager", None),
    ("gemma2", None, None), ("gpt_oss", None, "right"), ("t5", "sdpa", None), ("vit", "sdpa", None),
    ("plain", None, None),
]  # fmt: skip


@pytest.mark.parametrize(("name", "attn", "padding"), KINDS)
def test_the_models_own_softmax_as_a_program_changes_nothing(name: str, attn: Any, padding: Any) -> None:
    """With grouped heads, windows, soft caps, learned sinks, a bias, across towers and outside the interface."""
    m, x = made(name, padding, attn)
    for tower, layers in m.towers.items():
        last = layers.layers[-1]
        where = f"L{last.index}" if len(m.towers) == 1 else f"{tower}.L{last.index}"
        record = [f"{where}.z", f"{where}.pattern"]
        plain = m.run(x, record=record)
        tape = m.run(x, record=record, edits=[Program(f"{where}.H1", Own())])
        near = 1e-6 if m.dtype == torch.float64 else 1e-5
        for site in (*record, "logits"):
            torch.testing.assert_close(tape[site], plain[site], atol=near, rtol=near)
        others = [head for head in range(last.heads) if head != 1]
        assert torch.equal(tape[f"{where}.z"][:, :, others], plain[f"{where}.z"][:, :, others])


def squared(m: interp.Model, x: Any, head: int) -> tuple[Tensor, Tensor]:
    """Power of two by hand: weights [example, query, key] and z, with loops, from what the model's q, k, v are."""
    tape = m.run(x, record=["L1.q", "L1.k", "L1.v"])
    group = m.anatomy.towers["text"].layer(1).group
    q, k, v = tape["L1.q"][:, :, head], tape["L1.k"][:, :, head // group], tape["L1.v"][:, :, head // group]
    weights = torch.zeros(len(q), q.shape[1], q.shape[1], dtype=torch.float64)
    for b in range(len(q)):
        for i in range(q.shape[1]):
            seen = [j for j in range(i + 1) if bool(x.valid[b, j])]
            scores = torch.stack([q[b, i] @ k[b, j] for j in seen]) / q.shape[-1] ** 0.5 if seen else torch.zeros(0)
            power = torch.softmax(scores, -1).double() ** 2
            weights[b, i, seen] = power / power.sum() if seen else power
    return weights, weights @ v.double()


@pytest.mark.parametrize("padding", PADDINGS)
def test_a_program_is_what_the_model_goes_on_with(padding: Any) -> None:
    m, x = made("llama", padding)
    expected = {head: squared(m, x, head) for head in (0, 3)}
    plain = m.run(x, record="L1.z")["L1.z"]
    tape = m.run(x, record=["L1.z", "L1.pattern"], edits=[Program("L1.H0,3", Power())])
    real = x.valid[..., None]
    for head, (weights, z) in expected.items():
        torch.testing.assert_close(tape["L1.pattern"][:, head] * real, weights * real, atol=1e-9, rtol=1e-6)
        torch.testing.assert_close(tape["L1.z"][:, :, head] * real, z * real, atol=1e-9, rtol=1e-6)
        assert not torch.allclose(plain[:, :, head] * real, z * real)
    assert torch.equal(tape["L1.z"][:, :, [1, 2]], plain[:, :, [1, 2]])


def test_positions_and_rows_bound_a_program() -> None:
    m, x = made("llama", "left")
    whole, plain = (
        m.run(x, record=["L1.z", "L1.pattern"], edits=[Program("L1.H3", Power())]),
        m.run(x, record=["L1.z", "L1.pattern"]),
    )
    edit = Program("L1.H3", Power(), positions=[-1, -2], rows=(0, 2))
    tape = m.run(x, record=["L1.z", "L1.pattern"], edits=[edit])
    touched = x.mask([-1, -2]) & torch.tensor([True, False, True])[:, None]
    want = torch.where(touched[..., None], whole["L1.z"][:, :, 3], plain["L1.z"][:, :, 3])
    assert torch.equal(tape["L1.z"][:, :, 3], want)
    pattern = torch.where(touched[..., None], whole["L1.pattern"][:, 3], plain["L1.pattern"][:, 3])
    torch.testing.assert_close(tape["L1.pattern"][:, 3], pattern)


def test_recorded_rows_of_a_programs_pattern_are_those_of_the_whole() -> None:
    m, x = made("llama")

    class AllRows(Power):
        def pattern(self, part: Part) -> Tensor:
            weights = part.softmax(part.scores(torch.arange(part.q.shape[2]))) ** 2
            return weights / weights.sum(-1, keepdim=True)

    for program in (Power(), AllRows()):
        edits = [Program("L1.H1", program, positions=[2, 5]), Program("L1.H3", program)]
        whole = m.run(x, record="L1.pattern", edits=edits)["L1.pattern"]
        for positions, rows in (([2, 5], [[2, 5]] * 3), ([[1], [5], [6]], [[1], [5], [6]])):
            site = "L1.H1,2,3.pattern"
            part = m.run(x, record=site, edits=edits, positions=positions, keys=[0, 2])[site]
            want = torch.stack([whole[b][[1, 2, 3]][:, r] for b, r in enumerate(rows)])[..., [0, 2]]
            torch.testing.assert_close(part, want)


def test_a_second_program_on_one_head_is_refused_and_both_are_named() -> None:
    m, x = made("llama")
    one, other = Program("L1.H1", Power()), Program("L1.H1-3", blind)
    with pytest.raises(EditError, match=r"Program\('L1\.H1', .*and Program\('L1\.H1-3'.*head 1 attends.*use one"):
        m.run(x, edits=[one, other])
    with m.edited([one]):
        m.run(x)
        with pytest.raises(EditError, match=r"L1\.H1'.* and .*L1\.H1-3"):
            m.run(x, edits=[other])
    changes = (
        interp.edits.Temperature("L1", value=2.0),
        interp.edits.Streaming("L1.H1", first=1, recent=2),
        interp.edits.Calibrate("L1.H1", threshold=0.01),
        interp.Scale("L1.pattern", 0.5),
        interp.Scale("L1.H1.k", 2.0, expand=True),
    )
    for change in changes:
        with pytest.raises(EditError, match="head 1 attends"):
            m.run(x, edits=[one, change])
    assert not m.handles()


def test_programs_stand_beside_each_other_at_other_heads_and_rows() -> None:
    m, x = made("llama")
    edits = [
        Program("L1.H1", Power(), positions=[0, 1, 2]),
        Program("L1.H1", blind, positions=[3, 4]),
        interp.edits.Temperature("L1.H1", value=2.0, positions=[5]),
        Program("L1.H2", blind),
    ]
    alone = [m.run(x, record="L1.z", edits=[edit])["L1.z"][:, :, 1] for edit in edits]
    plain = m.run(x, record="L1.z")["L1.z"]
    z = m.run(x, record="L1.z", edits=edits)["L1.z"]
    for edit, rows in zip(alone, ([0, 1, 2], [3, 4], [5]), strict=False):
        torch.testing.assert_close(z[:, rows, 1], edit[:, rows])
    assert torch.equal(z[:, 6, 1], plain[:, 6, 1])
    assert torch.equal(z[:, :, 3], plain[:, :, 3])


LOOKS: dict[str, Callable[[interp.Model, Any], Any]] = {
    "pattern": lambda m, x: m.run(x, record="L1.H1,2.pattern"),
    "scores": lambda m, x: m.run(x, record="L1.H1.scores"),
    "statistics": lambda m, x: m.attention(x, stats=["entropy"]),
}


def test_a_programs_rows_and_a_change_of_the_same_heads_softmax_at_other_rows() -> None:
    """Under sdpa, where every head is changed, and one of them by two edits at rows of their own."""
    m, x = made("llama")
    heads = m.towers["text"].layers[0].heads
    rest = ",".join(str(head) for head in range(heads - 1))
    last = f"L0.H{heads - 1}"
    edits = [
        interp.MaskKeys(f"L0.H{rest}", keys=[1]),
        interp.edits.Temperature(last, value=2.0, positions=[3]),
        Program(last, Power(), positions="last"),
    ]
    alone = [m.run(x, record="L0.z", edits=[edit])["L0.z"] for edit in edits]
    plain, both = m.run(x, record="L0.z")["L0.z"], m.run(x, record="L0.z", edits=edits)["L0.z"]
    want = plain.clone()
    want[:, :, : heads - 1] = alone[0][:, :, : heads - 1]
    want[:, 3, -1], want[:, -1, -1] = alone[1][:, 3, -1], alone[2][:, -1, -1]
    torch.testing.assert_close(both, want, atol=1e-6, rtol=0)


@pytest.mark.parametrize("what", LOOKS)
def test_what_a_program_has_no_pattern_for_is_refused_by_name(what: str) -> None:
    m, x = made("llama")
    with m.edited([Program("L1.H1", blind)]):
        with pytest.raises(EditError, match=r"Program\('L1\.H1', program=blind\).*(no pattern|no scores)"):
            LOOKS[what](m, x)
        assert m.run(x, record=["L1.H0,2.pattern", "L1.z"])["L1.H0,2.pattern"].shape[1] == 2


def test_statistics_under_a_program_are_those_of_its_pattern() -> None:
    m, x = made("llama", "left")
    edits = [
        Program("L1.H1", Power()),
        Program("L1.H3", Power(3.0), positions=[-1]),
        interp.Scale("L1.H0.pattern", 0.5),
    ]
    pattern = m.run(x, record="L1.pattern", edits=edits)["L1.pattern"].double() * x.valid[:, None, :, None]
    with m.edited(edits):
        found = m.attention(x, stats=["entropy", "received", "max", "topk:2", "first", "mass:last"], heads="L1")
        some = m.attention(x, stats=["entropy"], heads="L1", rows=[-1, -2]).at("L1", "entropy")
        with pytest.raises(InterpError, match="'lse' is one of the scores"):
            m.attention(x, stats=["lse"], heads="L1")
        with pytest.raises(InputsError, match=r"heads \[0, 1, 3\].*Program.*leave impl= out"):
            m.attention(x, stats=["entropy"], impl="rows")
    entropy = -(pattern * pattern.clamp(min=1e-300).log()).sum(-1)
    close = {"atol": 1e-9, "rtol": 1e-5}
    torch.testing.assert_close(found.at("L1", "entropy").double(), entropy, **close)
    torch.testing.assert_close(some.double(), entropy[..., -2:], **close)
    torch.testing.assert_close(found.at("L1", "received").double(), pattern.sum(2), **close)
    torch.testing.assert_close(found.at("L1", "max").double(), pattern.amax(-1), **close)
    torch.testing.assert_close(found.at("L1", "topk:2").double(), pattern.topk(2).values, **close)
    first = x.valid.int().argmax(1)
    at_first = pattern.gather(-1, first[:, None, None, None].expand(-1, *pattern.shape[1:3], 1))[..., 0]
    torch.testing.assert_close(found.at("L1", "first").double(), at_first, **close)
    assert found.impl == tuple(sorted({"given", *(i for i in found.impl)}))


def test_gradients_flow_through_a_program_to_what_it_holds_and_to_the_model() -> None:
    m, x = made("gpt2")

    def answer(power: Any, **how: Any) -> Any:
        return m.run(x, edits=[Program("L0.H1,2", Power(power))], **how)

    power = torch.tensor(1.7, dtype=torch.float64, requires_grad=True)
    tape = answer(power, record="L0.resid_pre", grad=True)
    value = tape["logits"][:, -1, 3].sum()
    slope, at_input = torch.autograd.grad(value, [power, tape["L0.resid_pre"]])
    ends = [answer(1.7 + by)["logits"][:, -1, 3].sum() for by in (1e-5, -1e-5)]
    torch.testing.assert_close(slope, (ends[0] - ends[1]) / 2e-5, atol=1e-7, rtol=1e-4)
    assert bool((at_input != 0).any())


def test_a_program_generates_with_a_cache_as_without() -> None:
    m, x = made("llama", "left")
    edits = [Program("L*.H0,3", Power())]
    cached = m.generate(x, edits=edits, max_new_tokens=4)
    ids = torch.cat([x.kwargs["input_ids"], cached.ids], 1)
    mask = torch.cat([x.kwargs["attention_mask"], torch.ones_like(cached.ids)], 1)
    logits = m.run({"input_ids": ids, "attention_mask": mask}, edits=edits)["logits"]
    said = logits[:, -5:-1].log_softmax(-1).gather(2, cached.ids[..., None]).squeeze(2)
    torch.testing.assert_close(cached.logprobs.double(), said.double(), atol=1e-6, rtol=1e-5)


BROKEN: dict[str, tuple[Callable[[Part], Any], str]] = {
    "no tensor": (lambda part: None, "z is a floating tensor .*got NoneType"),
    "positions first": (lambda part: Own().z(part).transpose(1, 2), r"\[3, 1, 7, 8\].*got \[3, 7, 1, 8\]"),
    "integers": (lambda part: Own().z(part).long(), "got .* torch.int64"),
    "not a number": (lambda part: Own().z(part) / 0 * 0, "not finite"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_no_z_is_refused(name: str) -> None:
    m, x = made("llama")
    program, says = BROKEN[name]
    with pytest.raises(EditError, match=says):
        m.run(x, edits=[Program("L1.H1", program)])

    class Short(Own):
        def pattern(self, part: Part) -> Tensor:
            return super().pattern(part)[..., 1:]

        def z(self, part: Part) -> Tensor:
            return Own().z(part)

    with pytest.raises(EditError, match=r"pattern is a floating tensor \[3, 1, 7, 7\].*got \[3, 1, 7, 6\]"):
        m.run(x, record="L1.pattern", edits=[Program("L1.H1", Short())])


def test_a_softmax_of_the_users_own_at_padding_is_refused_and_told_how() -> None:
    m, x = made("llama", "left")
    with pytest.raises(EditError, match=r"`part.softmax` gives these the weight 0"):
        m.run(x, edits=[Program("L1.H1", lambda part: part.read(torch.softmax(part.scores(), -1)))])


@pytest.mark.parametrize("given", [None, 3, Own])
def test_what_is_no_program_is_refused(given: Any) -> None:
    if given is Own:
        m, x = made("llama")
        with pytest.raises(TypeError):
            m.run(x, edits=[Program("L1.H1", given)])
        return
    with pytest.raises(EditError, match=r"object with z\(part\)"):
        Program("L1.H1", given)


@pytest.mark.parametrize("how", [{"rows": ()}, {"phase": "decode"}, {"step": 4}])
def test_a_program_that_touches_nothing_never_fired(how: dict[str, Any]) -> None:
    m, x = made("llama")
    with pytest.raises(NotFired, match="Program"):
        m.run(x, edits=[Program("L1.H1", Own(), **how)])


class Alone(Tap):
    """Attends by itself and passes nothing on."""

    def attends(self) -> bool:
        return True

    def attend(self, call: Call, inner: Callable[[], None]) -> None:
        call.attend()

    def __str__(self) -> str:
        return "somebody else"


class Doubles(Tap):
    """Attends around what stands further in."""

    def attends(self) -> bool:
        return True

    def attend(self, call: Call, inner: Callable[[], None]) -> None:
        inner()
        call.z = 2 * call.z + 1


def test_who_attends_alone_is_refused_beside_others_and_layers_stand_around_each_other() -> None:
    m, x = made("llama")
    attention = m.module.model.layers[1].self_attn
    plain = m.run(x, record="L1.z")["L1.z"]

    def under(*taps: Tap, edits: Any = ()) -> Tensor:
        for tap in taps:
            Switch.watch(attention, tap)
        try:
            return m.run(x, record="L1.z", edits=edits)["L1.z"]
        finally:
            for tap in taps:
                Switch.forget(attention, tap)

    assert torch.equal(under(Alone()), plain)
    torch.testing.assert_close(under(Doubles(), Alone()), 2 * plain + 1)
    torch.testing.assert_close(under(Doubles(), Doubles()), 2 * (2 * plain + 1) + 1)
    for taps, edits in (([Alone(), Doubles()], []), ([Alone()], [interp.edits.Temperature("L1.H1", value=2.0)])):
        with pytest.raises(
            EditError, match=r"somebody else replaces all other .* so (Doubles|Temperature).* no effect"
        ):
            under(*taps, edits=edits)
    program = Program("L1.H1", Power())
    torch.testing.assert_close(under(Doubles(), edits=[program]), 2 * under(edits=[program]) + 1)


def test_methods_that_read_the_models_own_softmax_refuse_a_head_that_has_another() -> None:
    m, x = made("llama")
    ids = m.inputs({"input_ids": x.kwargs["input_ids"]})
    metric = interp.metrics.LogProb(((3,), (4,), (5,)))
    with m.edited([interp.edits.Temperature("L1.H1", value=2.0)]):
        m.run(ids)
        for ask in (
            lambda: interp.attribution.key_spans(m, ids, metric=metric, spans={"a": [1, 2]}),
            lambda: interp.attribution.agree(m, ids, metric=metric, shares=()),
            lambda: interp.relevance(m, ids, metric=metric, method="chefer-generic"),
        ):
            with pytest.raises(EditError, match=r"Temperature.*computed from the model's own softmax"):
                ask()


def test_relevance_rules_hold_at_heads_with_programs_too() -> None:
    """Under `attention` no gradient passes q and k, and under `uniform` each gets its share, programs or not."""
    from interp.hooks.slopes.rules import Rules

    m, x = made("llama")

    def slopes(edits: Any, *rules: str) -> dict[str, Tensor]:
        with Rules(m.module, m.anatomy, rules).on():
            tape = m.run(x, record=["L1.q", "L1.v"], edits=edits, grad=True)
        return tape.grad(tape["logits"][:, -1].pow(2).sum(), keep_graph=True)

    for edits in ([], [Program("L1.H*", Own())]):
        whole, some = slopes(edits, "ln"), slopes(edits, "ln", "uniform")
        torch.testing.assert_close(some["L1.q"], whole["L1.q"] / 4, atol=1e-12, rtol=1e-6)
        torch.testing.assert_close(some["L1.v"], whole["L1.v"] / 2, atol=1e-12, rtol=1e-6)
    with pytest.raises(EditError, match=r"tempered|computed from"):
        slopes([Program("L1.H1", Own())], "ln", "tempered")


def test_heads_of_a_part_share_keys_and_values_without_a_copy() -> None:
    m, x = made("llama")
    calls: list[Call] = []

    class Keeps(Tap):
        def record(self, call: Call) -> None:
            calls.append(call)

    tap, attention = Keeps(), m.module.model.layers[1].self_attn
    Switch.watch(attention, tap)
    m.run(x)
    Switch.forget(attention, tap)
    (call,) = calls
    storage = call.k.untyped_storage().data_ptr()
    for heads, kv in (((0, 1, 2, 3), (0, 1)), ((0, 1), (0,)), ((2, 3), (1,)), ((0, 2), (0, 1)), ((0, 1, 2), (0, 0, 1))):
        part = received(call, heads)
        assert torch.equal(part.k, call.k[:, list(kv)])
        assert (part.k.untyped_storage().data_ptr() == storage) == (heads != (0, 1, 2))
        assert torch.equal(part.keys, call.k[:, [h // 2 for h in heads]])
        weights = torch.rand(3, len(heads), 7, 7, dtype=torch.float64)
        torch.testing.assert_close(part.read(weights), weights @ part.values)
        g = torch.rand(3, len(heads), 5, 8, dtype=torch.float64)
        torch.testing.assert_close(part.along_values(g), g @ part.values.transpose(-1, -2))


def test_two_runs_at_the_border_of_one_module_act_together() -> None:
    """Outside the interface too, a run inside an edited model sees its edits, and refuses a second program."""
    m, x = made("plain")
    edits = [interp.edits.Temperature("L1.H0", value=2.0), interp.MaskKeys("L1.H0", keys="first", positions="last")]
    together = m.run(x, record=["L1.z", "L1.pattern"], edits=edits)
    with m.edited(edits[:1]):
        nested = m.run(x, record=["L1.z", "L1.pattern"], edits=edits[1:])
        with pytest.raises(EditError, match=r"Temperature.* and Program"):
            m.run(x, edits=[Program("L1.H0", Own())])
    for site in ("L1.z", "L1.pattern"):
        torch.testing.assert_close(nested[site], together[site])
    assert not torch.allclose(together["L1.z"], m.run(x, record="L1.z")["L1.z"])
