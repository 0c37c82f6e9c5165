"""`interp completion bash`: what a shell needs to complete commands and options, made from the parser itself.

One table, `words`, and a function a shell that writes it down in its language. Limits: values of options are completed
as files, whatever they are.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable
from typing import Any

from interp.commands import options as common

EXAMPLE = """examples:
  eval "$(interp completion bash)"                        # for this shell
  interp completion zsh > ~/.zfunc/_interp
  interp completion fish > ~/.config/fish/completions/interp.fish
  interp completion powershell | Out-String | Invoke-Expression"""


def add(commands: common.Commands) -> None:
    """The command."""
    parser = common.command(
        commands, "completion", "a script that completes commands and options in a shell", EXAMPLE, run
    )
    parser.add_argument("shell", choices=tuple(SHELLS))


def run(options: argparse.Namespace) -> int:
    """Prints the script."""
    script = SHELLS[options.shell](words(options.whole))
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


def fish(known: dict[str, list[str]]) -> str:
    """For fish: commands first, then each command's long options (`-l`, without the dashes) and first words."""
    lines = [f"complete -c interp -f -n __fish_use_subcommand -a '{' '.join(known)}'"]
    for name, options in known.items():
        lines += [f"complete -c interp -n '__fish_seen_subcommand_from {name}' {_fish(option)}" for option in options]
    return "\n".join(lines) + "\n"


def _fish(option: str) -> str:
    return f"-l {option.removeprefix('--')}" if option.startswith("--") else f"-a {option}"


def powershell(known: dict[str, list[str]]) -> str:
    """For PowerShell: the word after `interp` is a command; where nothing of ours fits, it completes files itself."""
    rows = "\n".join(f"    '{name}' = @({_quoted(options)})" for name, options in known.items())
    return f"""Register-ArgumentCompleter -Native -CommandName interp -ScriptBlock {{
  param($wordToComplete, $commandAst, $cursorPosition)
  $commands = @({_quoted(known)})
  $options = @{{
{rows}
  }}
  $said = @($commandAst.CommandElements | ForEach-Object {{ $_.ToString() }})
  $words = $commands
  if ($said.Count -gt 2 -or ($said.Count -eq 2 -and $wordToComplete -eq '')) {{
    $words = @($options[$said[1]] | Where-Object {{ $_ }})
  }}
  $words | Where-Object {{ $_ -like "$wordToComplete*" }} | ForEach-Object {{
    [System.Management.Automation.CompletionResult]::new($_, $_, 'ParameterValue', $_)
  }}
}}
"""


def _quoted(words: Iterable[str]) -> str:
    return ", ".join(f"'{word}'" for word in words)


SHELLS: dict[str, Callable[[dict[str, list[str]]], str]] = {
    "bash": bash, "zsh": zsh, "fish": fish, "powershell": powershell,
}  # fmt: skip
"""Who writes the table down for which shell."""
