"""A directory in hub layout, looked at before anything is built from it: a config that is one, weights that are whole,
an index that names files of this directory; and what transformers says it missed, once the weights are in.

Cost: the headers of the weights.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from interp.hooks.errors import ModelError
from interp.hooks.sealed import MISREAD, damaged, inside, parsed, understood
from interp.kernels.errors import InterpError

INDEX = "*.safetensors.index.json"
JSON = ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "preprocessor_config.json",
        "processor_config.json")  # fmt: skip
SHOWN = 5


def intact(folder: Path) -> None:
    """Refuse a directory whose config, index or weights cannot be what they are called."""
    for name in JSON:
        if (folder / name).exists():
            parsed(folder / name)
    held = {file.name: names(file) for file in sorted(folder.glob("*.safetensors"))}
    for index in sorted(folder.glob(INDEX)):
        _index(index, held)


def names(file: Path) -> frozenset[str]:
    """What the tensors of a safetensors file are called; its length is compared with its header."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(file), framework="pt") as weights:
            return frozenset(weights.keys())
    except (SafetensorError, OSError, *MISREAD) as why:
        raise damaged(file, f"it is no safetensors file ({str(why).strip():.120})") from why


def _index(path: Path, held: Mapping[str, frozenset[str]]) -> None:
    with understood(path):
        where = dict(parsed(path)["weight_map"])
        for weight, name in where.items():
            file = inside(path.parent, name)
            if file.suffix != ".safetensors" or not file.is_file():
                raise ModelError(f"{path}: {weight} should be in {name}, and there is no such safetensors file.")
            if weight not in (held[name] if name in held else names(file)):
                raise ModelError(f"{path}: {weight} should be in {name}, and that file holds no such weight.")


def complete(source: str, told: Mapping[str, Any], *, partial: bool, reshaped: bool) -> None:
    """Refuse weights that were missing, left over or of another shape, unless they were asked for; then say which."""
    shapes = [] if reshaped else told["mismatched_keys"]
    wrong = {
        "missing": sorted(told["missing_keys"]),
        "not in the model": sorted(told["unexpected_keys"]),
        "of another shape": sorted(one[0] if isinstance(one, tuple) else str(one) for one in shapes),
    }
    said = "; ".join(f"{len(found)} {what}: {_listed(found)}" for what, found in wrong.items() if found)
    if said and not partial:
        raise ModelError(
            f"{source} does not fit its model: weights {said}. What is missing would be random numbers; pass"
            " partial=True to load it all the same."
        )
    if said:
        print(f"interp: {source} fits its model in part: weights {said}.", file=sys.stderr)


def _listed(found: list[str]) -> str:
    return ", ".join(found[:SHOWN]) + (f" and {len(found) - SHOWN} more" if len(found) > SHOWN else "")


@contextmanager
def built(source: str | Path) -> Iterator[None]:
    """While inside, files that transformers cannot use are refused in a sentence; want of memory stays what it is."""
    import torch
    from huggingface_hub.errors import StrictDataclassError

    try:
        yield
    except (InterpError, OSError, torch.OutOfMemoryError):
        raise
    except (StrictDataclassError, AssertionError, *MISREAD) as why:
        said = f"{type(why).__name__}: {' '.join(str(why).split()):.800}"
        raise ModelError(f"{source} cannot be loaded: transformers says {said}") from why
