"""A circuit for the task: found on the report's prompts, judged on held-out ones, and compared with random circuits.

Edges are scored by EAP-IG (base clean, source corrupt) and cut at growing sizes, by signed importance and by magnitude:
the first takes what speaks for the answer, and leaves out heads that speak against it and keep the others in check, so
that it can overshoot. The smallest circuit whose f on the prompts it was found on is within `NEAR` of 1 is kept, either
way; where there is none, the nearest, and the page says so. Cost: a walk back per step, one to three forward passes a
circuit, 100 for the random ones; a budget takes fewer prompts and fewer random circuits. Limits: one tower, of which
the answer is read; held-out prompts that cannot judge are not asked, and then there is no circuit.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from interp.circuits.edges import edges
from interp.circuits.faithfulness import faithfulness
from interp.circuits.found.circuit import Circuit
from interp.circuits.found.edge_scores import Edges
from interp.kernels.errors import InterpError
from interp.reporting.drawing.figures import drawn
from interp.reporting.steps.gathered import Gathered
from interp.reporting.steps.section import Section
from interp.reporting.steps.steps import Answer, Steps
from interp.reporting.steps.subject import SPLITS, Subject
from interp.results.figures.figure import Figure

BY = {True: "signed importance", False: "magnitude"}
SIZES = (0.01, 0.02, 0.03, 0.05, 0.08, 0.1)
NEAR = 0.05
STEPS = 5
MOST = 300_000
"""Number of edges above which a report does not look for a circuit."""
LISTED = 20_000
"""Edges above which the file of the circuit is the compact one of MIB."""
PARTS = 20
WAYS = ((64, STEPS), (16, STEPS), (8, STEPS), (8, 3), (8, 2))
"""Prompts and steps that edges are scored with, the best first."""
WALK, RUN = 34.0, 4.8
"""Passes of their prompts that a step of EAP-IG takes, and that a circuit takes."""
SHARE, CHANCE = 0.55, 10
"""The part of what is left that finding a circuit may take, and the fewest random circuits worth having."""


@dataclass(frozen=True)
class Tried:
    """One size of circuit, one way to cut it."""

    circuit: Circuit
    by: str
    f: float

    @property
    def far(self) -> float:
        """From the whole model."""
        return abs(1 - self.f)

    def row(self) -> dict[str, Any]:
        """As plain values."""
        return {"fraction": self.circuit.meta["fraction asked"], "edges": len(self.circuit), "f": self.f, "by": self.by}


def _plan(subject: Subject) -> None:
    budget, wanted, count = subject.budget, subject.wanted, len(subject.task)
    if not wanted.circuit:
        return
    for prompts, steps in WAYS:
        some = min(count, prompts)
        finding = (WALK * steps + 6 + RUN * 2 * len(SIZES)) * some / count
        held = min(len(subject.heldout), max(prompts, subject.enough))
        judging = RUN * (4 + CHANCE) * held / count
        if finding + judging <= SHARE * budget.left or (prompts, steps) == WAYS[-1]:
            break
    if not budget.whole("circuit", finding + judging, "A circuit and its faithfulness"):
        return
    budget.amounts |= {"circuit prompts": some, "circuit heldout": held, "circuit steps": steps}
    one = RUN * held / count
    chance = min(wanted.random, CHANCE)
    budget.some("circuit random", one, wanted.random - chance, "Random circuits to compare with the circuit",
                step="circuit", share=0.7, had=chance)  # fmt: skip
    budget.some("circuit parts", one * 1.6, PARTS, "Edges and halves tried for minimality and completeness",
                step="circuit", least=4, share=0.7)  # fmt: skip
    budget.whole("circuit curve", one * 20, "Faithfulness over all sizes on held-out prompts", step="circuit")


def circuit(subject: Subject, steps: Steps) -> Answer:
    """Finds, judges and writes the circuit's file; the answer has what the page shows."""
    _small_enough(subject)
    task, model = subject.task, subject.model
    task = task.take(range(subject.amount("circuit prompts", len(task))))
    steps.tell("scores of edges")
    scores = edges(
        model, base=task.clean, source=task.corrupt, metric=task.metric, method="eap-ig",
        steps=subject.amount("circuit steps", STEPS),
    )  # fmt: skip
    cut = [(_cut(scores, size, signed), BY[signed]) for signed in (False, True) for size in SIZES]
    found = faithfulness(
        model, [one for one, _ in cut], task, random=0, parts=0,
        tell=lambda done: steps.tell(f"{done} of {len(cut) + 1} circuits of several sizes"),
    )  # fmt: skip
    tried = [Tried(one, by, float(judged.f)) for (one, by), judged in zip(cut, found, strict=True)]
    return _judged(subject, steps, chosen(tried), scores, tried) | {"found_on": len(task)}


def _cut(scores: Edges, size: float, signed: bool) -> Circuit:
    one = scores.circuit(fraction=size, signed=signed)
    return replace(one, meta={**one.meta, "fraction asked": size})


def chosen(tried: list[Tried]) -> Tried:
    """The smallest that is near enough, else the nearest."""
    near = [one for one in tried if one.far <= NEAR]
    return min(near, key=lambda one: len(one.circuit)) if near else min(tried, key=lambda one: one.far)


