"""Which model is among some files: a directory in hub layout, a GGUF file, or the parts of one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from interp.hooks.errors import ModelError
from interp.loading.parts import Parts, Single, parts_among

GGUF, SAFETENSORS = ".gguf", ".safetensors"


def model_among(files: Sequence[Path], what: str) -> Path | Single | Parts:
    """The one model among the files; none and several are refused by name."""
    folders = {file.parent for file in files if file.name == "config.json"}
    hubs = sorted({f.parent for f in files if f.suffix == SAFETENSORS} & folders)
    singles = [Single(file) for file in sorted(files) if file.suffix == GGUF]
    found: list[Path | Single | Parts] = [*hubs, *singles, *parts_among(files, what)]
    if len(found) == 1:
        return found[0]
    if not found:
        raise ModelError(f"{what} holds no weights: expected a *.gguf, its parts, or config.json with *.safetensors.")
    said = ", ".join(str(one) if isinstance(one, Path) else str(getattr(one, "path", one.name)) for one in found)
    raise ModelError(f"{what} holds {len(found)} models: give the path of one of {said}.")


def holds_gguf(folder: Path) -> bool:
    """Whether a GGUF, whole or in parts, is what a directory has to offer."""
    names = [file.name for file in folder.iterdir()]
    return any(GGUF in name for name in names) and not any(name.endswith(SAFETENSORS) for name in names)
