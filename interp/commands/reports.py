"""`interp report`, `interp run`, `interp diff`, `interp merge`, `interp status`: one report, a grid of them, what
changed between two, one result of several shards, and how far a directory is."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from interp.commands import options as common
from interp.commands import places
from interp.configs import ConfigError

REPORT = """examples:
  interp report zoo:ioi --out runs/ioi                    # the task it was made for
  interp report ./my-checkpoint --task ioi -n 64 --out runs/mine
  interp report ./my-checkpoint --task ioi --budget 10min --out runs/short
  interp report zoo:ioi --out runs/ioi --resume           # goes on after a kill, ends with the same bytes"""
RUN = """example:
  interp run experiment.yaml --out runs/grid

experiment.yaml:
  models: [zoo:ioi, ./my-checkpoint]
  tasks: [ioi]
  seeds: [0, 1, 2]
  corruptions: [flip, names]
  report: {n: 32, top: 8}"""
DIFF = """example:
  interp diff runs/before runs/after                      # heads whose effect moved, and how far the ranks agree
  interp diff runs/before runs/after --out changed.html   # the same as a page"""

MERGE = """examples:
  interp patch zoo:ioi --shard 0/2 --out runs/s0          # two parts, wherever there is time
  interp patch zoo:ioi --shard 1/2 --out runs/s1
  interp merge runs/s0 runs/s1 --out runs/ioi             # what one run would have written"""
STATUS = """examples:
  interp status runs/ioi                                  # done, missing and failed cells, expected time
  interp status runs/s0 runs/s1 --json"""


def add(commands: common.Commands) -> None:
    """The five commands."""
    report = common.command(
        commands, "report", "everything about a model's heads on a task, in one directory", REPORT, run_report
    )
    common.about_model(report)
    common.about_task(report)
    _about_report(report)
    run = common.command(commands, "run", "reports over a grid of models, tasks, seeds and corruptions", RUN, run_grid)
    run.add_argument("file", nargs="?", help="the experiment, YAML or JSON")
    places.about_out(run, "directory of the grid")
    common.about_shard(run)
    run.add_argument("--offline", action="store_true", help="never ask the hub")
    run.add_argument("--device", help="where to run, such as cuda")
    run.add_argument("--dtype", choices=common.DTYPES, default="auto", help="what to compute in")
    diff = common.command(commands, "diff", "what changed between two reports", DIFF, run_diff)
    diff.add_argument("a", help="directory of a report")
    diff.add_argument("b", help="directory of another")
    places.about_out(diff, "write it as a page too, such as runs/changed.html", ends=())
    diff.add_argument("--top", type=common.count, default=10, help="heads to compare at the top, and rows to print")
    merge = common.command(commands, "merge", "one result of all the shards of a call", MERGE, run_merge)
    merge.add_argument("shards", nargs="*", help="the directories of all shards")
    places.about_out(merge, "a new directory for the result")
    status = common.command(commands, "status", "how far directories are", STATUS, run_status)
    status.add_argument("folders", nargs="*", help="directories that a command or a call writes to")


def _about_report(parser: argparse.ArgumentParser) -> None:
    places.about_out(parser, "directory of the report")
    parser.add_argument("--resume", action="store_true", help="continue the report in DIR")
    parser.add_argument("--overwrite", action="store_true", help="replace the report in DIR")
    parser.add_argument("--exact", choices=("auto", "yes", "no"), default="auto", help="patch every head exactly")
    parser.add_argument("--top", type=common.count, default=8, help="heads with a card")
    parser.add_argument("--examples", type=common.count, default=2, help="prompts whose patterns are shown")
    parser.add_argument(
        "--draws", type=common.count, default=20, help="sets of random heads to compare with the heads found"
    )
    parser.add_argument("--random", type=common.count, default=100, help="random circuits to compare with the circuit")
    parser.add_argument(
        "--budget", metavar="N", help="forward passes of its prompts that it may take, or minutes such as 10min"
    )
    parser.add_argument("--no-circuit", action="store_true", help="leave the circuit out")


