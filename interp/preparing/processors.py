"""The processor of a checkpoint, whichever of transformers' three kinds it is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

KINDS = (
    ("processor_config.json", "AutoProcessor"),
    ("preprocessor_config.json", "AutoProcessor"),
    ("tokenizer.json", "AutoTokenizer"),
    ("tokenizer_config.json", "AutoTokenizer"),
)


def processor_of(source: str, common: dict[str, Any]) -> Any:
    """A processor where there are images or sound, else a tokenizer, else None; what a directory holds decides."""
    import transformers

    folder = Path(source)
    if not folder.is_dir():
        return transformers.AutoProcessor.from_pretrained(source, **common)
    for file, kind in KINDS:
        if (folder / file).exists():
            return getattr(transformers, kind).from_pretrained(source, **common)
    return None
