"""Inputs on disk: tensors in one safetensors file, the rest in JSON, towers in folders next to them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from interp.hooks.errors import InputsError
from interp.hooks.inputs.arguments import flat, nested
from interp.hooks.inputs.labels import FIELDS, Roles
from interp.hooks.pictures.grids import Fit, View
from interp.hooks.sealed import digest, inside, loaded, sealed, understood, unsealed

Made = TypeVar("Made")
FORMAT = 1


def save(inputs: Any, folder: Path, shared: bool = False) -> None:
    """Write inputs to a folder; a tower shares the arguments of the inputs around it."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    labels = inputs.roles
    tensors = {f"roles.{name}": getattr(labels, name) for name in FIELDS} | {"valid": inputs.valid}
    tensors |= {f"tags.{name}": mask for name, mask in labels.tags.items()}
    arguments = {} if shared else {k: v for k, v in flat(inputs.kwargs).items() if isinstance(v, Tensor)}
    tensors |= {f"kwargs.{name}": value for name, value in arguments.items()}
    save_file(
        {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()},
        folder / "inputs.safetensors",
    )
    for name, tower in inputs.towers.items():
        if not isinstance(tower, str):
            save(tower, folder / name, shared=True)
    digests = {"inputs.safetensors": digest(folder / "inputs.safetensors")}
    (folder / "inputs.json").write_bytes(sealed(_about(inputs), digests, indent=None))


def _about(inputs: Any) -> dict[str, Any]:
    labels = inputs.roles
    views = [[asdict(view) for view in row] for row in labels.views]
    return {
        "format": FORMAT, "main": inputs.main, "tokens": inputs.tokens, "texts": inputs.texts,
        "offsets": inputs.offsets, "continuation": inputs.continuation, "grids": labels.grids, "views": views,
        "sizes": labels.sizes, "fit": labels.fit and asdict(labels.fit), "seconds": labels.seconds,
        "scalars": {name: value for name, value in flat(inputs.kwargs).items() if not isinstance(value, Tensor)},
        "towers": {name: tower if isinstance(tower, str) else None for name, tower in inputs.towers.items()},
    }  # fmt: skip


def load(make: Callable[..., Made], folder: Path, kwargs: dict[str, Any] | None = None) -> Made:
    """Read inputs from a folder, made by their class."""
    path = folder / "inputs.json"
    if not path.exists():
        raise InputsError(f"{folder} holds no inputs: expected {path}")
    about, digests = unsealed(path, FORMAT)
    tensors = loaded(folder / "inputs.safetensors", digests)
    with understood(path):
        call = kwargs if kwargs is not None else nested({**about["scalars"], **_under(tensors, "kwargs.")})
        towers = {n: why or load(make, inside(folder, n), call) for n, why in about["towers"].items()}
        told = {name: _frozen(about[name]) for name in ("tokens", "texts", "offsets", "continuation", "main")}
        return make(call, tensors["valid"], _roles(about, tensors), **told, towers=towers)


def _under(tensors: dict[str, torch.Tensor], start: str) -> dict[str, torch.Tensor]:
    return {name.removeprefix(start): tensor for name, tensor in tensors.items() if name.startswith(start)}


def _frozen(value: Any) -> Any:
    return tuple(map(_frozen, value)) if isinstance(value, list) else value


def _roles(about: dict[str, Any], tensors: dict[str, torch.Tensor]) -> Roles:
    views = tuple(tuple(_frozen_fields(View(), view) for view in row) for row in about["views"])
    fit = _frozen_fields(Fit(), about["fit"]) if about["fit"] else None
    fields: dict[str, Any] = dict(_under(tensors, "roles."))
    fields |= {"grids": _frozen(about["grids"]), "views": views, "sizes": _frozen(about["sizes"]), "fit": fit}
    fields |= {"seconds": about.get("seconds")}
    return Roles(**fields, tags=_under(tensors, "tags."))


def _frozen_fields(blank: Any, fields: dict[str, Any]) -> Any:
    return replace(blank, **{name: _frozen(value) for name, value in fields.items()})
