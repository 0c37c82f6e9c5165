"""Edits with their sites found in a model, and the refusals of those that have none there."""

from __future__ import annotations

from dataclasses import dataclass, fields

from interp.hooks.anatomy.spread import CUT, Lift, held
from interp.hooks.anatomy.towers import Anatomy, Layer
from interp.hooks.edits.edits import AttentionEdit, Edit, Mean, ValueEdit
from interp.hooks.errors import EditError
from interp.hooks.sites import KV, Site


@dataclass(frozen=True)
class Placed:
    """An edit with its site found in this model."""

    edit: Edit
    site: Site
    lift: Lift | None = None
    """How it is done where some of the site's heads are in other processes."""


def places(anatomy: Anatomy, edit: Edit) -> list[Site]:
    """The sites of an edit, one per layer."""
    if not isinstance(edit, Edit):
        raise EditError(f"an edit is one of interp's edit values, such as interp.Zero('L5.H3.z'), got {edit!r}.")
    sites = anatomy.sites(edit.site)
    for site in sites:
        attends = site.component == "attention"
        if isinstance(edit, AttentionEdit) and not attends:
            raise EditError(
                f"{edit!r} changes how heads attend: its site has no component, such as 'L5.H3' or 'L*.H*'."
            )
        if isinstance(edit, ValueEdit) and attends:
            raise EditError(f"{edit!r} changes a value: name the component, such as '{site}.z'.")
        if isinstance(edit, Mean) and edit.value is None and site.component in ("pattern", "scores"):
            raise EditError(f"{edit!r}: rows of a pattern see different keys, so they have no mean; give a value.")
        if site.query_heads and site.component in KV and not edit.expand:
            _refuse_shared(edit, site, anatomy.layer(site))
    return sites


def _refuse_shared(edit: Edit, site: Site, layer: Layer) -> None:
    """An edit of one query head's k or v would change what others of its group read."""
    if layer.group == 1 or site.heads is None:
        return
    head, kv = site.heads[0], site.heads[0] // layer.group
    shared = ", ".join(f"H{h}" for h in range(layer.heads) if h // layer.group == kv)
    raise EditError(
        f"{edit!r}: {site.component} of query head {head} is kv head {kv}, and {shared} all read it. Write"
        f" 'L{site.layer}.K{kv}.{site.component}' to change it for all of them, or expand=True for this head alone."
    )


def placed_here(anatomy: Anatomy, placed: Placed) -> Placed | None:
    """What of an edit is to be done in this process, heads numbered as its attention calls do; None where another
    process does it."""
    layer = anatomy.layer(placed.site) if placed.site.layer is not None else None
    if layer is None or layer.share is None:
        return placed
    _refuse_meeting(placed)
    site = held(layer, placed.site)
    return None if site is None else Placed(placed.edit, site, Lift.of(layer, placed.site))


def _refuse_meeting(placed: Placed) -> None:
    """Edits of which it is not known that they treat each head separately."""
    edit, site = placed.edit, placed.site
    if site.component in ("result", "neurons"):
        instead = "z, which it is made of" if site.component == "result" else "mlp_out"
        raise EditError(
            f"{edit!r}: the heads of this model are in several processes, and {site.component} cannot be edited in one"
            f" of them: edit {instead}."
        )
    learned = [f.name for f in fields(edit) if getattr(getattr(edit, f.name), "requires_grad", False)]
    if site.component in CUT and learned:
        raise EditError(
            f"{edit!r} asks for the gradient of its {learned[0]}, and each process would have only a part of it: train"
            " it with the model in one process, or at a site that all processes have (resid_pre, attn_out)."
        )
    alone = edit.by_head if isinstance(edit, AttentionEdit) else type(edit).change_in is ValueEdit.change_in  # type: ignore[attr-defined]
    if site.component in CUT and not alone:
        raise EditError(
            f"{edit!r} may combine heads or count them, and the heads of this model are in several processes: run it"
            " in one process, or use an edit that does the same to every head."
        )
