"""Replay equals the naive loop: the same patches, each in a full forward pass with an edit."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from patch_cells import cells_of
from torch import Tensor

import interp
from interp.hooks.drive.replay import Replay
from interp.hooks.drive.sweep import Answer, Cell, Reads, Sweep
from interp.hooks.errors import CheckFailed
from interp.hooks.examples.example import example
from interp.hooks.inputs.inputs import Inputs
from interp.hooks.sites import Site
from interp.zoo.families import tiny

DECODERS = [
    "gpt2",
    "gpt_neox",
    "opt",
    "llama",
    "mistral",
    "qwen2",
    "qwen3",
    "gemma2",
    "gemma3",
    "phi3",
    "gpt_oss",
    "deepseek_v3",
]
ENCODERS = ["bert", "vit", "dinov2"]
VALUES = ["resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out", "neurons", "attn_in", "mlp_in"]


def pair(name: str, *, padding: Any = None, shared: int = 3) -> tuple[interp.Model, Inputs, Inputs]:
    """A model and two batches that agree in their first columns."""
    m = interp.attach(tiny(name))
    base, source = (dict(example(m.module, batch=2, length=8, padding=padding, seed=seed)) for seed in (1, 2))
    if "input_ids" in base and base["input_ids"].shape == source["input_ids"].shape:
        valid = base.get("attention_mask", torch.ones_like(base["input_ids"])).bool()
        same = valid.cumsum(1) <= shared
        source = {**base, "input_ids": torch.where(same, base["input_ids"], source["input_ids"])}
    return m, m.inputs(base), m.inputs(source)


def cells(m: interp.Model, x: Inputs, y: Inputs, sites: list[Site], *, each: bool = False) -> list[Cell]:
    wanted = [site.whole for site in sites]
    old, new = m.run(x, record=wanted), m.run(y, record=wanted)

    def where(site: Site) -> list[Tensor]:
        every = torch.ones(old[site.whole].shape[:2], dtype=torch.bool)
        return [every & (torch.arange(every.shape[1]) == p) for p in range(every.shape[1])] if each else [every]

    return cells_of(sites, lambda s: new[s], lambda s: old[s], where)


def reads(m: interp.Model, x: Inputs) -> Reads:
    logits = m.run(x)["logits"]
    if logits.ndim == 2:
        return Reads(torch.zeros(len(logits), 1, dtype=torch.long), None)
    return Reads((x.valid * torch.arange(x.length)).amax(1)[:, None], None)


def sites(m: interp.Model, layer: int) -> list[Site]:
    tower = m.anatomy.tower(None, text="sites")
    found = tower.layer(layer)
    have = [c for c in VALUES if c in found.ports and c not in found.missing]
    one = tower.name if len(m.anatomy.towers) > 1 else None
    whole = [Site(one, layer, c) for c in (*have, "q", "k", "v", "z")]
    return [
        *whole,
        Site(one, layer, "z", (1,)),
        Site(one, layer, "q", (0,)),
        Site(one, layer, "k", (0,)),
        Site(one, layer, "v", (1,)),
    ]


def agree(m: interp.Model, x: Inputs, asked: list[Cell]) -> Sweep:
    sweep = Sweep(m.module, m.anatomy, x, m.called_with(x.kwargs))
    wanted = reads(m, x)
    answers = {a.number: a for a in sweep.run(asked, wanted)}
    assert set(answers) == set(range(len(asked)))
    for n, cell in enumerate(asked):
        full, answer = sweep.full(cell, wanted), answers[n]
        scale = float(full.abs().max())
        torch.testing.assert_close(
            answer.logits, full, atol=2e-5 * max(1.0, scale), rtol=0, msg=lambda text, c=cell: f"{c.site}: {text}"
        )
        assert torch.equal(answer.logits[~answer.changed], answer.unchanged[~answer.changed])
    assert isinstance(sweep.engine(asked[0].site.tower), Replay)
    return sweep


@pytest.mark.parametrize("name", [*DECODERS, *ENCODERS])
def test_every_site_of_a_middle_and_the_last_layer(name: str) -> None:
    m, x, y = pair(name)
    last = max(m.anatomy.tower(None, text="").by_index)
    asked = [c for layer in sorted({1, last}) for c in cells(m, x, y, sites(m, layer))]
    assert any(bool(c.where.any()) for c in asked)
    agree(m, x, asked)


@pytest.mark.parametrize("padding", ["left", "right"])
@pytest.mark.parametrize("name", ["gpt2", "llama", "gemma2", "bert"])
def test_padding_on_either_side(name: str, padding: str) -> None:
    m, x, y = pair(name, padding=padding)
    agree(m, x, cells(m, x, y, sites(m, 0)))


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_columns_that_are_padding_may_be_read(name: str) -> None:
    m, x, y = pair(name)
    mask = torch.ones(2, x.length, dtype=torch.long)
    mask[0, 5:] = 0
    x, y = (m.inputs({**side.kwargs, "attention_mask": mask}) for side in (x, y))
    every = Reads(torch.arange(x.length).expand(x.batch, -1), None)
    sweep = Sweep(m.module, m.anatomy, x, m.called_with(x.kwargs))
    asked = cells(m, x, y, [Site(None, 0, "z", (1,)), Site(None, 1, "resid_pre")])
    asked = [replace(cell, where=cell.where & x.valid) for cell in asked]
    for answer in sweep.run(asked, every):
        full = sweep.full(asked[answer.number], every)
        torch.testing.assert_close(answer.logits, full, atol=2e-5 * float(full.abs().max()), rtol=0)


@pytest.mark.parametrize("name", ["gpt2", "llama", "gemma3", "vit"])
def test_position_by_position(name: str) -> None:
    m, x, y = pair(name)
    one = m.anatomy.tower(None, text="")
    picked = [Site(None, layer, "resid_pre") for layer in one.by_index] + [Site(None, 1, "z", (2,))]
    agree(m, x, cells(m, x, y, picked, each=True))


def test_columns_before_the_first_difference_cost_nothing_and_are_exactly_zero() -> None:
    m, x, y = pair("llama", shared=5)
    asked = cells(m, x, y, [Site(None, 0, "resid_pre")], each=True)
    sweep = Sweep(m.module, m.anatomy, x, m.called_with(x.kwargs))
    for answer in sweep.run(asked, reads(m, x)):
        if answer.number < 5:
            assert not bool(answer.changed.any())
            assert torch.equal(answer.logits, answer.unchanged)
            everywhere = Cell(
                asked[answer.number].site,
                asked[answer.number].values,
                torch.arange(x.length).expand(2, -1) == answer.number,
            )
            assert torch.equal(sweep.full(everywhere, reads(m, x)), sweep.full(asked[answer.number], reads(m, x)))


def test_patching_every_position_of_the_residual_gives_the_sources_answer() -> None:
    m, x, y = pair("gpt2", shared=0)
    sweep, wanted = Sweep(m.module, m.anatomy, x, m.called_with(x.kwargs)), reads(m, x)
    for answer in sweep.run(cells(m, x, y, [Site(None, layer, "resid_pre") for layer in (0, 1)]), wanted):
        expected = m.run(y)["logits"][torch.arange(2)[:, None], wanted.positions]
        torch.testing.assert_close(answer.logits, expected, atol=2e-5, rtol=1e-5)


def test_chunks_of_rows_and_tokens_do_not_change_the_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    m, x, y = pair("llama")
    asked, wanted = cells(m, x, y, [Site(None, layer, "resid_pre") for layer in (0, 1)], each=True), reads(m, x)
    whole = [a.logits for a in Sweep(m.module, m.anatomy, x, m.called_with(x.kwargs)).run(asked, wanted)]
    monkeypatch.setattr("interp.hooks.drive.slices.TOKENS", 3)
    monkeypatch.setattr("interp.hooks.drive.packed.WEIGHTS", 8)
    small = Sweep(m.module, m.anatomy, x, m.called_with(x.kwargs), budget=1)
    assert len(small.chunks(asked, wanted)) > 4
    made = [a.logits for a in small.run(asked, wanted)]
    torch.testing.assert_close(torch.stack(made), torch.stack(whole), atol=2e-5, rtol=1e-5)


def test_a_tower_that_cannot_be_driven_is_patched_in_full_passes_and_says_so() -> None:
    m, x, y = pair("gptj")
    asked = cells(m, x, y, [Site(None, 0, "z", (1,))])
    sweep = Sweep(m.module, m.anatomy, x, m.called_with(x.kwargs), family=m.family)
    at = Reads(torch.zeros(2, 1, dtype=torch.long), None)
    with pytest.warns(UserWarning, match="full forward passes"):
        answers = list(sweep.run(asked, at))
    assert torch.equal(answers[0].logits, sweep.full(asked[0], at))


def test_an_answer_that_is_not_the_models_is_refused() -> None:
    m, x, y = pair("llama")
    asked, wanted = cells(m, x, y, [Site(None, 0, "z", (1,))]), reads(m, x)
    sweep = Sweep(m.module, m.anatomy, x, m.called_with(x.kwargs))
    answer = next(sweep.run(asked, wanted))
    assert sweep.compare(asked[0], answer, wanted) < 1e-4
    with pytest.raises(CheckFailed, match=r"L0\.H1\.z"):
        sweep.compare(asked[0], Answer(0, answer.logits + 0.1, answer.unchanged, answer.changed), wanted)


def test_nothing_is_left_on_the_model() -> None:
    m, x, y = pair("gpt2")
    before = m.run(x)["logits"]
    agree(m, x, cells(m, x, y, sites(m, 1)))
    assert torch.equal(m.run(x)["logits"], before)
    assert not any(vars(child).get("forward") for child in m.module.modules())
    assert not any(child._forward_hooks or child._forward_pre_hooks for child in m.module.modules())
