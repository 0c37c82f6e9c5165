"""Maps of words against recorded patterns, what an expression refers to, and the tokens of a word."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from denoisers import denoiser, flux, pipeline, pixart, sd3, sdxl
from torch import Tensor

import interp
from interp.diffusion.maps import Maps
from interp.hooks.errors import InputsError, ModelError, NotFired

CELLS = 24
WORDS: dict[str, list[int]] = {"red": [2, 3], "ball": [5]}
RUNS: dict[str, tuple[str, str, Callable[[Any], Tensor], str, slice, int]] = {
    "sd3": ("StableDiffusion3Pipeline", "SD3Transformer2DModel", sd3, "", slice(0, CELLS), CELLS),
    "flux": ("FluxPipeline", "FluxTransformer2DModel", flux, "", slice(7, 7 + CELLS), 0),
    "pixart": ("PixArtSigmaPipeline", "PixArtTransformer2DModel", pixart, "cross.", slice(None), 0),
}
"""Pipeline, denoiser, run, tower, which queries are cells, where words start among the keys."""


def made(case: str) -> tuple[interp.Model, Callable[[], Tensor]]:
    kind, name, run, *_ = RUNS[case]
    pipe = pipeline(kind, denoiser(name))
    return interp.attach(pipe), lambda: run(pipe)


def expected(m: interp.Model, run: Callable[[], Any], case: str, site: str, columns: list[int]) -> Tensor:
    """[step, example, head, row, column] from whole patterns, which these are small enough for."""
    *_, tower, cells, first = RUNS[case]
    with m.watch(record=f"{tower}{site}.pattern") as tape:
        run()
    weights = tape[f"{tower}{site}.pattern"][:, :, :, cells]
    rows = [n for n, branch in enumerate(tape.branches[0]) if branch == "cond"]
    return weights[:, rows][..., [first + n for n in columns]].sum(-1).unflatten(-1, (4, 6))


@pytest.mark.parametrize("case", RUNS)
def test_maps_are_the_weights_that_cells_give_to_words(case: str) -> None:
    m, run = made(case)
    found = interp.diffusion.maps(m, run, words=WORDS, per=("step", "layer", "head"))
    tower = RUNS[case][3]
    for word, columns in WORDS.items():
        wanted = expected(m, run, case, "L1", columns)
        for step in range(len(wanted)):
            for head in (0, 1):
                own = found.of(word, place=f"{tower}L1.H{head}", step=step)[:, 0]
                torch.testing.assert_close(own, wanted[step, :, head], atol=1e-6, rtol=0)


@pytest.mark.parametrize("case", RUNS)
def test_what_is_not_asked_for_is_averaged(case: str) -> None:
    m, run = made(case)
    by_layer = interp.diffusion.maps(m, run, words=WORDS, per=("layer",), steps="1-2")
    tower = RUNS[case][3]
    wanted = expected(m, run, case, "L1", WORDS["red"])[1:3].mean((0, 2))
    torch.testing.assert_close(by_layer.of("red", place=f"{tower}L1")[:, 0], wanted, atol=1e-6, rtol=0)
    one = interp.diffusion.maps(m, run, words=WORDS, per=())
    assert (one.places, one.steps) == (("",), (-1,))
    layers = [int(layer.index) for layer in m.anatomy.towers[tower.rstrip(".") or "denoiser"].layers]
    every = torch.stack([expected(m, run, case, f"L{n}", WORDS["ball"]).mean((0, 2)) for n in layers]).mean(0)
    torch.testing.assert_close(one.of("ball")[:, 0], every, atol=1e-6, rtol=0)


def test_what_words_give_to_cells() -> None:
    m, run = made("sd3")
    found = interp.diffusion.maps(m, run, words=WORDS, per=("step", "layer", "head"), reads="word")
    with m.watch(record="L1.pattern") as tape:
        run()
    rows = [n for n, branch in enumerate(tape.branches[0]) if branch == "cond"]
    wanted = tape["L1.pattern"][2][rows][:, 1][:, [CELLS + 2, CELLS + 3], :CELLS].mean(1).unflatten(-1, (4, 6))
    torch.testing.assert_close(found.of("red", place="L1.H1", step=2)[:, 0], wanted, atol=1e-6, rtol=0)
    other, run = made("pixart")
    with pytest.raises(InputsError, match="do not look at cells"):
        interp.diffusion.maps(other, run, words=WORDS, reads="word")


def test_edits_are_in_the_maps() -> None:
    m, run = made("sd3")
    with m.edited([interp.MaskKeys("L1.H0", keys=[CELLS + 5])]):
        found = interp.diffusion.maps(m, run, words=WORDS)
    assert not found.of("ball", place="L1.H0").any()
    assert bool((found.of("ball", place="L1.H1") > 0).all())
    with m.edited([interp.edits.SoftIdentity("L1.H0", 1.0)]):
        found = interp.diffusion.maps(m, run, words={"all": range(7)})
        with m.watch(record="L1.pattern") as tape:
            run()
    wanted = tape["L1.pattern"][:, 2:, 0, :CELLS, CELLS:].sum(-1).mean(0).unflatten(-1, (4, 6))
    torch.testing.assert_close(found.of("all", place="L1.H0")[:, 0], wanted, atol=1e-6, rtol=0)


def test_smaller_pictures_of_a_unet_are_laid_over_the_largest() -> None:
    pipe = pipeline("StableDiffusionXLPipeline", denoiser("UNet2DConditionModel"))
    m = interp.attach(pipe)
    found = interp.diffusion.maps(m, lambda: sdxl(pipe, steps=1), words=WORDS)
    with m.watch(record="cross.L0.pattern") as tape:
        sdxl(pipe, steps=1)
    weights = tape["cross.L0.pattern"][0]
    rows, columns = found.values.shape[-2:]
    assert weights.shape[2] * 4 == rows * columns
    small = weights[2:, 1][..., WORDS["red"]].sum(-1).unflatten(-1, (rows // 2, columns // 2))
    large = found.of("red", place="cross.L0.H1")[:, 0]
    torch.testing.assert_close(large, small.repeat_interleave(2, 1).repeat_interleave(2, 2), atol=1e-6, rtol=0)


def test_maps_are_saved_and_drawn(tmp_path: Any) -> None:
    m, run = made("sd3")
    found = interp.diffusion.maps(m, run, words=WORDS, per=("layer",))
    found.save(tmp_path)
    again = interp.open(tmp_path)
    assert torch.equal(again.values, found.values)
    assert (again.words, again.places) == (found.words, found.places)
    frame = found.to_frame()
    assert len(frame) == 3 * 2 * 2
    one = found.of("red", place="L1")[1, 0]
    at = found.peak("red", place="L1")[1].tolist()
    assert one[at[1], at[2]] == one.max()
    own = frame[(frame.place == "denoiser.L1") & (frame.word == "red") & (frame.example == 1)].iloc[0]
    assert [own["row"], own["column"]] == at[1:]
    figure = found.plot("red", torch.zeros(32, 48, 3).byte().numpy(), example=1, place="L1")
    assert torch.equal(torch.tensor(figure.data[1].z).float(), one)


def test_what_maps_refuse() -> None:
    m, run = made("flux")
    with pytest.raises(InputsError, match="no word 9, the call has 7"):
        interp.diffusion.maps(m, run, words={"far": [9]})
    with pytest.raises(InputsError, match="at least one for each"):
        interp.diffusion.maps(m, run, words={"none": []})
    with pytest.raises(InputsError, match="'step', 'layer' and 'head'"):
        interp.diffusion.maps(m, run, words=WORDS, per=("heads",))
    with pytest.raises(NotFired, match="never called"):
        interp.diffusion.maps(m, lambda: None, words=WORDS)
    with pytest.raises(NotFired, match="call 7"):
        interp.diffusion.maps(m, run, words=WORDS, steps=7)
    with pytest.raises(InputsError, match="no map of 'blue'"):
        interp.diffusion.maps(m, run, words=WORDS).of("blue")
    with pytest.raises(ModelError, match="no denoiser"):
        interp.diffusion.maps(interp.load("zoo:induction"), run, words=WORDS)
    assert all(not module._forward_pre_hooks for module in m.module.modules())


def planted() -> Maps:
    """Two words in corners, a stop word in a third, and one that takes much everywhere."""
    values = torch.full((1, 2, 4, 1, 4, 6), 0.01)
    values[:, 0, 0, :, 0, 0] = values[:, 1, 0, :, 3, 5] = 0.5
    values[:, 0, 1, :, 0, 0] = values[:, 1, 1, :, 3, 5] = 0.05
    values[:, :, 2, :, 2, 2] = 0.9
    values[:, :, 3] = 0.6
    return Maps(values, ("red", "ball", "the", "eh"), (-1,), ("",), "cell")


def test_an_expression_is_where_its_words_are_without_magnets_and_sinks() -> None:
    found = interp.diffusion.refer(planted())
    assert (found.kept, found.dropped, found.sinks) == (("red", "ball"), ("the",), ("eh",))
    assert found.point.tolist() == [[0, 0, 0], [0, 3, 5]]
    inside = interp.diffusion.pointing(found.point, [[0, 0, 0.5, 0.5], [0, 0, 0.5, 0.5]], grid=(4, 6))
    assert inside.tolist() == [True, False]
    whole = planted()
    two = interp.diffusion.refer(Maps(whole.values[:, :, [0, 3]], ("red", "eh"), (-1,), ("",), "cell"))
    assert (two.kept, two.sinks) == (("red", "eh"), ())  # of two words none is above three times the middle
    magnets = interp.diffusion.refer(planted(), magnets=["ball"])
    assert (magnets.kept, magnets.dropped) == (("red",), ("ball", "the"))
    with pytest.raises(InputsError, match="the magnet 'a'"):
        interp.diffusion.refer(planted(), magnets=["a"])
    with pytest.raises(InputsError, match="no word is left"):
        interp.diffusion.refer(planted(), magnets=["red", "ball"])
    with pytest.raises(InputsError, match="one box"):
        interp.diffusion.pointing(found.point, [[0, 0, 1, 1]], grid=(4, 6))


def tokenizer() -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {word: n for n, word in enumerate("[UNK] a red ball and blue".split())}
    made = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()  # type: ignore[assignment]
    return PreTrainedTokenizerFast(tokenizer_object=made, unk_token="[UNK]", pad_token="[UNK]")


def test_the_columns_of_a_word_by_the_pipelines_tokenizers() -> None:
    three = pipeline("StableDiffusion3Pipeline", denoiser("SD3Transformer2DModel"), tokenizer=tokenizer(),
                     tokenizer_3=tokenizer())  # fmt: skip
    m = interp.attach(three)
    prompt = "a red ball and a blue ball"
    assert interp.diffusion.columns(m, prompt, "ball", occurrence=2) == [6, 77 + 6]
    assert interp.diffusion.columns(m, prompt, "red ball") == [1, 2, 78, 79]
    with pytest.raises(InputsError, match="green"):
        interp.diffusion.columns(m, prompt, "green")
    qwen = pipeline("QwenImagePipeline", denoiser("QwenImageTransformer2DModel"), tokenizer=tokenizer())
    qwen.prompt_template_encode, qwen.prompt_template_encode_start_idx = "a blue ball : {} and", 4
    assert interp.diffusion.columns(interp.attach(qwen), prompt, "ball") == [2]
    bare = interp.attach(denoiser("SD3Transformer2DModel"))
    with pytest.raises(InputsError, match="say the columns yourself"):
        interp.diffusion.columns(bare, prompt, "ball")


def test_encoders_are_models_of_their_own() -> None:
    from transformers import CLIPTextConfig, CLIPTextModel

    config = CLIPTextConfig(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24,
                            vocab_size=40, max_position_embeddings=12)  # fmt: skip
    pipe = pipeline("FluxPipeline", denoiser("FluxTransformer2DModel"), text_encoder=CLIPTextModel(config).eval())
    found = interp.diffusion.encoders(pipe)
    assert list(found) == ["text_encoder"]
    tape = found["text_encoder"].run({"input_ids": torch.randint(3, 30, (1, 6))}, record="L1.pattern")
    assert tape["L1.pattern"].shape == (1, 2, 6, 6)
    with pytest.raises(ModelError, match="no text encoders"):
        interp.diffusion.encoders(pipeline("FluxPipeline", denoiser("FluxTransformer2DModel")))
