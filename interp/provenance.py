"""What a result has to say about how it came about: versions, model, data, implementation, dtype."""

from __future__ import annotations

import functools
import hashlib
import platform
import weakref
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from interp.hooks.anatomy.spread import cut_weight, some_values
from interp.hooks.inputs.inputs import Inputs
from interp.hooks.run.session import edits_on

_HASHES: weakref.WeakKeyDictionary[nn.Module, tuple[int, str]] = weakref.WeakKeyDictionary()
_NAMES: weakref.WeakKeyDictionary[nn.Module, str] = weakref.WeakKeyDictionary()


def about(module: nn.Module, inputs: Inputs | None) -> dict[str, Any]:
    """A plain dict that goes into every tape and result."""
    config = getattr(module, "config", None)
    parameter = next(module.parameters(), None)
    edits = [edit.written for edit in edits_on(module)]
    return {
        "versions": dict(versions()),
        "model": type(module).__name__,
        "model_hash": model_hash(module),
        "inputs_hash": inputs.digest() if inputs is not None else None,
        "attention": getattr(config, "_attn_implementation", None),
        "dtype": str(parameter.dtype).removeprefix("torch.") if parameter is not None else None,
        **({"edits": edits} if edits else {}),
    }


def remember_name(module: nn.Module, name: str) -> None:
    """Keep what a model was loaded by; its config holds that only where transformers read it."""
    _NAMES[module] = name


def name_of(module: nn.Module) -> str:
    """What people call the model: where it was loaded from (a hub's name, `package:NAME`, `zoo:NAME`, of a directory or
    a file its own name without the way to it), else its class."""
    said = _NAMES.get(module) or str(getattr(getattr(module, "config", None), "_name_or_path", None) or "")
    path = Path(said).expanduser()
    if not said or said.startswith(("zoo:", "package:")) or not (path.is_absolute() or path.exists()):
        return said or type(module).__name__
    if path.parent.name == "snapshots":  # a hub's cache: models--owner--name/snapshots/commit
        return path.parent.parent.name.removeprefix("models--").replace("--", "/")
    return path.name or path.resolve().name or said


def refuse_unwritten(module: nn.Module) -> None:
    """Raise where the model runs under an edit that cannot be written down, for those who keep a run to go on later."""
    for edit in edits_on(module):
        edit.refuse_unwritten()


@functools.cache
def versions() -> tuple[tuple[str, str], ...]:
    """Versions of what computed the numbers."""
    found = {name: metadata.version(name) for name in ("torch", "transformers", "numpy")}
    return (("python", platform.python_version()), *found.items())


@functools.cache
def _code() -> tuple[tuple[str, str], ...]:
    import interp

    total, files = hashlib.sha256(), dict[str, Path]()
    root = Path(interp.__file__).resolve().parent
    for floor in ("hooks", "kernels", ""):  # links in a clone, which a walk may follow or not
        folder = (root / floor).resolve()
        for file in folder.rglob("*.py"):
            files.setdefault(f"{floor}/{file.relative_to(folder).as_posix()}".lstrip("/"), file)
    for name in sorted(files):
        total.update(name.encode() + b"\0" + files[name].read_bytes() + b"\0")
    return ("interp", interp.__version__), ("sources", total.hexdigest()[:16])


def code() -> dict[str, str]:
    """The version of this package and a digest of its sources, which an edit of them changes."""
    return dict(_code())


def model_hash(module: nn.Module) -> str:
    """A digest of every parameter's name, shape and a spread of its values; quick, and another after any training."""
    stamp = hash(tuple(map(_stamp, module.parameters())))
    known = _HASHES.get(module)
    if known is not None and known[0] == stamp:
        return known[1]
    total = hashlib.sha256()
    for name, p in module.named_parameters():
        total.update(f"{name} {tuple(p.shape)} {p.dtype}\n".encode())
        if cut_weight(p):
            total.update(repr(some_values(p, 64).tolist()).encode())
            continue
        for values in _plain(_held(module, name, p).detach()):
            total.update(repr(_spread(values.reshape(-1)).double().tolist()).encode())
    digest = total.hexdigest()[:16]
    _HASHES[module] = (stamp, digest)
    return digest


def _stamp(p: Tensor) -> tuple[int, int]:
    """Changes when the parameter does; offloaded ones come and go with every call and are taken as they are."""
    return (0, 0) if p.device.type == "meta" else (id(p), 0 if p.is_inference() else p._version)


def _held(module: nn.Module, name: str, p: Tensor) -> Tensor:
    """A parameter, or what accelerate holds for it elsewhere."""
    if p.device.type != "meta":
        return p
    owner, _, leaf = name.rpartition(".")
    hook = getattr(module.get_submodule(owner), "_hf_hook", None)
    maps = (getattr(one, "weights_map", None) for one in getattr(hook, "hooks", (hook,)))
    return next((held[leaf] for held in maps if held is not None), p)


def _plain(tensor: Tensor) -> list[Tensor]:
    """The plain tensors with the values: those inside one of torchao's, none for a weight that is nowhere."""
    if tensor.device.type == "meta" or not tensor.numel():
        return []
    if type(tensor) in (Tensor, nn.Parameter) or not hasattr(tensor, "__tensor_flatten__"):
        return [tensor.as_subclass(Tensor)]
    return [inner for name in tensor.__tensor_flatten__()[0] for inner in _plain(getattr(tensor, name))]


def _spread(flat: Tensor) -> Tensor:
    """At most 64 values from the first to the last; integer indices, since floats cannot count large tensors."""
    last, count = flat.numel() - 1, min(64, flat.numel())
    return flat[torch.arange(count, device=flat.device) * last // max(1, count - 1)]
