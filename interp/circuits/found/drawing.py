"""A circuit as SVG: layers from bottom to top, heads and MLPs as boxes, edges as lines.

No graphviz, no script, no meaning that is in the colour alone: q, k and v edges differ by their dashes, negative scores
by their colour and a hollow end, sizes by width, and everything reads in grey. All text is escaped; a title and a
description say the same to a screen reader. Of a large circuit the `MOST` largest edges are drawn, which the picture
says: nobody reads a thousand lines. A model of many layers or heads has a row for each layer and a column for each
head, used or not, in a picture of `ACROSS` by `DOWN` or so, whatever its size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from interp.circuits.graph.nodes import Graph
from interp.hooks.sites import Site
from interp.results.figures.colours import LESS, MORE
from interp.results.figures.marks import Link, Network

WIDTH, GAP = 78, 14
ROW, HIGH, TALL, BROAD = 76, 26, 14, 13
"""From row to row and the height of a box, where there are at most so many rows of at most so many boxes."""
ACROSS, DOWN, MARGIN = 1100, 1000, 34
MOST = 160
"""Edges that are drawn."""
DASHES = {"q_in": "", "k_in": "7 3", "v_in": "2 3"}
SHOWN = 40
"""Edges that the description lists."""


@runtime_checkable
class Drawable(Protocol):
    """What a picture shows: some edges of a graph, with scores where they are known."""

    @property
    def graph(self) -> Graph:
        """All that could be drawn."""

    @property
    def mask(self) -> Tensor:
        """Bool [sender, receiver], the edges to draw."""

    @property
    def scores(self) -> Tensor | None:
        """[sender, receiver]."""


def held(graph: Graph, mask: Tensor) -> tuple[tuple[int, int], ...]:
    """The edges of a mask in the graph's order, receiver by receiver."""
    return tuple((u, v) for v, u in (mask & graph.exists).T.nonzero().tolist())


Box = tuple[int | None, str]


class Svg(str):
    """SVG as text, which a notebook shows as a picture."""

    __slots__ = ()

    def __repr__(self) -> str:
        return f"SVG of {len(self):,} characters; print() gives the text"

    def _repr_svg_(self) -> str:
        return str(self)


@dataclass(frozen=True)
class _Layout:
    """Where boxes are, and how high they are."""

    places: dict[Box, tuple[int, int]]
    box: int
    wide: int = WIDTH
    labels: tuple[tuple[int, int, str], ...] = ()
    """What is written next to the boxes: across, down, text."""


def svg(circuit: Drawable, title: str, *, most: int = MOST) -> str:
    """The picture, of at most so many edges."""
    every = held(circuit.graph, circuit.mask)
    edges = _largest(circuit, every, most)
    layout = _laid_out(circuit, edges)
    if _high(layout) > TALL or _broad(layout) > BROAD:
        layout = _gridded(circuit, layout)
    right = max(x for x, _ in layout.places.values()) + layout.wide + GAP
    bottom = max(y for _, y in layout.places.values()) + layout.box + 60
    boxes = (_box(node, x, y, layout) for node, (x, y) in layout.places.items())
    numbers = (f'<text x="{x}" y="{y}" fill="#444444" font-size="9">{text}</text>' for x, y, text in layout.labels)
    part = "" if len(edges) == len(every) else _part(circuit, edges, every)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {max(right, 460)} {bottom}" role="img"'
        f' aria-labelledby="circuit-title circuit-text" font-family="sans-serif" font-size="12">'
        f'<title id="circuit-title">{escape(title)}</title>'
        f'<desc id="circuit-text">{escape(_said(circuit, edges, part))}</desc>'
        f'<rect width="{max(right, 460)}" height="{bottom}" fill="#ffffff"/>'
        f"{''.join(numbers)}{''.join(_lines(circuit, edges, layout))}{''.join(boxes)}{_legend(bottom, part)}</svg>\n"
    )


