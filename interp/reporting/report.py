"""A report of a model's heads: everything this package measures about a task, checked, in one directory.

Every head is patched exactly in both directions where that is affordable, else ranked by estimates whose first ones are
patched. It also has the other methods and how far they agree, ablation of the heads found against random ones on
held-out prompts (no single score is evidence alone), the circuit and its faithfulness, kinds of heads, sinks, and
patterns on real tokens. `report.html` needs no network, `heads.csv` and `heads.parquet` hold the rows
(`interp/heads/rows.py`), `run.json` how the report was made. The work is a list of steps, and each is saved when it is
done. If the call is killed, make it again with `resume=True`: it continues, and ends with the same bytes. A first page
is written once heads have estimates, and completed as more is known. Cost: `budget=`, in forward passes of its prompts
(`interp/reporting/steps/budget.py`; 250 unless said, more for small models) or in minutes; `Report.cost` says what is
planned, before the work where `say=` is given, and the page what was left out. Limits: one task a report; a method that
does not fit the model is named with its reason; a task shows what heads do for it, not what they are; a budget in
minutes is turned into passes by a probe, so that two reports under it need not be the same, while a resumed report
keeps what was chosen.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from interp.cost import Cost
from interp.hooks.html import Told
from interp.kernels.errors import InterpError
from interp.loading.task_named import task_named
from interp.provenance import about, name_of, refuse_unwritten
from interp.records import Method, register
from interp.reporting.pages.files import write_files, write_run
from interp.reporting.sections import sections
from interp.reporting.steps.budget import asked
from interp.reporting.steps.gathered import Gathered
from interp.reporting.steps.steps import Say, Steps
from interp.reporting.steps.subject import Subject, Wanted, revision_of
from interp.reporting.work import Underway
from interp.tasks.task import Task

if TYPE_CHECKING:
    from interp.model import Model


@dataclass(frozen=True, eq=False)
class Report(Told):
    """The directory of a report, its rows, and what it found in one sentence."""

    folder: Path
    """The directory of the report."""
    rows: Any
    """A frame with one row for each head and method."""
    finding: str
    """The result in one sentence."""
    warnings: tuple[str, ...]
    """What you have to know before you use the numbers."""
    cost: Cost | None = None
    """How many forward passes the report was expected to take."""

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
    budget: float | int | str | None = None,
    prompts: Literal["auto", "all"] | None = None,
    resume: bool = False,
    overwrite: bool = False,
    say: Say | None = None,
    **options: Any,
) -> Report:
    """Measure, check and write down. Give a task (a value, or a name with `n` prompts and the generator's options), or
    results that you have, or both.

    `exact` forces patching of every head or estimates; `top` heads get cards; `examples` prompts are shown; `draws`
    sets of random heads and `random` random circuits are compared with what was found. `budget` is a number of forward
    passes or minutes ("10 min"). `prompts="auto"` takes as many of a task's prompts as the intervals need, "all" all of
    them; unless said, "auto" where a task is named without `n`.
    """
    if exact != "auto" and not isinstance(exact, bool):
        raise InterpError(f"exact is 'auto', True or False, got {exact!r}.")
    given, called = [*results] if not hasattr(results, "to_frame") else [results], name or name_of(model.module)
    if prompts not in (None, "auto", "all"):
        raise InterpError(f"prompts is 'auto' or 'all', got {prompts!r}.")
    asked(budget)
    counted: Literal["auto", "all"] = prompts or ("auto" if isinstance(task, str) and n is None else "all")
    put = _task(model, task, called, n, seed, options)
    if put is not None and put.recipe is None:
        counted = "all"  # rows that somebody wrote are all meant
    if put is None and not given:
        raise InterpError("a report is about a task or about results: give task=, or results of other calls.")
    wanted = Wanted(seed, top, exact, examples, draws, random, circuit, counted, budget)
    refuse_unwritten(model.module)
    subject = None if put is None else Subject(model, called, put, wanted, revision_of(model))
    plan = about(model.module, None) | {"model": called} if subject is None else subject.plan()
    plan |= {"results": [repr(one) for one in given]}
    files = [name for section in sections() for name in section.writes]
    steps = Steps(out, plan, resume=resume, overwrite=overwrite, say=say, files=files)
    work = Underway(model, called, given, plan, steps)
    if subject is None:
        work.closed()
    else:
        work.measured(subject, say)
    made = work.made
    write_files(made, steps)
    write_run(steps, work.run())
    return Report(steps.folder, made.rows, made.finding, tuple(made.warnings), work.said)


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
