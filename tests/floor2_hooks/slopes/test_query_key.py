"""A query exchanged in one attention call, in the call's own precision."""

from __future__ import annotations

import torch
from transformers import GPT2Config, GPT2LMHeadModel

import interp
from interp.hooks.sites import Site
from interp.hooks.slopes.gradients import graph
from interp.hooks.slopes.query_key import query_effect


def test_a_query_exchanged_in_float64_is_exact_in_float64() -> None:
    torch.manual_seed(0)
    config = GPT2Config(n_embd=32, n_layer=1, n_head=4, vocab_size=60, n_positions=16)
    m = interp.attach(GPT2LMHeadModel(config).double().eval())
    ids = torch.randint(0, 60, (2, 5))
    x, site = m.inputs({"input_ids": ids}), Site(None, 0, "z")
    tape = m.run(x, record=["L0.k", "L0.v", "L0.q", "L0.z"])
    found = graph(
        m.module, m.anatomy, x, m.called_with(x.kwargs), sites=[site], score=lambda logits: logits[:, -1, 0],
        calls=[site], family=m.family,
    )  # fmt: skip
    new, dz = torch.randn_like(tape["L0.q"]), torch.randn_like(tape["L0.z"])
    scores = torch.einsum("bihd,bjhd->bhij", new, tape["L0.k"]) / 8**0.5
    weights = scores.masked_fill(torch.ones(5, 5).triu(1).bool(), -torch.inf).softmax(-1)
    z = torch.einsum("bhij,bjhd->bihd", weights, tape["L0.v"])
    wanted = ((z - tape["L0.z"]) * dz).sum(-1)
    assert torch.allclose(query_effect(found.calls[site], new, dz), wanted, rtol=0, atol=1e-13)
