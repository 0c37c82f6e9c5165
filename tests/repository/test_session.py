"""What tests/conftest.py promises to every other test."""

from __future__ import annotations

import os
import random
import socket

import numpy as np
import pytest
import torch

MAKERS = {
    "empty": lambda like: torch.empty(like.shape, dtype=like.dtype),
    "empty_like": torch.empty_like,
    "empty_strided": lambda like: torch.empty_strided(like.shape, like.stride(), dtype=like.dtype),
    "new_empty": lambda like: like.new_empty(like.shape),
}


@pytest.mark.parametrize("maker", MAKERS)
def test_uninitialised_memory_is_poison(maker: str) -> None:
    assert MAKERS[maker](torch.zeros(3, 4)).isnan().all()
    assert (MAKERS[maker](torch.zeros(3, 4, dtype=torch.int64)) == torch.iinfo(torch.int64).max).all()


def test_poison_keeps_out_of_the_way() -> None:
    with torch.device("meta"):
        assert torch.empty(2).device.type == "meta"
    assert torch.empty(2, requires_grad=True).requires_grad
    assert torch.nn.Linear(3, 3).weight.isfinite().all()


def test_poison_is_traced_by_the_compiler() -> None:
    compiled = torch.compile(lambda x: torch.empty_like(x) + x, backend="eager", fullgraph=True)
    assert compiled(torch.ones(2)).isnan().all()


def test_poison_reaches_memory_that_native_code_asks_for(poisoned_native: None) -> None:
    assert torch.ops.aten.empty.memory_format([3]).isnan().all()


@pytest.mark.parametrize("_time", [1, 2])
def test_every_test_starts_from_the_same_seeds(_time: int) -> None:
    assert random.random() == random.Random(0).random()
    assert np.random.rand() == np.random.RandomState(0).rand()
    assert torch.rand(1).equal(torch.rand(1, generator=torch.Generator().manual_seed(0)))


def test_two_threads() -> None:
    assert torch.get_num_threads() == (1 if os.environ.get("PYTEST_XDIST_WORKER") else 2)


def test_the_network_is_out_of_reach_even_for_those_who_catch_everything() -> None:
    with pytest.raises(pytest.fail.Exception, match="without a network"), socket.socket() as plug:
        plug.connect(("192.0.2.1", 80))
    with pytest.raises(pytest.fail.Exception, match="without a network"):
        socket.getaddrinfo("example.org", 80)
    assert not issubclass(pytest.fail.Exception, Exception)


def test_this_machine_is_within_reach() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        socket.create_connection(server.getsockname()).close()
