"""A real vLLM engine, in a process of its own: z and statistics of every request are transformers' own, edits reach one
request, prompts in chunks and preempted requests are counted once, two workers share the heads."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from engines import ENGINE, engine, preempted
from transformers import LlamaConfig, LlamaForCausalLM

import interp
from interp.scale.serving.settings import refuse

vllm = pytest.importorskip(
    "vllm", reason="vllm is not installed: it needs an environment of its own, see docs/served.md"
)

pytestmark = [pytest.mark.scale, pytest.mark.filterwarnings("default")]
STATS = ("entropy", "first", "received", "argmax")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A decoder of three layers, four heads over two kv heads."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=160, hidden_size=128, intermediate_size=96, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, head_dim=32, max_position_embeddings=256, initializer_range=0.1, eos_token_id=None,
        bos_token_id=None,
    )  # fmt: skip
    path = tmp_path_factory.mktemp("tiny")
    LlamaForCausalLM(config).save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def model(folder: Path) -> interp.Model:
    return interp.attach(LlamaForCausalLM.from_pretrained(folder).eval(), None)


@pytest.fixture(scope="module")
def llm(folder: Path, model: interp.Model) -> Iterator[Any]:
    """An engine whose prompts come in chunks of 24 tokens, and whose cache is soon full."""
    found = engine(
        folder, skip_tokenizer_init=True, max_num_batched_tokens=24, num_gpu_blocks_override=7, disable_log_stats=False
    )
    yield found
    found.llm_engine.engine_core.shutdown()


@pytest.fixture(scope="module")
def served(llm: Any) -> Iterator[Any]:
    with interp.scale.vllm(llm) as found:
        yield found


def prompts(*lengths: int) -> list[list[int]]:
    made = torch.Generator().manual_seed(1)
    return [torch.randint(0, 160, (n,), generator=made).tolist() for n in lengths]


def agrees(model: interp.Model, answer: Any, edits: Any = ()) -> None:
    """Every layer's z and statistics are those of transformers on the same tokens."""
    x = {"input_ids": torch.tensor([[*answer.prompt, *answer.ids][:-1]])}
    with model.edited(list(edits)):
        tape, alone = model.run(x, record="L*.z"), model.attention(x, stats=STATS)
    assert answer.positions == tuple(range(len(answer.prompt) + len(answer.ids) - 1))
    for layer, z in answer.z.items():
        torch.testing.assert_close(z, tape[f"{layer}.z"][0], rtol=1e-4, atol=1e-5)
        for name in STATS if answer.stats else ():
            torch.testing.assert_close(answer.stats[name][layer], alone.at(layer, name)[0], rtol=1e-3, atol=1e-4)


def test_every_request_is_what_transformers_makes_of_it(served: Any, model: interp.Model) -> None:
    """Prompts longer than a step's tokens come in chunks."""
    for answer in served.run(prompts(5, 60, 17, 1, 33), record="L*.H*.z", positions="all", stats=STATS,
                             max_new_tokens=6):  # fmt: skip
        agrees(model, answer)


def test_requests_that_are_preempted_are_counted_once(llm: Any, served: Any, model: interp.Model) -> None:
    asked, before = prompts(40, 50, 45, 30, 55), preempted(llm)
    how: dict[str, Any] = {"record": "L*.H*.z", "positions": "all", "max_new_tokens": 30}
    for answer in served.run(asked, stats=STATS, **how):
        agrees(model, answer)
    assert preempted(llm) > before
    zeroed = [interp.Zero("L1.H2.z")]
    summed = served.run(asked, reduce="sum", edits=[None, zeroed, None, zeroed, None], **how)
    for n, answer in enumerate(summed):
        assert answer.count == len(asked[n]) + 29
        ids = {"input_ids": torch.tensor([[*answer.prompt, *answer.ids][:-1]])}
        with model.edited(zeroed if n in (1, 3) else []):
            tape = model.run(ids, record="L*.z")
        for layer, z in answer.z.items():
            torch.testing.assert_close(z, tape[f"{layer}.z"][0].sum(0), rtol=1e-3, atol=1e-3)


def test_an_edit_reaches_its_own_request_only(served: Any, model: interp.Model) -> None:
    asked = prompts(20, 20, 9, 31)
    asked[1] = asked[0]
    edits = [[interp.Scale("L0.H0-1.z", -1.0), interp.Add("L1.H3.z", torch.ones(32), phase="decode")], None,
             [interp.Set("L2.z", 0.5, positions=[-1])], None]  # fmt: skip
    how: dict[str, Any] = {"record": "L*.H*.z", "positions": "all", "max_new_tokens": 5}
    found, plain = served.run(asked, edits=edits, **how), served.run(asked, **how)
    for n in (1, 3):
        assert found[n].ids == plain[n].ids
        agrees(model, found[n])
    first = found[0]
    assert not torch.allclose(first.z["L0"], plain[0].z["L0"])
    torch.testing.assert_close(first.z["L0"][:20, :2], -plain[0].z["L0"][:20, :2], rtol=1e-4, atol=1e-5)
    agrees(model, first, [interp.Scale("L0.H0-1.z", -1.0),
                          interp.Add("L1.H3.z", torch.ones(32), positions=list(range(20, 24)))])  # fmt: skip
    assert (found[2].z["L2"][8] == 0.5).all()
    assert torch.allclose(found[2].z["L2"][:8], plain[2].z["L2"][:8], atol=1e-5)


