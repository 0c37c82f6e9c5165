"""Arguments that a class of diffusers has alone, or wants in other axes than the rest: its row of a made-up call."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from interp.hooks.denoisers.wanted import COLUMNS, FRAMES, ROWS, WORDS, Wanted, cells

Maker = Callable[[Wanted], Any]
CELLS, SECONDS = ROWS * COLUMNS, 24


def _width(*names: str, axes: tuple[int, ...] = (WORDS,)) -> Maker:
    """Noise of the width that the config calls by one of these names."""
    return lambda w: w.noise(w.batch, *axes, w.number(*names))


def _size(*numbers: float) -> Maker:
    return lambda w: torch.tensor([numbers] * w.batch)


def _words_for_frame(w: Wanted) -> Tensor:
    """Wan wants 512 words where a first frame is given, as many as it takes off the end of words and frame."""
    return w.noise(w.batch, 512 if w.config.get("image_dim") else WORDS, w.text)


def _frame(w: Wanted) -> Tensor | None:
    """The tokens of a first frame, where there is one."""
    width = w.config.get("image_dim")
    return None if width is None else w.noise(w.batch, 5, int(width))


def _turned(length: int, width: int) -> tuple[Tensor, Tensor]:
    """Cosines and sines of rotary positions."""
    angles = torch.arange(length)[:, None] / 10.0 ** torch.arange(width // 2)
    return tuple(torch.cat([part, part], 1) for part in (angles.cos(), angles.sin()))  # type: ignore[return-value]


def _ranges(*sizes: int) -> Maker:
    return lambda w: tuple(torch.arange(size) for size in sizes)


def _sound(*names: str) -> Maker:
    """Noise with channels before time."""
    return lambda w: w.noise(w.batch, w.number(*names), SECONDS)


def _padding(w: Wanted) -> Tensor | None:
    """What of Cosmos' picture is padding: nothing."""
    return torch.zeros(1, 1, ROWS * w.patch, COLUMNS * w.patch) if w.config.get("concat_padding_mask") else None


def _lumina(w: Wanted) -> Tensor:
    """Rotations of cells by row and column, as complex numbers."""
    width = w.number("hidden_size") // w.number("num_attention_heads") // 2
    return torch.polar(torch.ones(ROWS, COLUMNS, width), 0.1 * cells(3)[:, 1:].sum(1).view(ROWS, COLUMNS, 1))


def _text_layers(w: Wanted) -> list[Tensor]:
    count = w.number("num_layers") + w.number("num_single_layers")
    return [w.noise(w.batch, WORDS, w.number("text_encoder_dim")) for _ in range(count)]


def _codes(w: Wanted) -> Tensor:
    """GLM-Image's codes, one a cell."""
    return torch.arange(CELLS).repeat(w.batch, 1) % w.number("prior_vq_quantizer_codebook_size")


def _second_words(w: Wanted) -> Tensor:
    """The words of HunyuanDiT's second encoder."""
    return w.noise(w.batch, w.number("text_len_t5"), w.number("cross_attention_dim_t5"))


