"""Model types that nobody prepared, built from their configs: held whole, or refused in words that help."""

from __future__ import annotations

import warnings

import pytest
import torch
import transformers

import interp
from interp.cli import main
from interp.commands import verdicts
from interp.commands.verdicts import TypeRow, examine, totals
from interp.hooks.errors import ModelError
from interp.hooks.unseen.guess import guessed
from interp.zoo.every import build, config_of, types

pytestmark = [pytest.mark.families, pytest.mark.filterwarnings("ignore")]

HELD = {
    "falcon": "sdpa",
    "aimv2_vision_model": "sdpa",
    "codegen": "border",
    "deberta-v2": "border",
    "mpnet": "border",
    "rembert": "border",
    "swinv2": "border",
    "afmoe": "interface",
    "aya_vision": "interface",
    "bitnet": "interface",
    "chinese_clip": "interface",
    "clip_text_model": "interface",
    "deepseek_v32": "interface",
    "dinov3_vit": "interface",
    "dpt": "interface",
    "qwen3_next": "interface",
    "siglip": "interface",
    "zaya": "interface",
}
"""Types that each stood for a cause of refusals, and where their attention is seen."""


@pytest.mark.parametrize("model_type", HELD)
def test_types_that_were_refused_or_left_out_are_held_whole(model_type: str) -> None:
    row = examine(model_type)
    assert row.verdict == "pass", row
    assert HELD[model_type] in row.standpoints


@pytest.mark.parametrize("model_type", ["fnet", "convnext", "mamba"])
def test_a_model_without_heads_is_told_so(model_type: str) -> None:
    row = examine(model_type)
    assert row.verdict == "no heads"
    assert "has no attention heads" in row.why
    assert "family" not in row.why


@pytest.mark.parametrize("model_type", ["convbert", "xlnet"])
def test_what_cannot_be_held_is_refused_with_the_module_that_attends(model_type: str) -> None:
    row = examine(model_type)
    assert row.verdict == "refused"
    assert "computes its own softmax" in row.why
    assert "layer.0" in row.why


def test_heads_that_are_mixed_before_the_output_are_not_believed() -> None:
    """ConvBERT joins convolutions to its heads: by name it is a BERT, by behaviour it is none."""
    module = build("convbert")
    assert guessed(module, {"input_ids": torch.randint(5, 90, (1, 8))}) is None


def test_a_guessed_family_reads_what_the_output_projection_reads() -> None:
    m = interp.attach(build("deberta-v2"))
    m.ready()
    ids = torch.randint(5, 90, (2, 7))
    read: list[torch.Tensor] = []
    out = m.module.get_submodule(str(m.anatomy.towers["text"].layers[1].out))
    handle = out.register_forward_pre_hook(lambda _, args: read.append(args[0]))
    tape = m.run(ids, record=["L1.z", "L1.v"])
    handle.remove()
    assert torch.equal(tape["L1.z"].flatten(2), read[0])
    assert tape["L1.v"].shape == tape["L1.z"].shape


def test_attention_that_is_not_held_is_named() -> None:
    """SigLIP pools its patches by an attention of torch's that is asked for its weights, which no standpoint sees."""
    config = transformers.SiglipVisionConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, image_size=32, patch_size=8
    )
    m = interp.attach(transformers.SiglipVisionModel(config).eval())
    assert "not held: " in str(m.anatomy)
    assert "head.attention" in str(m.anatomy)
    notes = [line for line in m.check().lines if line.name == "heads"]
    assert len(notes) == 1
    assert notes[0].verdict == "note"


def test_gradients_reach_z_behind_a_gate() -> None:
    m = interp.attach(build("afmoe"))
    assert m.capabilities()["gradient"].answer == "yes"


def test_a_sweep_that_is_not_the_loop_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    by_hand = verdicts._by_hand
    monkeypatch.setattr(verdicts, "_by_hand", lambda *args: by_hand(*args) + 0.5)
    row = examine("llama")
    assert row.verdict == "wrong"
    assert "off a loop" in row.why


def test_what_breaks_is_a_crash_and_what_cannot_be_built_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    row = examine("layoutlmv2")
    assert (row.verdict, row.why) == ("not built", "it needs detectron2, which is not installed.")
    assert "does not have" in examine("voxtral_realtime_text").why
    monkeypatch.setattr(verdicts, "STEPS", (("refused", lambda model, row: 1 / 0),))
    row = examine("llama")
    assert row.verdict == "crash"
    assert "ZeroDivisionError" in row.why


def test_every_type_has_a_class_and_a_small_config() -> None:
    names = types()
    assert len(names) > 300
    assert {"llama", "vit", "whisper", "t5", "llava"} <= set(names)
    assert config_of("llama").num_hidden_layers == 2
    with pytest.raises(ModelError, match="no class of transformers"):
        build("no-such-type")


def test_the_command_prints_a_line_a_type_and_the_totals(capsys: pytest.CaptureFixture[str]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert main(["doctor", "--all", "gpt2", "fnet"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[:2]] == ["gpt2", "fnet"]
    assert "1 pass" in lines[-1]
    rows = [TypeRow("a", "pass"), TypeRow("b", "refused"), TypeRow("c", "no heads"), TypeRow("d", "not built")]
    assert totals(rows).endswith("50.0% of 2 that could be judged pass")


@pytest.mark.parametrize("model_type", ["audio-spectrogram-transformer", "qwen3_5", "speech_to_text", "videomae"])
def test_inputs_of_no_record_are_tried_on_the_model(model_type: str) -> None:
    row = examine(model_type)
    assert row.verdict == "pass", row


def test_the_loop_patches_the_pass_that_the_sweep_patches() -> None:
    assert examine("albert").verdict == "pass"


def test_a_model_that_draws_random_numbers_is_refused_with_the_reason() -> None:
    row = examine("vilt")
    assert row.verdict == "refused"
    assert "draws random numbers" in row.why


def test_a_decoder_of_a_series_is_asked_for_no_words() -> None:
    assert examine("time_series_transformer").verdict == "pass"


def test_a_tokenizer_of_sound_is_not_told_twice_that_it_keeps_no_cache() -> None:
    assert examine("pocket_tts_audio_tokenizer").verdict == "pass"
