"""A pipeline of diffusers that draws a small scene from two words, as `zoo:shapes-dit` has it.

    pipe("a red circle .", generator=torch.Generator().manual_seed(0)).images

The prompt is four words, each a one-hot vector, which the denoiser embeds itself; without a prompt all are `<pad>`.
The denoiser says what picture it sees in the noise, and the scheduler goes towards it:

    x_s = (1 - s) picture + s noise,    seen = seen_uncond + g (seen_cond - seen_uncond),    flow = (x_s - seen) / s.

There is no autoencoder: latents are the pixels, from -1 to 1. Cost: one call of the denoiser a step, both branches of
guidance in one batch. Limits: no negative prompt; unknown words are refused, other orders of known ones are not.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers.pipelines.pipeline_utils import ImagePipelineOutput
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from interp.kernels.errors import InterpError

WORDS = 4
"""Tokens of a prompt."""
Callback = Callable[[Any, int, Tensor, dict[str, Tensor]], dict[str, Tensor]]
Generators = torch.Generator | Sequence[torch.Generator] | None


class PromptError(InterpError):
    """A prompt that the model was not trained on."""


class ShapesPipeline(diffusers.DiffusionPipeline):
    """Noise to pictures under the guidance of a prompt."""

    def __init__(self, transformer: Any, scheduler: Any, tokenizer: Any) -> None:
        super().__init__()
        self.register_modules(transformer=transformer, scheduler=scheduler, tokenizer=tokenizer)

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | Sequence[str],
        *,
        num_inference_steps: int = 20,
        guidance_scale: float = 3.0,
        num_images_per_prompt: int = 1,
        generator: Generators = None,
        latents: Tensor | None = None,
        output_type: str = "pil",
        callback_on_step_end: Callback | None = None,
    ) -> Any:
        """Pictures as PIL images, or with `output_type="pt"` as a tensor [n, 3, row, column] from -1 to 1.

        `callback_on_step_end(pipe, step, time, {"latents": x})` sees what each step made, and what it returns under
        `"latents"` is gone on with, as in diffusers.
        """
        if output_type not in ("pil", "pt"):
            raise PromptError(f"output_type= is 'pil' or 'pt', got {output_type!r}")
        words = self.words(prompt).repeat_interleave(num_images_per_prompt, 0)
        x = self.noise(len(words), generator) if latents is None else latents
        guided = guidance_scale > 1
        words = torch.cat([self.words([""] * len(words)), words]) if guided else words
        self.scheduler.set_timesteps(num_inference_steps)
        for n, time in enumerate(self.progress_bar(self.scheduler.timesteps)):
            seen = self._seen(x, words, time, guidance_scale)
            x = self.scheduler.step(self._flow(x, seen, time), time, x).prev_sample
            if callback_on_step_end is not None:
                x = callback_on_step_end(self, n, time, {"latents": x}).get("latents", x)
        return ImagePipelineOutput(images=x if output_type == "pt" else self.pil(x))

    def words(self, prompt: str | Sequence[str]) -> Float[Tensor, "prompt word vocabulary"]:
        """One-hot vectors of the words, `<pad>` where there are none."""
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        ids = self.tokenizer(prompts, padding="max_length", max_length=WORDS)["input_ids"]
        for one, row in zip(prompts, ids, strict=True):
            if len(row) > WORDS or self.tokenizer.unk_token_id in row:
                known = ", ".join(self._vocabulary())
                raise PromptError(f"expected a prompt such as 'a red circle .', of the words {known}; got {one!r}")
        return torch.nn.functional.one_hot(torch.tensor(ids), len(self.tokenizer)).to(self.transformer.dtype)

    def noise(self, count: int, generator: Generators = None) -> Float[Tensor, "count channel row column"]:
        """What a run starts from; a list of generators has one for each picture."""
        shape = (self.transformer.config.in_channels, *[self.transformer.config.sample_size] * 2)
        if generator is None or isinstance(generator, torch.Generator):
            return torch.randn(count, *shape, generator=generator)
        if len(generator) != count:
            raise PromptError(f"expected one generator, or one for each of {count} pictures, got {len(generator)}")
        return torch.stack([torch.randn(shape, generator=one) for one in generator])

    def _flow(self, x: Tensor, seen: Tensor, time: Tensor) -> Tensor:
        """From the picture that is seen to the noise."""
        return (x - seen) * self.scheduler.config.num_train_timesteps / time

    def _seen(self, x: Tensor, words: Tensor, time: Tensor, guidance: float) -> Tensor:
        """The picture that the denoiser sees, under guidance where there are rows without the prompt."""
        every = torch.cat([x] * (len(words) // len(x)))
        found: Tensor = self.transformer(every, encoder_hidden_states=words, timestep=time.expand(len(every))).sample
        if len(found) == len(x):
            return found
        plain, asked = found.chunk(2)
        return plain + guidance * (asked - plain)

    def _vocabulary(self) -> list[str]:
        """The words that prompts are made of."""
        return [word for word in self.tokenizer.get_vocab() if not word.startswith("<")]

    def pil(self, x: Float[Tensor, "count 3 row column"]) -> list[Any]:
        """Pixels from -1 to 1 as PIL images."""
        images: list[Any] = self.numpy_to_pil((x / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).float().numpy())
        return images


def read(folder: Path) -> ShapesPipeline:
    """The pipeline that a folder holds, in float32."""
    transformer = diffusers.PixArtTransformer2DModel.from_pretrained(folder, local_files_only=True)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True)
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler.from_pretrained(folder, local_files_only=True)
    pipe = ShapesPipeline(transformer.eval(), scheduler, tokenizer)
    pipe.set_progress_bar_config(disable=True)
    return pipe
