"""Loops that are not ours: what each call recorded, edits of one step, and nothing left behind."""

from __future__ import annotations

import threading

import pytest
import torch
from models import attached
from torch import Tensor, nn

import interp
from interp.hooks.errors import EditError, InputsError, NotFired

HEADS, WIDTH = 4, 32


@pytest.fixture(scope="module")
def denoiser() -> interp.Model:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(WIDTH, HEADS, 48, batch_first=True, dropout=0.0)
    module = nn.TransformerEncoder(layer, 2).eval()
    return interp.attach(module, example={"src": torch.randn(1, 5, WIDTH)})


def denoised(model: interp.Model, x: Tensor, steps: int = 6) -> Tensor:
    """A loop as somebody else writes it."""
    with torch.no_grad():
        for _ in range(steps):
            x = x - 0.1 * model.module(x)
    return x


def start() -> Tensor:
    torch.manual_seed(1)
    return torch.randn(2, 5, WIDTH)


def test_every_call_is_a_step(denoiser: interp.Model) -> None:
    denoiser.ready()
    plain = denoised(denoiser, start())
    with denoiser.watch(record=["L1.z", "L0.H2.pattern"]) as tape:
        watched = denoised(denoiser, start())
    torch.testing.assert_close(watched, plain, atol=1e-5, rtol=0)
    assert (tape.calls, tape.steps) == (6, (0, 1, 2, 3, 4, 5))
    assert tape["L1.z"].shape == (6, 2, 5, HEADS, WIDTH // HEADS)
    x = start()
    for step in range(6):
        own = denoiser.run({"src": x}, record=["L1.z", "L0.H2.pattern"])
        torch.testing.assert_close(tape["L1.z"][step], own["L1.z"], atol=1e-5, rtol=0)
        torch.testing.assert_close(tape["L0.H2.pattern"][step], own["L0.H2.pattern"], atol=1e-5, rtol=0)
        x = x - 0.1 * own["logits"]


def test_a_head_is_edited_in_one_step_of_a_denoising_loop(denoiser: interp.Model) -> None:
    edit = interp.Scale("L1.H3.z", 0.0, steps=3)
    with denoiser.watch(edits=[edit]) as tape:
        edited = denoised(denoiser, start())
    assert tape.calls == 6
    x = start()
    for step in range(6):
        plain = interp.Scale("L1.H3.z", 0.0)
        x = x - 0.1 * denoiser.run({"src": x}, edits=[plain] if step == 3 else [])["logits"]
    torch.testing.assert_close(edited, x, atol=1e-5, rtol=0)
    assert not torch.allclose(edited, denoised(denoiser, start()), atol=1e-4)


def test_chosen_steps_are_kept_and_reduced_as_they_come(denoiser: interp.Model) -> None:
    with denoiser.watch(record="L*.z", steps="0-1,4", reduce=lambda step, values: (step, len(values))) as tape:
        denoised(denoiser, start())
    assert tape.kept == {0: (0, 2), 1: (1, 2), 4: (4, 2)}
    assert tape.calls == 6
    with pytest.raises(InputsError, match="was reduced or not kept"):
        tape["L0.z"]
    with pytest.raises(InputsError, match=r"step 2 was not kept; there are \[0, 1, 4\] of 6 calls"):
        tape.at(2)


def test_steps_of_generating_have_shapes_of_their_own() -> None:
    m = attached("llama")
    ids = torch.tensor([[5, 6, 7, 8]])
    with m.watch(record="L0.z") as tape:
        m.module.generate(ids, max_new_tokens=3, do_sample=False, eos_token_id=None, pad_token_id=0)
    assert [tape.at(step)[tape.sites[0]].shape[1] for step in tape.steps] == [4, 1, 1]
    with pytest.raises(InputsError, match=r"another shape in other steps \(0: \[1, 4, 4, 8\]"):
        tape["L0.z"]


def test_an_edit_whose_step_never_comes_and_a_model_that_is_never_called_are_errors(denoiser: interp.Model) -> None:
    with pytest.raises(NotFired, match="L1"), denoiser.watch(edits=[interp.Scale("L1.H3.z", 0.0, steps=9)]):
        denoised(denoiser, start())
    with pytest.raises(NotFired, match="never called"), denoiser.watch(record="L1.z"):
        pass
    with pytest.raises(EditError, match="calls of the model counted from 0"), denoiser.watch(steps="first"):
        denoised(denoiser, start())


def test_a_loop_that_breaks_off_and_other_threads(denoiser: interp.Model) -> None:
    def breaks(_: int, __: object) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), denoiser.watch(record="L1.z", reduce=breaks):
        denoised(denoiser, start(), steps=2)
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in denoiser.module.modules())
    with denoiser.watch(record="L1.z") as tape:
        other = threading.Thread(target=denoised, args=(denoiser, start(), 4))
        other.start()
        other.join()
        denoised(denoiser, start(), steps=2)
    assert tape.calls == 2


def test_memory_stays_within_the_budget(denoiser: interp.Model) -> None:
    size = 2 * 5 * WIDTH * 4
    with denoiser.watch(record="L1.z", reduce=lambda step, values: step, budget=2 * size) as tape:
        denoised(denoiser, start())
    assert tape.steps == tuple(range(6))
    with pytest.raises(interp.InterpError, match="budget"), denoiser.watch(record="L1.z", budget=2 * size):
        denoised(denoiser, start())
