"""The first thing to run: heads that are known beforehand are found again, and a trained model gets a report.

The planted models (`interp/planted`) have weights set by hand, so the answer key names the heads of every probe before
anything is run; each probe is patched exactly, and the heads that move the answer are compared with the key. Then
`zoo:ioi`, which was trained, gets the report that any model gets: its heads, its circuit, and how faithful that is on
names and templates it was not found on. No network. Cost: half a minute of one core.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import interp
from interp.hooks.head_names import head_of
from interp.model import Model
from interp.patching.patch import patch
from interp.planted import build, key
from interp.planted.answers import AnswerKey, Probe
from interp.planted.probes import probe_task
from interp.reporting.report import Report, report
from interp.reporting.steps.steps import Say

PLANTED = ("planted-decoder", "planted-vit", "planted-lvlm")
Row = tuple[str, str, tuple[str, ...], tuple[str, ...]]
MOVES = 0.01
"""A head is recovered if it moves the answer by at least this share of what the largest does."""


@dataclass(frozen=True, eq=False)
class Demo:
    """What was planted, what was recovered, and the report."""

    rows: tuple[Row, ...]
    """Model, probe, planted heads, recovered heads."""
    report: Report
    circuit: str

    @property
    def recovered(self) -> bool:
        """Whether every probe's heads, and no others, were found."""
        return all(set(planted) == set(found) for _, _, planted, found in self.rows)

    @property
    def text(self) -> str:
        """All of it as lines."""
        exact = sum(set(planted) == set(found) for _, _, planted, found in self.rows)
        return "\n".join([
            "Heads that were planted, and the heads that patching recovers:", "",
            *(_line(row) for row in [("model", "probe", ("planted",), ("recovered",)), *self.rows]), "",
            f"{exact} of {len(self.rows)} probes recover exactly the planted heads.", "",
            "A trained model, zoo:ioi, on names and templates its circuit was not found on:",
            f"  {self.report.finding}", f"  {self.circuit}", "", f"The report: {self.report.page}",
        ])  # fmt: skip


def _line(row: Any) -> str:
    model, probe, planted, found = row
    mark = "" if set(planted) == set(found) or model == "model" else "   <- differs"
    return f"  {model:<16} {probe:<22} {', '.join(planted):<44} {', '.join(found) or 'none'}{mark}"


def demo(out: str | Path = "runs/demo", *, n: int = 16, random: int = 40, say: Say | None = None) -> Demo:
    """Recover the planted heads, then write a report of `zoo:ioi` to `out`, on `n` prompts, with `random` random
    circuits."""
    tell = say or (lambda line: None)
    rows = []
    for name in PLANTED:
        tell(f"{name}: patching every head for each probe")
        rows += planted(name)
    tell("zoo:ioi: a report")
    model = interp.load("zoo:ioi")
    task = interp.tasks.ioi(model, n=n)
    made = report(model, task=task, out=out, name="zoo:ioi", overwrite=True, say=say, random=random)
    return Demo(tuple(rows), made, _circuit(made))


def planted(name: str) -> list[Row]:
    """Every probe of a planted model: model, probe, the heads of its key, the heads that patching finds."""
    answers, model = key(name), interp.attach(*build(name))
    return [(name, probe.name, *_recovered(model, answers, probe)) for probe in answers.probes]


def _recovered(model: Model, answers: AnswerKey, probe: Probe) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The probe's planted heads, and those whose patch moves its answer."""
    task = probe_task(answers.model, probe.name, model=model)
    towers = model.ready().towers
    size: dict[str, float] = {}
    for name in towers:
        sites = "L*.H*.z" if len(towers) == 1 else f"{name}.L*.H*.z"
        effects = patch(model, base=task.corrupt, source=task.clean, metric=task.metric, sites=sites)
        size |= {head_of(s): abs(float(v)) for s, v in zip(effects.sites, effects.mean, strict=True)}
    least = MOVES * max(size.values())
    return probe.heads, tuple(head for head, moved in size.items() if moved > least)


def _circuit(made: Report) -> str:
    """The circuit and its faithfulness, as the report has them."""
    import json

    said = json.loads((made.folder / "steps" / "circuit.json").read_text(encoding="utf-8"))
    return str(said.get("said", said.get("refused")))
