"""Which tokens of a packed batch are whose, against a list of them."""

from __future__ import annotations

import random

import pytest
import torch

from interp.scale.serving.packed import PackedError, Taken, Where, gathered, last_wanted, segments


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("where", ["all", "prompt", "last", "generated", (0, 3, -1, -2)])
def test_tokens_of_a_packed_batch_are_those_of_a_list(seed: int, where: Where) -> None:
    rng = random.Random(seed)
    held, starts, bounds = [], [], [0]
    listed = []  # row in the batch, request, position
    for n in range(rng.randint(1, 6)):
        mine = rng.random() < 0.7
        start, count, prompt = rng.randint(0, 5), rng.randint(0, 4), rng.randint(1, 8)
        one = Taken(n, prompt, None, done=rng.randint(0, 6))
        for i in range(count):
            position = start + i
            last = {"last": [prompt - 1]}.get(str(where), [p if p >= 0 else prompt + p for p in (0, 3, -1, -2)])
            meant = {"all": True, "prompt": position < prompt, "generated": position >= prompt}.get(
                str(where), position in last
            )
            if mine and meant and position >= one.done:
                listed.append((bounds[-1] + i, n, position))
        held.append(one if mine else None)
        starts.append(start)
        bounds.append(bounds[-1] + count)
    rows = gathered(list(segments(held, starts, bounds, bounds[-1])), where, torch.device("cpu"))
    assert list(zip(rows.index.tolist(), rows.owner.tolist(), rows.position.tolist(), strict=True)) == listed


def test_a_position_is_taken_once_and_edited_each_time() -> None:
    one = Taken(0, 4, done=3)
    found = list(segments([one], [0], [0, 5], 5))
    device = torch.device("cpu")
    assert gathered(found, "all", device).position.tolist() == [3, 4]
    assert gathered(found, "all", device, fresh=False).position.tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    ("starts", "bounds", "tokens"),
    [([0], [0], 3), ([], [0, 3], 3), ([0], [1, 3], 3), ([0], [0, 4], 3), ([0, 0], [0, 3, 2], 3)],
)
def test_a_batch_that_does_not_fit_is_refused(starts: list[int], bounds: list[int], tokens: int) -> None:
    with pytest.raises(PackedError, match="engine's batch"):
        list(segments([Taken(n, 2) for n in range(max(1, len(starts)))], starts, bounds, tokens))


def test_bounds_may_go_on_behind_the_requests() -> None:
    found = list(segments([None, Taken(1, 2)], [0, 4], [0, 2, 3, 3, 3], 8))
    assert [(s.low, s.high, s.start) for s in found] == [(2, 3, 4)]


@pytest.mark.parametrize(
    ("where", "last"), [("all", None), ("generated", None), ("prompt", 4), ("last", 4), ((0, -2), 3)]
)
def test_the_last_position_that_can_be_meant(where: Where, last: int | None) -> None:
    assert last_wanted(where, 5) == last
