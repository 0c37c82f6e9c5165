"""The config of a model in a GGUF file: every fact that the file states about the architecture is used, or refused by
its name.

What a file leaves out cannot be seen from what it states: transformers' own reader takes the class's default and says
nothing. Of that, the cases that leave a trace are errors here (the rope scaling of Llama-3.1 and 3.2 is a tensor,
Gemma-3 of 4 B and more is known by its layers). Others leave none: Mistral is written as `llama`, and the window of
4,096 tokens that the first Mistral-7B has is not in the file, so it is read as a Llama without a window, which is
another model on longer texts. Where that matters, take the original checkpoint.
"""

from __future__ import annotations

from typing import Any

from interp.hooks.errors import ModelError
from interp.loading.gguf.architectures import (
    ARCHITECTURES,
    HEAD_DIM,
    NOTHING,
    OPTIONAL,
    PACKED,
    Architecture,
)
from interp.loading.gguf.header import Header

OUTPUT, EMBEDDING, ROPE_FACTORS = "output.weight", "token_embd.weight", "rope_freqs.weight"
INSTEAD = "take the original checkpoint"


def architecture(header: Header) -> Architecture:
    """The row for this file."""
    named = header.architecture
    if header.facts.get("general.type", "model") != "model":
        raise ModelError(f"{header.path} is of type {header.facts['general.type']!r}: expected a model.")
    if named in ARCHITECTURES:
        return ARCHITECTURES[named]
    why = "transformers keeps it as packed blocks, which cannot be read head by head" if named in PACKED else ""
    raise ModelError(
        f"{header.path} holds architecture {named!r}{f' ({why})' if why else ''}: from a GGUF this version reads"
        f" {', '.join(sorted(ARCHITECTURES))}. Load it yourself and use interp.attach(model), or {INSTEAD}."
    )


def config_of(header: Header) -> Any:
    """The config of the class, as transformers makes it from what the file says."""
    import transformers

    row = architecture(header)
    _refuse(header, row)
    settings = _settings(header, row)
    cls = getattr(transformers, row.cls).config_class
    if "num_attention_heads" in settings:
        settings["head_dim"] = _head_dim(header, settings)
    rows = header.tensors[EMBEDDING].shape[0] if EMBEDDING in header.tensors else None
    if rows is None:
        raise ModelError(f"{header.path} holds no {EMBEDDING}, which {row.cls} needs.")
    _agree(header, "vocab_size", rows)
    return cls(
        **settings,
        **_specials(header),
        vocab_size=rows,
        tie_word_embeddings=OUTPUT not in header.tensors,
        architectures=[row.cls],
        dtype="float32",
    )


def _refuse(header: Header, row: Architecture) -> None:
    """Facts that nothing here uses, and what is known to be missing."""
    if ROPE_FACTORS in header.tensors:
        raise ModelError(
            f"{header.path} holds {ROPE_FACTORS}: its rope is scaled, as in Llama-3.1 and 3.2, by a rule that the file"
            f" does not say; {INSTEAD}."
        )
    start = f"{header.architecture}."
    known = {*row.keys, *HEAD_DIM, "vocab_size"}
    for key, value in header.facts.items():
        short = key.removeprefix(start)
        if not key.startswith(start) or short in known:
            continue
        if short.startswith("rope.scaling.") and NOTHING.get(short) != value:
            raise ModelError(f"{header.path} scales its rope ({key} = {value}): that is not read from it; {INSTEAD}.")
        wanted = {**NOTHING, **row.must}
        if short not in wanted or wanted[short] != value:
            only = f", where only {wanted[short]} is known" if short in wanted else ", which nothing here reads"
            raise ModelError(f"{header.path} says {key} = {value!r:.80}{only}; {INSTEAD}.")
    if missing := row.refused(header):
        raise ModelError(f"{header.path} does not say {missing}; {INSTEAD}.")


def _settings(header: Header, row: Architecture) -> dict[str, Any]:
    """The file's facts under the config's names."""
    found: dict[str, Any] = {}
    for key, name in row.keys.items():
        full = f"{header.architecture}.{key}"
        if full not in header.facts:
            if key not in OPTIONAL:
                raise ModelError(f"{header.path} does not say {full}, which {row.cls} needs; {INSTEAD}.")
            continue
        value = header.facts[full]
        if not isinstance(value, int | float):
            raise ModelError(f"{header.path} says {full} layer by layer, which {row.cls} cannot have; {INSTEAD}.")
        found[name] = value
    if "num_attention_heads" in found:
        found.setdefault("num_key_value_heads", found["num_attention_heads"])
        found.setdefault("rope_theta", 10000.0)
    return found


def _head_dim(header: Header, settings: dict[str, Any]) -> int:
    """The width of a head: said once or more, always the same, or the model's width by its heads."""
    said = [int(header.facts[key]) for short in HEAD_DIM if (key := f"{header.architecture}.{short}") in header.facts]
    width = said[0] if said else settings["hidden_size"] // settings["num_attention_heads"]
    for short in HEAD_DIM:
        _agree(header, short, width)
    return width


def _agree(header: Header, short: str, value: int) -> None:
    key = f"{header.architecture}.{short}"
    if header.facts.get(key, value) != value:
        raise ModelError(
            f"{header.path} says {key} = {header.facts[key]} where the rest of it says {value}; {INSTEAD}."
        )


def _specials(header: Header) -> dict[str, int | None]:
    """Ids of special tokens; where the file has none, none, and not the class's default."""
    names = {"bos_token_id": "bos", "eos_token_id": "eos", "pad_token_id": "padding"}
    return {name: header.facts.get(f"tokenizer.ggml.{said}_token_id") for name, said in names.items()}
