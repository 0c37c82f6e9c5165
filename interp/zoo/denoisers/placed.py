"""Are a denoiser's tokens where their roles say? Held by changing one cell of the picture, and one word.

Of the queries of the first layer over all tokens those that change must be the cell's, or the cells' alone where they
were mixed before; for a word the words' alone. Cost: three forward passes. Limits: classes whose rows are frames or
cells of an example, and U-Nets, which attend to smaller pictures, are not held.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from interp.hooks.denoisers.layout import FRAMES_FIRST
from interp.hooks.inputs.denoised import denoised
from interp.model import Model

ROW, COLUMN, WORD = 2, 1, 2
TOLD_BY_WORDS = ("Mochi",)
"""Classes whose words tell every token the time, too, so that all change with one."""


def misplaced(model: Model) -> str | None:
    """What is not where its role says; refused where the class' tokens are not known."""
    given = dict(model.example())
    inputs = denoised(model.module, given)
    sites = [f"{name}.L0.q" for name in model.towers if name.startswith("denoiser")]
    tape = model.run(given, record=sites)
    if "hidden_states" not in given or all(len(tape[site]) != inputs.batch for site in sites):
        return None
    site = next((site for site in sites if tape[site].shape[1] == inputs.length), None)
    if site is None:
        return f"{inputs.length} tokens have a role, and no first layer attends over so many"
    own = tape[site]
    roles, frame = inputs.roles, int(inputs.roles.frame.max())
    changed = _changed(model, given, site, own, hidden_states=_moved(model, given["hidden_states"], roles, frame))
    cell = (roles.row == ROW) & (roles.col == COLUMN) & (roles.frame == frame)
    if not torch.equal(changed, cell[0]) and not torch.equal(changed, roles.patch[0]):
        return f"the cell {ROW}, {COLUMN} of frame {frame} is at {_at(cell[0])}, and {_at(changed)} change with it"
    if "words" not in inputs.towers or type(model.module).__name__.startswith(TOLD_BY_WORDS):
        return None
    words, text = given["encoder_hidden_states"].clone(), inputs.mask("text")[0]
    words[:, WORD] += 1
    changed = _changed(model, given, site, own, encoder_hidden_states=words)
    if bool((changed & ~text).any()) or not bool(changed[text][WORD]):
        return f"word {WORD} is at {_at(text)[WORD]}, and {_at(changed)} change with it"
    return None


def _changed(model: Model, given: dict[str, Any], site: str, own: Tensor, **other: Tensor) -> Tensor:
    q: Tensor = model.run({**given, **other}, record=site)[site]
    return (q != own).flatten(2).any(-1)[0]


def _moved(model: Model, latents: Tensor, roles: Any, frame: int) -> Tensor:
    """The latents with one cell of the last frame changed."""
    new, wide, high = latents.clone(), int(roles.col.max()) + 1, int(roles.row.max()) + 1
    if new.ndim == 3:
        new[:, (frame * high + ROW) * wide + COLUMN] += 1
        return new
    side = new.shape[-1] // wide
    first = type(model.module).__name__.startswith(FRAMES_FIRST)
    framed = new if new.ndim == 4 else new[:, frame] if first else new[:, :, frame]
    framed[..., ROW * side, COLUMN * side + side - 1] += 1
    return new


def _at(found: Tensor) -> list[int]:
    return found.nonzero().flatten().tolist()
