"""A model in another process: the same numbers in the same memory, and nothing written to it."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from toiling import Little
from torch import nn

import interp
from interp.hooks.errors import ModelError
from interp.scale.workers.transport import packed, unpacked
from interp.zoo.families import tiny


def handed(thing: object) -> tuple[object, list[np.ndarray]]:
    """Over to the other side, whose arrays nobody may write to."""
    pickled, arrays = packed(thing)
    others = [one.copy() for one in arrays]
    for one in others:
        one.flags.writeable = False
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return unpacked(pickled, others), others


def test_a_model_of_transformers_is_the_same_model_over_there() -> None:
    m = interp.attach(tiny("llama"))
    ids = torch.tensor([[5, 6, 7]])
    there, arrays = handed(m)
    assert isinstance(there, interp.Model)
    assert there.module is not m.module
    assert there.module(ids).logits.equal(m.module(ids).logits)
    starts = [one.ctypes.data for one in arrays]
    assert all(p.untyped_storage().data_ptr() in starts for p in there.module.parameters())
    assert sum(len(one) for one in arrays) < 1.1 * sum(p.numel() * p.element_size() for p in m.module.parameters())
    assert there.run(ids, record="L0.z")["L0.z"].equal(m.run(ids, record="L0.z")["L0.z"])


def test_tied_weights_small_dtypes_views_and_marks_arrive() -> None:
    model = Little().eval()
    model.view = model.words.weight.detach()[3:5, ::2]
    model.nothing = torch.empty(0, 4)
    model.frozen = nn.Parameter(torch.arange(3), requires_grad=False)
    there, arrays = handed(model)
    assert isinstance(there, Little)
    assert there.words.weight is there.back.weight
    assert there.words.weight.marked is True
    assert there.scale.dtype is torch.bfloat16
    assert there.scale.equal(model.scale)
    assert there.view.equal(model.view)
    assert there.view.untyped_storage().data_ptr() == there.words.weight.untyped_storage().data_ptr()
    assert there.nothing.shape == (0, 4)
    assert type(there.frozen) is nn.Parameter
    assert not there.frozen.requires_grad
    assert not there.training
    assert there(torch.tensor([3])).equal(model(torch.tensor([3])))
    assert len(arrays) == 4


def test_one_model_in_several_places_is_one_model_there() -> None:
    m = interp.attach(Little())
    (a, b), _ = handed((m, [m]))  # type: ignore[misc]
    assert a is b[0]
    assert a.family is m.family


def test_a_model_may_be_loaded_over_there_instead() -> None:
    m = interp.load("zoo:induction")
    pickled, arrays = packed({"model": m}, instead=(m, "zoo:induction"))
    assert not arrays
    assert len(pickled) < 500
    there = unpacked(pickled, arrays)["model"].module.state_dict()
    assert all(there[name].equal(value) for name, value in m.module.state_dict().items())


def test_weights_that_are_nowhere_are_refused() -> None:
    with torch.device("meta"):
        model = nn.Linear(2, 2)
    with pytest.raises(ModelError, match=r"not in memory .* let each worker load the model"):
        packed(model)
