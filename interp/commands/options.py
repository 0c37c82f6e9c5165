"""What commands have in common: their options, a config file under the flags, and how they print. Imports no torch."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterator
from importlib import import_module
from typing import Any, get_args

from interp.configs import ConfigError, read_config
from interp.hooks.sites import nearest
from interp.records import Choices

Commands = argparse._SubParsersAction
Run = Callable[[argparse.Namespace], int]
DTYPES = ("auto", "float64", "float32", "bfloat16", "float16")
OFFLINE = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}


def command(commands: Any, name: str, what: str, example: str, run: Run) -> argparse.ArgumentParser:
    """A command with the options that all have."""
    parser: argparse.ArgumentParser = commands.add_parser(
        name, help=what, description=what[0].upper() + what[1:] + ".", epilog=example,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.set_defaults(run=run, parser=parser)
    parser.add_argument("--config", metavar="FILE", help="YAML or JSON with options of this command; flags override it")
    parser.add_argument("--json", action="store_true", help="print one JSON object a line, everything else on stderr")
    parser.add_argument("--debug", action="store_true", help="show the whole traceback of an error")
    return parser


def about_model(parser: argparse.ArgumentParser) -> None:
    """The model, where it runs, and the seed."""
    parser.add_argument("model", nargs="?", help="a zoo name (zoo:ioi), a local directory or a hub name")
    parser.add_argument("--offline", action="store_true", help="never ask the hub")
    parser.add_argument("--device", help="where to run, such as cuda")
    parser.add_argument("--dtype", choices=DTYPES, default="auto", help="what to compute in")
    parser.add_argument("--seed", type=int, default=0, help="of tasks, samples and random baselines")


def about_task(parser: argparse.ArgumentParser) -> None:
    """The prompts, as a task."""
    parser.add_argument("--task", help="a task such as ioi, a .jsonl file of rows, or a probe of a planted model")
    parser.add_argument("-n", type=count, dest="n", help="how many prompts")
    parser.add_argument("--corruption", help="how the corrupt prompts differ, where the task has a choice")


def about_shard(parser: argparse.ArgumentParser) -> None:
    """The option `--shard`."""
    what = "compute part I of N (counted from 0) and write it to --out, its own directory; see interp merge"
    parser.add_argument("--shard", metavar="I/N", type=part, help=what)


class Words:
    """The words that a call takes, read where it has them ("interp.pruning.pruned:How") when they are needed."""

    def __init__(self, home: str) -> None:
        self.home = home

    def __iter__(self) -> Iterator[str]:
        module, _, name = self.home.partition(":")
        found = getattr(import_module(module), name)
        return iter(found if isinstance(found, tuple) else get_args(found))

    def __contains__(self, word: object) -> bool:
        return word in tuple(self)


def choice(parser: argparse.ArgumentParser, flag: str, call: str, *, room: str, **how: Any) -> None:
    """One of the choices that a call's records name; they are read when the option is used or its help is shown."""
    shown = flag.strip("-").upper()
    parser.add_argument(flag, choices=Choices(call, room=room), metavar=shown, help="one of: %(choices)s", **how)


def count(text: str) -> int:
    """A whole number of at least 1."""
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a number of at least 1, got {text!r}")
    return int(text)


def part(text: str) -> str:
    """Part I of N, as "0/4"."""
    index, slash, of = text.partition("/")
    if not (slash and index.isdigit() and of.isdigit() and int(index) < int(of)):
        raise argparse.ArgumentTypeError(f"expected I/N counted from 0, such as 0/4 to 3/4, got {text!r}")
    return text


def parsed(parser: argparse.ArgumentParser, argv: Any) -> argparse.Namespace:
    """The options: defaults, then the config file's, then the flags."""
    options = _read(parser, argv)
    if getattr(options, "config", None) is None:
        return options
    given = {name.replace("-", "_"): value for name, value in read_config(options.config).items()}
    actions = dict(_named(options.parser))
    for name, value in given.items():
        if name not in actions:
            raise ConfigError(f"{options.config}: no option {name!r}; there are {', '.join(sorted(actions))}.")
        allowed = actions[name].choices
        if allowed is not None and value not in allowed:
            raise ConfigError(f"{options.config}: {name} is one of {', '.join(map(str, allowed))}, got {value!r}.")
        _fitting(options.config, name, value, actions[name])
    options.parser.set_defaults(**{actions[name].dest: value for name, value in given.items()})
    return parser.parse_args(argv)


