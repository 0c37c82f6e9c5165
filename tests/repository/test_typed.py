"""What the checks of shapes and types see: without them a wrong annotation would pass for ever."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from jaxtyping import Float, TypeCheckError
from torch import Tensor
from typed import checked

from interp.hooks.sites import parse

Rows = Float[Tensor, "row d"]


@checked
def product(a: Rows, b: Float[Tensor, "d column"]) -> Float[Tensor, "row column"]:
    return a @ b if a.shape[0] else a


@checked
def count(of: str) -> int:
    return len(of) if of else of  # type: ignore[return-value]


@checked
@dataclass(frozen=True)
class Named:
    name: str


def test_shapes_of_arguments_and_of_the_result_must_fit_together() -> None:
    assert product(torch.ones(2, 3), torch.ones(3, 4)).shape == (2, 4)
    with pytest.raises(TypeCheckError):
        product(torch.ones(2, 3), torch.ones(2, 3))
    with pytest.raises(TypeCheckError):
        product(torch.ones(0, 3), torch.ones(3, 4))


def test_types_are_checked_where_there_is_no_shape() -> None:
    assert count("three") == 5
    for call in (lambda: count(3), lambda: count(""), lambda: Named(3)):  # type: ignore[arg-type]
        with pytest.raises(TypeCheckError):
            call()


def test_the_package_is_imported_with_checks() -> None:
    with pytest.raises(TypeCheckError):
        parse(3)  # type: ignore[arg-type]
