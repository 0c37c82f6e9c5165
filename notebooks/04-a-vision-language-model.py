# %% [markdown]
# # A vision-language model
#
# How a picture reaches the answer of a model that sees and talks: which image tokens, which heads, in which layer.

# %%
import warnings

import torch

import interp

torch.set_num_threads(1)
warnings.filterwarnings("ignore", message=".*patched in full forward passes")
m = interp.load("zoo:shapes-lvlm")
print(m.check())

# %% [markdown]
# ## Prompts are tokens with roles
#
# Same question, two pictures: one with the shape and one without it.

# %%
asked = interp.tasks.shapes(m, n=24, style="yes_no")
task = asked.take([n for n, row in enumerate(asked.rows) if row.meta["answer"] == "yes"])
print(task.rows[0].clean)
task.rows[0].image

# %%
roles = m.roles(task.clean)
roles

# %% [markdown]
# ## Where in the picture
#
# Every image token's residual of the picture with the shape, put into the run of the picture without it.

# %%
each = interp.patch(
    m, base=task.corrupt, source=task.clean, metric=task.metric, sites="text.L0.resid_pre", positions="each"
)
each.over_image(task.clean, task.rows[0].image, row=0)

# %% [markdown]
# ## Which way it goes
#
# Block attention from the image to the last token, and from the image to the word that is asked for, layer by layer.

# %%
blocked = {
    "image to last": [("image", "last")],
    "image to the word": [("image", task.positions["shape"])],
    "the word to last": [(task.positions["shape"], "last")],
}
{
    name: [round(float(v), 2) for v in interp.patching.knockout(m, task.clean, metric=task.metric, edges=edge).mean]
    for name, edge in blocked.items()
}

# %% [markdown]
# ## Which heads
#
# Of both towers, in one call.

# %%
heads = interp.patch(
    m, base=task.corrupt, source=task.clean, metric=task.metric, sites=["text.L*.H*.z", "vision.L*.H*.z"]
)
heads.top(6)

# %% [markdown]
# Attention to the image is not the effect of the image. Put the two side by side:

# %%
stats = m.attention(task.clean, stats=["mass:image"], heads="text.L*")
stats["mass:image"].isel(position=-1).mean("example").round(2).to_pandas()

# %% [markdown]
# ## Now you
#
# - `kind="adversarial"` asks for things that usually come with what is shown. How often does the model say yes, and
#   which heads make it?
# - One picture and two questions: write two prompts with the same picture and patch between them.
