"""Function vectors: the mean outputs of a few heads that, added to a prompt without examples, make the model do the
task.

Todd et al. 2023 (arXiv 2310.15213). Over prompts with worked examples of a task the mean of each head's output in the
last row is taken, m_h. In prompts whose examples are shuffled the model does not know the task; putting m_h there in
the head's place gives its causal effect, averaged over prompts,

    AIE(h) = p(answer | shuffled, z_h[last] = m_h) - p(answer | shuffled)

and the vector is the sum of m_h W_O over the heads with the largest. Added to the residual behind a layer, in the last
row, it should carry the task to prompts without any example (`zero`): that is the sufficiency, drawn over scales and
compared with vectors of as many random other heads. The paper takes 10 heads of GPT-J and adds at a third of the depth;
here as many as are asked for, behind the layer that is asked for, else at a third. `.edit()` is the vector as an edit,
for any run of a model of this width: another prompt, another model.
Cost: two recorded passes, one sweep of patches in the last row, and a pass for each scale, and each random draw.
Limits: tasks with answers of one token; m_h is a mean over prompts, so what differs between them is lost.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from interp.finite import finite
from interp.heads.kinds.reading import head_names, head_sites
from interp.hooks.drive.tail import last_tower
from interp.hooks.edits.edits import Add
from interp.hooks.errors import InputsError, ModelError, SiteError
from interp.hooks.head_names import head_place
from interp.hooks.sites import Site
from interp.hooks.stand.ports import head_results
from interp.metrics.shipped import Accuracy, Probability
from interp.patching.cells import targets
from interp.patching.exact import Question, prepare
from interp.patching.sources import Given
from interp.patching.swept import exactly
from interp.provenance import about
from interp.records import Method, Trial, register
from interp.results.heads_table import HeadResult, HeadTable
from interp.tasks.task import Task

if TYPE_CHECKING:
    from interp.model import Model


@dataclass(frozen=True, eq=False)
class FunctionVector(HeadResult):
    """`values` [head, example] are the heads' causal effects on the answer's probability."""

    STEM = "function_vector"
    TITLE = "causal effect"

    sites: tuple[str, ...]
    values: Tensor
    """[head, example]: what the head's mean output adds to the answer's probability in a shuffled prompt."""
    heads: tuple[str, ...]
    """Whose means the vector is the sum of."""
    vector: Tensor
    """[d]: the sum of what these heads write on average."""
    layer: str
    """The residual it is added to."""
    scales: tuple[float, ...] = ()
    """What the vector is multiplied by, in the order of `probability`; empty without `zero=`."""
    probability: Tensor = field(default_factory=lambda: torch.zeros(0, 0))
    """Of the answer, with the vector at each scale [scale, example]; scale 0 is the prompt as it is."""
    accuracy: Tensor = field(default_factory=lambda: torch.zeros(0, 0))
    """Whether the answer is the most likely word, 1 or 0, with the vector at each scale [scale, example]."""
    random: Tensor = field(default_factory=lambda: torch.zeros(0, 0))
    """The probability with vectors of random other heads, at scale 1 [draw, example]."""
    meta: Mapping[str, Any] = field(default_factory=dict)

    def edit(self, scale: float = 1.0, *, layer: str | None = None) -> Add:
        """The vector as an edit of the last row."""
        return Add(self.layer if layer is None else layer, self.vector, scale, positions="last")

    def tables(self) -> list[HeadTable]:
        """The effects, and which heads are in the vector."""
        inside = [site in self.heads for site in self.sites]
        return [HeadTable(self.sites, self.values, "function vector", more={"in_vector": inside})]

    def sufficiency(self) -> Any:
        """One row a scale: probability and accuracy without examples; and those of random heads at scale 1."""
        import pandas

        rows = [
            {"vector": "task", "scale": scale, "probability": float(p.mean()), "accuracy": float(a.mean())}
            for scale, p, a in zip(self.scales, self.probability, self.accuracy, strict=True)
        ]
        if self.random.numel():
            rows.append({"vector": "random heads", "scale": 1.0, "probability": float(self.random.mean())})
        return pandas.DataFrame(rows, columns=["vector", "scale", "probability", "accuracy"])

    def __repr__(self) -> str:
        said = ""
        if 0.0 in self.scales and 1.0 in self.scales:
            before, after = (float(self.probability[self.scales.index(s)].mean()) for s in (0.0, 1.0))
            said = f"; without examples p(answer) {before:.3f} becomes {after:.3f}"
        return f"FunctionVector of {', '.join(self.heads)} at {self.layer}{said}"


def function_vector(
    model: Model,
    task: Any,
    *,
    zero: Any = None,
    heads: int | Sequence[str] = 10,
    layer: int | None = None,
    scales: Sequence[float] = (0.0, 0.5, 1.0, 2.0),
    draws: int = 5,
    seed: int = 0,
) -> FunctionVector:
    """The vector of a task whose clean prompts hold examples and whose corrupted ones hold shuffled examples.

    `zero` are the prompts without examples that sufficiency is drawn on. `heads` is how many, or which ones.
    """
    asked = _on(model, task)
    stack = last_tower(model.ready(), None)
    if stack.bidirectional or stack.name == "decoder":
        raise ModelError(f"a function vector is added to the last row of a text that the model continues; the tower"
                         f" {stack.name!r} reads no such text.")  # fmt: skip
    prefix = "" if len(model.anatomy.towers) == 1 else f"{stack.name}."
    sites = head_sites(model, f"{prefix}L*")
    names = head_names(model, sites)
    means = _means(model, asked.clean, sites)
    values = _effects(model, asked, sites, names, means)
    chosen = _chosen(heads, names, values)
    depth = sorted(stack.by_index)
    at = depth[len(depth) // 3] if layer is None else layer
    if at not in stack.by_index:
        raise SiteError(f"layer={layer}: the tower {stack.name!r} has layers {depth[0]} to {depth[-1]}.")
    place = f"{prefix}L{at}.resid_post"
    vector = _sum(model, means, chosen)
    others = [name for name in names if name not in chosen]
    rng = random.Random(seed)
    count = draws if len(others) >= len(chosen) else 0
    drawn = [_sum(model, means, rng.sample(others, len(chosen))) for _ in range(count)]
    measured = {} if zero is None else _sufficient(model, _on(model, zero), place, vector, drawn, scales)
    meta = {**about(model.module, asked.clean), "method": "function vector", "seed": seed}
    return FunctionVector(names, values, tuple(chosen), vector.float(), place, meta=meta, **measured)


def _on(model: Model, task: Any) -> Task:
    if not isinstance(task, Task):
        raise InputsError(f"expected a task, such as interp.compare(m, clean=[...], ...), got {type(task).__name__}.")
    return task if task.model is model else task.on(model)


def _means(model: Model, x: Any, sites: Sequence[Site]) -> dict[Site, Tensor]:
    """z of the last row, averaged over prompts, by layer [head, d_value]."""
    places = [Site(s.tower, s.layer, "z") for s in sites]
    inputs = model.inputs(x)
    tape = model.run(inputs, record=places, positions="last")
    return {p: finite(tape[p][:, -1].double().mean(0).cpu(), f"{p}") for p in places}


def _effects(
    model: Model, task: Task, sites: Sequence[Site], names: Sequence[str], means: Mapping[Site, Tensor]
) -> Tensor:
    """AIE by head and prompt."""
    x = model.inputs(task.corrupt)
    tape = model.run(x, record=list(means))
    given = {p: mean.to(tape[p]).expand(tape[p].shape).clone() for p, mean in means.items()}
    cells = targets(model, [f"{name}.z" for name in names], (), 1, pairs=False)
    metric = Probability(task.answer_ids)
    ready = prepare(Question(model, cells, "last"), x, Given(given, "mean over prompts"), {"": metric})
    found = exactly(ready)
    return found[""].double().cpu()


def _chosen(heads: int | Sequence[str], names: Sequence[str], values: Tensor) -> list[str]:
    if isinstance(heads, int):
        if not 1 <= heads <= len(names):
            raise InputsError(f"heads= is 1 to {len(names)} heads, or their names; got {heads}.")
        return [names[n] for n in values.mean(1).argsort(descending=True, stable=True)[:heads].tolist()]
    strange = [head for head in heads if head not in names]
    if strange or not heads:
        raise SiteError(f"heads= are heads of this model, such as {names[0]!r}; got {strange or list(heads)!r}.")
    return list(heads)


def _sum(model: Model, means: Mapping[Site, Tensor], heads: Sequence[str]) -> Tensor:
    """The sum of m_h W_O [d]."""
    total: Tensor | float = 0.0
    for name in heads:
        place = head_place(name)
        site = Site(place.tower, place.layer, "z")
        out = model.anatomy.layer(site).out
        if out is None:
            raise SiteError(f"{name}: the output projection of this layer was not found, so it has no vector.")
        module = model.module.get_submodule(out)
        z = means[site][None, None].to(model.device, model.dtype)
        with torch.no_grad():
            total = total + head_results(module, z, (place.head,))[0, 0, 0].double().cpu()
    return torch.as_tensor(total)


def _sufficient(
    model: Model, zero: Task, place: str, vector: Tensor, drawn: Sequence[Tensor], scales: Sequence[float]
) -> dict[str, Any]:
    x = model.inputs(zero.clean)
    rate, right = Probability(zero.answer_ids), Accuracy(zero.answer_ids)

    def judged(added: Tensor, scale: float) -> tuple[Tensor, Tensor]:
        edits = [Add(place, added.float(), scale, positions="last")] if scale else []
        logits = model.run(x, edits=edits)["logits"]
        return rate(logits, x).double().cpu(), right(logits, x).double().cpu()

    found = [judged(vector, float(s)) for s in scales]
    others = [judged(one, 1.0)[0] for one in drawn]
    return {
        "scales": tuple(map(float, scales)),
        "probability": torch.stack([p for p, _ in found]) if found else torch.zeros(0, 0),
        "accuracy": torch.stack([a for _, a in found]) if found else torch.zeros(0, 0),
        "random": torch.stack(others) if others else torch.zeros(0, 0),
    }


def _trial(t: Trial) -> FunctionVector:
    return function_vector(t.model, t.task, zero=t.task, heads=2, scales=(0.0, 1.0), draws=1)


register(
    Method(
        "interp.heads.function_vector",
        number="change of the answer's probability when a head's mean output is put into shuffled prompts",
        shown="map",
        passes=lambda t: 8 + t.sweep,
        unfit={
            "vit": "it continues no text",
            "encoder-decoder": "its examples would be in another text than the one it continues",
        },
        example=_trial,
    )
)
