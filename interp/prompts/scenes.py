"""Generated scenes of coloured shapes: images with boxes, captions, and yes/no questions in the style of POPE.

A scene is a list of things (shape, colour, box) on a grey, noisy ground; each shape occurs at most once. `pairs` gives
the co-occurrence prior a model can pick up: when the first of a pair is drawn its companion is drawn too, with
probability `bias` (one number, or one for each pair: some habits are stronger than others). A faint thing is drawn
with little contrast, so that what the eye says is unsure and the prior decides. Questions follow Li et al., "Evaluating
Object Hallucination in Large Vision-Language Models" (POPE, arXiv 2305.10355): random asks about any absent shape,
popular about the companions of pairs, adversarial about the companion of a shape that is there. NumPy only, seeded;
images are uint8 [height, width, 3].
Limits: flat shapes without rotation, no overlap, one thing a grid cell.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from interp.kernels.errors import InterpError

SHAPES: tuple[str, ...] = ("circle", "square", "triangle", "cross", "ring", "diamond", "bar", "star")
COLORS: dict[str, tuple[int, int, int]] = {
    "red": (225, 45, 45),
    "green": (40, 190, 70),
    "blue": (50, 90, 235),
    "yellow": (235, 215, 50),
    "purple": (165, 60, 200),
    "white": (245, 245, 245),
}
PAIRS: dict[str, str] = {"circle": "cross", "square": "triangle", "ring": "star", "diamond": "bar"}
BIAS: dict[str, float] = {"circle": 0.9, "square": 0.8, "ring": 0.65, "diamond": 0.5}
GROUND = 96
Bias = float | Mapping[str, float]
Kind = Literal["random", "popular", "adversarial"]


class SceneError(InterpError):
    """A scene or a question was asked for that cannot be made."""


@dataclass(frozen=True)
class Thing:
    """One shape; the box is (x0, y0, x1, y1) in pixels, end excluded; contrast 1 is its full colour, 0 the ground."""

    shape: str
    color: str
    box: tuple[int, int, int, int]
    contrast: float = 1.0

    @property
    def name(self) -> str:
        """Colour and shape, as captions say it."""
        return f"{self.color} {self.shape}"


@dataclass(frozen=True)
class Scene:
    """Things on a ground of `size` x `size` pixels; `noise` and `seed` make the picture the same everywhere."""

    things: tuple[Thing, ...]
    size: int = 48
    noise: float = 12.0
    seed: int = 0

    @property
    def shapes(self) -> tuple[str, ...]:
        """The shapes that are there, in caption order."""
        return tuple(thing.shape for thing in self.things)

    @property
    def image(self) -> np.ndarray:
        """The picture, uint8 [size, size, 3]."""
        canvas = np.full((self.size, self.size, 3), GROUND, dtype=np.float32)
        for thing in self.things:
            _draw(canvas, thing)
        canvas += np.random.default_rng(self.seed).normal(0.0, self.noise, canvas.shape).astype(np.float32)
        return canvas.clip(0, 255).astype(np.uint8)

    @property
    def caption(self) -> str:
        """What is there, in order: "a red circle and a blue cross ."."""
        return " and ".join(f"a {thing.name}" for thing in self.things) + " ."

    def find(self, shape: str) -> Thing | None:
        """The thing of that shape, or None."""
        return next((thing for thing in self.things if thing.shape == shape), None)


@dataclass(frozen=True)
class ShapeQuestion:
    """A scene, a question about it in words, and the true answer."""

    scene: Scene
    text: str
    answer: str
    about: str
    kind: str


def mask(shape: str, size: int) -> np.ndarray:
    """Which pixels of a `size` x `size` box belong to the shape."""
    y, x = (np.mgrid[0:size, 0:size] + 0.5) / size * 2 - 1
    radius, diamond = np.hypot(x, y), np.abs(x) + np.abs(y)
    arm = np.minimum(np.abs(x), np.abs(y))
    masks = {
        "circle": radius <= 1.0,
        "square": np.maximum(np.abs(x), np.abs(y)) <= 0.88,
        "triangle": np.abs(x) <= (y + 1) / 2,
        "cross": arm <= 0.3,
        "ring": (radius <= 1.0) & (radius >= 0.55),
        "diamond": diamond <= 1.0,
        "bar": np.abs(y) <= 0.36,
        "star": np.abs(np.abs(x) - np.abs(y)) <= 0.36,
    }
    if shape not in masks:
        raise SceneError(f"expected a shape among {', '.join(masks)}, got {shape!r}")
    return masks[shape]


def _draw(canvas: np.ndarray, thing: Thing) -> None:
    x0, y0, x1, y1 = thing.box
    color = np.asarray(COLORS[thing.color], dtype=np.float32)
    inside = mask(thing.shape, x1 - x0)
    canvas[y0:y1, x0:x1][inside] = GROUND + thing.contrast * (color - GROUND)


def place(
    shapes: Sequence[str],
    rng: np.random.Generator,
    *,
    size: int = 48,
    grid: int = 3,
    side: tuple[int, int] = (10, 15),
    contrast: tuple[float, float] = (0.5, 1.0),
) -> Scene:
    """Put the shapes in different cells of a grid, each with its own colour, side and contrast."""
    if len(shapes) > grid * grid:
        raise SceneError(f"expected at most {grid * grid} shapes on a {grid} x {grid} grid, got {len(shapes)}")
    cells = rng.permutation(grid * grid)[: len(shapes)]
    things = tuple(
        _thing(shape, int(cell), rng, step=size // grid, grid=grid, side=side, contrast=contrast)
        for shape, cell in zip(shapes, cells, strict=True)
    )
    return Scene(things, size=size, seed=int(rng.integers(2**31)))


def _thing(
    shape: str,
    cell: int,
    rng: np.random.Generator,
    *,
    step: int,
    grid: int,
    side: tuple[int, int],
    contrast: tuple[float, float],
) -> Thing:
    wide = int(rng.integers(side[0], min(side[1], step) + 1))
    x0 = (cell % grid) * step + int(rng.integers(0, step - wide + 1))
    y0 = (cell // grid) * step + int(rng.integers(0, step - wide + 1))
    color = list(COLORS)[int(rng.integers(len(COLORS)))]
    return Thing(shape, color, (x0, y0, x0 + wide, y0 + wide), float(rng.uniform(*contrast)))


def draw_shapes(
    rng: np.random.Generator, *, pairs: Mapping[str, str] = PAIRS, bias: Bias = BIAS, most: int = 4
) -> tuple[str, ...]:
    """Draw one to `most` shapes (a companion may come on top); the first of a pair brings its own at `bias`."""
    wanted = int(rng.integers(1, most + 1))
    out: list[Any] = []
    for i in rng.permutation(len(SHAPES)):
        shape = SHAPES[i]
        if shape in out or len(out) >= wanted or shape in pairs.values():
            continue
        out.append(shape)
        if shape in pairs and rng.random() < (bias[shape] if isinstance(bias, Mapping) else bias):
            out.append(pairs[shape])
    alone = [s for s in pairs.values() if s not in out]
    if len(out) < wanted and alone and rng.random() < 0.5:
        out.append(alone[int(rng.integers(len(alone)))])
    return tuple(out)


def scene(
    rng: np.random.Generator,
    *,
    pairs: Mapping[str, str] = PAIRS,
    bias: Bias = BIAS,
    most: int = 4,
    faint: float = 0.0,
    size: int = 48,
) -> Scene:
    """Draw one scene; each thing is faint (contrast 0.08 to 0.25) with probability `faint`."""
    placed = place(draw_shapes(rng, pairs=pairs, bias=bias, most=most), rng, size=size)
    dim = tuple(
        replace(t, contrast=float(rng.uniform(0.08, 0.25))) if rng.random() < faint else t for t in placed.things
    )
    return replace(placed, things=dim)


def conflict_scene(rng: np.random.Generator, *, pairs: Mapping[str, str] = PAIRS, size: int = 48) -> tuple[Scene, str]:
    """A scene with the first of a pair and without its companion, and the companion's name."""
    firsts = list(pairs)
    first = firsts[int(rng.integers(len(firsts)))]
    others = [s for s in SHAPES if s not in (first, pairs[first]) and s not in pairs]
    more = [others[int(i)] for i in rng.permutation(len(others))[: int(rng.integers(0, 2))]]
    return place([first, *more], rng, size=size), pairs[first]


