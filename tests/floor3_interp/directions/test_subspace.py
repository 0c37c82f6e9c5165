"""Compressing a head's queries: the definition, the full rank, the planted rank, and random subspaces beside it."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from models import attached
from torch import Tensor

import interp
from interp.hooks.errors import InputsError, SiteError
from interp.hooks.examples.example import example
from interp.metrics.shipped import LogitDifference
from interp.planted import build
from interp.prompts.planted_words import WORDS


def difference(logits: Tensor, inputs: Any) -> Tensor:
    return logits[:, -1, 0] - logits[:, -1, 1]


def asked() -> tuple[interp.Model, dict[str, Tensor]]:
    m = attached("llama")
    return m, dict(example(m.module, batch=5, length=6, seed=1))


def test_ranks_are_those_of_the_definition() -> None:
    m, x = asked()
    s = interp.directions.subspace(m, x, metric=difference, sites="L1.H2.q", ranks=[0, 2, 8], draws=2)
    q = m.run(x, record="L1.H2.q")["L1.H2.q"]
    last = q[:, -1, 0].double()
    mean = last.mean(0)
    _, sizes, v = torch.linalg.svd(last - mean)
    for n, rank in enumerate((0, 2)):
        kept = (mean + (last - mean) @ v[:rank].T @ v[:rank]).float()
        edited = m.run(x, edits=[interp.Set("L1.H2.q", kept[:, None, None], positions="last")])["logits"]
        torch.testing.assert_close(s.values[n].float(), difference(edited, None), atol=3e-5, rtol=1e-4)
    torch.testing.assert_close(s.values[2], s.base, atol=0, rtol=0)
    torch.testing.assert_close(s.spectrum["L1.H2.q"][: len(sizes)], sizes.square() / sizes.square().sum())
    assert s.random.shape == (3, 2, 5)
    torch.testing.assert_close(s.random[2, 0], s.base, atol=0, rtol=0)
    assert list(s.to_frame()["rank"]) == [0, 2, 8]


def test_several_sites_at_their_own_positions() -> None:
    m, x = asked()
    s = interp.directions.subspace(
        m,
        x,
        metric=difference,
        sites=["L1.H2.q", "L1.K1.k"],
        ranks=[1],
        draws=1,
        positions={"L1.H2.q": "last", "L1.K1.k": [1, 2]},
    )
    assert s.sites == ("L1.H2.q", "L1.K1.k")
    assert {site: tuple(v.shape) for site, v in s.directions.items()} == dict.fromkeys(s.sites, (8, 8))
    assert bool((s.values[0] != s.base).any())


def test_a_matching_head_needs_the_words_it_was_asked_for_and_random_subspaces_do_not_do() -> None:
    """Two words repeated in four prompts: the induction head's queries differ in one dimension, which carries all."""
    m = interp.attach(*build("planted-decoder"))
    a, b, c, d = random.Random(0).sample(WORDS, 4)
    x = m.prepare([f"{a} {b} {c} {d} {a}", f"{a} {b} {c} {d} {c}"] * 2)
    right, wrong = (tuple((m.tokenizer.convert_tokens_to_ids(w),) for w in words) for words in ([b, d] * 2, [d, b] * 2))
    metric = LogitDifference(right, wrong)
    s = interp.directions.subspace(m, x, metric=metric, sites="L1.H4.q", ranks=[0, 1], draws=10)
    frame = s.to_frame().set_index("rank")
    assert frame.loc[1, "metric"] == pytest.approx(frame.loc[1, "base"], rel=1e-2)
    assert frame.loc[1, "metric"] > 15
    assert frame.loc[0, "metric"] < 1
    assert frame.loc[1, "random_high"] < 5
    assert float(s.spectrum["L1.H4.q"][0]) == pytest.approx(1.0, abs=1e-4)


def test_what_has_no_meaning_is_refused() -> None:
    m, x = asked()
    with pytest.raises(SiteError, match="8 wide"):
        interp.directions.subspace(m, x, metric=difference, sites="L1.H2.q", ranks=[9])
    with pytest.raises(InputsError, match="draws= is how many"):
        interp.directions.subspace(m, x, metric=difference, sites="L1.H2.q", ranks=[1], draws=0)
    with pytest.raises(SiteError, match="at least one rank"):
        interp.directions.subspace(m, x, metric=difference, sites="L1.H2.q", ranks=[])
    with pytest.raises(SiteError, match="name one head"):
        interp.directions.subspace(m, x, metric=difference, sites="L1.q", ranks=[1])
    with pytest.raises(InputsError, match="positions for each"):
        interp.directions.subspace(m, x, metric=difference, sites="L1.H2.q", positions={"L1.H3.q": "last"}, ranks=[1])
    one = {name: value[:1] for name, value in x.items()}
    with pytest.raises(InputsError, match="at least two vectors"):
        interp.directions.subspace(m, one, metric=lambda g, i: g[:, -1, 0], sites="L1.H2.q", ranks=[1])
