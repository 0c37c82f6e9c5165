"""Positions of towers that read sound: as many as the model's own code makes, filling told from sound."""

from __future__ import annotations

import copy
import math
from pathlib import Path

import pytest
import torch
from spoken import RATE, tone, wav2vec, whisper
from torch import Tensor

import interp
from interp.hooks.errors import InputsError
from interp.hooks.inputs.inputs import Inputs
from interp.hooks.inputs.labels import CODE
from interp.hooks.inputs.sound import sound_roles


def heard_by_whisper(*seconds: float, masked: bool = True) -> dict[str, Tensor]:
    model, processor = whisper()
    clips = [tone(length) for length in seconds]
    batch = processor(clips, sampling_rate=RATE, return_tensors="pt", return_attention_mask=masked)
    start = torch.full((len(seconds), 1), model.config.decoder_start_token_id)
    return {**batch, "decoder_input_ids": start}


@pytest.mark.parametrize("masked", [True, False], ids=["by the mask", "by the signal"])
def test_filling_of_whisper_is_not_sound(masked: bool) -> None:
    """A clip of 0.3 s has 30 frames and with them 15 positions; frames that hear its last samples may count."""
    model, processor = whisper()
    call = heard_by_whisper(0.3, 1.0, masked=masked)
    x = Inputs.of(call, config=model.config, extractor=processor.feature_extractor).tower("encoder")
    assert x.valid.shape == model(**call).encoder_last_hidden_state.shape[:2]
    counts = x.valid.sum(1).tolist()
    assert counts[1] == 50
    assert counts[0] == 15 if masked else 15 <= counts[0] <= 16
    assert x.valid[0, : counts[0]].all()
    assert (x.roles.kind[0, counts[0] :] == CODE["pad"]).all()
    assert x.mask("audio").sum(1).tolist() == counts
    assert x.mask("last")[0].nonzero().item() == counts[0] - 1


def test_silence_and_plain_numbers_count_whole() -> None:
    model, _ = whisper()
    for value in (torch.zeros(1, 8, 100), torch.randn(1, 8, 100)):
        assert sound_roles(model.config, {"input_features": value}).where("audio").all()


@pytest.mark.parametrize("norm", ["layer", "group"], ids=["by the mask", "by the signal"])
def test_filling_of_wav2vec_is_what_its_own_code_says(norm: str) -> None:
    model, extractor = wav2vec(norm)
    clips = [tone(0.03), tone(0.011)]
    call = dict(extractor(clips, sampling_rate=RATE, padding=True, return_tensors="pt"))
    assert ("attention_mask" in call) == (norm == "layer")
    x = Inputs.of(call, config=model.config, extractor=extractor)
    assert x.main == "audio"
    assert x.valid.shape == model(**call).logits.shape[:2]
    for clip, real in zip(clips, x.valid, strict=True):
        assert int(real.sum()) == int(model._get_feat_extract_output_lengths(len(clip)))
    assert interp.attach(model, extractor).run(call, record="L0.z")["L0.z"].shape[:2] == x.valid.shape


def test_positions_have_times() -> None:
    model, processor = whisper()
    roles = Inputs.of(
        heard_by_whisper(0.3), config=model.config, extractor=processor.feature_extractor
    ).tower("encoder").roles  # fmt: skip
    assert roles.seconds == pytest.approx(0.02)
    assert roles.label(0, 3) == "audio 0.06 s"
    assert roles.label(0, 40) == "pad"
    assert roles.during(0.06, 0.1) == (3, 5)
    assert roles.during(0.05, 0.11) == (2, 6)
    assert roles.during(0.9, 7.0) == (45, 50)
    with pytest.raises(InputsError, match=r"no stretch from 2.0 to 3.0 s: there are 1.00 s"):
        roles.during(2.0, 3.0)
    net, extractor = wav2vec()
    assert sound_roles(net.config, {"input_values": torch.randn(1, 400)}, extractor).seconds == 10 / RATE
    unknown = sound_roles(net.config, {"input_values": torch.randn(1, 400)})
    assert unknown.label(0, 0) == "audio"
    with pytest.raises(InputsError, match="attach the model with its processor"):
        unknown.during(0.0, 1.0)


