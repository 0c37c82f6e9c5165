"""The package as others meet it: installed, imported from the root, beside HuggingFace's `kernels`, without extras."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import shutil
import tomllib
import zipfile
from pathlib import Path

import pytest
from house import ROOT, files, python
from typed import CheckedLoader

HEAVY = ("torch", "transformers", "numpy", "pandas", "xarray", "jaxtyping")
WHERE_IS_KERNELS = "import importlib.util as u; s = u.find_spec('kernels'); print(s and s.origin)"


def test_the_root_folder_is_never_the_package_kernels() -> None:
    assert not python(WHERE_IS_KERNELS).startswith(str(ROOT / "kernels"))


def test_a_package_kernels_further_along_the_path_wins_over_the_folder(tmp_path: Path) -> None:
    package = tmp_path / "kernels" / "__init__.py"
    package.parent.mkdir()
    package.touch()
    assert python(WHERE_IS_KERNELS, PYTHONPATH=str(tmp_path)) == str(package)


@pytest.mark.parametrize("without", [(), ("torchvision",)], ids=["as-installed", "no-torchvision"])
def test_transformers_imports_from_the_root(without: tuple[str, ...]) -> None:
    """With what is installed, and without torchvision.

    A torchvision of another build than torch (CUDA beside CPU) fails here as it fails every model: uninstall it.
    """
    absent = "".join(f"sys.modules[{name!r}] = None; " for name in without)
    uses = "import transformers.integrations.hub_kernels, transformers.models.llama.modeling_llama as llama"
    assert python(f"import sys; {absent}{uses}; print(llama.LlamaForCausalLM.__name__)") == "LlamaForCausalLM"


def loaded_after(code: str) -> str:
    return python(f"{code}\nimport sys; print('loaded:', *[m for m in {HEAVY} if m in sys.modules])").splitlines()[-1]


def test_import_interp_loads_nothing_heavy() -> None:
    assert loaded_after("import interp") == "loaded:"


def test_the_command_line_says_what_it_can_do_without_loading_anything_heavy() -> None:
    run = "import runpy, sys; sys.argv = ['interp', '--help']\ntry: runpy.run_module('interp', run_name='__main__')"
    assert loaded_after(f"{run}\nexcept SystemExit as end: assert not end.code") == "loaded:"


def test_the_command_is_installed() -> None:
    (script,) = importlib.metadata.distribution("interp").entry_points.select(group="console_scripts")
    assert (script.name, script.value) == ("interp", "interp.cli:main")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy of what git holds, so that nothing is left in the tree and nothing stray gets in."""
    copy, out = tmp_path_factory.mktemp("copy"), tmp_path_factory.mktemp("wheel")
    links = [Path("interp/hooks"), Path("interp/kernels")]
    for file in [*(f for f in files() if f.parts[0] != "tests"), *links]:
        (copy / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / file, copy / file, follow_symlinks=False)
    python(f"from setuptools.build_meta import build_wheel; build_wheel({str(out)!r})", cwd=copy)
    (built,) = out.glob("*.whl")
    return built


def test_the_wheel_takes_one_name_only(wheel: Path) -> None:
    tops = {name.split("/")[0] for name in zipfile.ZipFile(wheel).namelist()}
    assert {t for t in tops if not t.endswith(".dist-info")} == {"interp"}


def test_the_wheel_holds_every_file_of_the_package(wheel: Path) -> None:
    homes = {"kernels": "interp/kernels", "hooks": "interp/hooks", "interp": "interp"}
    ours = {Path(homes[f.parts[0]], *f.parts[1:]).as_posix() for f in files() if f.parts[0] in homes}
    there = set(zipfile.ZipFile(wheel).namelist())
    assert not ours - there
    assert not {name for name in there - ours if not name.split("/")[0].endswith(".dist-info")}


def test_the_wheel_with_the_zoo_is_under_16_megabytes(wheel: Path) -> None:
    weights = [name for name in zipfile.ZipFile(wheel).namelist() if name.endswith("model.safetensors")]
    assert len(weights) >= 6
    assert wheel.stat().st_size < 16e6


def test_the_wheel_works_away_from_the_clone(wheel: Path, tmp_path: Path) -> None:
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    code = "import interp.hooks.errors, interp.kernels.errors as e; print(e.__file__)"
    assert python(code, cwd=tmp_path, PYTHONPATH=str(tmp_path / "site")).startswith(str(tmp_path))


def test_shapes_are_checked_behind_the_links() -> None:
    """The annotation checker goes by import name, which a file reached as `kernels.x` would escape."""
    spec = importlib.util.find_spec("interp.kernels.errors")
    assert spec is not None
    assert isinstance(spec.loader, CheckedLoader)


def test_the_version_is_said_once_and_repeated_rightly() -> None:
    """The package, its archive and the file for citations."""
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    cited = (ROOT / "CITATION.cff").read_text()
    assert f"\nversion: {version}\n" in cited
    assert python("import interp; print(interp.__version__)") == version
    assert f"\n## {version.removesuffix('.0')}" in (ROOT / "CHANGELOG.md").read_text()
