"""Sweeps of a model that runs under edits: of packed tokens where that is the same, of full passes where it is not."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor

import interp


def mean_off(z: Tensor) -> Tensor:
    """Less the mean over positions: what a token gets depends on those beside it."""
    return z - z.mean(1, keepdim=True)


class Squared:
    """A head program: weights in proportion to the squares of the softmax's."""

    def pattern(self, part: Any) -> Tensor:
        weights = part.softmax(part.scores()) ** 2
        return weights / weights.sum(-1, keepdim=True).clamp(min=1e-30)

    def z(self, part: Any) -> Tensor:
        return part.read(self.pattern(part))


FULL = "does not do the same to every token|changes what a block is given"
UNDER = {
    "a factor": (interp.Scale("L1.H0.z", 0.5), "Replay"),
    "a direction": (interp.edits.Project("L0.resid_post", torch.ones(128)), "Replay"),
    "a position": (interp.Zero("L0.H1.z", positions=[2]), "full"),
    "a temperature": (interp.edits.Temperature("L0.H1", value=2.0), "full"),
    "a key set": (interp.MaskKeys("L0.H1", keys="first"), "full"),
    "a function": (interp.Apply("L0.H1.z", mean_off), "full"),
    "a program": (interp.edits.Program("L0.H1", Squared()), "full"),
    "a row": (interp.Zero("L0.H1.z", rows=(1,)), "full"),
    "a mean": (interp.Mean("L0.H1.z"), "full"),
    "a function across rows": (interp.Apply("L0.H1.z", lambda z: z - z.mean(0, keepdim=True)), "full"),
    "a pattern": (interp.Scale("L0.H1.pattern", 0.5), "full"),
    "the embedding": (interp.Scale("embed", 0.5), "full"),
    "a block's input": (interp.Scale("L1.resid_pre", 0.5), "full"),
}


@pytest.mark.parametrize("name", UNDER)
def test_a_sweep_of_an_edited_model_is_the_loop_over_it(name: str) -> None:
    """Edits that do the same to every token are met by packed ones; under all others full passes run, said aloud."""
    edit, engine = UNDER[name]
    m = interp.load("zoo:ioi")
    task = interp.tasks.ioi(m, n=2)
    says = nullcontext() if engine == "Replay" else pytest.warns(UserWarning, match=FULL)
    with m.edited([edit]):
        with says:
            found = interp.patch(m, base=task.corrupt, source=task.clean, metric=task.metric, sites="L0-1.H0-2.z")
        source, base = m.run(task.clean, record="L*.z"), task.metric(m.run(task.corrupt)["logits"], task.corrupt)
        assert (found.meta["engine"] == "Replay") == (engine == "Replay")
        for n, site in enumerate(found.sites):
            one = m.run(task.corrupt, edits=[interp.Set(str(site), source[str(site)])])["logits"]
            want = (task.metric(one, task.corrupt) - base).double()
            torch.testing.assert_close(found.values[n].flatten().double(), want, atol=1e-4, rtol=1e-4)
