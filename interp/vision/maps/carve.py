"""Cutting a picture down to what a question is about, from how the question's attention differs from a general one's.

CARVE (arXiv 2509.06461). A^Q_(l,t) and A^G_(l,t) are the weights of the last row on image tokens, mean over heads, at
layer l and generation step t, for the question and for a general instruction. Attention is taken as a product of the
regions that a picture draws attention to without a question and what the question asks for, so dividing leaves the
second:

    C_(l,t) = A^Q_(l,t) / (A^G_(l,t) + lambda)                 lambda = 1e-8
    S = sum_t w_t sum_l picture(C_(l,t))                       w_t = t + 1, the first step being 0

Pixels of S at or above its (1 - p) quantile (p = 0.2) make regions; the max(3, 20 % of them) with most of S are kept,
the rest of the picture is masked, it is cut to their box and enlarged to cover the original size. Then the question is
asked again with both pictures. Layers are 20 to 25, as in the authors' code; a model with fewer takes the same share of
its depth (20/32 to 26/32), which is ours, as are: steps up to the shorter of the two answers, pixels that touch by
their sides, black for what is masked. Tokens are put onto the picture by the model's labels, so tiles and merged
patches need no grid of a known size; where views overlap their values add up. Cost: three answers generated a question,
and two passes over prompt and answer. Limits: pictures of one question each; the second answer needs a model that takes
two pictures (`second="alone"` shows it only the cut one, "none" stops before).
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from interp.finite import finite
from interp.hooks.errors import InputsError
from interp.hooks.inputs.inputs import Inputs
from interp.provenance import about
from interp.records import NO_IMAGE_IN_TEXT, Method, register
from interp.results.figures.figure import Figure
from interp.results.figures.marks import Heatmap
from interp.results.saved import Saved
from interp.vision.decoding.without import Looking, image_tokens, looking_tower
from interp.vision.maps.cells import boxes_of, inputs_of, pixel_map, shown_in, size_of
from interp.vision.maps.regions import around, regions
from interp.vision.maps.trial import pictures_of

if TYPE_CHECKING:
    from interp.model import Model

GENERAL = "Write a general description of the image."
OPENING = re.compile(r"\s*(?:<[^<>\s]+>)+\s*")
SHORT = "Answer the question using a single word or phrase."
Second = Literal["both", "alone", "none"]


@dataclass(frozen=True, eq=False)
class Carved(Saved):
    """What each question is about in its picture, and what is answered when it is cut out."""

    STEM = "carve"

    maps: tuple[Tensor, ...]
    """S of each example [height, width]."""
    kept: tuple[Tensor, ...]
    """Bool [height, width]: the regions that are kept."""
    boxes: tuple[tuple[int, int, int, int], ...]
    """Around them (left, top, right, bottom)."""
    entropy: Tensor
    """[example]: of the question's map at its last step, mean over layers, in nats."""
    first: tuple[str, ...]
    """Answers to the whole picture."""
    second: tuple[str, ...]
    """Answers with the cut one; empty where none was asked for."""
    meta: Mapping[str, Any] = field(default_factory=dict)

    def picture(self, example: int, original: Any) -> Any:
        """The original (PIL) masked, cut and enlarged to cover its own size."""
        return cut_out(original, self.kept[example], self.boxes[example])

    def to_frame(self) -> Any:
        """One row an example: its box, the share of the picture that is kept, entropy, answers."""
        import pandas

        rows = []
        for n, (left, top, right, bottom) in enumerate(self.boxes):
            rows.append(
                {"example": n, "left": left, "top": top, "right": right, "bottom": bottom,
                 "kept": float(self.kept[n].double().mean()), "entropy": float(self.entropy[n]),
                 "first": self.first[n], "second": self.second[n] if self.second else None}
            )  # fmt: skip
        return pandas.DataFrame(rows)

    def _figure(self, example: int = 0) -> Figure:
        """S of one example."""
        return Figure([Heatmap(self.maps[example].numpy(), name="S", scale="weight", square=True)])

    def tensors(self) -> dict[str, Tensor]:
        """Maps and masks by number."""
        found = {f"map{n}": one for n, one in enumerate(self.maps)}
        return {**found, **{f"kept{n}": one for n, one in enumerate(self.kept)}, "entropy": self.entropy}

    @classmethod
    def restored(cls, facts: dict[str, Any], tensors: dict[str, Tensor]) -> Carved:
        """Maps and masks in order again."""
        count = len(tensors["entropy"])
        maps, kept = (tuple(tensors[f"{name}{n}"] for n in range(count)) for name in ("map", "kept"))
        return super().restored({**facts, "maps": maps, "kept": kept}, {"entropy": tensors["entropy"]})

    def __repr__(self) -> str:
        share = sum(float(one.double().mean()) for one in self.kept) / len(self.kept)
        changed = sum(a != b for a, b in zip(self.first, self.second, strict=True)) if self.second else 0
        said = f"; {changed} answers change" if self.second else ""
        return f"Carved of {len(self.boxes)} questions: {share:.0%} of the pixels are kept on average{said}"


