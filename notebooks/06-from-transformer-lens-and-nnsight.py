# %% [markdown]
# # Coming from TransformerLens and nnsight
#
# The model stays a model of transformers. The names that you know are read, and the numbers are the same: this page
# checks both. `docs/from-transformer-lens.md` and `docs/from-nnsight.md` have thirty calls side by side.

# %%
import torch
from transformers import GPT2Config, GPT2LMHeadModel

import interp

torch.set_num_threads(1)
torch.manual_seed(0)
config = GPT2Config(n_layer=2, n_head=4, n_embd=32, n_positions=64, vocab_size=97, bos_token_id=0, eos_token_id=0)
hf_model = GPT2LMHeadModel(config).eval()
ids = torch.randint(0, 97, (2, 10))
m = interp.attach(hf_model)

# %% [markdown]
# | TransformerLens | interp |
# |---|---|
# | `model.run_with_cache(ids)` | `m.run(ids, record=[...])` |
# | `cache["blocks.1.attn.hook_z"]` | `tape["blocks.1.attn.hook_z"]` or `tape["L1.z"]` |
# | `cache["pattern", 1]` | `tape["L1.pattern"]`, for the heads you name |
# | `run_with_hooks(fwd_hooks=[...])` | `m.run(ids, edits=[interp.Zero("L1.H2.z")])` |
# | `patching.get_act_patch_attn_head_out_all_pos` | `interp.patch(m, ..., sites="L*.H*.z")` |
# | `patching.get_act_patch_resid_pre` | `interp.patch(m, ..., sites="L*.resid_pre", positions="each")` |

# %%
x = {"input_ids": ids}
tape = m.run(x, record=["blocks.1.attn.hook_z", "L0.pattern"])
tape["blocks.1.attn.hook_z"].shape, tape["L0.pattern"].shape

# %% [markdown]
# ## The same numbers as TransformerLens
#
# We put a bridge around a copy of the same weights.

# %%
import copy

from transformer_lens.model_bridge.sources._bridge_builder import build_bridge_from_module

inner = copy.deepcopy(hf_model)
inner.set_attn_implementation("eager")
bridge = build_bridge_from_module(inner, "GPT2LMHeadModel", hf_config=inner.config)
with torch.no_grad():
    _, cache = bridge.run_with_cache(ids)
torch.testing.assert_close(tape["L1.z"], cache["blocks.1.attn.hook_z"].view_as(tape["L1.z"]))

# %% [markdown]
# You can attach a bridge too: `interp.attach(bridge)`. Recordings can be given back under the names of TransformerLens:

# %%
list(tape.to_transformer_lens())

# %% [markdown]
# ## Inside nnsight
#
# You attach an nnsight model as it is. Its traces see the edited run.

# %%
from nnsight import NNsight

traced = NNsight(hf_model)
n = interp.attach(traced)
with n.edited([interp.Zero("L1.H2.z")]), traced.trace(ids):
    logits = traced.lm_head.output.save()
torch.testing.assert_close(logits, n.run(x, edits=[interp.Zero("L1.H2.z")])["logits"])

# %% [markdown]
# ## A sweep in one call
#
# One call patches the z of every head. It needs much less work than a loop of forward passes;
# `experiments/bench/patching.py` measures how much.

# %%
other = torch.cat([ids[:, :4], torch.randint(0, 97, (2, 6))], 1)
effects = interp.patch(
    m, base=x, source={"input_ids": other}, metric=lambda logits, inputs: logits[:, -1, 5], sites="L*.H*.z"
)
effects.to_array()

# %% [markdown]
# ## Now you
#
# - Attach your own model, read `m.check()`, and look at what a site means in it: `m.sites("L*.H0.z")`.
# - Move one of your hook functions to interp. What it changes becomes an edit, a value that you can print and save.