def network(circuit: Drawable, most: int = MOST) -> Network:
    """The same as nodes and edges of a figure."""
    every = held(circuit.graph, circuit.mask)
    edges = _largest(circuit, every, most)
    places = _laid_out(circuit, edges).places
    right, low = max(x for x, _ in places.values()) or 1, max(y for _, y in places.values()) or 1
    numbers = {box: n for n, box in enumerate(places)}
    scores = torch.zeros(circuit.mask.shape) if circuit.scores is None else circuit.scores.nan_to_num(0.0)
    largest = max((abs(float(scores[edge])) for edge in edges), default=0.0)
    lines = []
    for u, v in edges:
        score, kind = float(scores[u, v]), circuit.graph.receivers[v].component.removesuffix("_in")
        size, said = abs(score) / largest if largest else 0.4, f"{circuit.graph.name((u, v))} {score:+.3g}"
        start = numbers[_node(circuit.graph.senders[u])]
        lines += [Link(start, numbers[end], size, kind, score < 0, said) for end in _fed(circuit, v)]
    nodes = [
        (box[1] if box[0] is None else f"{box[0]}.{box[1]}", x / right, 1 - y / low) for box, (x, y) in places.items()
    ]
    part = "" if len(edges) == len(every) else f"{_part(circuit, edges, every)}; "
    return Network(nodes, lines, note=f"{part}into heads: q solid, k dashed, v dotted; blue: negative")


def _largest(circuit: Drawable, edges: Sequence[tuple[int, int]], most: int) -> list[tuple[int, int]]:
    """The first by size, in the order they came."""
    if len(edges) <= most or circuit.scores is None:
        return [*edges[:most]]
    sizes = torch.stack([circuit.scores[edge] for edge in edges]).nan_to_num(0.0).abs()
    return [edges[n] for n in sizes.argsort(descending=True, stable=True)[:most].sort().values.tolist()]


def _part(circuit: Drawable, edges: Sequence[tuple[int, int]], every: Sequence[tuple[int, int]]) -> str:
    """What is drawn of it."""
    if circuit.scores is None:
        return f"the first {len(edges):,} of {len(every):,} edges"
    size = circuit.scores.nan_to_num(0.0).abs()
    total = float(sum(size[edge] for edge in every))
    share = f", which have {float(sum(size[edge] for edge in edges)) / total:.0%} of their size" if total else ""
    return f"the {len(edges):,} largest of {len(every):,} edges{share}"


def _said(circuit: Drawable, edges: Sequence[tuple[int, int]], part: str) -> str:
    names = [circuit.graph.name(edge) for edge in edges[:SHOWN]]
    rest = f", and {len(edges) - SHOWN} more" if len(edges) > SHOWN else ""
    drawn = f" Drawn are {part}." if part else ""
    return f"{circuit!r}.{drawn} Edges: {', '.join(names) or 'none'}{rest}."


def _node(site: Site) -> Box:
    """The box of a sender: its layer and its name there."""
    if site.layer is None:
        return None, "embed"
    return site.layer, "MLP" if site.heads is None else f"H{site.heads[0]}"


def _fed(circuit: Drawable, receiver: int) -> list[Box]:
    """The boxes that a receiver belongs to: one, or the heads of a group that the circuit listens to."""
    graph = circuit.graph
    if receiver == len(graph.receivers) - 1:
        return [(None, "logits")]
    fed = graph.feeds[receiver].nonzero()[:, 0].tolist()
    return [_node(graph.senders[u]) for u in fed if bool(circuit.mask[u].any())] or [_node(graph.senders[fed[0]])]


def _laid_out(circuit: Drawable, edges: Sequence[tuple[int, int]]) -> _Layout:
    graph = circuit.graph
    boxes: set[Box] = {(None, "embed"), (None, "logits")}
    for u, v in edges:
        boxes |= {_node(graph.senders[u]), *_fed(circuit, v)}
    order = [_node(site) for site in graph.senders]
    rows: list[list[Box]] = [[(None, "embed")]]
    for layer in graph.layers:
        for mlp in (False, True):
            row = [box for box in order if box in boxes and box[0] == layer.index and (box[1] == "MLP") == mlp]
            rows += [row] if row else []
    rows.append([(None, "logits")])
    wide = max(len(row) for row in rows) * (WIDTH + GAP)
    found = {}
    for n, row in enumerate(rows):
        start = GAP + (wide - len(row) * (WIDTH + GAP)) // 2
        for m, box in enumerate(row):
            found[box] = start + m * (WIDTH + GAP), GAP + (len(rows) - 1 - n) * ROW
    return _Layout(found, HIGH)


def _high(layout: _Layout) -> int:
    return len({y for _, y in layout.places.values()})


def _broad(layout: _Layout) -> int:
    rows = [y for _, y in layout.places.values()]
    return max(rows.count(y) for y in rows)


