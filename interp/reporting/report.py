"""A report of a model's heads: everything this package measures about a task, checked, in one directory.

Every head is patched exactly in both directions where that is affordable, else ranked by estimates whose first ones are
patched; beside it stand the other methods and how far they agree, ablation of the heads found against random ones on
held-out prompts (no single score is evidence by itself), the circuit and its faithfulness, kinds of heads, sinks, and
patterns on real tokens. `report.html` needs no network, `heads.csv` and `heads.parquet` hold the rows
(`interp/heads/rows.py`), `run.json` how it came about. The work is a list of steps, each written down when it is done:
killed and called again with `resume=True` it goes on, and ends with the same bytes.
Cost: `Report.cost`, an upper bound in forward passes; said first where `say=` is given. Limits: one task a report; a
method that does not fit the model is named with its reason; a task shows what heads do for it, not what they are.
"""

from __future__ import annotations

import math
import resource
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import interp
from interp.heads.rows import head_rows, joined, ranked
from interp.kernels.errors import InterpError
from interp.provenance import about, refuse_unwritten
from interp.records import Method, register
from interp.reporting.cost import Cost, cost
from interp.reporting.pages.files import write_files, write_run
from interp.reporting.sections import sections
from interp.reporting.steps.gathered import Gathered
from interp.reporting.steps.steps import Say, Steps
from interp.reporting.steps.subject import Subject, Wanted, name_of, revision_of, task_named
from interp.results.effects import Effects
from interp.tasks.task import Task

if TYPE_CHECKING:
    from interp.model import Model


@dataclass(frozen=True, eq=False)
class Report:
    """Where a report lies, its rows, and what it found in a sentence."""

    folder: Path
    rows: Any
    finding: str
    warnings: tuple[str, ...]
    cost: Cost | None = None

    @property
    def page(self) -> Path:
        """The page to open."""
        return self.folder / "report.html"

    def top(self, n: int = 10) -> Any:
        """The rows of the n heads with the largest effects, by what the report ranks by."""
        return Gathered("", "", "", self.rows, {}).ranked.head(n)

    def to_frame(self) -> Any:
        """All rows, one per head and method."""
        return self.rows

    def __repr__(self) -> str:
        return f"{self.finding}\n{self.page} ({self.page.stat().st_size / 1e6:.2f} MB)"


def report(
    model: Model,
    results: Iterable[Any] = (),
    *,
    out: str | Path,
    task: Task | str | None = None,
    name: str | None = None,
    n: int | None = None,
    seed: int = 0,
    exact: Literal["auto"] | bool = "auto",
    top: int = 8,
    examples: int = 2,
    draws: int = 20,
    random: int = 100,
    circuit: bool = True,
    resume: bool = False,
    overwrite: bool = False,
    say: Say | None = None,
    **options: Any,
) -> Report:
    """Measure, check and write down. Give a task (a value, or a name with `n` prompts and the generator's options), or
    results that you have, or both.

    `exact` forces patching of every head or estimates; `top` heads get cards; `examples` prompts are shown; `draws`
    sets of random heads and `random` random circuits stand beside what was found.
    """
    if exact != "auto" and not isinstance(exact, bool):
        raise InterpError(f"exact is 'auto', True or False, got {exact!r}.")
    given, called = [*results] if not hasattr(results, "to_frame") else [results], name or name_of(model)
    put = _task(model, task, called, n, seed, options)
    if put is None and not given:
        raise InterpError("a report is about a task or about results: give task=, or results of other calls.")
    wanted = Wanted(seed, top, exact, examples, draws, random, circuit)
    refuse_unwritten(model.module)
    subject = None if put is None else Subject(model, called, put, wanted, revision_of(model))
    plan = about(model.module, None) | {"model": called} if subject is None else subject.plan()
    plan |= {"results": [repr(one) for one in given]}
    files = [name for section in sections() for name in section.writes]
    steps = Steps(out, plan, resume=resume, overwrite=overwrite, say=say, files=files)
    started, said = time.time(), _cost(subject, say)
    made = _gathered(model, called, subject, given, steps, plan)
    write_files(made, steps)
    write_run(steps, _run(steps, made, plan, said, started))
    return Report(steps.folder, made.rows, made.finding, tuple(made.warnings), said)


