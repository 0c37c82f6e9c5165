"""Routing by the length of queries is the definition's, token by token, in every kind of attention it can see."""

from __future__ import annotations

import pytest
import torch
from models import attached, mpt
from torch import Tensor

import interp
from interp.hooks.errors import EditError
from interp.hooks.examples.example import example
from interp.hooks.stand.ports import head_results


def by_hand(q: Tensor, z: Tensor, heads: list[int], keep: int, shared: set[int]) -> Tensor:
    """For each token: the `keep` heads with the longest q among those that are not shared, and the shared ones."""
    out = z.clone().double()
    for b in range(z.shape[0]):
        for i in range(z.shape[1]):
            free = [h for h in heads if h not in shared]
            ranked = sorted(free, key=lambda h: -float(q[b, i, h].double().norm()))
            for h in ranked[keep:]:
                out[b, i, h] = 0
    return out


@pytest.mark.parametrize("name", ["gpt2", "llama", "gemma2", "gptj", "plain", "vit", "bert"])
@pytest.mark.parametrize(("keep", "shared"), [(1, 0), (2, 1), (1, (2,)), (0, 2)])
def test_each_token_keeps_the_heads_with_the_longest_queries(name: str, keep: int, shared: int | tuple) -> None:
    m = attached(name)
    x = m.inputs(dict(example(m.module, batch=2, seed=3)))
    plain = m.run(x, record=["L1.q", "L1.z"])
    tape = m.run(x, record=["L1.q", "L1.z", "L1.attn_out"], edits=[interp.edits.RouteHeads("L1.z", keep, shared)])
    layer = m.anatomy.tower(None, text="").layer(1)
    always = set(range(shared)) if isinstance(shared, int) else set(shared)
    expected = by_hand(plain["L1.q"], plain["L1.z"], list(range(layer.heads)), keep, always)
    torch.testing.assert_close(tape["L1.z"].double(), expected, atol=1e-6, rtol=1e-5)
    assert bool((expected == 0).all(-1).any()) == (keep + len(always) < layer.heads)
    out = m.module.get_submodule(layer.out)
    parts = head_results(out, tape["L1.z"], tuple(range(layer.heads))).sum(2)
    bias = out(torch.zeros_like(tape["L1.z"][:1, :1]).flatten(-2))
    torch.testing.assert_close(tape["L1.attn_out"].reshape(parts.shape), parts + bias, atol=1e-4, rtol=1e-4)


def test_heads_the_site_leaves_out_are_not_touched() -> None:
    m = attached("llama")
    x = m.inputs(dict(example(m.module, batch=2, seed=3)))
    plain = m.run(x, record=["L0.q", "L0.z"])
    tape = m.run(x, record="L0.z", edits=[interp.edits.RouteHeads("L0.H1-3.z", 1)])
    torch.testing.assert_close(
        tape["L0.z"].double(), by_hand(plain["L0.q"], plain["L0.z"], [1, 2, 3], 1, set()), atol=1e-6, rtol=1e-5
    )
    assert torch.equal(tape["L0.z"][:, :, 0], plain["L0.z"][:, :, 0])


def test_positions_and_rows_and_queries_edited_before() -> None:
    m = attached("llama")
    x = m.inputs(dict(example(m.module, batch=2, seed=3)))
    plain = m.run(x, record=["L0.q", "L0.z"])
    tape = m.run(x, record="L0.z", edits=[interp.edits.RouteHeads("L0.z", 1, positions=[2], rows=(1,))])
    assert torch.equal(tape["L0.z"][0], plain["L0.z"][0])
    assert torch.equal(tape["L0.z"][1, :2], plain["L0.z"][1, :2])
    assert int((tape["L0.z"][1, 2] == 0).all(-1).sum()) == 3
    longest = [interp.Scale("L0.H3.q", 100.0), interp.edits.RouteHeads("L0.z", 1)]
    routed = m.run(x, record="L0.z", edits=longest)["L0.z"]
    assert bool((routed[:, :, :3] == 0).all())
    assert bool((routed[:, :, 3] != 0).any())


def test_a_cache_changes_nothing() -> None:
    m = attached("llama")
    ids = torch.randint(5, 150, (1, 6), generator=torch.Generator().manual_seed(0))
    edits = [interp.edits.RouteHeads("L*.z", 2)]
    said = m.generate({"input_ids": ids}, edits=edits, max_new_tokens=4).ids
    for _ in range(4):
        logits = m.run({"input_ids": ids}, edits=edits)["logits"]
        ids = torch.cat([ids, logits[:, -1:].argmax(-1)], dim=1)
    assert said.tolist() == ids[:, -4:].tolist()


def test_what_cannot_be_routed_is_refused() -> None:
    m = attached("llama")
    x = m.inputs(dict(example(m.module, batch=2, seed=3)))
    with pytest.raises(EditError, match="3 heads are routed"):
        m.run(x, edits=[interp.edits.RouteHeads("L0.z", 4, 1)])
    with pytest.raises(EditError, match="there is no head 9"):
        m.run(x, edits=[interp.edits.RouteHeads("L1.z", keep=1, shared=(9,))])
    with pytest.raises(EditError, match="count heads"):
        interp.edits.RouteHeads("L0.z", -1)
    with pytest.raises(EditError, match="its site must be z"):
        m.run(x, edits=[interp.edits.RouteHeads("L0.q", 1)])
    with pytest.raises(EditError, match="reads the queries"):
        mpt().run(dict(example(mpt().module, batch=2, seed=3)), edits=[interp.edits.RouteHeads("L0.z", 1)])