def carve(
    model: Model,
    images: Sequence[Any],
    questions: str | Sequence[str],
    *,
    general: str = GENERAL,
    layers: Sequence[int] | None = None,
    p: float = 0.2,
    regularise: float = 1e-8,
    second: Second = "both",
    short: str = SHORT,
    max_new_tokens: int = 32,
    chat: Any = None,
) -> Carved:
    """One picture (PIL) a question. Marks that open a question (`<image>`) are put before `general` too; `short` is
    added to the question that is asked again."""
    if not 0 < p < 1 or not regularise > 0:
        raise InputsError(f"p= is a share of the pixels, from 0 to 1, and regularise= above 0; got {p}, {regularise}.")
    if second not in ("both", "alone", "none"):
        raise InputsError(f"second= is 'both', 'alone' or 'none', got {second!r}.")
    asked = [questions] if isinstance(questions, str) else list(questions)
    pictures = list(images) if isinstance(images, (list, tuple)) else [images]
    if len(asked) != len(pictures):
        raise InputsError(f"{len(pictures)} pictures for {len(asked)} questions: give each question its own picture.")
    tower = looking_tower(model, what="carve")
    chosen = _layers(tower, layers)
    steps, found = max_new_tokens, []
    for picture, question in zip(pictures, asked, strict=True):
        plain = _opening(question) + general.removeprefix(_opening(general))
        found.append(_one(model, tower, picture, question, plain, chosen, p, regularise, steps, chat))
    maps, kept, entropy, first = zip(*found, strict=True)
    boxes = tuple(around(one) for one in kept)
    answers = []
    for n, (picture, question) in enumerate(zip(pictures, asked, strict=True)):
        if second != "none":
            cut = cut_out(picture, kept[n], boxes[n])
            answers.append(_again(model, picture, cut, question, second, short, steps, chat))
    x = inputs_of(model, pictures, asked, chat=chat)
    meta = {**about(model.module, x), "method": "carve", "layers": chosen, "p": p, "regularise": regularise}
    return Carved(maps, kept, boxes, torch.stack(entropy), first, tuple(answers), meta)


def _layers(tower: Looking, given: Sequence[int] | None) -> list[int]:
    known = [layer.index for layer in tower.layers]
    if given is None:
        return [n for n in known if _paper(n, len(known))]
    wrong = [n for n in given if n not in known]
    if wrong or not given:
        raise InputsError(f"layers= are some of {known[0]} to {known[-1]}, got {list(given)}.")
    return sorted(given)


def _paper(layer: int, depth: int) -> bool:
    if depth >= 26:
        return 20 <= layer <= 25
    first = int(depth * 20 / 32)
    return first <= layer < max(first + 1, math.ceil(depth * 26 / 32))


def _opening(question: str) -> str:
    """The marks in angle brackets that open a question: where its picture goes, if it is written in the text."""
    found = OPENING.match(question)
    return found[0] if found else ""