def _judged(subject: Subject, steps: Steps, best: Tried, scores: Edges, tried: list[Tried]) -> Answer:
    heldout, found = subject.heldout, best.circuit
    heldout = heldout.take(range(min(len(heldout), subject.amount("circuit heldout", len(heldout)))))
    random, parts = subject.amount("circuit random", subject.wanted.random), subject.amount("circuit parts", PARTS)
    curve = bool(subject.amount("circuit curve", 1))
    judged = faithfulness(
        subject.model, found, heldout, scores=scores if curve else None, random=random, parts=parts,
        seed=subject.wanted.seed, tell=lambda done: steps.tell(f"{done} circuits on held-out prompts, {random} random"),
    )  # fmt: skip
    found.save(steps.folder / ("circuit.json" if len(found.graph.edges) <= LISTED else "circuit.pt"))
    frame, summary = found.to_frame(), judged.summary()
    return {
        "edges": frame.to_dict("records"), "said": repr(judged), "summary": summary,
        "tried": [one.row() for one in tried], "by": best.by, "near": best.far <= NEAR,
        "warnings": warned(best, tried, summary), "split": subject.split, "grid": list(judged.grid),
        "signed": list(judged.signed or ()), "unsigned": list(judged.unsigned or ()),
        "random": judged.random.tolist(), "fraction": found.fraction,
        "svg": found.draw(title=f"Circuit of {subject.task.name}"), "nodes": list(found.nodes),
    }  # fmt: skip


def warned(best: Tried, tried: list[Tried], summary: Mapping[str, Any]) -> list[str]:
    """What is not as it should be about a circuit."""
    made = []
    if best.far > NEAR:
        values = [one.f for one in tried]
        made.append(
            f"No circuit of {SIZES[0]:.0%} to {SIZES[-1]:.0%} of the edges is within {NEAR} of the whole model on the"
            f" prompts it was found on (f {min(values):.2f} to {max(values):.2f}): the nearest is shown, {best.f:.2f}."
        )
    low, high = summary["low"], summary["high"]
    if not summary["sound"]:
        made.append("The circuit is not judged: the gap of the held-out prompts cannot be distinguished from 0, so"
                    " there is nothing to be faithful to.")  # fmt: skip
    elif low is not None and low <= 0 <= high:
        made.append(f"On held-out prompts the circuit's f cannot be distinguished from 0 [{low:.2f}, {high:.2f}].")
    return made


def _small_enough(subject: Subject) -> None:
    anatomy = subject.model.ready()
    name = anatomy.main or next(iter(anatomy.towers))
    heads = sum(layer.heads for layer in anatomy.towers[name].layers)
    layers = len(anatomy.towers[name].layers)
    about = heads * (heads + layers) * 3 // 2
    if about > MOST:
        raise InterpError(
            f"about {about:,} edges, which is too many for a report: use interp.edges and interp.faithfulness, and"
            " give their results to interp.report."
        )


def _measure(made: Gathered, subject: Subject, steps: Steps) -> None:
    if not subject.wanted.circuit or not subject.amount("circuit", 1):
        return
    if made.checks and (made.checks["heldout"]["why"] or made.checks["doubt"]):
        return
    made.keep("circuit", steps.attempt("circuit", lambda: circuit(subject, steps)))
    made.left_out += made.answers.get("circuit", {}).get("warnings", ())


def _page(made: Gathered) -> Mapping[str, Any]:
    found = made.answers.get("circuit")
    if found is None:
        return {}
    ends = ("sender", "receiver")
    edges = [{**edge, **{end: _placed(edge[end]) for end in ends}} for edge in found["edges"]]
    about = f"{found['said']}. Cut by {found['by']}, found on {found['found_on']} prompts."
    shown = {"edges": edges, "title": f"Circuit of {made.task}", "about": about}
    return {"circuit": shown, "curves": [faithfulness_curve(found)]}


def _placed(name: str) -> str:
    """The page knows one embedding and one set of logits, whichever tower they belong to."""
    last = name.rpartition(".")[2]
    return last if last in ("embed", "logits") else name


def faithfulness_curve(found: dict[str, Any]) -> dict[str, Any]:
    """f over the share of edges kept, with random circuits of the same size."""
    here, summary = found["fraction"], found["summary"]
    lines: list[dict[str, Any]] = [
        {"name": BY[True], "x": found["grid"], "y": found["signed"], "kind": "line"},
        {"name": BY[False], "x": found["grid"], "y": found["unsigned"], "kind": "line"},
    ]
    for by in BY.values():
        rows = [row for row in found["tried"] if row["by"] == by]
        where = f"{by}, where it was found" if found["signed"] else by
        lines.append({"name": where, "x": [row["fraction"] for row in rows], "y": [row["f"] for row in rows],
                      "kind": "baseline" if found["signed"] else "line"})  # fmt: skip
    if summary["sound"]:
        lines += [
            {"name": "the circuit", "x": [here], "y": [summary["f"]], "low": [summary["low"]],
             "high": [summary["high"]], "kind": "points"},
            {"name": "random circuits", "x": [here] * len(found["random"]), "y": found["random"], "kind": "points"},
        ]  # fmt: skip
    return {
        "title": "Faithfulness of circuits", "about": f"{found['said']} ({SPLITS[found['split']]})",
        "x_title": "share of edges kept", "y_title": "f", "log_x": True, "lines": [x for x in lines if x["y"]],
        "levels": [("the whole model", 1.0), ("nothing", 0.0)],
    }  # fmt: skip


def _figures(made: Gathered) -> Iterable[tuple[str, Figure | str]]:
    found = made.answers.get("circuit")
    return [] if found is None else [("faithfulness", drawn(faithfulness_curve(found))), ("circuit", found["svg"])]


SECTION = Section(
    "circuit",
    50,
    _measure,
    plan=_plan,
    page=_page,
    figures=_figures,
    cites=lambda made: ("circuit",) if "circuit" in made.answers else (),
    writes={
        "circuit.json": "the circuit, as EAP-IG and MIB write it",
        "circuit.pt": "the circuit with the scores of all edges, as MIB writes it",
    },
)
