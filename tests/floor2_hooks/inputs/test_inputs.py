"""Inputs: positions, spans, tables, towers, digests, and what is refused."""

from __future__ import annotations

import copy
import hashlib
import pickle
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from hypothesis import given
from hypothesis import strategies as st
from tokens import CORPUS, bpe, sentencepiece, wordpiece, words

from interp.hooks.errors import InputsError
from interp.hooks.inputs.inputs import Inputs, Span
from interp.hooks.inputs.positions import resolve
from interp.hooks.inputs.token_text import Decoder, read

GPT2 = hf.GPT2Config(vocab_size=420, bos_token_id=0, eos_token_id=1)
T5 = hf.T5Config(vocab_size=420, decoder_start_token_id=2, is_encoder_decoder=True)


def made(texts: list[str], *, side: str = "left", tokenizer: Any = None, config: Any = GPT2) -> Inputs:
    tokenizer = tokenizer or bpe(bos=True)
    batch = tokenizer(texts, padding=True, padding_side=side, return_tensors="pt")
    return Inputs.of(batch, config=config, tokenizer=tokenizer)


@pytest.fixture(scope="module")
def pair() -> Inputs:
    return made(["When Mary and John went to the store, Mary", "What is in the image"])


def columns(mask: torch.Tensor) -> list[list[int]]:
    return [row.nonzero().flatten().tolist() for row in mask]


def test_valid_is_the_attention_mask_and_everything_without_one(pair: Inputs) -> None:
    assert torch.equal(pair.valid, pair.kwargs["attention_mask"].bool())
    bare = Inputs.of({"input_ids": pair.kwargs["input_ids"]}, config=GPT2)
    assert bare.valid.all()
    assert (len(pair), pair.batch, pair.length) == (2, 2, 11)


def test_the_arguments_cannot_be_changed(pair: Inputs) -> None:
    with pytest.raises(TypeError):
        pair.kwargs["input_ids"] = torch.zeros(1)  # type: ignore[index]
    with pytest.raises(AttributeError):
        pair.valid = torch.zeros(1)  # type: ignore[misc]


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("first", [[0], [5]]),
        ("last", [[10], [10]]),
        ("bos", [[0], [5]]),
        ("all", [list(range(11)), [5, 6, 7, 8, 9, 10]]),
        ("text", [list(range(1, 11)), [6, 7, 8, 9, 10]]),
        (-1, [[10], [10]]),
        (-2, [[9], [9]]),
        (7, [[7], [7]]),
        ([6, -1], [[6, 10], [6, 10]]),
        ((6, -1), [[6, 10], [6, 10]]),
        ([[0, 1], [5]], [[0, 1], [5]]),
        ([[0], slice(-2, None)], [[0], [9, 10]]),
        (slice(None), [list(range(11)), [5, 6, 7, 8, 9, 10]]),
        (slice(-3, None), [[8, 9, 10], [8, 9, 10]]),
        (slice(3, 7), [[3, 4, 5, 6], [5, 6]]),
        (range(4, 7), [[4, 5, 6], [5, 6]]),
        (torch.tensor([6, -1]), [[6, 10], [6, 10]]),
        (torch.arange(11) == 6, [[6], [6]]),
        (torch.ones(2, 11).bool(), [list(range(11)), [5, 6, 7, 8, 9, 10]]),
        (Span(((1, 3), None)), [[1, 2], []]),
        (Span(((1, 3), (3, 7))), [[1, 2], [5, 6]]),
        ("prompt", [list(range(11)), [5, 6, 7, 8, 9, 10]]),
        ("last_prompt", [[10], [10]]),
    ],
)
def test_positions(pair: Inputs, spec: Any, expected: list[list[int]]) -> None:
    mask = pair.mask(spec)
    assert mask.dtype == torch.bool
    assert columns(mask) == expected