def _slots(w: Wanted) -> Tensor:
    """Where Qwen-Image 2.1 puts the picture, four cells a slot: after the words."""
    return torch.cat([torch.zeros(w.batch, WORDS), torch.ones(w.batch, CELLS // 4)], 1).bool()


WAN: Mapping[str, Maker] = {"encoder_hidden_states": _words_for_frame, "encoder_hidden_states_image": _frame}
SIZES: Mapping[str, Maker] = {
    **dict.fromkeys(("original_size", "target_size"), _size(64.0, 96.0)), "crop_coords": _size(0.0, 0.0),
}  # fmt: skip
FOUR_AXES: Mapping[str, Maker] = {"img_ids": lambda w: cells(4), "txt_ids": lambda w: torch.zeros(WORDS, 4)}
FRAMES_FIRST: Mapping[str, Maker] = {"hidden_states": lambda w: w.frames(w.number("in_channels"))}
BEHIND: Mapping[str, Maker] = {
    "hidden_states": lambda w: w.film(w.number("in_visual_dim")).movedim(1, -1),
    "pooled_projections": lambda w: w.noise(w.batch, w.number("in_text_dim2")),
}
"""Kandinsky has its channels last."""
PICTURES: Mapping[str, Mapping[str, Maker]] = {
    "BriaFiboTransformer2DModel": {"text_encoder_layers": _text_layers},
    "BriaFibo2Transformer2DModel": {
        "encoder_hidden_states": lambda w: w.noise(w.batch, 1 + len(w.config["injection_layer_ids"]), WORDS, w.text)
    },
    "CogView3PlusTransformer2DModel": SIZES,
    "CogView4Transformer2DModel": SIZES,
    "DiTTransformer2DModel": {
        "hidden_states": lambda w: w.noise(w.batch, w.number("in_channels"), ROWS * w.patch, ROWS * w.patch),
        "timestep": lambda w: torch.full((w.batch,), 3),
    },
    "ErnieImageTransformer2DModel": {
        "text_bth": lambda w: w.noise(w.batch, WORDS, w.text), "text_lens": lambda w: torch.full((w.batch,), WORDS)
    },
    "Flux2Transformer2DModel": FOUR_AXES,
    "Flux3Transformer2DModel": FOUR_AXES,
    "GlmImageTransformer2DModel": {
        "prior_token_id": _codes,
        "prior_token_drop": lambda w: torch.zeros(w.batch, CELLS, dtype=torch.bool),
        "target_size": SIZES["target_size"], "crop_coords": SIZES["crop_coords"],
    },
    "HunyuanDiT2DModel": {
        "encoder_hidden_states": lambda w: w.noise(w.batch, w.number("text_len"), w.text),
        "encoder_hidden_states_t5": _second_words,
        "text_embedding_mask": lambda w: w.whole(w.number("text_len")),
        "text_embedding_mask_t5": lambda w: w.whole(w.number("text_len_t5")),
        "image_meta_size": _size(64.0, 96.0, 64.0, 96.0, 0.0, 0.0),
        "style": lambda w: torch.zeros(w.batch, dtype=torch.long),
        "image_rotary_emb": lambda w: _turned(CELLS, w.number("attention_head_dim")),
        "timestep": lambda w: torch.full((w.batch,), 3.0),
    },
    "Ideogram4Transformer2DModel": {
        "hidden_states": lambda w: w.noise(w.batch, WORDS + CELLS, w.number("in_channels")),
        "encoder_hidden_states": lambda w: w.noise(w.batch, WORDS + CELLS, w.number("llm_features_dim")),
        "position_ids": lambda w: torch.cat([torch.zeros(WORDS, 3), cells(3)]).long().repeat(w.batch, 1, 1),
        "segment_ids": lambda w: w.whole(WORDS + CELLS),
        "indicator": lambda w: torch.tensor([3] * WORDS + [2] * CELLS).repeat(w.batch, 1),
    },
    "Kandinsky3UNet": {"encoder_attention_mask": lambda w: w.whole(WORDS)},
    "Krea2Transformer2DModel": {
        "hidden_states": lambda w: w.noise(w.batch, CELLS, w.number("in_channels")),
        "encoder_hidden_states": lambda w: w.noise(w.batch, WORDS, w.number("num_text_layers"), w.text),
        "position_ids": lambda w: torch.cat([torch.zeros(WORDS, 3), cells(3)]),
    },
    "LuminaNextDiT2DModel": {"encoder_mask": lambda w: w.whole(WORDS), "image_rotary_emb": _lumina,
                             "cross_attention_kwargs": lambda w: {}},
    "OmniGenTransformer2DModel": {
        "input_ids": lambda w: torch.arange(2, 2 + WORDS).repeat(w.batch, 1),
        "input_img_latents": lambda w: [], "input_image_sizes": lambda w: {},
        "attention_mask": lambda w: w.whole(WORDS + 1 + CELLS, WORDS + 1 + CELLS).float(),
        "position_ids": lambda w: torch.arange(WORDS + 1 + CELLS).repeat(w.batch, 1),
    },
    "PriorTransformer": {
        **dict.fromkeys(("hidden_states", "proj_embedding"), _width("embedding_dim", axes=())),
        "encoder_hidden_states": lambda w: w.noise(w.batch, w.number("num_embeddings"), w.number("embedding_dim")),
    },
    "QwenImage21Transformer2DModel": {"img_mask": _slots},
}  # fmt: skip
FILMS: Mapping[str, Mapping[str, Maker]] = {
    "AnyFlowTransformer3DModel": {
        **FRAMES_FIRST, **dict.fromkeys(("timestep", "r_timestep"), lambda w: torch.full((w.batch, FRAMES), 0.5))
    },
    **dict.fromkeys(("CogVideoXTransformer3DModel", "ConsisIDTransformer3DModel"), FRAMES_FIRST),
    "CosmosTransformer3DModel": {"padding_mask": _padding},
    "HunyuanVideo15Transformer3DModel": {
        "encoder_hidden_states_2": _width("text_embed_2_dim", axes=(5,)),
        "encoder_attention_mask_2": lambda w: w.whole(5),
        "image_embeds": _width("image_embed_dim", axes=(3,)),
    },
    "HunyuanVideoFramepackTransformer3DModel": {
        "image_embeds": _width("image_proj_dim", axes=(5,)),
        "indices_latents": lambda w: torch.arange(7, 7 + FRAMES),
        "latents_clean": lambda w: w.film(w.number("in_channels"))[:, :, :1],
        "indices_latents_clean": lambda w: torch.tensor([6]),
        "latents_history_2x": lambda w: w.film(w.number("in_channels"))[:, :, :2],
        "indices_latents_history_2x": lambda w: torch.tensor([4, 5]),
        "latents_history_4x": lambda w: w.film(w.number("in_channels"))[:, :, [0, 1, 2, 2]],
        "indices_latents_history_4x": lambda w: torch.arange(4),
    },
    "I2VGenXLUNet": {
        **dict.fromkeys(("sample", "image_latents"), lambda w: w.film(w.number("in_channels"))),
        "fps": lambda w: torch.full((w.batch,), 8), "image_embeddings": _width("cross_attention_dim", axes=()),
    },
    "Kandinsky5Transformer3DModel": {
        **BEHIND, "visual_rope_pos": _ranges(FRAMES, ROWS, COLUMNS), "text_rope_pos": lambda w: torch.arange(WORDS)
    },
    "Kandinsky6Transformer3DModel": BEHIND,
    "LTX2VideoTransformer3DModel": {
        "audio_hidden_states": _width("audio_in_channels", axes=(5,)), "audio_num_frames": lambda w: 5,
        "audio_encoder_hidden_states": lambda w: w.noise(w.batch, WORDS, w.text), "sigma": _size(0.5),
    },
    "UNetMotionModel": {"sample": lambda w: w.film(w.number("in_channels"))},
    "UNetSpatioTemporalConditionModel": {
        "sample": lambda w: w.frames(w.number("in_channels")),
        "encoder_hidden_states": _width("cross_attention_dim", axes=(1,)), "added_time_ids": _size(6.0, 127.0, 0.02),
    },
    **dict.fromkeys(("ChronoEditTransformer3DModel", "SkyReelsV2Transformer3DModel", "WanTransformer3DModel"), WAN),
    "WanVACETransformer3DModel": {**WAN, "control_hidden_states": lambda w: w.film(w.number("vace_in_channels"))},
}  # fmt: skip
SOUNDS: Mapping[str, Mapping[str, Maker]] = {
    "AceStepTransformer1DModel": {
        "hidden_states": _width("audio_acoustic_hidden_dim", axes=(SECONDS,)),
        "context_latents": lambda w: w.noise(
            w.batch, SECONDS, w.number("in_channels") - w.number("audio_acoustic_hidden_dim")
        ),
        "encoder_hidden_states": _width("encoder_hidden_size", "hidden_size"),
        "timestep_r": lambda w: torch.full((w.batch,), 0.2),
    },
    "LongCatAudioDiTTransformer": {
        "hidden_states": _width("latent_dim", axes=(SECONDS,)), "latent_cond": _width("latent_dim", axes=(SECONDS,)),
        "encoder_attention_mask": lambda w: w.whole(WORDS).bool(),
    },
    "MiniMaxMusic3Transformer1DModel": {
        "hidden_states": _sound("in_channels"), "encoder_hidden_states": _width("condition_dim", axes=(SECONDS,)),
    },
    "StableAudio3DiTModel": {
        "hidden_states": _sound("io_channels"), "global_hidden_states": _width("global_cond_dim", axes=()),
    },
    "StableAudioDiTModel": {
        "hidden_states": _sound("in_channels"), "global_hidden_states": _width("global_states_input_dim", axes=(1,)),
        "rotary_embedding": lambda w: _turned(SECONDS + 1, w.number("attention_head_dim") // 2),
    },
    "UNet1DModel": {"sample": lambda w: w.noise(w.batch, w.number("in_channels"), 64)},
}  # fmt: skip
OWN: Mapping[str, Mapping[str, Maker]] = {**PICTURES, **FILMS, **SOUNDS}
"""By class."""
