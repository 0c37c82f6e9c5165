"""What every test stands on: two threads, fixed seeds, no network, poisoned memory, areas by file name."""

from __future__ import annotations

import functools
import os
import random
import re
import sys
import tempfile
from collections.abc import Callable
from typing import Any

# Libraries read these when they are imported, so they are set before anything else is.
os.environ.update(
    HF_HUB_OFFLINE="1",
    TRANSFORMERS_OFFLINE="1",
    HF_HUB_DISABLE_TELEMETRY="1",
    HF_HOME=os.path.join(tempfile.gettempdir(), "interp-tests-see-no-hub-cache"),
    DO_NOT_TRACK="1",
    WANDB_MODE="disabled",
    TOKENIZERS_PARALLELISM="false",
    MPLBACKEND="Agg",
)
# Workers share the cores, and so do the processes they start.
if os.environ.get("PYTEST_XDIST_WORKER"):
    os.environ.setdefault("OMP_NUM_THREADS", "1")
# Triton's interpreter has to be chosen before its first import, whoever imports it first; a GPU machine says 0.
os.environ.setdefault("TRITON_INTERPRET", "1")

import hypothesis
import numpy as np
import pytest
import torch
import typed
from areas import areas
from torch.utils import _device

ON_REQUEST = ("gpu", "slow", "real", "device", "scale", "tools")
WITH = {"tools": "product"}
"""Markers whose tests run as well when the area behind them is named."""

hypothesis.settings.register_profile("house", deadline=None, derandomize=True, print_blob=True)
hypothesis.settings.load_profile("house")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        for area in areas(item.path):
            item.add_marker(area)
    asked = set(re.findall(r"\w+", config.getoption("markexpr")))
    left_out = [m for m in ON_REQUEST if m not in asked and WITH.get(m) not in asked]
    dropped = [item for item in items if any(item.get_closest_marker(m) for m in left_out)]
    config.hook.pytest_deselected(items=dropped)
    items[:] = [item for item in items if item not in dropped]


def pytest_collection_finish(session: pytest.Session) -> None:
    """PyTorch counts devices at a process's first gradient, so the pretend ones are there before the first test."""
    items = [item for item in session.items if item.get_closest_marker("device")]
    if not items:
        return
    import pretend  # imports the package

    if (why := pretend.missing()) is not None:
        for item in items:
            item.add_marker(pytest.mark.skip(reason=why))
    else:
        pretend.start()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Before any fixture, so that a shared fixture is the same whichever test needs it first."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


POISON: dict[torch.dtype, float | int | bool] = {
    **dict.fromkeys((torch.float16, torch.bfloat16, torch.float32, torch.float64), float("nan")),
    **dict.fromkeys((torch.complex64, torch.complex128), float("nan")),
    **{kind: torch.iinfo(kind).max for kind in (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)},
    torch.bool: True,
}


def poisoned(make: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    @functools.wraps(make)
    def wrapper(*args: Any, **kwargs: Any) -> torch.Tensor:
        tensor = make(*args, **kwargs)
        if tensor.layout is torch.strided and tensor.dtype in POISON:
            tensor.detach().fill_(POISON[tensor.dtype])
        return tensor

    return wrapper


def poison_python() -> None:
    """What Python asks torch for uninitialised is NaN or the largest integer; parameters must be given values."""
    _device._device_constructors()  # cached with the true functions: `with torch.device(...)` looks them up there
    for name in ("empty", "empty_like", "empty_strided", "empty_permuted"):
        setattr(torch, name, poisoned(getattr(torch, name)))
    for name in ("new_empty", "new_empty_strided"):
        setattr(torch.Tensor, name, poisoned(getattr(torch.Tensor, name)))


@pytest.fixture
def poisoned_native() -> Any:
    """The same for memory that C++ asks for through ATen. Changes which algorithms run, so only on request."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(before)


def is_local(host: object) -> bool:
    name = host.decode() if isinstance(host, bytes) else host
    return not isinstance(name, str) or name in {"", "localhost", "::", "::1", "0.0.0.0"} or name.startswith("127.")


def refuse_network(event: str, args: tuple[Any, ...]) -> None:
    """An audit hook: a test that leaves this machine fails, in any library, under any `except Exception`."""
    if event in {"socket.getaddrinfo", "socket.gethostbyname"}:
        host = args[0]
    elif event in {"socket.connect", "socket.sendto"} and isinstance(args[1], tuple):
        host = args[1][0]
    else:
        return
    if not is_local(host):
        pytest.fail(f"{event} to {host!r}: tests run without a network")


def asked_for_devices(config: pytest.Config) -> bool:
    """Every call runs there too, and slowly; the tests of each room check its shapes and types."""
    return "device" in re.findall(r"\w+", config.getoption("markexpr"))


def pytest_configure(config: pytest.Config) -> None:
    torch.set_num_threads(1 if os.environ.get("PYTEST_XDIST_WORKER") else 2)
    poison_python()
    if not asked_for_devices(config):
        typed.install()  # shapes and types are checked here and only here
    sys.addaudithook(refuse_network)