def test_saved_and_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, processor = whisper()
    x = Inputs.of(heard_by_whisper(0.3), config=model.config, extractor=processor.feature_extractor)
    x.save(tmp_path)
    again = Inputs.load(tmp_path).tower("encoder")
    assert again.roles.seconds == pytest.approx(0.02)
    assert torch.equal(again.valid, x.tower("encoder").valid)
    again.show()
    shown = capsys.readouterr().out
    assert "audio 0.00 s" in shown
    assert len(shown.splitlines()) < 25


def test_speech2text_halves_twice_and_hides_filling_itself() -> None:
    import transformers as hf

    config = hf.Speech2TextConfig(
        d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2, decoder_attention_heads=2,
        encoder_ffn_dim=16, decoder_ffn_dim=16, max_source_positions=60, max_target_positions=20, conv_channels=16,
        input_feat_per_channel=8, vocab_size=60, decoder_start_token_id=2,
    )  # fmt: skip
    model = hf.Speech2TextForConditionalGeneration(config).eval()
    mask = torch.ones(2, 41, dtype=torch.long)
    mask[1, 20:] = 0
    call = {"input_features": torch.randn(2, 41, 8), "attention_mask": mask,
            "decoder_input_ids": torch.tensor([[2], [2]])}  # fmt: skip
    x = Inputs.of(call, config=config).tower("encoder")
    assert x.valid.shape == model(**call).encoder_last_hidden_state.shape[:2]
    own = model._get_feature_vector_attention_mask(x.length, mask) if hasattr(
        model, "_get_feature_vector_attention_mask") else None  # fmt: skip
    expected = torch.tensor([math.ceil(math.ceil(n / 2) / 2) for n in (41, 20)])
    assert x.valid.sum(1).tolist() == expected.tolist()
    assert own is None or torch.equal(own.bool(), x.valid)


def test_a_clip_too_short_for_one_position_is_refused() -> None:
    model, _ = wav2vec()
    with pytest.raises(InputsError, match="row 0 of input_values has 5 frames of sound, too few"):
        Inputs.of({"input_values": torch.randn(1, 5)}, config=model.config)


def test_filling_is_patched_where_it_is_asked_for() -> None:
    """Whisper sees it: only with it does all that the encoder says make the source's answer."""
    plain, processor = whisper()
    model = copy.deepcopy(plain)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(16 if parameter.ndim >= 2 else 1)
    m = interp.attach(model, processor)
    x, y = (m.prepare(audio=clip, language="en") for clip in (tone(0.3), tone(0.8, pitch=3000, seed=1)))
    moved = m.run(y)["logits"][0, -1] - m.run(x)["logits"][0, -1]

    def metric(logits: Tensor, inputs: Inputs) -> Tensor:
        return logits[:, -1, int(moved.argmax())] - logits[:, -1, int(moved.argmin())]

    site = "encoder.L1.resid_post"
    whole = float(metric(m.run(y)["logits"], y) - metric(m.run(x)["logits"], x))
    assert abs(whole) > 1e-2
    every, sound = (interp.patch(m, base=base, source=y, metric=metric, sites=site) for base in (x.whole("encoder"), x))
    assert float(every.values[0, 0]) == pytest.approx(whole, abs=2e-5)
    assert abs(float(sound.values[0, 0]) - whole) > 1e-3
    for name in (site, "encoder.L0.H1.z"):
        found = interp.patch(m, base=x, source=y, metric=metric, sites=name)
        mine, theirs = (m.run(run, record=name)[name] for run in (x, y))
        here = x.tower("encoder").valid.view(1, 50, *[1] * (mine.ndim - 2))
        patched = m.run(x, edits=[interp.Set(name, torch.where(here, theirs, mine))])["logits"]
        gap = float(metric(patched, x) - metric(m.run(x)["logits"], x))
        assert float(found.values[0, 0]) == pytest.approx(gap, abs=2e-5)
    assert x.whole("encoder").tower("encoder").mask("pad").sum() == 35
    assert x.whole("encoder").tower("encoder").mask("audio").sum() == 15
    assert x.whole("decoder").valid.all()
