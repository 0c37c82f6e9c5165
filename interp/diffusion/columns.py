"""Which tokens of a prompt hold a word, counted among the words that the denoiser reads."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from interp.diffusion.denoiser import refuse_other
from interp.hooks.errors import InputsError
from interp.hooks.inputs.token_text import Decoder, covering, locate, not_found, read

if TYPE_CHECKING:
    from interp.model import Model

BY_PIPELINE: dict[str, tuple[tuple[str, int], ...]] = {
    "Flux": (("tokenizer_2", 0),),
    "StableDiffusion3": (("tokenizer", 0), ("tokenizer_3", 77)),
    "HunyuanVideo": (),
}
"""By the start of the pipeline's name: its tokenizers, and where their tokens start; `tokenizer` at 0 elsewhere.
HunyuanVideo puts the prompt into a template that is an argument of its call."""


def columns(model: Model, prompt: str, word: str, *, occurrence: int = 1) -> list[int]:
    """The columns of a word's tokens in `encoder_hidden_states`, as `maps(words={word: ...})` takes them."""
    refuse_other(model)
    pipeline = model.processor
    kind = type(pipeline).__name__
    known = next((found for start, found in BY_PIPELINE.items() if kind.startswith(start)), (("tokenizer", 0),))
    found = [(tokenizer, start) for name, start in known if (tokenizer := getattr(pipeline, name, None)) is not None]
    if not found:
        raise InputsError(
            f"which tokens of {kind} hold a word is not known here: attach the pipeline, with its tokenizers, or say"
            " the columns yourself."
        )
    template = getattr(pipeline, "prompt_template_encode", "{}")  # Qwen-Image cuts its start off again
    cut = int(getattr(pipeline, "prompt_template_encode_start_idx", 0))
    columns: list[int] = []
    for tokenizer, start in found:
        columns += [start + n - cut for n in _within(tokenizer, prompt, word, occurrence, template)]
    return columns


def _within(tokenizer: Any, prompt: str, word: str, occurrence: int, template: str) -> list[int]:
    """The positions of a word's tokens as this tokenizer cuts the prompt in its template."""
    before = template.partition("{}")[0]
    ids = list(tokenizer(template.format(prompt))["input_ids"])
    text, offsets = read(Decoder(tokenizer), ids, [True] * len(ids))
    place = locate(text, word, occurrence if occurrence < 0 else occurrence + before.count(word))
    span = covering(offsets, *place) if place else None
    if span is None:
        raise not_found(0, text, word, occurrence)
    return list(range(*span))
