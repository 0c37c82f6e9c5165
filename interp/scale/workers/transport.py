"""A model handed over without copies: its pickle has no numbers, which are plain arrays outside of it.

`packed` pickles anything, a model inside it as the module, its processor and its family, and puts the memory under
every plain tensor into a list of byte arrays, each once however many tensors look at it. Ray's object store hands such
arrays to every process of a machine as one piece of memory that nobody may write to, and `unpacked` lays the tensors
over it: no module is initialised and no number is copied, whatever the dtype, tied weights stay tied. Where the
worker has an accelerator, what goes there is copied to it once.
Limits: a weight that is nowhere (offloaded, on `meta`) cannot be handed over; a model spread over several devices comes
to one. Tensors of other layouts and packed classes (torchao's) travel inside the pickle, with a copy for each worker.
"""

from __future__ import annotations

import io
import pickle
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from interp.hooks.errors import ModelError
from interp.model import Model, attach

PLAIN = (Tensor, nn.Parameter)
Bytes = np.ndarray[Any, np.dtype[np.uint8]]


def packed(
    thing: Any, *, instead: tuple[Model, str] | None = None, base: Any = pickle.Pickler
) -> tuple[bytes, list[Bytes]]:
    """A pickle without numbers, and the numbers. `instead` is a model that the other side loads, and what `interp.load`
    is given there; `base` is the pickler's class (cloudpickle's takes functions of a notebook too)."""
    arrays: list[Bytes] = []
    known: dict[int, tuple[int, Any]] = {}

    class Packer(base):
        def reducer_override(self, given: Any) -> Any:
            if isinstance(given, Model):
                return _reduced(given, instead)
            if type(given) in PLAIN and _lies_plainly(given):
                return _tensor_parts(given, arrays, known)
            above = getattr(super(), "reducer_override", None)
            return NotImplemented if above is None else above(given)

    file = io.BytesIO()
    Packer(file, protocol=5).dump(thing)
    return file.getvalue(), arrays


def _reduced(model: Model, instead: tuple[Model, str] | None) -> Any:
    if instead is not None and model is instead[0]:
        return _loaded, (instead[1],)
    return _attached, (model.module, model.processor, model.family, model._example)


def _tensor_parts(given: Tensor, arrays: list[Bytes], known: dict[int, tuple[int, Any]]) -> Any:
    if given.device.type == "meta":
        raise ModelError(
            f"a tensor of {list(given.shape)} is not in memory (offloaded, or on meta), so it cannot be handed to"
            " other processes: let each worker load the model, Ray(model='NAME or directory')."
        )
    storage = given.untyped_storage()
    key = storage.data_ptr() if storage.nbytes() else -id(storage)
    if key not in known:
        known[key] = len(arrays), storage  # held, so that no other one gets the same address
        arrays.append(torch.empty(0, dtype=torch.uint8, device=given.device).set_(storage).detach().cpu().numpy())
    place = given.storage_offset(), tuple(given.shape), given.stride()
    how = given.dtype, given.device.type, type(given), given.requires_grad
    made = _tensor, (known[key][0], *place, *how)
    return (*made, dict(given.__dict__), None, None, _marked) if given.__dict__ else made


def _lies_plainly(given: Tensor) -> bool:
    return given.layout == torch.strided and not (given.is_quantized or given.is_conj() or given.is_neg())


class _Unpacking:
    """What is being unpacked in this process: memory by number, and where tensors of accelerators go."""

    def __init__(self, arrays: Sequence[Bytes], device: torch.device) -> None:
        self.arrays, self.device = arrays, device
        self.storages: dict[tuple[int, str], torch.UntypedStorage] = {}

    def storage(self, number: int, device: str) -> torch.UntypedStorage:
        to = torch.device("cpu") if device == "cpu" else self.device
        if (number, to.type) not in self.storages:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "The given NumPy array is not writable")  # meant so
                memory = torch.from_numpy(self.arrays[number])
            self.storages[number, to.type] = memory.to(to).untyped_storage()
        return self.storages[number, to.type]


_UNDER_WAY: list[_Unpacking] = []


def unpacked(pickled: bytes, arrays: Sequence[Bytes], device: torch.device | None = None) -> Any:
    """What was packed, laid over the arrays; what was on an accelerator goes to `device`. For what this program itself
    sent, and nothing that came from elsewhere."""
    _UNDER_WAY.append(_Unpacking(arrays, device or torch.device("cpu")))
    try:
        return pickle.loads(pickled)  # noqa: S301  # this program's own bytes, by Ray's own channel, which is pickle
    finally:
        _UNDER_WAY.pop()


def _tensor(
    number: int, offset: int, shape: tuple[int, ...], stride: tuple[int, ...], dtype: torch.dtype, device: str,
    kind: type, grad: bool,
) -> Tensor:  # fmt: skip
    storage = _UNDER_WAY[-1].storage(number, device)
    laid = torch.empty(0, dtype=dtype, device=storage.device).set_(storage, offset, shape, stride)
    return nn.Parameter(laid, requires_grad=grad) if kind is nn.Parameter else laid.requires_grad_(grad)


def _marked(tensor: Tensor, marks: dict[str, Any]) -> None:
    """What was noted on a tensor, as transformers notes which weights it has initialised."""
    tensor.__dict__.update(marks)


def _attached(module: Any, processor: Any, family: Any, example: Any) -> Model:
    return attach(module, processor, family=family, example=example)


def _loaded(name: str) -> Model:
    from interp.loading.load import load

    return load(name)
