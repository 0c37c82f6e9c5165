"""Blocks run one by one: an unchanged residual gives the run bit for bit, moved tokens go through alone as with all."""

from __future__ import annotations

import pytest
import torch
from models import attached

from interp.hooks.drive.chain import Chain, Tokens
from interp.hooks.examples.example import example


def chain(name: str) -> Chain:
    m = attached(name)
    m.ready()
    tower = m.anatomy.towers["decoder" if "decoder" in m.anatomy.towers else m.anatomy.main or ""]
    return Chain(m.module, m.anatomy, tower, m.called_with(example(m.module, batch=2, length=6, seed=1)))


@pytest.mark.parametrize("name", ["gpt2", "llama", "gemma2", "gpt_neox", "opt", "bert", "vit", "llava", "t5"])
def test_a_block_gives_what_it_gave_and_tokens_go_through_it_by_themselves(name: str) -> None:
    c = chain(name)
    for layer in c.layers:
        entered = c.plain(layer, "resid_pre")
        assert torch.equal(c.run(layer, entered), c._left(layer))
        assert c._packs(layer)
        some, others = entered.clone(), entered.clone()
        some[0, 1:3] += torch.randn(2, entered.shape[-1])
        others[1, 2:] *= 1.5
        versions = [Tokens.between(new, entered) for new in (some, others, entered)]
        assert [len(version.hidden) for version in versions] == [2, entered.shape[1] - 2, 0]
        for new, made in zip((some, others, entered), c.advance(layer, versions), strict=True):
            whole = c.run(layer, new)
            torch.testing.assert_close(made.into(c._left(layer)), whole, atol=1e-4, rtol=1e-4)


def test_a_block_that_needs_all_its_tokens_is_run_whole() -> None:
    c = chain("gpt2")
    block = c.module.get_submodule(c.tower.by_index[0].block)
    own = block.ln_2.forward
    block.ln_2.forward = lambda x: own(x) * x.shape[1]  # type: ignore[method-assign]
    try:
        odd = chain("gpt2")
        assert not odd._packs(0)
        assert odd._packs(1)
        entered = odd.plain(0, "resid_pre")
        new = entered + 0.1 * torch.randn_like(entered)
        (made,) = odd.advance(0, [Tokens.between(new, entered)])
        assert torch.equal(made.into(entered), odd.run(0, new))
    finally:
        del block.ln_2.forward
    assert not any("forward" in vars(child) for child in c.module.modules())
