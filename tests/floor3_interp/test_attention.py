"""Statistics of attention taken while a model runs, held against the dense patterns they are statistics of."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import interp
from interp.hooks.errors import InputsError, SiteError
from interp.hooks.examples.example import example
from interp.hooks.stand.interface import Switch
from interp.kernels.errors import AttentionError
from interp.zoo.families import tiny

STATS = ["entropy", "max", "argmax", "first", "previous", "self", "received", "received_mean", "distance", "topk:3"]


def model_and_ids(
    name: str, *, rows: int = 2, length: int = 24, pad: int = 5
) -> tuple[interp.Model, dict[str, Tensor]]:
    ids = torch.randint(5, 90, (rows, length))
    mask = torch.ones_like(ids)
    mask[0, :pad] = 0
    return interp.attach(tiny(name)), {"input_ids": ids, "attention_mask": mask}


def oracle(name: str, p: Tensor, valid: Tensor) -> Tensor:
    """The definitions, on a dense pattern [batch, head, row, key] with the rows of padding taken out."""
    p = p.double() * valid[:, None, :, None]
    i, j = torch.arange(p.shape[2]), torch.arange(p.shape[3])
    if name == "entropy":
        return -torch.where(p > 0, p * p.log(), 0.0).sum(-1)
    if name == "first":
        return torch.stack([p[b, :, :, int(valid[b].int().argmax())] for b in range(len(p))])
    near = {"previous": j[None] == i[:, None] - 1, "self": j[None] == i[:, None]}
    if name in near:
        return (p * near[name]).sum(-1)
    if name == "distance":
        return (p * (i[:, None] - j[None]).abs()).sum(-1)
    return {"max": p.amax(-1), "received": p.sum(2), "topk:3": p.topk(3).values}[name]


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2", "gpt_oss", "mistral"])
def test_statistics_are_those_of_the_recorded_pattern(name: str) -> None:
    m, x = model_and_ids(name)
    valid = x["attention_mask"].bool()
    found = m.attention(x, stats=STATS)
    tape = m.run(x, record="L*.pattern")
    for layer in sorted(m.anatomy.tower(None, text="").by_index):
        for stat in ("entropy", "max", "first", "previous", "self", "received", "distance", "topk:3"):
            expected = oracle(stat, tape[f"L{layer}.pattern"], valid)
            torch.testing.assert_close(found.at(f"L{layer}", stat).double(), expected, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize(
    "edit",
    [
        interp.edits.BiasKeys("L*.H*", keys="first", amount=3.0),
        interp.MaskKeys("L1.H2", keys=[-6, -9]),
        interp.edits.Temperature("L*.H0-1", 2.0),
        interp.Scale("L1.H1.k", 0.5, expand=True),
    ],
    ids=["bias", "mask", "temperature", "one-head-k"],
)
def test_statistics_are_those_of_the_edited_pattern(edit: Any) -> None:
    m, x = model_and_ids("llama")
    valid = x["attention_mask"].bool()
    tape = m.run(x, record="L*.pattern", edits=[edit])
    plain = m.attention(x, stats=["entropy", "received"])
    with m.edited([edit]):
        found = m.attention(x, stats=["entropy", "received"])
    assert not torch.equal(found.at("L1", "entropy"), plain.at("L1", "entropy"))
    for layer in (0, 1):
        for stat in ("entropy", "received"):
            expected = oracle(stat, tape[f"L{layer}.pattern"], valid)
            torch.testing.assert_close(found.at(f"L{layer}", stat).double(), expected, atol=2e-5, rtol=1e-5)


def test_statistics_of_a_pattern_set_by_hand_are_those_of_its_numbers() -> None:
    m, x = model_and_ids("llama")
    edits = [interp.Scale("L0.H1.pattern", 0.5)]
    pattern = m.run(x, record="L0.H1.pattern", edits=edits)["L0.H1.pattern"][:, 0].double()
    with m.edited(edits):
        found = m.attention(x, stats=["entropy"], heads="L0").at("L0", "entropy")[:, 1].double()
    torch.testing.assert_close(found, -(pattern * pattern.clamp(min=1e-300).log()).sum(-1), atol=1e-6, rtol=1e-5)
    plain = m.attention(x, stats=["entropy"], heads="L0").at("L0", "entropy")[:, 1].double()
    assert bool((found != plain).any())


@pytest.mark.parametrize("name", ["llama", "gemma2", "gemma3", "gpt_oss"])
@pytest.mark.parametrize("chunk", [1, 7, 24, 100])
def test_chunks_through_the_cache_merge_to_the_same_numbers(name: str, chunk: int) -> None:
    m, x = model_and_ids(name, pad=0)
    whole, parts = m.attention(x, stats=STATS), m.attention(x, stats=STATS, chunk=chunk)
    for site in whole.values:
        for stat in whole.names:
            torch.testing.assert_close(parts.at(str(site), stat), whole.at(str(site), stat), atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("impl", ["rows", "sweep", "reference"])
def test_an_implementation_of_ours_attends_in_the_models_place(impl: str) -> None:
    m, x = model_and_ids("llama", pad=0)
    own, ours = m.attention(x, stats=["entropy", "received"]), m.attention(x, stats=["entropy", "received"], impl=impl)
    assert ours.impl == (impl,)
    for stat in own.names:
        torch.testing.assert_close(ours.at("L1", stat), own.at("L1", stat), atol=2e-5, rtol=1e-4)


def test_mass_on_an_image_in_both_towers_of_a_language_vision_model() -> None:
    module = tiny("llava")
    m, kwargs = interp.attach(module), example(module)
    text = m.attention(kwargs, stats=["mass:image", "entropy"], heads="text.L*")
    image = m.inputs(kwargs).mask("image")
    pattern = m.run(kwargs, record="text.L*.pattern")["text.L1.pattern"]
    torch.testing.assert_close(
        text.at("text.L1", "mass:image"), (pattern * image[:, None, None]).sum(-1), atol=1e-5, rtol=1e-5
    )
    assert m.attention(kwargs, stats="entropy", heads="vision.L*")["entropy"].dims == (
        "layer",
        "example",
        "head",
        "position",
    )


def test_rows_heads_groups_and_labels() -> None:
    m, x = model_and_ids("llama", pad=0)
    every, some = m.attention(x, stats="entropy"), m.attention(x, stats="entropy", rows="last", heads="L1.H0,3")
    torch.testing.assert_close(some.at("L1.H0,3", "entropy")[:, :, 0], every.at("L1", "entropy")[:, [0, 3], -1])
    pairs = m.attention(x, stats="entropy", reduce_groups="mean")
    torch.testing.assert_close(pairs.at("L0", "entropy"), every.at("L0", "entropy").unflatten(1, (2, 2)).mean(2))
    assert list(every["entropy"].coords["layer"].values) == ["L0", "L1"]
    torch.testing.assert_close(
        torch.tensor(every.mean("entropy").values[1]), every.at("L1", "entropy").mean((0, 2)), atol=1e-6, rtol=1e-6
    )


def test_means_leave_padding_out() -> None:
    m, x = model_and_ids("llama")
    valid = x["attention_mask"].bool()
    found = m.attention(x, stats="entropy")
    expected = found.at("L0", "entropy").movedim(1, -1)[valid].mean(0)
    torch.testing.assert_close(torch.tensor(found.mean("entropy").values[0]), expected, atol=1e-6, rtol=1e-6)


def test_no_tensor_of_queries_times_keys_is_made_on_the_way() -> None:
    from torch.utils._python_dispatch import TorchDispatchMode

    class Largest(TorchDispatchMode):
        size = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            out = function(*args, **(kwargs or {}))
            if torch.is_tensor(out):
                Largest.size = max(Largest.size, out.untyped_storage().nbytes() // out.element_size())
            return out

    m = interp.attach(tiny("llama"))
    x = {"input_ids": torch.randint(5, 90, (1, 120))}
    m.attention(x, stats="entropy")
    ids = {"input_ids": torch.randint(5, 90, (1, 2048))}
    m.module.config.max_position_embeddings = 4096
    with Largest():
        m.attention(
            ids, stats=["entropy", "received", "max", "argmax"], impl="native" if _native() else "sweep", chunk=512
        )
    assert Largest.size < 2048 * 2048


def _native() -> bool:
    from interp.kernels.attention import explain

    q = torch.randn(1, 1, 4, 8)
    return explain(q, q, q)["native"] == "taken"


def test_bad_requests_are_refused_with_a_reason() -> None:
    m, x = model_and_ids("llama")
    with pytest.raises(AttentionError, match=r"entropi.*entropy"):
        m.attention(x, stats="entropi")
    with pytest.raises(InputsError, match="at least one"):
        m.attention(x, stats=[])
    with pytest.raises(SiteError, match="layer"):
        m.attention(x, heads="L9")
    with pytest.raises(InputsError, match="chunk"):
        m.attention(x, chunk=0)
    outside, y = model_and_ids("gptj")
    with pytest.raises(InputsError, match="is not seen"):
        outside.attention(y)
    with pytest.raises(InputsError, match="all heads"):
        m.attention(x, heads="L0.H1", impl="rows")
    assert Switch.watched() == 0


def test_the_model_is_left_as_it_was() -> None:
    m, x = model_and_ids("llama")
    before = m.run(x)["logits"]
    m.attention(x, impl="rows")
    assert torch.equal(m.run(x)["logits"], before)
    assert Switch.watched() == 0
    assert not m.handles()


def grid_distance(p: Tensor, row: Tensor, col: Tensor) -> Tensor:
    """[head, query], a mean over the weight on patches, for a pattern [head, query, key]."""
    far = ((row[:, None] - row[None]).double() ** 2 + (col[:, None] - col[None]).double() ** 2).sqrt()
    patch = row >= 0
    on = p.double() * patch[None]
    return (on / on.sum(-1, keepdim=True) * far * patch[:, None]).sum(-1)


@pytest.mark.parametrize(("name", "heads"), [("vit", "L*"), ("dinov2", "L0"), ("llava", "vision.L*")])
def test_distances_in_a_picture_are_those_on_its_grid(name: str, heads: str) -> None:
    m = interp.attach(tiny(name))
    x = m.inputs(example(m.module, batch=2, seed=1))
    found = m.attention(x, stats=["distance", "entropy"], heads=heads)
    assert found.names == ("distance", "entropy")
    roles, tape = x.tower("vision").roles, m.run(x, record=f"{heads}.pattern")
    for site, stats in found.values.items():
        pattern = tape[str(site).replace("attention", "pattern")]
        for b in range(2):
            expected = grid_distance(pattern[b], roles.row[b], roles.col[b])
            assert expected.max() > 0.5
            torch.testing.assert_close(stats["distance"][b].double(), expected, atol=1e-5, rtol=1e-4)
