"""A circuit for the task: found on the report's prompts, judged on held-out ones, beside random circuits.

Edges are scored by EAP-IG (base clean, source corrupt), cut at growing sizes by signed importance, and the smallest
whose f on the prompts it was found on is within 0.05 of 1 is kept, else the nearest. Cost: one backward per step, a
forward pass per circuit judged, 100 for the random ones. Limits: one tower, of which the answer is read.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from interp.circuits.circuit import Circuit
from interp.circuits.edge_scores import Edges
from interp.circuits.edges import edges
from interp.circuits.faithfulness import faithfulness
from interp.kernels.errors import InterpError
from interp.reporting.drawing.canvas import Canvas
from interp.reporting.drawing.figures import drawn
from interp.reporting.steps.gathered import Gathered
from interp.reporting.steps.section import Section
from interp.reporting.steps.steps import Answer, Steps
from interp.reporting.steps.subject import SPLITS, Subject

SIZES = (0.01, 0.02, 0.03, 0.05, 0.08, 0.1)
NEAR = 0.05
STEPS = 5
MOST = 300_000
"""Edges above which a report does not look for a circuit by itself."""
PARTS = 20


def forwards(subject: Subject) -> int:
    """An upper bound, in forward passes of all prompts."""
    if not subject.wanted.circuit:
        return 0
    return 3 * STEPS + 3 * len(SIZES) + subject.wanted.random + 2 * PARTS + 24


def circuit(subject: Subject, steps: Steps) -> Answer:
    """Finds, judges and writes `circuit.json`; the answer has what the page shows."""
    task, model = subject.task, subject.model
    _small_enough(subject)
    scores = edges(model, base=task.clean, source=task.corrupt, metric=task.metric, method="eap-ig", steps=STEPS)
    tried, best = [], None
    for size in SIZES:
        one = scores.circuit(fraction=size, signed=True)
        f = float(faithfulness(model, one, task, random=0, parts=0).f)
        tried.append({"fraction": size, "edges": len(one), "f": f})
        if best is None or abs(1 - f) < abs(1 - best[0]):
            best = (f, one)
        if abs(1 - f) <= NEAR:
            break
    assert best is not None
    return _judged(subject, steps, best[1], scores, tried)


def _judged(subject: Subject, steps: Steps, found: Circuit, scores: Edges, tried: list[dict[str, float]]) -> Answer:
    wanted = subject.wanted
    judged = faithfulness(
        subject.model, found, subject.heldout, scores=scores, random=wanted.random, parts=PARTS, seed=wanted.seed
    )
    found.save(steps.folder / "circuit.json")
    frame = found.to_frame()
    return {
        "edges": frame.to_dict("records"), "said": repr(judged), "summary": judged.summary(), "tried": tried,
        "split": subject.split, "grid": list(judged.grid), "signed": list(judged.signed or ()),
        "unsigned": list(judged.unsigned or ()), "random": judged.random.tolist(), "fraction": found.fraction,
        "svg": found.draw(title=f"Circuit of {subject.task.name}"), "nodes": list(found.nodes),
    }  # fmt: skip


def _small_enough(subject: Subject) -> None:
    anatomy = subject.model.ready()
    name = anatomy.main or next(iter(anatomy.towers))
    heads = sum(layer.heads for layer in anatomy.towers[name].layers)
    layers = len(anatomy.towers[name].layers)
    about = heads * (heads + layers) * 3 // 2
    if about > MOST:
        raise InterpError(
            f"about {about:,} edges, more than a report looks through by itself: use interp.edges and"
            " interp.faithfulness, and give their results to interp.report."
        )


def _measure(made: Gathered, subject: Subject, steps: Steps) -> None:
    if subject.wanted.circuit:
        made.keep("circuit", steps.attempt("circuit", lambda: circuit(subject, steps)))


def _page(made: Gathered) -> Mapping[str, Any]:
    found = made.answers.get("circuit")
    if found is None:
        return {}
    ends = ("sender", "receiver")
    edges = [{**edge, **{end: _placed(edge[end]) for end in ends}} for edge in found["edges"]]
    shown = {"edges": edges, "title": f"Circuit of {made.task}", "about": found["said"]}
    return {"circuit": shown, "curves": [faithfulness_curve(found)]}


def _placed(name: str) -> str:
    """The page knows one embedding and one set of logits, whichever tower they belong to."""
    last = name.rpartition(".")[2]
    return last if last in ("embed", "logits") else name


def faithfulness_curve(found: dict[str, Any]) -> dict[str, Any]:
    """f over the share of edges kept, with random circuits of the same size."""
    here, summary = found["fraction"], found["summary"]
    lines = [
        {"name": "by signed importance", "x": found["grid"], "y": found["signed"], "kind": "line"},
        {"name": "by magnitude", "x": found["grid"], "y": found["unsigned"], "kind": "line"},
        {"name": "the circuit", "x": [here], "y": [summary["f"]], "low": [summary["low"]], "high": [summary["high"]],
         "kind": "points"},
        {"name": "random circuits", "x": [here] * len(found["random"]), "y": found["random"], "kind": "points"},
    ]  # fmt: skip
    return {
        "title": "Faithfulness of circuits", "about": f"{found['said']} ({SPLITS[found['split']]})",
        "x_title": "share of edges kept", "y_title": "f", "log_x": True, "lines": [x for x in lines if x["y"]],
        "levels": [("the whole model", 1.0), ("nothing", 0.0)],
    }  # fmt: skip


def _figures(made: Gathered) -> Iterable[tuple[str, Canvas | str]]:
    found = made.answers.get("circuit")
    return [] if found is None else [("faithfulness", drawn(faithfulness_curve(found))), ("circuit", found["svg"])]


SECTION = Section(
    "circuit",
    50,
    _measure,
    forwards=forwards,
    page=_page,
    figures=_figures,
    cites=lambda made: ("circuit",) if "circuit" in made.answers else (),
    writes={"circuit.json": "the circuit, as EAP-IG and MIB write it"},
)
