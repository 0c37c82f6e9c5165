"""Which heads of the text look at the picture, at which part of it, and whether hiding it from them changes the answer.

Three numbers a head, side by side, since they disagree; put together here, no paper's score:

    attention mass   the weight on image tokens, mean over the rows that are asked (the last token)
    knock-out        metric with the image hidden from this head's text rows, minus metric (interp.patching.knockout)
    vhd              how far the head's output turns on the picture (interp.vision.divergence, arXiv 2412.13949)

A head may look at the picture and change nothing, and one whose output turns on it may read it through other tokens,
with no weight on an image token. `looks` keeps the weight on every token, and `map` puts it onto the picture by the
model's own labels. The metric, unless one is given, is the log-probability of the token the model answers with.
Cost: one forward pass and about one more attention for the weights, two for the divergence, one a head and two more
for the knock-out. Limits: one head at a time, so two heads that can replace each other both look small; image rows
themselves are not cut off from the image. What has no meaning in a family is in `left_out` with the reason.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from interp.finite import finite
from interp.hooks.errors import InputsError, ModelError
from interp.hooks.inputs.inputs import Inputs, Positions
from interp.hooks.sites import nearest
from interp.metrics.judge import Metric
from interp.metrics.named import metric_name
from interp.metrics.shipped import LogProb
from interp.patching.knockout import knockout
from interp.provenance import about
from interp.records import NO_IMAGE_IN_TEXT, Method, register
from interp.results.heads_table import HeadResult, HeadTable
from interp.results.intervals import ranks
from interp.vision.decoding.without import image_tokens, looking_tower
from interp.vision.divergence import divergence
from interp.vision.maps.cells import NO_CELLS, inputs_of, pixel_map
from interp.vision.maps.rows import received_mean

if TYPE_CHECKING:
    from interp.model import Model

MASS, KNOCKOUT, VHD = "attention mass", "knock-out", "vhd"


@dataclass(frozen=True, eq=False)
class VisualHeads(HeadResult):
    """`values[method]` [head, example] by three methods, and where each head looks."""

    STEM, TITLE = "visual_heads", MASS

    sites: tuple[str, ...]
    values: Mapping[str, Tensor]
    """Attention mass, knock-out and vhd, as far as they have a meaning here; each [head, example]."""
    looks: Tensor
    """[head, example, position]: weight on each image token, 0 elsewhere."""
    boxes: Tensor
    """[example, position, 4]: where tokens are in the picture (left, top, right, bottom); NaN where they have no
    place."""
    sizes: tuple[tuple[int, int], ...]
    """(height, width) of each example's picture; none where it is not known."""
    noise_floor: float
    """How far the metric of the knock-out moves when nothing is hidden: a smaller effect is not an effect."""
    left_out: Mapping[str, str] = field(default_factory=dict)
    """What could not be said, and why."""
    meta: Mapping[str, Any] = field(default_factory=dict)

    def of(self, method: str) -> Tensor:
        """One method's numbers [head, example]."""
        if method not in self.values:
            why = f": {self.left_out[method]}" if method in self.left_out else f".{nearest(method, self.values)}"
            raise InputsError(f"no {method!r} here{why} There are {', '.join(self.values)}.")
        return self.values[method]

    def tables(self) -> Sequence[HeadTable]:
        """One a method; the mass with the place where the head looks most in the first example."""
        return tuple(HeadTable(self.sites, values, method) for method, values in self.values.items())

    def table(self) -> Any:
        """Heads by methods: the means over examples."""
        import pandas

        means = {method: values.mean(1).numpy() for method, values in self.values.items()}
        return pandas.DataFrame(means, index=list(self.sites))

    def agreement(self) -> Any:
        """Rank correlation (Spearman) of the methods over heads; of the knock-out its magnitude."""
        import pandas

        means = torch.stack([(v.abs() if name == KNOCKOUT else v).mean(1) for name, v in self.values.items()])
        found = torch.corrcoef(torch.stack([ranks(one[None].double())[0] for one in means]))
        return pandas.DataFrame(found.numpy(), index=list(self.values), columns=list(self.values))

    def map(self, site: str, example: int = 0) -> Tensor:
        """Where a head looks, over the pixels of an example's picture [height, width]."""
        at = self._at(site)
        if not self.sizes:
            raise InputsError(f"where heads look in the picture is not known: {self.left_out['map']}.")
        return pixel_map(self.looks[at, example], self.boxes[example], self.sizes[example])

    def part(self, site: str, example: int = 0) -> tuple[float, float, float, float]:
        """The box of the image token that a head gives most weight (left, top, right, bottom)."""
        at = self._at(site)
        if not self.sizes:
            raise InputsError(f"where heads look in the picture is not known: {self.left_out['map']}.")
        placed = ~self.boxes[example].isnan().any(-1)
        found = self.boxes[example, int(self.looks[at, example].masked_fill(~placed, -1).argmax())]
        return tuple(found.tolist())

    def _at(self, site: str) -> int:
        if site not in self.sites:
            raise InputsError(f"no head {site!r} here.{nearest(site, self.sites)}")
        return self.sites.index(site)

    def tensors(self) -> dict[str, Tensor]:
        """The numbers by method, and where heads look."""
        return {**self.values, "looks": self.looks, "boxes": self.boxes}

    def facts(self) -> dict[str, Any]:
        """With the methods in order."""
        return {**super().facts(), "methods": tuple(self.values)}

    @classmethod
    def restored(cls, facts: dict[str, Any], tensors: dict[str, Tensor]) -> VisualHeads:
        """Numbers by method again."""
        values = {method: tensors[method] for method in facts["methods"]}
        kept = {name: tensors[name] for name in ("looks", "boxes")}
        return super().restored({**facts, "values": values}, kept)

    def __repr__(self) -> str:
        said = []
        for method, values in self.values.items():
            mean = values.mean(1)
            best = int((mean.abs() if method == KNOCKOUT else mean).argmax())
            said.append(f"{method} {self.sites[best]} {float(mean[best]):+.3g}")
        missing = f"; not said: {', '.join(self.left_out)}" if self.left_out else ""
        return f"VisualHeads of {len(self.sites)} heads on {self.looks.shape[1]} examples: {', '.join(said)}{missing}"


