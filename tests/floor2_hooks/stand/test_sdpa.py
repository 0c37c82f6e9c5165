"""Models outside transformers' interface, seen at torch's fused attention: the true q, k, v, mask and z of each call,
whoever makes it, and nothing left on the thread when a run breaks off."""

from __future__ import annotations

import threading
from copy import deepcopy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import _get_current_function_mode_stack

import interp
from interp.hooks.errors import ModelError
from interp.hooks.stand.call import Call, Tap, visible
from interp.hooks.stand.sdpa import Sdpa
from interp.zoo.families import tiny

HEADS, KV, WIDTH = 4, 2, 32


class Attends(nn.Module):
    """Attention as somebody writes it, grouped and causal."""

    def __init__(self, *, causal: bool = True) -> None:
        super().__init__()
        self.causal = causal
        self.q, self.o = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.kv = nn.Linear(WIDTH, WIDTH // 2 * 2)

    def forward(self, x: Tensor) -> Tensor:
        q, (k, v) = _by_head(self.q(x), HEADS), (_by_head(part, KV) for part in self.kv(x).chunk(2, -1))
        z = F.scaled_dot_product_attention(q, k, v, is_causal=self.causal, enable_gqa=True)
        made: Tensor = self.o(z.transpose(1, 2).flatten(2))
        return made


def _by_head(x: Tensor, heads: int) -> Tensor:
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


class Block(nn.Module):
    """A block with a residual."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.attn = nn.LayerNorm(WIDTH), Attends()
        self.norm2 = nn.LayerNorm(WIDTH)
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 48), nn.GELU(), nn.Linear(48, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm(x))
        made: Tensor = x + self.mlp(self.norm2(x))
        return made


class Own(nn.Module):
    """A language model that nobody has heard of."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(40, WIDTH)
        self.blocks = nn.ModuleList(Block() for _ in range(3))
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 40)

    def forward(self, input_ids: Tensor) -> Tensor:
        x = self.embed(input_ids)
        for block in self.blocks:
            x = block(x)
        made: Tensor = self.head(self.norm(x))
        return made


@pytest.fixture(scope="module")
def own() -> interp.Model:
    torch.manual_seed(0)
    return interp.attach(Own().eval(), example={"input_ids": torch.randint(0, 40, (1, 7))})


def _layers() -> dict[str, nn.Module]:
    torch.manual_seed(0)
    layer: dict[str, Any] = {"batch_first": True, "dropout": 0.0}
    return {
        "encoder": nn.TransformerEncoder(nn.TransformerEncoderLayer(WIDTH, HEADS, 48, **layer), 2).eval(),
        "norm first": nn.TransformerEncoder(
            nn.TransformerEncoderLayer(WIDTH, HEADS, 48, norm_first=True, **layer), 2, enable_nested_tensor=False
        ).eval(),
        "decoder": nn.TransformerDecoder(nn.TransformerDecoderLayer(WIDTH, HEADS, 48, **layer), 2).eval(),
    }


def _given(name: str) -> dict[str, Tensor]:
    torch.manual_seed(1)
    if name == "decoder":
        return {"tgt": torch.randn(2, 6, WIDTH), "memory": torch.randn(2, 5, WIDTH)}
    return {"src": torch.randn(2, 6, WIDTH)}