def _read(parser: argparse.ArgumentParser, argv: Any) -> argparse.Namespace:
    """The options; to a command or a flag that there is not, the nearest that there is is named."""
    known: Any = next(action.choices for action in parser._actions if isinstance(action.choices, dict))
    words = list(sys.argv[1:] if argv is None else argv)
    first = words[0] if words else None
    if first is not None and not first.startswith("-") and first not in known:
        parser.error(f"no command {first!r}.{nearest(first, known)} There are {', '.join(known)}.")
    options, over = parser.parse_known_args(words)
    if over:
        flags = [flag for action in options.parser._actions for flag in action.option_strings]
        options.parser.error(f"no argument {over[0]!r} here.{nearest(over[0].partition('=')[0], flags)}")
    return options


def _named(parser: argparse.ArgumentParser) -> Iterator[tuple[str, argparse.Action]]:
    """Options by the name a config file has for them: the long flag, or a positional's own."""
    for action in parser._actions:
        if action.dest not in ("help", "config"):
            yield (action.option_strings or [action.dest])[-1].lstrip("-").replace("-", "_"), action


def _fitting(file: str, name: str, value: Any, action: argparse.Action) -> None:
    """Numbers where the option is a number, yes or no where it is a flag."""
    wanted = (
        bool if action.nargs == 0 else int if action.type in (int, count) else float if action.type is float else None
    )
    right = wanted is None or (isinstance(value, wanted) and (wanted is bool or not isinstance(value, bool)))
    if not right and not (wanted is float and isinstance(value, int) and not isinstance(value, bool)):
        assert wanted is not None
        raise ConfigError(f"{file}: {name} is {wanted.__name__}, got {value!r}.")


def needed(options: argparse.Namespace, *names: str) -> None:
    """Options that are required; they may be in a config file."""
    for name in names:
        if getattr(options, name, None) is None:
            flag = name if name in ("model", "file") else f"--{name}"
            raise ConfigError(f"{flag} is missing. {_example(options)}")


def _example(options: argparse.Namespace) -> str:
    lines = [line.strip() for line in (options.parser.epilog or "").splitlines()[1:]]
    return f"Example: {lines[0].partition('  #')[0].strip()}" if lines else ""


def go_offline(options: argparse.Namespace) -> None:
    """Before transformers is imported, which reads these once."""
    if getattr(options, "offline", False):
        os.environ.update(OFFLINE)


def say(line: str) -> None:
    """Something for a person that is not the answer."""
    print(line, file=sys.stderr, flush=True)


def note(line: str) -> None:
    """Something that only somebody who waits at a terminal wants to know."""
    if sys.stderr.isatty():
        say(line)


def loading(options: argparse.Namespace) -> None:
    """Before torch is imported, which takes seconds."""
    if getattr(options, "model", None) is not None:
        note(f"loading {options.model} (torch and transformers first) ...")


def answer(options: argparse.Namespace, text: str, /, **found: Any) -> None:
    """The answer: words, or with --json an object."""
    if options.json:
        print(json.dumps({"command": options.parser.prog.partition(" ")[2], **found}, default=str), flush=True)
    else:
        print(text, flush=True)


def shard_done(options: argparse.Namespace, done: Any) -> int:
    """What a shard did."""
    answer(options, repr(done), finding=repr(done), **done.to_dict())
    return 0


def records(frame: Any) -> list[dict[str, Any]]:
    """The rows of a table as JSON has them, with null where a number is missing."""
    rows: list[dict[str, Any]] = json.loads(frame.to_json(orient="records", double_precision=12))
    return rows


def shown(frame: Any) -> str:
    """A table in a terminal, without columns that are empty."""
    kept = frame.dropna(axis=1, how="all")
    return str(kept.to_string(index=False, float_format="{:.4g}".format, na_rep="-"))