def heads(
    model: Model,
    images: Any,
    questions: Any = None,
    *,
    metric: Metric | None = None,
    rows: Positions = "last",
    chat: Any = None,
) -> VisualHeads:
    """Every self-attention head of the text. `images` is one picture a question, or inputs that are prepared already
    (then no `questions`); `rows` are the tokens whose looks are asked for."""
    what = "visual heads"
    x, image = image_tokens(model, inputs_of(model, images, questions, chat=chat), what=what)
    tower = looking_tower(model, what=what)
    looks = _looks(model, x, f"{tower.prefix}L*", rows, image.cpu())
    judge = metric if metric is not None else _own_answer(model, x)
    text = (x.valid & ~image).cpu()
    effects = knockout(model, x, metric=judge, edges=[(image, text)], heads=f"{tower.prefix}L*.H*", tower="text")
    values, left_out = {MASS: looks.sum(-1), KNOCKOUT: effects.values.double()}, {}
    try:
        values[VHD] = divergence(model, x).values.double()
    except (ModelError, InputsError) as why:
        left_out[VHD] = str(why)
    boxes, sizes = _places(x, left_out)
    meta = {**about(model.module, x), "method": what, "rows": str(rows), "metric": metric_name(judge)}
    return VisualHeads(
        tuple(tower.names), values, finite(looks, "weights on the image"), boxes, sizes, float(effects.noise_floor),
        left_out, meta,
    )  # fmt: skip


def _looks(model: Model, x: Inputs, sites: str, rows: Positions, image: Tensor) -> Tensor:
    """[head, example, position]: weight on image tokens, mean over some rows."""
    chosen = x.mask(rows).cpu()
    return received_mean(model, x, sites, chosen) * image


def _own_answer(model: Model, x: Inputs) -> LogProb:
    """The log-probability of the token the model says next."""
    logits = model.run(x)["logits"]
    last = torch.where(x.valid.cpu(), torch.arange(x.length), -1).amax(1)
    return LogProb(tuple((int(row[at].argmax()),) for row, at in zip(logits, last.tolist(), strict=True)))


def _places(x: Inputs, left_out: dict[str, str]) -> tuple[Tensor, tuple[tuple[int, int], ...]]:
    """Boxes and sizes of one picture a row; none, with the reason, where there are none."""
    pictures = [{view.picture for view in row} for row in x.roles.views]
    none = torch.full((*x.valid.shape, 4), float("nan"))
    if not bool((x.roles.patch & x.roles.where("image")).any()):
        left_out["map"] = NO_CELLS
    elif any(len(mine) != 1 for mine in pictures):
        left_out["map"] = "some row has several pictures, and a head's map is over one"
    elif x.roles.sizes is None:
        left_out["map"] = "the pictures' sizes are not known: prepare the inputs from pictures, m.prepare(images=...)"
    else:
        sizes = [x.roles.sizes[mine.pop()] for mine in pictures]
        return x.roles.boxes(), tuple((int(height), int(width)) for height, width in sizes)
    return none, ()


register(
    Method(
        "interp.vision.heads",
        number="a head's weight on the image, with the effect of hiding the image from it, and its divergence",
        shown="map",
        label=MASS,
        signed=False,
        made_of=("interp.patching.knockout", "interp.vision.divergence"),
        papers=("2412.13949",),
        unfit=NO_IMAGE_IN_TEXT,
        passes=lambda t: 7 + t.count,
        values="looks",
        examples=1,
        example=lambda t: heads(t.model, t.base),
    )
)
