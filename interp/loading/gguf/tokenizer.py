"""The tokenizer in a GGUF file, built from its vocabulary by the rules that the file names.

A file names how text is cut before merges (`tokenizer.ggml.pre`) and does not say it; the rules are those that
llama.cpp has under these names, and an unknown name is refused: cut otherwise, digits and runs of spaces give other
tokens without a sign. SmolLM2 takes digits one by one first, so that spaces before a number stay together, where
transformers' own reader cuts as GPT-2 does. Limits: byte-level BPE and SentencePiece's BPE; Unigram and WordPiece no.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from interp.hooks.errors import ModelError
from interp.loading.gguf.header import Header

CONTROL, USER_DEFINED, BYTE = 3, 4, 6
SPACE = "▁"
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2 = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@dataclass(frozen=True)
class Cut:
    """How a byte-level vocabulary cuts text before merges, and what it does unless the file says otherwise."""

    split: str | None = None
    """A pattern; without one, GPT-2's."""
    digits: bool = False
    """Each digit is a piece, before anything else."""
    whole_words: bool = False
    """A piece that is a token stays one, whatever the merges."""
    bos: bool = False


CUTS: Mapping[str, Cut] = {
    "gpt-2": Cut(),
    "smollm": Cut(digits=True),
    "starcoder": Cut(digits=True),
    **dict.fromkeys(("llama-bpe", "llama3", "llama-v3"), Cut(LLAMA3, whole_words=True, bos=True)),
    **dict.fromkeys(("qwen2", "deepseek-r1-qwen"), Cut(QWEN2)),
    "tekken": Cut(TEKKEN, whole_words=True, bos=True),
}


def tokenizer_of(header: Header) -> Any:
    """A tokenizer of transformers; None where the file has none."""
    kind = header.facts.get("tokenizer.ggml.model", "none")
    if kind in ("none", "no_vocab"):
        return None
    builders = {"gpt2": _byte_level, "llama": _sentencepiece}
    if kind not in builders:
        raise ModelError(f"{header.path} has a tokenizer of kind {kind!r}: expected gpt2 (byte-level) or llama (BPE).")
    if len(_fact(header, "tokens")) > header.tensors["token_embd.weight"].shape[0]:
        raise ModelError(f"{header.path} has more tokens than rows of token_embd.weight: it is damaged.")
    backend, bos = builders[kind](header)
    _add(header, backend)
    return _named(header, backend, bos)


def _fact(header: Header, name: str, default: Any = None) -> Any:
    found = header.facts.get(f"tokenizer.ggml.{name}", default)
    if found is None:
        raise ModelError(f"{header.path} does not say tokenizer.ggml.{name}: its tokenizer cannot be built.")
    return found


def _byte_level(header: Header) -> tuple[Any, bool]:
    from tokenizers import Tokenizer, decoders, models

    pre = _fact(header, "pre")
    if pre not in CUTS:
        raise ModelError(
            f"{header.path} cuts text by the rule {pre!r}, which is not known here ({', '.join(sorted(CUTS))} are):"
            " digits and spaces would give other tokens than the model's own."
        )
    cut = CUTS[pre]
    if _fact(header, "add_space_prefix", False):
        raise ModelError(f"{header.path} puts a space before every text, which no byte-level rule here does.")
    merges = [tuple(merge.split(" ")) for merge in _fact(header, "merges")]
    vocabulary = {token: index for index, token in enumerate(_fact(header, "tokens"))}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, ignore_merges=cut.whole_words))
    backend.pre_tokenizer, backend.decoder = _pre_tokenizer(cut), decoders.ByteLevel()
    return backend, cut.bos


def _pre_tokenizer(cut: Cut) -> Any:
    from tokenizers import Regex, pre_tokenizers

    bytes_ = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=cut.split is None)
    first: list[Any] = [pre_tokenizers.Digits(individual_digits=True)] if cut.digits else []
    if cut.split is not None:
        first.append(pre_tokenizers.Split(Regex(cut.split), behavior="isolated"))
    return pre_tokenizers.Sequence([*first, bytes_])


def _sentencepiece(header: Header) -> tuple[Any, bool]:
    """Spaces are marks, and one goes before the text unless the file says no; unknown text becomes bytes."""
    from tokenizers import Tokenizer, decoders, models, normalizers

    gemma = header.architecture.startswith("gemma")
    prefix = _fact(header, "add_space_prefix", not gemma)
    if header.facts.get("tokenizer.ggml.remove_extra_whitespaces"):
        raise ModelError(f"{header.path} removes spaces, and interp does not know how: its tokens could be wrong.")
    tokens = list(_fact(header, "tokens"))
    if gemma:  # runs of spaces are stored as such, and merges are made in the order of the vocabulary
        tokens = [SPACE * len(token) if token and not token.strip(" ") else token for token in tokens]
    scores = range(0, -len(tokens), -1) if gemma else _fact(header, "scores")
    unknown = header.facts.get("tokenizer.ggml.unknown_token_id", 0)
    model = models.BPE(
        vocab={token: index for index, token in enumerate(tokens)}, merges=_merges(tokens, scores),
        unk_token=tokens[unknown], fuse_unk=True, byte_fallback=BYTE in _fact(header, "token_type"),
    )  # fmt: skip
    backend = Tokenizer(model)
    marks = [normalizers.Prepend(SPACE)] if prefix else []
    backend.normalizer = normalizers.Sequence([*marks, normalizers.Replace(" ", SPACE)])
    plain = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    backend.decoder = decoders.Sequence([*plain, *([decoders.Strip(" ", 1, 0)] if prefix else [])])
    return backend, True


def _merges(tokens: Sequence[str], scores: Sequence[float | int]) -> list[tuple[str, str]]:
    """Every cut of a token into two tokens, the best token first."""
    known = set(tokens)
    found = [
        (-score, -at, token[:at], token[at:])
        for token, score in zip(tokens, scores, strict=True)
        for at in range(1, len(token))
        if token[:at] in known and token[at:] in known
    ]
    return [(left, right) for _, _, left, right in sorted(found, key=lambda one: one[:2])]


def _add(header: Header, backend: Any) -> None:
    """Tokens that are found in the text before it is cut."""
    from tokenizers import AddedToken

    kinds = list(zip(_fact(header, "tokens"), _fact(header, "token_type"), strict=True))
    control = [token for token, kind in kinds if kind == CONTROL]
    user = [token for token, kind in kinds if kind == USER_DEFINED and backend.token_to_id(token) is not None]
    backend.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in control])
    backend.add_tokens([AddedToken(token, normalized=False, special=False) for token in user])


def _named(header: Header, backend: Any, bos: bool) -> Any:
    from tokenizers import processors
    from transformers import PreTrainedTokenizerFast

    tokens = _fact(header, "tokens")
    keys = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}
    ids = {name: header.facts.get(f"tokenizer.ggml.{key}_token_id") for name, key in keys.items()}
    named = {name: None if index is None else tokens[index] for name, index in ids.items()}
    ends = [named[f"{end}_token"] if _fact(header, f"add_{end}_token", default) else None
            for end, default in (("bos", bos), ("eos", False))]  # fmt: skip
    if any(ends):
        backend.post_processor = processors.TemplateProcessing(
            single=" ".join(piece for piece in (ends[0], "$A", ends[1]) if piece),
            special_tokens=[(token, backend.token_to_id(token)) for token in ends if token],
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        **named,
        clean_up_tokenization_spaces=False,
        model_max_length=header.facts.get(f"{header.architecture}.context_length"),
        chat_template=header.facts.get("tokenizer.chat_template"),
    )
