"""DAMRO: what is said with the picture, against what is said with nothing of it but the vision tower's outlier tokens.

Gong et al., EMNLP 2024 (arXiv 2410.04514). In the layer of the vision tower that feeds the projector, with the class
token's query q and the keys K of all positions, the `k` patches with the largest softmax(q K^T / sqrt(d)) are the
outliers. The other branch sees only these: its prompt holds k image tokens a picture, with their features, and its
words follow at once. Then scores are (1 + amount) log p - amount log p' where log p >= log cutoff + max log p. Defaults
are the authors' for LLaVA-1.5: k 10, amount 2 (0.5 for captions), cutoff 0.1; for InstructBLIP they have k 4 and amount
0.5. Their code for LLaVA does not split q and K into heads (d is the full width), as here unless `split_heads`; for
InstructBLIP it splits and averages. The paper's text says the last layer, their code the one that feeds the projector:
`layer=` names another. Of a picture in tiles the authors' code for LLaVA-NeXT keeps the outliers of the base view and
one newline, and no tile; so here. Tokens merged of several patches (InternVL) are ranked by the mean over their
patches, and those of the thumbnail are kept, which is ours. A Q-Former reads the outliers alone by its cross-attention,
where a key that is hidden and one that is not there are the same: that branch is an edit. Cost: two forward passes to
find the outliers and their features, then two a token, one of each branch. Limits: vision towers with a class token
whose tokens have a place in the picture, or are read by a Q-Former; families that cut a picture into tiles and show it
nowhere whole are refused, and texts that scale their embeddings; models that decode within a module of theirs (BLIP-2)
give scores of the next token, and no text.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from interp.hooks.edits.edits import MaskKeys
from interp.hooks.errors import InputsError, ModelError
from interp.hooks.inputs.inputs import Inputs
from interp.hooks.inputs.labels import CODE, FIELDS, Roles
from interp.records import NO_IMAGE_IN_TEXT, Method, register
from interp.vision.decoding.contrast import Contrast, contrast
from interp.vision.decoding.patches import class_looks, layer_of, seeing_tower, token_looks, whole_views
from interp.vision.decoding.without import cut, image_tokens, looking_tower, moved

if TYPE_CHECKING:
    from interp.model import Model


def damro(
    model: Model,
    inputs: Any,
    *,
    k: int = 10,
    amount: float = 2.0,
    cutoff: float = 0.1,
    layer: int | None = None,
    split_heads: bool = False,
) -> Contrast:
    """Both branches, ready to run: `.generate()`, `.scores()`; `.against` holds the outliers alone."""
    x, image = image_tokens(model, inputs, what="DAMRO")
    looking_tower(model, what="DAMRO")
    how: dict[str, Any] = {"k": k, "layer": layer, "split_heads": split_heads}
    if "qformer" in model.anatomy.towers:
        hidden = MaskKeys("cross.L*.H*", keys=~outliers(model, x, **how))
        return contrast(model, x, against=x, against_edits=[hidden], amount=amount, cutoff=cutoff)
    against = only(model, x, image, outlier_tokens(model, x, **how))
    return contrast(model, x, against=against, amount=amount, cutoff=cutoff)


def outliers(model: Model, x: Inputs, *, k: int, layer: int | None, split_heads: bool) -> Bool[Tensor, "tile slot"]:
    """The k patches of each picture that the class token looks at most, among the vision tower's positions."""
    own, looks = _looks(model, x, layer, split_heads)
    _enough(k, int(own.roles.patch.sum(1).min()), "patches")
    most = looks.masked_fill(~own.roles.patch.cpu(), -torch.inf).topk(k, dim=-1).indices
    return torch.zeros_like(own.valid.cpu()).scatter(1, most, True)


