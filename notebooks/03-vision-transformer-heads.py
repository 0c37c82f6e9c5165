# %% [markdown]
# # Heads of a vision transformer
#
# The same calls work on pictures. Tokens are patches. The row and the column of each patch come from the processor and
# the model, never from a square root.

# %%
import torch

import interp

torch.set_num_threads(1)
m = interp.load("zoo:shapes-vit")
task = interp.tasks.shapes(m, n=16)
task.rows[0].image

# %%
x = task.clean
x.roles.row[0], x.roles.col[0]

# %% [markdown]
# ## Which heads matter
#
# The corrupted picture has another shape at the same place.

# %%
heads = interp.patch(m, base=task.corrupt, source=task.clean, metric=task.metric, sites="L*.H*.z")
heads.top(5)

# %% [markdown]
# ## Which patches matter
#
# We patch the residual of one layer, patch by patch, and draw the effects over the picture.

# %%
patches = interp.patch(
    m, base=task.corrupt, source=task.clean, metric=task.metric, sites="L1.resid_pre", positions="each"
)
patches.over_image(task.clean, task.rows[0].image, row=0)

# %% [markdown]
# ## How far they look
#
# Statistics are computed together with the attention, without a pattern. The distance is in patches on the grid.

# %%
stats = m.attention(x, stats=["entropy", "distance", "received"])
stats["distance"].mean(["example", "position"]).round(2).to_pandas()

# %% [markdown]
# ## Which can go
#
# We measure importance in several ways. Then we take out the least important heads and see what is left.

# %%
table = interp.importance(m, task, by=["zero", "gradient", "norm"])
table.agreement()

# %% [markdown]
# ## Now you
#
# - `interp.load("zoo:shapes-vit-registers")` has four tokens that belong to no patch. Where does the attention go that
#   rested on patches before? `interp.sinks` says it.
# - `interp.relevance(m, x, method="chefer", ...)` answers the same question with gradients. Does it agree with
#   patching?
