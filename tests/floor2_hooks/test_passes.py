"""A pass of a layer is met in that pass: against hooks by hand that count the calls of a module."""

from __future__ import annotations

import copy
import pickle
import threading
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from looped import (
    HEADS,
    WORDS,
    AtCall,
    Halting,
    Recurrent,
    Universal,
    albert,
    blocks,
    looped_llama,
    outs,
    put_heads,
    twice,
)
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import interp
from interp.hooks.errors import ModelError, NotFired, SiteError
from interp.hooks.passes import Count
from interp.hooks.sites import LayerPass
from interp.hooks.stand.sdpa import Sdpa

pytestmark = pytest.mark.families

MODELS: dict[str, Callable[[], Any]] = {
    "albert": albert,
    "albert, two groups": lambda: albert(layers=4, groups=2),
    "albert, two layers a group": lambda: albert(layers=3, inner=2),
    "universal": lambda: Universal(blocks=2, loops=3),
    "recurrent": Recurrent,
    "llama": looped_llama,
}


def held(module: nn.Module, ids: Tensor | None = None) -> Any:
    ids = tokens() if ids is None else ids
    return interp.attach(module.eval(), example={"input_ids": ids, "attention_mask": torch.ones_like(ids)})


def tokens(rows: int = 2, length: int = 7) -> Tensor:
    return torch.randint(3, WORDS, (rows, length), generator=torch.Generator().manual_seed(3))


def padded() -> dict[str, Tensor]:
    """Three rows, two of them padded on the left."""
    ids, mask = tokens(3), torch.ones(3, 7, dtype=torch.long)
    mask[1, :2], mask[2, :3] = 0, 0
    return {"input_ids": ids * mask, "attention_mask": mask}


def logits(module: nn.Module, kwargs: dict[str, Tensor]) -> Tensor:
    with torch.no_grad():
        made = module(**kwargs)
    return made if torch.is_tensor(made) else made.logits


def layers_of(m: Any) -> list[tuple[int, int]]:
    """Number and pass of all that the tower runs, in order."""
    found = [layer.index for layer in m.towers["text"].layers]
    return [(n.number, n.nth or 0) if isinstance(n, LayerPass) else (n, 0) for n in found]


@pytest.mark.parametrize("name", MODELS)
def test_every_pass_is_recorded_where_it_ran(name: str) -> None:
    m, kwargs = held(MODELS[name]()), padded()
    tape = m.run(kwargs, record=["L*.z", "L*.resid_pre", "L*.resid_post"])
    for number, (out, block) in enumerate(zip(outs(m.module), blocks(m.module), strict=True)):
        with AtCall(out) as z, AtCall(block) as before, AtCall(block, side="out") as after:
            logits(m.module, kwargs)
        assert z.count == sum(layer == number for layer, _ in layers_of(m))
        for n in range(z.count):
            at = f"L{number}@{n}" if z.count > 1 else f"L{number}"
            assert torch.equal(tape[f"{at}.z"].flatten(-2), z.seen[n])
            assert torch.equal(tape[f"{at}.resid_pre"], before.seen[n])
            assert torch.equal(tape[f"{at}.resid_post"], after.seen[n])
    assert not m.handles()


def test_patterns_are_those_of_each_pass() -> None:
    m, kwargs = held(albert(attn_implementation="eager")), padded()
    with torch.no_grad():
        theirs = m.module(**kwargs, output_attentions=True).attentions
    assert len(theirs) == 12
    found = m.run(kwargs, record="L0.pattern")["L0.pattern"]
    for n, weights in enumerate(theirs):
        assert torch.allclose(found[f"L0@{n}.pattern"], weights, atol=1e-6)


@pytest.mark.parametrize("name", MODELS)
def test_a_head_of_one_pass_is_changed_there_and_nowhere_else(name: str) -> None:
    m, kwargs = held(MODELS[name]()), padded()
    number, n = max((layer for layer in layers_of(m)), key=lambda one: one[1])
    at, plain = f"L{number}@{n}", logits(m.module, kwargs)
    with AtCall(outs(m.module)[number], put_heads(0.0, [2]), calls=[n]):
        wanted = logits(m.module, kwargs)
    assert not torch.allclose(wanted, plain, atol=1e-4)
    site = f"{at}.H2.z"
    for edit in (interp.Zero(site), interp.Scale(site, 0.0), interp.Apply(site, lambda z: 0 * z)):
        assert torch.equal(m.run(kwargs, record="logits", edits=[edit])["logits"], wanted)
    with m.edited([interp.Zero(f"{at}.H2.z")]):
        assert torch.equal(logits(m.module, kwargs), wanted)
    assert torch.equal(logits(m.module, kwargs), plain)


