"""The weights of a GGUF file as plain float32 tensors under the names of a transformers class.

Names go both ways through the `gguf` package's own table. Every parameter must be in the file and every tensor of the
file must be a parameter of that size, which is known before the first weight is read. Weights are read and written a
shard at a time. Cost: SmolLM2-135M (Q4_1) 7 s, Gemma-3-270m (Q4_K and others) 22 s on one busy core.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
from torch import nn

from interp.hooks.errors import ModelError
from interp.loading.gguf.architectures import Architecture
from interp.loading.gguf.config import INSTEAD
from interp.loading.gguf.header import Header, Stored, gguf_package

SHARD = 2_000_000_000
"""Bytes of weights that are held at once, and written to one file."""
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"


def skeleton(config: Any) -> nn.Module:
    """The class without weights."""
    import transformers

    with torch.device("meta"):
        module: Any = getattr(transformers, config.architectures[0])(config)
    module.tie_weights()
    return module


def names(header: Header, module: nn.Module) -> dict[str, str]:
    """The file's name of every parameter; none is missing, none is left over, and sizes agree."""
    config: Any = module.config
    cls, table = type(module).__name__, _table(header, config.num_hidden_layers)
    sizes = {name: p.numel() for name, p in module.named_parameters()}
    found = {name: table.get_name(name, try_suffixes=(".weight", ".bias")) for name in sizes}
    if unknown := [name for name, said in found.items() if said is None]:
        raise ModelError(f"this gguf package has no name for {unknown[0]} of {cls}: upgrade it.")
    if missing := sorted(set(found.values()) - set(header.tensors)):
        raise ModelError(f"{header.path} lacks {missing[0]}, which {cls} needs ({len(missing)} missing in all).")
    if left := sorted(set(header.tensors) - set(found.values())):
        raise ModelError(
            f"{header.path} holds {left[0]}, for which {cls} has no place ({len(left)} such in all): it is another"
            f" model than its architecture says; {INSTEAD}."
        )
    for name, size in sizes.items():
        stored = header.tensors[found[name]]
        if stored.numel != size:
            _odd(header, stored.name, stored.shape, tuple(module.get_parameter(name).shape))
    return found


def _table(header: Header, layers: int) -> Any:
    gguf = gguf_package(str(header.path))
    arch = next((one for one, named in gguf.MODEL_ARCH_NAMES.items() if named == header.architecture), None)
    if arch is None:
        raise ModelError(f"this gguf package has no names for {header.architecture}: upgrade it.")
    return gguf.get_tensor_name_map(arch, layers)


def _odd(header: Header, name: str, shape: tuple[int, ...], wanted: tuple[int, ...]) -> NoReturn:
    raise ModelError(f"{header.path}: {name} has shape {shape}, the rest of the file wants {wanted}.")


def write(header: Header, row: Architecture, module: nn.Module, folder: Path) -> None:
    """All weights as safetensors."""
    found = names(header, module)
    shapes = {name: tuple(p.shape) for name, p in module.named_parameters()}
    shards = list(_shards(shapes))
    where: dict[str, str] = {}
    for number, shard in enumerate(shards, start=1):
        file = WEIGHTS if len(shards) == 1 else f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        _write_shard(header, row, module.config, folder / file, {name: (found[name], shapes[name]) for name in shard})
        where |= dict.fromkeys(shard, file)
    if len(shards) > 1:
        index = {"metadata": {"total_size": 4 * header.elements}, "weight_map": where}
        (folder / INDEX).write_text(json.dumps(index, indent=1), encoding="utf-8")


def _shards(shapes: Mapping[str, tuple[int, ...]]) -> Iterator[list[str]]:
    shard: list[str] = []
    size = 0
    for name, shape in shapes.items():
        more = 4 * int(np.prod(shape))
        if shard and size + more > SHARD:
            yield shard
            shard, size = [], 0
        shard.append(name)
        size += more
    yield shard


def _write_shard(
    header: Header, row: Architecture, config: Any, file: Path, wanted: Mapping[str, tuple[str, tuple[int, ...]]]
) -> None:
    from safetensors.torch import save_file

    bytes_ = np.memmap(header.path, mode="r", dtype=np.uint8)
    tensors = {}
    for name, (stored, shape) in wanted.items():
        plain = row.mend(stored, _unpacked(header, bytes_, header.tensors[stored]), config)
        if plain.shape != shape:
            _odd(header, stored, plain.shape, shape)
        tensors[name] = torch.from_numpy(np.array(plain, dtype=np.float32, order="C"))
    save_file(tensors, str(file), metadata={"format": "pt"})


def _unpacked(header: Header, bytes_: Any, stored: Stored) -> Any:
    gguf = gguf_package(str(header.path))
    rows = bytes_[stored.start : stored.start + stored.bytes].reshape(*stored.shape[:-1], stored.row_bytes)
    try:
        return gguf.dequantize(rows, stored.kind)
    except NotImplementedError as why:
        raise ModelError(
            f"{header.path}: {stored.name} is packed as {stored.kind.name}, which gguf cannot unpack."
        ) from why
