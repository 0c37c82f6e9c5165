"""The rooms of the house: the map in CONTRIBUTING.md holds, imports go down it, and nothing goes in circles."""

from __future__ import annotations

import ast
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from house import ROOT, imports, sources

MOST_FILES = 12
FLOORS = ("kernels", "hooks", "interp")


def modules() -> dict[str, ast.Module]:
    """Every file of the three floors by its dotted name, `interp.hooks.sites`; rooms go by the name of the folder."""
    found = {}
    for file, tree in sources(*FLOORS).items():
        parts = file.with_suffix("").parts
        named = parts if parts[0] == "interp" else ("interp", *parts)
        found[".".join(named[:-1] if named[-1] == "__init__" else named)] = tree
    return found


def needs(known: Mapping[str, ast.Module]) -> dict[str, set[str]]:
    """Which files of ours each file imports, wherever in it the import stands."""
    return {
        name: {wanted for full in imports(tree) for wanted in _meant(full, known)} - {name, "interp"}
        for name, tree in known.items()
        if name != "interp"
    }


def _meant(full: str, known: Mapping[str, ast.Module]) -> Iterator[str]:
    """`from interp.patching.cells import Cell` names a file's content, `from interp.patching import cells` the file."""
    if full in known:
        yield full
    elif (parent := full.rpartition(".")[0]) in known:
        yield parent


def circles(graph: Mapping[str, set[str]]) -> list[set[str]]:
    """Files that reach each other."""
    reach: dict[str, set[str]] = {}
    for start in graph:
        seen, waiting = set[str](), [start]
        while waiting:
            for wanted in graph.get(waiting.pop(), ()):
                if wanted not in seen:
                    seen.add(wanted)
                    waiting.append(wanted)
        reach[start] = seen
    return [{a, b} for a in graph for b in graph if a < b and b in reach[a] and a in reach[b]]


def test_a_circle_is_found() -> None:
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": {"a"}}) == [{"b", "c"}]


def test_no_file_imports_itself_by_way_of_others() -> None:
    """Imports inside functions and under TYPE_CHECKING count."""
    assert not circles(needs(modules()))


def the_map() -> list[str]:
    """Rooms of the map in CONTRIBUTING.md, from the ground up."""
    text = (ROOT / "CONTRIBUTING.md").read_text("utf-8")
    drawn = re.search(r"^```text map\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    assert drawn, "CONTRIBUTING.md has no block ```text map"
    rooms: list[str] = []
    for line in drawn[1].splitlines():
        names = line.partition("  ")[0].strip()
        rooms += [f"interp.{name.strip('/').replace('/', '.')}" for name in names.split(" · ") if names]
    rooms.reverse()
    return [name.replace("interp.interp", "interp", 1) for name in rooms]


def room(name: str, known: Mapping[str, ast.Module]) -> str:
    """Where a file lies; a file at the top of a floor is a room of its own."""
    if any(other.startswith(f"{name}.") for other in known):
        return name
    parent = name.rpartition(".")[0]
    return name if parent in {"interp", "interp.hooks", "interp.kernels"} else parent


def climbs(graph: Mapping[str, set[str]], order: list[str], known: Mapping[str, ast.Module]) -> list[str]:
    """Imports from a room to one above it."""
    rank = {name: i for i, name in enumerate(order)}
    return [
        f"{name} imports {wanted}"
        for name, all_wanted in graph.items()
        for wanted in all_wanted
        if rank[room(wanted, known)] > rank[room(name, known)]
    ]


def test_a_climb_is_found() -> None:
    known = {name: ast.parse("") for name in ("interp.a", "interp.a.x", "interp.b", "interp.b.y")}
    graph = {"interp.a.x": {"interp.b.y"}, "interp.b.y": {"interp.a.x"}}
    assert climbs(graph, ["interp.a", "interp.b"], known) == ["interp.a.x imports interp.b.y"]


def test_the_map_names_every_room_once() -> None:
    known = modules()
    there = {room(name, known) for name in known} - {"interp"}
    drawn = Counter(the_map())
    assert not [name for name, times in drawn.items() if times > 1]
    assert set(drawn) == there


def test_imports_go_down_the_map() -> None:
    known = modules()
    assert not climbs(needs(known), the_map(), known)


def test_a_room_has_at_most_a_dozen_files_and_says_what_it_is() -> None:
    known, files = modules(), defaultdict(list)
    for name in known:
        if room(name, known) != name:
            files[room(name, known)].append(name)
    assert not {place: len(names) for place, names in files.items() if len(names) > MOST_FILES}
    assert not [place for place in files if not ast.get_docstring(known[place])]


@pytest.mark.parametrize("floor", FLOORS)
def test_one_word_has_one_meaning(floor: str) -> None:
    """No two classes of a floor share a name, private ones and those inside functions left out."""
    homes = defaultdict(set)
    for file, tree in sources(floor).items():
        for node in tree.body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                homes[node.name].add(str(file))
    twice = {name: sorted(files) for name, files in homes.items() if len(files) > 1}
    assert not twice


def test_no_two_files_of_the_ground_floor_share_a_name() -> None:
    names = Counter(file.name for file in sources("kernels") if file.name != "__init__.py")
    assert len(names) > 25
    assert max(names.values()) == 1, names


@pytest.mark.parametrize("path", sorted(str(f) for f in sources("tests") if f.name.startswith("test_")))
def test_a_test_lies_in_the_room_of_what_it_tests(path: str) -> None:
    """`tests/floor2_hooks/drive/...` beside `hooks/drive/`; files at the top of a floor are tested at its top."""
    place = Path(path).parent.relative_to("tests")
    floors = {"floor1_kernels": "kernels", "floor2_hooks": "hooks", "floor3_interp": "interp"}
    if place.parts[0] in floors:
        assert (ROOT / floors[place.parts[0]] / Path(*place.parts[1:])).is_dir()
    else:
        assert place.parts[0] in {"floor4_studies", "repository", "devices", "processes"}
