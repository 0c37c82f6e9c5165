"""prepare: rows of a batch give what they give alone, answers leave prompts alone, nothing is inserted silently."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers as hf
from pictured import MODELS, PROCESSOR, pictured
from PIL import Image
from tokens import CHAT, PLACEHOLDERS, bpe, picture, sentencepiece, wordpiece
from torch import Tensor, nn

from interp.hooks.errors import InputsError
from interp.hooks.inputs.inputs import Inputs
from interp.preparing import prepare as module_under_test
from interp.preparing.prepare import prepare
from interp.preparing.rows import after

NUMPY = "ignore:__array__ implementation:DeprecationWarning:transformers.models.paligemma"
pytestmark = pytest.mark.filterwarnings(NUMPY)
TEXTS = ["When Mary and John went to the store, John gave a drink to", "What is", "You are a helpful assistant"]
SMALL = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "vocab_size": 420,
}
BASIC = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
GPT = {"n_embd": 16, "n_layer": 2, "n_head": 2, "vocab_size": 420, "n_positions": 64, **BASIC}

DECODERS: dict[str, Any] = {
    "gpt2": lambda: hf.GPT2LMHeadModel(hf.GPT2Config(**GPT)),
    "gptj": lambda: hf.GPTJForCausalLM(hf.GPTJConfig(**GPT, rotary_dim=4)),
    "gpt_neox": lambda: hf.GPTNeoXForCausalLM(hf.GPTNeoXConfig(**SMALL, **BASIC)),
    "opt": lambda: hf.OPTForCausalLM(hf.OPTConfig(**SMALL, **BASIC, ffn_dim=32, word_embed_proj_dim=16)),
    "bloom": lambda: hf.BloomForCausalLM(hf.BloomConfig(hidden_size=16, n_layer=2, n_head=2, vocab_size=420, **BASIC)),
    "falcon": lambda: hf.FalconForCausalLM(hf.FalconConfig(**SMALL, **BASIC, alibi=True)),
    "llama": lambda: hf.LlamaForCausalLM(hf.LlamaConfig(**SMALL, **BASIC, num_key_value_heads=1)),
    "gemma2": lambda: hf.Gemma2ForCausalLM(
        hf.Gemma2Config(**SMALL, **BASIC, num_key_value_heads=1, head_dim=8, sliding_window=4)
    ),
    "phi3": lambda: hf.Phi3ForCausalLM(hf.Phi3Config(**SMALL, **BASIC)),
}  # fmt: skip
T5 = {"d_model": 16, "d_ff": 32, "d_kv": 8, "num_layers": 2, "num_heads": 2, "vocab_size": 420}
BART = {
    "d_model": 16, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 2, "vocab_size": 420,
    "decoder_attention_heads": 2, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32, "max_position_embeddings": 64,
}  # fmt: skip


@pytest.fixture(autouse=True)
def _forget_what_was_said() -> None:
    module_under_test._warned.clear()


def built(name: str) -> Any:
    torch.manual_seed(0)
    return DECODERS[name]().eval()


def logits(model: nn.Module, inputs: Inputs) -> Tensor:
    with torch.no_grad():
        return model(**inputs.kwargs).logits  # type: ignore[no-any-return]


def at(values: Tensor, inputs: Inputs, spec: Any) -> Tensor:
    return values[inputs.mask(spec)]


@pytest.mark.parametrize("padding", ["left", "right", None])
@pytest.mark.parametrize("name", DECODERS)
def test_rows_give_in_a_batch_what_they_give_alone(name: str, padding: Any) -> None:
    model, tokenizer = built(name), bpe(bos=True)
    x = prepare(model, tokenizer, TEXTS, padding=padding)
    left = padding != "right"
    assert bool(x.valid[:, -1].all()) == left
    last = at(logits(model, x), x, "last")
    assert not left or torch.equal(last, logits(model, x)[:, -1])
    for row, text in enumerate(TEXTS):
        alone = prepare(model, tokenizer, text)
        assert torch.equal(x.ids[row][x.valid[row]], alone.ids[0])  # type: ignore[index]
        torch.testing.assert_close(last[row], at(logits(model, alone), alone, "last")[0], atol=2e-5, rtol=0)


@pytest.mark.parametrize("padding", ["left", "right"])
@pytest.mark.parametrize("name", ["gpt2", "bloom", "llama"])
def test_an_answer_leaves_the_prompt_alone(name: str, padding: Any) -> None:
    model, tokenizer = built(name), bpe(bos=True)
    answers = [" Mary", " in the image", " yes"]
    prompt = prepare(model, tokenizer, TEXTS, padding=padding)
    x = prepare(model, tokenizer, TEXTS, continuation=answers, padding=padding)
    assert x.continuation is not None
    scores, before = logits(model, x), logits(model, prompt)
    for row, answer in enumerate(answers):
        inside, start = x.valid[row].nonzero().flatten(), x.continuation[row]
        ids = x.ids[row]  # type: ignore[index]
        assert torch.equal(ids[inside[inside < start]], prompt.ids[row][prompt.valid[row]])  # type: ignore[index]
        assert ids[inside[inside >= start]].tolist() == after(tokenizer, answer)
        assert x.find(answer.strip(), -1, row=row).rows[row] == (start, int(inside[-1]) + 1)
    torch.testing.assert_close(at(scores, x, "last_prompt"), at(before, prompt, "last"), atol=2e-5, rtol=0)
    assert x.mask("continuation").sum(1).tolist() == [len(after(tokenizer, a)) for a in answers]
    assert torch.equal(x.mask("prompt") | x.mask("continuation"), x.valid)


@pytest.mark.parametrize("name", MODELS)
def test_pictured_rows_give_in_a_batch_what_they_give_alone(name: str) -> None:
    model, processor = pictured(name)
    place = PLACEHOLDERS.get(PROCESSOR.get(name, name), "")
    texts = [place + "What is in the image? A red square", place + "describe"]
    pictures = [[picture(40, 60, 1)], [picture(90, 30, 2)]]
    with doubled_bos(name):
        x = prepare(model, processor, texts, images=pictures, chat=False)
    if name == "clip":
        assert x.side == "right" if hasattr(x, "side") else x.valid[:, 0].all()
        return
    together = at(logits(model, x), x, "last")
    for row in range(2):
        alone = prepare(model, processor, texts[row], images=pictures[row], chat=False)
        one = at(logits(model, alone), alone, "last")[0]
        torch.testing.assert_close(together[row], one, atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", [name for name in MODELS if name != "clip"])
def test_an_answer_after_a_picture(name: str) -> None:
    model, processor = pictured(name)
    place = PLACEHOLDERS.get(PROCESSOR.get(name, name), "")
    texts = [place + "What is in the image?", place + "describe"]
    pictures = [[picture(40, 60, 1)], [picture(90, 30, 2)]]
    with doubled_bos(name):
        prompt = prepare(model, processor, texts, images=pictures, chat=False)
    x = prepare(model, processor, texts, images=pictures, chat=False, continuation=[" red square", " a"])
    assert set(x.kwargs) == set(prompt.kwargs) | {"position_ids"} - (
        set() if "position_ids" in x.kwargs else {"position_ids"}
    )
    assert "labels" not in x.kwargs
    torch.testing.assert_close(
        at(logits(model, x), x, "last_prompt"), at(logits(model, prompt), prompt, "last"), atol=1e-4, rtol=0
    )
    assert x.roles.grids == prompt.roles.grids
    assert x.roles.where("text")[x.mask("continuation")].all()
    again = prepare(model, processor, prompt, continuation=[" red square", " a"])
    assert again.digest() == x.digest()


def doubled_bos(name: str) -> Any:
    """Mllama's processor writes a BOS and its tokenizer another."""
    if name == "mllama":
        return pytest.warns(UserWarning, match="two BOS")
    return _Nothing()