def test_a_module_of_ones_own_is_held_whole_and_says_from_where(own: interp.Model) -> None:
    own.check().raise_failed()
    layer = own.anatomy.towers["text"].layers[1]
    assert (layer.standpoint, layer.heads, layer.kv_heads, layer.d_head) == ("sdpa", HEADS, KV, WIDTH // HEADS)
    assert not own.anatomy.towers["text"].bidirectional
    assert {row.answer for row in own.capabilities().rows if row.what in ("record", "edit", "gradient")} == {"yes"}


def test_what_is_recorded_is_what_the_module_computes(own: interp.Model) -> None:
    ids = torch.randint(0, 40, (2, 9))
    tape = own.run({"input_ids": ids}, record=["L1.q", "L1.k", "L1.v", "L1.pattern", "L1.z"])
    q, k, v = (tape[f"L1.{name}"].transpose(1, 2).double() for name in "qkv")
    k, v = (x.repeat_interleave(HEADS // KV, 1) for x in (k, v))
    scores = (q @ k.mT / (WIDTH // HEADS) ** 0.5).masked_fill(torch.ones(9, 9).triu(1).bool(), -torch.inf)
    torch.testing.assert_close(tape["L1.pattern"].double(), scores.softmax(-1), atol=1e-6, rtol=0)
    torch.testing.assert_close(tape["L1.z"].transpose(1, 2).double(), scores.softmax(-1) @ v, atol=1e-6, rtol=0)


def test_a_sweep_is_the_naive_loop(own: interp.Model) -> None:
    torch.manual_seed(2)
    base, source = ({"input_ids": torch.randint(0, 40, (2, 8))} for _ in range(2))
    source["input_ids"][:, :3] = base["input_ids"][:, :3]
    found = interp.patch(own, base=base, source=source, metric=_metric, sites="L*.H*.z", positions="joint")
    z = own.run(source, record=["L*.z"])
    with torch.no_grad():
        plain = _metric(own.module(**base), None)
    for site, effect in zip(found.sites, found.values, strict=True):
        one = own.anatomy.one(site)
        block, (head,) = own.module.blocks[one.layer], one.heads
        there = z[f"L{one.layer}.z"][:, :, head]

        def put(_: nn.Module, args: Any, head: int = head, there: Tensor = there) -> Any:
            x = args[0].unflatten(-1, (HEADS, -1)).clone()
            x[:, :, head] = there
            return (x.flatten(-2),)

        handle = block.attn.o.register_forward_pre_hook(put)
        with torch.no_grad():
            torch.testing.assert_close(effect.float(), _metric(own.module(**base), None) - plain, atol=1e-5, rtol=0)
        handle.remove()
    assert bool(found.values.abs().max() > 1e-3)


def _metric(logits: Tensor, inputs: Any) -> Tensor:
    return logits[:, -1, 3] - logits[:, -1, 5]


@pytest.mark.parametrize("name", ["encoder", "norm first", "decoder"])
def test_torchs_own_layers(name: str) -> None:
    module, given = _layers()[name], _given(name)
    m = interp.attach(module, example=given)
    m.check().raise_failed()
    assert {layer.standpoint for tower in m.towers.values() for layer in tower.layers} == {"sdpa"}
    assert [row.answer for row in m.capabilities().rows[:3]] == ["yes"] * 3
    tower = "text." if name == "decoder" else ""
    attention = module.layers[1].self_attn
    read: list[Tensor] = []
    keep = attention.register_forward_pre_hook(lambda _, args: read.append(args[0]))
    tape = m.run(given, record=[f"{tower}L1.pattern", f"{tower}L1.attn_out", f"{tower}L1.result"])
    keep.remove()
    with torch.no_grad():
        out, weights = attention(*[read[0]] * 3, need_weights=True, average_attn_weights=False)
    torch.testing.assert_close(tape[f"{tower}L1.pattern"], weights, atol=1e-6, rtol=0)
    torch.testing.assert_close(tape[f"{tower}L1.attn_out"], out, atol=1e-6, rtol=0)
    summed = tape[f"{tower}L1.result"].sum(2) + attention.out_proj.bias
    torch.testing.assert_close(summed, out, atol=1e-6, rtol=0)


def test_another_sequence_is_another_tower() -> None:
    m = interp.attach(_layers()["decoder"], example=_given("decoder"))
    assert list(m.towers) == ["text", "cross"]
    assert m.run(_given("decoder"), record=["cross.L0.pattern"])["cross.L0.pattern"].shape == (2, HEADS, 6, 5)


def test_positions_before_batch_are_refused_and_told_how() -> None:
    module = nn.TransformerEncoder(nn.TransformerEncoderLayer(WIDTH, HEADS, 48), 1, enable_nested_tensor=False).eval()
    with pytest.raises(ModelError, match="batch_first=True; the weights are the same"):
        interp.attach(module, example={"src": torch.randn(5, 2, WIDTH)}).ready()


def test_torchs_fast_path_is_back_when_nothing_is_looked_at() -> None:
    m = interp.attach(_layers()["encoder"], example=_given("encoder"))
    assert torch.backends.mha.get_fastpath_enabled()
    m.run(_given("encoder"), record=["L0.z"])
    assert torch.backends.mha.get_fastpath_enabled()
    assert "fast path" in str(m.check())


@pytest.mark.parametrize("setting", [{}, {"multi_query": False}, {"new_decoder_architecture": True, "num_kv_heads": 2}])
def test_falcon_is_held_whole(setting: dict[str, Any]) -> None:
    from transformers import FalconConfig, FalconForCausalLM

    torch.manual_seed(0)
    config = FalconConfig(vocab_size=50, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, **setting)
    m = interp.attach(FalconForCausalLM(config).eval())
    m.check().raise_failed()
    assert {layer.standpoint for layer in m.anatomy.towers["text"].layers} == {"sdpa"}
    eager = FalconForCausalLM._from_config(deepcopy(config), attn_implementation="eager").eval()
    eager.load_state_dict(m.module.state_dict())
    ids = torch.randint(0, 50, (2, 6))
    weights = eager(ids, output_attentions=True).attentions[1]
    torch.testing.assert_close(m.run(ids, record=["L1.pattern"])["L1.pattern"], weights, atol=1e-6, rtol=0)


def _fused(*shapes: tuple[int, ...], **how: Any) -> tuple[Tensor, Tensor, Call]:
    """What fused attention gives plainly, and under a tap, and the call that the tap saw."""

    class Calls(nn.Module):
        def forward(self, *qkv: Tensor) -> Tensor:
            return F.scaled_dot_product_attention(*qkv, **how)

    seen: list[Call] = []

    class Looks(Tap):
        def record(self, call: Call) -> None:
            seen.append(call)

    one, tap = Calls(), Looks()
    torch.manual_seed(0)
    qkv = [torch.randn(shape) for shape in shapes]
    plain = one(*qkv)
    Sdpa.watch(one, tap)
    try:
        watched = one(*qkv)
    finally:
        Sdpa.forget(one, tap)
    return plain, watched, seen[0]


@pytest.mark.parametrize(
    ("shapes", "how"),
    [
        ([(2, 3, 5, 4)] * 3, {}),
        ([(2, 3, 5, 4)] * 3, {"is_causal": True}),
        ([(2, 3, 5, 4), (2, 3, 7, 4), (2, 3, 7, 6)], {"is_causal": True}),
        ([(2, 3, 5, 4), (2, 1, 7, 4), (2, 1, 7, 4)], {"scale": 0.3}),
        ([(2, 4, 5, 4), (2, 2, 7, 4), (2, 2, 7, 4)], {"enable_gqa": True}),
        ([(3, 5, 4)] * 3, {"attn_mask": torch.ones(5, 5).tril().bool()}),
        ([(2, 2, 3, 5, 4)] * 3, {"attn_mask": torch.randn(5, 5)}),
        ([(2, 3, 5, 4)] * 3, {"attn_mask": torch.randn(2, 1, 5, 5)}),
    ],
)
def test_a_call_is_the_same_bits_and_its_mask_says_what_it_saw(shapes: list[tuple[int, ...]], how: Any) -> None:
    plain, watched, call = _fused(*shapes, **how)
    assert torch.equal(plain, watched)
    group = call.q.shape[1] // call.k.shape[1]
    k, v = (x.double().repeat_interleave(group, 1) for x in (call.k, call.v))
    scores, mask = call.q.double() @ k.mT * call.scale, visible(call)
    if mask is not None:
        rows, keys = (torch.arange(n) for n in scores.shape[-2:])
        scores = scores + (0.0 if (added := mask.additive(rows, keys)) is None else added.double())
        scores = scores.masked_fill(~mask.dense(*scores.shape[-2:], device=scores.device), -torch.inf)
    torch.testing.assert_close((scores.softmax(-1) @ v).reshape(plain.shape), plain.double(), atol=1e-6, rtol=0)


def test_a_run_that_breaks_off_leaves_nothing_on_the_thread(own: interp.Model) -> None:
    handle = own.module.blocks[1].attn.o.register_forward_pre_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        own.run({"input_ids": torch.randint(0, 40, (1, 5))}, record=["L*.z"])
    handle.remove()
    assert _get_current_function_mode_stack() == []
    assert own.run({"input_ids": torch.randint(0, 40, (1, 5))}, record=["L2.z"])["L2.z"].shape == (1, 5, HEADS, 8)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in own.module.modules())


def test_other_threads_run_as_they_did(own: interp.Model) -> None:
    ids = torch.randint(0, 40, (2, 7))
    with torch.no_grad():
        before = own.module(ids)
    found: list[Tensor] = []

    def elsewhere() -> None:
        with torch.no_grad():
            found.extend(own.module(ids) for _ in range(50))

    thread = threading.Thread(target=elsewhere)
    thread.start()
    edited = [own.run({"input_ids": ids}, edits=[interp.Scale("L1.H2.z", 0.0)])["logits"] for _ in range(20)]
    thread.join()
    assert all(torch.equal(one, before) for one in found)
    assert not torch.equal(edited[0], before)
    assert all(torch.equal(one, edited[0]) for one in edited)


def test_edits_for_every_thread_are_met_by_every_thread(own: interp.Model) -> None:
    ids = torch.randint(0, 40, (2, 7))
    expected = own.run({"input_ids": ids}, edits=[interp.Scale("L1.H2.z", 0.0)])["logits"]
    found: list[Tensor] = []
    with own.edited([interp.Scale("L1.H2.z", 0.0)]), torch.no_grad():
        thread = threading.Thread(target=lambda: found.append(own.module(ids).detach()))
        thread.start()
        thread.join()
    torch.testing.assert_close(found[0], expected)


def test_transformers_own_fused_attention_is_one_call_not_two() -> None:
    m = interp.attach(tiny("llama"))
    assert {layer.standpoint for layer in m.anatomy.towers["text"].layers} == {"interface"}


def test_a_tower_of_timms() -> None:
    timm = pytest.importorskip(
        "timm", reason="the extra timm is not installed, or its torchvision is for another torch"
    )
    torch.manual_seed(0)
    how = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 4, "num_classes": 5}
    m = interp.attach(timm.create_model("vit_tiny_patch16_224", **how).eval())
    m.check().raise_failed()
    assert list(m.towers) == ["vision"]
    x = torch.randn(2, 3, 32, 32)
    tape = m.run(x, record=["L1.pattern"])
    assert tape["L1.pattern"].shape == (2, 4, 17, 17)
    roles = m.inputs(x).roles
    assert int(roles.where("image").sum()) == 2 * 16
    torch.testing.assert_close(tape["logits"], m.module(x))
