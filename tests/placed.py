"""Models put somewhere (on the CPU, on a pretend accelerator, on two), and what calls on them give, as numbers."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass
from functools import cache
from typing import Any

import pandas
import pretend
import torch
from torch import Tensor, nn

import interp
from interp.hooks.examples.example import example
from interp.zoo.catalog import build
from interp.zoo.families import tiny

ENDS = ("ln_f", "norm", "layernorm", "post_layernorm", "lm_head", "classifier")
"""What stands behind a stack of blocks."""


@dataclass(frozen=True)
class Place:
    """Where models lie, "cpu", "one" or "two" (devices), and in which precision."""

    where: str
    dtype: torch.dtype = torch.float32

    def model(self, name: str) -> interp.Model:
        """A tiny family ("llama") or a model of the zoo ("zoo:ioi")."""
        return _model(self, name)

    def pair(self, name: str) -> dict[str, dict[str, Tensor]]:
        """A tiny family's `base=` and `source=`."""
        module = self.model(name).module
        return {side: dict(example(module, batch=2, length=5, seed=n)) for n, side in enumerate(("base", "source"))}


@cache
def _model(place: Place, name: str) -> interp.Model:
    module, processor = build(name) if name.startswith("zoo:") else (tiny(name), None)
    module = module.to(place.dtype)
    if place.where != "cpu":
        pretend.start()
        module = pretend.moved(module) if place.where == "one" else split(module)
    return interp.attach(module, processor)


def split(module: nn.Module) -> nn.Module:
    """On two devices, as `device_map=` does it: the later half of every stack of blocks on the second, and its end."""
    from accelerate import dispatch_model
    from accelerate.utils import set_module_tensor_to_device

    devices = dict(_mapped(module, set(_later(module))))
    modules = dict(module.named_modules())
    for name in devices.keys() - modules.keys():
        set_module_tensor_to_device(module, name, devices[name])
    with warnings.catch_warnings():  # that some of the names are parameters', which it has to be told as well
        warnings.filterwarnings("ignore", message="The following device_map keys", category=UserWarning)
        return dispatch_model(module, device_map=devices, main_device=f"{pretend.NAME}:0")


def _later(module: nn.Module) -> Iterator[str]:
    """What lies on the second device."""
    stacks = {name: child for name, child in module.named_modules() if isinstance(child, nn.ModuleList)}
    tied = _tied(module)
    for name, _ in module.named_modules():
        above, _, last = name.rpartition(".")
        inside = any(name.startswith(f"{stack}.") for stack in stacks)
        late = above in stacks and int(last) * 2 >= len(stacks[above])
        if late or (last in ENDS and name not in tied and not inside):
            yield name


def _tied(module: nn.Module) -> set[str]:
    """Modules that share a parameter with another, which stay together."""
    owners: dict[int, list[str]] = {}
    for name, child in module.named_modules(remove_duplicate=False):
        for own in child.parameters(recurse=False):
            owners.setdefault(id(own), []).append(name)
    return {name for names in owners.values() if len(names) > 1 for name in names}


def _mapped(module: nn.Module, later: set[str], prefix: str = "") -> Iterator[tuple[str, str]]:
    """The largest parts that lie on one device, with that device."""
    if prefix in later:
        yield prefix, f"{pretend.NAME}:1"
        return
    if prefix and not any(name.startswith(f"{prefix}.") for name in later):
        yield prefix, f"{pretend.NAME}:0"
        return
    start = f"{prefix}." if prefix else ""
    for name, child in module.named_children():
        yield from _mapped(child, later, start + name)
    for name, _ in (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)):
        yield start + name, f"{pretend.NAME}:0"


ASIDE = ("model", "meta", "inputs", "anatomy", "cost", "seconds")
"""Fields that are not a result's own numbers."""


def numbers(value: Any, path: str = "") -> Iterator[tuple[str, Tensor]]:
    """Every number that a result holds, by where in it."""
    if isinstance(value, Tensor):
        yield path, value.detach().to(torch.complex128 if value.is_complex() else torch.float64)
    elif isinstance(value, (bool, int, float)):
        yield path, torch.tensor(float(value))
    elif isinstance(value, pandas.DataFrame):
        yield from numbers({str(name): torch.tensor(column) for name, column in _columns(value)}, path)
    elif isinstance(value, Mapping):
        for name, one in value.items():
            yield from numbers(one, f"{path}.{name}")
    elif isinstance(value, (list, tuple)):
        for n, one in enumerate(value):
            yield from numbers(one, f"{path}[{n}]")
    elif isinstance(value, interp.Tape):
        yield from numbers({str(site): value[site] for site in value.sites}, path)
    elif is_dataclass(value):
        for one in fields(value):
            if one.name not in ASIDE:
                yield from numbers(getattr(value, one.name), f"{path}.{one.name}")


def _columns(frame: Any) -> Iterator[tuple[str, Any]]:
    return ((name, column.to_numpy()) for name, column in frame.select_dtypes("number").items())


LOGITS = 8.0
"""Effects are differences of logits, which are about as large as this in the models here."""


def check_same(here: Mapping[str, Tensor], there: Mapping[str, Tensor], near: float) -> None:
    """Raise where numbers are not those of the CPU, `near` being a part of the size of the numbers compared."""
    assert here.keys() == there.keys()
    assert here
    for path, value in here.items():
        size = max([LOGITS, *value[value.isfinite()].abs().flatten().tolist()])
        torch.testing.assert_close(
            there[path].cpu(), value, rtol=0, atol=near * size, equal_nan=True, msg=lambda m, p=path: f"{p}: {m}"
        )


def away(there: Mapping[str, Tensor]) -> list[str]:
    """What does not lie on the CPU."""
    return [path for path, value in there.items() if value.device.type != "cpu"]


ROUNDINGS = 8
"""In bfloat16: two writes in each of up to three blocks, the norm, the head; each rounds by half a unit."""
NEAR = {torch.float32: 1e-6, torch.bfloat16: ROUNDINGS * torch.finfo(torch.bfloat16).eps / 2}
