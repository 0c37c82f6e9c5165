"""What is public: the names at the root and in the rooms, the classes that calls return, and what each class has."""

from __future__ import annotations

import ast
import dataclasses
import functools
import inspect
import re
import sys
from collections.abc import Iterable, Iterator
from types import ModuleType
from typing import Any

import interp

GROUND = "interp.kernels."
"""What lies there is for those who write kernels, not for those who ask."""
FLOORS = GROUND, "interp.hooks.", "interp."
"""Where classes lie, lowest floor first."""


def rooms() -> dict[str, ModuleType]:
    return {name: room for name in interp.__all__ if inspect.ismodule(room := getattr(interp, name))}


@functools.cache
def surface() -> dict[str, object]:
    """Every public name with what it is: those at the root, then each room's own."""
    names = {name: getattr(interp, name) for name in interp.__all__}
    seen = {id(thing) for thing in names.values()}
    for name, room in rooms().items():
        inside = {f"{name}.{one}": getattr(room, one) for one in room.__all__}
        names |= {one: thing for one, thing in inside.items() if id(thing) not in seen}
    return names


@functools.cache
def returned() -> dict[str, type]:
    """Classes that no room hands out and a user still holds: what public calls return, and the bases of all classes."""
    public = {thing for thing in surface().values() if isinstance(thing, type)}
    found: dict[type, None] = {}
    waiting = [*surface().values()]
    while waiting:
        thing = waiting.pop(0)
        named = [*_given(thing), *(_bases(thing) if isinstance(thing, type) else ())]
        new = [one for one in named if one not in public and one not in found and not one.__module__.startswith(GROUND)]
        found |= dict.fromkeys(new)
        waiting += new
    return {one.__name__: one for one in sorted(found, key=lambda one: one.__name__)}


def _bases(kind: type) -> list[type]:
    """Those of its bases that give it something public."""
    return [b for b in kind.__mro__[1:] if b.__module__.startswith("interp.") and any(_names(b))]


def _given(thing: object) -> Iterator[type]:
    """The classes of this package that a call, or a method of a class, says it returns."""
    calls = [m.call for m in members(thing)] if isinstance(thing, type) else [thing]
    for call in calls:
        if inspect.isfunction(call):
            yield from classes_in(str(call.__annotations__.get("return", "")))


def classes_in(annotation: str) -> Iterator[type]:
    known = _classes()
    for word in re.findall(r"\w+", annotation):
        if word in known:
            yield known[word]


@functools.cache
def _classes() -> dict[str, type]:
    """Every class of the package by its name; the higher floor wins."""
    surface()
    named: dict[str, type] = {}
    for floor in FLOORS:
        for name, module in sorted(sys.modules.items()):
            if name.startswith(floor) and not (floor == FLOORS[-1] and name.startswith(FLOORS[:-1])):
                own = {k: v for k, v in vars(module).items() if isinstance(v, type) and v.__module__ == name}
                named |= {key: kind for key, kind in own.items() if not key.startswith("_")}
    return named


@dataclasses.dataclass(frozen=True)
class Member:
    """One public attribute or method of a class, where it is written down, and what is said about it."""

    name: str
    kind: str  # method, property or field
    owner: type
    call: Any
    type: str
    doc: str


@functools.cache
def members(kind: type) -> tuple[Member, ...]:
    """A class's public attributes and methods, its own first, then those of its bases; the nearest says what it is."""
    found: dict[str, Member] = {}
    for owner in kind.__mro__:
        if owner.__module__.startswith("interp."):
            for one in _own(owner):
                held = found.get(one.name)
                if held is None or not held.doc:
                    found[one.name] = dataclasses.replace(one, call=(held or one).call)
    return tuple(found.values())


def _own(owner: type) -> Iterator[Member]:
    notes = _notes(owner)
    for name, what in _names(owner):
        if isinstance(what, (property, functools.cached_property)):
            call = what.fget if isinstance(what, property) else what.func
            yield Member(name, "property", owner, call, _type(call.__annotations__.get("return")), _said(call))
        elif inspect.isfunction(call := getattr(what, "__func__", what)):
            yield Member(name, "method", owner, call, "", _said(call))
        else:
            kept = owner.__annotations__.get(name) if "__annotations__" in vars(owner) else None
            yield Member(name, "field", owner, None, _type(kept), notes.get(name, ""))


def _names(owner: type) -> Iterator[tuple[str, object]]:
    """Fields in the order in which they are given, then what else the class has."""
    annotated = vars(owner).get("__annotations__", {})
    for name in annotated:
        if not name.startswith("_") and "ClassVar" not in str(annotated[name]):
            yield name, None
    for name, what in vars(owner).items():
        shown = isinstance(what, (property, functools.cached_property, classmethod, staticmethod))
        if not name.startswith("_") and name not in annotated and (shown or inspect.isfunction(what)):
            yield name, what


def _said(call: Any) -> str:
    return inspect.cleandoc(call.__doc__ or "")


def _type(annotation: object) -> str:
    return signature_text(annotation if isinstance(annotation, str) else getattr(annotation, "__name__", ""))


@functools.cache
def _notes(owner: type) -> dict[str, str]:
    """What is written below an attribute as a string, or behind it as a comment, in the class's source."""
    lines, kinds = _parsed(owner.__module__)
    made = kinds.get(owner.__name__)
    if made is None:  # made at run time: there is no source
        return {}
    notes = {}
    for one, after in zip(made.body, [*made.body[1:], None], strict=True):
        if isinstance(one, ast.AnnAssign) and isinstance(one.target, ast.Name):
            _, _, comment = lines[(one.end_lineno or 1) - 1][one.end_col_offset or 0 :].partition("# ")
            below = after.value if isinstance(after, ast.Expr) else None
            text = below.value if isinstance(below, ast.Constant) else comment
            notes[one.target.id] = inspect.cleandoc(str(text)) if text else ""
    return notes


@functools.cache
def _parsed(module: str) -> tuple[list[str], dict[str, ast.ClassDef]]:
    """A file's lines and its classes; each file is read once, where `inspect.getsource` reads it for every class."""
    source = inspect.getsource(sys.modules[module])
    return source.splitlines(), {one.name: one for one in ast.parse(source).body if isinstance(one, ast.ClassDef)}


def signature(thing: Any) -> str:
    if not callable(thing) or (isinstance(thing, type) and not _made_by_hand(thing)):
        return ""
    return signature_text(str(inspect.signature(thing)))


def _made_by_hand(kind: type) -> bool:
    """Whether the class itself says what it is made from; subclasses of `str` and the like, and errors, do not."""
    makers = [vars(one).get(name) for one in kind.__mro__ for name in ("__init__", "__new__")]
    return any(map(inspect.isfunction, makers)) and not issubclass(kind, BaseException)


def signature_text(text: str) -> str:
    short = re.sub(r"interp\.(?:\w+\.)*(\w+)", r"\1", text.replace("'", ""))
    return re.sub(r"<function \S+ at 0x\w+>", "<function>", re.sub(r"<class ([\w.]+)>", r"\1", short))


def undocumented() -> list[str]:
    """Public methods and properties without a word about what they do, as `Class.method`."""
    kinds: Iterable[type] = [k for k in surface().values() if isinstance(k, type)] + list(returned().values())
    return [
        f"{kind.__name__}.{one.name}"
        for kind in kinds
        for one in members(kind)
        if one.kind != "field" and one.owner is kind and not one.doc
    ]