class _Nothing:
    def __enter__(self) -> None: ...
    def __exit__(self, *args: Any) -> None: ...


def test_a_left_padded_gpt2_needs_the_positions_it_gets() -> None:
    model, tokenizer = built("gpt2"), bpe(bos=True)
    x = prepare(model, tokenizer, TEXTS)
    assert x.kwargs["position_ids"][1].tolist()[-4:] == [0, 0, 1, 2][-4:]
    call = {name: value for name, value in x.kwargs.items() if name != "position_ids"}
    wrong = model(**call).logits[1, -1]
    assert (wrong - logits(model, x)[1, -1]).abs().max() > 1e-3
    with pytest.warns(UserWarning, match="padded on the left and have no position_ids"):
        assert set(prepare(model, tokenizer, call).kwargs) == set(call)


@pytest.mark.parametrize("family", ["Roberta", "XLMRoberta", "Data2VecText"])
def test_positions_start_after_the_one_that_is_padding(family: str) -> None:
    """RoBERTa and its kin number tokens from `padding_idx + 1`, whatever their family is called."""
    torch.manual_seed(0)
    config = getattr(hf, f"{family}Config")(
        vocab_size=60, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=40, is_decoder=True, pad_token_id=1,
    )  # fmt: skip
    model = getattr(hf, f"{family}ForCausalLM")(config).eval()
    both, alone = prepare(model, None, [[5, 6, 7, 8, 9, 10], [11, 12, 13]]), prepare(model, None, [[11, 12, 13]])
    assert not bool(both.valid[1, 0])
    assert both.kwargs["position_ids"][1, 3:].tolist() == [2, 3, 4]
    torch.testing.assert_close(logits(model, both)[1, -1], logits(model, alone)[0, -1], atol=1e-5, rtol=1e-4)
    batch = {name: both.kwargs[name] for name in ("input_ids", "attention_mask")}
    assert set(prepare(model, None, batch).kwargs) == set(batch)  # it finds them by itself, so nothing is said


