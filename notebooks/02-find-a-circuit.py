# %% [markdown]
# # Find a circuit, and judge it
#
# A circuit is a small set of connections that does the work of the whole model for one behaviour. Scores for all
# connections are cheap, and they are estimates. So we check them. We choose the circuit on one set of prompts. Then we
# judge it on another set, with other names and other sentences.

# %%
import torch

import interp

torch.set_num_threads(1)
m = interp.load("zoo:ioi")
task = interp.tasks.ioi(m, n=16)

# %% [markdown]
# ## Cheap scores, checked
#
# `attribute` takes two forward passes and one backward pass. Its estimates are always checked: some heads are patched
# exactly too, in both directions.

# %%
scores = interp.attribute(m, base=task.corrupt, source=task.clean, metric=task.metric, sites="L*.H*.z", method="relp")
scores.top(5)

# %%
scores.meta["verify"]

# %% [markdown]
# ## Connections
#
# A connection runs between the embedding, every head's q, k and v, every MLP and the logits. Here we use noising: how
# much is lost when a connection carries the value of the corrupted prompt?

# %%
edges = interp.edges(m, base=task.clean, source=task.corrupt, metric=task.metric, method="eap-ig", steps=5)
edges

# %%
circuit = edges.circuit(fraction=0.05, signed=True)
circuit.draw(title="Indirect object identification")

# %% [markdown]
# ## Judged on prompts it has not seen
#
# f is the share of the behaviour that is left when everything outside the circuit is replaced. The result also shows
# how much is lost without the circuit, and random circuits with the same size and layers.

# %%
judged = interp.faithfulness(m, circuit, task.heldout, random=20)
judged

# %%
judged.plot()

# %% [markdown]
# ## Is the circuit real?
#
# A circuit should do what the model does. `judge` asks more. Is the circuit found again on other prompts and templates?
# Does it hold when prompts are spoilt? Does it depend on what replaces the rest of the model (the values of other
# prompts, the mean, zero, or a learned constant)? Would a random circuit do as well?

# %%
verdict = interp.circuits.judge(m, circuit, task, random=30, parts=3, halves=3, ablation_steps=3)
verdict.to_frame()[["asked", "of", "value", "p", "holds"]]

# %%
verdict

# %% [markdown]
# This circuit is found again. But it needs the prompts that it was found with: with means or zeros outside of it, f is
# near 0. So what it does, it does relative to these prompts. With 30 draws, no p-value can be below 1/31. Ask for 100
# draws before you say more.

# %% [markdown]
# ## Now you
#
# - Take half as many edges: `edges.circuit(fraction=0.025, signed=True)`. When does f fall?
# - Judge the same circuit with `ablation="mean"` or `"zero"`. It was found with values of other prompts. How much of it
#   belongs to the model, and how much to the replacement?
# - `circuit.save("circuit.json")` writes the file format of EAP-IG and MIB.