def outlier_tokens(
    model: Model, x: Inputs, *, k: int, layer: int | None, split_heads: bool
) -> Bool[Tensor, "example position"]:
    """The k image tokens of the whole view of each picture whose patches the class token looks at most."""
    own, looks = _looks(model, x, layer, split_heads)
    numbers, found = token_looks(x, own, looks, what="DAMRO"), torch.zeros_like(x.valid.cpu())
    for row, cells in whole_views(x, what="DAMRO"):
        _enough(k, int(cells.sum()), "image tokens")
        found[row, numbers[row].masked_fill(~cells, -torch.inf).topk(k).indices] = True
    return found


def _looks(model: Model, x: Inputs, layer: int | None, split_heads: bool) -> tuple[Inputs, Float[Tensor, "tile slot"]]:
    tower, own = seeing_tower(model, x, what="DAMRO")
    number = layer_of(tower, _feeding(model) if layer is None else layer)
    return own, class_looks(model, x, number, split=split_heads, what="DAMRO").mean(1).cpu()


def _enough(k: int, most: int, things: str) -> None:
    if not 1 <= k <= most:
        raise InputsError(f"k= is how many {things} of each picture are kept, 1 to {most}; got {k}.")


def _feeding(model: Model) -> int:
    """The layer whose output goes on to the text, counted from the end."""
    said = getattr(model.config, "vision_feature_layer", None)
    if said is None:
        return -2  # of InstructBLIP, as in the authors' code
    if not isinstance(said, int):
        raise InputsError(f"DAMRO: features come from several layers {said}: name one with layer=.")
    return said if said < 0 else said - 1


def only(model: Model, x: Inputs, image: Tensor, kept: Bool[Tensor, "example position"]) -> Inputs:
    """The question with these image tokens alone, embedded; of newlines the last of each picture stays."""
    keep = x.valid.cpu() & (~image.cpu() | kept | _last_newlines(x))
    call = cut(x, keep)
    vectors = moved(_embedded(model, x, image.cpu()), keep)
    call = {"inputs_embeds": vectors, **{name: value for name, value in call.items() if name == "attention_mask"}}
    return replace(model.inputs(call), roles=_kept(x.roles, keep))


def _last_newlines(x: Inputs) -> Bool[Tensor, "example position"]:
    newlines, images = (x.roles.newline & x.valid).cpu(), x.roles.image.cpu()
    last = torch.zeros_like(newlines)
    for row in range(x.batch):
        for picture in set(images[row][newlines[row]].tolist()):
            last[row, (newlines[row] & (images[row] == picture)).nonzero()[-1]] = True
    return last


def _embedded(model: Model, x: Inputs, image: Bool[Tensor, "example position"]) -> Tensor:
    """[row, position, d]: what the text tower is given, read where its first layer is."""
    vectors = model.run(x, record="text.L0.resid_pre")["text.L0.resid_pre"]
    module: Any = model.module
    assert x.ids is not None
    words = (x.valid.cpu() & ~image).to(vectors.device)
    table = module.get_input_embeddings()(x.ids.to(model.device)).detach().to(vectors)
    if not torch.equal(vectors[words], table[words]):
        raise ModelError(
            "DAMRO: between this text's embeddings and its first layer something is added or multiplied, so a prompt of"
            " embeddings cannot be put together from what the first layer reads."
        )
    return vectors


def _kept(roles: Roles, keep: Tensor) -> Roles:
    """The labels of the columns that stay."""
    tensors = {name: moved(getattr(roles, name).cpu() + 1, keep) - 1 for name in FIELDS}
    here = moved(torch.ones_like(keep), keep)
    kind = torch.where(here, tensors["kind"], CODE["pad"])
    tags = {tag: moved(mask.cpu(), keep) for tag, mask in roles.tags.items()}
    labels: dict[str, Any] = {**tensors, "kind": kind}
    return replace(roles, tags=tags, **labels)


register(
    Method(
        "interp.vision.damro",
        number="scores of tokens with the picture, compared with those with its outlier tokens alone",
        shown="none",
        papers=("2410.04514",),
        unfit=NO_IMAGE_IN_TEXT,
        passes=lambda t: 4,
        values=None,
        made_of=("interp.vision.contrast",),
        example=lambda t: damro(t.model, t.base, k=3).scores(),
    )
)
