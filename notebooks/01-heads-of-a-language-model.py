# %% [markdown]
# # Heads of a language model
#
# A head reads from some tokens and writes to others. In ten minutes: which heads of a small model matter for one
# behaviour, where they look, and what they write. The model ships with the toolkit, so nothing is downloaded; put your
# own directory or hub name in place of `zoo:ioi` and the rest stays as it is.

# %%
import torch

import interp

torch.set_num_threads(1)
m = interp.load("zoo:ioi")
task = interp.tasks.ioi(m, n=24).filter()

# %%
interp.explore(m, task, title="Who was given the drink?")  # where every head looks, to click through

# %% [markdown]
# Numbers come after checks: what this toolkit says about the model is held against the model itself.

# %%
m.check()

# %% [markdown]
# ## The behaviour
#
# "When Mary and John went to the store, John gave a drink to" should go on with "Mary". A task holds many such prompts,
# a corrupted twin of each, and a metric: the logit of the right name minus that of the wrong one.

# %%
print(task.rows[0].clean, "|", *task.rows[0].answers)
print(task.rows[0].corrupt)
print(task.metric(m.run(task.clean)["logits"], task.clean).mean())

# %% [markdown]
# ## Which heads matter
#
# Put each head's output of the clean run into the corrupted one, and see how far the answer comes back. Every number is
# exact: the model is run again from the head on, and three cells of every sweep are compared with plain full passes.

# %%
effects = interp.patch(m, base=task.corrupt, source=task.clean, metric=task.metric, sites="L*.H*.z")
effects.top(5)

# %%
effects.plot()

# %% [markdown]
# Effects smaller than the noise floor are no effects; it is what unchanged rows of the same batches gave.

# %%
effects.noise_floor

# %% [markdown]
# ## What they write
#
# A head can matter because it writes the answer, or because a later head needs what it found. The direct effect is what
# it adds to the answer with nothing in between.

# %%
direct = interp.patching.direct_effect(m, task.clean, metric=task.metric).only("result")
direct.top(5)

# %% [markdown]
# Seen through the unembedding, the best writer should say the right name.

# %%
writer = direct.top(1).site.item().removesuffix(".result")
said = interp.lens(m, task.clean, sites=f"{writer}.result", answers=task.answer_ids, norm="frozen")
said

# %% [markdown]
# ## Where it looks
#
# Patterns are computed for the head and the rows you name, from what the attention call was given, under the
# implementation your model already uses.

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
# The same heads by the published definitions, on random tokens said several times.

# %%
roles = interp.head_roles(m)
roles.top(8)

# %%
roles.figure(n=8)

# %% [markdown]
# ## Now you
#
# - Turn the question around: `base=task.clean, source=task.corrupt`. Which heads are necessary, and which were only
#   sufficient?
# - `positions="each"` with `sites="L*.resid_pre"` shows when the name arrives at the last token.
# - `interp.head(m, writer, task)` puts everything about one head on one card.
