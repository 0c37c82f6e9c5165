"""Regions and boxes against a flood fill written from the definition."""

from __future__ import annotations

import pytest
import torch

from interp.hooks.errors import InputsError
from interp.vision.maps.regions import around, iou, largest_at, pointing, regions, touching


def flood(inside: torch.Tensor) -> torch.Tensor:
    out, number = torch.zeros(inside.shape, dtype=torch.long), 0
    for y, x in inside.nonzero().tolist():
        if out[y, x]:
            continue
        number += 1
        todo = [(y, x)]
        while todo:
            a, b = todo.pop()
            if 0 <= a < inside.shape[0] and 0 <= b < inside.shape[1] and inside[a, b] and not out[a, b]:
                out[a, b] = number
                todo += [(a + 1, b), (a - 1, b), (a, b + 1), (a, b - 1)]
    return out


@pytest.mark.parametrize("seed", range(12))
def test_pixels_that_touch(seed: int) -> None:
    random = torch.Generator().manual_seed(seed)
    inside = torch.rand(13, 17, generator=random) < 0.35 + seed * 0.04
    assert torch.equal(touching(inside), flood(inside))


def test_shapes_that_join_from_below() -> None:
    inside = torch.tensor([[1, 0, 1, 0, 1], [1, 0, 1, 0, 1], [1, 1, 1, 0, 1], [0, 0, 0, 0, 1], [1, 1, 1, 1, 1]]).bool()
    assert torch.equal(touching(inside), flood(inside))
    assert int(touching(torch.zeros(3, 3).bool()).max()) == 0


def test_regions_come_by_what_they_hold() -> None:
    seen = torch.tensor([[5.0, 0, 1, 1], [0, 0, 1, 1], [0, 0, 0, 0]])
    first, second = regions(seen, seen > 0)
    assert (first.weight, second.weight) == (5, 4)
    assert (first.box, second.box) == ((0, 0, 1, 1), (2, 0, 4, 2))
    with pytest.raises(InputsError, match="no pixel is above"):
        around(seen > 9)


def test_points_and_overlaps() -> None:
    seen = torch.zeros(6, 8)
    seen[2:4, 4:6] = 2.0
    assert largest_at(seen) == (5.0, 3.0)
    assert pointing((5.0, 3.0), [(0, 0, 1, 1), (4, 2, 6, 4)])
    assert not pointing((6.0, 3.0), [(4, 2, 6, 4)])
    assert iou((0, 0, 2, 2), (1, 0, 3, 2)) == pytest.approx(1 / 3)
    assert iou((0, 0, 1, 1), (2, 2, 3, 3)) == 0
