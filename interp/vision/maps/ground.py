"""Where in the picture heads look while they read a phrase: a point, and a box.

After the idea of RefAM (arXiv 2509.22650), which reads the cross-attention of a diffusion transformer: stop words are
"attention magnets" that draw weight which belongs to no word, so their maps are dropped, and more of them are added for
the weight to go to. Here it is an LVLM's text heads. Which layers and heads the paper takes and how it joins them is
not known to us; what follows is ours:

    looks[h, j]   weight of head h on image token j, mean over the phrase's tokens that are no magnets
    map           looks of the heads that are asked for, summed and put onto the picture (`maps/cells.py`)
    point, box    the middle of the map's largest value; the box around the region, among pixels of at least `threshold`
                  of that value, with most of the map

In a causal text a token sees only the tokens before it, so magnets after the phrase cannot draw anything from it:
`magnets` are put in front of the phrase. `hits` is the pointing game and `iou` the overlap of boxes, against boxes that
are known. Cost: one forward pass and about one more attention. Limits: a head that looks at a thing need not be what
the answer goes by; the best head of many is chosen on the data it was chosen on, so judge it on others.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from interp.finite import finite
from interp.hooks.errors import InputsError
from interp.hooks.inputs.inputs import Inputs
from interp.hooks.sites import nearest
from interp.provenance import about as provenance
from interp.records import NO_IMAGE_IN_TEXT, Method, register
from interp.results.heads_table import HeadResult, HeadTable
from interp.vision.decoding.without import image_tokens, looking_tower
from interp.vision.maps.cells import boxes_of, inputs_of, pixel_map, shown_in, size_of
from interp.vision.maps.regions import Box, around, iou, largest_at, pointing, regions
from interp.vision.maps.rows import received_mean

if TYPE_CHECKING:
    from interp.model import Model

STOP = (".", ",", "a", "an", "the", "with", "of", "in", "is", "there", "?")
"""Words whose looks are dropped: the paper names ".", "a" and "with"; the others are ours."""


@dataclass(frozen=True, eq=False)
class Grounding(HeadResult):
    """Where every head looks while it reads a phrase."""

    STEM, TITLE = "grounding", "weight on the image from the phrase"

    sites: tuple[str, ...]
    looks: Tensor
    """[head, example, position]: weight on image tokens of the first picture."""
    boxes: Tensor
    """[example, position, 4]: their cells."""
    sizes: tuple[tuple[int, int], ...]
    """(height, width) of each example's first picture, in pixels."""
    read: tuple[tuple[int, ...], ...]
    """The tokens of each phrase whose looks were taken."""
    threshold: float = 0.5
    """`box` is around pixels of at least this share of the map's largest value."""
    meta: Mapping[str, Any] = field(default_factory=dict)

    @property
    def mass(self) -> Tensor:
        """[head, example]: weight on the picture."""
        return self.looks.sum(-1)

    def tables(self) -> Sequence[HeadTable]:
        """The weight on the picture."""
        return (HeadTable(self.sites, self.mass, "grounding"),)

    def map(self, heads: str | Sequence[str] | None = None, example: int = 0) -> Tensor:
        """The map of some heads (all, if none are named) [height, width]."""
        return pixel_map(self.looks[self._at(heads), example].sum(0), self.boxes[example], self.sizes[example])

    def point(self, heads: str | Sequence[str] | None = None, example: int = 0) -> tuple[float, float]:
        """(x, y) of the largest value."""
        return largest_at(self.map(heads, example))

    def box(self, heads: str | Sequence[str] | None = None, example: int = 0) -> tuple[int, int, int, int]:
        """The box around what is looked at most."""
        seen = self.map(heads, example)
        return around(regions(seen, seen >= self.threshold * seen.max())[0].inside)

    def hits(self, truth: Sequence[Any]) -> Tensor:
        """[head, example]: 1 where the head alone points into a box; a box, or several, for each example."""
        known = self._truth(truth)
        found = [[pointing(self.point(site, n), boxes) for n, boxes in enumerate(known)] for site in self.sites]
        return torch.tensor(found, dtype=torch.float64)

    def pointing(self, truth: Sequence[Any], heads: str | Sequence[str] | None = None) -> Tensor:
        """[example]: 1 where the map of some heads points into a box."""
        known = self._truth(truth)
        return torch.tensor([float(pointing(self.point(heads, n), boxes)) for n, boxes in enumerate(known)]).double()

    def iou(self, truth: Sequence[Any], heads: str | Sequence[str] | None = None) -> Tensor:
        """[example]: the overlap of the box of some heads with that of the known boxes which it fits best."""
        known = self._truth(truth)
        found = [max(iou(self.box(heads, n), box) for box in boxes) for n, boxes in enumerate(known)]
        return torch.tensor(found, dtype=torch.float64)

    def chance(self, truth: Sequence[Any]) -> Tensor:
        """[example]: how often a random place in the picture is in a box."""
        found = []
        for (height, width), boxes in zip(self.sizes, self._truth(truth), strict=True):
            inside = torch.zeros(height, width)
            for left, top, right, bottom in boxes:
                inside[int(top) : int(bottom), int(left) : int(right)] = 1
            found.append(float(inside.mean()))
        return torch.tensor(found, dtype=torch.float64)

    def _truth(self, truth: Sequence[Any]) -> list[list[Box]]:
        if len(truth) != len(self.sizes):
            raise InputsError(f"{len(truth)} known boxes for {len(self.sizes)} examples: give each its own.")
        found = []
        for n, one in enumerate(truth):
            boxes = [one] if len(one) and not isinstance(one[0], (list, tuple)) else list(one)
            if not boxes or any(len(box) != 4 or box[0] >= box[2] or box[1] >= box[3] for box in boxes):
                raise InputsError(f"example {n}: a box is (left, top, right, bottom) in pixels, got {one!r}.")
            found.append([tuple(float(edge) for edge in box) for box in boxes])
        return found  # type: ignore[return-value]

    def _at(self, heads: str | Sequence[str] | None) -> list[int]:
        asked = list(self.sites) if heads is None else [heads] if isinstance(heads, str) else list(heads)
        for site in asked:
            if site not in self.sites:
                raise InputsError(f"no head {site!r} here.{nearest(site, self.sites)}")
        if not asked:
            raise InputsError("name at least one head, or leave heads= out for all of them.")
        return [self.sites.index(site) for site in asked]

    def __repr__(self) -> str:
        best = int(self.mass.mean(1).argmax())
        return (
            f"Grounding of {len(self.sizes)} phrases by {len(self.sites)} heads: {self.sites[best]} gives the picture"
            f" {float(self.mass[best].mean()):.2g} of its weight"
        )


