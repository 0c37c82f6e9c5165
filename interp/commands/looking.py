"""`interp heads`, `interp sinks` and `interp retrieval`: how heads attend, whatever the task."""

from __future__ import annotations

import argparse
from typing import Any

from interp.commands import options as common
from interp.commands import places

HEADS = """examples:
  interp heads zoo:induction                              # what kind of head each is
  interp heads zoo:ioi --kinds induction "previous token" --top 5
  interp heads ./my-checkpoint --file prompts.txt --out runs/heads.csv"""
SINKS = """examples:
  interp sinks zoo:ioi                                    # where heads rest
  interp sinks ./my-checkpoint --text "The quick brown fox jumps over the lazy dog" --by share"""
RETRIEVAL = """examples:
  interp retrieval zoo:needle                             # heads that copy the answer out of a long text
  interp retrieval ./my-checkpoint --lengths 1000 4000 --depths 0 0.5 1 --out runs/scores.json"""

ROLES = 4
"""Passes that kinds of heads take."""


def add(commands: common.Commands) -> None:
    """The three commands."""
    heads = common.command(
        commands, "heads", "what kind of head each is, by the published definitions", HEADS, run_heads
    )
    sinks = common.command(commands, "sinks", "how much heads rest on the first token and others", SINKS, run_sinks)
    retrieval = common.command(
        commands, "retrieval", "heads that look at what they are about to copy", RETRIEVAL, run_retrieval
    )
    for parser in (heads, sinks):
        common.about_model(parser)
        common.about_task(parser)
        parser.add_argument("--text", action="append", help="a prompt; may be given several times")
        parser.add_argument("--file", help="prompts, one a line")
        parser.add_argument("--heads", default="L*", dest="pattern", help="which heads, such as 'vision.L*'")
    heads.add_argument("--kinds", nargs="+", help="some kinds by name")
    sinks.add_argument("--by", default="estimate", help="the column heads are ranked by")
    common.about_model(retrieval)
    retrieval.add_argument("-n", type=common.count, default=None, help="needles")
    retrieval.add_argument("--lengths", type=common.count, nargs="+", help="lengths of the text, in tokens")
    retrieval.add_argument("--depths", type=float, nargs="+", help="depth of the needle in the text, 0 to 1")
    common.choice(retrieval, "--mode", "interp.retrieval_heads", room="long", default="event")
    common.about_shard(retrieval)
    for parser in (heads, sinks, retrieval):
        parser.add_argument("--top", type=common.count, default=10, help="rows to print")
        places.about_out(parser, "write all rows here: .csv, .parquet or .json", ends=places.TABLES)


def run_heads(options: argparse.Namespace) -> int:
    """Kinds of heads."""
    from interp.commands.opening import counted, model_of, prompts_of
    from interp.heads.head_roles import head_roles

    model = model_of(options)
    x = prompts_of(model, options, ROLES) if _has_prompts(options) else None
    common.say(_cost(model, x if x is not None else model.example(), ROLES))
    with counted(model, ROLES, "heads"):
        found = head_roles(model, x, kinds=options.kinds, heads=options.pattern, seed=options.seed)
    _told(options, found, found.to_frame(), repr(found))
    return 0


def _has_prompts(options: argparse.Namespace) -> bool:
    return bool(options.text or options.file or options.task)


def run_sinks(options: argparse.Namespace) -> int:
    """Attention sinks."""
    from interp.commands.opening import counted, model_of, prompts_of
    from interp.sink.sinks import sinks

    model = model_of(options)
    x = prompts_of(model, options, 2)
    common.say(_cost(model, x, 2))
    with counted(model, 1, "sinks"):
        found = sinks(model, x, heads=options.pattern, activations=False)
    _told(options, found, found.to_frame(), repr(found), top=found.top(options.top, by=options.by))
    return 0


def run_retrieval(options: argparse.Namespace) -> int:
    """Retrieval heads."""
    from interp.commands.opening import announced, counted, model_of
    from interp.long.retrieval_heads import retrieval_heads
    from interp.tasks import needle

    model = model_of(options)
    asked = {name: getattr(options, name) for name in ("n", "lengths", "depths") if getattr(options, name) is not None}
    announced(model, lambda n: needle(model, whole=True, seed=options.seed, **{**asked, "n": n}), options.n, 1)
    task = needle(model, whole=True, seed=options.seed, **asked)
    common.say(_cost(model, task.clean, 1))
    with counted(model, None, "retrieval"):
        into = {} if options.shard is None else {"out": options.out, "shard": options.shard}
        found: Any = retrieval_heads(model, task, mode=options.mode, **into)
    if options.shard is not None:
        return common.shard_done(options, found)
    _told(options, found, found.to_frame(), repr(found))
    return 0


def _cost(model: Any, inputs: Any, forwards: int) -> str:
    from interp.cost import cost

    return str(cost(model, inputs, forwards))


def _told(options: argparse.Namespace, found: Any, frame: Any, finding: str, *, top: Any = None) -> None:
    rows = found.top(options.top) if top is None else top
    written = {} if options.out is None else places.write_table(frame, options.out)
    line = f"\nwrote {written['out']} ({written['bytes'] / 1e3:.0f} kB)" if written else ""
    common.answer(
        options, f"{common.shown(rows)}\n{finding}{line}", finding=finding, rows=common.records(rows), **written
    )
