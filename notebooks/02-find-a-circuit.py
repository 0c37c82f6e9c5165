# %% [markdown]
# # Find a circuit, and judge it
#
# A circuit is a small set of connections that does the work of the whole model on one behaviour. Scores for all
# connections are cheap and approximate; so we check them, choose the circuit on one set of prompts, and judge it on
# another with other names and other sentences.

# %%
import torch

import interp

torch.set_num_threads(1)
m = interp.load("zoo:ioi")
task = interp.tasks.ioi(m, n=16)

# %% [markdown]
# ## Cheap scores, checked
#
# `attribute` takes two forward passes and one backward. It never travels alone: heads are patched exactly beside it, in
# both directions.

# %%
scores = interp.attribute(m, base=task.corrupt, source=task.clean, metric=task.metric, sites="L*.H*.z", method="relp")
scores.top(5)

# %%
scores.meta["verify"]

# %% [markdown]
# ## Connections
#
# Between the embedding, every head's q, k and v, every MLP and the logits. Noising: what is lost when a connection
# carries the corrupted prompt's value.

# %%
edges = interp.edges(m, base=task.clean, source=task.corrupt, metric=task.metric, method="eap-ig", steps=5)
edges

# %%
circuit = edges.circuit(fraction=0.05, signed=True)
circuit.draw(title="Indirect object identification")

# %% [markdown]
# ## Judged on prompts it has not seen
#
# f is the share of the behaviour that is left when everything outside the circuit is replaced. Beside it: how much is
# lost without the circuit, and random circuits of the same size and layers.

# %%
judged = interp.faithfulness(m, circuit, task.heldout, random=20)
judged

# %%
judged.plot()

# %% [markdown]
# ## Is the circuit real?
#
# Doing what the model does is one thing to ask of a circuit. `judge` asks the others: is it found again on other
# prompts and templates, does it hold when prompts are spoilt, does what stands outside it matter (other prompts', mean,
# zero, or a learned constant), and would a circuit drawn by chance have done as well?

# %%
verdict = interp.circuits.judge(m, circuit, task, random=30, parts=3, halves=3, ablation_steps=3)
verdict.to_frame()[["asked", "of", "value", "p", "holds"]]

# %%
verdict

# %% [markdown]
# This one is found again, and it needs the prompts it was found with: with means or zeros outside it f is near 0, so
# what it does, it does relative to them. With 30 draws no p-value can fall below 1/31; ask for 100 before you say more.

# %% [markdown]
# ## Now you
#
# - Half as many edges: `edges.circuit(fraction=0.025, signed=True)`. When does f fall?
# - The same circuit with `ablation="mean"` or `"zero"`. It was found with other prompts in place of it; how much of it
#   is true of the model, and how much of the replacement?
# - `circuit.save("circuit.json")` writes the file that EAP-IG and MIB read.
