# %% [markdown]
# # Heads of a denoiser, step by step
#
# A small diffusion transformer draws a coloured shape from noise. Its pipeline is a pipeline of diffusers, and
# everything here works with your own pipelines. A step is one call of the denoiser.

# %%
import torch

import interp

torch.set_num_threads(1)
m = interp.load("zoo:shapes-dit")  # or interp.attach(pipe), a pipeline that you hold
pipe, prompt = m.processor, "a red star ."


def sample(prompt=prompt, seed=7, **how):
    same = torch.Generator().manual_seed(seed)
    return pipe(prompt, num_inference_steps=10, generator=same, **how).images[0]


picture = sample()
picture.resize((192, 192), 0)

# %% [markdown]
# ## Where a word is
#
# The cells of the picture read the words in a separate tower, `cross`. The map of a word shows how much weight each
# cell gives to the word, in every step and head. It is recorded while the pipeline runs.

# %%
words = {word: interp.diffusion.columns(m, prompt, word) for word in ("red", "star")}
maps = interp.diffusion.maps(m, sample, words=words, per=("step", "layer", "head"))
maps.plot("star", picture)

# %% [markdown]
# For each step and head: the weight in the cell that gives the word the most.

# %%
table = maps.to_frame().query("word == 'star'")
table.pivot_table(index="place", columns="step", values="highest").round(2)

# %% [markdown]
# ## The picture over the steps
#
# The pictures show what each step made of the noise, from left to right. Then "star" is hidden from every cell, in the
# first four steps and in the last four. Rows without the prompt are not changed. When is the shape decided?


# %%
def steps(edits=()):
    seen = []

    def look(pipe, n, time, now):
        seen.append(now["latents"])
        return now

    with m.edited(list(edits)):
        sample(callback_on_step_end=look)
    return torch.cat([x.clamp(-1, 1) for x in seen], -1)


def hidden(when):
    return [interp.MaskKeys("cross.L*", keys=words["star"], steps=when, branch="cond")]


strips = [steps(), steps(hidden("0-3")), steps(hidden("6-9"))]
pipe.pil(torch.cat(strips, -2))[0].resize((960, 288), 0)

# %% [markdown]
# ## Another run's heads
#
# We take what the heads of `cross` write in a run about a blue star, and put it into this run at the same steps.

# %%
with m.watch(record="cross.L*.z") as blue:
    sample("a blue star .")
put = [
    interp.Set(str(site), value, steps=step, branch="cond")
    for step in range(blue.calls)
    for site, value in blue.at(step).items()
]
with m.edited(put):
    swapped = sample()
swapped.resize((192, 192), 0)

# %% [markdown]
# ## Now you
#
# - Put in the values of the blue run at the last five steps only, or for the cells of one half (`positions=`). What is
#   decided when?
# - `interp.diffusion.perturbed(m, "denoiser.L1-2.H*")` guides the picture away from what heads make when each token
#   looks only at itself. This helps where there is no other guidance (`guidance_scale=1`). `hunt` looks for the heads
#   that help most.
