"""What a worker keeps of requests that come in chunks, among others, and some of them twice, is what each request alone
gives: z, statistics, sums, edits, with the heads on one worker or on two."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load
from torch import Tensor, nn

from interp.edits import Add, Scale, Set, UniformAttention, Zero
from interp.hooks.stand.call import Call
from interp.kernels.attention import Attended, attend
from interp.kernels.edits import Blend
from interp.kernels.masks.symbols import Causal, Window
from interp.scale.serving.packed import Taken, Where, segments
from interp.scale.serving.plans import HeadCounts, Plan, Reduce, changes
from interp.scale.serving.served import _answers
from interp.scale.serving.work import Local, Tapping

HEADS, KV, D, LAYERS = 4, 2, 8, 2
STATS = ("entropy", "first", "received", "seen", "received_mean", "argmax", "topk:2")
SHAPE = HeadCounts(dict.fromkeys(range(LAYERS), HEADS), D)


@dataclass
class Request:
    """A text of `length` tokens, the first `prompt` of which are given; `sent` of them were computed."""

    prompt: int
    length: int
    ours: Taken | None
    sent: int = 0

    def tensors(self, layer: int) -> tuple[Tensor, Tensor, Tensor]:
        return tensors(layer, self.length)

    def alone(self, layer: int, window: int | None = None) -> Attended:
        return alone(layer, self.length, window)


@cache
def tensors(layer: int, length: int) -> tuple[Tensor, Tensor, Tensor]:
    made = torch.Generator().manual_seed(100 * layer + length)
    q = torch.randn(HEADS, length, D, generator=made)
    return q, *(torch.randn(KV, length, D, generator=made) for _ in "kv")


@cache
def alone(layer: int, length: int, window: int | None = None) -> Attended:
    mask = Causal() if window is None else Causal() & Window(window)
    q, k, v = (x[None] for x in tensors(layer, length))
    return attend(q, k, v, mask=mask, stats=STATS, impl="reference")


def steps(requests: list[Request], rng: random.Random) -> Iterator[list[tuple[Request, int, int]]]:
    """What an engine runs: chunks of prompts, then a token a step, and now and then a request from its beginning."""
    while any(r.sent < r.length for r in requests):
        batch = []
        for one in rng.sample(requests, len(requests)):
            if one.sent and rng.random() < 0.15:
                one.sent = 0
            if one.sent < one.length and rng.random() < 0.8:
                room = one.prompt - one.sent
                count = rng.randint(1, room) if room > 0 else 1
                batch.append((one, one.sent, count))
                one.sent += count
        if batch:
            yield batch


def served(plan: Plan, values: dict[str, Tensor], requests: list[Request], rng: random.Random, *, ranks: int = 1,
           window: int | None = None) -> tuple[list[Any], list[dict[int, Tensor]]]:  # fmt: skip
    """The plan's answers, and z by layer of every request as the model goes on with it."""
    count = HEADS // ranks
    works = [Tapping(*Plan.read(*plan.written(values)), {n: Local(rank * count, count, window) for n in range(LAYERS)})
             for rank in range(ranks)]  # fmt: skip
    gone = [{n: torch.zeros(r.length, HEADS, D) for n in range(LAYERS)} for r in requests]
    for batch in steps(requests, rng):
        bounds = [0]
        for _, _, n in batch:
            bounds.append(bounds[-1] + n)
        held = [one.ours for one, _, _ in batch]
        states = [replace(h) if h is not None else None for h in held]
        for rank, work in enumerate(works):
            for h, was in zip(held, states, strict=True):
                if h is not None and was is not None:
                    h.done = was.done
            work.idle()
            work.step(list(segments(held, [s for _, s, _ in batch], bounds, bounds[-1])), torch.device("cpu"))
            for layer in range(LAYERS):
                mine = slice(rank * count, (rank + 1) * count)
                shared = slice(rank * count // 2, (rank * count + count - 1) // 2 + 1)
                parts = [tuple(x[h, s : s + n] for x, h in zip(one.tensors(layer), (mine, shared, shared), strict=True))
                         for one, s, n in batch]  # fmt: skip
                q, k, v = (torch.cat([p[i] for p in parts], 1)[None] for i in range(3))
                z = torch.cat([one.alone(layer, window).z[0, mine, s : s + n].transpose(0, 1) for one, s, n in batch])
                call = Call(nn.Identity(), "vllm", lambda: None, q, k, v, None, {}, z=z.flatten(1).contiguous())  # type: ignore[arg-type, return-value]
                work.act(layer, call)
                after = call.z.view(-1, count, D)
                for (one, s, n), low in zip(batch, bounds, strict=False):
                    gone[requests.index(one)][layer][s : s + n, mine] = after[low : low + n]
    taken = [(json.loads(text), load(data)) for text, data in (work.taken() for work in works)]
    assert not any(held["trouble"] for held, _ in taken)
    said = SimpleNamespace(text="", token_ids=[])
    return list(
        _answers(plan, taken, [SimpleNamespace(outputs=[said], prompt_token_ids=[], prompt_logprobs=None)] * plan.rows)
    ), gone


def some(seed: int, *, edits: int | None = None) -> list[Request]:
    """Three requests of ours, and one of somebody else's."""
    rng = random.Random(seed)
    found = [Request(p := rng.randint(2, 6), p + rng.randint(1, 3), Taken(n, p, edits if n == 1 else None))
             for n in range(3)]  # fmt: skip
    return [*found, Request(4, 7, None)]


def places(request: Request, where: Where) -> list[int]:
    every = list(range(request.length))
    if isinstance(where, tuple):
        return sorted({p if p >= 0 else request.prompt + p for p in where} & set(every))
    return {"all": every, "prompt": every[: request.prompt], "last": [request.prompt - 1],
            "generated": every[request.prompt :]}[where]  # fmt: skip


@pytest.mark.parametrize(("where", "ranks"), [("all", 2), ("prompt", 1), ("last", 4), ("generated", 1), ((0, -1), 2)])
def test_z_and_statistics_are_those_of_each_request_alone(where: Where, ranks: int) -> None:
    requests = some(1)
    asked = SHAPE.sites(["L0.H1,3.z", "L1.H0,2,3.z"])
    plan = Plan("k", 3, where, asked, None, STATS, asked)
    answers, _ = served(plan, {}, requests, random.Random(1), ranks=ranks)
    for answer, request in zip(answers, requests, strict=False):
        at = places(request, where)
        assert answer.positions == tuple(at)
        assert answer.count == len(at)
        for layer, heads in asked.items():
            alone = request.alone(layer)
            assert torch.equal(answer.z[f"L{layer}"], alone.z[0][list(heads)][:, at].transpose(0, 1))
            if not at:
                assert not answer.stats
                continue
            for name in ("entropy", "first", "argmax", "topk:2", "topk:2.keys"):
                right = alone.stats[name][0][list(heads)][:, at]
                torch.testing.assert_close(answer.stats[name][f"L{layer}"], right.to(answer.stats[name][f"L{layer}"]))
            if where == "all":
                for name in ("received", "seen", "received_mean"):
                    torch.testing.assert_close(answer.stats[name][f"L{layer}"], alone.stats[name][0][list(heads)])


@pytest.mark.parametrize("reduce", ["mean", "sum", "norm"])
def test_sums_are_those_of_what_is_kept(reduce: Reduce) -> None:
    asked = SHAPE.sites("L*.H0,2.z")
    names = () if reduce == "norm" else ("entropy", "max")
    plan = Plan("k", 3, "all", asked, reduce, names, asked if names else {})
    answers, _ = served(plan, {}, requests := some(5), random.Random(5), ranks=2)
    for answer, request in zip(answers, requests, strict=False):
        z = request.alone(1).z[0, [0, 2]].transpose(0, 1)
        right = {"mean": z.mean(0), "sum": z.sum(0), "norm": z.norm(dim=-1).mean(0)}[reduce]
        torch.testing.assert_close(answer.z["L1"], right)
        if names:
            rows = request.alone(1).stats["entropy"][0, [0, 2]].float()
            torch.testing.assert_close(answer.stats["entropy"]["L1"], rows.mean(1) if reduce == "mean" else rows.sum(1))


def test_a_mean_over_nothing_is_no_number() -> None:
    plan = Plan("k", 3, (50,), SHAPE.sites("L0.z"), "mean", ("entropy",), SHAPE.sites("L0.z"))
    answers, _ = served(plan, {}, some(1), random.Random(1))
    assert answers[0].count == 0
    assert answers[0].z["L0"].isnan().all()
    kept, _ = served(Plan("k", 3, (50,), SHAPE.sites("L0.z")), {}, some(1), random.Random(1))
    assert kept[0].z["L0"].shape == (0, HEADS, D)


def test_a_window_is_the_layers_own() -> None:
    asked = SHAPE.sites("L0.z")
    answers, _ = served(Plan("k", 3, "all", {}, None, ("entropy", "received"), asked), {}, requests := some(2),
                        random.Random(2), window=2)  # fmt: skip
    alone = requests[0].alone(0, window=2)
    torch.testing.assert_close(answers[0].stats["entropy"]["L0"], alone.stats["entropy"][0].float())
    torch.testing.assert_close(answers[0].stats["received"]["L0"], alone.stats["received"][0].float())


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize(
    ("edit", "does"),
    [
        (Scale("L1.H1-2.z", 0.5), lambda z, p: 0.5 * z),
        (Zero("L1.H1-2.z"), lambda z, p: 0 * z),
        (Set("L1.H1-2.z", torch.arange(8.0)), lambda z, p: torch.arange(8.0).expand_as(z)),
        (Add("L1.H1-2.z", torch.ones(2, 8), 3.0, phase="decode"),
         lambda z, p: z + 3 * (torch.arange(len(z)) >= p)[:, None, None]),
        (Scale("L1.H1-2.z", [[2.0], [4.0]], positions=(0, -1)),
         lambda z, p: torch.where(torch.isin(torch.arange(len(z)), torch.tensor([0, p - 1]))[:, None, None],
                                  z * torch.tensor([[2.0], [4.0]]), z)),
    ],
    ids=["scale", "zero", "set", "add", "positions"],
)  # fmt: skip
def test_only_the_request_with_the_edit_is_changed(edit: Any, does: Any, ranks: int) -> None:
    """And what is recorded of it is what the model goes on with."""
    values: dict[str, Tensor] = {}
    plan = Plan("k", 3, "all", SHAPE.sites("L1.z"), edits=(changes([edit], SHAPE, values),))
    answers, gone = served(plan, values, requests := some(7, edits=0), random.Random(7), ranks=ranks)
    for n, request in enumerate(requests):
        right = request.alone(1).z[0].transpose(0, 1).clone()
        if n == 1:
            right[:, 1:3] = does(right[:, 1:3], request.prompt)
        torch.testing.assert_close(gone[n][1], right)
        assert torch.equal(gone[n][0], request.alone(0).z[0].transpose(0, 1))
        if n < 3:
            assert torch.equal(answers[n].z["L1"], gone[n][1])


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("window", [None, 2, 3])
def test_heads_that_attend_alike_give_what_the_kernels_give(window: int | None, ranks: int) -> None:
    """In chunks, among others, and again after they were preempted; at some rows only, and before other edits."""
    values: dict[str, Tensor] = {}
    given = [Scale("L0.H1.z", 2.0), UniformAttention("L0.H1-2"), UniformAttention("L1.H3", positions=(1, -1))]
    plan = Plan("k", 3, "all", edits=(changes(given, SHAPE, values),))
    for seed in range(6):
        _, gone = served(plan, values, requests := some(seed, edits=0), random.Random(seed), ranks=ranks, window=window)
        request = requests[1]
        mask = Causal() if window is None else Causal() & Window(window)
        for layer, heads in ((0, [1, 2]), (1, [3])):
            q, k, v = (x[None] for x in request.tensors(layer))
            even = attend(q, k, v, mask=mask, edits=(Blend("uniform", 1.0),), impl="reference").z[0].transpose(0, 1)
            right = request.alone(layer, window).z[0].transpose(0, 1).clone()
            rows = list(range(request.length)) if layer == 0 else places(request, (1, -1))
            right[torch.tensor(rows)[:, None], heads] = even[rows][:, heads]
            if layer == 0:
                right[:, 1] *= 2
            torch.testing.assert_close(gone[1][layer], right, rtol=1e-5, atol=1e-6)
        assert torch.equal(gone[0][0], requests[0].alone(0, window).z[0].transpose(0, 1))


@pytest.mark.parametrize("ranks", [1, 2])
def test_an_edit_has_a_value_for_every_position_of_the_prompt(ranks: int) -> None:
    requests = some(7, edits=0)
    factors = torch.rand(requests[1].prompt, 2, 1)
    values: dict[str, Tensor] = {}
    given = [Scale("L1.H1-2.z", factors, phase="prefill"), Scale("L0.z", factors[:, :1], phase="prefill")]
    plan = Plan("k", 3, "all", edits=(changes(given, SHAPE, values),))
    _, gone = served(plan, values, requests, random.Random(7), ranks=ranks)
    right = [requests[1].alone(layer).z[0].transpose(0, 1).clone() for layer in range(LAYERS)]
    right[1][: requests[1].prompt, 1:3] *= factors
    right[0][: requests[1].prompt] *= factors[:, :1]
    torch.testing.assert_close(gone[1], dict(enumerate(right)))


def test_values_for_another_number_of_positions_are_said() -> None:
    values: dict[str, Tensor] = {}
    made = changes([Scale("L0.z", torch.ones(3, 1, 1), phase="prefill")], SHAPE, values)
    work = Tapping(Plan("k", 1, edits=(made,)), values, {0: Local(0, HEADS)})
    work.step(list(segments([Taken(0, 9, 0)], [0], [0, 5], 5)), torch.device("cpu"))
    assert "values for 3 positions, and the prompt of request 0 has 9" in json.loads(work.taken()[0])["trouble"]


def test_a_mean_of_values_is_not_taken_where_a_sink_has_weight_or_values_are_missing() -> None:
    made = changes([UniformAttention("L0.H0")], SHAPE, {})
    q, k, v = (x[None, :, :5] for x in tensors(0, 9))
    for start, arguments, says in ((0, {"s_aux": torch.zeros(HEADS)}, "learned sinks"), (4, {}, "tokens 0 to 3")):
        work = Tapping(Plan("k", 1, edits=(made,)), {"v0": torch.zeros(1, 1)}, {0: Local(0, HEADS)})
        work.step(list(segments([Taken(0, 9, 0, start)], [start], [0, 5], 5)), torch.device("cpu"))
        work.act(0, Call(nn.Identity(), "vllm", lambda: None, q, k, v, None, arguments, z=torch.zeros(5, HEADS * D)))  # type: ignore[arg-type, return-value]
        assert says in json.loads(work.taken()[0])["trouble"]


def test_edits_are_made_in_their_order() -> None:
    values: dict[str, Tensor] = {}
    both = [Set("L0.H0.z", 1.0), Scale("L0.H0.z", 3.0)]
    plan = Plan("k", 3, "all", SHAPE.sites("L0.z"), edits=(changes(both, SHAPE, values),))
    _, gone = served(plan, values, some(7, edits=0), random.Random(7))
    assert torch.equal(gone[1][0][:, 0], torch.full_like(gone[1][0][:, 0], 3.0))


def test_tokens_that_did_not_run_are_said() -> None:
    work = Tapping(Plan("k", 1, "all", {0: (0,)}), {}, {0: Local(0, HEADS)})
    work.step(list(segments([Taken(0, 9)], [4], [0, 5], 5)), torch.device("cpu"))
    assert "tokens 0 to 3 of request 0 did not run" in json.loads(work.taken()[0])["trouble"]
