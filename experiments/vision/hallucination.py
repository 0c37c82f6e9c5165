"""Methods that should make a vision-language model look before it speaks, on probes whose answer its words get wrong.

    python experiments/vision/hallucination.py [--model zoo:shapes-lvlm] [--n 300] [--captions 100] [--draws 5]
        [--methods pai,vhr] [--out runs/hallucination]

Probes ask for the usual companion of a shape that is there without it; a yes is a hallucination. Balanced questions
give accuracy on shapes that are there and that are not, and captions their length, the share of things that are there
which they name (recall), and the share of those named that are not (chair_i; chair_s: captions with at least one).
Every method runs with its paper's numbers, none of them tuned here, beside the same edit on random heads (`--draws`
sets): as many heads of any layer for PAI and PAINT, half of each layer's for VHR, as many calibrated for ACT, half of
each layer's for VAR, whichever look, and random patches in the place of DAMRO's outliers. VAR needs visual sinks in its
sense; where the model has none it changes nothing, and `var by weight` (ours) takes for sinks, in all layers but the
last, the three image tokens that draw most of the last row, averaged over the layer's heads. `missed` is the share of
things that are there and are denied; `threshold` is the model alone with yes made dearer (or cheaper) until it has the
method's rate, which is what a method has that only says no more often. Intervals are bootstraps over probes, questions
or captions; `change` is against the model alone on the same ones. Cost: four minutes on one core for zoo:shapes-lvlm.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

import interp
from interp.edits import Calibrate, Refocus, Scale
from interp.hooks.errors import InputsError
from interp.prompts.scenes import SHAPES, ShapeQuestion, balanced_questions, conflict_questions, scene
from interp.results.intervals import mean_interval
from interp.vision.decoding.damro import only
from interp.vision.decoding.patches import whole_views
from interp.vision.decoding.without import image_tokens, looking_tower
from interp.vision.redistribute import after_the_image

SEED, BATCH, NEW = 20_261, 50, 40
CAPTION = "<image> describe the image ."


@dataclass(frozen=True)
class Way:
    """A way of speaking: edits, or a contrast of branches, made for a batch of inputs."""

    name: str
    make: Callable[[interp.Model, Any, int | None], Any]
    """From model, inputs and a draw (None for the method itself, a number for its control) to edits or a contrast."""
    controlled: bool = True


def layered(m: interp.Model, share: float, draw: int, *, first: int = 0) -> list[str]:
    """A random share of each layer's heads."""
    random = np.random.default_rng([SEED, draw])
    found = []
    for layer in looking_tower(m, what="a control").layers:
        picks = random.permutation(layer.heads)[: int(share * layer.heads)]
        found += [f"text.L{layer.index}.H{n}" for n in sorted(picks)] if layer.index >= first else []
    return found


def spread_out(m: interp.Model, count: int, draw: int) -> list[str]:
    """As many random heads of any layer."""
    names = looking_tower(m, what="a control").names
    return [names[n] for n in sorted(np.random.default_rng([SEED, draw]).permutation(len(names))[:count])]


def emphasised(call: Callable[..., Any], m: interp.Model, x: Any, draw: int | None, **how: Any) -> Any:
    if draw is None:
        return call(m, x, **how)
    tower = looking_tower(m, what="a control")
    late = sum(layer.heads for layer in tower.layers if layer.index >= 2)
    return call(m, x, heads=spread_out(m, late, draw), first_layer=0, **how)


def pai(m: interp.Model, x: Any, draw: int | None) -> Any:
    return emphasised(interp.vision.pai, m, x, draw)


def paint(m: interp.Model, x: Any, draw: int | None) -> Any:
    return emphasised(interp.vision.paint, m, x, draw)


def var(m: interp.Model, x: Any, draw: int | None) -> Any:
    how: dict[str, Any] = {} if draw is None else {"heads": layered(m, 0.5, draw), "least": 0.0, "rho": 0.0}
    try:
        return interp.vision.redistribute(m, x, interp.vision.sinks(m, x), **how)
    except InputsError as reason:
        if "no weight can be redistributed" not in str(reason):
            raise
        return ()


