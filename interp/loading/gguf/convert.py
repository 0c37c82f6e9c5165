"""A GGUF file written as a directory in hub layout: config, float32 weights, tokenizer, settings of generation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from interp.loading.gguf.config import architecture, config_of
from interp.loading.gguf.header import Header
from interp.loading.gguf.tokenizer import tokenizer_of
from interp.loading.gguf.weights import names, skeleton, write


def checked(header: Header) -> nn.Module:
    """The class without weights, where the file has all of them and says all that the class needs."""
    module = skeleton(config_of(header))
    names(header, module)
    return module


def convert(header: Header, module: nn.Module, folder: Path) -> None:
    """Write what `from_pretrained` of plain transformers reads."""
    config: Any = module.config
    tokenizer = tokenizer_of(header)
    config.save_pretrained(folder)
    _generation(header, config).save_pretrained(folder)
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)
    write(header, architecture(header), module, folder)


def _generation(header: Header, config: Any) -> Any:
    """Stop at the end of the text, and at the end of a turn where the file names one."""
    from transformers import GenerationConfig

    ends = [config.eos_token_id, header.facts.get("tokenizer.ggml.eot_token_id")]
    stops = list(dict.fromkeys(int(end) for end in ends if end is not None))
    stop = stops if len(stops) > 1 else next(iter(stops), None)
    return GenerationConfig(bos_token_id=config.bos_token_id, eos_token_id=stop, pad_token_id=config.pad_token_id)
