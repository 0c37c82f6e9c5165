"""A grid of reports, over models, tasks, seeds and corruptions, and how stable the set of heads is over it.

Each cell is a report in its own directory, so a killed grid continues where it stopped; a cell that does not fit (a
task for another kind of model) is named with its reason and left out. A cell whose self-check failed is not one of
those: what it would have said cannot be trusted, and it is named as a failure. For each model and task, cells that
differ in seed or corruption are compared in pairs: Spearman's correlation of the heads' effects and the overlap of the
first k.
Cost: a report a cell. The file is YAML (read by PyYAML, which transformers brings) or JSON.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, product
from pathlib import Path
from typing import Any, overload

from interp.cells.shards import Asked, ShardDone, asked, mark, refuse_shard
from interp.configs import ConfigError, read_config
from interp.heads.rows import joined, read_rows, write_rows
from interp.hooks.errors import CheckFailed
from interp.hooks.html import Told
from interp.kernels.errors import InterpError
from interp.loading.named import opened
from interp.loading.task_named import task_named
from interp.reporting.difference import difference
from interp.reporting.outcomes import Outcomes, together
from interp.reporting.report import Report, report
from interp.reporting.steps.steps import Say
from interp.saving import renamed

CALL = "interp.reporting.experiment"
CELL = ("model", "task", "seed", "corruption")
LISTS = ("models", "tasks", "seeds", "corruptions")
ALLOWED = ("n", "exact", "top", "examples", "draws", "random", "circuit", "budget")
PRIMARY = ("patch", "denoise")


@dataclass(frozen=True, eq=False)
class Experiment(Told):
    """The directory of the grid; `stability` has a row per pair of cells of one model and task."""

    folder: Path
    """The directory of the grid."""
    cells: tuple[dict[str, Any], ...]
    """One entry for each report."""
    left_out: tuple[str, ...]
    """Cells that could not be run, and why."""
    stability: Any
    """A frame with one row for each pair of reports of one model and task."""
    failed: tuple[str, ...] = ()
    """Cells whose self-checks failed, with what they said."""

    @property
    def finding(self) -> str:
        """In a sentence."""
        wrong = f"{len(self.failed)} of {len(self.cells) + len(self.failed)} reports failed a self-check; " * bool(
            self.failed
        )
        return wrong + self._found()

    def _found(self) -> str:
        if not len(self.stability):
            return f"{len(self.cells)} reports; no two of one model and task, so there is no stability to speak of."
        worst = self.stability.sort_values("overlap", kind="stable").iloc[0]
        return (
            f"{len(self.cells)} reports; the first {int(worst['k'])} heads overlap by"
            f" {self.stability['overlap'].mean():.0%} on average, at worst {worst['overlap']:.0%} ({worst['model']},"
            f" {worst['task']}: {worst['a']} and {worst['b']})."
        )

    def __repr__(self) -> str:
        left = "".join(f"\nleft out: {line}" for line in self.left_out)
        left += "".join(f"\nFAILED: {line}" for line in self.failed)
        return f"{self.finding}{left}\nwrote {self.folder}"


@overload
def experiment(
    config: str | Path | Mapping[str, Any], *, out: str | Path, shard: None = None, **how: Any
) -> Experiment: ...
@overload
def experiment(
    config: str | Path | Mapping[str, Any], *, out: str | Path, shard: tuple[int, int] | str, **how: Any
) -> ShardDone: ...


def experiment(
    config: str | Path | Mapping[str, Any], *, out: str | Path, say: Say | None = None, shard: Asked = None, **how: Any
) -> Experiment | ShardDone:
    """Run or continue every cell of the grid; `how` goes to `interp.load`.

    `shard=(0, 4)` makes every fourth report, in its own directory (one report is not divided: for a long report shard
    its calls), and `interp.scale.merge` makes the grid of all four.
    """
    mine, folder = asked(shard, out), Path(out)
    refuse_shard(folder) if mine is None else mark(folder, CALL, mine)
    grid = _grid(config)
    cells = [
        {**one, "name": _name(one)}
        for one in (dict(zip(CELL, values, strict=True)) for values in product(*(grid[name] for name in LISTS)))
    ]
    found = Outcomes(folder, grid, cells)
    found.write()
    wanted = [cell for n, cell in enumerate(cells) if mine is None or mine.has(n)]
    _done(found, wanted, say, how)
    if mine is None:
        return _finished(found)
    return ShardDone(CALL, folder, mine.index, mine.of, len(wanted), len(cells))


def _done(found: Outcomes, wanted: list[dict[str, Any]], say: Say | None, how: Mapping[str, Any]) -> None:
    """Each of the wanted reports, or why there is none."""
    report_of, tell, models = dict(found.grid.get("report") or {}), say or (lambda line: None), dict[Any, Any]()
    for cell in wanted:
        name = str(cell["name"])
        tell(f"{name}:")
        try:
            if cell["model"] not in models:
                models = {cell["model"]: opened(cell["model"], **how)}  # one at a time: models are large
            _report(models[cell["model"]], cell, found.folder / name, report_of, say)
        except ConfigError:
            raise
        except CheckFailed as why:
            found.failed[name] = str(why)
            tell(f"{name}: FAILED, {why}")
        except InterpError as why:
            found.left_out[name] = str(why)
        found.write()


def merged(folders: Sequence[Path], to: Path) -> Experiment:
    """The grid of all shards, as the call itself writes it."""
    found = together(folders, to)
    found.write()
    return _finished(found)


def _grid(config: str | Path | Mapping[str, Any]) -> dict[str, Any]:
    held = dict(config) if isinstance(config, Mapping) else read_config(config)
    name = "the experiment" if isinstance(config, Mapping) else str(config)
    unknown = [key for key in held if key not in (*LISTS, "report")]
    if unknown:
        raise ConfigError(f"{name}: no {unknown[0]!r} in an experiment; there are {', '.join((*LISTS, 'report'))}.")
    wrong = [key for key in held.get("report") or {} if key not in ALLOWED]
    if wrong:
        raise ConfigError(f"{name}: report has no {wrong[0]!r}; there are {', '.join(ALLOWED)}.")
    held = {"tasks": [None], "seeds": [0], "corruptions": [None], **held}
    for key in LISTS:
        if not isinstance(held.get(key), list) or not held[key]:
            raise ConfigError(f"{name}: {key} is a list with at least one thing in it, got {held.get(key)!r}.")
    return held


def _name(cell: Mapping[str, Any]) -> str:
    """A cell as the name of a directory."""
    parts = [str(cell["model"]), cell["task"] or "own-task", f"seed{cell['seed']}", cell["corruption"] or ""]
    text = "_".join(part for part in parts if part)
    return "".join(letter if letter.isalnum() or letter in "-_." else "-" for letter in text).strip("-.")


def _report(model: Any, cell: Mapping[str, Any], folder: Path, wanted: dict[str, Any], say: Say | None) -> Report:
    more = {} if cell["corruption"] is None else {"corruption": cell["corruption"]}
    task = task_named(
        model, cell["task"], model_name=str(cell["model"]), n=wanted.get("n"), seed=int(cell["seed"]), **more
    )
    asked = {key: value for key, value in wanted.items() if key != "n"}
    asked["prompts"] = "auto" if wanted.get("n") is None else "all"
    begun = (folder / "steps" / "plan.json").exists()
    return report(
        model, task=task, out=folder, name=str(cell["model"]), seed=int(cell["seed"]), resume=begun, say=say, **asked
    )


def _finished(found: Outcomes) -> Experiment:
    """The rows of all cells in one table, and the table of stability."""
    folder, left_out, failed = found.folder, found.lines(found.left_out), found.lines(found.failed)
    cells = [dict(cell) for cell in found.cells if cell["name"] not in {**found.left_out, **found.failed}]
    if not cells:
        wrong = CheckFailed if failed else InterpError
        raise wrong(f"no cell of the grid could be run: {'; '.join((*failed, *left_out))}")
    frames = [
        read_rows(folder / cell["name"]).assign(seed=int(cell["seed"]), corruption=str(cell["corruption"] or ""))
        for cell in cells
    ]
    write_rows(joined(frames), folder)
    stability = _stability(folder, cells, int(dict(found.grid.get("report") or {}).get("top", 8)))
    table = stability.to_csv(index=False, lineterminator="\n")
    renamed(folder / "stability.csv", table.encode())
    return Experiment(folder, tuple(cells), tuple(left_out), stability, tuple(failed))


def _stability(folder: Path, cells: list[dict[str, Any]], k: int) -> Any:
    import pandas

    rows = []
    for a, b in combinations(cells, 2):
        if (a["model"], a["task"]) == (b["model"], b["task"]):
            found = difference(folder / a["name"], folder / b["name"], k=k).methods
            chosen = found[(found["method"] == PRIMARY[0]) & (found["direction"] == PRIMARY[1])]
            row = (chosen if len(chosen) else found).iloc[0]
            rows.append({"model": a["model"], "task": a["task"] or "its own", "a": _tag(a), "b": _tag(b),
                         "method": row["method"], "spearman": row["spearman"], "k": row["k"],
                         "overlap": row["overlap"], "moved": row["moved"]})  # fmt: skip
    columns = ["model", "task", "a", "b", "method", "spearman", "k", "overlap", "moved"]
    return pandas.DataFrame(rows, columns=columns)


def _tag(cell: Mapping[str, Any]) -> str:
    return f"seed {cell['seed']}" + (f", {cell['corruption']}" if cell["corruption"] else "")
