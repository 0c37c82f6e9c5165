"""Contrastive retrieval heads: the softmax of summed weights by its definition; the planted retriever is told."""

from __future__ import annotations

import pytest
import torch
from models import planted

import interp
from interp.hooks.errors import InputsError
from interp.prompts.rows import Row
from interp.tasks.task import Task


def task() -> Task:
    """Which passage a question belongs to; the asked one stands first, then in the middle."""
    positions = {"needle": (1, 4), "other": (5, 8), "third": (9, 12)}
    rows = []
    for asked, places in (("fox", positions), ("lake", {**positions, "needle": (5, 8), "other": (1, 4)})):
        text = f"fox = apple , lake = stone , moon = crow , {asked} ="
        rows.append(Row(text, text, (" apple",), (" stone",), {**places, "question": (13, 15)}))
    return Task("pairs", tuple(rows)).on(planted("planted-decoder"))


def test_scores_are_their_definition() -> None:
    m = planted("planted-decoder")
    found = interp.long.contrastive_heads(m, task(), others=["other", "third"], temperature=0.2)
    m.module.set_attn_implementation("eager")
    patterns = m.module(**task().clean.kwargs, output_attentions=True).attentions
    m.module.set_attn_implementation("sdpa")
    p = torch.cat(patterns, 1)[:, :, 13:15].double().mean(2).detach()  # [example, head, key]
    for n, row in enumerate(task().rows):
        each = torch.stack([p[n, :, slice(*row.positions[name])].sum(-1) for name in ("needle", "other", "third")])
        expected = (each / 0.2).exp()[0] / (each / 0.2).exp().sum(0)
        assert torch.allclose(found.scores[:, n], expected, atol=1e-6)


def test_the_planted_retriever_is_among_the_first_and_a_head_at_rest_has_its_share() -> None:
    found = interp.long.contrastive_heads(planted("planted-decoder"), task(), others=["other", "third"])
    mean = dict(zip(found.sites, found.scores.mean(1).tolist(), strict=True))
    assert mean["L1.H2"] > 0.99
    assert mean["L0.H3"] == pytest.approx(1 / 3, abs=1e-3)  # it rests on <bos>


def test_what_is_not_there_is_refused() -> None:
    m = planted("planted-decoder")
    with pytest.raises(InputsError, match="at least one other"):
        interp.long.contrastive_heads(m, task(), others=[])
    with pytest.raises(InputsError, match="a temperature over 0"):
        interp.long.contrastive_heads(m, task(), others=["other"], temperature=0.0)
    with pytest.raises(InputsError, match="does not say where its"):
        interp.long.contrastive_heads(m, task(), others=["fourth"])