def test_patterns_and_programs_of_one_pass() -> None:
    """A head that attends evenly gives the mean of its values: by hand, in the pass alone."""
    m, kwargs = held(albert(layers=5)), {"input_ids": tokens(), "attention_mask": torch.ones(2, 7, dtype=torch.long)}
    v = m.run(kwargs, record="L0@3.v")["L0@3.v"]
    even = v.mean(1, keepdim=True).expand_as(v).flatten(-2)
    with AtCall(outs(m.module)[0], put_heads(even, [1]), calls=[3]):
        wanted = logits(m.module, kwargs)
    blended = m.run(kwargs, record="logits", edits=[interp.Blend("L0@3.H1", to="uniform", amount=1.0)])["logits"]
    pattern = interp.Set("L0@3.H1.pattern", torch.full((2, 1, 7, 7), 1 / 7))
    put = m.run(kwargs, record="logits", edits=[pattern])["logits"]
    assert torch.allclose(blended, wanted, atol=1e-5)
    assert torch.allclose(put, wanted, atol=1e-5)


def test_a_layer_without_a_pass_means_all_of_them() -> None:
    m, kwargs = held(albert(layers=4)), padded()
    with AtCall(outs(m.module)[0], put_heads(0.0, [0, 3]), calls=range(4)):
        every = logits(m.module, kwargs)
    with AtCall(outs(m.module)[0], put_heads(0.0, [0, 3]), calls=[1, 2]):
        some = logits(m.module, kwargs)
    zeroed = {}
    for at in ("0", "*", "0@*", "0@0-3", "0@1,2", "0@1-2"):
        zeroed[at] = m.run(kwargs, record="logits", edits=[interp.Zero(f"L{at}.H0,3.z")])["logits"]
    assert all(torch.equal(zeroed[at], every) for at in ("0", "*", "0@*", "0@0-3"))
    assert all(torch.equal(zeroed[at], some) for at in ("0@1,2", "0@1-2"))
    said = "bare L0 means all of them"
    assert said in str(m.anatomy)
    assert said in str(m.check())


def test_residuals_norms_and_writes_of_one_pass() -> None:
    m, kwargs = held(Universal(blocks=2, loops=3)), padded()
    block = m.module.blocks[1]
    more = torch.randn(1, 1, 32)
    places = {
        "resid_pre": (block, "in"), "attn_in": (block.attention, "in"), "attn_out": (block.attention.o, "out"),
        "mlp_in": (block.mlp, "in"), "neurons": (block.mlp[2], "in"), "mlp_out": (block.mlp, "out"),
        "resid_post": (block, "out"),
    }  # fmt: skip
    for site, (module, side) in places.items():
        value = more if site != "neurons" else torch.ones(1, 1, 48)
        with AtCall(module, lambda x, value=value: x + value, calls=[1], side=side):
            wanted = logits(m.module, kwargs)
        found = m.run(kwargs, record="logits", edits=[interp.Add(f"L1@1.{site}", value[0, 0])])["logits"]
        assert torch.equal(found, wanted), site


