"""The heads of the towers, and what was measured of them, as the page reads it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from interp.explorer.payload.plain import ExplorerError, columns_of, plain
from interp.hooks.head_names import head_name, head_place, is_head, layer_index
from interp.hooks.sites import Site, parse, plain_layer

KINDS = ("signed", "sequential")
ABOUT = {"kind", "unit", "about", "bound", "low", "floor"}
REPEATED = 0.5
"""A column of strings with fewer different values than this share of its rows is written as codes."""


class Places:
    """Which heads there are, and how each is called in the page."""

    def __init__(self, towers: Any, main: str | None, sites: Sequence[str]) -> None:
        self.towers = [_tower(one) for one in towers] if towers else _read_off(sites, main)
        names = [tower["name"] for tower in self.towers]
        self.main = main or next((one for one in ("text", "decoder", *names) if one in names), "text")
        if names and self.main not in names:
            raise ExplorerError(f"main is {self.main!r}, and the towers are {', '.join(names)}.")
        self.heads = [head for n, tower in enumerate(self.towers) for head in self._heads(n, tower)]
        self.known = {head["site"] for head in self.heads}

    def _heads(self, n: int, tower: Mapping[str, Any]) -> list[dict[str, Any]]:
        name, found = tower["name"] if len(self.towers) > 1 else None, []
        for layer, heads, kv in zip(tower["layers"], tower["heads"], tower["kv_heads"], strict=True):
            for head in range(heads):
                index, shared = layer_index(layer), (head // (heads // kv),)
                group = str(Site(name, index, "k", shared)).removesuffix(".k") if kv < heads else None
                site = head_name(name, index, head)
                found.append({"site": site, "tower": n, "layer": layer, "head": head, "kv": group})
        return found

    def label(self, site: str) -> str | None:
        """A head's name in the page, however it was spelled; None for what is no head of these towers."""
        if not is_head(site):
            return None
        place = head_place(site)
        tower = place.tower or self.main
        label = head_name(tower if len(self.towers) > 1 else None, place.layer, place.head)
        return label if label in self.known and tower in {one["name"] for one in self.towers} else None

    def group(self, kv: str) -> list[str]:
        """The heads that read a kv head, as sites spell them: with a tower where the kv head has one."""
        found = parse(f"{kv}.k")
        assert found.index is not None
        name, layer, number = found.tower, plain_layer(found.index), int(str(found.heads))
        tower = next((one for one in self.towers if one["name"] == (name or self.main)), None)
        if tower is None or layer not in tower["layers"]:
            return []
        at = tower["layers"].index(layer)
        size = tower["heads"][at] // tower["kv_heads"][at]
        return [head_name(name, found.index, head) for head in range(number * size, (number + 1) * size)]

    def need(self, site: Any, where: str) -> str:
        """The same for a site that has to be a head."""
        label = self.label(str(site))
        if label is None:
            raise ExplorerError(f"{where}: {site!r} is no head of {_said(self.towers)}.")
        return label


def _said(towers: Sequence[Mapping[str, Any]]) -> str:
    return "; ".join(f"{one['name']} (layers {one['layers'][:1]} to {one['layers'][-1:]})" for one in towers) or "none"


def _tower(given: Mapping[str, Any]) -> dict[str, Any]:
    if not {"name", "layers", "heads"} <= set(given):
        raise ExplorerError(f"a tower has name, layers and heads (and kv_heads), got {sorted(given)}.")
    layers = list(range(given["layers"])) if isinstance(given["layers"], int) else list(given["layers"])
    counts = {}
    for name in ("heads", "kv_heads"):
        value = given.get(name) or given["heads"]
        counts[name] = [value] * len(layers) if isinstance(value, int) else list(value)
        if len(counts[name]) != len(layers):
            raise ExplorerError(f"{given['name']}.{name} has {len(counts[name])} numbers for {len(layers)} layers.")
    if any(kv < 1 or heads % kv for heads, kv in zip(counts["heads"], counts["kv_heads"], strict=True)):
        raise ExplorerError(f"{given['name']}: kv_heads must divide heads in every layer.")
    return {"name": str(given["name"]), "layers": layers, **counts}