def _task(
    model: Model, task: Task | str | None, called: str, n: int | None, seed: int, options: Mapping[str, Any]
) -> Task | None:
    if isinstance(task, Task):
        if n is not None or options:
            raise InterpError("this task has its rows already: leave n= and the generator's options out.")
        return task if task.model is model else task.on(model)
    if task is None and (n is not None or options):
        raise InterpError(f"{', '.join(options) or 'n'}= belongs to a task, and none was named: give task=.")
    return None if task is None else task_named(model, task, model_name=called, n=n, seed=seed, **options)


def _cost(subject: Subject | None, say: Say | None) -> Cost | None:
    if subject is None:
        return None
    found = cost(subject.model, subject.task.clean, math.ceil(sum(one.forwards(subject) for one in sections())))
    if say is not None:
        say(str(found))
    return found


def _gathered(
    model: Model, called: str, subject: Subject | None, given: list[Any], steps: Steps, plan: Mapping[str, Any]
) -> Gathered:
    rows = [head_rows(one, model.ready(), model=called, revision=revision_of(model), split="given") for one in given]
    made = Gathered(f"Heads of {called}", called, "", joined(rows), plan, towers=_towers(model))
    if subject is not None:
        made.title, made.task = f"Heads of {called} on {subject.task.name}", subject.task.name
        for section in sections():
            section.measure(made, subject, steps)
        _fill_rows(made, subject)
    made.effects |= {f"{_method(one)} given {n}": one for n, one in enumerate(given) if isinstance(one, Effects)}
    made.refused += steps.notes
    for section in sections():
        section.close(made, int(plan.get("seed", 0)))
    return made


def _fill_rows(made: Gathered, subject: Subject) -> None:
    """All rows with what is known about the run; estimates get the exact value of their head where it was patched."""
    anatomy, facts = subject.model.anatomy, {"model": made.model, "revision": subject.revision, "task": made.task}
    found = (*made.effects.values(), *made.measures.values())
    rows = [head_rows(one, anatomy, **facts, split="train") for one in found]
    rows += [frame.assign(**facts, split="train") for frame in made.frames]
    every = joined([*rows, made.rows])
    patched = every[(every["method"] == "patch") & (every["split"] == "train")]
    exact = {(s, d): v for s, d, v in zip(patched["site"], patched["direction"], patched["estimate"], strict=True)}
    values = [exact.get((s, d), float("nan")) for s, d in zip(every["site"], every["direction"], strict=True)]
    effect = every["direction"].isin(["denoise", "noise"])
    every = every.assign(exact=[v if e else float("nan") for v, e in zip(values, effect, strict=True)])
    verified = every["exact"].notna().where(effect, other=None).astype("boolean")
    made.rows = ranked(every.assign(verified=verified, label=[made.labels.get(s, "") for s in every["site"]])).astype(
        {"label": "string"}
    )


def _method(effects: Effects) -> str:
    return str(effects.meta.get("method", "patch"))


def _towers(model: Model) -> list[dict[str, Any]]:
    towers = model.anatomy.towers
    return [
        {"name": name, "prefix": "" if len(towers) == 1 else f"{name}.", "layers": [x.index for x in tower.layers],
         "heads": [x.heads for x in tower.layers], "kv_heads": [x.kv_heads for x in tower.layers]}
        for name, tower in towers.items()
    ]  # fmt: skip


def _run(steps: Steps, made: Gathered, plan: Mapping[str, Any], said: Cost | None, started: float) -> dict[str, Any]:
    return {
        "format": 1, "interp": interp.__version__, "plan": dict(plan), "finding": made.finding,
        "warnings": made.warnings, "checks": made.checks.get("lines", []),
        "cost": None if said is None else said.to_dict(),
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(started)),
        "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "seconds": steps.seconds,
        "peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
    }  # fmt: skip


register(
    Method(
        "interp.report",
        number="all measures of a task in one table of heads, each in its unit",
        shown="page",
        needs=("task",),
        unfit={"encoder-decoder": "a task needs the model's tokenizer"},
        made_of=(
            "interp.patch", "interp.attribute", "interp.patching.direct_effect", "interp.edges", "interp.faithfulness",
            "interp.head_roles", "interp.heads.head_circuits", "interp.sinks",
        ),
        passes=lambda t: float(t.of("interp.report").cost.forwards),
        values=None,
        example=lambda t: report(
            t.model, task=t.task, out=t.folder / "report", overwrite=True, examples=1, draws=1, circuit=False, top=2
        ),
    )
)  # fmt: skip