def test_negative_positions_count_from_the_last_real_token() -> None:
    x = made(["When Mary and John went", "What is"], side="right")
    assert columns(x.mask(-1)) == [[5], [2]]
    assert columns(x.mask([[-1], [-3]])) == [[5], [0]]
    assert columns(x.mask(slice(-2, None))) == [[4, 5], [1, 2]]
    assert columns(x.mask(range(-2, 0))) == [[4, 5], [1, 2]]
    assert columns(x.mask("last")) == [[5], [2]]


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("imge", "no role 'imge'; did you mean 'image'"),
        ("lst", "did you mean 'last'"),
        ("image", "select nothing; these inputs have bos, text"),
        ("image:0", "select nothing"),
        ("image:x", "write the number of the image after the colon"),
        (11, "position 11 is out of range: row 0 has 11 columns"),
        (-12, "position -12 is out of range"),
        (0, "position 0 is padding in row 1, whose tokens are columns 5 to 10"),
        (-7, "position -7 is padding in row 1"),
        ([], "select nothing"),
        ([[1]], "1 lists of positions for a batch of 2"),
        ([[], []], "select nothing"),
        (1.5, "not understood"),
        ([0.5], "not understood"),
        ([True, False], "torch.bool tensor"),
        (torch.ones(2, 4).bool(), r"shape \(2, 11\), got \(2, 4\)"),
        (torch.zeros(2, 11).bool(), "select nothing"),
        (Span(((1, 3),)), "a span over 1 rows does not fit a batch of 2"),
        (Span(((1, 12), None)), "span 1:12 in row 0 is out of range: the length is 11"),
        (slice(20, 30), "select nothing"),
        ("continuation", "no continuation"),
    ],
)
def test_positions_that_are_refused(pair: Inputs, spec: Any, message: str) -> None:
    with pytest.raises(InputsError, match=message):
        resolve(spec, pair.valid, pair.roles)


def test_find(pair: Inputs) -> None:
    assert pair.find("Mary", row=0).rows == ((2, 3), None)
    assert pair.find("Mary", 2, row=0).rows == ((10, 11), None)
    assert pair.find("Mary", -1, row=0) == pair.find("Mary", 2, row=0)
    assert pair.find("Mary and John", row=-2).rows == ((2, 5), None)
    assert pair.find("Wh").rows == ((1, 2), (6, 7))
    assert pair.find("the").rows == ((7, 8), (9, 10))
    both = pair.find("Mary and", row=0)
    assert (both.first().rows, both.last().rows) == (((2, 3), None), ((3, 4), None))
    assert str(both) == "'Mary and' at row 0: 2:4"
    assert columns(pair.mask(both.last())) == [[3], []]


def test_find_says_what_there_is(pair: Inputs) -> None:
    with pytest.raises(InputsError, match=r"no 'Marie' in row 0.*nearest: 'Mary'"):
        pair.find("Marie", row=0)
    with pytest.raises(InputsError, match="no 'Mary' in row 1: '<s>What is in the image'"):
        pair.find("Mary")
    with pytest.raises(InputsError, match=r"row 0 has 'Mary' 2 time\(s\), occurrence 3"):
        pair.find("Mary", 3, row=0)
    with pytest.raises(InputsError, match="occurrence from 1"):
        pair.find("Mary", 0)
    with pytest.raises(InputsError, match="at least one character"):
        pair.find("")
    with pytest.raises(InputsError, match="no row 2 in a batch of 2"):
        pair.find("Mary", row=2)
    with pytest.raises(InputsError, match="make them with a tokenizer"):
        Inputs.of({"input_ids": pair.kwargs["input_ids"]}).find("Mary")


@pytest.mark.parametrize("make", [bpe, sentencepiece, lambda: bpe(bos=True)])
@pytest.mark.parametrize("text", [*CORPUS, "a ☃ and 🙂🙂 né", " two  spaces", "日本", "x", "\nnew\tline"])
def test_ids_read_back_as_their_text(make: Any, text: str) -> None:
    tokenizer = make()
    ids = tokenizer(text)["input_ids"]
    found, offsets = read(Decoder(tokenizer), ids, [True] * len(ids))
    assert found.removeprefix("<s>").strip() == text.strip()
    assert "".join(found[start:end] for start, end in dict.fromkeys(offsets)) == found
    assert list(offsets) == sorted(offsets)


def test_a_split_character_is_found_whole() -> None:
    x = made(["a ☃ b 🙂 c"])
    start, end = x.find("☃").rows[0]  # type: ignore[misc]
    assert end - start >= 3
    start, end = x.find("🙂").rows[0]  # type: ignore[misc]
    assert end - start == 4


@given(st.text(alphabet="MaryJohn and☃é ", min_size=1, max_size=12), st.integers(0, 30))
def test_find_covers_exactly_the_characters(text: str, cut: int) -> None:
    whole = "When Mary and " + text + " went."
    x = made([whole], tokenizer=TOKENIZER)
    start, end = x.find(text).rows[0]  # type: ignore[misc]
    assert x.texts is not None
    assert x.offsets is not None
    covered = x.texts[0][x.offsets[0][start][0] : x.offsets[0][end - 1][1]]
    assert text in covered
    first = x.texts[0].find(text)
    assert x.offsets[0][start][0] <= first < x.offsets[0][start][1]
    assert x.offsets[0][end - 1][0] < first + len(text) <= x.offsets[0][end - 1][1]


TOKENIZER = bpe(bos=True)