def run_report(options: argparse.Namespace) -> int:
    """One report."""
    from interp.commands.opening import model_of, size_of, task_of
    from interp.reporting.report import report
    from interp.reporting.steps.budget import PASSES

    common.needed(options, "model", "out")
    _free(options)
    model = model_of(options)
    exact: Any = {"auto": "auto", "yes": True, "no": False}[options.exact]
    task = task_of(model, options, PASSES)
    made = report(
        model, task=task, out=options.out, seed=options.seed, exact=exact,
        top=options.top, examples=options.examples, draws=options.draws, random=options.random,
        circuit=not options.no_circuit, budget=options.budget, prompts="auto" if options.n is None else "all",
        resume=options.resume, overwrite=options.overwrite, say=common.say,
    )  # fmt: skip
    rows = made.top(options.top)[["site", "estimate", "low", "high", "exact", "label"]]
    text = f"{common.shown(rows)}\n" + "".join(f"note: {line}\n" for line in made.warnings)
    whole = size_of(made.folder)
    common.answer(
        options, f"{text}{made!r}\nwrote {made.folder} ({whole / 1e6:.2f} MB)", finding=made.finding,
        warnings=made.warnings, rows=common.records(rows), out=str(made.folder), page=str(made.page), bytes=whole,
    )  # fmt: skip
    return 0


def _free(options: argparse.Namespace) -> None:
    """Refuse a report's directory before the model is loaded, where nobody said what is to become of that report."""
    if (Path(options.out) / "steps" / "plan.json").exists() and not (options.resume or options.overwrite):
        raise ConfigError(
            f"{options.out} already holds a report: continue it (--resume), replace it (--overwrite) or give another"
            " directory."
        )


def run_grid(options: argparse.Namespace) -> int:
    """A grid of reports."""
    from interp.reporting.experiment import experiment

    common.needed(options, "file", "out")
    found: Any = experiment(
        options.file, out=options.out, device=options.device, dtype=options.dtype, offline=options.offline,
        say=common.say, shard=options.shard,
    )  # fmt: skip
    if options.shard is not None:
        return common.shard_done(options, found)
    text = f"{common.shown(found.stability)}\n{found!r}"
    common.answer(
        options, text, finding=found.finding, stability=common.records(found.stability), out=str(found.folder),
        left_out=found.left_out, failed=found.failed,
    )  # fmt: skip
    return 1 if found.failed else 0


def run_diff(options: argparse.Namespace) -> int:
    """Two reports compared."""
    from interp.reporting.difference import difference

    found = difference(options.a, options.b, k=options.top)
    text = f"{common.shown(found.methods)}\n\n{common.shown(found.heads.head(options.top))}\n{found!r}"
    text += "" if options.out is None else f"\n{found.save(options.out)}"
    common.answer(
        options, text, finding=repr(found), methods=common.records(found.methods), heads=common.records(found.heads)
    )
    return 0


def run_merge(options: argparse.Namespace) -> int:
    """Shards into one."""
    from interp.commands.opening import size_of
    from interp.scale import merge

    common.needed(options, "out")
    if not options.shards:
        raise ConfigError("name the directory of every shard, such as: interp merge runs/s0 runs/s1 --out runs/ioi")
    found = merge(options.shards, options.out)
    size = size_of(Path(options.out))
    text = f"{found!r}\nwrote {options.out} ({size / 1e6:.2f} MB) from {len(options.shards)} shards"
    common.answer(options, text, finding=repr(found), out=options.out, bytes=size, shards=len(options.shards))
    return 0


def run_status(options: argparse.Namespace) -> int:
    """How far; 1 where cells failed."""
    from interp.scale import status

    if not options.folders:
        raise ConfigError("name a directory, such as: interp status runs/ioi")
    found = [status(folder) for folder in options.folders]
    common.answer(options, "\n".join(map(repr, found)), directories=[one.to_dict() for one in found])
    return 1 if any(one.failed for one in found) else 0
