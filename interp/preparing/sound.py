"""Sound from files and arrays, as mono clips of floats at the extractor's rate; whatever is not that is said.

Idea: models take any numbers for a waveform and answer wrongly to integers, to two channels read as two clips, and to
another rate, so a clip is checked before it is heard. Integers are scaled by the range of their type and the channels
of a file averaged, both printed; everything else that does not fit is refused. Cost: no forward pass.
Limits: files are WAV with integer samples (the standard library reads no other); nothing is resampled or cut.
"""

from __future__ import annotations

import wave
from collections.abc import Mapping, Sequence
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from interp.hooks.errors import InputsError

LOUDEST = 2.0
"""Floats beyond this are no waveform between -1 and 1, which may be overdriven a little."""
Clip = NDArray[np.float32]


def clips(audio: Any, rate: int, longest: int | None = None) -> list[Clip]:
    """Every clip of a batch, sampled `rate` times a second, at most `longest` samples long."""
    rows = [audio] if _is_one(audio) else list(audio)
    if not rows:
        raise InputsError("audio is empty: give at least one clip.")
    found = [_clip(row, f"clip {n}" if len(rows) > 1 else "audio", rate) for n, row in enumerate(rows)]
    for n, clip in enumerate(found):
        if longest is not None and len(clip) > longest:
            raise InputsError(
                f"clip {n} lasts {len(clip) / rate:.2f} s, and this model hears {longest / rate:g} s at once: cut it,"
                " for example into clip[:rate * seconds] and the rest."
            )
    return found


def _is_one(audio: Any) -> bool:
    """A path, a dict of one clip, an array, or a list of plain numbers."""
    if isinstance(audio, (str, Path, Mapping)) or not isinstance(audio, (list, tuple)):
        return True
    return len(audio) > 0 and all(isinstance(value, Real) for value in audio)


def _clip(value: Any, name: str, rate: int) -> Clip:
    if isinstance(value, (str, Path)):
        return _checked(*_read(Path(value)), name=str(value), wanted=rate)
    if isinstance(value, Mapping):
        if not {"array", "sampling_rate"} <= set(value):
            raise InputsError(f"{name} has {', '.join(map(str, value))}: a clip as a dict has array and sampling_rate.")
        return _checked(_array(value["array"], name), int(value["sampling_rate"]), name=name, wanted=rate)
    return _checked(_array(value, name), rate, name=name, wanted=rate)


def _array(value: Any, name: str) -> NDArray[Any]:
    """One row of numbers."""
    array = np.asarray(value.detach().cpu() if callable(getattr(value, "detach", None)) else value)
    if array.ndim == 2 and 1 in array.shape:
        array = array.reshape(-1)
    if array.ndim != 1:
        raise InputsError(
            f"{name} has shape {list(array.shape)}, expected one row of samples: give several clips as a list of rows,"
            " and of a stereo recording one channel or the mean of both."
        )
    return array


def _checked(array: NDArray[Any], rate: int, *, name: str, wanted: int) -> Clip:
    if not array.size:
        raise InputsError(f"{name} is empty: a clip has at least one sample.")
    if rate != wanted:
        raise InputsError(
            f"{name} is sampled {rate} times a second, and this model hears {wanted}: resample it first, for example"
            f" with scipy.signal.resample_poly(clip, {wanted}, {rate})."
        )
    sound = _floats(array, name)
    if not np.isfinite(sound).all():
        raise InputsError(f"{name} has samples that are not finite.")
    if float(np.abs(sound).max()) > LOUDEST:
        raise InputsError(
            f"{name} has values up to {float(np.abs(sound).max()):g}, and a waveform of floats is between -1 and 1:"
            " divide it by the range of the recording (32768 for 16 bits)."
        )
    return sound


def _floats(array: NDArray[Any], name: str) -> Clip:
    """Floats from -1 to 1; integers by the range of their type."""
    if array.dtype.kind == "f":
        return array.astype(np.float32)
    if array.dtype not in (np.uint8, np.int8, np.int16, np.int32):
        raise InputsError(
            f"{name} is an array of {array.dtype}: expected floats between -1 and 1, or int16 (int8, uint8, int32),"
            " whose range says what the loudest sample is."
        )
    print(f"{name}: {array.dtype} scaled to floats between -1 and 1")
    half = 2.0 ** (8 * array.dtype.itemsize - 1)
    return ((array.astype(np.float64) - (half if array.dtype == np.uint8 else 0.0)) / half).astype(np.float32)


def _read(path: Path) -> tuple[NDArray[Any], int]:
    """The samples of a WAV file, channels averaged, and their rate."""
    try:
        with wave.open(str(path), "rb") as file:
            channels, width, rate = file.getnchannels(), file.getsampwidth(), file.getframerate()
            raw = file.readframes(file.getnframes())
    except (OSError, EOFError, wave.Error) as error:
        raise InputsError(
            f"{path} cannot be read as a WAV file of integer samples ({error}): give an array of samples instead."
        ) from None
    array = _samples(raw, width, path).reshape(-1, channels)
    if channels > 1:
        print(f"{path}: {channels} channels averaged")
    return array.mean(1), rate


def _samples(raw: bytes, width: int, path: Path) -> Clip:
    """Little-endian integers of 1 to 4 bytes as floats; those of one byte have no sign."""
    if width not in (1, 2, 3, 4):
        raise InputsError(f"{path} has samples of {width} bytes, expected 1 to 4.")
    if width == 1:
        return ((np.frombuffer(raw, np.uint8).astype(np.float64) - 128) / 128).astype(np.float32)
    wide = np.zeros((len(raw) // width, 4), np.uint8)
    wide[:, 4 - width :] = np.frombuffer(raw, np.uint8).reshape(-1, width)
    return (wide.view("<i4")[:, 0] / 2.0**31).astype(np.float32)


def window_of(extractor: Any) -> int | None:
    """How many samples an extractor pads or cuts every clip to, if it does."""
    found = getattr(extractor, "n_samples", None)
    return found if isinstance(found, int) else None


def heard(extractor: Any, rows: Sequence[Clip], *, masked: bool) -> dict[str, Any]:
    """An extractor's batch of clips; with the mask of what is sound where the model takes one and was trained so."""
    window = window_of(extractor)
    how: dict[str, Any] = {} if window else {"padding": True}
    if masked and window:
        how["return_attention_mask"] = True
    batch = dict(extractor(list(rows), sampling_rate=extractor.sampling_rate, return_tensors="pt", **how))
    return batch if masked else {name: value for name, value in batch.items() if name != "attention_mask"}
