"""How much each image token matters by the attention of heads, and models that go on with the best of them.

VFlowOpt (arXiv 2508.05211). With A the vision tower's pattern at one layer, mean over heads, N patches:

    K = {j : sum_i A_ij > tau},  tau = t (rows sum to 1, so t is how often the average is meant)
    I_i = mean over k in K of A_ki  +  alpha softmax_i(H(V_i))

H is the entropy of the 256 grey levels of the pixels under token i, in bits. That is `by="vision"` (the mean over K is
that of the authors' code, the paper has the sum, which orders alike; alpha is 0 in all three released settings).
`by="text"` is the attention alone: the weight of the last row in a text layer, mean over heads. `by="random"` is the
control. The paper's t (28 to 39) and a are found by search for one model; without `t` those patches are K that receive
at least as much as the 95th of 100, which is ours. A token merged of several patches has their mean; tokens that are no
cell (newlines) have importance 1, as in the authors' code, and are never pruned.

`TokenImportance.pruned` gives the edits (`interp/vision/tokens/stages.py`), and `search_pruning` is the search for t, a
and R by how well the last state is kept. Cost: two passes and two more attentions of the vision tower, or one pass.
Limits: one importance for all stages, as in the paper; a tower that attends in windows has no map of who looks at whom.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from interp.finite import finite
from interp.hooks.errors import InputsError
from interp.hooks.inputs.inputs import Inputs
from interp.provenance import about
from interp.records import NO_IMAGE_IN_TEXT, Method, register
from interp.vision.decoding.places import token_numbers
from interp.vision.decoding.without import image_tokens, looking_tower
from interp.vision.maps.cells import boxes_of, inputs_of
from interp.vision.maps.rows import received_mean
from interp.vision.tokens.stages import TokenImportance

if TYPE_CHECKING:
    from interp.model import Model

By = Literal["vision", "text", "random"]
OURS = 0.95
WHAT = "importance of image tokens"


def token_importance(
    model: Model,
    images: Any,
    questions: Any = None,
    *,
    by: By = "vision",
    layer: int = -1,
    t: float | None = None,
    alpha: float = 0.0,
    seed: int = 0,
    chat: Any = None,
) -> TokenImportance:
    """`layer` is of the vision tower (the text for by="text"), counted from the end where negative. `images` may be
    inputs that are prepared already, then without `questions`; alpha needs the pictures themselves."""
    x, image = image_tokens(model, inputs_of(model, images, questions, chat=chat), what=WHAT)
    tower = looking_tower(model, what=WHAT)
    image = image.cpu()
    if by == "random":
        values = torch.rand(x.valid.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    elif by == "text":
        number = _numbered([one.index for one in tower.layers], layer)
        rows = model.run(x, record=[f"{tower.prefix}L{number}.pattern"], positions="last")
        values = rows[f"{tower.prefix}L{number}.pattern"][:, :, 0].double().mean(1).cpu()
    elif by == "vision":
        own = x.tower("vision")
        values = token_numbers(x, own, _of_patches(model, x, own, layer, t), what=WHAT)
    else:
        raise InputsError(f"by= is 'vision', 'text' or 'random', got {by!r}.")
    if alpha:
        values = values + alpha * _entropies(x, image, images if questions is not None else None)
    cell = image & x.roles.patch.cpu()
    values = torch.where(image, torch.where(cell if by == "vision" else image, values, 1.0), 0.0)
    meta = {**about(model.module, x), "method": "token importance", "by": by, "layer": layer, "t": t, "alpha": alpha}
    places = torch.stack([getattr(x.roles, name).cpu() for name in ("tile", "frame", "row", "col")], -1)
    return TokenImportance(finite(values, "importance of tokens"), image, places, tower.depth, tower.prefix, meta)


def _numbered(known: list[int], layer: int) -> int:
    found = layer if layer >= 0 else known[-1] + 1 + layer
    if found not in known:
        raise InputsError(f"layer= is one of {known[0]} to {known[-1]}, or from the end; got {layer}.")
    return found


def _of_patches(model: Model, x: Inputs, own: Inputs, layer: int, t: float | None) -> Float[Tensor, "tile patch"]:
    """mean over k in K of A_k,i."""
    number, patch, received = _received(model, x, own, layer)
    tau = torch.tensor([_tau(row[here], t) for row, here in zip(received, patch, strict=True)])[:, None]
    much = patch & (received > tau if t is not None else received >= tau)
    empty = (~much.any(1)).nonzero().flatten().tolist()
    if empty:
        most = float(received[empty[0]].max())
        raise InputsError(f"no patch of picture {empty[0]} receives more than t={t}; the most is {most:.3g}. Lower t.")
    return received_mean(model, x, f"vision.L{number}", much, own=own).mean(0)


def _received(model: Model, x: Inputs, own: Inputs, layer: int) -> tuple[int, Tensor, Float[Tensor, "tile patch"]]:
    """The layer's number, which positions are patches, and sum_i A_ij."""
    number = _numbered([one.index for one in model.ready().tower("vision", text=WHAT).layers], layer)
    patch = own.roles.patch.cpu() & own.valid.cpu()
    received = received_mean(model, x, f"vision.L{number}", patch, own=own).mean(0) * patch.sum(1, keepdim=True)
    return number, patch, received


def most_received(model: Model, x: Inputs, *, layer: int = -1) -> float:
    """The largest t that some patch of every picture is still above."""
    _, patch, received = _received(model, x, x.tower("vision"), layer)
    return float(received.masked_fill(~patch, -torch.inf).amax(1).min())


def _tau(received: Tensor, t: float | None) -> float:
    return t if t is not None else float(np.quantile(received.numpy(), OURS))


def _entropies(x: Inputs, image: Tensor, pictures: Any) -> Float[Tensor, "example position"]:
    """softmax over a picture's tokens of the entropy of the grey levels under them, in bits."""
    if pictures is None:
        raise InputsError("alpha= weighs the entropy of pixels: give images= and questions=, not prepared inputs.")
    given = list(pictures) if isinstance(pictures, (list, tuple)) else [pictures]
    flat = [one for row in given for one in (row if isinstance(row, (list, tuple)) else [row])]
    boxes, out = boxes_of(x, what=WHAT), torch.full(x.valid.shape, -torch.inf, dtype=torch.float64)
    for row, column in (image & ~boxes.isnan().any(-1)).nonzero().tolist():
        view = x.roles.views[row][int(x.roles.tile[row, column])]
        left, top, right, bottom = (round(edge) for edge in boxes[row, column].tolist())
        pixels = np.asarray(flat[view.picture].convert("RGB"), dtype=np.float64)[top:bottom, left:right].mean(-1)
        share = np.bincount(pixels.astype(np.uint8).ravel(), minlength=256) / max(1, pixels.size)
        out[row, column] = float(-(share[share > 0] * np.log2(share[share > 0])).sum())
    return out.softmax(-1)


register(
    Method(
        "interp.vision.token_importance",
        number="how much an image token is looked at by the patches that most others look at",
        shown="none",
        signed=False,
        papers=("2508.05211",),
        unfit=NO_IMAGE_IN_TEXT,
        passes=lambda t: 5,
        examples=0,
        example=lambda t: token_importance(t.model, t.base),
    )
)
