"""What a decoder that writes down speech reads before the text: start, language, task, and that there are no times.

Radford et al. 2022 (arXiv 2212.04356) put these tokens in front of every text Whisper is trained on, so a text is
judged after them. What is not given is taken from the tokenizer (`language=`, `task=` of its own) and then from the
generation config; without a language the model is not where it was trained, and that is said. Models that know English
alone read the start and the last token. Cost: no forward pass (Whisper's own detection of a language is one).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from interp.hooks.errors import InputsError
from interp.hooks.sites import nearest

TASKS = ("transcribe", "translate")
TIMELESS = "<|notimestamps|>"
Warn = Callable[[str, str], None]


def prefixes(
    module: Any, tokenizer: Any, start: int, batch: int, *, language: Any, task: str | None, warn: Warn
) -> list[list[int]]:
    """The ids that each row's text comes after, all rows equally many."""
    known = tokenizer.get_vocab() if callable(getattr(tokenizer, "get_vocab", None)) else {}
    speech = getattr(getattr(module, "config", None), "model_type", None) == "whisper"
    if not speech or TIMELESS not in known:
        if language is not None or task is not None:
            what = "this tokenizer has no tokens for them" if speech else "this model is not Whisper"
            raise InputsError(
                f"language= and task= are what Whisper's decoder reads first, and {what}: leave them out."
            )
        return [[start]] * batch
    settings = getattr(module, "generation_config", None)
    several = _several(settings, known)
    if not several and (language is not None or task is not None):
        raise InputsError("this Whisper knows English alone and reads no language or task: leave them out.")
    chosen = _first(language, getattr(tokenizer, "language", None), getattr(settings, "language", None))
    named = [_code(one, known) for one in _per_row(chosen, batch)] if several else [None] * batch
    if several and None in named:
        warn(
            "language",
            "no language is given, so the decoder starts without one, as Whisper was never trained: give"
            " language='en' (and task='translate' where English is wanted of another language)",
        )
    doing = _task(_first(task, getattr(tokenizer, "task", None), getattr(settings, "task", None)))
    timed = [] if getattr(tokenizer, "predict_timestamps", False) else [known[TIMELESS]]
    return [[start, *_told(code, doing, known, several=several), *timed] for code in named]


def _several(settings: Any, known: dict[str, int]) -> bool:
    """Whether the model reads languages: what its generation config says, else whether its tokenizer has them."""
    told = getattr(settings, "is_multilingual", None)
    return bool(told) if told is not None else "<|transcribe|>" in known


def _first(*given: Any) -> Any:
    return next((value for value in given if value is not None), None)


def _per_row(language: Any, batch: int) -> Sequence[Any]:
    if language is None or isinstance(language, str):
        return [language] * batch
    if len(language) != batch:
        raise InputsError(f"{len(language)} languages for a batch of {batch}: give one, or one per row.")
    return list(language)


def _code(language: str | None, known: dict[str, int]) -> str | None:
    """A language's token: from "en", "english" or "<|en|>"."""
    if language is None:
        return None
    from transformers.models.whisper.tokenization_whisper import TO_LANGUAGE_CODE

    bare = language.lower().strip("<|>")
    token = f"<|{TO_LANGUAGE_CODE.get(bare, bare)}|>"
    if token not in known or not (bare in TO_LANGUAGE_CODE or bare in TO_LANGUAGE_CODE.values()):
        here = [code for code in TO_LANGUAGE_CODE.values() if f"<|{code}|>" in known]
        raise InputsError(
            f"no language {language!r}.{nearest(bare, [*TO_LANGUAGE_CODE, *here])} This tokenizer has"
            f" {', '.join(dict.fromkeys(here))}."
        )
    return token


def _task(task: str | None) -> str | None:
    if task is not None and task not in TASKS:
        raise InputsError(f"task is one of {', '.join(TASKS)}, got {task!r}.")
    return task


def _told(code: str | None, task: str | None, known: dict[str, int], *, several: bool) -> list[int]:
    """Language and task; a language alone is transcribed."""
    if not several:
        return []
    doing = task or ("transcribe" if code is not None else None)
    return [known[token] for token in (code, doing and f"<|{doing}|>") if token is not None]
