"""`interp completion bash`: what a shell needs to complete commands and options, made from the parser itself."""

from __future__ import annotations

import argparse
from typing import Any

from interp.commands import options as common

EXAMPLE = """examples:
  eval "$(interp completion bash)"                        # for this shell
  interp completion zsh > ~/.zfunc/_interp"""


def add(commands: common.Commands) -> None:
    """The command."""
    parser = common.command(
        commands, "completion", "a script that completes commands and options in a shell", EXAMPLE, run
    )
    parser.add_argument("shell", choices=("bash", "zsh"))


def run(options: argparse.Namespace) -> int:
    """Prints the script."""
    script = {"bash": bash, "zsh": zsh}[options.shell](words(options.whole))
    common.answer(options, script.rstrip("\n"), script=script)
    return 0


def words(parser: argparse.ArgumentParser) -> dict[str, list[str]]:
    """By command, its long options and what its first word may be."""
    found: dict[str, list[str]] = {}
    for action in parser._actions:
        choices: Any = action.choices
        for name, one in choices.items() if isinstance(choices, dict) else ():
            flags = [flag for a in one._actions for flag in a.option_strings if flag.startswith("--")]
            firsts = [str(c) for a in one._actions if not a.option_strings for c in (a.choices or ())]
            found[name] = sorted(flags) + firsts
    return found


def bash(known: dict[str, list[str]]) -> str:
    """For bash."""
    cases = "\n".join(f'    {name}) words="{" ".join(options)}" ;;' for name, options in known.items())
    return f"""_interp() {{
  local current="${{COMP_WORDS[COMP_CWORD]}}" words="{" ".join(known)}"
  [ "$COMP_CWORD" -gt 1 ] && case "${{COMP_WORDS[1]}}" in
{cases}
  esac
  COMPREPLY=($(compgen -W "$words" -- "$current"))
}}
complete -o default -F _interp interp
"""


def zsh(known: dict[str, list[str]]) -> str:
    """For zsh."""
    cases = "\n".join(f"    {name}) compadd -- {' '.join(options)}; _files ;;" for name, options in known.items())
    return f"""#compdef interp
_interp() {{
  if (( CURRENT == 2 )); then compadd -- {" ".join(known)}; return; fi
  case "$words[2]" in
{cases}
  esac
}}
compdef _interp interp
"""
