"""Files of names and values, in YAML or JSON: what a command or a grid of reports is told to do."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from interp.kernels.errors import InterpError


class ConfigError(InterpError):
    """A config file that does not say what it should."""


def read_config(path: str | Path) -> dict[str, Any]:
    """A YAML or JSON file that holds a mapping. YAML is read by PyYAML, which transformers brings."""
    file = Path(path)
    if not file.is_file():
        raise ConfigError(f"no file {file}.")
    try:
        text = file.read_bytes().decode("utf-8")
    except UnicodeDecodeError as why:
        raise ConfigError(f"{file} is not UTF-8 at byte {why.start}.") from why
    except OSError as why:
        raise ConfigError(f"{file} cannot be read: {why.strerror}.") from why
    found = _json(file, text) if file.suffix == ".json" else _yaml(file, text)
    if not isinstance(found, Mapping):
        raise ConfigError(f"{file}: expected names and values, got {type(found).__name__}.")
    return {str(name): value for name, value in found.items()}


def _json(file: Path, text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as why:
        raise ConfigError(f"{file} is not JSON: {why}") from why


def _yaml(file: Path, text: str) -> Any:
    import yaml

    try:
        return yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as why:
        raise ConfigError(f"{file} is not YAML: {' '.join(str(why).split())}") from why
