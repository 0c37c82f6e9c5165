"""The pipeline of the small denoiser does what it says, and what its pictures show is read off as a person would."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from denoisers import library
from torch import Tensor

import interp
from interp.prompts.scenes import COLORS, SHAPES, Scene, Thing
from interp.zoo import shown

library()
from interp.zoo.shapes_pipeline import PromptError, ShapesPipeline  # noqa: E402  (diffusers has to be there)

PROMPTS = ["a red circle .", "a white star ."]


@pytest.fixture(scope="module")
def m() -> interp.Model:
    return interp.load("zoo:shapes-dit")


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def by_hand(pipe: ShapesPipeline, x: Tensor, *, steps: int, guidance: float) -> Tensor:
    """The flow from noise to picture, one step and one branch after the other, in float64."""
    ids = pipe.tokenizer.get_vocab()
    asked = torch.zeros(len(PROMPTS), 4, len(ids), dtype=torch.float64)
    nothing = asked.clone()
    nothing[:, :, ids["<pad>"]] = 1
    for row, prompt in enumerate(PROMPTS):
        for column, word in enumerate(prompt.split()):
            asked[row, column, ids[word]] = 1
    times = torch.linspace(1000, 1, steps, dtype=torch.float64)
    for n, time in enumerate(times):
        at = {"timestep": time.float().expand(len(x))}
        plain, led = (pipe.transformer(x, encoder_hidden_states=words, **at).sample for words in (nothing, asked))
        after = times[n + 1] if n + 1 < steps else 0.0
        seen = plain + guidance * (led - plain)
        x = x + (after - time) / time * (x - seen)
    return x


@torch.no_grad()
def test_a_run_is_the_flow_under_guidance(m: interp.Model) -> None:
    pipe = m.processor
    made = pipe(PROMPTS, num_inference_steps=3, guidance_scale=2.5, generator=seeded(), output_type="pt").images
    noise = torch.randn(2, 3, 24, 24, generator=seeded()).double()
    pipe.transformer.double()
    try:
        expected = by_hand(pipe, noise, steps=3, guidance=2.5)
    finally:
        pipe.transformer.float()
    torch.testing.assert_close(made.double(), expected, atol=2e-4, rtol=0)


def test_noise_is_by_generator(m: interp.Model) -> None:
    pipe = m.processor
    both = pipe(PROMPTS, num_inference_steps=2, generator=[seeded(1), seeded(2)], output_type="pt").images
    last = pipe(PROMPTS[1], num_inference_steps=2, generator=seeded(2), output_type="pt").images
    given = pipe(PROMPTS[1], num_inference_steps=2, latents=pipe.noise(1, seeded(2)), output_type="pt").images
    torch.testing.assert_close(both[1:], last, atol=1e-5, rtol=0)
    assert torch.equal(given, last)
    two = pipe(PROMPTS[0], num_images_per_prompt=2, num_inference_steps=1, generator=seeded())
    assert [image.size for image in two.images] == [(24, 24)] * 2


def test_a_callback_sees_every_step_and_may_change_it(m: interp.Model) -> None:
    seen: list[Tensor] = []

    def look(pipe: ShapesPipeline, n: int, time: Tensor, now: dict[str, Tensor]) -> dict[str, Tensor]:
        seen.append(now["latents"])
        return {"latents": torch.zeros_like(seen[-1])} if n == 1 else {}

    how = {"num_inference_steps": 2, "output_type": "pt", "callback_on_step_end": look}
    made = m.processor(PROMPTS, generator=seeded(), **how).images
    assert len(seen) == 2
    assert not made.any()
    assert m.processor.pil(made)[0].getpixel((3, 3)) == (128, 128, 128)


def test_what_was_not_trained_on_is_refused(m: interp.Model) -> None:
    with pytest.raises(PromptError, match=r"of the words .*circle.*got 'a pink circle \.'"):
        m.processor("a pink circle .")
    with pytest.raises(PromptError, match="expected a prompt such as"):
        m.processor("a red circle and a blue star .")
    with pytest.raises(PromptError, match="one for each of 2 pictures, got 1"):
        m.processor(PROMPTS, generator=[seeded()])
    with pytest.raises(PromptError, match="'pil' or 'pt', got 'np'"):
        m.processor(PROMPTS, output_type="np")


def test_it_is_held_by_its_denoiser_and_knows_its_words(m: interp.Model) -> None:
    assert isinstance(m.processor, ShapesPipeline)
    assert m.processor.transformer is m.module
    assert interp.attach(m.processor) is m
    assert interp.diffusion.columns(m, PROMPTS[0], "circle") == [2]


def pictures() -> Tensor:
    """Two small scenes and one of ground alone."""
    red = Thing("circle", "red", (24, 2, 46, 24))
    white = Thing("bar", "white", (4, 28, 24, 48))
    scenes = [Scene((red,), noise=0.0), Scene((white,), noise=0.0), Scene((), noise=0.0)]
    large = torch.from_numpy(np.stack([scene.image for scene in scenes])).permute(0, 3, 1, 2).float() / 127.5 - 1
    return torch.nn.functional.avg_pool2d(large, 2)


def test_color_and_box_are_read_off_the_pixels() -> None:
    seen = pictures()
    assert shown.colors(seen).tolist() == [list(COLORS).index("red"), list(COLORS).index("white"), -1]
    found = shown.boxes(seen) * 24
    assert found[0].tolist() == [12, 1, 23, 12]
    left, top, right, bottom = found[1].tolist()  # a bar is the middle third of its box
    assert (left, right) == (2, 12)
    assert 14 < top < bottom < 24
    assert found[2].tolist() == [0] * 4


def test_right_is_both_words() -> None:
    judge = interp.load("zoo:shapes-vit").module
    asked = ["a red circle .", "a green bar .", "a red circle ."]
    assert shown.right(pictures()[:2], asked[:2], judge).tolist() == [[1, 1], [0, 1]]
    assert shown.right(pictures(), asked, judge)[2, 0] == 0
    assert len(shown.PROMPTS) == len(COLORS) * len(SHAPES)
