"""What can be asked of an engine's heads, and what is refused by name."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

import interp
from interp import edits
from interp.hooks.errors import EditError, InputsError, ModelError, SiteError
from interp.scale.serving.plans import (
    Change,
    HeadCounts,
    Plan,
    changes,
    positions_of,
    refuse_statistics,
    statistics_of,
)
from interp.scale.serving.served import NOT_SERVED, Served, _prompts
from interp.scale.serving.settings import refuse, refuse_scores

SHAPE = HeadCounts({0: 4, 1: 4}, 8)


def test_sites_become_layers_and_heads() -> None:
    assert SHAPE.sites("L*.z") == {0: (0, 1, 2, 3), 1: (0, 1, 2, 3)}
    assert SHAPE.sites(["L1.H3.z", "blocks.1.attn.hook_z", "L0.H2,0.z", "L0.H2.z"]) == {0: (0, 2), 1: (0, 1, 2, 3)}


@pytest.mark.parametrize(
    ("site", "says"),
    [("L0.H1.pattern", "N x N"), ("L0.scores", "N x N"), ("L0.q", "never q, k or v"), ("L0.H1", "name what is read"),
     ("L0.resid_pre", "gives z of heads"), ("vision.L0.z", "no other tower"), ("L2.z", "layers 0-1"),
     ("L0.H4.z", "heads 0-3")],
)  # fmt: skip
def test_sites_that_an_engine_does_not_give_are_named(site: str, says: str) -> None:
    with pytest.raises(SiteError, match=says):
        SHAPE.sites(site)


@pytest.mark.parametrize(
    ("edit", "says"),
    [
        (edits.Temperature("L0.H1", 2.0), "takes Scale, Zero, Set and Add"),
        (edits.Blend("L0.H1", to="uniform", amount=0.5), "takes Scale, Zero, Set and Add"),
        (edits.Blend("L0.H1", to="identity"), "takes Scale, Zero, Set and Add"),
        (edits.UniformAttention("L0.H9"), "heads 0-3"),
        (edits.UniformAttention("L0.H1", step=2), "each request its own"),
        (edits.Scale("L0.H1.z", torch.ones(5, 1, 1)), "say phase='prefill' alone"),
        (edits.Scale("L0.H1.z", torch.ones(5, 3, 1), phase="prefill"), r"or \[position, 1, 8\]"),
        (edits.Mean("L0.H1.z"), "takes Scale, Zero, Set and Add"),
        (edits.Zero("L0.H1.v"), "never q, k or v"),
        (edits.Zero("L0.H1.z", rows=(0,)), "each request its own"),
        (edits.Zero("L0.H1.z", step=2), "each request its own"),
        (edits.Zero("L0.H1.z", positions=[1], phase="decode"), "not both"),
        (edits.Zero("L0.H1.z", positions="user"), "'generated' or numbers"),
        (edits.Set("L0.H1.z", torch.zeros(3)), r"a number, \[8\]"),
        (edits.Add("L0.z", torch.zeros(2, 3, 8)), r"a number, \[8\]"),
    ],
)  # fmt: skip
def test_edits_that_an_engine_does_not_make_are_named(edit: edits.Scale, says: str) -> None:
    with pytest.raises((EditError, InputsError, SiteError), match=says):
        changes([edit], SHAPE, {})


@pytest.mark.parametrize(
    ("names", "reduce", "says"),
    [("mass:image", None, "differs from request"), ("entropie", None, "Meant entropy"), ("received", "mean", "a key"),
     ("argmax", "sum", "names keys"), ("topk:2", "mean", "names keys"), ("received_mean", None, "ask for these")],
)  # fmt: skip
def test_statistics_that_cannot_be_are_named(names: str, reduce: Any, says: str) -> None:
    with pytest.raises(interp.InterpError, match=says):
        statistics_of(names, reduce)


@pytest.mark.parametrize("given", ["somewhere", [1.5], [], b"a", [True], 2.0, [[1]]])
def test_positions_that_are_none_are_refused(given: Any) -> None:
    with pytest.raises(InputsError, match="positions"):
        positions_of(given)


@pytest.mark.parametrize("given", [[], "", [""], [[]], [None], [["a"]], [3.5], [[-1]], [{}]])
def test_prompts_that_are_none_are_refused(given: Any) -> None:
    with pytest.raises(InputsError, match="prompt"):
        _prompts(given)


def test_token_ids_are_one_prompt_or_several() -> None:
    assert _prompts([1, 2]) == _prompts([[1, 2]]) == [{"prompt_token_ids": [1, 2]}]
    assert _prompts("a") == ["a"]


def test_a_plan_comes_back_as_it_was_sent() -> None:
    values = {"v0": torch.rand(2, 8)}
    change = Change("add", 1, (0, 3), "v0", 2.0, (0, -1))
    plan = Plan("k", 2, "last", {0: (1,)}, "mean", ("entropy",), {1: (0, 2)}, ((change,), ()))
    read, tensors = Plan.read(*plan.written(values))
    assert read == plan
    assert torch.equal(tensors["v0"], values["v0"])


def test_how_heads_attend_comes_before_what_is_done_to_z() -> None:
    values: dict[str, torch.Tensor] = {}
    found = changes([edits.Zero("L1.H0.z"), edits.UniformAttention("L1.H0-1")], SHAPE, values)
    assert [(one.kind, one.layer, one.heads) for one in found] == [("uniform", 1, (0, 1)), ("scale", 1, (0,))]
    whole = changes([edits.UniformAttention("L*.attention")], SHAPE, values)
    assert [one.heads for one in whole] == [(0, 1, 2, 3)] * 2


def test_statistics_of_heads_that_attend_otherwise_are_refused() -> None:
    made = changes([edits.UniformAttention("L1.H0-1")], SHAPE, {})
    refuse_statistics(Plan("k", 1, stats=("entropy",), stat_heads={0: (0, 1), 1: (2, 3)}, edits=(made,)))
    with pytest.raises(EditError, match=r"heads \[1\] of L1 attend"):
        refuse_statistics(Plan("k", 1, stats=("entropy",), stat_heads={1: (1, 2)}, edits=(made,)))


@pytest.mark.parametrize("mode", ["raw_logits", "processed_logits"])
def test_an_engine_whose_scores_are_no_log_probabilities_is_refused(mode: str) -> None:
    refuse_scores(SimpleNamespace(model_config=SimpleNamespace(logprobs_mode="raw_logprobs")))
    with pytest.raises(ModelError, match=f"'{mode}'.*logprobs_mode='raw_logprobs'"):
        refuse_scores(SimpleNamespace(model_config=SimpleNamespace(logprobs_mode=mode)))


def config(**changed: Any) -> SimpleNamespace:
    """The parts of a vLLM configuration that are looked at."""
    arguments = {**interp.scale.vllm_arguments(), **changed}
    return SimpleNamespace(
        model_config=SimpleNamespace(enforce_eager=arguments["enforce_eager"], model_impl=arguments["model_impl"]),
        cache_config=SimpleNamespace(enable_prefix_caching=arguments["enable_prefix_caching"]),
        scheduler_config=SimpleNamespace(async_scheduling=arguments["async_scheduling"]),
        parallel_config=SimpleNamespace(
            worker_extension_cls=arguments["worker_extension_cls"],
            data_parallel_size=arguments.get("data_parallel_size", 1),
            decode_context_parallel_size=arguments.get("decode_context_parallel_size", 1),
        ),
        speculative_config=arguments.get("speculative_config"),
        kv_transfer_config=arguments.get("kv_transfer_config"),
        use_v2_model_runner=arguments.get("use_v2_model_runner", False),
    )


def test_an_engine_that_was_started_as_said_is_taken() -> None:
    refuse(config())


@pytest.mark.parametrize(
    ("name", "value"),
    [("enforce_eager", False), ("enable_prefix_caching", True), ("model_impl", "auto"), ("worker_extension_cls", ""),
     ("async_scheduling", True), ("speculative_config", {}), ("kv_transfer_config", {}), ("data_parallel_size", 2),
     ("decode_context_parallel_size", 2), ("use_v2_model_runner", True)],
)  # fmt: skip
def test_one_that_was_not_is_refused_with_the_remedy(name: str, value: Any) -> None:
    with pytest.raises(ModelError, match=rf"(?i){name}.*vllm_arguments\(\)"):
        refuse(config(**{name: value}))


def test_what_is_no_engine_is_refused() -> None:
    with pytest.raises(ModelError, match=r"expected a vllm.LLM, got str"):
        interp.scale.vllm("gpt2")


@pytest.mark.parametrize("name", NOT_SERVED)
def test_what_needs_a_model_is_refused_by_name(name: str) -> None:
    with pytest.raises(ModelError, match=f"no {name}.*interp.load"):
        getattr(object.__new__(Served), name)
    with pytest.raises(AttributeError, match="nothing"):
        getattr(object.__new__(Served), "nothing")  # noqa: B009
