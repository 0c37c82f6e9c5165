"""Relevance of tokens and patches: definitions in float64, and the marked square of the planted ViT."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from torch import Tensor

import interp
from interp.attribution.relevance import relevance
from interp.hooks.errors import InputsError, ModelError
from interp.hooks.examples.example import example
from interp.hooks.slopes.gradients import graph
from interp.planted import build, key
from interp.planted.pictures import draw
from interp.records import variants
from interp.results.figures.maps import overlay, salient
from interp.zoo.families import tiny

pytest.importorskip("captum")


@functools.cache
def model(name: str) -> interp.Model:
    m = interp.attach(tiny(name))
    m.ready()
    return m


def reading(logits: Tensor, inputs: Any) -> Tensor:
    return logits[:, 1] if logits.ndim == 2 else logits[:, -1, 7]


def divided(a: Tensor, b: Tensor) -> Tensor:
    return torch.where(b == 0, torch.zeros_like(a), a / (b + torch.where(b >= 0, 1e-9, -1e-9)))


class Chefer:
    """Relevance propagation of Chefer et al. through a ViT, op by op in float64, and its gradients by autograd."""

    def __init__(self, module: Any) -> None:
        self.w = {n: p.detach().double() for n, p in module.state_dict().items()}
        self.config = module.config

    def linear(self, name: str, x: Tensor) -> Tensor:
        return x @ self.w[f"{name}.weight"].T + self.w[f"{name}.bias"]

    def back(self, name: str, x: Tensor, r: Tensor) -> Tensor:
        w, total = self.w[f"{name}.weight"], torch.zeros_like(x)
        plus = x.clamp(min=0) @ w.clamp(min=0).T + x.clamp(max=0) @ w.clamp(max=0).T
        share = divided(r, plus)
        for sign in (1, -1):
            part = (sign * x).clamp(min=0) * ((sign * w).clamp(min=0).T[None] @ share.transpose(-1, -2)).transpose(
                -1, -2
            )
            total = total + part
        return total

    def norm(self, name: str, x: Tensor) -> Tensor:
        return torch.nn.functional.layer_norm(x, x.shape[-1:], self.w[f"{name}.weight"], self.w[f"{name}.bias"], 1e-12)

    @staticmethod
    def split(a: Tensor, b: Tensor, r: Tensor) -> list[Tensor]:
        share = divided(r, a + b)
        parts = [a * share, b * share]
        sums = [p.sum((1, 2), keepdim=True) for p in parts]
        whole = sums[0].abs() + sums[1].abs()
        return [p * divided(s.abs() / whole * r.sum((1, 2), keepdim=True), s) for p, s in zip(parts, sums, strict=True)]

    def run(self, x: Tensor, label: int) -> tuple[list[Tensor], list[Tensor], Tensor]:
        heads, blocks = self.config.num_attention_heads, []
        for n in range(self.config.num_hidden_layers):
            at = f"vit.layers.{n}"
            inner = self.norm(f"{at}.layernorm_before", x)
            q, k, v = (
                self.linear(f"{at}.attention.{p}_proj", inner).unflatten(-1, (heads, -1)).transpose(1, 2) for p in "qkv"
            )
            s = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5
            a = s.softmax(-1)
            z = (a @ v).transpose(1, 2).flatten(2)
            wrote = self.linear(f"{at}.attention.o_proj", z)
            h = x + wrote
            second = self.norm(f"{at}.layernorm_after", h)
            act = torch.nn.functional.gelu(self.linear(f"{at}.mlp.fc1", second))
            m = self.linear(f"{at}.mlp.fc2", act)
            blocks.append((at, x, inner, q, k, v, a, z, wrote, h, second, act, m))
            x = h + m
        final = self.norm("vit.layernorm", x)
        logits = self.linear("classifier", final[:, 0])
        slopes = torch.autograd.grad(logits[:, label].sum(), [b[6] for b in blocks])
        with torch.no_grad():
            return *self.relprop(blocks, final, label), slopes  # type: ignore[return-value]

    def relprop(self, blocks: list[Any], final: Tensor, label: int) -> tuple[Tensor, list[Tensor]]:
        top = torch.zeros(len(final), 1, self.w["classifier.bias"].shape[0], dtype=torch.float64)
        top[..., label] = 1
        r = torch.zeros_like(final)
        r[:, :1] = self.back("classifier", final[:, :1], top)
        patterns = []
        for at, x, inner, q, k, v, a, z, wrote, h, second, act, m in reversed(blocks):
            r_h, r_m = self.split(h, m, r)
            r_act = self.back(f"{at}.mlp.fc2", act, r_m)
            r_h = r_h + self.back(f"{at}.mlp.fc1", second, r_act)
            r_x, r_w = self.split(x, wrote, r_h)
            r_z = self.back(f"{at}.attention.o_proj", z, r_w).unflatten(-1, (q.shape[1], -1)).transpose(1, 2)
            share = divided(r_z, a @ v)
            r_a, r_v = a * (share @ v.transpose(-1, -2)) / 2, v * (a.transpose(-1, -2) @ share) / 2
            patterns.insert(0, r_a)
            share = divided(r_a, q @ k.transpose(-1, -2))
            r_q, r_k = q * (share @ k) / 2, k * (share.transpose(-1, -2) @ q) / 2
            for p, part in (("q", r_q), ("k", r_k), ("v", r_v)):
                r_x = r_x + self.back(f"{at}.attention.{p}_proj", inner, part.transpose(1, 2).flatten(2))
            r = r_x
        return r, patterns


def test_chefer_is_its_papers_propagation_op_by_op() -> None:
    m = model("vit")
    x = m.inputs(example(m.module, batch=2, seed=3))
    start = m.run(x, record="embed")["embed"].double().requires_grad_()
    r, patterns, slopes = Chefer(m.module).run(start, 1)
    torch.testing.assert_close(r.sum((1, 2)), torch.ones(2, dtype=torch.float64), atol=1e-6, rtol=0)
    total = torch.eye(r.shape[1], dtype=torch.float64).expand(2, -1, -1)
    for cam, slope in zip(patterns, slopes, strict=True):
        total = total + (cam * slope).clamp(min=0).mean(1) @ total
    expected = total[:, 0] - torch.eye(r.shape[1], dtype=torch.float64)[0]
    found = relevance(m, x, metric=reading, method="chefer").values
    torch.testing.assert_close(found.double(), expected, atol=1e-3 * float(expected.abs().max()), rtol=1e-2)


@pytest.mark.parametrize("method", ["gradient_x_input", "ig", "attnlrp", "chefer", "chefer-generic"])
def test_the_marked_square_is_what_the_planted_model_looks_at(method: str) -> None:
    m, probe = interp.attach(*build("planted-vit")), key("planted-vit").probes[0]
    assert probe.clean_picture is not None
    picture = draw(probe.clean_picture)
    label = m.config.label2id[probe.answer]
    found = relevance(m, m.prepare(None, images=[picture]), metric=lambda g, x: g[:, label], method=method)
    grid = found.grid()
    assert grid.shape == (4, 4)
    assert int(grid.flatten().argmax()) == probe.clean_picture.marked
    assert found.overlay(picture).size == picture.size
    assert found.salient().shape == (4, 4)


def test_gradient_methods_are_their_formulas() -> None:
    m = model("llama")
    x = m.inputs({"input_ids": torch.randint(5, 90, (2, 6))})
    site = m.anatomy.one("L0.resid_pre")
    run = graph(m.module, m.anatomy, x, dict(x.kwargs), sites=[site], score=lambda g: reading(g, x))
    slope, e = run.gradients()[site], run.values[site].detach()
    close = {"atol": 1e-5, "rtol": 1e-4}
    made = {
        name: relevance(m, x, metric=reading, method=name, steps=7) for name in ("gradient", "gradient_x_input", "ig")
    }
    torch.testing.assert_close(made["gradient"].values, slope.norm(dim=-1), **close)
    torch.testing.assert_close(made["gradient_x_input"].values, (slope * e).sum(-1), **close)
    mean = torch.zeros_like(e)
    for k in range(7):
        tape = m.run(x, record="L0.resid_pre", edits=[interp.Set("embed", e * (k + 0.5) / 7)], grad=True)
        mean += tape.grad(reading, "L0.resid_pre")["L0.resid_pre"] / 7
    torch.testing.assert_close(made["ig"].values, (mean * e).sum(-1), **close)
    again = [relevance(m, x, metric=reading, method="smoothgrad", samples=3).values for _ in range(2)]
    assert torch.equal(*again)


def test_every_method_runs_on_language_and_pictures_and_leaves_the_model_as_it_was() -> None:
    for name, tower in (("llava", "text"), ("llava", "vision")):
        m = model(name)
        before = [(p.requires_grad, p._version) for p in m.module.parameters()]
        for method in set(variants("interp.relevance")) - {"chefer"}:
            found = relevance(
                m, example(m.module, seed=1), metric=reading, method=method, tower=tower, steps=2, samples=2
            )
            assert bool(found.values.any()), method
        assert before == [(p.requires_grad, p._version) for p in m.module.parameters()]
        assert not m.handles()
    frame = found.to_frame()
    assert list(frame.columns) == ["example", "position", "token", "is", "relevance"]


def test_padding_has_no_relevance_and_what_has_no_meaning_is_refused() -> None:
    m = model("llama")
    x = m.inputs(example(m.module, batch=2, length=6, padding="left"))
    found = relevance(m, x, metric=reading, method="attnlrp")
    assert bool((found.values[~x.valid] == 0).all())
    assert not bool(x.valid.all())
    with pytest.raises(InputsError, match="no relevance method"):
        relevance(m, x, metric=reading, method="lime")
    with pytest.raises(InputsError, match="carries no gradient"):
        relevance(m, x, metric=lambda g, i: (g[:, -1, 3] > 0).float())
    with pytest.raises(InputsError, match="no patches"):
        found.grid()
    with pytest.raises(ModelError, match="no rule for"):
        relevance(m, x, metric=reading, method="chefer")


def test_maps_colour_what_is_for_and_against_and_find_what_stands_out() -> None:
    from PIL import Image

    grey = Image.new("RGB", (8, 8), (128, 128, 128))
    grid = torch.zeros(4, 4)
    grid[0, 0], grid[3, 3] = 2.0, -2.0
    made = overlay(grey, grid)
    red, blue, plain = made.getpixel((0, 0)), made.getpixel((7, 7)), made.getpixel((0, 7))
    assert red[0] > red[2]
    assert blue[2] > blue[0]
    assert plain == (128, 128, 128)
    lone = torch.zeros(9, 9)
    lone[4, 4] = 1
    assert int(salient(lone).flatten().argmax()) == 40
    assert float(salient(lone)[0, 0]) < float(salient(lone)[4, 4]) / 3


@pytest.mark.parametrize(("pool", "rows"), [("mean", None), ("cls", [0]), ("last", [-1])])
def test_relevance_is_rolled_out_to_the_rows_that_the_metric_reads(pool: Any, rows: list[int] | None) -> None:
    """Not to row 0 of every tower that looks both ways; of each row its own 1 is taken off."""
    from encoders import headless, pairs

    from interp.attribution.rollout import rolled_out
    from interp.metrics import Along
    from interp.metrics.reading import reading

    m, (x, _) = headless("bert"), pairs("bert")
    x = m.inputs(x)
    metric = Along("final_norm", pool=pool, direction=torch.randn(32))
    found = relevance(m, x, metric=metric, method="chefer-generic").values
    with reading(m, metric):
        stack = m.anatomy.tower(None, text="")
        whole, read = rolled_out(m.module, stack, dict(x.kwargs), lambda h: metric(h, x), propagated=False)
    for row in range(3):
        real = x.valid[row].nonzero().flatten()
        wanted = real if rows is None else real[rows]
        assert read[row].nonzero().flatten().tolist() == wanted.tolist()
        expected = torch.stack([whole[row, to] - torch.eye(9)[to] for to in wanted]).mean(0)
        torch.testing.assert_close(found[row], expected * x.valid[row], atol=1e-6, rtol=1e-5)


def test_a_masked_word_is_explained_from_its_own_row() -> None:
    from interp.attribution.rollout import rolled_out

    m = model("bert")
    x = m.inputs(example(m.module, batch=2, length=7, seed=4))

    def third(logits: Tensor, inputs: Any = None) -> Tensor:
        return logits[:, 3, 11]

    found = relevance(m, x, metric=third, method="chefer-generic").values
    whole, _ = rolled_out(m.module, m.anatomy.tower(None, text=""), dict(x.kwargs), third, propagated=False)
    torch.testing.assert_close(found, whole[:, 3] - torch.eye(7)[3])
    assert float((found - (whole[:, 0] - torch.eye(7)[0])).abs().max()) > 1e-3


def test_a_metric_that_moves_with_no_attention_is_refused() -> None:
    m = model("bert")
    x = m.inputs(example(m.module, batch=2, length=7, seed=4))
    with pytest.raises(InputsError, match="no gradient at any attention"):
        relevance(m, x, metric=lambda g, i: g[:, 0, 11] * 0.0, method="chefer-generic")


def test_relevance_of_a_model_in_float64_is_of_float64() -> None:
    m = interp.attach(tiny("vit", dtype=torch.float64))
    pixels = m.example()["pixel_values"].double()
    for method in ("ig", "chefer"):
        found = relevance(m, {"pixel_values": pixels}, metric=reading, method=method, steps=3)
        assert found.values.dtype == torch.float64
        assert (found.values - found.values.float()).abs().max() > 0, method
