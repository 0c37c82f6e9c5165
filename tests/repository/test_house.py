"""The house rules that a file can break without any other test noticing."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path

import pytest
from areas import AREAS, areas
from house import ROOT, files, imports, sources

from interp import records

KERNELS_MAY_IMPORT = {"torch", "triton", "jaxtyping", "interp"}
EXTRAS = {
    "gguf",
    "figures",
    "lens",
    "nnsight",
    "captum",
    "timm",
    "diffusion",
    "kernels",
    "peers",
    "dist",
    "vllm",
    "docs",
    "dev",
    "notebooks",
    "all",
}
TARGETS = {"demo", "test", "device", "check", "bench", "real", "docs", "scale", "clean", "release"}


def fault(file: Path, name: str) -> str | None:
    """Why this file may not import this name; None when it may."""
    top = name.split(".")[0]
    if name.startswith("."):
        return "imports are absolute"
    if top in {"kernels", "hooks", "experiments", "tests", "notebooks"}:
        return f"nothing imports the root folder {top}/"
    if file.parts[0] == "kernels":
        if top not in KERNELS_MAY_IMPORT | sys.stdlib_module_names:
            return "kernels know torch only"
        if top == "interp" and not name.startswith("interp.kernels."):
            return "kernels are the ground floor"
    if file.parts[0] == "hooks" and top == "interp" and not name.startswith(("interp.hooks.", "interp.kernels.")):
        return "hooks stand below interp"
    return None


@pytest.mark.parametrize(
    ("file", "name", "allowed"),
    [
        ("kernels/a.py", "torch.nn.functional", True),
        ("kernels/a.py", "interp.kernels.errors.InterpError", True),
        ("kernels/a.py", "interp.hooks.sites", False),
        ("kernels/a.py", "interp.patching.patch", False),
        ("kernels/a.py", "numpy", False),
        ("hooks/a.py", "interp.kernels.attention.attend", True),
        ("hooks/a.py", "transformers", True),
        ("hooks/a.py", "interp.results.Scores", False),
        ("interp/a.py", "interp.hooks.sites.Site", True),
        ("interp/a.py", ".sites", False),
        ("interp/a.py", "hooks.sites", False),
        ("tests/a.py", "kernels.attention", False),
        ("experiments/a.py", "experiments.bench.attention", False),
    ],
)
def test_the_floor_rule_tells_right_from_wrong(file: str, name: str, allowed: bool) -> None:
    assert (fault(Path(file), name) is None) == allowed


def test_imports_go_down_the_floors_only() -> None:
    found = [(str(f), n, fault(f, n)) for f, tree in sources().items() for n in imports(tree)]
    assert not [row for row in found if row[2]]


def crossings(
    homes: Mapping[str, str], made_of: Mapping[str, Iterable[str]], files: Mapping[str, ast.Module]
) -> set[str]:
    """ "a imports b" of methods, by the files they are registered in, where a's record does not name b."""
    found = set()
    for name, home in homes.items():
        others = {other: there for other, there in homes.items() if there != home and other not in made_of[name]}
        for wanted in imports(files[home]):
            found |= {f"{name} imports {o}" for o, there in others.items() if f"{wanted}.".startswith(f"{there}.")}
    return found


def test_the_method_rule_tells_right_from_wrong() -> None:
    homes = {
        "interp.patch": "interp.patching.patch",
        "interp.sinks": "interp.sink.sinks",
        "interp.head": "interp.heads.head",
    }
    greedy = "def sinks():\n    from interp.patching.patch import patch\nimport interp.results"
    codes = {"interp.patching.patch": "", "interp.sink.sinks": greedy, "interp.heads.head": greedy}
    files = {name: ast.parse(code) for name, code in codes.items()}
    made_of = {"interp.patch": (), "interp.sinks": (), "interp.head": ("interp.patch",)}
    assert crossings(homes, made_of, files) == {"interp.sinks imports interp.patch"}


def test_a_method_imports_another_method_only_if_its_record_says_so() -> None:
    files = {".".join(f.with_suffix("").parts): tree for f, tree in sources("interp").items()}
    methods = records.every()
    assert not crossings({m.name: m.home for m in methods}, {m.name: m.made_of for m in methods}, files)


def broad(tree: ast.Module) -> list[int]:
    """Lines of handlers that catch everything and keep it: one that ends in a plain `raise` has only tidied up."""
    lines = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ExceptHandler):
            caught = {n.id for n in ast.walk(node.type) if isinstance(n, ast.Name)} if node.type else {"Exception"}
            kept = not isinstance(node.body[-1], ast.Raise) or any(isinstance(n, ast.Return) for n in ast.walk(node))
            lines += [node.lineno] if kept and caught & {"Exception", "BaseException"} else []
    return lines