def _read_off(sites: Sequence[str], main: str | None) -> list[dict[str, Any]]:
    """Towers that just hold the heads which are named."""
    most: dict[str, dict[int, int]] = {}
    for site in sites:
        if is_head(site):
            place = head_place(site)
            layers = most.setdefault(place.tower or main or "text", {})
            layers[place.layer] = max(layers.get(place.layer, 0), place.head + 1)
    return [
        _tower(
            {
                "name": name,
                "layers": [plain_layer(n) for n in sorted(layers)],
                "heads": [layers[n] for n in sorted(layers)],
            }
        )
        for name, layers in most.items()
    ]


def scores(given: Any, places: Places) -> list[dict[str, Any]]:
    """The long table by column; sites of heads as the page calls them."""
    names, columns = columns_of(given, "scores")
    if not names:
        return []
    table = dict(zip(names, columns, strict=True))
    if lacking := {"site", "method", "estimate"} - set(names):
        raise ExplorerError(f"scores has no column {', '.join(sorted(lacking))}; it has {', '.join(names)}.")
    table["site"] = [places.label(str(site)) or str(site) for site in table["site"]]
    for name in ("estimate", "low", "high", "noise_floor", "exact"):
        wrong = next((v for v in table.get(name, ()) if v is not None and not isinstance(v, int | float)), None)
        if wrong is not None:
            raise ExplorerError(f"scores.{name} holds {wrong!r}: numbers, or None where nothing was measured.")
    seen: set[tuple[str, str]] = set()
    for pair in zip(table["site"], table["method"], strict=True):
        if pair in seen:
            raise ExplorerError(f"scores has several rows of {pair[0]} and {pair[1]!r}: give one a head and method.")
        seen.add(pair)
    return [_column(name, values) for name, values in table.items()]


def _column(name: str, values: list[Any]) -> dict[str, Any]:
    """Strings that repeat are written once."""
    if not values or not all(value is None or isinstance(value, str) for value in values):
        return {"name": name, "values": values}
    levels = list(dict.fromkeys(value for value in values if value is not None))
    if len(levels) > REPEATED * len(values) and len(values) > 1:
        return {"name": name, "values": values}
    code = {level: n for n, level in enumerate(levels)}
    return {"name": name, "levels": levels, "codes": [-1 if value is None else code[value] for value in values]}


def methods(given: Mapping[str, Mapping[str, Any]], table: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """What the menu offers: kind and bounds of each method, one scale for all heads."""
    found: dict[str, list[int | float]] = {}
    columns = {one["name"]: _values(one) for one in table}
    for name, value in zip(columns.get("method", ()), columns.get("estimate", ()), strict=True):
        found.setdefault(str(name), []).extend([] if value is None else [value])
    if unknown := set(given) - set(found):
        raise ExplorerError(f"methods describes {', '.join(sorted(unknown))}, of which scores has no row.")
    return [_method(name, given.get(name, {}), found[name]) for name in dict.fromkeys((*given, *found))]


def _values(column: Mapping[str, Any]) -> list[Any]:
    if "values" in column:
        return list(column["values"])
    return [None if code < 0 else column["levels"][code] for code in column["codes"]]


def _method(name: str, about: Mapping[str, Any], values: Sequence[int | float]) -> dict[str, Any]:
    if strange := set(about) - ABOUT:
        raise ExplorerError(f"methods.{name} has {', '.join(sorted(strange))}; it may have {', '.join(sorted(ABOUT))}.")
    kind = about.get("kind") or ("signed" if min(values, default=0) < 0 else "sequential")
    if kind not in KINDS:
        raise ExplorerError(f"methods.{name}.kind is 'signed' or 'sequential', got {kind!r}.")
    low = about.get("low", min(0.0, *values) if values and kind == "sequential" else 0.0)
    most = max((abs(v) if kind == "signed" else v for v in values), default=1.0)
    bound = about.get("bound") or (most if most > low else low + 1.0)
    text = {key: str(about.get(key, "")) for key in ("unit", "about")}
    numbers = {"bound": bound, "low": low, "floor": about.get("floor")}
    return {"name": name, "kind": kind, **text, **plain(numbers, f"methods.{name}")}
