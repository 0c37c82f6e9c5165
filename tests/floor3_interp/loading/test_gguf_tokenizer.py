"""Tokenizers in a GGUF file: digits, spaces, special tokens and chat templates by the rules that the file names."""

from __future__ import annotations

import random
from itertools import pairwise
from pathlib import Path
from typing import Any

import ggufs
import pytest
from tokenizers import pre_tokenizers

import interp
from interp.hooks.errors import ModelError

pytest.importorskip("gguf", reason="the extra gguf is not installed: pip install 'interp[gguf]'")

ALPHABET = sorted(pre_tokenizers.ByteLevel.alphabet())
MERGES = ["Ġ Ġ", "ĠĠ Ġ", "1 2", "Ġ 3", "Ġ a", "4 5"]
TOKENS = ["<end>", *ALPHABET, "ĠĠ", "ĠĠĠ", "12", "Ġ3", "Ġa", "45", "whole", "<s>", "<think>"]
KINDS = [3, *[1] * (len(TOKENS) - 3), 3, 4]


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INTERP_CACHE", str(tmp_path / "cache"))


def tokenizer(tmp_path: Path, architecture: str, kind: str, tokens: list[str], **said: Any) -> Any:
    """The tokenizer of a model that was read from a file and from the cache after it."""
    module = ggufs.model("llama")
    module.resize_token_embeddings(len(tokens), mean_resizing=False)
    weights, facts = ggufs.tensors("llama", module), ggufs.facts("llama", module.config)
    add = ggufs.vocabulary(kind, tokens, **said)
    ggufs.write(tmp_path / "m.gguf", "llama", facts, weights, tokenizer=add)
    interp.load(tmp_path / "m.gguf")
    return interp.load(tmp_path / "m.gguf").tokenizer


def byte_level(tmp_path: Path, pre: str, **said: Any) -> Any:
    special = {"bos_token_id": TOKENS.index("<s>"), "eos_token_id": 0, **said}
    return tokenizer(tmp_path, "llama", "gpt2", TOKENS, kinds=KINDS, pre=pre, merges=MERGES, **special)


@pytest.mark.parametrize(
    ("pre", "text", "pieces"),
    [
        ("gpt-2", "12 345", "12 Ġ3 45"),
        ("smollm", "12 345", "1 2 Ġ 3 4 5"),  # every digit by itself, though merges for 12, 45 and Ġ3 exist
        ("starcoder", "12 345", "1 2 Ġ 3 4 5"),
        ("qwen2", "12 345", "1 2 Ġ 3 4 5"),
        ("tekken", "12 345", "1 2 Ġ 3 4 5"),
        ("llama-bpe", "12 345", "12 Ġ 3 45"),  # up to three digits together, never with the space
        ("gpt-2", "a   7", "a ĠĠ Ġ 7"),
        ("smollm", "a   7", "a ĠĠĠ 7"),  # digits are cut out first, so all spaces before one stay together
        ("llama-bpe", "a   7", "a ĠĠ Ġ 7"),
        ("gpt-2", "  a", "Ġ Ġa"),
        ("smollm", "  a", "Ġ Ġa"),
        ("gpt-2", "whole", "w h o l e"),
        ("llama-bpe", "whole", "whole"),  # a piece that is a token stays one
        ("smollm", "a<think>1<end>", "a <think> 1 <end>"),
    ],
)
def test_text_is_cut_by_the_rule_that_the_file_names(pre: str, text: str, pieces: str, tmp_path: Path) -> None:
    found = byte_level(tmp_path, pre)
    ids = found(text, add_special_tokens=False).input_ids
    assert found.convert_ids_to_tokens(ids) == pieces.split()
    assert ids == [TOKENS.index(piece) for piece in pieces.split()]
    assert found.decode(ids) == text