def _one(
    model: Model, tower: Looking, picture: Any, question: str, general: str, layers: list[int], p: float,
    regularise: float, steps: int, chat: Any,
) -> tuple[Tensor, Tensor, Tensor, str]:  # fmt: skip
    """S, what is kept of it, the entropy and the first answer of one question."""
    x, mine, said = _answered(model, tower, picture, question, layers, steps, chat)
    other, theirs, _ = _answered(model, tower, picture, general, layers, steps, chat)
    shown = [shown_in(one, 0) for one in (x, other)]
    count = min(mine.shape[1], theirs.shape[1])
    contrast = mine[:, :count, shown[0]] / (theirs[:, :count, shown[1]] + regularise)
    weight = torch.arange(1, count + 1, dtype=torch.float64)
    fused = finite((contrast * weight[:, None]).sum((0, 1)), "contrasts of two maps")
    boxes = boxes_of(x, what="carve")[0, shown[0]]
    areas = ((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])).nan_to_num()
    seen = pixel_map(fused * areas, boxes, size_of(x, 0))
    last = mine[:, -1, shown[0]]
    return seen, kept_of(seen, p), -torch.special.xlogy(last, last).sum(-1).mean(), said


def kept_of(seen: Float[Tensor, "height width"], p: float) -> Tensor:
    """The regions that are kept: of those at or above the quantile, max(3, 20 %) with most of the map."""
    inside = seen >= float(np.quantile(seen.numpy(), 1 - p))
    found = regions(seen, inside)
    most = max(3, int(0.2 * len(found)))
    return torch.stack([one.inside for one in found[:most]]).any(0)


def _answered(
    model: Model, tower: Looking, picture: Any, text: str, layers: list[int], steps: int, chat: Any
) -> tuple[Inputs, Float[Tensor, "layer step position"], str]:
    """The inputs, the head-mean weights of the row that makes each token of the answer, and the answer."""
    prompt, _ = image_tokens(model, model.prepare([text], images=[[picture]], chat=chat), what="carve")
    made = model.generate(prompt, max_new_tokens=steps)
    ids = made.ids[0, : int((made.logprobs[0] != 0).sum()) or 1].tolist()
    whole = prompt
    if len(ids) > 1:
        whole = model.prepare([text], images=[[picture]], chat=chat, continuation=[ids[:-1]])
    rows = list(range(whole.length - len(ids), whole.length))
    tape = model.run(whole, record=[f"{tower.prefix}L{n}.pattern" for n in layers], positions=rows)
    image = whole.mask("image").cpu()[0]
    weights = torch.stack([tape[f"{tower.prefix}L{n}.pattern"][0].double().mean(0).cpu() for n in layers])
    return whole, weights * image, (made.texts or ("",))[0].strip()


def cut_out(original: Any, kept: Tensor, box: tuple[int, int, int, int]) -> Any:
    """What is kept of a picture, the rest black, cut to its box and enlarged until it covers the original size."""
    from PIL import Image

    plain = original.convert("RGB")
    mask = Image.fromarray((kept.numpy() * 255).astype("uint8"))
    cut = Image.composite(plain, Image.new("RGB", plain.size), mask).crop(box)
    scale = max(plain.width / cut.width, plain.height / cut.height)
    return cut.resize((round(cut.width * scale), round(cut.height * scale)), Image.Resampling.BICUBIC)


def _again(
    model: Model, picture: Any, cut: Any, question: str, second: Second, short: str, steps: int, chat: Any
) -> str:
    """The answer with the cut picture."""
    place = _opening(question) if second == "both" else ""
    pictures, text = ([picture, cut] if second == "both" else [cut]), place.strip() + question
    asked = model.prepare([f"{text} {short}".strip()], images=[pictures], chat=chat)
    return (model.generate(asked, max_new_tokens=steps).texts or ("",))[0].strip()


def _example(t: Any) -> Carved:
    pictures, questions = pictures_of(t)
    how: dict[str, Any] = {"general": t.texts[-1] if t.texts else GENERAL, "second": "none", "max_new_tokens": 2}
    return carve(t.model, pictures, questions or ["what is it"] * len(pictures), **how)


register(
    Method(
        "interp.vision.carve",
        number="of a picture, the regions that a question's attention is on more than a general one's",
        shown="none",
        papers=("2509.06461",),
        unfit=NO_IMAGE_IN_TEXT,
        passes=lambda t: 7,
        values="entropy",
        example=_example,
    )
)
