"""Models that transformers reads itself: a hub name, or a directory in hub layout.

The class is the one the checkpoint says it was saved from; where it does not say, the first of transformers' auto
classes that takes the config. Weights come from safetensors; a pickle is refused unless the caller allows it, and so
are code that comes with a checkpoint, and weights that it lacks or has over.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from interp.hooks.errors import ModelError
from interp.loading.intact import built, complete, intact
from interp.loading.options import Options
from interp.preparing.processors import processor_of

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


def read(source: str | Path, options: Options) -> tuple[Any, Any]:
    """The module, in eval mode, and its processor."""
    local = isinstance(source, Path)
    if local:
        _complete(Path(source), pickle=options.pickle)
        intact(Path(source))
    common = options.common(local=local)
    with built(source):
        module, told = _class(str(source), common).from_pretrained(
            str(source),
            dtype=options.dtype,
            attn_implementation=options.attn,
            device_map=options.device_map,
            use_safetensors=None if options.pickle else True,
            **common,
            **{**options.how, "output_loading_info": True, "ignore_mismatched_sizes": True},
        )
    reshaped = bool(options.how.get("ignore_mismatched_sizes"))
    complete(str(source), told, partial=options.partial, reshaped=reshaped)
    if options.device is not None:
        module = module.to(options.device)
    with built(source):
        return module.eval(), processor_of(str(source), common)


def _complete(folder: Path, *, pickle: bool) -> None:
    if not (folder / "config.json").exists():
        raise ModelError(f"{folder} has no config.json: expected a directory in hub layout, or one that holds a GGUF.")
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
        if isinstance(found, type) and issubclass(found, transformers.PreTrainedModel):
            return found
    for name in AUTO:
        auto = getattr(transformers, name)
        if type(config) in auto._model_mapping:
            return auto
    raise ModelError(
        f"{source}: transformers has no model for {type(config).__name__}; load it yourself and use"
        " interp.attach(model)."
    )
