"""Heads by name, "L5.H3", or "vision.L5.H3" where a model has several towers: written and read here alone."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from interp.hooks.errors import SiteError
from interp.hooks.sites import Site, layer_of, parse, pass_of


class HeadPlace(NamedTuple):
    """Where one head is; heads in order of layer and number are in order of this."""

    tower: str | None
    layer: int
    """Of a layer with passes, the pass (`hooks.sites.LayerPass`)."""
    head: int


def head_name(tower: str | None, layer: int, head: int) -> str:
    """A head as results call it."""
    return str(Site(tower, layer, "attention", (head,)))


def heads_at(site: Site, heads: Iterable[int]) -> list[str]:
    """Some heads of a site's layer by name."""
    assert site.layer is not None
    return [head_name(site.tower, site.layer, head) for head in heads]


def head_place(text: str | Site) -> HeadPlace:
    """Tower, layer and number of one head, in any spelling and with a component or without."""
    found = parse(text)
    if found.kind != "H" or found.index is None or not str(found.heads).isdigit():
        raise SiteError(f"{str(text)!r} is not one head: expected one such as 'L5.H3'.")
    return HeadPlace(found.tower, found.index, int(str(found.heads)))


def is_head(text: str | Site) -> bool:
    """Whether it names exactly one head."""
    try:
        head_place(text)
    except SiteError:
        return False
    return True


def head_of(text: str | Site) -> str:
    """A head's name without a component: "L5.H3" of "L5.H3.z"."""
    return head_name(*head_place(text))


def layer_name(text: str | Site) -> str:
    """The layer that a place is in: "vision.L5" of "vision.L5.H3.z"."""
    found = parse(text)
    if found.layers is None:
        raise SiteError(f"{str(text)!r} is in no layer: expected a place such as 'L5.H3'.")
    layer = f"L{found.layers}" if found.passes is None else f"L{found.layers}@{found.passes}"
    return f"{found.tower}.{layer}" if found.tower else layer


def layer_number(text: str | Site) -> int:
    """The number of the one layer that a place is in, or the pass."""
    found = parse(text)
    if found.index is None:
        raise SiteError(f"{str(text)!r} is not in one layer: expected a place such as 'L5.H3'.")
    return found.index


def layer_index(said: int | str) -> int:
    """The index that files have as a number or as "0@7"."""
    return layer_number(f"L{said}.z")


def numbers_of(layers: Iterable[int]) -> str:
    """The numbers of layers as a site spells them, with all of their passes: "0,1"."""
    return ",".join(dict.fromkeys(str(layer_of(layer)) for layer in layers))


def stretch(layers: Sequence[int]) -> str | None:
    """Neighbouring layers, or passes of one layer, as a site spells them: "2-4", "0@3-5"; None where it cannot."""
    first, last = layers[0], layers[-1]
    if pass_of(first) is None:
        return f"{first}-{last}" if all(pass_of(layer) is None for layer in layers) else None
    one = len({layer_of(layer) for layer in layers}) == 1
    return f"{layer_of(first)}@{pass_of(first)}-{pass_of(last)}" if one else None


def columns_of(layers: Iterable[int | None]) -> dict[str, list[int | None]]:
    """Columns of a table of places: the layers' numbers, and where there are any the passes."""
    layers = list(layers)
    numbers = [None if layer is None else layer_of(layer) for layer in layers]
    passes = [None if layer is None else pass_of(layer) for layer in layers]
    return {"layer": numbers, **({"pass": passes} if any(one is not None for one in passes) else {})}


def by_layer(heads: Iterable[str]) -> dict[str, list[int]]:
    """The numbers of heads that are named, layer by layer, in the order they come."""
    found: dict[str, list[int]] = {}
    for head in heads:
        found.setdefault(layer_name(head), []).append(head_place(head).head)
    return found


def spelled_together(layer: str, heads: Sequence[int]) -> str:
    """Several heads of a layer as one pattern: "L5.H1,3"."""
    return f"{layer}.H{','.join(map(str, heads))}"
