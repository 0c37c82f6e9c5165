"""Cut models on disk.

Where transformers' own class, built from the config, has the shapes of the cut model, the directory is a plain one that
`AutoModel` reads. Otherwise (layers with different numbers of heads, or a class that takes the width of a head from the
number of heads) it is ours: the config as it was, the tensors as they are, and in `pruned.json` the class, the numbers
of heads its modules go by, and which heads stayed; `interp.load` reads it, and transformers refuses it for its shapes.
What was written is read back and compared with the model each time.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import nn

from interp.hooks.errors import ModelError
from interp.hooks.survey.answers import answer
from interp.loading.cut_models import COUNTS, FORMAT, NOTE, WEIGHTS
from interp.loading.load import load
from interp.pruning.cut import answered
from interp.pruning.fits import fits
from interp.saving import renamed, whole

if TYPE_CHECKING:
    from interp.model import Model

Layout = Literal["transformers", "interp"]


def save(own: Model, directory: str | Path, about: Mapping[str, Any]) -> Path:
    """Write a cut model and what is to be said about it."""
    to = Path(directory)
    if to.exists() and any(to.iterdir()):
        raise ModelError(f"{to} is not empty: a model is written into a new or empty directory.")
    with whole(to) as folder:
        _fill(own, folder, about)
    return to


def _fill(own: Model, folder: Path, about: Mapping[str, Any]) -> None:
    module = own.module
    plain = fits(module, getattr(module, "config", None))
    layout: Layout = "transformers" if plain else "interp"
    more = {} if plain else _write(module, folder)
    if plain:
        module.save_pretrained(folder)  # type: ignore[operator]
    if own.processor is not None:
        own.processor.save_pretrained(folder)
    note = {"format": FORMAT, "layout": layout, "class": type(module).__name__, **more, **about}
    renamed(folder / NOTE, json.dumps(note, indent=1, default=str).encode())
    _same(own, folder)


def _write(module: nn.Module, folder: Path) -> dict[str, Any]:
    """Config and tensors; of tensors with two names the first one's."""
    from safetensors.torch import save_file

    config: Any = module.config
    if hasattr(config, "save_pretrained"):
        config.save_pretrained(folder)
    else:
        said = {"architectures": [type(module).__name__], **asdict(config)}
        (folder / "config.json").write_text(json.dumps(said, indent=1), encoding="utf-8")
    how: Any = getattr(module, "generation_config", None)
    if how is not None:
        how.save_pretrained(folder)
    kept: dict[str, torch.Tensor] = {}
    first: dict[int, str] = {}
    for name, value in module.state_dict().items():
        if value.numel() and first.setdefault(value.data_ptr(), name) == name:
            kept[name] = value.contiguous()
    save_file(kept, str(folder / WEIGHTS))
    tied = [name for name in module.state_dict() if name not in kept]
    return {"attributes": _attributes(module), "tied": tied}


def _attributes(module: nn.Module) -> dict[str, dict[str, int]]:
    found = {
        path: {name: child.__dict__[name] for name in COUNTS if type(child.__dict__.get(name)) is int}
        for path, child in module.named_modules()
    }
    return {path: numbers for path, numbers in found.items() if numbers}


def _same(own: Model, folder: Path) -> None:
    """What was written, read again, says what the model says."""
    attn = getattr(getattr(own.module, "config", None), "_attn_implementation", None)
    again = load(folder, attn=attn)
    again.module.to(own.device)
    wanted = answered(own)
    with torch.no_grad():
        found = answer(again.module(**again.called_with(own.example())))
    gap = float((found.double() - wanted.double()).abs().max())
    if not gap <= 64 * torch.finfo(wanted.dtype).eps * max(1.0, float(wanted.abs().max())):
        raise ModelError(f"{folder}, read again, is {gap:.3g} from the model that was written: do not use it.")