def test_encoders_are_padded_on_the_right() -> None:
    tokenizer = wordpiece()
    model = hf.BertModel(hf.BertConfig(**SMALL, max_position_embeddings=64)).eval()
    x = prepare(model, tokenizer, ["Mary gave a drink", "a"])
    assert x.valid[:, 0].all()
    assert "position_ids" not in x.kwargs
    assert x.kwargs["token_type_ids"].shape == x.valid.shape
    assert x.find("Mary gave", row=0).rows[0] is not None
    alone = prepare(model, tokenizer, "a")
    together, one = model(**x.kwargs).last_hidden_state[1, :3], model(**alone.kwargs).last_hidden_state[0]
    torch.testing.assert_close(together, one, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", ["t5", "bart"])
def test_encoder_decoders(name: str) -> None:
    torch.manual_seed(0)
    if name == "t5":
        model: Any = hf.T5ForConditionalGeneration(hf.T5Config(**T5, decoder_start_token_id=2, pad_token_id=2)).eval()
    else:
        model = hf.BartForConditionalGeneration(hf.BartConfig(**BART, **BASIC, decoder_start_token_id=1)).eval()
    tokenizer = bpe()
    start = model.config.decoder_start_token_id
    x = prepare(model, tokenizer, TEXTS)
    assert (x.main, x.kwargs["decoder_input_ids"].tolist()) == ("decoder", [[start]] * 3)
    assert x.continuation is None
    assert x.tower("encoder").find("Mary", row=0).rows[0] == (1, 2)
    y = prepare(model, tokenizer, TEXTS, continuation=[" Mary", " in the image", " a"])
    assert y.continuation == (1, 1, 1)
    assert y.mask("continuation").sum(1).tolist() == [1, 3, 1]
    assert y.find(" in the", row=1).rows[1] == (1, 3)
    torch.testing.assert_close(
        at(logits(model, y), y, "last_prompt"), at(logits(model, x), x, "last"), atol=1e-5, rtol=0
    )
    for row, text in enumerate(TEXTS):
        alone = prepare(model, tokenizer, text)
        torch.testing.assert_close(logits(model, x)[row, 0], logits(model, alone)[0, 0], atol=1e-5, rtol=0)


def test_sound_for_whisper() -> None:
    config = hf.WhisperConfig(**{**BART, "max_source_positions": 50}, **BASIC, num_mel_bins=8, max_target_positions=20,
                              decoder_start_token_id=3, suppress_tokens=None, begin_suppress_tokens=None)  # fmt: skip
    model = hf.WhisperForConditionalGeneration(config).eval()
    extractor = hf.WhisperFeatureExtractor(feature_size=8, chunk_length=1)
    processor = hf.WhisperProcessor(extractor, bpe())
    x = prepare(model, processor, audio=[np.zeros(8000, dtype=np.float32)] * 2, continuation=[" yes", " no or"])
    assert x.tower("encoder").length == 50
    assert x.mask("continuation").sum(1).tolist() == [len(after(processor.tokenizer, t)) for t in (" yes", " no or")]
    assert logits(model, x).shape[:2] == x.valid.shape


def test_pictures_alone() -> None:
    model = hf.ViTModel(
        hf.ViTConfig(image_size=28, patch_size=7, **{k: v for k, v in SMALL.items() if k != "vocab_size"})
    )
    processor = hf.ViTImageProcessorPil(size={"height": 28, "width": 28})
    x = prepare(model, processor, images=[picture(40, 60), picture(28, 28)])
    assert (x.main, x.length, x.batch) == ("vision", 17, 2)
    assert model(**x.kwargs).last_hidden_state.shape[:2] == x.valid.shape
    assert x.roles.boxes()[0, 1].tolist() == [0, 0, 15, 10]
    assert prepare(model, processor, images=picture(40, 60)).batch == 1
    with pytest.raises(InputsError, match="no input was given"):
        prepare(model, processor)


def test_ids_are_never_retokenised() -> None:
    model, tokenizer = built("gpt2"), bpe(bos=True)
    odd = [70, 71, 72]
    assert prepare(model, tokenizer, odd).ids.tolist() == [odd]  # type: ignore[union-attr]
    assert prepare(model, tokenizer, torch.tensor(odd)).ids.tolist() == [odd]  # type: ignore[union-attr]
    assert prepare(model, tokenizer, np.array([odd])).ids.tolist() == [odd]  # type: ignore[union-attr]
    assert prepare(model, tokenizer, [np.int64(5), np.int64(6)]).ids.tolist() == [[5, 6]]  # type: ignore[union-attr]
    x = prepare(model, None, [odd, torch.tensor([5])], continuation=[[9], [8, 7]])
    assert x.ids.tolist() == [[70, 71, 72, 9], [2, 5, 8, 7]]  # type: ignore[union-attr]
    assert x.continuation == (3, 2)
    batch = tokenizer(TEXTS[0], return_tensors="pt")
    assert torch.equal(prepare(model, tokenizer, batch).ids, batch["input_ids"])  # type: ignore[arg-type]
    assert torch.equal(prepare(model, tokenizer, dict(batch)).ids, batch["input_ids"])  # type: ignore[arg-type]
    plain = tokenizer([TEXTS[0]])
    assert torch.equal(prepare(model, tokenizer, plain).ids, batch["input_ids"])  # type: ignore[arg-type]


def test_inputs_pass_through() -> None:
    model, tokenizer = built("gpt2"), bpe(bos=True)
    x = prepare(model, tokenizer, TEXTS)
    assert prepare(model, tokenizer, x) is x
    with pytest.raises(InputsError, match="images cannot be added"):
        prepare(model, tokenizer, x, images=[picture()])
    longer = prepare(model, tokenizer, x, continuation=" Mary")
    assert longer.digest() == prepare(model, tokenizer, TEXTS, continuation=" Mary").digest()


@pytest.mark.parametrize("make", [bpe, sentencepiece])
def test_answers_read_on_from_the_prompt(make: Any) -> None:
    tokenizer = make()
    for prompt, answer in [
        ("John gave a drink to", " Mary"),
        ("When Ma", "ry"),
        ("What is", "?"),
        ("a", "\nb"),
        ("a", " 🙂"),
    ]:
        ids = tokenizer(prompt)["input_ids"] + after(tokenizer, answer)
        assert tokenizer.decode(ids, skip_special_tokens=True) == prompt + answer


def test_the_same_answer_has_the_same_ids_after_every_prompt() -> None:
    model, tokenizer = built("gpt2"), bpe(bos=True)
    x = prepare(model, tokenizer, TEXTS, continuation=" Mary")
    assert x.ids is not None
    for ids, answer in zip(x.ids, x.mask("continuation"), strict=True):
        assert ids[answer].tolist() == after(tokenizer, " Mary")


MESSAGES = [
    {"role": "system", "content": "You are user"},
    {"role": "user", "content": "user What is in the image?\n"},
    {"role": "assistant", "content": "A red square"},
    {"role": "user", "content": "What is user"},
]


def spoken(x: Inputs, role: str, row: int = 0) -> str:
    assert x.texts is not None
    assert x.offsets is not None
    here = (x.roles.kind[row] == ROLE[role]).nonzero().flatten().tolist()
    return "".join(x.texts[row][slice(*x.offsets[row][p])] for p in here)


ROLE = {name: code for code, name in enumerate(("bos", "system", "user", "assistant", "template", "text"))}


def test_chat_messages_say_who_speaks() -> None:
    model, tokenizer = built("llama"), bpe(chat=CHAT)
    x = prepare(model, tokenizer, MESSAGES)
    expected = tokenizer.apply_chat_template(
        MESSAGES, add_generation_prompt=True, return_dict=True, return_tensors="pt"
    )
    assert torch.equal(x.ids, expected["input_ids"])  # type: ignore[arg-type]
    assert spoken(x, "system") == "You are user"
    assert spoken(x, "user") == "user What is in the image?\nWhat is user"
    assert spoken(x, "assistant") == "A red square"
    assert spoken(x, "template").endswith("<|im_start|>assistant\n")
    assert spoken(x, "text") == ""
    assert torch.equal(x.mask("text"), x.mask("user") | x.mask("system") | x.mask("assistant"))
    y = prepare(model, tokenizer, [MESSAGES, MESSAGES[:2]], continuation=[" yes", " no"])
    assert spoken(y, "assistant", 1) == " no"
    assert spoken(y, "user", 1) == "user What is in the image?\n"
    assert prepare(model, tokenizer, MESSAGES[1]).digest() == prepare(model, tokenizer, [MESSAGES[1]]).digest()


def test_an_answered_chat_is_not_asked_to_go_on() -> None:
    x = prepare(built("llama"), bpe(chat=CHAT), MESSAGES[:3])
    assert spoken(x, "template").endswith("<|im_end|>\n")


def test_text_can_be_wrapped_as_a_message() -> None:
    model, tokenizer = built("llama"), bpe(chat=CHAT)
    x = prepare(model, tokenizer, ["What is", "Mary"], chat=True)
    assert [spoken(x, "user", row) for row in (0, 1)] == ["What is", "Mary"]
    y = prepare(model, tokenizer, "What is", chat={"add_generation_prompt": False})
    assert not spoken(y, "template").endswith("assistant\n")


def test_a_template_that_rewrites_its_messages_is_said() -> None:
    model = built("llama")
    tokenizer = bpe(chat="{% for message in messages %}{{ message['content'] | upper }}{% endfor %}")
    with pytest.warns(UserWarning, match="rewrites its messages"):
        x = prepare(model, tokenizer, MESSAGES[:2])
    assert x.roles.where("text").any()
    assert not x.roles.where("user").any()


@pytest.mark.parametrize(
    "name", ["llava", "llava_next", "qwen2_vl", "qwen3_vl", "internvl", "idefics3", "gemma3", "mllama"]
)
def test_chats_with_pictures(name: str) -> None:
    model, processor = pictured(name)
    shown = [{"type": "image", "image": picture(40, 60)}, {"type": "text", "text": "What is in the image?"}]
    messages = [{"role": "system", "content": "You are helpful"}, {"role": "user", "content": shown}]
    x = prepare(model, processor, messages)
    assert spoken(x, "user") == "What is in the image?"
    assert spoken(x, "system") == "You are helpful"
    assert spoken(x, "text") == ""
    assert "assistant" in spoken(x, "template")
    bare = [messages[0], {"role": "user", "content": [{"type": "image"}, shown[1]]}]
    assert prepare(model, processor, bare, images=[picture(40, 60)]).digest() == x.digest()
    wrapped = prepare(model, processor, "What is in the image?", images=picture(40, 60), chat=True)
    assert spoken(wrapped, "user") == "What is in the image?"
    logits(model, x)


def test_raw_text_for_a_chat_model_is_said_once() -> None:
    model, tokenizer = built("llama"), bpe(chat=CHAT)
    with pytest.warns(UserWarning, match=r"chat template.*chat=True.*chat=False") as said:
        assert [prepare(model, tokenizer, text).batch for text in ("What", "is")] == [1, 1]
    assert len(said) == 1
    with pytest.warns(UserWarning, match="chat template"):
        prepare(built("gpt2"), tokenizer, "What")
    prepare(built("gpt2"), tokenizer, "What", chat=False)


def test_a_second_bos_is_said_once_and_kept() -> None:
    model, tokenizer = built("llama"), bpe(bos=True)
    with pytest.warns(UserWarning, match=r"row 1 starts with two BOS tokens \(0\)") as said:
        x, _ = [prepare(model, tokenizer, text) for text in (["What", "<s>What"], "<s>What")]
    assert len(said) == 1
    assert x.ids[1].tolist()[:2] == [0, 0]  # type: ignore[index]
    assert x.roles.where("bos").sum(1).tolist() == [1, 1]


def test_pictures_from_files_arrays_and_tensors(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, processor = pictured("llava")
    image = picture(28, 28)
    image.save(tmp_path / "a.png")
    array = np.asarray(image)
    given = [
        image,
        tmp_path / "a.png",
        str(tmp_path / "a.png"),
        array,
        torch.tensor(array),
        torch.tensor(array).permute(2, 0, 1),
    ]
    digests = {prepare(model, processor, "<image>a", images=[one], chat=False).digest() for one in given}
    assert len(digests) == 1
    assert capsys.readouterr().out == ""
    for odd in (image.convert("L"), array[..., 0], array[..., :1], image.convert("RGBA"), image.convert("P")):
        prepare(model, processor, "<image>a", images=[odd], chat=False)
        assert "converted to RGB" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("image", "message"),
    [
        ("no/such/file.png", "image 0 cannot be read"),
        (np.zeros((4, 4, 3)), "array of float64, expected uint8"),
        (np.zeros((4, 4, 2), dtype=np.uint8), r"shape \(4, 4, 2\)"),
        (np.zeros((0, 4, 3), dtype=np.uint8), r"shape \(0, 4, 3\)"),
        (np.zeros(4, dtype=np.uint8), r"shape \(4,\)"),
    ],
)
def test_pictures_that_are_refused(image: Any, message: str) -> None:
    model, processor = pictured("llava")
    with pytest.raises(InputsError, match=message):
        prepare(model, processor, "<image>a", images=[image], chat=False)


@pytest.mark.parametrize("name", [name for name in MODELS if name != "clip"])
@pytest.mark.parametrize(
    ("places", "pictures"), [((1, 1), (1, 0)), ((1, 0), (1, 1)), ((1, 1), (2, 1)), ((2, 0), (1, 1))]
)
def test_pictures_and_places_must_agree(name: str, places: tuple[int, int], pictures: tuple[int, int]) -> None:
    model, processor = pictured(name)
    place = PLACEHOLDERS.get(PROCESSOR.get(name, name), "")
    if not place and pictures == (1, 1):
        pytest.skip("this processor puts one picture in front of each text by itself")
    texts = [place * count + "What" for count in places]
    nested = [[picture()] * count for count in pictures]
    with pytest.raises(InputsError, match="nothing is inserted"):
        prepare(model, processor, texts, images=nested, chat=False)


def test_a_flat_list_is_dealt_by_the_places() -> None:
    model, processor = pictured("llava")
    flat = [picture(28, 28, seed) for seed in range(3)]
    x = prepare(model, processor, ["<image><image>a", "b", "<image>c"], images=flat, chat=False)
    y = prepare(model, processor, ["<image><image>a", "b", "<image>c"], images=[flat[:2], [], flat[2:]], chat=False)
    assert x.digest() == y.digest()
    assert [len(row) for row in x.roles.grids] == [2, 0, 1]
    with pytest.raises(InputsError, match=r"3 '<image>' places \[2, 0, 1\], but 2 picture"):
        prepare(model, processor, ["<image><image>a", "b", "<image>c"], images=flat[:2], chat=False)


def test_places_without_pictures_are_refused_by_the_counts() -> None:
    model, processor = pictured("llava")
    with pytest.raises(InputsError, match="1 '<image>' place"):
        prepare(model, processor, "<image>a", chat=False)


def test_paligemma_counts_positions_from_one() -> None:
    model, processor = pictured("paligemma")
    texts = ["<image>What is in the image?", "<image>describe"]
    x = prepare(model, processor, texts, images=[[picture()], [picture()]], chat=False)
    for row in range(2):
        real = x.kwargs["position_ids"][row][x.valid[row]]
        assert real.tolist() == list(range(1, len(real) + 1))


def test_paligemma_without_a_place_puts_pictures_in_front() -> None:
    model, processor = pictured("paligemma")
    with_place = prepare(model, processor, "<image>describe", images=[picture()])
    assert prepare(model, processor, "describe", images=[picture()]).digest() == with_place.digest()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([], "empty batch"),
        ("", "text 0 is empty"),
        (["a", ""], "text 1 is empty"),
        ([[]], "row 0 of ids is empty"),
        ([[5], []], "row 1 of ids is empty"),
        ([5, 420], "outside the vocabulary of 420"),
        ([-1], "outside the vocabulary"),
        ([2**63], "fit 64 bits"),
        ([[1], [2**70]], "fit 64 bits"),
        (torch.zeros(0, 3).long(), "empty batch"),
        (torch.zeros(2, 0).long(), "no tokens"),
        (torch.zeros(1, 3), "must be int64"),
        (np.zeros((1, 3)), "must be int64"),
        ({"input_ids": [[1, 2], [1, 2]], "attention_mask": [[0, 0], [1, 1]]}, "row 0 of attention_mask is all padding"),
        ({}, "no arguments"),
        ({"input_ids": [[1], [1, 2]]}, "unequal length"),
        (5.0, "expected texts, messages, ids or a processor's output, got float"),
        (["a", 5], "expected texts"),
        ([{"role": "user"}], "a role and a content"),
    ],
)
def test_data_that_is_refused(data: Any, message: str) -> None:
    with pytest.raises(InputsError, match=message):
        prepare(built("gpt2"), bpe(bos=True, chat=CHAT), data, chat=None if message.startswith("a role") else False)


