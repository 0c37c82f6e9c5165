"""Sound given to prepare: heard is what the extractor makes of the same samples; what cannot be heard is said."""

from __future__ import annotations

import wave
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from spoken import RATE, tone, wav2vec, whisper

import interp
from interp.hooks.errors import InputsError
from interp.preparing.sound import clips


def written(path: Path, samples: np.ndarray, *, width: int = 2, rate: int = RATE, channels: int = 1) -> Path:
    """A WAV file of integers of so many bytes."""
    if width == 1:
        raw = np.rint(samples * 128 + 128).clip(0, 255).astype(np.uint8).tobytes()
    else:
        whole = np.rint(samples.astype(np.float64) * 2.0 ** (8 * width - 1)).clip(
            -(2.0 ** (8 * width - 1)), 2.0 ** (8 * width - 1) - 1
        )
        raw = b"".join(int(value).to_bytes(width, "little", signed=True) for value in whole.reshape(-1))
    with wave.open(str(path), "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(width)
        file.setframerate(rate)
        file.writeframes(raw)
    return path


@pytest.mark.parametrize(("width", "error"), [(1, 1 / 128), (2, 2**-15), (3, 2**-22), (4, 2**-22)])
def test_files_hold_the_waveform(tmp_path: Path, width: int, error: float) -> None:
    samples = tone(0.05)
    [read] = clips(written(tmp_path / "a.wav", samples, width=width), RATE)
    assert read.dtype == np.float32
    assert np.abs(read - samples).max() <= error


def test_a_file_of_two_channels_is_averaged_and_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    left, right = tone(0.05), tone(0.05, pitch=500, seed=1)
    path = written(tmp_path / "stereo.wav", np.stack([left, right], 1), channels=2)
    [read] = clips(str(path), RATE)
    assert np.abs(read - (left + right) / 2).max() < 2**-14
    assert "2 channels averaged" in capsys.readouterr().out


def test_integers_are_scaled_and_say_so(capsys: pytest.CaptureFixture[str]) -> None:
    samples = tone(0.05)
    for kind in (np.int16, np.int32):
        half = 2.0 ** (8 * np.dtype(kind).itemsize - 1)
        [read] = clips((samples * half).astype(kind), RATE)
        assert np.abs(read - samples).max() < 2**-14
        assert "scaled to floats" in capsys.readouterr().out
    [read] = clips(torch.from_numpy((samples * 2**15).astype(np.int16)), RATE)
    assert np.abs(read - samples).max() < 2**-14
    [read] = clips(np.array([0, 128, 255], np.uint8), RATE)
    assert read.tolist() == [-1.0, 0.0, 127 / 128]


def test_what_goes_in_in_any_form_is_the_same_call(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, processor = whisper()
    m = interp.attach(model, processor)
    samples = np.round(tone(0.4) * 2**15) / 2**15
    path = written(tmp_path / "a.wav", samples)
    forms: list[Any] = [
        samples, torch.from_numpy(samples), samples.tolist(), samples[None], path, str(path), [samples],
        {"array": samples, "sampling_rate": RATE}, (samples * 2**15).astype(np.int16),
    ]  # fmt: skip
    wanted = processor(samples, sampling_rate=RATE, return_tensors="pt").input_features
    for form in forms:
        x = m.prepare(audio=form, language="en")
        torch.testing.assert_close(x.kwargs["input_features"], wanted, atol=1e-4, rtol=0)
        assert x.tower("encoder").valid.sum(1).tolist() == [20]
    capsys.readouterr()


def test_a_batch_of_clips_is_each_clip_alone() -> None:
    model, extractor = wav2vec()
    m = interp.attach(model, extractor)
    both = [tone(0.03), tone(0.02, seed=1)]
    x = m.prepare(audio=both)
    assert x.valid.sum(1).tolist() == [47, 31]
    logits = m.run(x)["logits"]
    for row, clip in enumerate(both):
        alone = m.prepare(audio=clip)
        assert alone.valid.all()
        real = logits[row][x.valid[row]]
        torch.testing.assert_close(real, m.run(alone)["logits"][0], atol=1e-5, rtol=1e-4)


def test_a_model_that_takes_no_mask_while_training_gets_none_and_filling_is_known() -> None:
    model, extractor = wav2vec("group")
    x = interp.attach(model, extractor).prepare(audio=[tone(0.03), tone(0.02, seed=1)])
    assert "attention_mask" not in x.kwargs
    assert x.valid.sum(1).tolist() == [47, 31]


REFUSED: list[tuple[Any, str]] = [
    (np.zeros(0, np.float32), "audio is empty"),
    ([], "audio is empty"),
    ([tone(0.1), np.zeros(0)], "clip 1 is empty"),
    (np.stack([tone(0.1)] * 2), r"has shape \[2, 1600\], expected one row of samples.*one channel"),
    (np.stack([tone(0.1)] * 2, 1), r"has shape \[1600, 2\]"),
    ((tone(0.1) * 2**15).astype(np.int64), "array of int64"),
    ([1, 2, 3], "array of int64"),
    (tone(0.1) * 2**15, "divide it by the range"),
    (np.full(100, np.nan), "not finite"),
    (tone(1.2), r"clip 0 lasts 1.20 s, and this model hears 1 s at once: cut it"),
    ({"array": tone(0.1), "sampling_rate": 8000}, "sampled 8000 times a second.*hears 16000.*resample"),
    ({"array": tone(0.1)}, "array and sampling_rate"),
    ("missing.wav", "cannot be read as a WAV file"),
]


@pytest.mark.parametrize(("audio", "says"), REFUSED, ids=[says[:24] for _, says in REFUSED])
def test_what_cannot_be_heard_is_refused_in_words(audio: Any, says: str) -> None:
    m = interp.attach(*whisper())
    with pytest.raises(InputsError, match=f"(?s){says}"):
        m.prepare(audio=audio, language="en")


def test_files_that_are_no_wav_or_have_another_rate_are_refused(tmp_path: Path) -> None:
    m = interp.attach(*whisper())
    (tmp_path / "text.wav").write_text("no sound at all")
    with pytest.raises(InputsError, match="cannot be read as a WAV file of integer samples"):
        m.prepare(audio=tmp_path / "text.wav")
    path = written(tmp_path / "slow.wav", tone(0.1), rate=8000)
    with pytest.raises(InputsError, match=r"slow.wav is sampled 8000 times a second.*resample_poly\(clip, 16000, 8000"):
        m.prepare(audio=path)


def test_a_model_without_a_decoder_takes_no_text() -> None:
    m = interp.attach(*wav2vec())
    with pytest.raises(InputsError, match="Wav2Vec2ForCTC has no decoder"):
        m.prepare(audio=tone(0.1), continuation=" yes")


def test_an_encoder_decoder_of_waveforms() -> None:
    """SpeechT5's attention is out of reach, and `attach` says so; its positions are known."""
    import transformers as hf

    config = hf.SpeechT5Config(
        hidden_size=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2, decoder_attention_heads=2,
        encoder_ffn_dim=16, decoder_ffn_dim=16, conv_dim=(8, 8), conv_kernel=(10, 3), conv_stride=(5, 2),
        num_feat_extract_layers=2, num_conv_pos_embeddings=4, num_conv_pos_embedding_groups=2, vocab_size=40,
    )  # fmt: skip
    module = hf.SpeechT5ForSpeechToText(config).eval()
    m = interp.attach(module, hf.SpeechT5FeatureExtractor())
    x = m.prepare(audio=[tone(0.03), tone(0.02)])
    encoder = x.tower("encoder")
    assert encoder.valid.sum(1).tolist() == [47, 31]
    assert encoder.valid.shape == module(**x.kwargs).encoder_last_hidden_state.shape[:2]
    assert encoder.roles.seconds == 10 / RATE
    assert m.sites("encoder.L*.z") == ["encoder.L0.z"]  # by the names of its projections
