# %% [markdown]
# # Long contexts
#
# There is no N x N tensor anywhere. Statistics, masks and edits are computed together with the attention. So what works
# on a sentence works on a book. This lesson is about heads that find a needle in a long text, and about heads that rest
# on the first token.

# %%
import torch

import interp

torch.set_num_threads(1)
m = interp.load("zoo:needle")
needles = interp.tasks.needle(m, whole=True, lengths=[64, 128], depths=[0.2, 0.5, 0.8])
print(needles.rows[0].clean[:300])

# %% [markdown]
# ## Retrieval heads
#
# A head retrieves if the key with its largest weight is the token that the model is about to say, inside the needle. We
# run prompt and answer once, and read only the rows of the answer.

# %%
found = interp.retrieval_heads(m, needles)
found.top(6)

# %%
found.curve()

# %% [markdown]
# ## Looking is not doing
#
# So we take the best heads out, on other needles. For comparison we take out random heads with the same layers and a
# similar output norm.

# %%
others = interp.tasks.needle(m, whole=True, lengths=[64, 128], depths=[0.3, 0.7], seed=1)
masked = interp.long.mask_heads(m, others, heads=found.top(4)["site"].tolist(), draws=5)
masked

# %% [markdown]
# ## Sinks
#
# How much of each head's attention rests on the first token? The number is corrected for how many rows can see this
# token.

# %%
rest = interp.sinks(m, needles.clean)
rest.top(6)

# %% [markdown]
# ## Any length
#
# We compute entropy and received attention of every head. `chunk=` reads the prompt in pieces, through the cache, with
# the same numbers.

# %%
long = interp.tasks.needle(m, whole=True, lengths=[256], depths=[0.5])
stats = m.attention(long.clean, stats=["entropy", "received"], chunk=64)
stats

# %% [markdown]
# ## Now you
#
# - `generated=True` lets the model generate the answer itself, as in the paper.
# - `m.generate(x, edits=[interp.edits.Streaming("L*", first=4, recent=32)])` keeps only the first tokens and the latest
#   ones. Which questions still work?
