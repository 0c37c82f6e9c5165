"""How many positions a config names, and beyond which of them a model cannot read."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from interp.hooks.anatomy.lengths import longest


@pytest.mark.parametrize(
    ("config", "most", "learned"),
    [({"n_positions": 64}, 64, 64), ({"max_position_embeddings": 128}, 128, None), ({"context": 32}, 32, 32),
     ({"max_sequence_length": 16}, 16, None), ({"n_positions": 64, "max_position_embeddings": 48}, 48, 64),
     ({"n_positions": None, "max_position_embeddings": 0}, None, None), ({}, None, None)],
)  # fmt: skip
def test_the_smallest_number_that_is_named(config: dict[str, int], most: int | None, learned: int | None) -> None:
    made = SimpleNamespace(**config)
    assert longest(made) == most
    assert longest(made, learned=True) == learned


def test_a_module_without_a_config_names_nothing() -> None:
    assert longest(None) is None
