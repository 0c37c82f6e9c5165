"""Example inputs: valid, padded for real, counted as released models count, refused where they would be a guess."""

import functools
from collections.abc import Iterator

import peft
import pytest
import torch
import transformers
from torch import Tensor, nn

from interp.hooks.errors import InputsError, ModelError
from interp.hooks.examples.example import example
from interp.hooks.pictures.record import families
from interp.zoo.every import build
from interp.zoo.families import FAMILIES, tiny

WITH_TEXT = [name for name, family in FAMILIES.items() if "padding" not in family.na]
LONG = ("input_ids", "attention_mask", "position_ids", "token_type_ids", "mm_token_type_ids", "cross_attention_mask")
ABSOLUTE = "counts positions from the row's edge, so padding on the left moves its words"
NO_LEFT = dict.fromkeys(("bert", "bart", "whisper"), ABSOLUTE)
PAIRS = ("clip", "siglip")
WITH_IMAGE = [name for name, family in FAMILIES.items() if {"image_token_id", "image_token_index"} & set(family.config)]


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Models this small spend their time waking threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@functools.cache
def built(name: str) -> nn.Module:
    model = tiny(name)
    return getattr(model, "original_model", model)


def valid(made: dict[str, Tensor], side: str) -> Tensor:
    return made[f"{side}attention_mask"].bool()


def alone(made: dict[str, Tensor], row: int) -> dict[str, Tensor]:
    """One row of a padded batch with its padding cut off."""
    cut = {}
    for name, value in made.items():
        part = value.chunk(3)[row]
        side = "decoder_" if name.startswith("decoder_") else ""
        if name.removeprefix("decoder_") in LONG and f"{side}attention_mask" in made:
            part = part[:, valid(made, side)[row]]
        cut[name] = part
    return cut


@pytest.mark.parametrize("padding", ["left", "right"])
@pytest.mark.parametrize("name", [name for name in WITH_TEXT if name not in PAIRS])
def test_a_padded_row_gives_what_it_gives_alone(name: str, padding: str):
    if padding == "left" and name in NO_LEFT:
        pytest.skip(NO_LEFT[name])
    made = example(built(name), batch=3, length=9, padding=padding)
    with torch.no_grad():
        together = built(name)(**made).logits
        mask = valid(made, "decoder_" if "decoder_input_ids" in made else "")
        for row in range(3):
            single = built(name)(**alone(made, row)).logits
            torch.testing.assert_close(together[row, mask[row]], single[0], atol=2e-4, rtol=2e-4)


