"""A circuit as SVG: layers from bottom to top, heads and MLPs as boxes, edges as lines.

No graphviz, no script, no colour that carries meaning by itself: q, k and v edges differ by their dashes, negative
scores by a hollow end, sizes by width, and everything reads in grey. All text is escaped; a title and a description say
the same to a screen reader.
"""

from __future__ import annotations

from html import escape
from typing import Protocol, runtime_checkable

from torch import Tensor

from interp.circuits.graph.nodes import Graph
from interp.hooks.sites import Site

WIDTH, HEIGHT, GAP, BOX = 78, 76, 14, 26
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

    @property
    def edges(self) -> tuple[str, ...]:
        """Those of the mask by name."""


def svg(circuit: Drawable, title: str) -> str:
    """The whole picture."""
    places = _places(circuit)
    right = max(x for x, _ in places.values()) + WIDTH + GAP
    bottom = max(y for _, y in places.values()) + BOX + 60
    body = "".join(_lines(circuit, places)) + "".join(_box(node, x, y) for node, (x, y) in places.items())
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {right} {bottom}" role="img"'
        f' aria-labelledby="circuit-title circuit-text" font-family="sans-serif" font-size="12">'
        f'<title id="circuit-title">{escape(title)}</title><desc id="circuit-text">{escape(_said(circuit))}</desc>'
        f'<rect width="{right}" height="{bottom}" fill="#ffffff"/>{body}{_legend(bottom)}</svg>\n'
    )


def _said(circuit: Drawable) -> str:
    edges = circuit.edges
    rest = f", and {len(edges) - SHOWN} more" if len(edges) > SHOWN else ""
    return f"{circuit!r}. Edges: {', '.join(edges[:SHOWN]) or 'none'}{rest}."


def _node(site: Site) -> tuple[int | None, str]:
    """The box of a sender: its layer and its name there."""
    if site.layer is None:
        return None, "embed"
    return site.layer, "MLP" if site.heads is None else f"H{site.heads[0]}"


def _fed(circuit: Drawable, receiver: int) -> list[tuple[int | None, str]]:
    """The boxes that a receiver belongs to: one, or the heads of a group that the circuit listens to."""
    graph = circuit.graph
    if receiver == len(graph.receivers) - 1:
        return [(None, "logits")]
    heard = circuit.mask.any(1)
    fed = graph.feeds[receiver].nonzero()[:, 0].tolist()
    return [_node(graph.senders[u]) for u in fed if bool(heard[u])] or [_node(graph.senders[fed[0]])]


def _places(circuit: Drawable) -> dict[tuple[int | None, str], tuple[int, int]]:
    graph = circuit.graph
    boxes: set[tuple[int | None, str]] = {(None, "embed"), (None, "logits")}
    for u, v in graph.edges:
        if bool(circuit.mask[u, v]):
            boxes |= {_node(graph.senders[u]), *_fed(circuit, v)}
    order = [_node(site) for site in graph.senders]
    rows: list[list[tuple[int | None, str]]] = [[(None, "embed")]]
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
            found[box] = start + m * (WIDTH + GAP), GAP + (len(rows) - 1 - n) * HEIGHT
    return found


def _box(node: tuple[int | None, str], x: int, y: int) -> str:
    label = node[1] if node[0] is None else f"L{node[0]}.{node[1]}"
    return (
        f'<rect x="{x}" y="{y}" width="{WIDTH}" height="{BOX}" rx="5" fill="#f4f4f4" stroke="#222222"/>'
        f'<text x="{x + WIDTH // 2}" y="{y + 17}" text-anchor="middle" fill="#111111">{escape(label)}</text>'
    )


def _lines(circuit: Drawable, places: dict[tuple[int | None, str], tuple[int, int]]) -> list[str]:
    graph, made = circuit.graph, []
    scores = None if circuit.scores is None else circuit.scores.nan_to_num(0.0)
    most = 0.0 if scores is None else float((scores.abs() * circuit.mask).max())
    for u, v in graph.edges:
        if not bool(circuit.mask[u, v]):
            continue
        score = 0.0 if scores is None else float(scores[u, v])
        width = 1.2 if not most else 0.6 + 3.4 * abs(score) / most
        start, name = places[_node(graph.senders[u])], graph.name((u, v))
        made += [_line(start, places[box], graph.receivers[v], width, score, name) for box in _fed(circuit, v)]
    return made


def _line(
    start: tuple[int, int], end: tuple[int, int], receiver: Site, width: float, score: float, name: str
) -> str:  # fmt: skip
    shift = {"q_in": -18, "k_in": 0, "v_in": 18}.get(receiver.component, 0)
    x1, y1, x2, y2 = start[0] + WIDTH // 2, start[1], end[0] + WIDTH // 2 + shift, end[1] + BOX
    dash = DASHES.get(receiver.component, "")
    dashes = f' stroke-dasharray="{dash}"' if dash else ""
    said = escape(f"{name} {score:+.3g}" if score else name)
    fill = "#ffffff" if score < 0 else "#333333"
    return (
        f'<g><title>{said}</title><path d="M{x1} {y1} C{x1} {y1 - 30} {x2} {y2 + 30} {x2} {y2 + 4}" fill="none"'
        f' stroke="#333333" stroke-opacity="0.7" stroke-width="{width:.2f}"{dashes}/>'
        f'<circle cx="{x2}" cy="{y2 + 3}" r="3" fill="{fill}" stroke="#333333"/></g>'
    )


def _legend(bottom: int) -> str:
    words = "lines into heads: q solid, k dashed, v dotted; hollow end: negative score"
    return f'<text x="{GAP}" y="{bottom - 14}" fill="#111111" font-size="10">{words}</text>'
