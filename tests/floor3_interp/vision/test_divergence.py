"""Vision-aware divergence and reinforcement against the paper's definitions, with torch hooks and nothing of ours."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pytest
import torch
from looking import asked
from models import planted
from torch import Tensor

import interp
from interp.hooks.errors import InputsError
from interp.planted import key
from interp.planted.probes import probe_task
from interp.vision import divergence, reinforce

LAYERS, HEADS, WIDTH = 2, 2, 8


def projections(m: interp.Model) -> list[Any]:
    return [layer.self_attn.o_proj for layer in m.module.model.language_model.layers]


def outputs(m: interp.Model, call: Any, *, factor: Any = None) -> list[Tensor]:
    """By layer, z [row, head, d] of the last column; `factor(layer, z)` [row, head] multiplies it there."""
    found: list[Tensor] = []

    def keep(_: Any, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        z = args[0].clone()
        last = z[:, -1].unflatten(-1, (HEADS, WIDTH))
        found.append(last.double().clone())
        if factor is not None:
            z[:, -1] = (last * factor(len(found) - 1, last)[..., None]).flatten(-2)
        return (z,)

    handles = [one.register_forward_pre_hook(keep) for one in projections(m)]
    with torch.no_grad():
        m.module(**call)
    for handle in handles:
        handle.remove()
    return found


def text_alone(m: interp.Model, texts: list[str]) -> Any:
    """The same questions by the tokenizer, without a place for a picture, padded on the left."""
    m.tokenizer.padding_side = "left"
    return m.tokenizer(texts, return_tensors="pt", padding=True)


def measured(seen: Tensor, alone: Tensor, *, outliers: bool) -> tuple[np.ndarray, np.ndarray]:
    """D [head, row] of one layer by numpy, and its negative outliers."""
    d = np.linalg.norm(seen.numpy() - alone.numpy(), axis=-1).T
    t = (alone.numpy() ** 2).sum(-1).T
    far = (d > d.mean(0) + d.std(0)) & (t > t.mean(0) + t.std(0))
    return (np.where(far, 0.0, d) if outliers else d), far


@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl", "internvl"])
@pytest.mark.parametrize("outliers", [True, False])
def test_it_is_the_distance_of_two_runs(name: str, outliers: bool) -> None:
    m, x = asked(name)
    bare = text_alone(m, ["What is in the image?", "describe"])
    seen, alone = outputs(m, dict(x.kwargs)), outputs(m, dict(bare))
    want, far = (
        np.concatenate(some)
        for some in zip(*(measured(a, b, outliers=outliers) for a, b in zip(seen, alone, strict=True)), strict=True)
    )
    found = divergence(m, x, outliers=outliers)
    torch.testing.assert_close(found.values, torch.from_numpy(want), atol=1e-5, rtol=1e-4)
    assert torch.equal(found.outliers, torch.from_numpy(far))
    assert found.sites == ("text.L0.H0", "text.L0.H1", "text.L1.H0", "text.L1.H1")
    for k in (1, 2, 7):
        layers = np.sort(want.reshape(LAYERS, HEADS, -1), axis=1)[:, ::-1]
        total = torch.from_numpy(layers[:, : min(k, HEADS)].sum((0, 1)))
        torch.testing.assert_close(found.total(k), total, atol=1e-5, rtol=1e-4)


def test_negative_outliers_are_large_in_both_senses() -> None:
    from interp.vision.decoding.apart import divergence_of

    alone, seen = torch.zeros(1, 4, 2), torch.ones(1, 4, 2) * torch.tensor([0.1, 0.2, 0.1, 5.0])[None, :, None]
    quiet, far = divergence_of(seen, alone, outliers=True)
    assert not bool(far.any()), "large divergence alone is no outlier"
    alone[0, 3] = 9.0
    gone, far = divergence_of(seen, alone, outliers=True)
    assert far[:, 0].tolist() == [False, False, False, True]
    assert gone[:3, 0].tolist() == quiet[:3, 0].tolist()
    assert float(gone[3, 0]) == 0.0


def test_the_head_that_copies_colours_turns_on_the_picture_most() -> None:
    m = planted("planted-lvlm")
    found = divergence(m, probe_task("planted-lvlm", model=m).clean)
    (head,) = key("planted-lvlm").role("copies asked square")
    assert found.sites[int(found.values[:, 0].argmax())] == head
    others = [float(v) for site, v in zip(found.sites, found.values[:, 0], strict=True) if site != head]
    assert float(found.values.max()) > 2 * max(others)
    assert list(found.top(1)["site"]) == [head]


@pytest.mark.parametrize("alpha", [2.0, 0.5])
def test_reinforcement_goes_layer_by_layer_and_stays(alpha: float) -> None:
    m, x = asked("llava")
    alone = outputs(m, dict(text_alone(m, ["What is in the image?", "describe"])))
    chosen: list[np.ndarray] = []

    def louder(layer: int, z: Tensor) -> Tensor:
        d, _ = measured(z.double(), alone[layer], outliers=True)
        chosen.append(d > np.median(d, axis=0))
        return torch.from_numpy(np.where(chosen[-1], alpha, 1.0)).T.to(z)

    outputs(m, dict(x.kwargs), factor=louder)
    found = reinforce(m, x, alpha=alpha, layers=[0, 1])
    assert torch.equal(found.chosen, torch.from_numpy(np.concatenate(chosen)))
    assert bool(found.chosen.any(0).all())

    def as_chosen(layer: int, z: Tensor) -> Tensor:
        return torch.from_numpy(np.where(chosen[layer], alpha, 1.0)).T.to(z)

    counts = {"layer": 0}
    m2 = m.generate(x, edits=found.edits, max_new_tokens=3)

    def in_turn(_: int, z: Tensor) -> Tensor:
        counts["layer"] += 1
        return as_chosen((counts["layer"] - 1) % LAYERS, z)

    handles = []
    for one in projections(m):

        def change(_: Any, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            z = args[0].clone()
            last = z[:, -1].unflatten(-1, (HEADS, WIDTH))
            z[:, -1] = (last * in_turn(0, last)[..., None]).flatten(-2)
            return (z,)

        handles.append(one.register_forward_pre_hook(change))
    with torch.no_grad():
        want = m.module.generate(**x.kwargs, max_new_tokens=3, do_sample=False, output_logits=True,
                                 return_dict_in_generate=True)  # fmt: skip
    for handle in handles:
        handle.remove()
    said = torch.stack(want.logits, 1).log_softmax(-1).gather(-1, m2.ids[..., None]).squeeze(-1)
    torch.testing.assert_close(m2.logprobs, said, atol=1e-5, rtol=1e-5)
    plain = m.generate(x, max_new_tokens=3)
    assert bool((m2.logprobs != plain.logprobs).all())


def test_layers_are_the_second_and_the_last_ones() -> None:
    from interp.hooks.anatomy.towers import Layer
    from interp.vision.decoding.without import Looking
    from interp.vision.reinforce import _layers

    def tower(depth: int) -> Looking:
        every = tuple(Layer(n, "", "", "self", 2, 2, 8, 8, None, "interface") for n in range(depth))
        return Looking("text", every, 16)

    assert _layers(tower(32), None) == {1, *range(18, 32)}
    assert _layers(tower(4), None) == {1, 2, 3}
    assert _layers(tower(2), None) == {1}
    with pytest.raises(InputsError, match="layers= are some of"):
        _layers(tower(2), [5])


def test_both_save_and_show(tmp_path: Path) -> None:
    m, x = asked("llava")
    for n, found in enumerate((divergence(m, x), reinforce(m, x, layers=[0, 1]))):
        back = interp.open(found.save(tmp_path / str(n)))
        pandas.testing.assert_frame_equal(back.to_frame(), found.to_frame())
        assert repr(back) == repr(found)
        assert found.plot() is not None
    torch.testing.assert_close(m.run(x, edits=back.edits)["logits"], m.run(x, edits=found.edits)["logits"])


def test_what_has_no_question_without_a_picture_is_refused() -> None:
    m, x = asked("llava")
    image = x.roles.where("image")[0]
    only = {"input_ids": x.ids[:1, image], "attention_mask": x.kwargs["attention_mask"][:1, image]}
    bare = m.inputs({**only, "pixel_values": x.kwargs["pixel_values"][:1]})
    refused: list[tuple[Any, Any, str]] = [
        (m, m.prepare(["What is"], chat=False), "holds no image token"),
        (m, bare, "row 0 has a picture and no text"),
        (*asked("blip-2"), "cannot run without pixel_values"),
        (planted("planted-decoder"), "fox = apple", "holds no image token"),
    ]
    for model, inputs, says in refused:
        for method in (divergence, reinforce):
            with pytest.raises(interp.InterpError, match=says):
                method(model, inputs)
    with pytest.raises(InputsError, match="alpha= is what"):
        reinforce(m, x, alpha=-1.0)
    with pytest.raises(InputsError, match="k is how many heads"):
        divergence(m, x).total(0)