def test_a_padded_caption_gives_clip_what_it_gives_alone():
    made = example(built("clip"), batch=3, length=9, padding="right")
    with torch.no_grad():
        together = built("clip")(**made).text_embeds
        singles = [built("clip")(**alone(made, row)).text_embeds[0] for row in range(3)]
    torch.testing.assert_close(together, torch.stack(singles), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("name", [name for name in WITH_TEXT if name != "whisper"])
def test_padding_lies_on_the_side_asked_for(name: str, batch: int):
    plain = example(built(name), batch=batch)
    assert plain["attention_mask"].all()
    for padding, edge in (("left", 0), ("right", -1)):
        made = example(built(name), batch=batch, padding=padding)
        mask = made["attention_mask"]
        assert mask.shape == plain["attention_mask"].shape == made["input_ids"].shape
        lengths = mask.sum(-1).tolist()
        assert min(lengths) < mask.shape[1]
        assert len(set(lengths)) == batch
        assert all(mask[row, edge] == 0 for row in range(batch) if lengths[row] < mask.shape[1])
        assert (mask.diff(dim=-1) != 0).sum(-1).max() == 1
        pad = getattr(built(name).config.get_text_config(), "pad_token_id", 0) if name != "plain" else 0
        assert (made["input_ids"][mask == 0] == pad).all()


@pytest.mark.parametrize("name", FAMILIES)
def test_a_seed_decides_everything(name: str):
    one, two, other = (example(built(name), batch=2, seed=seed) for seed in (5, 5, 6))
    assert all(torch.equal(one[key], two[key]) for key in one)
    assert not all(torch.equal(one[key], other[key]) for key in one)


@pytest.mark.parametrize("name", FAMILIES)
def test_floats_follow_the_model(name: str):
    made = example(tiny(name, dtype=torch.bfloat16))
    assert {value.dtype for value in made.values()} <= {torch.bfloat16, torch.long}


@pytest.mark.parametrize("name", WITH_IMAGE)
def test_images_stand_between_words_and_nowhere_else(name: str):
    config = built(name).config
    for padding in (None, "left", "right"):
        ids = example(built(name), batch=3, padding=padding)["input_ids"]
        image = ids == config.image_token_id
        assert len(set(image.sum(-1).tolist())) == 1
        assert image.sum(-1).min() >= 1
        assert (image.int().diff(dim=-1).abs().sum(-1) <= 2).all(), "one run of image tokens in each row"
        if hasattr(config, "video_token_id"):
            assert not (ids == config.video_token_id).any()


def test_a_caption_ends_where_clip_pools_it():
    made = example(built("clip"), batch=3, padding="right")
    ends = made["input_ids"] == built("clip").config.text_config.eos_token_id
    assert torch.equal(ends.nonzero()[:, 1], made["attention_mask"].sum(-1) - 1)


def test_mllama_words_before_the_image_are_blind_to_it():
    made = example(built("mllama"), batch=3, padding="left")
    start = (made["input_ids"] == built("mllama").config.image_token_id).int().argmax(-1)
    seen = made["cross_attention_mask"].any(-1).any(-1)
    assert (start > 0).all()
    for row in range(3):
        assert not seen[row, : start[row]].any()
        assert seen[row, start[row] :].all()
    tiles = made["aspect_ratio_mask"].sum((1, 2)).tolist()
    assert tiles == [1, 2, 1]
    assert (made["pixel_values"].abs().sum((1, 3, 4, 5)) > 0).sum(-1).tolist() == tiles


def test_every_known_layout_is_tried():
    types = {getattr(built(name).config, "model_type", None) for name in WITH_IMAGE}
    assert types == {name for name, family in families().items() if family.example is not None}


def test_words_are_no_special_ids():
    ids = example(built("llama"), batch=8, length=100)["input_ids"]
    assert not torch.isin(ids, torch.tensor([0, 1, 2])).any()
    assert ids.max() < 160
    assert len(ids.unique()) > 100


def bare(cls: str, **changes: object) -> nn.Module:
    """A released size of the class, weights nowhere, each stack one or two layers deep."""
    kind = getattr(transformers, cls)
    config = kind.config_class(**changes)
    for part in (config, *(getattr(config, name) for name in config.sub_configs)):
        for name in ("num_hidden_layers", "depth", "num_global_layers"):
            if hasattr(part, name):
                setattr(part, name, 1)
    with torch.device("meta"):
        return kind(config)


@pytest.mark.parametrize(
    ("cls", "changes", "count"),
    [
        ("LlavaForConditionalGeneration", {}, 24 * 24),
        ("LlavaNextForConditionalGeneration", {}, 24 * 24 + 24 * (48 + 1)),
        ("InternVLForConditionalGeneration", {}, 16 * 16),
        ("PaliGemmaForConditionalGeneration", {}, 16 * 16),
        ("Idefics3ForConditionalGeneration", {"vision_config": {"image_size": 364, "patch_size": 14}}, 13 * 13),
        ("Blip2ForConditionalGeneration", {"image_token_index": 50265}, 32),
        ("Gemma3ForConditionalGeneration", {}, 256),
        ("Qwen2VLForConditionalGeneration", {}, 6),
        ("MllamaForConditionalGeneration", {}, 1),
    ],
)  # fmt: skip
def test_released_sizes_have_their_known_number_of_image_tokens(cls: str, changes: dict[str, object], count: int):
    model = bare(cls, **changes)
    made = example(model, length=4)
    assert (made["input_ids"] == model.config.image_token_id).sum() == count


def test_released_towers_get_images_and_frames_of_their_size():
    assert example(bare("ViTModel"))["pixel_values"].shape == (1, 3, 224, 224)
    assert example(bare("WhisperModel"))["input_features"].shape == (1, 80, 3000)


def test_a_wrapper_is_asked_as_its_model_is():
    model = tiny("llama")
    inside = example(model, batch=2, padding="left")
    adapted = peft.get_peft_model(tiny("llama"), peft.LoraConfig(target_modules=["q_proj"]))
    for wrapper in (torch.compile(model), adapted):
        outside = example(wrapper, batch=2, padding="left")
        assert inside.keys() == outside.keys()
        assert all(torch.equal(inside[key], outside[key]) for key in inside)
    assert "input_ids" in example(tiny("transformer_bridge"))


class Silent(nn.Module):
    """Takes something nobody can guess."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 3)

    def forward(self, graph: Tensor) -> Tensor:
        return self.layer(graph)


def test_an_unknown_model_is_refused():
    with pytest.raises(ModelError, match=r"Silent.*forward takes graph.*example="):
        example(Silent())
    sizes = {"hidden_size": 12, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    model = transformers.ViltModel(transformers.ViltConfig(**sizes, image_size=32, patch_size=8)).eval()
    assert list(example(model)) == ["input_ids", "attention_mask", "pixel_values"]  # tried, and it goes
    model.embeddings.text_embeddings.word_embeddings = nn.Embedding(7, 5)
    with pytest.raises(ModelError, match=r"'vilt'.*does not know how it joins them.*example="):
        example(model)


@pytest.mark.parametrize("batch", [1, 2])
def test_the_model_says_how_many_tokens_a_picture_is(batch: int) -> None:
    text = {"vocab_size": 60, "hidden_size": 12, "num_hidden_layers": 1, "num_attention_heads": 2,
            "num_key_value_heads": 2, "intermediate_size": 16}  # fmt: skip
    vision = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24,
              "image_size": 16, "patch_size": 8}  # fmt: skip
    asked = transformers.VipLlavaForConditionalGeneration(
        transformers.VipLlavaConfig(
            vision_config={"model_type": "clip_vision_model", **vision}, text_config={"model_type": "llama", **text},
            image_token_index=50, vision_feature_layers=[-1, -2],
        )
    ).eval()  # fmt: skip
    told = transformers.DeepseekVLForConditionalGeneration(
        transformers.DeepseekVLConfig(
            vision_config={"model_type": "siglip_vision_model", **vision},
            text_config={"model_type": "llama", **text}, image_token_id=50,
        )
    ).eval()  # fmt: skip
    for model in (asked, told):
        made = example(model, batch=batch)
        assert (made["input_ids"] == 50).sum(1).tolist() == [4] * batch  # 2 x 2 patches
        assert model(**made).logits.shape[1] == 8 + 4


def test_an_image_without_an_id_is_refused():
    model = tiny("blip2")
    model.config.image_token_index = None
    with pytest.raises(ModelError, match="image_token_id is not set"):
        example(model)


@pytest.mark.parametrize("asked", [{"batch": 0}, {"length": 0}, {"padding": "middle"}])
def test_nonsense_is_refused(asked: dict[str, object]):
    with pytest.raises(InputsError, match="got"):
        example(built("gpt2"), **asked)


@pytest.mark.parametrize("name", ["gpt2", "t5", "llava", "paligemma", "mllama", "clip"])
def test_one_word_is_enough(name: str):
    for padding in (None, "left", "right"):
        with torch.no_grad():
            built(name)(**example(built(name), length=1, batch=3, padding=padding))


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize(
    "model_type",
    [
        *("decision_transformer", "pix2struct", "seggpt", "oneformer", "blip_2_qformer", "muse_glimmer_assistant"),
        *("gemma4_vision", "siglip2", "glm_image_vision", "minicpm_ocr_vision", "moonshine", "granite_speech5_ctc"),
        "nemotron3_5_transcribe_word_timestamp",
    ],
)
def test_what_other_models_are_called_with_is_tried_on_the_model(model_type: str, batch: int) -> None:
    module = build(model_type)
    with torch.no_grad():
        module(**example(module, batch=batch))


def test_words_are_no_more_than_a_model_has_positions() -> None:
    config = transformers.GPT2Config(n_positions=4, n_embd=16, n_layer=1, n_head=2, vocab_size=20)
    model = transformers.GPT2LMHeadModel(config).eval()
    made = example(model)
    assert made["input_ids"].shape == (1, 4)
    model(**made)
