"""Denoisers on a pretend accelerator: the CPU's numbers, and nothing on the wrong device."""

from __future__ import annotations

from typing import Any

import pretend
import pytest
import torch
from denoisers import denoiser
from placed import NEAR, check_same, numbers
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

import interp
from interp.hooks.denoisers.calls import call_of
from interp.hooks.examples.example import moved
from interp.zoo.families import tiny

KINDS = ("FluxTransformer2DModel", "SD3Transformer2DModel", "PixArtTransformer2DModel", "WanTransformer3DModel")


def held(kind: str, *, away: bool) -> interp.Model:
    module = denoiser(kind)
    if away:
        pretend.start()
        module = pretend.moved(module)
    return interp.attach(module)


def asked(m: interp.Model) -> dict[str, Any]:
    """Everything that is asked of denoisers, of one call of it."""
    made = call_of(m.module, batch=2, random=torch.Generator().manual_seed(0))
    given = moved(made, m.device)
    own = "denoiser." if len(m.towers) > 1 else ""

    def call() -> Tensor:
        with torch.no_grad():
            sample: Tensor = m.module(**given).sample
        return sample

    found: dict[str, Any] = {"run": m.run(made, record=[f"{own}L1.z", f"{own}L1.pattern"])}
    with m.watch(record=f"{own}L1.z", edits=[interp.Scale(f"{own}L0.H0.z", 0.5, branch="cond")]) as tape:
        call()
    found["watch"] = tape[f"{own}L1.z"]
    with interp.diffusion.perturbed(m, f"{own}L0-1.H1", amount=0.5):
        found["perturbed"] = call()
    maps = interp.diffusion.maps(m, call, words={"one": [1, 2], "two": [5]})
    found["maps"], found["refer"] = maps.values, interp.diffusion.refer(maps).map
    target = found["perturbed"]
    found["hunt"] = interp.diffusion.hunt(
        m, call, lambda made: -(made - target).flatten(1).norm(dim=1), rounds=1, heads=f"{own}L0.H*"
    ).values
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_the_numbers_are_the_cpus(kind: str) -> None:
    with sdpa_kernel(SDPBackend.MATH):
        here, there = (dict(numbers(asked(held(kind, away=away)))) for away in (False, True))
    check_same(here, there, NEAR[torch.float32])


def test_words_are_filled_as_on_the_cpu() -> None:
    ids = torch.randint(10, 30, (2, 7), generator=torch.Generator().manual_seed(0))
    ids[:, 3:] = 4
    pretend.start()
    models = [interp.attach(tiny("bert")), interp.attach(pretend.moved(tiny("bert")))]
    with sdpa_kernel(SDPBackend.MATH):
        here, there = (
            dict(numbers({"ids": found.ids, "when": found.when, "sure": found.sure}))
            for found in (interp.diffusion.unmask(m, ids, mask=4, steps=3) for m in models)
        )
    check_same(here, there, NEAR[torch.float32])
