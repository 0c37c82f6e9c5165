"""Patterns of heads on a few of the task's prompts, and the pictures they look at, small enough for a page.

Short prompts are kept whole for every head while the page has room, else for the heads that matter; of long ones the
last rows are kept with each row's largest weights, so nothing is ever N x N in the page; of pictures the first row (a
class token) and some evenly spaced ones, with all their keys. Weights are bytes on one scale that all heads share, from
0 to 1, of long pictures to the largest weight. Cost: one forward pass a prompt and tower, more where all patterns
together pass `TOGETHER`. Limits: one grid per picture.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from io import BytesIO
from typing import Any

import numpy as np
import torch
from torch import Tensor

from interp.hooks.head_names import head_name, head_place, layer_name, spelled_together
from interp.hooks.inputs.inputs import Inputs
from interp.hooks.inputs.labels import KINDS
from interp.hooks.run.tape import tower_inputs
from interp.hooks.sites import Site
from interp.reporting.steps.gathered import Gathered
from interp.reporting.steps.section import Section
from interp.reporting.steps.steps import Answer, Steps
from interp.reporting.steps.subject import Subject

WHOLE = 64
"""Tokens up to which a pattern is kept whole."""
ROWS, KEYS = 16, 16
ROOM = 1_200_000
"""Weights a page has room for."""
TOGETHER = 2**27
"""Bytes of patterns that one pass records."""


def patterns(subject: Subject, leaders: list[str]) -> Answer:
    """Examples, blocks of weights and pictures, in the order a page shows them."""
    examples: list[Answer] = []
    blocks: list[Answer] = []
    images: list[Answer] = []
    for number in range(min(subject.wanted.examples, len(subject.task))):
        row = subject.task.take([number])
        for tower, prefix in subject.stacks.items():
            layer = subject.model.anatomy.towers[tower].layers[0]
            x = tower_inputs(row.clean, Site(tower if prefix else None, layer.index, "z"))
            blocks += _blocks(subject, row.clean, x, prefix, tower, leaders, len(examples))
            images += _image(row.rows[0].image, x, tower, len(examples), number)
            examples.append(_example(x, f"clean {number}" + (f", {tower}" if prefix else ""), row))
    return {"examples": examples, "blocks": blocks, "images": images}


def _example(x: Inputs, name: str, row: Any) -> Answer:
    roles = x.roles
    length = x.length
    kinds = [KINDS[int(code)] for code in roles.kind[0].tolist()]
    tokens = list(x.tokens[0]) if x.tokens is not None else [roles.label(0, n) for n in range(length)]
    answers = row.rows[0].answers
    said = f"right answer {str(answers[0])!r}" if answers else "compared with its own vector"
    return {"name": name, "tokens": tokens, "roles": kinds, "note": said}


def _blocks(
    subject: Subject, clean: Inputs, x: Inputs, prefix: str, tower: str, leaders: list[str], example: int
) -> list[Answer]:
    stack, length = subject.model.anatomy.towers[tower], x.length
    mine = [site for site in leaders if (head_place(site).tower or tower) == tower]
    number = subject.wanted.examples * subject.count * min(length, WHOLE) ** 2
    every = length <= WHOLE and number <= ROOM
    if every:
        name = tower if prefix else None
        mine = [head_name(name, layer.index, h) for layer in stack.layers for h in range(layer.heads)]
    layers = _own(subject, _by_layer(mine)) if mine else []
    if length > WHOLE and bool(x.roles.patch[0].any()):
        return _looks(subject, clean, layers, length, example)
    return _recorded(subject, clean, layers, length, example)


def _own(subject: Subject, layers: list[list[str]]) -> list[list[str]]:
    """Those that look at their own tower."""
    anatomy = subject.model.anatomy
    return [sites for sites in layers if anatomy.layer(anatomy.one(f"{sites[0]}.z")).kind != "cross"]


def _looks(subject: Subject, clean: Inputs, layers: list[list[str]], length: int, example: int) -> list[Answer]:
    """All keys of some rows, for heads that look at a picture."""
    rows = torch.linspace(0, length - 1, min(ROWS, length)).round().long().unique().tolist()
    found: list[tuple[list[str], Tensor]] = []
    for sites in layers:
        tape = subject.model.run(clean, record=_spelled(sites), positions=rows)
        found.append((sites, tape[_spelled(sites)][0].float().cpu()))
    scale = max((float(weights.max()) for _, weights in found), default=1.0) or 1.0
    return [
        {"example": example, "sites": sites, "rows": rows, "weights": _bytes(weights / scale), "scale": scale,
         "shape": list(weights.shape), "indices": None}
        for sites, weights in found
    ]  # fmt: skip


def _by_layer(sites: list[str]) -> list[list[str]]:
    found: dict[str, list[str]] = {}
    for site in sorted(sites, key=head_place):
        found.setdefault(layer_name(site), []).append(site)
    return list(found.values())


def _recorded(subject: Subject, clean: Inputs, layers: list[list[str]], length: int, example: int) -> list[Answer]:
    """The patterns of some heads of some layers."""
    rows = list(range(length)) if length <= WHOLE else list(range(length - ROWS, length))
    some: dict[str, Any] = {} if length <= WHOLE else {"positions": rows}
    size = max((len(sites) for sites in layers), default=1) * len(rows) * length * 4
    step, blocks = max(1, TOGETHER // size), []
    for start in range(0, len(layers), step):
        part = {_spelled(sites): sites for sites in layers[start : start + step]}
        tape = subject.model.run(clean, record=list(part), **some)
        blocks += [_block(sites, tape[name][0].float().cpu(), length, example) for name, sites in part.items()]
    return blocks


def _spelled(sites: list[str]) -> str:
    return f"{spelled_together(layer_name(sites[0]), [head_place(site).head for site in sites])}.pattern"


def _block(sites: list[str], weights: Tensor, length: int, example: int) -> Answer:
    """The patterns [head, row, key] of some heads of one layer."""
    whole = length <= WHOLE
    answer = {"example": example, "sites": sites, "rows": None if whole else list(range(length - ROWS, length))}
    if whole:
        return {**answer, "weights": _bytes(weights), "shape": list(weights.shape), "indices": None}
    top = weights.topk(min(KEYS, length), dim=-1)
    return {**answer, "weights": _bytes(top.values), "shape": list(top.values.shape), "indices": top.indices.tolist()}


def _bytes(weights: Tensor) -> str:
    return base64.b64encode((weights.clamp(0, 1) * 255).round().to(torch.uint8).numpy().tobytes()).decode()


def _image(picture: Any, x: Inputs, tower: str, example: int, number: int) -> list[Answer]:
    """The picture with the true grid of its patches in this tower, where it has one grid there."""
    roles = x.roles
    if picture is None or not bool(roles.patch[0].any()) or len(roles.grids[0]) != 1:
        return []
    _, rows, cols = roles.grids[0][0]
    places: list[int | None] = [None] * (rows * cols)
    for position in roles.patch[0].nonzero().flatten().tolist():
        places[int(roles.row[0, position]) * cols + int(roles.col[0, position])] = position
    sink = BytesIO()
    picture.save(sink, format="PNG")
    return [{"name": f"picture {number}", "example": example, "tower": tower, "grid": [rows, cols],
             "png": base64.b64encode(sink.getvalue()).decode(), "positions": places}]  # fmt: skip


def _measure(made: Gathered, subject: Subject, steps: Steps) -> None:
    if not subject.amount("patterns", 1):
        return
    made.keep("patterns", steps.attempt("patterns", lambda: patterns(subject, made.leaders)))


def _page(made: Gathered) -> Mapping[str, Any]:
    """Examples, patterns and pictures."""
    held = made.answers.get("patterns", {})
    if not held.get("examples"):
        return {}
    blocks = [
        {"example": block["example"], "sites": block["sites"], "rows": block["rows"], "scale": block.get("scale", 1.0),
         "weights": np.frombuffer(base64.b64decode(block["weights"]), dtype=np.uint8).reshape(block["shape"]),
         **({} if block["indices"] is None else {"indices": np.asarray(block["indices"])})}
        for block in held["blocks"]
    ]  # fmt: skip
    images = [{**image, "png": base64.b64decode(image["png"])} for image in held["images"]]
    return {"examples": held["examples"], "patterns": blocks, "images": images}


def _plan(subject: Subject) -> None:
    passes = 2 * subject.wanted.examples * len(subject.stacks) / len(subject.task)
    subject.budget.whole("patterns", passes, "Patterns of examples")


SECTION = Section("patterns", 70, _measure, plan=_plan, page=_page)