def test_what_is_missing_is_named() -> None:
    model, tokenizer = built("gpt2"), bpe(bos=True)
    with pytest.raises(InputsError, match="texts need a tokenizer"):
        prepare(model, None, "What")
    with pytest.raises(InputsError, match="pictures need the model's processor"):
        prepare(model, tokenizer, "What", images=[picture()])
    with pytest.raises(InputsError, match="pictures need an image processor"):
        prepare(model, tokenizer, images=[picture()])
    with pytest.raises(InputsError, match="no chat template"):
        prepare(model, tokenizer, MESSAGES)
    with pytest.raises(InputsError, match="messages need the chat template"):
        prepare(model, bpe(chat=CHAT), MESSAGES, chat=False)
    with pytest.raises(InputsError, match="audio needs the model's processor"):
        prepare(model, tokenizer, audio=np.zeros(10))
    with pytest.raises(InputsError, match="a continuation in words needs a tokenizer"):
        prepare(model, None, [1, 2], continuation=" a")


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ("", "continuation 0 is empty"),
        ([" a"], "1 continuations for a batch of 3"),
        ([[1], [], [2]], "continuation 1 is empty"),
        ([[1], [2], [420]], "outside the vocabulary"),
    ],
)
def test_answers_that_are_refused(answer: Any, message: str) -> None:
    with pytest.raises(InputsError, match=message):
        prepare(built("gpt2"), bpe(bos=True), TEXTS, continuation=answer)


