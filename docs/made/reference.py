"""The reference: a page for the root and one for each room, with every public call and every class with what it has."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Iterator
from typing import Any

from made.surface import Member, classes_in, members, returned, rooms, signature, signature_text, surface
from made.words import anchor, linked, prose, table

import interp

ROOT, RESULTS, PARTS = "interp", "results", "parts"
TITLES = {
    RESULTS: ("Results", "Classes that calls return, and what all results share. You do not build them: a call does."),
    PARTS: ("Parts", "Classes that are met inside of others: places, spans, layers, parts of edits."),
}
MADE = "Made from docstrings by `docs/build.py`."
SAME = {
    "meta": "How the result was made: model, method, options and versions, as plain values.",
    "sites": "The names of the places or heads, in the order of the values.",
    "towers": "The tower of each site.",
}
"""Fields that are the same in every result, where its class says nothing more exact about them."""


def pages() -> dict[str, str]:
    """The text of every page by its file name."""
    made = {f"reference/{name}.md": _page(name, found) for name, found in _contents().items()}
    return {"reference/README.md": _index(), **made}


@functools.cache
def _contents() -> dict[str, dict[str, object]]:
    """What each page has, by the name under which it stands there."""
    found: dict[str, dict[str, object]] = {name: {} for name in (ROOT, *rooms(), RESULTS, PARTS)}
    for name, thing in surface().items():
        if not inspect.ismodule(thing):
            room, dot, _ = name.rpartition(".")
            found[room if dot else ROOT][f"interp.{name}"] = thing
    for name, kind in returned().items():
        found[_home(kind)][name] = kind
    return {name: things for name, things in found.items() if things or name in rooms()}


def _home(kind: type) -> str:
    _, room, *_ = kind.__module__.split(".")
    return room if room in rooms() else RESULTS if room == "results" else PARTS


@functools.cache
def links() -> dict[str, str]:
    """Where each name is, seen from a page of the reference: by full name, classes and methods by short name too."""
    found = {f"interp.{room}": f"{room}.md" for room in rooms()}
    for page, things in _contents().items():
        for name, thing in things.items():
            found[name] = f"{page}.md#{anchor(name)}"
            if isinstance(thing, type):
                found.setdefault(thing.__name__, found[name])
                for one in _own(thing):
                    found.setdefault(
                        f"{thing.__name__}.{one.name}", f"{page}.md#{anchor(f'{thing.__name__}.{one.name}')}"
                    )
    return found


def _own(kind: type) -> list[Member]:
    """The methods that are told in full where the class stands: those that it defines and says something about."""
    return [one for one in members(kind) if one.owner is kind and one.kind == "method"]


def _index() -> str:
    """Every name, a line each."""
    lines = ["# API reference", "", f"Every public name, by the page that has all of it. {MADE}", ""]
    for page, things in _contents().items():
        title, said = _head(page)
        lines += [f"## [{title}]({page}.md)", "", said.partition("\n\n")[0] if page in TITLES else "", ""]
        rows = [(f"[`{name}`]({links()[name]})", _first(thing)) for name, thing in things.items()]
        lines += table(("name", "what it is"), rows) if rows else []
    return _joined(lines)


def _first(thing: object) -> str:
    """The first sentence of its docstring."""
    first = " ".join((inspect.getdoc(thing) or "").partition("\n\n")[0].split())
    return prose(first.partition(". ")[0].rstrip(".") + ".", {}) if first else ""


def _head(page: str) -> tuple[str, str]:
    """The title of a page and what it says of itself."""
    if page in TITLES:
        return TITLES[page]
    thing = interp if page == ROOT else getattr(interp, page)
    return f"`{page if page == ROOT else f'interp.{page}'}`", inspect.getdoc(thing) or ""


def _page(page: str, things: dict[str, object]) -> str:
    title, said = _head(page)
    lines = [f"# {title}", "", MADE, "", prose(said, links()), ""]
    for name, thing in things.items():
        lines += [*_entry(name, thing)]
    return _joined(lines)


def _entry(name: str, thing: object) -> Iterator[str]:
    yield from (f"## `{name}`", "")
    if isinstance(thing, type):
        yield from _kind(name, thing)
        return
    yield from _called(name, thing)
    yield from (prose(inspect.getdoc(thing) or "", links()), "")


def _called(name: str, call: Any) -> Iterator[str]:
    said = signature(call)
    if said:
        yield from ("```text", f"{name}{said}", "```", "")
        yield from _seen(said, name)


def _seen(said: str, name: str) -> Iterator[str]:
    """Links to the classes that a signature names."""
    met = dict.fromkeys(kind.__name__ for kind in classes_in(said) if kind.__name__ in links())
    met.pop(name.rpartition(".")[2], None)
    if met:
        yield from ("Classes: " + ", ".join(linked(f"`{one}`", links()) for one in met), "")


def _kind(name: str, kind: type) -> Iterator[str]:
    """A class: how it is made, what it is, its attributes, its methods, and what it has from other classes."""
    yield from _called(name, kind)
    yield from (prose(inspect.getdoc(kind) or "", links()), "")
    found = members(kind)
    attributes = [one for one in found if one.kind != "method" and one.owner is kind]
    if attributes:
        rows = [(f"`{one.name}`", f"`{one.type}`" if one.type else "", _note(one)) for one in attributes]
        width = 3 if any(row[2] for row in rows) else 2
        head = f"attribute of `{kind.__name__}`", "type", "what it is"
        yield from table(head[:width], [row[:width] for row in rows])
    for one in _own(kind):
        yield from _method(kind, one)
    others = [one for one in found if one.owner is not kind]
    for owner in dict.fromkeys(one.owner for one in others):
        yield from (f"From {linked(f'`{owner.__name__}`', links())}: {_listed(owner, others)}", "")


def _note(one: Member) -> str:
    said = one.doc or (SAME.get(one.name, "") if one.kind == "field" else "")
    return " ".join(prose(said, links()).split())


def _listed(owner: type, others: list[Member]) -> str:
    """Those of one class, as links where they are told in full."""
    names = [one.name for one in others if one.owner is owner]
    there = {name: links().get(f"{owner.__name__}.{name}") for name in names}
    return ", ".join(f"[`{name}`]({link})" if link else f"`{name}`" for name, link in there.items())


def _method(kind: type, one: Member) -> Iterator[str]:
    called = f"{kind.__name__}.{one.name}"
    said = signature_text(str(inspect.signature(one.call)))
    said = said.replace("(self, ", "(").replace("(self)", "()").replace("(cls, ", "(").replace("(cls)", "()")
    yield from (f"### `{called}`", "", "```text", f"{called}{said}", "```", "")
    yield from (prose(one.doc, links()), "")


def _joined(lines: list[str]) -> str:
    """One empty line between blocks, and one end of line at the end."""
    kept = [line for n, line in enumerate(lines) if line or (n and lines[n - 1])]
    return "\n".join(kept).rstrip() + "\n"
