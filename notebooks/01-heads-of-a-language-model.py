# %% [markdown]
# # Heads of a language model
#
# A head reads from some tokens and writes to others. In ten minutes you will see which heads of a small model matter
# for one behaviour, where they look, and what they write. The model ships with the toolkit, so nothing is downloaded.
# To use your own model, write its directory or hub name instead of `zoo:ioi`.

# %%
import torch

import interp

torch.set_num_threads(1)
m = interp.load("zoo:ioi")
task = interp.tasks.ioi(m, n=24).filter()

# %%
interp.explore(m, task, title="Who was given the drink?")  # where every head looks, to click through

# %% [markdown]
# First come checks, then numbers. The toolkit compares what it says about the model with the model itself.

# %%
m.check()

# %% [markdown]
# ## The behaviour
#
# After "When Mary and John went to the store, John gave a drink to", the model should say "Mary". A task holds many
# such prompts. For each prompt it has a corrupted one, and a metric: the logit of the right name minus the logit of the
# wrong name.

# %%
print(task.rows[0].clean, "|", *task.rows[0].answers)
print(task.rows[0].corrupt)
print(task.metric(m.run(task.clean)["logits"], task.clean).mean())

# %% [markdown]
# ## Which heads matter
#
# For each head, put its output from the clean run into the corrupted run, and measure how far the answer comes back.
# Every number is exact: the model is run again from this head on. In every sweep, three cells are compared with plain
# full passes.

# %%
effects = interp.patch(m, base=task.corrupt, source=task.clean, metric=task.metric, sites="L*.H*.z")
effects.top(5)

# %%
effects.plot()

# %% [markdown]
# An effect that is smaller than the noise floor is not an effect. The noise floor is what unchanged rows of the same
# batches give.

# %%
effects.noise_floor

# %% [markdown]
# ## What they write
#
# A head can matter because it writes the answer, or because a later head needs what it found. The direct effect is what
# a head adds to the answer without any later layer.

# %%
direct = interp.patching.direct_effect(m, task.clean, metric=task.metric).only("result")
direct.top(5)

# %% [markdown]
# If we read the output of the best writer through the unembedding, it should say the right name.

# %%
writer = direct.top(1).site.item().removesuffix(".result")
said = interp.lens(m, task.clean, sites=f"{writer}.result", answers=task.answer_ids, norm="frozen")
said

# %% [markdown]
# ## Where it looks
#
# A pattern is computed only for the head and the rows that you name. It is computed from the inputs of the attention
# call. The model keeps its own attention implementation.

# %%
interp.figures.attention(m, task.clean, writer, row=0)

# %%
pattern = m.run(task.clean, record=[f"{writer}.pattern"])[f"{writer}.pattern"]
last = int(task.clean.valid[0].nonzero().max())
weights = pattern[0, 0, last].tolist()
sorted(zip(weights, task.clean.tokens[0], strict=True), reverse=True)[:5]

# %% [markdown]
# ## Roles
#
# These are the same heads by the published definitions of roles, measured on random tokens that are said several times.

# %%
roles = interp.head_roles(m)
roles.top(8)

# %%
roles.figure(n=8)

# %% [markdown]
# ## Now you
#
# - Ask the opposite question: `base=task.clean, source=task.corrupt`. Which heads are necessary? Which were only
#   sufficient?
# - `positions="each"` with `sites="L*.resid_pre"` shows when the name arrives at the last token.
# - `interp.head(m, writer, task)` shows everything about one head on one card.
