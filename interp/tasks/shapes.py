"""Questions about generated scenes (`interp/prompts/scenes.py`), for models that look.

    yes_no   "is there a star in the image ?" -> yes; the corrupt picture is the same scene without the star. Half of
             the rows are asked about a shape that is absent (`kind`, as in POPE, Li et al., arXiv 2305.10355), and
             there the corrupt picture has it.
    label    which shape is the large one (image classifiers); in the corrupt picture the large shape is another.
    caption  "describe the image ." -> the caption, teacher-forced; `meta["objects"]` lists what is there, as CHAIR
             (Rohrbach et al., arXiv 1809.02156) needs; the corrupt picture shows everything in other colours.

Pictures come with boxes in `meta["boxes"]`. Limits: flat shapes; the questions `zoo:shapes-lvlm` was trained on.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import numpy as np
from PIL import Image

from interp.prompts.draw import Split, option, positive
from interp.prompts.rows import Row
from interp.prompts.scenes import COLORS, PAIRS, SHAPES, Scene, SceneError, Thing, ask, main_scene, question, scene
from interp.prompts.vocabulary import Host
from interp.tasks.task import Task, generator, made

Style = Literal["yes_no", "label", "caption"]
Kind = Literal["random", "popular", "adversarial"]
PREFIX = "<image> "


@generator
def shapes(
    model: Host | None = None,
    n: int = 64,
    *,
    seed: int = 0,
    split: Split = "train",
    style: Style | None = None,
    kind: Kind = "random",
    size: int = 48,
    bias: float = 0.9,
) -> Task:
    """`n` scenes; without a style, labels for a model without a tokenizer and yes or no for one with."""
    chosen = option("style", style or _style(model), ("yes_no", "label", "caption"))
    option("kind", kind, ("random", "popular", "adversarial"))
    rng = np.random.default_rng([seed, {"train": 0, "heldout": 1}[option("split", split, ("train", "heldout"))]])
    make = {"yes_no": _yes_no, "label": _label, "caption": _caption}[chosen]
    rows = [make(rng, i, kind, size, bias) for i in range(positive(n))]
    whole = chosen == "caption"
    options = {"n": n, "seed": seed, "style": chosen, "kind": kind, "size": size, "bias": bias}
    return made("shapes", model, rows, options=options, score="logprob" if whole else "difference", whole=whole)


def _style(model: Host | None) -> Style:
    return "yes_no" if model is None or hasattr(model.tokenizer, "convert_ids_to_tokens") else "label"


def _yes_no(rng: np.random.Generator, index: int, kind: Kind, size: int, bias: float) -> Row:
    answer = ("yes", "no")[index % 2]
    picture, shape = _asked(rng, answer, kind, size, bias)
    changed = _without(picture, shape) if answer == "yes" else _with(rng, picture, shape)
    other = "no" if answer == "yes" else "yes"
    meta = {**_known(picture), "kind": kind, "about": shape, "answer": answer, "corrupt_objects": list(changed.shapes)}
    text = PREFIX + ask(shape)
    where = {"shape": (shape, 1)}
    return Row(text, text, (f" {answer}",), (f" {other}",), where, meta, _image(picture), _image(changed))


def _asked(rng: np.random.Generator, answer: str, kind: Kind, size: int, bias: float) -> tuple[Scene, str]:
    """A scene and a shape to ask for; scenes that do not allow the question, or have no room for it, are redrawn."""
    while True:
        picture = scene(rng, bias=bias, size=size)
        if answer == "no" and len(picture.things) > 8:
            continue
        try:
            found = question(rng, picture, answer=answer, kind=kind)
        except SceneError:
            continue
        return picture, found.about


def _without(picture: Scene, shape: str) -> Scene:
    return replace(picture, things=tuple(thing for thing in picture.things if thing.shape != shape))


def _with(rng: np.random.Generator, picture: Scene, shape: str) -> Scene:
    """The scene with one thing more, in a cell of the 3 x 3 grid that is free."""
    step = picture.size // 3
    taken = {(thing.box[0] // step, thing.box[1] // step) for thing in picture.things}
    free = [(x, y) for x in range(3) for y in range(3) if (x, y) not in taken]
    x, y = free[int(rng.integers(len(free)))]
    side = min(14, step)
    box = (x * step + 1, y * step + 1, x * step + 1 + side, y * step + 1 + side)
    color = list(COLORS)[int(rng.integers(len(COLORS)))]
    return replace(picture, things=(*picture.things, Thing(shape, color, box)))


def _label(rng: np.random.Generator, index: int, kind: Kind, size: int, bias: float) -> Row:
    picture, label = main_scene(rng, size=size)
    present = {thing.shape for thing in picture.things}
    others = [shape for shape in SHAPES if shape not in present] or [s for s in SHAPES if s != SHAPES[label]]
    other = others[int(rng.integers(len(others)))]
    changed = replace(picture, things=(replace(picture.things[0], shape=other), *picture.things[1:]))
    return Row("", "", (SHAPES[label],), (other,), {}, _known(picture), _image(picture), _image(changed))


def _caption(rng: np.random.Generator, index: int, kind: Kind, size: int, bias: float) -> Row:
    picture = scene(rng, bias=bias, size=size)
    names = list(COLORS)
    things = tuple(replace(t, color=names[(names.index(t.color) + 1) % len(names)]) for t in picture.things)
    text = f"{PREFIX}describe the image ."
    meta = {**_known(picture), "caption": picture.caption, "companions": dict(PAIRS)}
    return Row(
        text, text, (f" {picture.caption}",), (), {}, meta, _image(picture), _image(replace(picture, things=things))
    )


def _known(picture: Scene) -> dict[str, object]:
    return {
        "objects": list(picture.shapes),
        "colors": [thing.color for thing in picture.things],
        "boxes": [list(thing.box) for thing in picture.things],
        "size": picture.size,
    }


def _image(picture: Scene) -> Image.Image:
    return Image.fromarray(picture.image)
