# %% [markdown]
# # Why does it say that there is a circle?
#
# A vision-language model gets a picture without a circle, and says that there is one. Which heads look at the picture
# when the model is right? Where do they look when it is wrong? What must be hidden from them so that the model says no?

# %%
import numpy as np
import pandas as pd
import torch
from PIL import Image

import interp
from interp.prompts.scenes import ask, place

torch.set_num_threads(1)
m = interp.load("zoo:shapes-lvlm")
print(m.check())

# %% [markdown]
# ## It says so, and not everywhere
#
# We ask the same question about pictures of one thing that is not a circle, and about pictures of a circle. In the
# training scenes, a circle often came with a cross.

# %%
QUESTION = "<image> " + ask("circle")
yes, no = (m.tokenizer(word, add_special_tokens=False)["input_ids"][0] for word in (" yes", " no"))


def scenes(*shapes, n=24, seed=0):
    """Pictures, and the box of the first shape in each."""
    random = np.random.default_rng(seed)
    found = [place(shapes, random) for _ in range(n)]
    return [Image.fromarray(one.image) for one in found], [one.things[0].box for one in found]


def asked(pictures):
    """The question about each picture."""
    return m.prepare([QUESTION] * len(pictures), images=[[one] for one in pictures])


def says_yes(logits, _=None):
    """How much more the last token says yes than no."""
    return logits[:, -1, yes] - logits[:, -1, no]


rates = {}
for shape in ("circle", "cross", "square", "ring"):
    x = asked(scenes(shape)[0])
    rates[shape] = float((says_yes(m.run(x)["logits"]) > 0).double().mean())
pd.Series(rates, name="says that there is a circle").round(2)

# %% [markdown]
# So the question alone is not the reason, and not every shape is: it is the cross. We keep the pictures of a cross in
# which the model says yes.

# %%
pictures, boxes = scenes("cross", n=120, seed=1)
wrong = (says_yes(m.run(asked(pictures))["logits"]) > 0).nonzero().flatten().tolist()
pictures, boxes = ([some[n] for n in wrong] for some in (pictures, boxes))
fooled = asked(pictures)
print(len(wrong), "pictures with a cross in which it sees a circle")
pictures[0]

# %% [markdown]
# ## Which heads would have to look
#
# We take pictures that do have a circle, and measure three things for each head: its weight on the image, what happens
# to the answer when the image is hidden from this head (`knock-out`), and how far its output depends on the picture
# (`vhd`). The three may disagree, so the table shows all of them.

# %%
true, circles = scenes("circle", seed=2)
looking = interp.vision.heads(m, asked(true), metric=says_yes)
table = looking.table()
table.sort_values("knock-out").head(6).round(3)

# %%
looking.agreement().round(2)

# %% [markdown]
# The three do not agree much. A head that looks at the picture may do nothing for this answer. A head can have no
# effect alone because other heads make up for its loss. So we take the four best heads by each measure, and test them
# on the false circle.

# %%
heads = {
    "attention mass": list(table["attention mass"].nlargest(4).index),
    "knock-out": list(table["knock-out"].nsmallest(4).index),
    "vhd": list(table["vhd"].nlargest(4).index),
}
heads

# %% [markdown]
# ## Where they look when it is wrong
#
# `ground` takes where the word "circle" looks, and puts it on the picture. If there is a circle, do the heads point at
# it? If there is none, do they point at the cross? `chance` is a random point.

# %%
right, misled = (interp.vision.ground(m, given, about="circle") for given in (asked(true), fooled))
points = {
    name: {
        "at the circle": float(right.pointing(circles, some).mean()),
        "at the cross": float(misled.pointing(boxes, some).mean()),
    }
    for name, some in heads.items()
}
points["chance"] = {
    "at the circle": float(right.chance(circles).mean()),
    "at the cross": float(misled.chance(boxes).mean()),
}
pd.DataFrame(points).T.round(2)

# %%
seen = misled.map(heads["vhd"])
Image.fromarray((seen / seen.max() * 255).to(torch.uint8).numpy()).resize((192, 192))

# %% [markdown]
# ## Hide the cross from them
#
# A map does not show a cause. So we hide the image tokens of the cross from four heads only, in the rows of the
# question. For comparison we hide them from four random heads, ten times. If heads read the circle from the cross, the
# model must then say no.

# %%
cells = fooled.roles.boxes()
corners = torch.tensor(boxes)[:, None].float()
touches = ((cells[..., 2:] > corners[..., :2]) & (cells[..., :2] < corners[..., 2:])).all(-1)
after = fooled.valid & ~fooled.mask("image")


def hidden(some):
    """The answer with the cross hidden from some heads."""
    return says_yes(
        m.run(fooled, edits=[interp.MaskKeys(one, keys=touches, positions=after) for one in some])["logits"]
    )


random = torch.Generator().manual_seed(0)
draws = [[looking.sites[n] for n in torch.randperm(len(looking.sites), generator=random)[:4]] for _ in range(10)]
answers = {
    "nobody": hidden([]),
    **{f"four by {name}": hidden(some) for name, some in heads.items()},
    "four at random": torch.stack([hidden(one) for one in draws]).mean(0),
    "all": hidden(looking.sites),
}
pd.DataFrame(
    {name: {"yes minus no": float(v.mean()), "says yes": float((v > 0).double().mean())} for name, v in answers.items()}
).T.round(2)

# %% [markdown]
# One of the three measures finds the heads. With the cross hidden from these four, the model says no about as surely as
# with the cross hidden from all heads. One could not find them by taking out one head at a time, because the other
# heads still see the cross.

# %% [markdown]
# ## And in the picture itself
#
# We spoil each part of a picture separately. The parts that matter for the false yes are the parts of the cross.

# %%
spoilt = interp.vision.perturb(m, pictures[:6], [QUESTION] * 6, metric=says_yes, how="grey")
effects = spoilt.map("grey", 0)
inside = touches[0][fooled.mask("image")[0]].reshape(effects.shape)
print(spoilt)
pd.Series({"cells of the cross": float(effects[inside].mean()), "others": float(effects[~inside].mean())}).round(2)

# %% [markdown]
# ## Now you
#
# - Ask for a cross in pictures of a circle. Do the same heads matter?
# - `interp.vision.redistribute` and `interp.vision.reinforce` make heads look at the picture more. Does the false
#   circle go away? What happens to the true ones?
# - `interp.explore(m, asked(true), results=[looking], pictures=true)` shows every head's map on the picture.