def var_by_weight(m: interp.Model, x: Any, draw: int | None) -> Any:
    x, image = image_tokens(m, x, what="a stand-in")
    tower = looking_tower(m, what="a stand-in")
    tape = m.run(x, record="text.L*.pattern", positions="last")
    rows = after_the_image(x.valid, image)
    found = []
    for layer in tower.layers[:-1]:
        weight = tape[f"text.L{layer.index}.pattern"][:, :, 0].mean(1).cpu().masked_fill(~image, 0.0)
        sinks = torch.zeros_like(image).scatter(1, weight.topk(3, dim=-1).indices, True)
        heads = np.arange(layer.heads)
        if draw is not None:
            heads = np.random.default_rng([SEED, draw, layer.index]).permutation(layer.heads)[: layer.heads // 2]
        site = f"text.L{layer.index}.H{','.join(map(str, heads.tolist()))}"
        how: dict[str, Any] = {"least": 0.2, "rho": 0.5} if draw is None else {"least": 0.0, "rho": 0.0}
        found.append(Refocus(site, sinks=sinks, image=image, positions=rows, onward=True, **how))
    return tuple(found)


def vhr(m: interp.Model, x: Any, draw: int | None) -> Any:
    x = m.inputs(x)
    if draw is None:
        return interp.vision.reinforce(m, x).edits
    heads = layered(m, 0.5, draw, first=1)
    return [Scale(f"{name}.z", 2.0, positions="last", onward=True) for name in heads]


def damro(m: interp.Model, x: Any, draw: int | None) -> Any:
    c = interp.vision.damro(m, x)
    if draw is None:
        return c
    x, image = image_tokens(m, x, what="a control")
    some = torch.zeros_like(x.valid)
    for row, cells in whole_views(x, what="a control"):
        scores = torch.rand(x.length, generator=torch.Generator().manual_seed(1000 * draw + row))
        some[row, scores.masked_fill(~cells, -1.0).topk(10).indices] = True
    return interp.vision.contrast(m, x, against=only(m, x, image, some), amount=c.amount, cutoff=c.cutoff)


class Act:
    """Heads whose calibration helps on other scenes, chosen once."""

    def __init__(self) -> None:
        self.edits: tuple[Calibrate, ...] | None = None
        self.count = 0

    def __call__(self, m: interp.Model, x: Any, draw: int | None) -> Any:
        if self.edits is None:
            self.edits, self.count = self._chosen(m)
        if draw is None or not self.edits:
            return self.edits
        return [Calibrate(name) for name in spread_out(m, self.count, draw)]

    @staticmethod
    def _chosen(m: interp.Model) -> tuple[tuple[Calibrate, ...], int]:
        task = interp.tasks.shapes(m, n=100, style="yes_no", kind="adversarial")
        try:
            found = interp.sink.act(m, task, heads="text.L*", draws=1)
        except InputsError as reason:
            print(f"ACT: {reason}")
            return (), 0
        print(found)
        return found.edits, int(found.kept.sum())


WAYS = (
    Way("none", lambda m, x, draw: (), controlled=False),
    Way("pai", pai),
    Way("paint", paint),
    Way("var", var),
    Way("var by weight", var_by_weight),
    Way("vhr", vhr),
    Way("damro", damro),
    Way("act", Act()),
)


def answers(m: interp.Model, way: Way, draw: int | None, questions: Sequence[ShapeQuestion]) -> list[str]:
    """The likeliest next word after each question."""
    words: list[str] = []
    for at in range(0, len(questions), BATCH):
        part = questions[at : at + BATCH]
        texts, pictures = [f"<image> {q.text}" for q in part], [[drawn_as(q.scene)] for q in part]
        x = m.prepare(texts, images=pictures, padding="left")
        made = way.make(m, x, draw)
        logits = made.scores() if hasattr(made, "scores") else last(m, x, made)
        words += m.tokenizer.convert_ids_to_tokens(logits.argmax(-1).tolist())
    return words


def last(m: interp.Model, x: Any, edits: Any) -> Tensor:
    return m.run(x, edits=edits)["logits"][:, -1]


def captions(m: interp.Model, way: Way, draw: int | None, scenes: Sequence[Any]) -> list[str]:
    texts: list[str] = []
    for at in range(0, len(scenes), BATCH):
        part = scenes[at : at + BATCH]
        x = m.prepare([CAPTION] * len(part), images=[[drawn_as(one)] for one in part], padding="left")
        made = way.make(m, x, draw)
        if hasattr(made, "scores"):
            texts += made.generate(max_new_tokens=NEW).texts
        else:
            texts += m.generate(x, edits=made, max_new_tokens=NEW).texts
    return texts


def drawn_as(one: Any) -> Any:
    return Image.fromarray(one.image)


def heard(m: interp.Model, way: Way, draw: int | None, sets: tuple[Any, Any, Any]) -> dict[str, Tensor]:
    """By measure, a number an example."""
    probes, balanced, scenes = sets
    wrong = [float(word == "yes") for word in answers(m, way, draw, probes)]
    right = [float(word == q.answer) for word, q in zip(answers(m, way, draw, balanced), balanced, strict=True)]
    share = {kind: sum(q.answer == kind for q in balanced) / len(balanced) for kind in ("yes", "no")}
    fair = [one / (2 * share[q.answer]) for one, q in zip(right, balanced, strict=True)]
    found = {"hallucination_rate": torch.tensor(wrong), "balanced_accuracy": torch.tensor(fair)}
    found["missed"] = torch.tensor([1 - one for one, q in zip(right, balanced, strict=True) if q.answer == "yes"])
    said = [(text.split(), set(one.shapes)) for text, one in zip(captions(m, way, draw, scenes), scenes, strict=True)]
    named = [({word for word in words if word in SHAPES}, there) for words, there in said]
    found["caption_words"] = torch.tensor([float(len(words)) for words, _ in said])
    found["recall"] = torch.tensor([len(some & there) / len(there) for some, there in named])
    found["chair_i"] = torch.tensor([len(some - there) / max(len(some), 1) for some, there in named])
    found["chair_s"] = torch.tensor([float(bool(some - there)) for some, there in named])
    return {name: value.double() for name, value in found.items()}


@dataclass(frozen=True)
class Margins:
    """log p(yes) - log p(no) of the model alone: on probes, and on balanced questions with whether yes is right."""

    probes: Tensor
    balanced: Tensor
    yes: Tensor

    @classmethod
    def of(cls, m: interp.Model, probes: Sequence[ShapeQuestion], balanced: Sequence[ShapeQuestion]) -> Margins:
        yes, no = (m.tokenizer.convert_tokens_to_ids(word) for word in ("yes", "no"))

        def margins(questions: Sequence[ShapeQuestion]) -> Tensor:
            parts = []
            for at in range(0, len(questions), BATCH):
                part = questions[at : at + BATCH]
                pictures = [[drawn_as(q.scene)] for q in part]
                logits = last(m, m.prepare([f"<image> {q.text}" for q in part], images=pictures, padding="left"), ())
                parts.append((logits[:, yes] - logits[:, no]).double())
            return torch.cat(parts)

        return cls(margins(probes), margins(balanced), torch.tensor([q.answer == "yes" for q in balanced]))

    def at(self, rate: float) -> dict[str, float]:
        """What the model alone would say with yes made dearer until as few probes get one: no better than this is a
        method that only says no more often."""
        count = round(rate * len(self.probes))
        order = self.probes.sort(descending=True).values
        bound = float(order[count - 1] + order[min(count, len(order) - 1)]) / 2 if count else float(order[0])
        missed = float((self.balanced[self.yes] <= bound).double().mean())
        wrong = float((self.balanced[~self.yes] > bound).double().mean())
        return {"missed": round(missed, 4), "balanced_accuracy": round(1 - (missed + wrong) / 2, 4)}


def told(values: Tensor) -> dict[str, Any]:
    low, high = mean_interval(values[None])
    return {"value": round(float(values.mean()), 4), "interval": [round(float(low[0]), 4), round(float(high[0]), 4)]}


def judged(
    m: interp.Model, way: Way, sets: Any, alone: dict[str, Tensor] | None, draws: int, margins: Margins
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The row of a method, and what it said."""
    own = heard(m, way, None, sets)
    row: dict[str, Any] = {name: told(value) for name, value in own.items()}
    row["threshold"] = margins.at(float(own["hallucination_rate"].mean()))
    if alone is not None:
        row["change"] = {name: told(own[name] - alone[name]) for name in own}
    if way.controlled and draws:
        each = [heard(m, way, draw, sets) for draw in range(draws)]
        row["random"] = {
            name: [round(float(one[name].mean()), 4) for one in each]
            for name in ("hallucination_rate", "balanced_accuracy", "missed", "recall", "chair_i")
        }
    return row, own


def main() -> None:
    given = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    given.add_argument("--model", default="zoo:shapes-lvlm")
    given.add_argument("--n", type=int, default=300, help="probes; balanced questions are as many and two thirds more")
    given.add_argument("--captions", type=int, default=100)
    given.add_argument("--draws", type=int, default=5, help="controls of each method")
    given.add_argument("--methods", default=",".join(way.name for way in WAYS[1:]))
    given.add_argument("--out", type=Path, default=Path("runs/hallucination"))
    args = given.parse_args()
    torch.set_num_threads(1)
    m = interp.load(args.model)
    rng = np.random.default_rng(SEED)
    sets = (
        conflict_questions(args.n, SEED),
        balanced_questions(args.n * 5 // 3, SEED),
        [scene(rng, bias=0.9) for _ in range(args.captions)],
    )
    looks = about_sinks(m, sets[0])
    print(looks)
    margins = Margins.of(m, sets[0], sets[1])
    rows, alone = {}, None
    for way in WAYS:
        if way.name == "none" or way.name in args.methods.split(","):
            nothing = way.name == "var" and not looks["visual_sinks"]  # to be beside a control
            rows[way.name], own = judged(m, way, sets, alone, 0 if nothing else args.draws, margins)
            alone = own if alone is None else alone
            print(way.name, json.dumps(rows[way.name]))
    found = {"model": args.model, "probes": args.n, "captions": args.captions, "sinks": looks, "methods": rows}
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "hallucination.json").write_text(json.dumps(found, indent=1))
    print(json.dumps(found))


def about_sinks(m: interp.Model, probes: Sequence[ShapeQuestion]) -> dict[str, Any]:
    """Whether the model has visual sinks in VAR's sense, and how many of its heads are image-centric."""
    part = probes[:BATCH]
    x = m.prepare([f"<image> {q.text}" for q in part], images=[[drawn_as(q.scene)] for q in part], padding="left")
    found = interp.vision.sinks(m, x)
    every = interp.vision.sinks(m, x, dims=range(m.towers["text"].width), first_layer=0)
    centric = found.image_centric(rho=0.5).double().mean(1)
    hidden = hiding(m) if bool(found.visual.any()) else {}
    return {
        "dimensions": list(found.dims),
        "visual_sinks": int(found.visual.sum()),
        "examples_with_one": int(found.visual.any(2).any(0).sum()),
        "examples": len(part),
        "largest_phi_of_any_dimension": round(float(every.phi.max()), 2),
        "phi_at_most": round(m.towers["text"].width ** 0.5, 2),
        "heads_that_look": int((centric > 0.5).sum()),
        "heads": len(found.sites),
        **hidden,
    }


def hiding(m: interp.Model) -> dict[str, Any]:
    """What hiding visual sinks does to answers, beside as many random image tokens; and what heads give to sinks."""
    task = interp.tasks.shapes(m, n=BATCH, style="yes_no")
    found = interp.vision.sinks(m, task.clean)
    gone = interp.vision.hide_sinks(m, task.clean, metric=task.metric, sinks=found)
    tape = m.run(task.clean, record=[f"text.L{layer}.pattern" for layer in found.layers], positions="last")
    last = [tape[f"text.L{layer}.pattern"][:, :, 0].cpu() for layer in found.layers]
    weight = {
        name: {str(layer): round(float((rows * keys[:, None]).sum(-1).mean()), 3)
               for layer, rows, keys in zip(found.layers, last, sets, strict=True) if bool(found.sinks[layer].any())}
        for name, sets in (("all_sinks", found.sinks), ("visual_sinks", found.visual))
    }  # fmt: skip
    return {
        "hidden": {"margin": round(float(gone.base.mean()), 3), "sinks": told(gone.sinks),
                   "random": [round(float(one), 3) for one in gone.random.mean(1)], "tokens": round(gone.tokens, 2)},
        "weight_of_the_last_row": weight,
    }  # fmt: skip


if __name__ == "__main__":
    main()
