"""A cut model is the masked one to 1e-5, for every family that can be cut; what belongs to a head is what the layout
says; a cut model on disk says what it said before."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from models import attached
from torch import Tensor

import interp
from interp.hooks.errors import ModelError
from interp.hooks.examples.example import example
from interp.hooks.survey.answers import answer
from interp.pruning.choose import labels
from interp.pruning.owners import owners
from interp.pruning.pruned import Pruned
from interp.zoo.families import tiny

CUT = (
    "gpt2", "gpt_neox", "llama", "mistral", "qwen3", "gemma2", "gpt_oss", "deepseek_v3", "gptj", "bert", "bart",
    "plain", "vit", "dinov2", "clip", "llava",
)  # fmt: skip
MORE = ("opt", "qwen2", "gemma3", "roberta", "whisper", "deit", "dinov2_with_registers", "dinov3_vit", "siglip",
        "llava_next", "qwen2_vl", "qwen2_5_vl", "qwen3_vl", "paligemma", "smolvlm", "idefics3", "mllama",
        "gemma3_multimodal")  # fmt: skip
REFUSED = {"phi3": "does not run", "bloom": "does not run", "t5": "does not run", "falcon": "has no rows of its own",
           "beit": "does not run", "internvl": "mixes heads"}  # fmt: skip


def some(name: str, seed: int = 0) -> dict[str, float]:
    """Scores that leave whole groups, part of a group and a whole layer out, if there are as many."""
    m = attached(name)
    random = torch.Generator().manual_seed(seed)
    found = {one: float(torch.rand((), generator=random)) for one in labels(m.anatomy)}
    for one, (tower, index, head) in labels(m.anatomy).items():
        layer = m.anatomy.towers[tower].layer(index)
        if index == min(m.anatomy.towers[tower].by_index) and head < layer.group:
            found[one] -= 2.0
    return found


@cache
def half(name: str, *, uniform: bool = False) -> Pruned:
    return interp.prune(attached(name), some(name), keep_fraction=0.5, how="cut", uniform=uniform)


def said(module: Any, kwargs: dict[str, Any]) -> Tensor:
    with torch.no_grad():
        return answer(module(**kwargs)).double()


def close(a: Tensor, b: Tensor) -> None:
    assert float((a - b).abs().max()) <= 1e-5 * max(1.0, float(b.abs().max()))


@pytest.mark.parametrize("name", [*CUT, *(pytest.param(name, marks=pytest.mark.slow) for name in MORE)])
def test_a_cut_model_is_the_masked_one(name: str) -> None:
    m, p = attached(name), half(name)
    kwargs = dict(example(m.module, batch=2, seed=5))
    whole = said(m.module, kwargs)
    with m.edited(interp.prune(m, some(name), keep_fraction=0.5).edits):
        masked = said(m.module, kwargs)
    assert float((whole - masked).abs().max()) > 1e-3
    close(said(p.model.module, kwargs), masked)
    assert p.counts["parameters"][1] < p.counts["parameters"][0]


@pytest.mark.parametrize("name", ["gpt2", "llava"])
def test_the_model_one_had_stays_as_it_was(name: str) -> None:
    m = interp.attach(tiny(name, seed=4))
    before = {key: value.clone() for key, value in m.module.state_dict().items()}
    wanted = [p.requires_grad for p in m.module.parameters()]
    config = m.module.config.to_dict()
    found = {one: float(n) for n, one in enumerate(labels(m.anatomy))}
    interp.prune(m, found, keep_fraction=0.5, how="cut", uniform=True)
    after = m.module.state_dict()
    assert all(torch.equal(value, after[key]) for key, value in before.items())
    assert [p.requires_grad for p in m.module.parameters()] == wanted
    assert m.module.config.to_dict() == config
    assert not m.handles()


def rows_of(split_name: str, found: list[Any]) -> Any:
    return next(one for one in found if one.name.endswith(split_name))


def test_rows_belong_to_heads_as_each_layout_says() -> None:
    """Written out by hand: GPT-2's thirds along columns, NeoX' three per head, Llama's groups."""
    m = attached("gpt2")
    tower = m.anatomy.towers["text"]
    fused = rows_of("c_attn.weight", owners(m, tower, [tower.layer(0)])[0])
    assert fused.axis == 1
    assert fused.owner == tuple((part, h) for part in "qkv" for h in range(4) for _ in range(8))
    m = attached("gpt_neox")
    tower = m.anatomy.towers["text"]
    fused = rows_of("query_key_value.weight", owners(m, tower, [tower.layer(1)])[1])
    assert fused.axis == 0
    assert fused.owner == tuple((part, h) for h in range(4) for part in "qkv" for _ in range(8))
    m = attached("qwen3")
    tower = m.anatomy.towers["text"]
    found = owners(m, tower, [tower.layer(1)])[1]
    assert rows_of("q_proj.weight", found).owner == tuple(("q", h) for h in range(4) for _ in range(16))
    assert rows_of("v_proj.weight", found).owner == tuple(("v", h) for h in range(2) for _ in range(16))
    assert not [one for one in found if "norm" in one.name]
    m = attached("gpt_oss")
    tower = m.anatomy.towers["text"]
    sinks = rows_of("sinks", owners(m, tower, [tower.layer(0)])[0])
    assert sinks.owner == tuple(("q", h) for h in range(4))


