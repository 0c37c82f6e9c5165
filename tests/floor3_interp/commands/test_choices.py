"""What the command line lets one choose is what the call behind it takes: no word more, no word less."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Iterator
from inspect import unwrap
from pathlib import Path
from typing import Any

import pytest
import torch

import interp
from interp.cli import build, main
from interp.kernels.errors import InterpError
from interp.planted.probes import probe_task
from interp.zoo.catalog import command as zoo_command

UNKNOWN = "anything else"


def options() -> Iterator[tuple[str, argparse.Action]]:
    """Every option with a list of words, as "prune --how"."""
    (commands,) = (action for action in build()._actions if isinstance(action.choices, dict))
    assert isinstance(commands.choices, dict)
    for name, parser in commands.choices.items():
        for action in parser._actions:
            if action.choices is not None:
                yield f"{name} {(action.option_strings or [action.dest])[-1]}", action


OPTIONS = dict(options())


@pytest.fixture(scope="module")
def planted() -> tuple[interp.Model, interp.Task]:
    m = interp.load("zoo:planted-decoder")
    return m, probe_task("planted-decoder", "question", model=m)


def of_prune(m: interp.Model, task: interp.Task, word: str) -> Any:
    scores = interp.patch(m, base=task.corrupt, source=task.clean, metric=task.metric, sites="L*.H*.z")
    return unwrap(interp.prune)(m, scores, keep_fraction=0.5, how=word)


def of_attribute(m: interp.Model, task: interp.Task, word: str) -> Any:
    return interp.attribute(
        m, base=task.corrupt, source=task.clean, metric=task.metric, sites="L*.H*.z", method=word, verify=0
    )


def of_retrieval(m: interp.Model, task: interp.Task, word: str) -> Any:
    """Refused for its answers, which are cut in this task, once the mode is understood."""
    try:
        unwrap(interp.retrieval_heads)(m, task, mode=word)
    except InterpError as why:
        if "whole answer" not in str(why):
            raise


CALLS: dict[str, Callable[[interp.Model, interp.Task, str], Any]] = {
    "attribute --method": of_attribute,
    "prune --how": of_prune,
    "retrieval --mode": of_retrieval,
}
"""Calls that say themselves what they take: each word of the option is taken, another is refused with all of them.
They are unwrapped, since types are checked under pytest alone."""
OWN = {
    "patch --direction": {"denoise", "noise"},
    "attribute --direction": {"denoise", "noise"},
    "report --exact": {"auto", "yes", "no"},
    "completion shell": {"bash", "zsh", "fish", "powershell"},
    "patch --engine": {"ray"},
    "zoo what": {"list", "card", "path", "export"},
}
"""Words of the command line itself."""


def test_every_list_of_words_is_held_against_something() -> None:
    dtypes = {name for name in OPTIONS if name.endswith("--dtype")}
    assert set(OPTIONS) == {*CALLS, *OWN, *dtypes}
    assert len(dtypes) >= 8


@pytest.mark.parametrize("option", sorted(CALLS))
def test_the_words_are_those_of_the_call(option: str, planted: tuple[interp.Model, interp.Task]) -> None:
    m, task = planted
    words = list(OPTIONS[option].choices or ())
    with pytest.raises(InterpError) as refused:
        CALLS[option](m, task, UNKNOWN)
    listed = re.search(r"(?:there are|is one of|is) (.*?)(?:, got .*)?\.$", str(refused.value))
    assert listed is not None
    assert {word.strip(" '") for word in re.split(r",| or ", listed[1])} == set(words)
    assert OPTIONS[option].default in words
    for word in words:
        CALLS[option](m, task, word)


@pytest.mark.parametrize("option", sorted(OWN))
def test_words_of_the_command_line(option: str) -> None:
    assert set(OPTIONS[option].choices or ()) == OWN[option]


@pytest.mark.parametrize("option", sorted(name for name in OPTIONS if name.endswith("--dtype")))
def test_dtypes_are_those_that_models_compute_in(option: str) -> None:
    computed = {str(kind).partition(".")[2] for kind in (torch.float16, torch.bfloat16, torch.float32, torch.float64)}
    assert set(OPTIONS[option].choices or ()) == {"auto", *computed}


def test_each_dtype_is_what_a_loaded_model_is_in() -> None:
    for word in OPTIONS["patch --dtype"].choices or ():
        m = interp.load("zoo:ioi", dtype=word)
        assert {p.dtype for p in m.module.parameters()} == {torch.float32 if word == "auto" else getattr(torch, word)}


def test_the_zoo_knows_each_of_its_words_and_no_other(tmp_path: Path) -> None:
    for word in OPTIONS["zoo what"].choices or ():
        assert zoo_command(word, "ioi", str(tmp_path / "ioi"))
    with pytest.raises(InterpError, match="list, card, path or export"):
        zoo_command(UNKNOWN, "ioi")


def test_every_shell_has_its_script() -> None:
    for shell in OWN["completion shell"]:
        assert main(["completion", shell]) == 0


def test_a_word_that_is_not_one_is_refused_with_those_that_are(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["retrieval", "zoo:needle", "--mode", "sets"])
    assert stopped.value.code == 2
    said = capsys.readouterr().err
    assert all(repr(word) in said for word in ("event", "set", "r2"))
