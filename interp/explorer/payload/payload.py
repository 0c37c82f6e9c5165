"""What the page is given: a plain dict, checked key by key and brought into the shape that its script reads.

    title finding facts warnings    what the page says first; facts are (name, value) pairs
    towers main                     [{name, layers, heads, kv_heads}], read off the scores if left out; the tower of
                                    sites without prefix
    scores methods                  a long table (site, method, estimate, low, high, noise_floor, exact, verified, ...);
                                    {method: {kind: signed | sequential, unit, about, bound, low, floor}}
    examples patterns               [{name, tokens, roles, note}]; [{example, sites, weights [head, row, key], rows,
                                    keys or indices, scale}]
    cards                           {site: {roles, promotes, suppresses, facts, notes}}
    images                          [{name, example, png, grid [rows, columns], positions, across, down, borders}]; the
                                    last three in pixels: lines between columns, rows and [columns, rows] of tiles
    circuit                         {edges: (sender, receiver, score) as in `Circuit.to_frame()`, title, about}
    curves tables checks links      [{title, x_title, y_title, log_x, lines, levels}]; [{title, about, rows}]; [{name,
                                    ok, detail}]; files next to the page
    provenance                      a nested dict
    lead                            {title, says: [sentence], picture (PNG), alt, methods}: what is said first

All strings are given as they are: the page escapes, marks what cannot be seen, and shortens. None means "not measured".
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from interp.explorer.payload.blocks import block, encoded, image, png, rollout
from interp.explorer.payload.figures import circuit, curve
from interp.explorer.payload.plain import ExplorerError, columns_of, only, pairs, plain
from interp.explorer.payload.scores import Places, methods, scores

KEYS = {
    "title", "finding", "facts", "warnings", "towers", "main", "scores", "methods", "examples", "patterns", "cards",
    "images", "circuit", "curves", "tables", "checks", "links", "provenance", "lead",
}  # fmt: skip
CARD = {"roles", "promotes", "suppresses", "facts", "notes"}
BESIDE = re.compile(r"^(?!//)[\w./ -]+$")


def shown(payload: Mapping[str, Any]) -> dict[str, Any]:
    """The data of the page, as JSON holds it."""
    only(payload, KEYS, "the payload")
    if not payload.get("title"):
        raise ExplorerError("the payload has no title.")
    given: Callable[[str, Any], Any] = lambda name, empty: empty if payload.get(name) is None else payload[name]  # noqa: E731
    examples = [_example(one, n) for n, one in enumerate(given("examples", []))]
    tokens = [len(one["tokens"]) for one in examples]
    places = Places(given("towers", []), payload.get("main"), _named(payload))
    table = scores(given("scores", []), places)
    return {
        "title": str(payload["title"]),
        "facts": pairs(given("facts", []), "facts", both=str),
        "warnings": [str(text) for text in given("warnings", [])],
        "towers": places.towers,
        "heads": places.heads,
        "methods": methods(given("methods", {}), table),
        "scores": table,
        "examples": examples,
        "patterns": [block(one, n, tokens, places) for n, one in enumerate(given("patterns", []))],
        "cards": {places.need(site, "cards"): _card(one, site) for site, one in given("cards", {}).items()},
        "images": [image(one, n, tokens) for n, one in enumerate(given("images", []))],
        "circuit": circuit(payload["circuit"], places) if payload.get("circuit") is not None else None,
        "curves": [curve(one, n) for n, one in enumerate(given("curves", []))],
        "tables": [_table(one, n) for n, one in enumerate(given("tables", []))],
        "checks": [_check(one) for one in given("checks", [])],
        "links": [_link(pair) for pair in given("links", [])],
        "provenance": plain(given("provenance", {}), "provenance"),
        "lead": _lead(given("lead", {})),
    }


def _lead(given: Mapping[str, Any]) -> dict[str, Any] | None:
    """What is said before all else, its picture, and a paragraph of methods."""
    if not given:
        return None
    only(given, {"title", "says", "picture", "alt", "methods"}, "lead")
    shown = encoded(png(given["picture"], "lead")) if given.get("picture") is not None else ""
    said = [str(line) for line in given.get("says") or ()]
    words = {name: str(given.get(name) or "") for name in ("alt", "methods")}
    return {"title": str(given.get("title") or "How sure this is"), "says": said, "picture": shown, **words}


def _named(payload: Mapping[str, Any]) -> list[str]:
    """Every site that is named, for payloads that do not say which towers there are."""
    names, columns = columns_of(payload["scores"] if payload.get("scores") is not None else [], "scores")
    found = [str(site) for name, values in zip(names, columns, strict=True) if name == "site" for site in values]
    found += [str(site) for one in payload.get("patterns") or () for site in one["sites"]]
    return found + [str(site) for site in payload.get("cards") or ()]


def _example(given: Mapping[str, Any], n: int) -> dict[str, Any]:
    only(given, {"name", "tokens", "roles", "note", "rollout"}, f"examples[{n}]")
    tokens = [str(token) for token in given["tokens"]]
    roles = None if given.get("roles") is None else [str(role) for role in given["roles"]]
    if roles is not None and len(roles) != len(tokens):
        raise ExplorerError(f"examples[{n}] has {len(roles)} roles for {len(tokens)} tokens.")
    flow = given.get("rollout")
    return {
        "name": str(given.get("name", n)), "tokens": tokens, "roles": roles, "note": str(given.get("note") or ""),
        "rollout": None if flow is None else rollout(flow, len(tokens), f"examples[{n}].rollout"),
    }  # fmt: skip


def _card(given: Mapping[str, Any], site: str) -> dict[str, Any]:
    only(given, CARD, f"cards.{site}")
    found: dict[str, Any] = {
        name: pairs(given.get(name) or (), f"cards.{site}.{name}") for name in ("roles", "promotes", "suppresses")
    }
    found["facts"] = pairs(given.get("facts") or (), f"cards.{site}.facts", both=str)
    return found | {"notes": [str(note) for note in given.get("notes") or ()]}


def _table(given: Mapping[str, Any], n: int) -> dict[str, Any]:
    only(given, {"title", "about", "rows"}, f"tables[{n}]")
    names, columns = columns_of(given["rows"], f"tables[{n}].rows")
    text = {name: str(given.get(name) or "") for name in ("title", "about")}
    return {**text, "columns": names, "rows": [list(row) for row in zip(*columns, strict=True)]}


def _check(given: Mapping[str, Any]) -> dict[str, Any]:
    only(given, {"name", "ok", "detail"}, "checks")
    ok = given.get("ok")
    return {
        "name": str(given["name"]),
        "ok": None if ok is None else bool(ok),
        "detail": str(given.get("detail") or ""),
    }


def _link(pair: Sequence[str]) -> list[str]:
    name, to = pair
    if not BESIDE.match(str(to)) or str(to).startswith("/") or ".." in str(to).split("/"):
        raise ExplorerError(f"links name files next to the page, such as 'heads.csv'; got {to!r}.")
    return [str(name), str(to)]
