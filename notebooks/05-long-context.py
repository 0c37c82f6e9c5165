# %% [markdown]
# # Long contexts
#
# No N x N tensor anywhere: statistics, masks and edits are computed inside or beside the attention kernel, so what
# works on a sentence works on a book. Here: heads that fetch a needle out of a long text, and heads that rest on the
# first token.

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
# A head retrieves where the one key it weighs most is the token that is about to be said, inside the needle. One
# prefill of prompt and answer, and only the answer's rows are looked at.

# %%
found = interp.retrieval_heads(m, needles)
found.top(6)

# %%
found.curve()

# %% [markdown]
# ## Looking is not doing
#
# So take the best ones away, on other needles, beside random heads of the same layers and output norm.

# %%
others = interp.tasks.needle(m, whole=True, lengths=[64, 128], depths=[0.3, 0.7], seed=1)
masked = interp.long.mask_heads(m, others, heads=found.top(4)["site"].tolist(), draws=5)
masked

# %% [markdown]
# ## Sinks
#
# How much of each head's attention rests on the first token, corrected for how many rows can see it.

# %%
rest = interp.sinks(m, needles.clean)
rest.top(6)

# %% [markdown]
# ## Any length
#
# Entropy and received attention of every head. `chunk=` reads the prompt in pieces through the cache, with the same
# numbers.

# %%
long = interp.tasks.needle(m, whole=True, lengths=[256], depths=[0.5])
stats = m.attention(long.clean, stats=["entropy", "received"], chunk=64)
stats

# %% [markdown]
# ## Now you
#
# - `generated=True` lets the model say the answer itself, as the paper does.
# - `m.generate(x, edits=[interp.edits.Streaming("L*", first=4, recent=32)])` keeps the first tokens and the latest ones
#   only. Which questions still work?