@pytest.mark.parametrize(
    ("handler", "is_broad"),
    [
        ("except:", True),
        ("except Exception:", True),
        ("except (KeyError, BaseException) as e:", True),
        ("except (KeyError, OSError):", False),
        ("except BaseException:\n    tidy()\n    raise\nexcept OSError:", False),
        ("except BaseException:\n    return\n    raise\nexcept OSError:", True),
    ],
)
def test_the_broad_rule_tells_right_from_wrong(handler: str, is_broad: bool) -> None:
    assert bool(broad(ast.parse(f"try:\n    pass\n{handler}\n    pass"))) == is_broad


def test_nothing_is_caught_broadly() -> None:
    assert not {str(f): lines for f, tree in sources().items() if (lines := broad(tree))}


@pytest.mark.parametrize("folder", ["kernels", "hooks", "interp/kernels", "interp/hooks", "tests", "experiments"])
def test_these_folders_are_not_packages(folder: str) -> None:
    assert not (ROOT / folder / "__init__.py").exists()


def test_no_test_folder_takes_the_name_of_a_package() -> None:
    assert not [p for p in (ROOT / "tests").iterdir() if p.name in {"kernels", "hooks", "interp"}]


@pytest.mark.parametrize("name", ["hooks", "kernels"])
def test_the_links_are_links(name: str) -> None:
    assert (ROOT / "interp" / name).is_symlink()
    assert (ROOT / "interp" / name).resolve() == ROOT / name


PATHS_OF_A_MACHINE = re.compile(r"(?<![\w./-])/(?:work|root|home|Users|tmp/w)/[\w.]")


@pytest.mark.parametrize(("text", "found"), [("see {}x/y", True), ("https://host{}x", False), ("my{}x", False)])
def test_the_path_rule_tells_right_from_wrong(text: str, found: bool) -> None:
    assert bool(PATHS_OF_A_MACHINE.search(text.format("/wo" + "rk/"))) == found


def test_no_file_names_a_path_of_somebodys_machine() -> None:
    texts = {f: (ROOT / f).read_bytes().decode("utf-8", "replace") for f in files() if f.suffix != ".safetensors"}
    assert not {str(f): hit.group() for f, text in texts.items() if (hit := PATHS_OF_A_MACHINE.search(text))}


def test_every_test_file_has_an_area() -> None:
    tests = [f.relative_to("tests") for f in files() if f.parts[0] == "tests" and f.name.startswith("test_")]
    stray = [str(f) for f in tests if not areas(f)]
    assert not stray, f"add a row to AREAS in tests/areas.py for {stray}; there are {sorted(set(AREAS.values()))}"


def project() -> dict[str, object]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))


def test_extras_are_those_promised_and_all_is_all_of_them() -> None:
    extras = project()["project"]["optional-dependencies"]
    assert set(extras) == EXTRAS
    apart = {"all", "vllm"}  # vllm needs an environment of its own
    assert set(re.findall(r"\w+", extras["all"][0])) == EXTRAS - apart | {"interp"}


def test_constraints_are_exact_and_within_the_ranges() -> None:
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    assert "torch==2.13.0" in lines
    assert not [line for line in lines if not re.fullmatch(r"[a-z0-9-]+==[\w.]+", line)]


def test_make_knows_its_targets() -> None:
    makefile = (ROOT / "Makefile").read_text()
    phony = re.search(r"^\.PHONY: (.+)$", makefile, re.MULTILINE)
    assert phony
    assert set(phony[1].split()) == TARGETS
    extras = re.search(r"^TEST_EXTRAS := (.+)$", makefile, re.MULTILINE)
    assert extras
    assert {"dev", "lens", "nnsight", "captum"} <= set(extras[1].split(",")) <= EXTRAS


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
@pytest.mark.parametrize("target", sorted(TARGETS))
def test_make_plans_every_target(target: str) -> None:
    plan = subprocess.run(["make", "--dry-run", target], cwd=ROOT, capture_output=True, text=True)
    assert plan.returncode == 0, plan.stderr


def test_continuous_integration_runs_what_make_test_runs() -> None:
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    lines = script.read_text().splitlines()
    assert "set -euo pipefail" in lines
    assert lines[-1].startswith("make")
    assert lines[-1].endswith(" test")