def test_two_threads_are_in_their_own_passes() -> None:
    m, kwargs = held(albert()), padded()
    m.ready()
    wanted: dict[int, Tensor] = {}
    for n in (3, 7):
        with AtCall(outs(m.module)[0], put_heads(0.0, [1]), calls=[n]):
            wanted[n] = logits(m.module, kwargs)
    plain, wrong = logits(m.module, kwargs), []
    start = threading.Barrier(3)

    def run(n: int | None) -> None:
        start.wait()
        for _ in range(15):
            if n is None:
                good = torch.equal(logits(m.module, kwargs), plain)
            else:
                tape = m.run(kwargs, record=["logits", f"L0@{n}.z"], edits=[interp.Zero(f"L0@{n}.H1.z")])
                good = torch.equal(tape["logits"], wanted[n]) and not bool(tape[f"L0@{n}.z"][:, :, 1].any())
            if not good:
                wrong.append(n)

    threads = [threading.Thread(target=run, args=(n,)) for n in (3, 7, None)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_a_call_that_fails_leaves_no_count_behind() -> None:
    m, kwargs = held(albert(layers=6)), padded()
    wanted = m.run(kwargs, record="L0@4.z")["L0@4.z"]

    def stop(z: Tensor) -> Tensor:
        raise ArithmeticError("stopped")

    with m.edited([interp.Zero("L0@5.H0.z")]):
        with pytest.raises(ArithmeticError, match="stopped"):
            m.run(kwargs, edits=[interp.Apply("L0@2.z", stop)])
        assert torch.equal(m.run(kwargs, record="L0@4.z")["L0@4.z"], wanted)
    assert not Count._known.get(m.module)


def test_a_part_of_the_model_that_is_called_by_itself_counts_from_its_start() -> None:
    m, kwargs = held(albert(layers=4)), padded()
    inner = m.module.albert
    with AtCall(outs(m.module)[0], put_heads(0.0, [1]), calls=[2]), torch.no_grad():
        wanted = inner(**kwargs).last_hidden_state
    with m.edited([interp.Zero("L0@2.H1.z")]), torch.no_grad():
        for _ in range(2):
            assert torch.equal(inner(**kwargs).last_hidden_state, wanted)


class Checkpointed(Universal):
    """Its blocks are run once more on the way back."""

    reentrant = False

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        x = self.embed(input_ids)
        mask = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).tril()
        for _ in range(self.loops):
            for block in self.blocks:
                x = checkpoint(block, x, mask, use_reentrant=self.reentrant)
        return self.head(self.norm(x))


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")  # torch's, while the model is traced
@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing_runs_a_pass_again_as_that_pass(reentrant: bool) -> None:
    torch.manual_seed(0)
    again = Checkpointed(blocks=2, loops=3)
    again.reentrant = reentrant
    plain = Universal(blocks=2, loops=3)
    plain.load_state_dict(again.state_dict())
    grads = []
    for module in (plain, again):
        m = held(module)
        with m.edited([interp.Scale("L1@1.H2.z", 3.0)]):
            (m.module(tokens(), torch.ones(2, 7)).square().sum() / 100).backward()
        grads.append({name: p.grad for name, p in module.named_parameters()})
    for name, grad in grads[0].items():
        assert torch.allclose(grads[1][name], grad, atol=1e-5), name
    unedited = Universal(blocks=2, loops=3)
    unedited.load_state_dict(plain.state_dict())
    (unedited(tokens(), torch.ones(2, 7)).square().sum() / 100).backward()
    assert not torch.allclose(unedited.head.weight.grad, grads[0]["head.weight"], atol=1e-3)


def test_a_block_that_is_called_by_itself_is_in_no_pass() -> None:
    m = held(Universal(loops=2))
    x, mask = torch.randn(1, 4, 32), torch.ones(4, 4, dtype=torch.bool)
    with m.edited([interp.Zero("L0@1.H0.z")]), pytest.raises(ModelError, match="outside of a call of the model"):
        m.module.blocks[0](x, mask)
    m.module.blocks[0](x, mask)


def halting(times: int) -> dict[str, Tensor]:
    ids = tokens(1)
    ids[:, 0] = times
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def test_more_passes_than_were_traced_are_an_error_and_fewer_are_said() -> None:
    m = held(Halting(), halting(3)["input_ids"])
    assert len(m.run(halting(3), record="L0.z")["L0.z"]) == 3
    with pytest.raises(ModelError, match=r"more than 3 times .* m\.discover"):
        m.run(halting(4), record="L0@0.z")
    with pytest.raises(NotFired, match=r"L0@2\.z, but it never ran .* fewer passes"):
        m.run(halting(2), record="L0.z")
    with pytest.raises(NotFired, match=r"L0@2.* their pass"):
        m.run(halting(2), edits=[interp.Zero("L0.z")])
    assert m.run(halting(2), record="L0@0-1.z")["L0@1.z"].shape == (1, 7, HEADS, 8)
    assert logits(m.module, halting(5)).shape == (1, 7, WORDS)
    m.discover(halting(5))
    assert len(m.run(halting(5), record="L0.z")["L0.z"]) == 5


def test_nothing_stays_on_a_model() -> None:
    for module in (Halting(), albert(layers=3), twice()):
        m = held(module, halting(3)["input_ids"])
        m.run(halting(3), record=["L*.z", "L0@0.attn_out"], edits=[interp.Zero("L0@0.H1.z")])
        assert m.check().passed
        assert not any(child._forward_hooks or child._forward_pre_hooks for child in module.modules())
        assert not set(Sdpa._taps) & set(module.modules())
        assert not Count._known.get(module)
        assert not Count._attending


