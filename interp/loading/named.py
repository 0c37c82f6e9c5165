"""A model by name, with one readable line where it cannot be had."""

from __future__ import annotations

from difflib import get_close_matches
from typing import Any

from interp.hooks.errors import ModelError
from interp.loading.load import load
from interp.model import Model
from interp.zoo.catalog import entries


def opened(name: str, **how: Any) -> Model:
    """The model, with transformers quiet about it."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        return load(name, **how)
    except (OSError, ValueError) as why:
        first = str(why).strip().splitlines()[0] if str(why).strip() else type(why).__name__
        raise ModelError(f"{name!r} cannot be loaded: {first}{_hint(name)}") from why


def _hint(name: str) -> str:
    """The model of the zoo that was meant, where its name was written without `zoo:` or nearly so."""
    near = get_close_matches(str(name).removeprefix("zoo").lstrip("/:-"), [one.name for one in entries()], 1, 0.75)
    return f" Did you mean 'zoo:{near[0]}'?" if near else ""