def _gridded(circuit: Drawable, packed: _Layout) -> _Layout:
    """The same boxes where their layer and their number say, MLPs in a last column."""
    layers = {layer.index: n for n, layer in enumerate(circuit.graph.layers)}
    heads = max(layer.heads for layer in circuit.graph.layers)
    column, row = min(WIDTH + GAP, ACROSS // (heads + 1)), max(10, min(ROW, DOWN // (len(layers) + 2)))
    middle, top, found = MARGIN + heads * column // 2, GAP + row // 2, {}
    for box in packed.places:
        if box[0] is None:
            found[box] = middle, top + (0 if box[1] == "logits" else (len(layers) + 1) * row)
        else:
            slot, y = heads if box[1] == "MLP" else int(box[1][1:]), top + (len(layers) - layers[box[0]]) * row
            found[box] = MARGIN + slot * column, y - (row // 2 if box[1] == "MLP" else 0)
    high, wide = max(6, min(18, row - 4)), max(8, min(WIDTH, column - 4))
    labels = [(2, top + (len(layers) - n) * row + high // 2 + 3, f"L{name}") for name, n in layers.items()]
    labels += [
        (MARGIN + h * column + wide // 2 - 4, GAP - 3, f"H{h}") for h in range(0, heads, max(1, -(-20 // column)))
    ]
    return _Layout(found, high, wide, tuple(labels))


def _box(node: Box, x: int, y: int, layout: _Layout) -> str:
    wide, high = layout.wide, layout.box
    size = min(12, high - 1)
    whole, short = node[1] if node[0] is None else f"L{node[0]}.{node[1]}", node[1]
    label = next((text for text in (whole, short) if len(text) * size * 0.6 < wide and size > 6), "")
    made = f'<rect x="{x}" y="{y}" width="{wide}" height="{high}" rx="5" fill="#f4f4f4" stroke="#222222"/>'
    if not label:
        return made
    place = f'x="{x + wide // 2}" y="{y + high // 2 + size // 3}" text-anchor="middle" font-size="{size}"'
    return f'{made}<text {place} fill="#111111">{escape(label)}</text>'


def _lines(circuit: Drawable, edges: Sequence[tuple[int, int]], layout: _Layout) -> list[str]:
    graph, made, places = circuit.graph, [], layout.places
    scores = None if circuit.scores is None else circuit.scores.nan_to_num(0.0)
    most = 0.0 if scores is None else float((scores.abs() * circuit.mask).max())
    for u, v in edges:
        score = 0.0 if scores is None else float(scores[u, v])
        width = 1.2 if not most else 0.6 + 3.4 * abs(score) / most
        start, name = places[_node(graph.senders[u])], graph.name((u, v))
        ends = [places[box] for box in _fed(circuit, v)]
        made += [
            _line(start, (x, y + layout.box), graph.receivers[v], width, score, name, layout.wide) for x, y in ends
        ]
    return made


def _line(
    start: tuple[int, int], end: tuple[int, int], receiver: Site, width: float, score: float, name: str, wide: int
) -> str:  # fmt: skip
    shift = {"q_in": -(wide // 4), "k_in": 0, "v_in": wide // 4}.get(receiver.component, 0)
    x1, y1, x2, y2 = start[0] + wide // 2, start[1], end[0] + wide // 2 + shift, end[1]
    dash = DASHES.get(receiver.component, "")
    dashes = f' stroke-dasharray="{dash}"' if dash else ""
    said = escape(f"{name} {score:+.3g}" if score else name)
    ink = LESS if score < 0 else MORE if score > 0 else "#333333"
    fill = "#ffffff" if score < 0 else ink
    return (
        f'<g><title>{said}</title><path d="M{x1} {y1} C{x1} {y1 - 30} {x2} {y2 + 30} {x2} {y2 + 4}" fill="none"'
        f' stroke="{ink}" stroke-opacity="0.75" stroke-width="{width:.2f}"{dashes}/>'
        f'<circle cx="{x2}" cy="{y2 + 3}" r="3" fill="{fill}" stroke="{ink}"/></g>'
    )


def _legend(bottom: int, part: str) -> str:
    words = "lines into heads: q solid, k dashed, v dotted; orange: positive score; blue, hollow end: negative"
    lines = [f"drawn: {part}", words] if part else [words]
    return "".join(
        f'<text x="{GAP}" y="{bottom - 14 * (len(lines) - n)}" fill="#111111" font-size="10">{escape(line)}</text>'
        for n, line in enumerate(lines)
    )
