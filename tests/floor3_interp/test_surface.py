"""The public surface: what `interp` says it has is there, is described in README, and prints what it is."""

from __future__ import annotations

import dataclasses
import inspect
import re

import pytest
from house import ROOT

import interp

README, OVERVIEW, PROMISES = (
    (ROOT / name).read_text() for name in ("README.md", "docs/overview.md", "docs/promises.md")
)
DEPRECATIONS = (ROOT / "docs" / "deprecations.md").read_text()
REFERENCE = "\n".join(page.read_text() for page in (ROOT / "docs" / "reference").glob("*.md"))


ROOMS = [name for name in interp.__all__ if inspect.ismodule(getattr(interp, name))]
IN_ROOMS = [(room, name) for room in ROOMS for name in getattr(interp, room).__all__]


@pytest.mark.parametrize("name", interp.__all__)
def test_every_public_name_loads_says_what_it_is_and_stands_in_the_readme(name: str) -> None:
    thing = getattr(interp, name)
    assert inspect.getdoc(thing)
    assert re.search(rf"\b{name}\b", README), f"README does not mention {name}"
    assert re.search(rf"\b{name}\b", OVERVIEW), f"docs/overview.md does not mention {name}"


@pytest.mark.parametrize(("room", "name"), IN_ROOMS, ids=[f"{room}.{name}" for room, name in IN_ROOMS])
def test_every_name_of_a_room_loads_and_says_what_it_is(room: str, name: str) -> None:
    thing = getattr(getattr(interp, room), name)
    assert inspect.getdoc(thing)
    assert not inspect.ismodule(thing), f"{room}.{name} is the file, not the call"
    assert f"## `interp.{name}`" in REFERENCE or f"## `interp.{room}.{name}`" in REFERENCE, "run python docs/build.py"


@pytest.mark.parametrize("name", interp._MOVED)
def test_a_name_that_moved_says_where_it_is(name: str) -> None:
    with pytest.raises(AttributeError) as told:
        getattr(interp, name)
    where = re.search(r"is interp\.(\w+)\.(\w+) now", str(told.value))
    assert where
    assert getattr(getattr(interp, where[1]), where[2])
    assert "since version 0.2" in str(told.value)
    assert "until version 1.0" in str(told.value)
    row = re.search(rf"^\|.*`{name}`.*\| `interp\.(\w+)` \|$", DEPRECATIONS, re.MULTILINE)
    assert row, f"docs/deprecations.md does not say where {name} is"
    assert row[1] == where[1]


def test_about_forty_names_stand_at_the_root() -> None:
    assert len(interp.__all__) - len(ROOMS) <= 40


def test_a_name_that_is_not_there_is_answered_with_those_that_are() -> None:
    with pytest.raises(AttributeError, match="attach"):
        interp.ablate_everything  # noqa: B018


def test_dir_is_the_public_list() -> None:
    assert dir(interp) == interp.__all__


@pytest.mark.parametrize("method", [m for m in dir(interp.Model) if not m.startswith("_")])
def test_every_public_method_of_a_model_says_what_it_does(method: str) -> None:
    assert inspect.getdoc(getattr(interp.Model, method))


EDITS = {
    "Set": {"value": 0.0}, "Scale": {"factor": 2.0}, "Mean": {}, "Add": {"vector": 1.0},
    "Project": {"basis": [1.0, 0.0]}, "Apply": {"function": abs}, "Program": {"program": abs},
    "MaskKeys": {}, "Temperature": {"value": 2.0}, "BiasKeys": {"amount": 1.0}, "Emphasize": {"amount": 0.5},
    "RouteHeads": {"keep": 2}, "MixHeads": {"router": [[1.0, 0.5]] * 4},
    "Redistribute": {"target": [1]}, "Blend": {"amount": 0.5}, "Calibrate": {"keep": 0.5}, "Streaming": {"recent": 8},
}  # fmt: skip


@pytest.mark.parametrize("name", EDITS)
def test_an_edit_is_a_value(name: str) -> None:
    kind = getattr(interp.edits, name)
    one, same = (kind("L0.H1", **EDITS[name], positions=[2]) for _ in range(2))
    assert one == same
    assert hash(one) == hash(same)
    assert one != kind("L0.H1", **EDITS[name], positions=[3])
    assert "positions=[2]" in repr(one)
    with pytest.raises(dataclasses.FrozenInstanceError):
        one.site = "L0.H2"


@pytest.mark.parametrize(
    "command",
    sorted(set(re.findall(r"`python (experiments/[\w/]+\.py)`|`make test ARGS=\"(tests/[\w./]+)\"`", PROMISES))),
)
def test_every_command_of_the_promises_names_a_file_that_is_there(command: tuple[str, str]) -> None:
    assert (ROOT / "".join(command)).exists()
