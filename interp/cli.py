"""The command line: `interp COMMAND`. Each command's work is a function that Python can call too.

Exit codes: 0 done, 1 a check failed, 2 the request could not be carried out (one line says what to do), 130 stopped by
Ctrl-C. `--debug` shows the traceback behind the line. Nothing heavy is imported before a command runs.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from interp.commands import bench, completion, looking, options, patching, places, pruning, reports, shop
from interp.kernels.errors import InterpError

GROUPS = (shop, reports, patching, looking, pruning, bench, completion)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    debug = "--debug" in (sys.argv[1:] if argv is None else argv)
    try:
        chosen = options.parsed(build(), argv)
        places.checked(chosen)
        options.go_offline(chosen)
        options.loading(chosen)
        return int(chosen.run(chosen))
    except InterpError as refused:
        if debug:
            raise
        return _refused(str(refused))
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as why:
        if debug:
            raise
        return _refused(f"{why.filename or 'a file'}: {why.strerror or why}")
    except KeyboardInterrupt:
        print("\ninterp: stopped. Finished work is kept; `interp report --resume` continues.", file=sys.stderr)
        return 130


def _refused(why: str) -> int:
    print(f"interp: {' '.join(why.split())}", file=sys.stderr)
    return 2


def build() -> argparse.ArgumentParser:
    """The parser of all commands."""
    from interp import __version__

    parser = argparse.ArgumentParser(
        prog="interp",
        description="Look inside attention heads, and change what they do, in any transformer.",
        epilog="example:\n  interp demo",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"interp {__version__}")
    parser.set_defaults(whole=parser)
    commands = parser.add_subparsers(metavar="command", required=True)
    for group in GROUPS:
        group.add(commands)
    return parser


if __name__ == "__main__":
    sys.exit(main())
