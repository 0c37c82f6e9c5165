"""Where the heads are in a model whose attention call is not seen: by trying what depends on what.

Some models compute their softmax themselves. Around the module that does it are matrices, and among these are q, k, v
and the one that reads the heads. With z what that last one reads, of n heads of d numbers, attention z_h = A_h v_h, A_h
= softmax(q_h k_h), leaves traces that no name is needed for. Change one number c of one head in one matrix's output
(`probes.py`), and see which columns of z change, bit for bit:
v     column c of the same head, and no other; at one position it moves several rows
q, k  every column of the same head, and no other; q at one position moves that row, k moves several
A fused projection is cut as its probes say: into thirds, or into thirds of each head. A number of heads is believed
only where q or k shows it, for the first, the middle and the last head of the first layer of each stack. Where q and k
move alike, as through landmarks, their names tell them apart. Cost: about forty passes that end where z is read.
Limits: q, k and v as their projections give them, before rotary positions; no pattern. Heads that are mixed, or joined
with something else, before the matrix that reads them are not believed.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from interp.hooks.anatomy.family import Family, Projection, View
from interp.hooks.errors import ModelError
from interp.hooks.unseen.probes import Matrix, Probes
from interp.hooks.unseen.softmaxes import noted

COUNTS = ("num_attention_heads", "num_heads", "n_heads", "n_head", "heads", "attention_heads",
          "encoder_attention_heads", "decoder_attention_heads", "num_encoder_attention_heads",
          "num_decoder_attention_heads")  # fmt: skip
"""What the number of heads is called, in a module or in a config."""
FUSED: tuple[tuple[View, ...], ...] = (
    ("thirds:0", "thirds:1", "thirds:2"),
    ("per_head:0", "per_head:1", "per_head:2"),
)
ATTENDS = re.compile("attention|attn", re.IGNORECASE)
"""What classes of modules that attend are called."""
OUTWARDS = 3
"""How many modules around the one that attends may hold the matrix that reads its heads."""


@dataclass(frozen=True)
class Guess:
    """What was found around one module that attends; names are relative to `place`."""

    place: str
    out: str
    heads: str
    q: Projection | None
    k: Projection | None
    v: Projection | None


@dataclass(frozen=True)
class _Part:
    """One part of one projection, and what its probes showed."""

    matrix: Matrix
    view: View
    role: str


def guessed(root: nn.Module, inputs: Mapping[str, Any], attending: Iterable[str] | None = None) -> Family | None:
    """A family that the model behaves like, of those who attend, as far as they are not named; None where none is
    found. Of stacks that are built differently it is that of most modules."""
    names = list(_attending(root, inputs) if attending is None else attending)
    found: dict[tuple[str, str], list[Guess]] = {}
    held: Counter[tuple[str, str]] = Counter()
    for name in _firsts(names):
        guess = next((g for place in _places(root, name) if (g := _around(root, inputs, name, place))), None)
        if guess is not None:
            found.setdefault((guess.out, guess.heads), []).append(guess)
            held[guess.out, guess.heads] += sum(_template(other) == _template(name) for other in names)
    if not found:
        return None
    out, heads = most = held.most_common(1)[0][0]
    places = "|".join(dict.fromkeys(_template(guess.place) for guess in found[most]))
    q, k, v = (_common([getattr(guess, name) for guess in found[most]]) for name in ("q", "k", "v"))
    return Family("guessed", (), places, out, heads, q=q, k=k, v=v)


def _common(projections: Sequence[Projection | None]) -> Projection | None:
    """The one that all of them are."""
    return projections[0] if all(one == projections[0] for one in projections) else None


def _attending(root: nn.Module, inputs: Mapping[str, Any]) -> list[str]:
    """Who computes a softmax of scores; else (YOSO) whose class says that it attends."""
    with noted(root, inputs) as softmaxes, torch.no_grad():
        root(**inputs)
    return list(softmaxes.names) or called_attention(root)


def called_attention(root: nn.Module) -> list[str]:
    """Modules whose class says that they attend."""
    return [name for name, child in root.named_modules() if ATTENDS.search(type(child).__name__)]


def _template(name: str) -> str:
    return re.sub(r"(?<=\.)\d+(?=\.|$)|^\d+(?=\.|$)", "*", name)


def _firsts(attending: Iterable[str]) -> list[str]:
    """The first of each that differ in numbers only."""
    first: dict[str, str] = {}
    for name in attending:
        first.setdefault(_template(name), name)
    return list(first.values())


def _places(root: nn.Module, name: str) -> Iterator[str]:
    """The module that attends, and those around it up to the element of a list."""
    for _ in range(OUTWARDS):
        if not name or isinstance(root.get_submodule(name), (nn.ModuleList, nn.ModuleDict)):
            return
        yield name
        name = name.rpartition(".")[0]


def _around(root: nn.Module, inputs: Mapping[str, Any], name: str, place: str) -> Guess | None:
    probes = Probes(root, inputs, place)
    for out in probes.matrices:
        before = [m for m in probes.matrices if m.entered < out.entered and m.made is not None]
        if out.read is None or not out.once or not before:
            continue
        for spelled, heads in _counts(root, name, place):
            guess = _of(probes, before, out, spelled, heads)
            if guess is not None:
                return guess
    return None


def _counts(root: nn.Module, name: str, place: str) -> Iterator[tuple[str, int]]:
    """Numbers of heads, as they are spelled from `place`, each once."""
    inside = [place] if place else []
    for part in name[len(place) + 1 :].split(".") if name != place else ():
        inside.append(f"{inside[-1]}.{part}" if inside else part)
    owners: list[tuple[Any, str]] = [(root.get_submodule(one), one[len(place) + 1 :]) for one in reversed(inside)]
    owners += [(getattr(owner, "config", None), "") for owner, _ in owners] + [(getattr(root, "config", None), "")]
    seen = set()
    for owner, before in owners:
        for count in COUNTS:
            number = getattr(owner, count, None)
            if isinstance(number, int) and not isinstance(number, bool) and number > 0 and number not in seen:
                seen.add(number)
                yield f"{before}.{count}" if before else count, number


def _of(probes: Probes, before: Sequence[Matrix], out: Matrix, spelled: str, heads: int) -> Guess | None:
    """What q, k and v are, if `out` reads so many heads that attend."""
    assert out.read is not None
    width = out.read.shape[-1]
    if width % heads or width == heads:
        return None
    parts: list[_Part] = []
    for matrix in before:
        assert matrix.made is not None
        if matrix.made.shape[-1] == width:
            parts += _roles(probes, matrix, ("heads",), out, heads)
        elif matrix.made.shape[-1] == 3 * width:
            views = (_roles(probes, matrix, fused, out, heads) for fused in FUSED)
            parts += next((roles for roles in views if len(roles) == 3), [])
    values = _values(probes, parts, out, heads)
    if values is None:
        return None
    if out.read.ndim == 3 and out.read.shape[1] == probes.batch != len(out.read):
        raise ModelError(
            f"{probes.place} gives its output projection [position, batch, d], and a site here is [batch, position,"
            " d]: its heads are not supported, since a row of that input is a position."
        )
    q, k = _told_apart(probes, [p for p in parts if p is not values], values, out, heads)
    return Guess(probes.place, out.name, spelled, *(_projection(part, out) for part in (q, k, values)))


def _values(probes: Probes, parts: Sequence[_Part], out: Matrix, heads: int) -> _Part | None:
    """The values among parts of which others show how many heads there are; by name, where z is normalised (YOSO)."""
    if not any(p.role == "qk" for p in parts):
        return None
    values = [p for p in parts if p.role == "v" and probes.rows(p.matrix, p.view, out, heads) > 1]
    named = [p for p in parts if re.search("value|v_proj", p.matrix.name)]
    values = values or [p for p in named if len(parts) > 2 and probes.rows(p.matrix, p.view, out, heads) > 1]
    return values[0] if len(values) == 1 else None


def _roles(probes: Probes, matrix: Matrix, views: Sequence[View], out: Matrix, heads: int) -> list[_Part]:
    """Those of a matrix's parts that are q, k or v by which columns they move."""
    found = []
    for view in views:
        role = _role(probes, matrix, view, out, heads)
        if role is not None:
            found.append(_Part(matrix, view, role))
        elif len(views) > 1:
            return []
    return found