@pytest.mark.parametrize(
    ("pre", "said", "opens", "closes"),
    [
        ("smollm", {}, False, False),
        ("llama-bpe", {}, True, False),
        ("llama-bpe", {"add_bos_token": False}, False, False),
        ("smollm", {"add_bos_token": True, "add_eos_token": True}, True, True),
    ],
)
def test_text_opens_and_closes_as_the_file_or_its_rule_says(
    pre: str, said: dict[str, bool], opens: bool, closes: bool, tmp_path: Path
) -> None:
    found = byte_level(tmp_path, pre, **said)
    assert found.convert_ids_to_tokens(found("b").input_ids) == ["<s>"] * opens + ["b"] + ["<end>"] * closes


def test_the_chat_template_is_the_files_own(tmp_path: Path) -> None:
    template = "{% for message in messages %}<s>{{ message['content'] }}<end>{% endfor %}"
    found = byte_level(tmp_path, "smollm", chat_template=template)
    assert found.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False) == "<s>hi<end>"
    assert (found.bos_token, found.eos_token) == ("<s>", "<end>")
    assert found.model_max_length == 128


PIECES = {
    "▁": -9.0,
    "a": -8.0,
    "b": -7.5,
    "c": -7.0,
    "ab": -1.0,
    "bc": -0.5,
    "▁a": -2.0,
    "▁ab": -3.0,
    "▁▁": -1.5,
    "7": -9.5,
}
SPM = ["<unk>", "<s>", "</s>", *[f"<0x{n:02X}>" for n in range(256)], *PIECES]


def by_score(text: str) -> list[str]:
    """SentencePiece's BPE: the neighbours that make the best piece are joined, the first of equals, until none do."""
    found = [
        piece for char in text for piece in ([char] if char in PIECES else [f"<0x{n:02X}>" for n in char.encode()])
    ]
    while True:
        pairs = [(PIECES[a + b], -i) for i, (a, b) in enumerate(pairwise(found)) if a + b in PIECES]
        if not pairs:
            return found
        at = -max(pairs)[1]
        found[at : at + 2] = ["".join(found[at : at + 2])]


@pytest.mark.parametrize("prefix", [True, False])
def test_sentencepiece_joins_by_score(prefix: bool, tmp_path: Path) -> None:
    scores = [0.0] * 259 + list(PIECES.values())
    said = {"scores": scores, "bos_token_id": 1, "eos_token_id": 2, "unknown_token_id": 0}
    said |= {} if prefix else {"add_space_prefix": False}
    kinds = [2, 3, 3, *[6] * 256, *[1] * len(PIECES)]
    found = tokenizer(tmp_path, "llama", "llama", SPM, kinds=kinds, **said)
    draw = random.Random(0)
    texts = ["  a", "a  b", "12 77", "é", " ", "7   7"]
    texts += ["".join(draw.choice("abc 7é") for _ in range(draw.randint(1, 12))) for _ in range(60)]
    for text in texts:
        ids = found(text).input_ids
        marked = ("▁" if prefix else "") + text.replace(" ", "▁")
        assert found.convert_ids_to_tokens(ids) == ["<s>", *by_score(marked)], text
        assert found.decode(ids, skip_special_tokens=True) == text


@pytest.mark.parametrize(
    ("kind", "said", "match"),
    [
        ("gpt2", {"merges": MERGES}, r"does not say tokenizer\.ggml\.pre"),
        ("gpt2", {"pre": "dbrx", "merges": MERGES}, r"by the rule 'dbrx', which is not known here \(.*smollm"),
        ("gpt2", {"pre": "smollm"}, r"does not say tokenizer\.ggml\.merges"),
        ("gpt2", {"pre": "smollm", "merges": MERGES, "add_space_prefix": True}, "a space before every text"),
        ("bert", {}, "a tokenizer of kind 'bert': expected gpt2"),
        ("llama", {"scores": [0.0] * len(TOKENS), "remove_extra_whitespaces": True}, "removes spaces"),
    ],
)
def test_rules_that_are_not_known_are_refused(kind: str, said: dict[str, Any], match: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=match):
        tokenizer(tmp_path, "llama", kind, TOKENS, kinds=KINDS, **said)


def test_a_file_without_a_tokenizer_gives_a_model_without_one(tmp_path: Path) -> None:
    ggufs.saved(tmp_path / "m.gguf")
    assert interp.load(tmp_path / "m.gguf").tokenizer is None
