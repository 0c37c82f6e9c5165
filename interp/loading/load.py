"""Read a model by name: from the hub, from a local directory in hub layout, or from the zoo that ships with the
toolkit.

The class is the one the checkpoint says it was saved from; where it does not say, the first of transformers' auto
classes that takes the config. Weights come from safetensors; a pickle is refused unless the caller allows it, and so
is code that comes with a checkpoint.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from interp.hooks.errors import ModelError
from interp.loading.cut_models import is_own
from interp.loading.cut_models import read as read_cut
from interp.model import Model, attach

AUTO = (
    "AutoModelForCausalLM",
    "AutoModelForImageTextToText",
    "AutoModelForSeq2SeqLM",
    "AutoModelForSpeechSeq2Seq",
    "AutoModelForImageClassification",
    "AutoModelForZeroShotImageClassification",
    "AutoModelForMaskedLM",
    "AutoModelForSequenceClassification",
    "AutoModel",
)
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")


def load(
    name: str | Path,
    *,
    device: str | None = None,
    dtype: Any = "auto",
    attn: str | None = None,
    device_map: Any = None,
    revision: str | None = None,
    offline: bool = False,
    pickle: bool = False,
    remote_code: bool = False,
    **how: Any,
) -> Model:
    """An attached model in eval mode. `name` is "zoo:ioi", a local directory, or a hub name such as "gpt2".

    `attn` chooses the attention implementation, as `attn_implementation` of transformers does; `device_map` places a
    large model; `pickle=True` and `remote_code=True` say that you trust where the checkpoint comes from.
    """
    _there(device)
    if str(name).startswith("zoo:"):
        from interp.zoo.catalog import build

        given = {"device_map": device_map, "revision": revision, **how}
        return _ready(build(str(name)), device=device, dtype=dtype, attn=attn, given=given)
    folder = Path(name).expanduser()
    local = folder.is_dir()
    if local:
        _complete(folder, pickle=pickle)
    elif _looks_like_a_path(str(name)):
        raise ModelError(f"no directory {folder}: expected one in hub layout, with config.json and *.safetensors.")
    common = {"revision": revision, "local_files_only": local or offline, "trust_remote_code": remote_code}
    source = str(folder) if local else str(name)
    if local and (read := _reader(folder)) is not None:
        given = {"device_map": device_map, **how}
        return _ready((read(folder), _processor(source, common)), device=device, dtype=dtype, attn=attn, given=given)
    module = _class(source, common).from_pretrained(
        source,
        dtype=dtype,
        attn_implementation=attn,
        device_map=device_map,
        use_safetensors=None if pickle else True,
        **common,
        **how,
    )
    if device is not None:
        module = module.to(device)
    return attach(module.eval(), _processor(source, common))


def _reader(folder: Path) -> Any:
    """What reads a directory that transformers cannot: a cut model, or the toolkit's own attention-only class."""
    if is_own(folder):
        return read_cut
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    if config.get("architectures") == ["AttentionOnly"]:
        from interp.zoo.plain import read as read_plain

        return read_plain
    return None


def _ready(built: tuple[Any, Any], *, device: str | None, dtype: Any, attn: str | None, given: dict[str, Any]) -> Model:
    """A model that came without `from_pretrained`, with those options that can still be met; others are refused."""
    module, processor = built
    late = sorted(option for option, value in given.items() if value is not None)
    if attn is not None and not hasattr(module, "set_attn_implementation"):
        late = ["attn", *late]
    if late:
        raise ModelError(
            f"{type(module).__name__}: expected dtype, device or attn (of a transformers class), got {', '.join(late)};"
            " `interp zoo export NAME DIR` writes a directory for transformers' own options."
        )
    if attn is not None:
        module.set_attn_implementation(attn)
    module = module.to(device=device, dtype=None if dtype == "auto" else _dtype(dtype))
    return attach(module, processor)


def _there(device: str | None) -> None:
    """Refuse a device that there is none of before anything is read."""
    import torch

    if device is None:
        return
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as why:
        first = str(why).strip().splitlines()[0]
        raise ModelError(f"no device {device!r} here: {first} Leave it out, or give cpu, cuda or cuda:1.") from why


def _dtype(dtype: Any) -> Any:
    """As transformers reads it: a torch dtype or its name."""
    import torch

    return getattr(torch, dtype) if isinstance(dtype, str) else dtype


def _looks_like_a_path(name: str) -> bool:
    return name.startswith((".", "/", "~")) or name.count("/") > 1


def _complete(folder: Path, *, pickle: bool) -> None:
    if not (folder / "config.json").exists():
        raise ModelError(f"{folder} has no config.json: expected a directory in hub layout.")
    if any(folder.glob("*.safetensors")) or pickle:
        return
    pickles = [found.name for pattern in PICKLES for found in folder.glob(pattern)]
    if pickles:
        raise ModelError(
            f"{folder} holds its weights in {pickles[0]}, a pickle, which can run code when opened: convert it to"
            " safetensors, or pass pickle=True if you trust it."
        )
    raise ModelError(f"{folder} has a config but no *.safetensors.")


def _class(source: str, common: dict[str, Any]) -> Any:
    import transformers

    config = transformers.AutoConfig.from_pretrained(source, **common)
    for name in config.architectures or ():
        found = getattr(transformers, name, None)
        if found is not None:
            return found
    for name in AUTO:
        auto = getattr(transformers, name)
        if type(config) in auto._model_mapping:
            return auto
    raise ModelError(
        f"{source}: transformers has no model for {type(config).__name__}; load it yourself and use"
        " interp.attach(model)."
    )


def _processor(source: str, common: dict[str, Any]) -> Any:
    """What turns text and images into inputs; None where the checkpoint has nothing of the kind."""
    from interp.preparing.processors import processor_of

    return processor_of(source, common)
