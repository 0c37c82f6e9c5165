"""States while generating: grown key by key they are sums over all keys, in models, whatever happens to a cache.

The twin of an operator is the same without a state: a program that has `z` alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import pytest
import torch
from operator_parts import Numbers, padded, part
from torch import Tensor

import interp
from interp.hooks.errors import EditError
from interp.hooks.examples.example import example
from interp.hooks.run.session import Session
from interp.hooks.stand.part import Part
from interp.kernels.masks.symbols import Dense
from interp.operators import InLine, Linear, PrefixScan
from interp.zoo.families import tiny


def drawn(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


def recurrent(site: str = "", width: int = 4, heads: int = 4) -> dict[str, Any]:
    return {
        **{name: Linear(site, name) for name in ("elu", "exp", "taylor")},
        "random": Linear(site, "random", count=16),
        "raw": Linear(site, "exp", normalize=False),
        "hedgehog": Linear(site, "hedgehog", maps=drawn(2, heads, 3, width)),
        "lightning": Linear(site, "silu", rate=torch.rand(heads), normalize=False),
        "fading": Linear(site, "elu", rate=0.3),
        "inline": InLine(site),
        "scan": PrefixScan(site, drawn(1, width)),
    }


def twin(operator: Any) -> interp.edits.Program:
    return interp.edits.Program(operator.site, operator.z)


@pytest.mark.parametrize("name", list(recurrent()))
@pytest.mark.parametrize("call", ["causal", "left"])
def test_a_state_grown_key_by_key_reads_what_the_pattern_reads(call: str, name: str) -> None:
    operator, first = recurrent()[name], 7
    p = part(call, size=3.0)  # large keys come late: exponents are scaled again
    p = replace(p, k=p.k * torch.linspace(0.2, 2, p.k.shape[2])[:, None])
    want = operator.pattern(p) @ p.values
    hidden = padded("left", 1, first, (first, 2)) if call == "left" else None
    state = operator.start(replace(p, q=p.q[:, :, first : first + 1], k=p.k[:, :, :first], v=p.v[:, :, :first],
                                   mask=hidden))  # fmt: skip
    for t in range(first, 11):
        one = slice(t, t + 1)
        now = replace(p, q=p.q[:, :, one], k=p.k[:, :, one], v=p.v[:, :, one], mask=None)
        state = operator.grow(state, now)
        torch.testing.assert_close(operator.answer(state, now), want[:, :, one], atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("name", ["exp", "inline", "scan"])
def test_a_state_may_begin_with_no_key_seen(name: str) -> None:
    operator, p = recurrent()[name], part("causal")
    state = operator.start(replace(p, q=p.q[:, :, :1], mask=Dense(torch.zeros(2, 1, 1, 11, dtype=torch.bool))))
    now = replace(p, q=p.q[:, :, :1], k=p.k[:, :, :1], v=p.v[:, :, :1], mask=None)
    found = operator.answer(operator.grow(state, now), now)
    torch.testing.assert_close(found, now.values)


def test_gradients_go_through_a_state() -> None:
    p = part("a step")

    def last(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, ...]:
        found = []
        operators: list[Any] = [Linear("", "exp", rate=0.2), InLine("")]
        for operator in operators:
            state = operator.start(replace(p, q=q, k=k[:, :, :10], v=v[:, :, :10], mask=None))
            now = replace(p, q=q, k=k[:, :, 10:], v=v[:, :, 10:], mask=None)
            found.append(operator.answer(operator.grow(state, now), now))
        return tuple(found)

    q, k, v = (x.clone().requires_grad_() for x in (p.q, p.k, p.v))
    assert torch.autograd.gradcheck(last, (q, k, v), atol=1e-6, rtol=1e-4, fast_mode=True)


def test_a_step_costs_the_same_after_many_keys() -> None:
    """Numbers that operations give, and those that are kept; a step that reads the keys is seen."""
    operators: list[Any] = [Linear("", "exp"), InLine(""), PrefixScan("", drawn(1, 4).float())]
    for operator in operators:
        taken = []
        for n in (256, 1024):
            q, k, v = (torch.randn(1, 2, length, 4) for length in (1, n, n))
            p = Part(q, k, v, None, 0.5, None, None, None, (0, 1))
            state = operator.start(p)
            now = replace(p, k=k[:, :, -1:], v=v[:, :, -1:])
            with torch.no_grad(), Numbers() as steps:
                operator.answer(operator.grow(state, now), now)
            with torch.no_grad(), Numbers() as whole:
                operator.z(p)
            kept = sum(x.untyped_storage().nbytes() for x in leaves(state))
            taken.append((steps.total, kept))
            assert whole.total > 4 * steps.total
        assert taken[0] == taken[1]


def leaves(state: Any) -> list[Tensor]:
    return [x for x in (state if isinstance(state, tuple) else vars(state).values()) if torch.is_tensor(x)]


@dataclass(frozen=True, eq=False, repr=False)
class Stepping(Linear):
    """Linear attention that cannot read the keys of a cache."""

    def z(self, part: Part) -> Tensor:
        if part.q.shape[2] == 1:
            raise EditError("this step was not taken from a state")
        return super().z(part)


@cache
def model(name: str) -> interp.Model:
    return interp.attach(tiny(name, dtype=torch.float64))


def prompts(m: interp.Model, seed: int = 3, padding: Any = "left") -> Any:
    return m.inputs(dict(example(m.module, batch=2, length=7, padding=padding, seed=seed)))


@pytest.mark.parametrize(("name", "site"), [("gpt2", "L*.H*"), ("llama", "L*.H1"), ("bart", "decoder.L1.H*"),
                                            ("bart", "cross.L1.H*")])  # fmt: skip
def test_steps_are_taken_from_states(name: str, site: str) -> None:
    m = model(name)
    x = prompts(m, padding=None if name == "bart" else "left")
    one, other = (m.generate(x, edits=[edit], max_new_tokens=5)
                  for edit in (Stepping(site, "exp"), twin(Linear(site, "exp"))))  # fmt: skip
    assert torch.equal(one.ids, other.ids)
    torch.testing.assert_close(one.logprobs, other.logprobs, atol=1e-6, rtol=1e-6)


def test_there_is_one_state_a_layer_and_none_afterwards() -> None:
    m = model("llama")
    x = prompts(m)
    edits = [Linear("L*.H0-1"), InLine("L1.H2-3")]
    session = Session(m.module, m.ready(), edits=edits, inputs=x)
    with m.on(session), torch.no_grad():
        out: Any = m.module
        out.generate(**m.called_with(x.kwargs), max_new_tokens=4, do_sample=False)
        assert len(session.states) == len(m.ready().tower(None, text="L*").layers) + 1
    assert len(session.states) == 0


Use = Callable[[Any, dict[str, Tensor]], Tensor]


def by_beams(module: Any, x: dict[str, Tensor]) -> Tensor:
    return module.generate(**x, max_new_tokens=6, num_beams=3, do_sample=False, num_return_sequences=2)


def said(module: Any, past: Any, *tokens: int) -> list[Tensor]:
    """Logits after each token, of both rows, as the cache goes on."""
    steps = (torch.full((2, 1), token) for token in tokens)
    return [module(ids, past_key_values=past, use_cache=True).logits[:, -1] for ids in steps]


def cut_off(module: Any, x: dict[str, Tensor]) -> Tensor:
    """Three tokens, of which two are taken back, and two others."""
    past = module(x["input_ids"], use_cache=True).past_key_values
    found = said(module, past, 5, 6, 7)
    past.crop(-2)
    return torch.stack([*found, *said(module, past, 3, 4)])


def swapped(module: Any, x: dict[str, Tensor]) -> Tensor:
    """Two texts that take turns, each with its own cache."""
    texts = (x["input_ids"], x["input_ids"].flip(1))
    both = [module(text, use_cache=True).past_key_values for text in texts]
    return torch.stack([logits for token in (3, 4, 5) for past in both for logits in said(module, past, token)])


def masked(module: Any, x: dict[str, Tensor]) -> Tensor:
    """A mask that hides another earlier key in every step."""
    past, found = module(x["input_ids"], use_cache=True).past_key_values, []
    for step in range(3):
        mask = torch.ones(2, 8 + step, dtype=torch.long)
        mask[:, step] = 0
        at = torch.full((2, 1), 7 + step)
        out = module(torch.full((2, 1), step), past_key_values=past, attention_mask=mask, position_ids=at)
        found.append(out.logits[:, -1])
    return torch.stack(found)


def written_into(module: Any, x: dict[str, Tensor]) -> Tensor:
    past = module(x["input_ids"], use_cache=True).past_key_values
    found = said(module, past, 3)
    for layer in past.layers:
        layer.keys[:, :, 0] *= -1
    return torch.stack([*found, *said(module, past, 4)])


def fixed(module: Any, x: dict[str, Tensor]) -> Tensor:
    return module.generate(**x, max_new_tokens=4, do_sample=False, cache_implementation="static")


@pytest.mark.parametrize("use", [by_beams, cut_off, swapped, masked, written_into, fixed])
@pytest.mark.parametrize("name", ["exp", "inline"])
def test_whatever_happens_to_a_cache_a_state_is_that_of_its_keys(name: str, use: Use) -> None:
    m = model("llama")
    x = m.called_with(prompts(m, padding=None).kwargs)
    operator = recurrent("L*.H*", 8)[name]
    found = []
    with torch.no_grad():
        for edit in (operator, twin(operator)):
            with m.edited([edit]):
                found.append(use(m.module, dict(x)))
    torch.testing.assert_close(found[0], found[1], atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("name", ["mistral", "gemma3"])
def test_sliding_windows_are_read_from_the_cache(name: str) -> None:
    m = model(name)
    x, width = prompts(m), int(m.ready().tower(None, text="L0").layers[0].d_value)
    operator = recurrent("L*.H*", width)["elu"]
    one, other = (m.generate(x, edits=[edit], max_new_tokens=12) for edit in (operator, twin(operator)))
    torch.testing.assert_close(one.logprobs, other.logprobs, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("component", ["k", "v"])
def test_an_edit_of_what_is_cached_is_not_summed_into_a_state(component: str) -> None:
    m = model("gpt2")
    x = prompts(m)
    change = interp.Scale(f"L1.H1.{component}", 0.3, step=1)
    one, other = (m.generate(x, edits=[edit, change], max_new_tokens=5)
                  for edit in (Linear("L1.H*"), twin(Linear("L1.H*"))))  # fmt: skip
    assert torch.equal(one.ids, other.ids)
    torch.testing.assert_close(one.logprobs, other.logprobs, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("where", [{"phase": "decode"}, {"step": 2}, {"rows": (1,)}, {"steps": "0,2-3"}])
def test_an_operator_of_some_steps_begins_where_it_is_asked(where: dict[str, Any]) -> None:
    m = model("gpt2")
    x = prompts(m)
    operator = Linear("L1.H*", "elu", **where)
    one, other = (m.generate(x, edits=[edit], max_new_tokens=6)
                  for edit in (operator, interp.edits.Program("L1.H*", operator.z, **where)))  # fmt: skip
    torch.testing.assert_close(one.logprobs, other.logprobs, atol=1e-6, rtol=1e-6)


class Mean:
    """The mean of the values so far, by a state of one's own."""

    def __init__(self) -> None:
        self.steps = 0

    def z(self, part: Part) -> Tensor:
        return part.read(part.softmax(torch.where(part.scores().isneginf(), -torch.inf, 0.0)))

    def start(self, part: Part) -> tuple[Tensor, int]:
        return part.values.mean(2, keepdim=True), part.k.shape[2]

    def grow(self, state: tuple[Tensor, int], part: Part) -> tuple[Tensor, int]:
        self.steps += 1
        mean, n = state
        return mean + (part.values - mean) / (n + 1), n + 1

    def answer(self, state: tuple[Tensor, int], part: Part) -> Tensor:
        return state[0]


def test_a_program_of_ones_own_has_its_state_too() -> None:
    m, mine = model("llama"), Mean()
    x = prompts(m, padding=None)
    one = m.generate(x, edits=[interp.edits.Program("L1.H2", mine)], max_new_tokens=5)
    assert mine.steps == 4
    other = m.generate(x, edits=[interp.edits.Program("L1.H2", mine.z)], max_new_tokens=5)
    torch.testing.assert_close(one.logprobs, other.logprobs, atol=1e-6, rtol=1e-6)
