"""Heads of layers that run several times: their weights are shared, so a cut takes them out of all passes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from looped import HEADS, WORDS, AtCall, albert, outs, put_heads
from torch import Tensor

import interp
from interp.hooks.errors import InputsError

pytestmark = pytest.mark.families


def held() -> Any:
    return interp.attach(albert(layers=4, groups=2))


def said(m: Any, ids: Tensor) -> Tensor:
    with torch.no_grad():
        return m.module(input_ids=ids).logits


def scores() -> dict[str, float]:
    return {f"L{layer}.H{head}": float((3 * layer + 2 * head) % 7) for layer in range(2) for head in range(HEADS)}


@pytest.mark.parametrize("uniform", [False, True])
def test_a_cut_head_is_gone_from_all_passes(uniform: bool, tmp_path: Any) -> None:
    m, ids = held(), torch.randint(3, WORDS, (2, 9))
    with pytest.warns(UserWarning, match="2 passes of one head and share its weights"):
        pruned = interp.prune(m, scores(), keep_fraction=0.5, how="cut", uniform=uniform)
    assert pruned.counts["heads"] == (8, 4)
    gone = {(int(name[1]), int(name[6])) for name in pruned.gone}
    assert len(pruned.gone) == 2 * len(gone)
    first, second = ([head for layer, head in sorted(gone) if layer == n] for n in range(2))
    projections = outs(m.module)
    one = AtCall(projections[0], put_heads(0.0, first), calls=range(9))
    two = AtCall(projections[1], put_heads(0.0, second), calls=range(9))
    with one, two:
        wanted = said(m, ids)
    assert torch.allclose(said(pruned.model, ids), wanted, atol=1e-4)
    assert pruned.model.towers["text"].passes == {0: 2, 1: 2}
    frame = pruned.to_frame()
    assert frame["layer"].tolist() == [0] * 8 + [1] * 8
    assert frame["pass"].tolist() == ([0] * 4 + [1] * 4) * 2
    again = interp.load(str(pruned.save(tmp_path / "cut")))
    assert torch.equal(said(again, ids), said(pruned.model, ids))


def test_a_mask_may_act_in_one_pass() -> None:
    m, ids = held(), torch.randint(3, WORDS, (2, 9))
    pruned = interp.prune(m, {f"L1@1.H{head}": float(head) for head in range(HEADS)}, keep=2)
    assert pruned.gone == ("L1@1.H0", "L1@1.H1")
    with AtCall(outs(m.module)[1], put_heads(0.0, [0, 1]), calls=[1]):
        wanted = said(m, ids)
    assert torch.equal(pruned.run(ids)["logits"], wanted)


def test_scores_of_some_passes_are_too_few_to_cut() -> None:
    with pytest.raises(InputsError, match=r"L0@0\.H0 has no score, .* cut out of all of them"):
        interp.prune(held(), {f"L0@1.H{head}": float(head) for head in range(HEADS)}, keep=2, how="cut")


def test_scores_of_passes_are_averaged_for_a_cut_and_along_a_schedule() -> None:
    m = held()
    by_pass = {
        f"L{n}@{p}.H{h}": float(h if p == 0 else 10 * (h == 0)) for n in range(2) for p in range(2) for h in range(4)
    }
    with pytest.warns(UserWarning, match="share its weights"):
        pruned = interp.prune(m, by_pass, keep=6, how="cut")
    assert set(pruned.gone) == {f"L{n}@{p}.H1" for n in range(2) for p in range(2)}  # means 5, 0.5, 1 and 1.5
    asked = []

    def again(model: Any) -> dict[str, float]:
        asked.append(model)
        return by_pass

    with pytest.warns(UserWarning, match="share its weights"):
        assert set(interp.prune(m, again, keep=6, schedule=2).gone) == set(pruned.gone)
    assert len(asked) == 2


def test_the_curve_of_a_cut_takes_whole_heads() -> None:
    m, ids = held(), torch.randint(3, WORDS, (2, 9))
    with pytest.warns(UserWarning, match="share its weights"):
        pruned = interp.prune(m, scores(), keep_fraction=0.5, how="cut")

    def metric(logits: Tensor, inputs: Any) -> Tensor:
        return logits[:, -1, 5]

    frame = pruned.curve(ids, metric, fractions=[0.5], random=1, rounds=1).to_frame()
    assert set(frame["kept"]) == {4}