def ask(shape: str) -> str:
    """The yes/no question about one shape."""
    return f"is there a {shape} in the image ?"


def question(rng: np.random.Generator, picture: Scene, *, answer: str, kind: Kind = "random") -> ShapeQuestion:
    """One yes/no question about the scene, with the answer wanted; raises where no such shape can be asked for."""
    present, absent = list(picture.shapes), [s for s in SHAPES if s not in picture.shapes]
    if answer == "yes":
        pool = present
    elif kind == "adversarial":
        pool = [PAIRS[s] for s in present if s in PAIRS and PAIRS[s] in absent]
    else:
        pool = [s for s in absent if kind == "random" or s in PAIRS.values()]
    if not pool:
        raise SceneError(f"expected a scene that allows a {kind} question answered {answer!r}, got {picture.shapes}")
    shape = pool[int(rng.integers(len(pool)))]
    return ShapeQuestion(picture, ask(shape), answer, shape, kind)


def balanced_questions(
    n: int, seed: int, *, bias: Bias = BIAS, kind: Kind = "random", size: int = 48
) -> list[ShapeQuestion]:
    """`n` questions, one a scene, half of them answered yes; scenes that do not allow the question are redrawn."""
    rng = np.random.default_rng(seed)
    out: list[Any] = []
    while len(out) < n:
        answer = "yes" if len(out) % 2 == 0 else "no"
        try:
            out.append(question(rng, scene(rng, bias=bias, size=size), answer=answer, kind=kind))
        except SceneError:
            continue
    return out


def conflict_questions(n: int, seed: int, *, size: int = 48) -> list[ShapeQuestion]:
    """`n` probes about a companion that is not there while its partner is; the truth is always no."""
    rng = np.random.default_rng(seed)
    probes = (conflict_scene(rng, size=size) for _ in range(n))
    return [ShapeQuestion(picture, ask(missing), "no", missing, "adversarial") for picture, missing in probes]


def main_scene(rng: np.random.Generator, *, size: int = 48) -> tuple[Scene, int]:
    """One large thing and up to five small ones of other shapes; the label is the large one's shape index."""
    label = int(rng.integers(len(SHAPES)))
    others = [s for s in SHAPES if s != SHAPES[label]]
    small = [others[int(i)] for i in rng.permutation(len(others))[: int(rng.integers(0, 6))]]
    ground = place(small, rng, size=size, grid=6, side=(5, 8))
    big = place([SHAPES[label]], rng, size=size, grid=2, side=(16, 22))
    x0, y0, x1, y1 = big.things[0].box
    clear = tuple(t for t in ground.things if t.box[2] <= x0 or t.box[0] >= x1 or t.box[3] <= y0 or t.box[1] >= y1)
    return Scene((*big.things, *clear), size=size, seed=ground.seed), label