def test_positions_of_ones_own_cannot_be_continued() -> None:
    call = {"input_ids": torch.tensor([[5, 6]]), "position_ids": torch.tensor([[3, 4]])}
    model = built("gpt2")
    assert prepare(model, None, call).kwargs["position_ids"].tolist() == [[3, 4]]
    with pytest.raises(InputsError, match="numbers its positions"):
        prepare(model, None, call, continuation=[[1]])


def test_half_precision_models_get_half_precision_pixels() -> None:
    model, processor = pictured("llava")
    import copy

    half = copy.deepcopy(model).to(torch.bfloat16)
    x = prepare(half, processor, "<image>a", images=[picture()], chat=False)
    assert x.kwargs["pixel_values"].dtype == torch.bfloat16
    assert x.kwargs["input_ids"].dtype == torch.int64
    logits(half, x)


def test_a_model_that_is_nowhere_leaves_inputs_on_the_cpu() -> None:
    with torch.device("meta"):
        model = hf.GPT2LMHeadModel(hf.GPT2Config(**GPT))
    assert prepare(model, bpe(), "What").valid.device.type == "cpu"


def test_plain_modules_are_padded_on_the_right() -> None:
    x = prepare(Masked(), None, [[1, 2, 3], [4]])
    assert x.ids.tolist() == [[1, 2, 3], [4, 0, 0]]  # type: ignore[union-attr]


