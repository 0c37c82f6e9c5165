"""Which words a model says in one token: checked against its tokenizer, never assumed.

Words are written as in a text, with the blank before them (" Mary", but "32" after "17"), and tokenised behind an
anchor they do not merge with. A class label of an image classifier counts as one token. Without a model every word
passes, and the check comes when the task is put on one. Cost: no forward pass. Limits: a word that merges with the text
before it in the prompt is not seen here; the lengths of whole prompts are compared as well.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

from interp.hooks.denoisers.calls import denoises
from interp.hooks.inputs.arguments import vocabulary
from interp.kernels.errors import InterpError
from interp.preparing.rows import after


class TaskError(InterpError, ValueError):
    """A task that cannot be made, or does not fit the model it is put on."""


@runtime_checkable
class Host(Protocol):
    """What a task needs of a model."""

    module: Any
    processor: Any

    @property
    def tokenizer(self) -> Any:
        """The tokenizer, or an object that is used as one."""

    def prepare(self, given: Any, *, images: Any = None, chat: Any = None, continuation: Any = None) -> Any:
        """Frozen inputs."""

    def run(self, inputs: Any) -> Any:
        """A tape with `["logits"]`."""


class Vocabulary:
    """The words of one model."""

    def __init__(self, model: Host | None) -> None:
        if model is not None and denoises(model.module):
            raise TaskError(f"expected a model that answers in words or classes; {type(model.module).__name__} draws")
        self.model = model
        tokenizer = None if model is None else model.tokenizer
        self.tokenizer: Any = tokenizer if hasattr(tokenizer, "convert_ids_to_tokens") else None
        self.labels: dict[str, int] = {}
        if model is not None and self.tokenizer is None:
            self.labels = dict(getattr(getattr(model.module, "config", None), "label2id", None) or {})

    def ids(self, word: str | int) -> tuple[int, ...]:
        """The ids of a word as it is said after another."""
        if isinstance(word, int):
            self._must_have(word)
            return (word,)
        if self.tokenizer is not None:
            return tuple(int(i) for i in after(self.tokenizer, word))
        if word.strip() in self.labels:
            return (self.labels[word.strip()],)
        known = f"its classes are {', '.join(self.labels)}" if self.labels else "it has no tokenizer"
        raise TaskError(f"expected a model that can say {word!r}; {known}: attach it with its tokenizer or processor")

    def _must_have(self, one: int) -> None:
        """Refuse an id that the model has no logit for; without a model, one that no model has."""
        config = None if self.model is None else getattr(self.model.module, "config", None)
        classes = len(getattr(config, "id2label", None) or ()) if self.tokenizer is None else 0
        size = vocabulary(config) or classes or None
        if one < 0 or (size is not None and one >= size):
            rest = "" if size is None else f" and below {size}, which is how many this model has"
            raise TaskError(f"expected ids from 0 on{rest}, got {one}")

    def unknown(self, ids: Sequence[int]) -> bool:
        """Whether the tokenizer has no token for some of a text."""
        unk = getattr(self.tokenizer, "unk_token_id", None)
        opening = (getattr(self.tokenizer, "bos_token_id", None), getattr(self.tokenizer, "eos_token_id", None))
        return unk is not None and unk not in opening and unk in ids

    def is_single(self, word: str | int) -> bool:
        """Whether a word is exactly one known token; without a model, yes."""
        if self.model is None:
            return True
        ids = self.ids(word)
        return len(ids) == 1 and not self.unknown(ids)

    def single(self, word: str | int, what: str = "word") -> int:
        """The id of a word, or an error that shows its tokens."""
        ids = self.ids(word)
        if len(ids) == 1 and not self.unknown(ids):
            return ids[0]
        if self.unknown(ids):
            raise TaskError(f"expected {what}s this tokenizer knows, and it has no token for {word!r}")
        pieces = [self.tokenizer.convert_ids_to_tokens(i) for i in ids]
        raise TaskError(f"expected one token for the {what} {word!r}, got {len(ids)}: {pieces}; choose another {what}")

    def pool(self, words: Sequence[str], what: str, *, least: int) -> tuple[str, ...]:
        """Those of the toolkit's words that are one token after a blank; an error where too few are left."""
        if self.model is not None and self.tokenizer is None:
            self.ids(f" {words[0]}")
        kept = tuple(word for word in words if self.is_single(f" {word}"))
        if len(kept) < least:
            raise TaskError(
                f"expected at least {least} {what}s of one token each, and this tokenizer has {len(kept)} of the"
                f" {len(words)} built in; give your own, or use a task this model's vocabulary was made for"
            )
        return kept

    def given(self, words: Sequence[str], what: str, *, least: int) -> tuple[str, ...]:
        """Words of the caller, each checked."""
        if len(words) < least:
            raise TaskError(f"expected at least {least} {what}s, got {len(words)}")
        if self.model is not None:
            for word in words:
                self.single(f" {word}", what)
        return tuple(words)

    def choose(self, own: Sequence[str] | None, words: Sequence[str], what: str, *, least: int) -> tuple[str, ...]:
        """The caller's words where given, the built-in ones that fit otherwise."""
        return self.pool(words, what, least=least) if own is None else self.given(own, what, least=least)
