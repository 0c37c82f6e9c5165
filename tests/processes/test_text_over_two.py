"""A text cut over two real processes: statistics of the whole text, as one process gives them, or a refusal."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import transformers
import two_processes
from placed import check_same

import interp
from interp.scale import context
from interp.zoo.families import tiny

IDS = torch.randint(0, 90, (2, 21), generator=torch.Generator().manual_seed(0))
ALL = [
    "lse", "entropy", "max", "argmax", "topk:3", "distance", "first", "previous", "self", "mass:last", "sink",
    "received", "seen", "received_mean",
]  # fmt: skip
SIZES = {"vocab_size": 96, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}


def shifting() -> Any:
    """A Llama whose MLPs read the token before as well, as a short convolution would."""
    made = two_processes.small()
    for layer in made.model.layers:
        layer.mlp.register_forward_pre_hook(lambda _, x: x[0] + torch.nn.functional.pad(x[0], (0, 0, 1, 0))[:, :-1])
    return made


@cache
def model(name: str) -> interp.Model:
    torch.manual_seed(0)
    small = {**SIZES, "intermediate_size": 64, "initializer_range": 0.3}
    made: dict[str, Callable[[], Any]] = {
        "llama": two_processes.small,
        "llama eager": lambda: transformers.LlamaForCausalLM(
            transformers.LlamaConfig(**small, num_key_value_heads=2, attn_implementation="eager")
        ),
        "llama in bfloat16": lambda: two_processes.small().to(torch.bfloat16),
        "mistral": lambda: transformers.MistralForCausalLM(
            transformers.MistralConfig(**small, num_key_value_heads=2, sliding_window=7)
        ),
        "a window wider than a part": lambda: transformers.MistralForCausalLM(
            transformers.MistralConfig(**small, num_key_value_heads=2, sliding_window=15)
        ),
        "gpt2": lambda: transformers.GPT2LMHeadModel(
            transformers.GPT2Config(vocab_size=96, n_embd=32, n_layer=2, n_head=4, initializer_range=0.3)
        ),
        "bert": lambda: transformers.BertForMaskedLM(transformers.BertConfig(**small)),
        "gpt_oss": lambda: transformers.GptOssForCausalLM(
            transformers.GptOssConfig(
                **small, num_key_value_heads=2, head_dim=8, sliding_window=6, num_local_experts=2,
                num_experts_per_tok=1,
                rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
            )
        ),
        "shifting": shifting,
        "t5": lambda: tiny("t5"),
        "roberta": lambda: transformers.RobertaForMaskedLM(transformers.RobertaConfig(**small)),
        "dynamic": lambda: transformers.LlamaForCausalLM(
            transformers.LlamaConfig(
                **small, rope_parameters={"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0}
            )
        ),
    }  # fmt: skip
    return interp.attach(made[name]().eval())


EQUAL = (
    "llama", "llama eager", "mistral", "a window wider than a part", "gpt2", "bert", "gpt_oss",
)  # fmt: skip


def both(m: interp.Model, ids: torch.Tensor = IDS, **how: Any) -> list[Any]:
    one = two_processes.said(lambda: m.attention(ids, **how).values)
    return [one, two_processes.said(lambda: interp.scale.ring_attention(m, ids, **how).values)]


STEPS: dict[str, Callable[[], list[Any]]] = {
    **{name: lambda name=name: both(model(name), stats=ALL) for name in EQUAL},  # type: ignore[misc]
    "as few tokens as can be": lambda: both(model("llama"), IDS[:, :4], stats=ALL),
    "some heads": lambda: both(model("llama"), stats=["entropy", "received"], heads="L1.H6,1"),
    "groups": lambda: both(model("llama"), stats=["entropy"], reduce_groups="mean"),
    "as it is": lambda: both(model("llama")),
}


def pieces(ask: Callable[[], Any], size: int) -> Any:
    """With so many keys in the air at a time."""
    was, context.PIECE = context.PIECE, size
    try:
        return ask()
    finally:
        context.PIECE = was


def asks(ids: torch.Tensor, name: str = "llama", **how: Any) -> Callable[[int], Any]:
    return lambda rank: interp.scale.ring_attention(model(name), ids, **how)


REFUSED: dict[str, tuple[Callable[[int], Any], str]] = {
    "other ids": (lambda rank: asks(IDS + rank)(rank), "different ids"),
    "too few": (asks(IDS[:, :3]), "two tokens at least"),
    "padding": (
        lambda rank: interp.scale.ring_attention(
            model("llama"), {"input_ids": IDS, "attention_mask": (torch.arange(21) > 2).long().expand(2, -1)}
        ),
        "has padding",
    ),
    "an encoder and a decoder": (asks(IDS, "t5"), "not one tower"),
    "positions of its own": (asks(IDS, "roberta"), "counts positions itself"),
    "tokens that meet elsewhere": (asks(IDS, "shifting"), "interact outside of attention"),
    "frequencies by length": (asks(IDS, "dynamic"), "depend on the length"),
    "an unknown statistic": (asks(IDS, stats="entropie"), "Meant entropy"),
}


def edited(rank: int) -> Any:
    with model("llama").edited(interp.Zero("L0.H1.z")):
        return asks(IDS)(rank)


def work(rank: int, folder: Path) -> Mapping[str, Any]:
    found: dict[str, Any] = {name: ask() for name, ask in STEPS.items()}
    found["pieces"] = pieces(lambda: both(model("llama"), stats=ALL), 3)
    found["bfloat16"] = both(model("llama in bfloat16"), stats=["entropy", "max"])
    for name, (ask, _) in {**REFUSED, "edits": (edited, "")}.items():
        found[name] = two_processes.said(lambda ask=ask: ask(rank))  # type: ignore[misc]
    alone = [dist.new_group([n]) for n in (0, 1)][rank]
    found["alone"] = [
        two_processes.said(lambda: model("gpt2").attention(IDS).values),
        two_processes.said(lambda: interp.scale.ring_attention(model("gpt2"), IDS, group=alone).values),
    ]
    return found


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return two_processes.pair(work, tmp_path_factory.mktemp("text"))


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("name", [*STEPS, "pieces", "alone"])
def test_a_text_over_two_processes_has_the_statistics_of_one(given: list[dict[str, Any]], name: str, rank: int) -> None:
    here, there = given[rank][name]
    assert isinstance(here, dict), here
    assert isinstance(there, dict), there
    check_same(here, there, 1e-4)


def test_half_precision_is_near(given: list[dict[str, Any]]) -> None:
    here, there = given[0]["bfloat16"]
    assert isinstance(there, dict), there
    check_same(here, there, 0.1)


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("name", [*REFUSED, "edits"])
def test_what_a_cut_text_would_get_wrong_is_refused(given: list[dict[str, Any]], name: str, rank: int) -> None:
    said = given[rank][name]
    assert isinstance(said, str), said
    assert said.startswith("refused"), said
    assert REFUSED.get(name, (None, "the model has edits"))[1] in said