def _role(probes: Probes, matrix: Matrix, view: View, out: Matrix, heads: int) -> str | None:
    """What all heads that are looked at say a part is."""
    first = None
    for head in dict.fromkeys((heads - 1, 0, heads // 2)):
        role = probes.role(matrix, view, out, heads, head)
        if role is None or first not in (None, role):
            return None
        first = role
    return first


def _told_apart(
    probes: Probes, parts: Sequence[_Part], values: _Part, out: Matrix, heads: int
) -> tuple[_Part | None, _Part | None]:
    """q and k of those that move whole heads. Keys are at the positions of values; projections of distances are not."""
    assert out.read is not None
    both = [p for p in parts if p.role == "qk"]
    if any(p.matrix is values.matrix for p in both):
        both = [p for p in both if p.matrix is values.matrix]
    moved = {id(p): probes.rows(p.matrix, p.view, out, heads) for p in both}
    queries = [p for p in both if moved[id(p)] <= 1 and _places_of(p) == out.read[..., 0].numel()]
    keys = [p for p in both if p not in queries and _places_of(p) == _places_of(values)]
    if not queries and len(keys) == 2:
        queries = [p for p in keys if re.search(r"(^|[._])q([._]|$)|query", p.matrix.name)]
        keys = [p for p in keys if p not in queries]
    return queries[0] if len(queries) == 1 else None, keys[0] if len(keys) == 1 else None


def _places_of(part: _Part) -> int:
    assert part.matrix.made is not None
    return part.matrix.made[..., 0].numel()


def _projection(part: _Part | None, out: Matrix) -> Projection | None:
    """Where a part is, if it is one tensor in the layout of z."""
    if part is None or not part.matrix.once:
        return None
    made, read = part.matrix.made, out.read
    assert made is not None
    assert read is not None
    return Projection(part.matrix.name, part.view) if len(made) == len(read) else None