def test_a_picture_has_sizes_and_boxes_in_both_towers() -> None:
    model, processor = pictured("qwen2_vl")
    place = PLACEHOLDERS["qwen2_vl"]
    x = prepare(model, processor, place + "a", images=[Image.new("RGB", (60, 40))], chat=False)
    assert x.roles.sizes == ((40, 60),)
    boxes = x.roles.boxes()[x.mask("image")]
    assert boxes[0, :2].tolist() == [0, 0]
    assert boxes[-1, 2:].tolist() == [60, 40]
    vision = x.tower("vision").roles.boxes()[0]
    assert vision[:, 2].max() == 60


class Bare(nn.Module):
    """A model of somebody's own, whose forward takes ids and nothing else."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(9, 4)

    def forward(self, input_ids: Tensor) -> Tensor:
        return self.table(input_ids)


class Masked(Bare):
    """The same with a mask."""

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        return self.table(input_ids)


def test_a_forward_without_a_mask_gets_none_and_rows_of_one_length() -> None:
    inputs = prepare(Bare(), None, [[1, 2, 3], [4, 5, 6]])
    assert set(inputs.kwargs) == {"input_ids"}
    assert inputs.valid.all()
    with pytest.raises(InputsError, match=r"rows of 2, 3 tokens.*Bare.forward takes no attention_mask"):
        prepare(Bare(), None, [[1, 2, 3], [4, 5]])
