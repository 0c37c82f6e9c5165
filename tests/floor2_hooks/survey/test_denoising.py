"""Words and cells as two residuals that meet in one attention, each against hooks made by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from denoisers import denoiser
from torch import Tensor, nn

import interp
from interp.hooks.denoisers.calls import call_of
from interp.hooks.errors import InputsError, SiteError

pytestmark = pytest.mark.families
WORDS, CELLS = 7, 24
JOINT = {"SD3Transformer2DModel": "norm2", "FluxTransformer2DModel": "norm2"}


def held(name: str) -> tuple[interp.Model, dict[str, Any]]:
    m = interp.attach(denoiser(name))
    return m, call_of(m.module, batch=2, random=torch.Generator().manual_seed(0))


class _Seen:
    """What a module of a block was given and gave, by torch's own hooks."""

    def __init__(self, module: nn.Module) -> None:
        module.register_forward_hook(self, with_kwargs=True)

    def __call__(self, module: nn.Module, args: Any, kwargs: Any, made: Any) -> None:
        self.args, self.kwargs, self.made = args, kwargs, made


@pytest.mark.parametrize("name", JOINT)
def test_both_streams_are_what_the_block_does(name: str) -> None:
    m, given = held(name)
    block = m.module.transformer_blocks[1]
    whole, words, cells, middle = map(_Seen, (block, block.attn.to_add_out, block.attn.to_out[0], block.norm2_context))
    components = "z result attn_out attn_write resid_pre resid_mid resid_post mlp_write neurons".split()
    sites = [f"{tower}.L1.{one}" for tower in ("denoiser", "words") for one in components]
    tape = m.run(given, record=sites)
    text, picture = whole.made
    for tower, seen, before, after in (("words", words, "encoder_hidden_states", text),
                                       ("denoiser", cells, "hidden_states", picture)):  # fmt: skip
        own = {one: tape[f"{tower}.L1.{one}"] for one in ("attn_out", "resid_pre", "resid_post")}
        assert torch.equal(own["resid_pre"], whole.kwargs[before])
        assert torch.equal(own["resid_post"], after)
        assert torch.equal(own["attn_out"], seen.made)
        projection = (block.attn.to_add_out if tower == "words" else block.attn.to_out[0]).double()
        z = seen.args[0].double().unflatten(-1, (2, 8))
        results = torch.einsum("bphd,ohd->bpho", z, projection.weight.unflatten(1, (2, 8)))
        torch.testing.assert_close(tape[f"{tower}.L1.result"].double(), results, atol=1e-5, rtol=0)
        torch.testing.assert_close(results.sum(2) + projection.bias, seen.made.double(), atol=1e-5, rtol=0)
        projection.float()
    assert torch.equal(tape["words.L1.z"].flatten(2), words.args[0])
    first = name.startswith("SD3")
    assert torch.equal(
        tape["denoiser.L1.z"][:, CELLS:] if first else tape["denoiser.L1.z"][:, :WORDS], tape["words.L1.z"]
    )
    assert torch.equal(tape["words.L1.resid_mid"], middle.args[0])
    torch.testing.assert_close(tape["words.L1.resid_mid"] + tape["words.L1.mlp_write"], text, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", JOINT)
def test_the_words_part_of_a_head_is_edited_alone(name: str) -> None:
    m, given = held(name)
    hand = denoiser(name)
    hand.transformer_blocks[0].attn.to_add_out.register_forward_pre_hook(
        lambda _, args: (args[0] * torch.tensor([1.0] * 8 + [0.0] * 8),)
    )
    edited = m.run(given, edits=[interp.Scale("words.L0.H1.z", 0.0)])["logits"]
    with torch.no_grad():
        assert torch.equal(edited, hand(**given).sample)
        assert not torch.equal(edited, m.module(**given).sample)
    pushed = torch.zeros(16)
    pushed[3] = 2.0
    result = m.run(given, record="words.L0.attn_out", edits=[interp.Add("words.L0.H0.result", pushed)])
    plain = m.run(given, record="words.L0.attn_out")
    torch.testing.assert_close(result["words.L0.attn_out"] - plain["words.L0.attn_out"], pushed.expand(2, WORDS, 16))


def test_positions_are_those_of_the_stream() -> None:
    m, given = held("SD3Transformer2DModel")
    sites = ["denoiser.L1.resid_pre", "words.L1.resid_pre", "denoiser.L1.z"]
    edits = [
        interp.Scale("denoiser.L1.resid_pre", 0.0, positions=[2]),
        interp.Scale("words.L1.resid_pre", 0.0, positions=[3]),
    ]
    plain, edited = m.run(given, record=sites), m.run(given, record=sites, edits=edits)
    changed = {
        site: (plain[site] != edited[site]).flatten(2).any(-1).any(0).nonzero().flatten().tolist() for site in sites[:2]
    }
    assert changed == {sites[0]: [2], sites[1]: [3]}
    cut = m.run(given, record=sites[0], positions="image")[sites[0]]
    assert torch.equal(cut, plain[sites[0]])
    with pytest.raises(InputsError, match="select nothing"):
        m.run(given, edits=[interp.Scale("words.L1.resid_pre", 0.0, positions="image")])
    with pytest.raises(SiteError, match="words and cells together"):
        m.run(given, record="words.L1.pattern")


def test_where_one_module_works_on_both_the_words_have_their_ends() -> None:
    m, given = held("FluxTransformer2DModel")
    last = _Seen(m.module.single_transformer_blocks[1])
    tape = m.run(given, record=["words.L3.resid_pre", "words.L3.resid_post"])
    assert torch.equal(tape["words.L3.resid_post"], last.made[0])
    with pytest.raises(SiteError, match="at once"):
        m.run(given, record="words.L3.z")


@pytest.mark.filterwarnings("ignore:.*patched in full forward passes:UserWarning")
def test_heads_of_a_stream_are_patched_as_by_hand() -> None:
    m, base = held("SD3Transformer2DModel")
    source = call_of(m.module, batch=2, random=torch.Generator().manual_seed(1))

    def metric(logits: Tensor, inputs: Any) -> Tensor:
        return logits.double().flatten(1).square().mean(1)

    kept = m.run(source, record="words.L0.z")["words.L0.z"]
    found = interp.patch(m, base=base, source=source, metric=metric, sites="words.L0.H*.z")
    for head in range(2):

        def put(_: nn.Module, args: Any, head: int = head) -> Any:
            x = args[0].clone()
            x[..., head * 8 : head * 8 + 8] = kept[:, :, head]
            return (x,)

        handle = m.module.transformer_blocks[0].attn.to_add_out.register_forward_pre_hook(put)
        with torch.no_grad():
            by_hand = metric(m.module(**base).sample, None)
        handle.remove()
        with torch.no_grad():
            effect = by_hand - metric(m.module(**base).sample, None)
        torch.testing.assert_close(found.values[head].double(), effect, atol=1e-6, rtol=1e-5)