def test_word_pieces_are_joined() -> None:
    x = made(["Mary gave a drink"], tokenizer=wordpiece(), config=hf.BertConfig(vocab_size=300))
    assert x.texts is not None
    assert "mary gave a drink" in x.texts[0]
    assert x.find("mary gave").rows[0] is not None
    assert columns(x.mask("bos")) == [[0]]
    assert columns(x.mask("special")) == [[x.length - 1]]


def test_show_prints_an_indexed_table(pair: Inputs, capsys: pytest.CaptureFixture[str]) -> None:
    assert pair.show() is None  # type: ignore[func-returns-value]
    out = capsys.readouterr().out
    assert "row 0: 11 of 11 positions" in out
    assert any(line.split() == ["2", str(int(pair.ids[0, 2])), "'", "Mary'", "text"] for line in out.splitlines())  # type: ignore[index]
    assert "row 1: 6 of 11 positions" in out


def test_long_stretches_are_folded(capsys: pytest.CaptureFixture[str]) -> None:
    config = hf.LlavaConfig(vision_config=hf.CLIPVisionConfig(image_size=336, patch_size=14), image_token_index=9)
    ids = torch.tensor([[1, *[9] * 576, 2, 3]])
    x = Inputs.of({"input_ids": ids, "pixel_values": torch.zeros(1, 3, 336, 336)}, config=config)
    x.show()
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) < 20
    assert any("image 0 (0,0)" in line for line in lines)
    assert any("image 0 (23,23)" in line for line in lines)
    assert any("568 more" in line for line in lines)


def test_html_is_escaped() -> None:
    x = made(['a <b>bold</b> & "q" <script>'])
    page = x._repr_html_()
    assert "<b>" not in page
    assert "<script" not in page
    assert "&amp;" in page
    assert "<table" in page
    assert "<s>" not in page


DIGEST = hashlib.sha256(
    b"attention_mask torch.int64 (1, 3)\n" + struct.pack("<3q", 1, 1, 1)
    + b"input_ids torch.int64 (1, 3)\n" + struct.pack("<3q", 1, 2, 3)
    + b"valid torch.bool (1, 3)\n" + bytes([1, 1, 1])
).hexdigest()  # fmt: skip


def test_digest_is_of_the_data(pair: Inputs) -> None:
    call = {"input_ids": torch.tensor([[1, 2, 3]]), "attention_mask": torch.tensor([[1, 1, 1]])}
    x = Inputs.of(call)
    assert x.digest() == DIGEST
    assert x.digest() == Inputs.of(dict(reversed(call.items()))).digest()
    assert x.digest() != Inputs.of({**call, "attention_mask": torch.tensor([[0, 1, 1]])}).digest()
    assert x.digest() != Inputs.of({"input_ids": call["input_ids"]}).digest()
    assert x.digest() != Inputs.of({**call, "input_ids": call["input_ids"].int()}).digest()
    half = {"inputs_embeds": torch.ones(1, 2, 3, dtype=torch.bfloat16)}
    assert Inputs.of(half).digest() == Inputs.of({"inputs_embeds": half["inputs_embeds"].clone()}).digest()
    assert pair.digest() == pickle.loads(pickle.dumps(pair)).digest() == copy.deepcopy(pair).digest()


def test_copies_are_whole(pair: Inputs, tmp_path: Path) -> None:
    pair.save(tmp_path / "x")
    for again in (pickle.loads(pickle.dumps(pair)), copy.deepcopy(pair), Inputs.load(tmp_path / "x"), pair.to("cpu")):
        assert (again.tokens, again.texts, again.offsets) == (pair.tokens, pair.texts, pair.offsets)
        assert torch.equal(again.roles.kind, pair.roles.kind)
        assert again.find("Mary", row=0) == pair.find("Mary", row=0)
        assert again.digest() == pair.digest()
    with pytest.raises(InputsError, match="holds no inputs"):
        Inputs.load(tmp_path)


def test_inputs_with_pictures_on_disk(tmp_path: Path) -> None:
    config = hf.LlavaConfig(vision_config=hf.CLIPVisionConfig(image_size=28, patch_size=14), image_token_index=9)
    call = {"input_ids": torch.tensor([[1, 9, 9, 9, 9, 2]]), "pixel_values": torch.rand(1, 3, 28, 28)}
    x = Inputs.of({**call, "use_cache": False}, config=config)
    x.save(tmp_path)
    again = Inputs.load(tmp_path)
    assert again.digest() == x.digest()
    assert again.kwargs["use_cache"] is False
    assert again.roles.grids == (((1, 2, 2),),)
    assert again.roles.views == x.roles.views
    assert again.tower("vision").roles.where("cls").sum() == 1
    assert torch.equal(again.tower("vision").kwargs["pixel_values"], call["pixel_values"])


