"""Tracing and checking a model while another thread runs it: neither sees the other."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

import interp
from interp.hooks.examples.example import example
from interp.hooks.survey.checks import check
from interp.hooks.survey.cut import without
from interp.hooks.survey.trace import trace
from interp.zoo.families import tiny


@contextmanager
def running(module: nn.Module, kwargs: dict[str, Tensor]) -> Iterator[list[Tensor]]:
    """Plain forwards of another thread, for as long as the block lasts."""
    found: list[Tensor] = []
    stop = threading.Event()

    def loop() -> None:
        with torch.no_grad():
            while not stop.is_set():
                found.append(module(**kwargs).logits)

    thread = threading.Thread(target=loop)
    thread.start()
    try:
        yield found
    finally:
        stop.set()
        thread.join()


def test_checks_change_nothing_that_another_thread_can_see() -> None:
    module = tiny("llama")
    mine, theirs = example(module, batch=1), example(module, batch=2, length=5, seed=3)
    anatomy = trace(module, mine)
    before = module(**theirs).logits
    with running(module, theirs) as found:
        for _ in range(3):
            check(module, anatomy, mine).raise_failed()
    assert len(found) > 3
    assert all(torch.equal(one, before) for one in found)


def test_a_first_look_sees_its_own_thread_only() -> None:
    module = tiny("llama")
    mine, theirs = example(module, batch=1), example(module, batch=2, length=5, seed=3)
    alone = trace(module, mine)
    with running(module, theirs):
        for _ in range(3):
            assert trace(module, mine) == alone


def test_a_projection_without_a_head_is_the_weight_without_its_columns() -> None:
    for name in ("gpt2", "llama", "bert"):
        module = tiny(name)
        kwargs = example(module, batch=2)
        layer = interp.attach(module).anatomy.towers["text"].layers[1]
        with without(module, layer, 1), torch.no_grad():
            found = module(**kwargs).logits
        weight = module.get_parameter(f"{layer.out}.weight")
        columns = slice(layer.d_value, 2 * layer.d_value)
        kept = weight.detach().clone()
        with torch.no_grad():
            (weight if name == "gpt2" else weight.T)[columns] = 0
            expected = module(**kwargs).logits
            weight.copy_(kept)
        torch.testing.assert_close(found, expected)
        assert not torch.equal(found, module(**kwargs).logits)
