"""The command line: `interp demo`, `interp doctor`, `interp zoo`. Each command's work is a function that Python can
call too.

Exit codes: 0 done, 1 a check failed, 2 the request could not be carried out (the message says what to do).
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence

DEMO = """example:
  interp demo                      # look into a model whose heads are known, and switch one off"""
DOCTOR = """examples:
  interp doctor ./my-checkpoint    # the check table of one model
  interp doctor --families         # every supported family, as tiny random models
  interp doctor --families gpt2 vit --json"""
ZOO = """examples:
  interp zoo                       # the models that ship with the toolkit
  interp zoo card planted-decoder
  interp zoo export ioi ./ioi      # a directory that plain transformers can load"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    from interp.kernels.errors import InterpError

    options = _parser().parse_args(argv)
    try:
        return int(options.run(options))
    except InterpError as refused:
        print(f"interp: {refused}", file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="interp", description="Look inside attention heads, and change what they do, in any transformer."
    )
    commands = parser.add_subparsers(metavar="command", required=True)
    demo = _command(commands, "demo", "attach a model, check it, switch a head off", DEMO)
    demo.set_defaults(run=_demo)
    doctor = _command(commands, "doctor", "hold the hook layer against what models do", DOCTOR)
    doctor.add_argument("model", nargs="?", help="a zoo name, a local directory or a hub name")
    doctor.add_argument(
        "--families", nargs="*", metavar="FAMILY", help="tiny random models of these families, or of all"
    )
    doctor.add_argument("--json", action="store_true", help="one JSON object a line")
    doctor.set_defaults(run=_doctor)
    zoo = _command(commands, "zoo", "the models that ship with the toolkit", ZOO)
    zoo.add_argument("what", nargs="?", choices=("list", "card", "path", "export"), default="list")
    zoo.add_argument("name", nargs="?")
    zoo.add_argument("directory", nargs="?")
    zoo.set_defaults(run=_zoo)
    return parser


def _command(
    commands: argparse._SubParsersAction[argparse.ArgumentParser], name: str, what: str, epilog: str
) -> argparse.ArgumentParser:
    return commands.add_parser(
        name,
        help=what,
        description=what[0].upper() + what[1:] + ".",
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def _demo(options: argparse.Namespace) -> int:
    from interp.demo import demo

    print(demo())
    return 0


def _doctor(options: argparse.Namespace) -> int:
    if (options.families is None) == (options.model is None):
        print("interp doctor: give either a model or --families", file=sys.stderr)
        return 2
    if options.model is not None:
        return _doctor_model(options.model)
    from interp.doctor import doctor

    passed = failed = 0
    for row in doctor(options.families):
        print(json.dumps(row.to_dict()) if options.json else row, flush=True)
        passed, failed = passed + row.passed, failed + (not row.passed)
    if not options.json:
        print(f"{passed} families passed, {failed} failed")
    return 1 if failed else 0


def _doctor_model(name: str) -> int:
    from interp.load import load

    model = load(name)
    report = model.check()
    print(model, report, sep="\n")
    return 0 if report.passed else 1


def _zoo(options: argparse.Namespace) -> int:
    from interp.catalog import command

    print(command(options.what, options.name, options.directory))
    return 0


if __name__ == "__main__":
    sys.exit(main())
