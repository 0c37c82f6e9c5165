"""`interp demo`, `interp zoo`, `interp doctor`: the first look, the shipped models, and what holds here."""

from __future__ import annotations

import argparse
import json
import sys

from interp.commands import options as common
from interp.commands import places
from interp.configs import ConfigError

DEMO = """example:
  interp demo                      # planted heads against recovered ones, and the report of a trained model"""
DOCTOR = """examples:
  interp doctor ./my-checkpoint    # the check table of one model
  interp doctor --families         # every supported family, as tiny random models
  interp doctor --families gpt2 vit --json
  interp doctor --all              # every model type of the installed transformers, tiny
  interp doctor --all clip git --json"""
ZOO = """examples:
  interp zoo                       # the models that ship with the toolkit
  interp zoo card planted-decoder
  interp zoo export ioi ./ioi      # a directory that plain transformers can load"""


def add(commands: common.Commands) -> None:
    """The three commands."""
    demo = common.command(
        commands, "demo", "find heads that were planted, and report on a trained model", DEMO, run_demo
    )
    places.about_out(demo, "directory of the report (default: runs/demo)", default="runs/demo")
    doctor = common.command(commands, "doctor", "check the hook layer on a model", DOCTOR, run_doctor)
    common.about_model(doctor)
    doctor.add_argument(
        "--families", nargs="*", metavar="FAMILY", help="tiny random models of these families, or of all"
    )
    doctor.add_argument("--all", nargs="*", metavar="TYPE", help="every model type of transformers, or these, tiny")
    doctor.add_argument("--denoisers", nargs="*", metavar="CLASS", help="denoisers of diffusers, or these, tiny")
    zoo = common.command(commands, "zoo", "the models that ship with the toolkit", ZOO, run_zoo)
    zoo.add_argument("what", nargs="?", choices=("list", "card", "path", "export"), default="list")
    zoo.add_argument("name", nargs="?")
    zoo.add_argument("directory", nargs="?")


def run_demo(options: argparse.Namespace) -> int:
    """The demo."""
    from interp.commands.demo import demo

    found = demo(options.out, say=common.say)
    common.answer(
        options, found.text, recovered=found.recovered, finding=found.report.finding, page=str(found.report.page)
    )
    return 0 if found.recovered else 1


def run_doctor(options: argparse.Namespace) -> int:
    """Check tables."""
    asked = (options.families, options.model, options.all, options.denoisers)
    if sum(one is not None for one in asked) != 1:
        raise ConfigError("give one of a model, --families, --all and --denoisers.")
    if options.all is not None or options.denoisers is not None:
        return _every(options)
    return _one(options) if options.model is not None else _families(options)


def _every(options: argparse.Namespace) -> int:
    from interp.commands.verdicts import sums, survey, survey_denoisers, totals

    rows = []
    for row in survey(options.all) if options.all is not None else survey_denoisers(options.denoisers):
        rows.append(row)
        print(json.dumps(row.to_dict()) if options.json else row, flush=True)
    print(json.dumps(sums(rows)) if options.json else totals(rows))
    return 1 if any(row.verdict in ("fails", "wrong", "crash") for row in rows) else 0


def _families(options: argparse.Namespace) -> int:
    from interp.zoo.doctor import doctor

    passed = failed = 0
    for row in doctor(options.families):
        print(json.dumps(row.to_dict()) if options.json else row, flush=True)
        passed, failed = passed + row.passed, failed + (not row.passed)
    if not options.json:
        print(f"{passed} families passed, {failed} failed")
    return 1 if failed else 0


def _one(options: argparse.Namespace) -> int:
    from interp.commands.opening import model_of

    model = model_of(options)
    report = model.check()
    lines = [{"name": line.name, "verdict": line.verdict, "note": line.note} for line in report.lines]
    common.answer(options, f"{model!r}\n{report}", passed=report.passed, checks=lines, python=sys.version.split()[0])
    return 0 if report.passed else 1


def run_zoo(options: argparse.Namespace) -> int:
    """What there is, a card, a path, or a copy."""
    from interp.zoo.catalog import command, entries

    text = command(options.what, options.name, options.directory)
    more = {"models": [one.name for one in entries()]} if options.what == "list" else {"text": text}
    common.answer(options, text, **more)
    return 0