def test_towers_of_an_encoder_decoder() -> None:
    tokenizer = bpe()
    batch = tokenizer(["When Mary and John", "What"], padding=True, return_tensors="pt")
    x = Inputs.of({**batch, "decoder_input_ids": torch.tensor([[2, 5], [2, 6]])}, config=T5, tokenizer=tokenizer)
    assert (x.main, x.length) == ("decoder", 2)
    encoder = x.tower("encoder")
    assert encoder.length == 4
    assert torch.equal(x.valid_of("encoder"), batch["attention_mask"].bool())
    assert encoder.find("Mary", row=0).rows[0] == (1, 2)
    assert x.tower("decoder") is x
    assert x.tower("cross") is x
    assert encoder.tower("encoder") is encoder
    with pytest.raises(InputsError, match="no tower 'vison' in these inputs; they have decoder, encoder"):
        x.tower("vison")


def test_a_tower_that_is_not_known_says_why_when_asked_for() -> None:
    x = Inputs.of(
        {"input_ids": torch.tensor([[1, 2]]), "pixel_values": torch.zeros(1, 3, 28, 28)}, config=hf.GPT2Config()
    )
    assert x.length == 2
    with pytest.raises(InputsError, match="'gpt2' is not known"):
        x.tower("vision")


def test_plain_modules() -> None:
    x = Inputs.of({"tokens": torch.tensor([[1, 2, 3]]), "flag": True})
    assert (x.main, x.length) == ("text", 3)
    assert x.ids is not None
    assert x.tower("text") is x
    vectors = Inputs.of({"x": torch.zeros(2, 5, 4)})
    assert (vectors.batch, vectors.length) == (2, 5)
    with pytest.raises(InputsError, match="cannot tell the positions"):
        Inputs.of({"a": torch.zeros(2, 3, 4), "b": torch.zeros(2, 3, 4)})


def ids(*rows: list[int]) -> torch.Tensor:
    return torch.tensor(rows)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ({}, "no arguments"),
        ({"input_ids": torch.zeros(0, 4).long()}, "empty batch"),
        ({"input_ids": torch.zeros(2, 0).long()}, "no tokens"),
        ({"input_ids": torch.zeros(4).long()}, r"must be \[batch, position\], got shape \(4,\)"),
        ({"input_ids": torch.zeros(1, 4)}, "must be int64 or int32"),
        ({"input_ids": torch.zeros(1, 4).byte()}, "must be int64 or int32"),
        ({"input_ids": ids([1, -1])}, r"input_ids\[0, 1\] = -1 is outside the vocabulary of 420"),
        ({"input_ids": ids([1, 2], [3, 420])}, r"input_ids\[1, 1\] = 420 is outside"),
        ({"input_ids": [[1], [2, 3]]}, "rows of unequal length go through prepare"),
        ({"input_ids": [[2**63]]}, "cannot be made a tensor"),
        (
            {"input_ids": ids([1, 2]), "attention_mask": ids([1])},
            r"must have the shape of the ids, \(1, 2\), got \(1, 1\)",
        ),
        ({"input_ids": ids([1, 2]), "attention_mask": torch.ones(1, 1, 2, 2)}, r"got \(1, 1, 2, 2\)"),
        (
            {"input_ids": ids([1, 2], [1, 2]), "attention_mask": ids([1, 1], [0, 0])},
            "row 1 of attention_mask is all padding",
        ),
        ({"pixels": torch.zeros(1, 2, 3, 4)}, "cannot tell the positions"),
    ],
)
def test_arguments_that_are_refused(call: dict[str, Any], message: str) -> None:
    with pytest.raises(InputsError, match=message):
        Inputs.of(call, config=GPT2)


def test_an_encoder_decoder_needs_a_decoder() -> None:
    with pytest.raises(InputsError, match="also needs decoder_input_ids"):
        Inputs.of({"input_ids": ids([1, 2])}, config=T5)


def test_ids_are_never_retokenised() -> None:
    tokenizer = words(["a", "b"])
    given = ids([5, 4, 5, 4, 1])
    x = Inputs.of({"input_ids": given}, tokenizer=tokenizer)
    assert x.kwargs["input_ids"] is given
    assert x.tokens is not None
    assert [token.strip() for token in x.tokens[0]] == ["b", "a", "b", "a", "</s>"]


def test_none_and_caches_are_left_out() -> None:
    x = Inputs.of({"input_ids": ids([1, 2]), "labels": None, "past_key_values": object()})
    assert set(x.kwargs) == {"input_ids"}
    with pytest.raises(InputsError, match="thing cannot be made a tensor"):
        Inputs.of({"input_ids": ids([1, 2]), "thing": object()})