def test_heads_that_attend_alike_are_those_of_a_model_that_is_held(llm: Any, served: Any, model: interp.Model) -> None:
    """In prompts that come in chunks, while tokens are said, and once more after a request was preempted."""
    before = preempted(llm)
    even = [interp.edits.UniformAttention("L0.H1-2"), interp.edits.UniformAttention("L2.H3", positions=[3, -1])]
    edits = [even, even, None, even, even]
    asked = prompts(40, 50, 45, 30, 55)
    found = served.run(asked, record="L*.H*.z", positions="all", edits=edits, max_new_tokens=30)
    assert preempted(llm) > before
    for answer, some in zip(found, edits, strict=True):
        last = [interp.edits.UniformAttention("L2.H3", positions=[3, len(answer.prompt) - 1])]
        agrees(model, answer, [even[0], *last] if some else [])


def test_log_probabilities_of_prompts_are_those_of_their_own_edits(served: Any, model: interp.Model) -> None:
    factors = torch.rand(60, 1, 1)
    edits = [[interp.Scale("L1.H0-2.z", factors, phase="prefill")], None, [interp.Zero("L0.z")]]
    found = served.run(prompts(60, 1, 33), edits=edits, logprobs=True)
    for answer, some in zip(found, edits, strict=True):
        scores = model.run({"input_ids": torch.tensor([answer.prompt])}, edits=some or [])["logits"][0].log_softmax(-1)
        own = scores[:-1].gather(1, torch.tensor(answer.prompt[1:], dtype=torch.long)[:, None])[:, 0]
        torch.testing.assert_close(answer.logprobs, own.double(), rtol=1e-4, atol=1e-5)
        assert answer.likeliest == tuple(scores[:-1].argmax(-1).tolist())
    with pytest.raises(interp.InterpError, match="values for 60 positions"):
        served.run(prompts(61), edits=edits[0])
    with pytest.raises(interp.InterpError, match="read off the"):
        served.run(prompts(5), edits=interp.edits.UniformAttention("L1.H0"), stats="entropy")


def test_an_engine_that_was_read_is_what_it_was(llm: Any, served: Any) -> None:
    how = vllm.SamplingParams(temperature=0.0, max_tokens=4)
    given = [{"prompt_token_ids": one} for one in prompts(12, 7)]
    before = served.run(prompts(12, 7), max_new_tokens=4)
    served.close()
    bare = llm.generate(given, how, use_tqdm=False)
    assert [tuple(one.outputs[0].token_ids) for one in bare] == [one.ids for one in before]
    assert [one.ids for one in served.run(prompts(12, 7), max_new_tokens=4)] == [one.ids for one in before]


def test_a_run_that_fails_leaves_nothing_behind(served: Any) -> None:
    with pytest.raises(vllm.exceptions.VLLMValidationError, match="maximum context length"):
        served.run(prompts(5, 400), record="L*.z")
    assert served.run(prompts(5), record="L0.z")[0].count == 5


def test_two_workers_share_the_heads(folder: Path, model: interp.Model) -> None:
    llm = engine(folder, skip_tokenizer_init=True, tensor_parallel_size=2, distributed_executor_backend="mp",
                 max_num_batched_tokens=24)  # fmt: skip
    with interp.scale.vllm(llm) as served:
        assert len(served.workers) == 2
        zeroed = [interp.Zero("L1.H1-2.z")]
        found = served.run(prompts(30, 8, 30), record="L*.H*.z", positions="all", stats=STATS, max_new_tokens=3,
                           edits=[None, zeroed, None])  # fmt: skip
        for n, answer in enumerate(found):
            agrees(model, answer, zeroed if n == 1 else [])
        even = [interp.edits.UniformAttention("L1.H1-2")]
        agrees(model, served.run(prompts(30), record="L*.H*.z", positions="all", edits=even)[0], even)
    llm.llm_engine.engine_core.shutdown()


@pytest.mark.parametrize(
    ("name", "value"), [("enforce_eager", False), ("enable_prefix_caching", True), ("model_impl", "vllm")]
)
def test_an_engine_started_otherwise_is_refused(folder: Path, name: str, value: Any) -> None:
    arguments = {**ENGINE, "skip_tokenizer_init": True, **interp.scale.vllm_arguments(), name: value}
    made = vllm.EngineArgs(model=str(folder), **arguments).create_engine_config()
    with pytest.raises(interp.InterpError, match=name):
        refuse(made)
