"""From what a user selects to cells: one site, one head, some neurons, a group, a window of layers, pairs of heads."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from interp.hooks.anatomy.towers import Anatomy
from interp.hooks.drive.sweep import Cell, differs
from interp.hooks.errors import InputsError, SiteError
from interp.hooks.head_names import stretch
from interp.hooks.inputs.inputs import Inputs
from interp.hooks.run.tape import fitting, real_positions, site_inputs
from interp.hooks.sites import Site, parse
from interp.patching.sources import Given
from interp.results.effects import AND

if TYPE_CHECKING:
    from interp.model import Model

Units = tuple[int, ...]
Member = str | Site | tuple[str, int | Sequence[int]]
Group = Member | Sequence[Member]
NEVER = ("scores", "attention", "q_in", "k_in", "v_in")


@dataclass(frozen=True)
class Target:
    """What is patched together: sites, each with indices of its last axis or all of it."""

    members: tuple[tuple[Site, Units | None], ...]
    label: str

    def __add__(self, other: Target) -> Target:
        return Target((*self.members, *other.members), f"{self.label}{AND}{other.label}")


def targets(
    model: Model, sites: str | Iterable[str], groups: Sequence[Group], window: int, *, pairs: bool
) -> list[Target]:
    """Everything that is to be patched, in order: sites (or windows of them), groups, pairs."""
    single = [_one(site) for site in expanded(model, [sites] if isinstance(sites, str) else list(sites))]
    found = single if window == 1 else _windows([t.members[0][0] for t in single], window)
    found = [*found, *(_grouped(model, group) for group in groups)]
    if pairs:
        found = [*found, *(a + b for a, b in combinations(found, 2))]
    if not found:
        raise SiteError("no sites were selected: name at least one, such as sites='L*.H*.z'.")
    return list(dict.fromkeys(found))


def _one(site: Site, units: Units | None = None) -> Target:
    return Target(((site, units),), str(site) + ("" if units is None else str(list(units))))


def expanded(model: Model, spelled: Sequence[str | Site]) -> list[Site]:
    """One site per head where heads were written, one per layer where they were not."""
    found: list[Site] = []
    for text in spelled:
        for site in model.anatomy.sites(text):
            _patchable(text, site)
            if parse(text).heads is None:
                found.append(site)
                continue
            heads = site.heads or range(model.anatomy.layer(site).head_count(site.component))
            found.extend(Site(site.tower, site.layer, site.component, (head,), site.query_heads) for head in heads)
    return list(dict.fromkeys(found))


def _patchable(text: str | Site, site: Site) -> None:
    if (site.layer is None and site.component != "embed") or site.component in NEVER:
        raise SiteError(
            f"{str(text)!r}: patching takes sites with values per layer and position, such as 'L*.H*.z', 'L*.resid_pre'"
            " or 'embed'."
        )
    if site.query_heads and site.component in ("k", "v"):
        raise SiteError(f"{str(text)!r}: keys and values belong to kv heads; write K in place of H.")


def _grouped(model: Model, group: Group) -> Target:
    alone = isinstance(group, (str, Site)) or (
        isinstance(group, tuple) and len(group) == 2 and not isinstance(group[1], (str, Site, tuple))
    )
    listed: list[Any] = [group] if alone else list(group)  # type: ignore[arg-type]
    members = [target for member in listed for target in _members(model, member)]
    if not members:
        raise SiteError("a group of cells is empty: name at least one site in it.")
    found = members[0]
    for other in members[1:]:
        found = found + other
    return found


def _members(model: Model, member: Any) -> list[Target]:
    if isinstance(member, (str, Site)):
        return [_one(site) for site in expanded(model, [member])]
    spelled, units = member
    chosen = (units,) if isinstance(units, int) else tuple(units)
    found = []
    for site in expanded(model, [spelled]):
        if site.heads is not None or site.component in ("pattern", "embed"):
            raise SiteError(f"{spelled!r} with indices {list(chosen)}: indices are for sites without heads.")
        found.append(_one(site, chosen))
    return found


def _windows(sites: Sequence[Site], size: int) -> list[Target]:
    """Each run of `size` neighbouring layers of one component; the label's first layer is the window's."""
    if size < 1:
        raise InputsError(f"window counts layers, at least 1; got {size}.")
    found = []
    for place in dict.fromkeys(replace(site, layer=None) for site in sites):
        mine = [site for site in sites if replace(site, layer=None) == place]
        if place.heads is not None:
            raise SiteError(f"a window of layers is for sites without heads, not for {mine[0]}.")
        for n in range(len(mine) - size + 1):
            some = mine[n : n + size]
            layers = [s.layer for s in some if s.layer is not None]
            if [int(layer) for layer in layers] != list(range(int(layers[0]), int(layers[0]) + size)):
                continue
            tower, spelled = f"{place.tower}." if place.tower else "", stretch(layers)
            label = AND.join(map(str, some)) if spelled is None else f"{tower}L{spelled}.{place.component}"
            found.append(Target(tuple((site, None) for site in some), label))
    if not found:
        raise SiteError(f"no {size} neighbouring layers were selected for a window.")
    return found


@dataclass(frozen=True, eq=False)
class Grid:
    """The cells of a sweep, target by target and within one by position, and their labels."""

    cells: tuple[Cell, ...]
    labels: tuple[str, ...]
    positions: tuple[int, ...] | None


def grid(
    anatomy: Anatomy, chosen: Sequence[Target], x: Inputs, old: Mapping[Site, Tensor], new: Given, positions: Any
) -> Grid:
    """The cells of these targets, their positions cut down to those where the source differs from the base."""
    each = isinstance(positions, str) and positions == "each"
    lengths = {_length(old, site) for target in chosen for site, _ in target.members}
    if each and len(lengths) > 1:
        raise InputsError(f"sites of {sorted(lengths)} positions do not share one position axis; ask for them apart.")
    count = lengths.pop() if each else 1
    cells, labels = [], []
    moved, partner = _moved(old, new), _partner(old, new)
    for target in chosen:
        for n in range(count):
            parts = []
            for site, units in target.members:
                live = moved(site)
                where = _where(anatomy, site, x, positions, n, live.shape)
                if len(target.members) == 1:
                    parts.append(Cell(site, new.values[site.whole], where & live, units))
                else:
                    parts.append(Cell(site, new.values[site.whole], where & partner(site), units, moved=live))
            cells.append(replace(parts[0], also=tuple(parts[1:])))
            labels.append(target.label)
    return Grid(tuple(cells), tuple(labels), tuple(range(count)) if each else None)


def _length(old: Mapping[Site, Tensor], site: Site) -> int:
    return old[site.whole].shape[2 if site.component == "pattern" else 1]


def _moved(old: Mapping[Site, Tensor], new: Given) -> Callable[[Site], Tensor]:
    """[prompt, position] where a site's source differs from its base and has a partner."""
    known: dict[Site, Tensor] = {}

    def one(site: Site) -> Tensor:
        if site not in known:
            whole = site.whole
            found = differs(old[whole], new.values[whole], site.heads, pattern=site.component == "pattern").cpu()
            known[site] = found & new.aligned[whole] if whole in new.aligned else found
        return known[site]

    return one


def _partner(old: Mapping[Site, Tensor], new: Given) -> Callable[[Site], Tensor]:
    """[prompt, position] that has a value to be given."""

    def one(site: Site) -> Tensor:
        whole = site.whole
        everywhere = torch.ones(len(old[whole]), _length(old, site), dtype=torch.bool)
        return new.aligned.get(whole, everywhere)

    return one


def _where(anatomy: Anatomy, site: Site, x: Inputs, positions: Any, n: int, shape: torch.Size) -> Tensor:
    if positions not in ("joint", "each") if isinstance(positions, str) else True:
        return fitting(site_inputs(anatomy, x, site), shape[1]).mask(positions).cpu()
    found = real_positions(anatomy, x, site, shape).cpu()
    return found if positions == "joint" else found & (torch.arange(shape[1]) == n)