def test_a_group_goes_when_all_its_heads_go_and_one_stays_in_every_layer() -> None:
    m = attached("llama")
    p = interp.prune(m, {"L0.H0": 0, "L0.H1": 0, "L1.H1": 0, "L1.H2": 1}, keep=1, how="cut")
    layers = {one.layer.index: one for one in p.rests["text"]}
    assert (layers[0].heads, layers[0].groups, layers[0].silent) == ((2, 3), (1,), ())
    assert (layers[1].heads, layers[1].groups, layers[1].silent) == ((0, 1, 2, 3), (0, 1), (1,))
    assert p.silent == ("L1.H1",)
    assert p.counts["heads"] == (8, 5)
    assert p.counts["groups"] == (4, 3)
    gone = 2 * 8 * 32 + 2 * 8 * 32 + 2 * 8 * 32  # two query heads' rows of q, their columns of o, a kv head's k and v
    assert p.counts["parameters"][0] - p.counts["parameters"][1] == gone
    frame = p.to_frame().set_index("site")
    assert frame.loc["L0.H2", "number"] == 0
    assert frame["number"].isna().sum() == 2
    none = interp.prune(m, dict.fromkeys(labels(m.anatomy), 0.0), keep=0, how="cut")
    assert [len(one.heads) for one in none.rests["text"]] == [2, 2]
    assert len(none.silent) == 4
    x = dict(example(m.module, batch=2, seed=6))
    tape = none.model.run(x, record="L*.attn_out")
    assert all(not bool(tape[f"L{n}.attn_out"].any()) for n in (0, 1))


def test_halves_keep_their_precision() -> None:
    m = interp.attach(tiny("llama", dtype=torch.bfloat16))
    p = interp.prune(m, some("llama"), keep_fraction=0.5, how="cut")
    assert p.model.dtype == torch.bfloat16


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_cut_says_why_and_can_be_masked(name: str) -> None:
    m = attached(name)
    scores = {one: 10.0 * layer + head for one, (_, layer, head) in labels(m.anatomy).items()}
    with pytest.raises(interp.InterpError, match=REFUSED[name]):
        interp.prune(m, scores, keep_fraction=0.4, how="cut")
    kwargs = dict(example(m.module, batch=2, seed=5))
    masked = interp.prune(m, scores, keep_fraction=0.4)
    whole = said(m.module, kwargs)
    with m.edited(masked.edits):
        assert float((said(m.module, kwargs) - whole).abs().max()) > 1e-4


def test_a_class_that_goes_by_its_config_is_cut_where_all_layers_agree() -> None:
    m = attached("phi3")
    scores = {one: float(head) for one, (_, _, head) in labels(m.anatomy).items()}
    p = interp.prune(m, scores, keep_fraction=0.5, how="cut")
    assert p.model.module.config.num_attention_heads == 2
    assert m.module.config.num_attention_heads == 4


@pytest.mark.parametrize("name", ["gpt2", "llama", "plain", "vit", "bart", "llava"])
def test_a_cut_model_read_again_says_the_same(name: str, tmp_path: Path) -> None:
    p = half(name)
    folder = p.save(tmp_path / name)
    note = json.loads((folder / "pruned.json").read_text())
    assert note["layout"] == "interp"
    assert note["gone"] == list(p.gone)
    kwargs = dict(example(attached(name).module, batch=2, seed=7))
    again = interp.load(folder)
    assert torch.equal(said(again.module, kwargs), said(p.model.module, kwargs))
    assert str(again.anatomy) == str(p.model.anatomy)
    if (how := getattr(p.model.module, "generation_config", None)) is not None:
        assert (folder / "generation_config.json").exists()
        assert again.module.generation_config.to_dict() == how.to_dict()


@pytest.mark.parametrize(("name", "auto"), [("llama", "AutoModelForCausalLM"), ("gemma2", "AutoModelForCausalLM"),
                                            ("vit", "AutoModelForImageClassification")])  # fmt: skip
def test_equal_layers_are_saved_as_transformers_own(name: str, auto: str, tmp_path: Path) -> None:
    import transformers

    p = half(name, uniform=True)
    layers = p.rests[next(iter(p.rests))]
    assert len({(len(one.heads), len(one.groups)) for one in layers}) == 1
    assert not p.silent
    folder = p.save(tmp_path / name)
    assert json.loads((folder / "pruned.json").read_text())["layout"] == "transformers"
    attn = p.model.module.config._attn_implementation
    module = getattr(transformers, auto).from_pretrained(folder, attn_implementation=attn).eval()
    assert module.config.num_attention_heads == len(layers[0].heads)
    kwargs = dict(example(attached(name).module, batch=2, seed=8))
    assert torch.equal(said(module, kwargs), said(p.model.module, kwargs))


def test_transformers_refuses_a_directory_of_ours(tmp_path: Path) -> None:
    import transformers

    folder = half("gpt2").save(tmp_path / "gpt2")
    with pytest.raises(RuntimeError, match="mismatch"):
        transformers.AutoModelForCausalLM.from_pretrained(folder)
    with pytest.raises(ModelError, match="not empty"):
        half("gpt2").save(folder)


def test_a_directory_that_was_changed_is_refused(tmp_path: Path) -> None:
    folder = half("llama").save(tmp_path / "llama")
    note = json.loads((folder / "pruned.json").read_text())
    for change, says in (({"format": 9}, "format 9"), ({"class": "pipeline"}, "does not have"),
                         ({"attributes": {"model": {"forward": 1}}}, "no number of heads"),
                         ({"tied": ["lm_head.weight"]}, "do not fit")):  # fmt: skip
        (folder / "pruned.json").write_text(json.dumps({**note, **change}))
        with pytest.raises(ModelError, match=says):
            interp.load(folder)
