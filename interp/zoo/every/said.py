"""How values of a config are written down: `text_config.hidden_size` is a number of a config inside the type's."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from typing import Any

Said = Mapping[str, Any]


def inside(place: str, values: Said) -> Said:
    """The same values, of a config that is inside another one."""
    return {f"{place}.{name}": value for name, value in values.items()}


def put(config: Any, values: Said) -> None:
    """Values into a config, by their names."""
    for path, value in values.items():
        *places, name = path.split(".")
        place = config
        for step in places:
            place = place[step] if isinstance(place, dict) else getattr(place, step)
        if isinstance(place, dict):
            place[name] = deepcopy(value)
        else:
            setattr(place, name, deepcopy(value))
