"""Configs made small: what depends on what still fits, and every special token keeps an id of its own."""

from __future__ import annotations

import pytest

from interp.hooks.errors import ModelError
from interp.zoo.every import build, config_of, types
from interp.zoo.every.cannot import CANNOT, NEEDS
from interp.zoo.every.own import CLASSES, GIVEN, OWN
from interp.zoo.every.said import inside, put

pytestmark = pytest.mark.filterwarnings("ignore")


def test_a_picture_its_video_and_what_stands_around_it_have_ids_of_their_own() -> None:
    config = config_of("qwen2_vl")
    ids = [config.image_token_id, config.video_token_id, config.vision_start_token_id, config.vision_end_token_id]
    assert len(set(ids)) == len(ids)
    assert max(ids) < config.text_config.vocab_size


@pytest.mark.parametrize("model_type", ["deepseek_v3", "youtu", "kimi_linear", "longcat_flash"])
def test_latent_attention_has_keys_of_every_head_and_queries_of_both_parts(model_type: str) -> None:
    config = config_of(model_type)
    assert config.num_key_value_heads == config.num_attention_heads
    assert config.qk_head_dim == config.qk_nope_head_dim + config.qk_rope_head_dim
    assert config.head_dim == config.qk_rope_head_dim


def test_what_a_config_leaves_to_its_checkpoints_is_filled_in() -> None:
    config = config_of("hunyuan_v1_dense")
    assert config.head_dim * config.num_attention_heads == config.hidden_size
    assert config_of("dots1").n_routed_experts == 4


def test_a_backbone_that_a_package_builds_by_name_becomes_one_of_transformers() -> None:
    assert config_of("detr").backbone_config.model_type == "resnet"


def test_values_are_put_where_their_names_lead() -> None:
    config = config_of("qwen2_vl")
    sections = [1, 1, 2]
    put(config, inside("text_config", {"rope_parameters.mrope_section": sections, "hidden_size": 64}))
    assert config.text_config.hidden_size == 64
    assert config.text_config.rope_parameters["mrope_section"] == sections
    sections.append(3)
    assert config.text_config.rope_parameters["mrope_section"] == [1, 1, 2]


def test_tables_speak_of_types_that_there_are() -> None:
    named = {*OWN, *GIVEN, *CLASSES, *CANNOT, *NEEDS}
    assert not named - set(types())


def test_a_type_that_cannot_be_built_says_why() -> None:
    with pytest.raises(ModelError, match="reuses the keys of another model"):
        build("gemma4_assistant")