def ground(
    model: Model,
    images: Any,
    questions: Any = None,
    *,
    about: str | Sequence[str] | None = None,
    magnets: Sequence[str] = (),
    stop: Sequence[str] = STOP,
    threshold: float = 0.5,
    chat: Any = None,
) -> Grounding:
    """`about` is the phrase in each question (its last occurrence; without it, the last token is read); `magnets` are
    words put in front of it. `images` may be inputs that are prepared already, then without `questions`."""
    if not 0 < threshold <= 1:
        raise InputsError(f"threshold= is a share of the map's largest value, above 0 and at most 1; got {threshold}.")
    phrases = _phrases(about, questions)
    if magnets:
        questions = _with_magnets(questions, phrases, magnets)
    what = "grounding"
    x, image = image_tokens(model, inputs_of(model, images, questions, chat=chat), what=what)
    tower, boxes = looking_tower(model, what=what), boxes_of(x, what=what)
    rows = _rows(x, phrases, {one.strip() for one in stop})
    received = received_mean(model, x, f"{tower.prefix}L*", rows)
    mine = torch.stack([shown_in(x, row) for row in range(x.batch)]) & image.cpu()
    read = tuple(tuple(row.nonzero().flatten().tolist()) for row in rows)
    meta = {**provenance(model.module, x), "method": what, "about": phrases, "magnets": list(magnets)}
    return Grounding(
        tuple(tower.names), finite(received * mine, "weights on the image"), boxes,
        tuple(size_of(x, row) for row in range(x.batch)), read, threshold, meta,
    )  # fmt: skip


def _phrases(about: str | Sequence[str] | None, questions: Any) -> list[str] | None:
    if about is None:
        return None
    count = 1 if questions is None or isinstance(questions, str) else len(questions)
    return [about] * count if isinstance(about, str) else list(about)


def _with_magnets(questions: Any, phrases: list[str] | None, magnets: Sequence[str]) -> list[str]:
    if questions is None or phrases is None:
        raise InputsError("magnets are put in front of a phrase: give questions= as words, and about=.")
    asked = [questions] if isinstance(questions, str) else list(questions)
    found = []
    for text, phrase in zip(asked, phrases, strict=True):
        if phrase not in text:
            raise InputsError(f"the phrase {phrase!r} is not in {text!r}.")
        before, after = text[: text.rindex(phrase)], text[text.rindex(phrase) :]
        found.append(f"{before}{' '.join(magnets)} {after}")
    return found


def _rows(x: Inputs, phrases: list[str] | None, stop: set[str]) -> Tensor:
    """The rows whose looks are taken [example, position]."""
    if phrases is None:
        return x.mask("last").cpu()
    if len(phrases) not in (1, x.batch):
        raise InputsError(f"{len(phrases)} phrases for {x.batch} questions: give each its own, or one for all.")
    out = torch.zeros(x.batch, x.length, dtype=torch.bool)
    for row in range(x.batch):
        phrase = phrases[row % len(phrases)]
        start, end = x.find(phrase, -1, row=row).rows[row] or (0, 0)
        kept = [n for n in range(start, end) if x.tokens is None or x.tokens[row][n].strip(" \u2581\u0120") not in stop]
        if not kept:
            raise InputsError(f"row {row}: {phrase!r} has only stop words; give a phrase with another word.")
        out[row, kept] = True
    return out


register(
    Method(
        "interp.vision.ground",
        number="a head's weight on the picture while it reads a phrase; with known boxes, whether it points there",
        shown="map",
        label="grounding",
        signed=False,
        papers=("2509.22650",),
        unfit=NO_IMAGE_IN_TEXT,
        passes=lambda t: 2.5,
        values="mass",
        example=lambda t: ground(t.model, t.base),
    )
)