def test_several_attention_calls_in_one_run_are_numbered() -> None:
    m, kwargs = held(twice()), padded()
    calls: list[Tensor] = []
    fused = torch.nn.functional.scaled_dot_product_attention

    def counted(*args: Any, **named: Any) -> Tensor:
        calls.append(fused(*args, **named))
        if len(calls) - 1 == change:
            calls[-1] = calls[-1].clone()
            calls[-1][:, 2] = 0
        return calls[-1]

    def by_hand() -> Tensor:
        calls.clear()
        patched = pytest.MonkeyPatch()
        with patched.context() as m2:
            m2.setattr(torch.nn.functional, "scaled_dot_product_attention", counted)
            return logits(m.module, kwargs)

    change = -1
    by_hand()
    found = m.run(kwargs, record="L0.z")["L0.z"]
    assert len(found) == 4
    assert all(torch.equal(found[f"L0@{n}.z"], z.transpose(1, 2)) for n, z in enumerate(calls))
    for change in range(4):
        wanted = by_hand()
        edited = m.run(kwargs, record="logits", edits=[interp.Zero(f"L0@{change}.H2.z")])["logits"]
        assert torch.equal(edited, wanted)


def test_generating_counts_anew_in_every_step() -> None:
    m = interp.attach(looped_llama())
    ids = tokens(2, 5)
    out = outs(m.module)[0]
    with AtCall(out, put_heads(0.0, [1]), calls=[1]) as naive:
        root = m.module.register_forward_pre_hook(lambda *_: setattr(naive, "count", 0))
        wanted = m.module.generate(ids, max_new_tokens=6, do_sample=False, attention_mask=torch.ones_like(ids))
        root.remove()
    edited = m.generate(ids, edits=[interp.Zero("L0@1.H1.z")], max_new_tokens=6, do_sample=False)
    plain = m.generate(ids, max_new_tokens=6, do_sample=False)
    assert torch.equal(edited.ids, wanted[:, 5:])
    assert not torch.equal(plain.ids, wanted[:, 5:])


def test_a_tape_keeps_its_passes(tmp_path: Any) -> None:
    m = held(albert(layers=4, groups=2))
    tape = m.run(padded(), record=["L*.z", "L0@1.H2.pattern"])
    again = interp.open(tape.save(tmp_path / "tape"))
    assert again.anatomy == tape.anatomy
    assert again.sites == tape.sites
    assert [str(site) for site in again.sites][:3] == ["L0@0.z", "L0@1.z", "L1@0.z"]
    assert all(torch.equal(again[f"L{n}@{p}.z"], tape[f"L{n}@{p}.z"]) for n in range(2) for p in range(2))


def test_an_index_of_a_pass_is_that_pass_and_no_number() -> None:
    first, second = LayerPass(4, 0, 2), LayerPass(0, 0, 2)
    assert first == second
    assert hash(first) == hash(second)
    assert first != 4
    assert first != 0
    assert str(first) == "0@2"
    assert LayerPass(3, 1) == 1
    assert hash(LayerPass(3, 1)) == hash(1)
    assert LayerPass(0, 1, 0) < LayerPass(1, 0, 1)
    for copied in (pickle.loads(pickle.dumps(first)), copy.deepcopy(first)):
        assert (int(copied), copied.number, copied.nth) == (4, 0, 2)


def test_sites_of_passes_are_found_or_refused_by_name() -> None:
    m = held(albert(layers=3, inner=2))
    sites = partial(m.sites)
    assert sites("L*.z") == ["L0@0.z", "L1@0.z", "L0@1.z", "L1@1.z", "L0@2.z", "L1@2.z"]
    assert sites("L1.z") == ["L1@0.z", "L1@1.z", "L1@2.z"]
    assert sites("L*@1.H0,3.z") == ["L0@1.H0,3.z", "L1@1.H0,3.z"]
    assert sites("L0@0,2H1") == ["L0@0.H1", "L0@2.H1"]
    for bad, said in (
        ("L0@3.z", "layer 0 has passes 0-2"), ("L2@0.z", "this tower has layers 0-1"), ("L0@2-1.z", "is empty"),
        ("L0@x.z", "cannot read"), ("@1.z", "cannot read"),
    ):  # fmt: skip
        with pytest.raises(SiteError, match=said):
            sites(bad)
    with pytest.raises(SiteError, match=r"Write one pass, such as 'L0@2.z'"):
        m.anatomy.one("L0.z")
    plain = held(Universal(loops=1))
    assert plain.sites("L0@0.z") == ["L0.z"]
    assert plain.sites("L0@*.z") == ["L0.z"]
    with pytest.raises(SiteError, match="runs once in a call"):
        plain.sites("L0@1.z")
    mixed = held(Recurrent())
    assert mixed.sites("L*.z") == ["L0.z", "L1@0.z", "L1@1.z", "L1@2.z", "L2.z"]
    assert mixed.sites("L*@1.z") == ["L1@1.z"]
