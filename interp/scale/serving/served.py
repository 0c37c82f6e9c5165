"""Heads of requests to a vLLM engine: read, reduced and changed while it serves.

    llm = vllm.LLM("HuggingFaceTB/SmolLM2-135M", **interp.scale.vllm_arguments())
    served = interp.scale.vllm(llm)
    found = served.run(texts, record="L*.H*.z", reduce="mean", stats=["entropy", "first"], max_new_tokens=1)
    served.run(texts, edits=[[interp.Zero("L5.H3.z")], None, ...])      # each request its own

vLLM (Kwon et al. 2023, arXiv 2309.06180) runs the tokens of all requests as one row; the engine's own metadata says
whose each is, and what is recorded or changed is never another request's. z is read after its edits, at the positions
asked for, and reduced in the worker, so that only sums cross processes; statistics are those of `interp.kernels`,
computed from the q and k of the same request, which stay where they are. With tensor parallelism each worker holds its
share of the heads; they come back under their global numbers. A request that the engine preempted is computed again
and counted once. Cost: no extra pass; for statistics the scores of the chosen heads a second time.
Limits: forward passes only, edits of z only (Scale, Zero, Set, Add) and UniformAttention, whose z is a mean of values;
no gradients, no patterns, no q, k or v; decoders that run in vLLM's transformers backend, uncompiled and without a
prefix cache. The package needs an environment of its own (`docs/served.md`).
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from numbers import Integral
from pathlib import Path
from typing import Any, NoReturn

import torch
from safetensors.torch import load
from torch import Tensor

from interp.hooks.anatomy.lengths import longest
from interp.hooks.edits.edits import Edit, several
from interp.hooks.errors import InputsError, ModelError
from interp.hooks.head_names import head_name
from interp.provenance import versions
from interp.scale.serving.answers import Answer, Answers
from interp.scale.serving.plans import (
    Change,
    HeadCounts,
    Plan,
    Reduce,
    changes,
    positions_of,
    refuse_statistics,
    statistics_of,
)
from interp.scale.serving.settings import refuse, refuse_scores

_KEYS = itertools.count()
NOT_SERVED = {
    "module": "its weights are in the engine's process, without gradients",
    "anatomy": "its modules are in the engine's process",
    "edited": "edits go with requests: run(..., edits=...)",
    "attention": "ask for run(..., stats=...)",
    "generate": "use run(..., max_new_tokens=...)",
    "stream": "use run(..., reduce=...), which takes any number of prompts",
    "check": "compare it with a model that you loaded with interp.load",
    "prepare": "run takes texts or token ids",
}
"""Why what a model has is not there in an engine."""


def vllm(llm: Any) -> Served:
    """The heads of a running `vllm.LLM`; raises, with the remedy, where it was started so that they cannot be read."""
    engine = getattr(llm, "llm_engine", None)
    if engine is None or not hasattr(llm, "collective_rpc"):
        raise ModelError(
            f"expected a vllm.LLM, got {type(llm).__name__}: start one with vllm.LLM(model,"
            " **interp.scale.vllm_arguments()). An asynchronous engine is not read here."
        )
    refuse(engine.vllm_config)
    return Served(llm)


class Served:
    """An engine whose heads can be read. `close()` leaves it as it was; so does the end of a `with` block."""

    def __init__(self, llm: Any) -> None:
        self.llm = llm
        self.workers = [json.loads(text) for text in llm.collective_rpc("interp_describe")]
        layers = {int(n): (heads, width) for w in self.workers for n, (heads, width) in w["layers"].items()}
        of = self.workers[0]["of"]
        widths = {width for _, width in layers.values()}
        if len(widths) > 1:
            raise ModelError(f"heads of different widths ({sorted(widths)}) in one model are not read in an engine.")
        self.shape = HeadCounts({n: layers[n][0] * of for n in sorted(layers)}, widths.pop())

    def __enter__(self) -> Served:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        heads = sorted(set(self.shape.heads.values()))
        return f"Served({len(self.shape.heads)} layers of {heads[0]} heads, {len(self.workers)} worker(s))"

    def __getattr__(self, name: str) -> NoReturn:
        if name in NOT_SERVED:
            raise ModelError(
                f"a served engine has no {name}: {NOT_SERVED[name]}. What needs one (gradients, patching, weights) runs"
                " on a model in this process, m = interp.load(...)."
            )
        raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")

    @property
    def heads(self) -> tuple[str, ...]:
        """Every head by name, "L0.H0"."""
        return tuple(head_name(None, n, h) for n, count in self.shape.heads.items() for h in range(count))

    @property
    def length(self) -> int:
        """The most tokens of a prompt: the engine says one token after each."""
        config = self.llm.llm_engine.vllm_config.model_config
        room = int(config.max_model_len) - 1
        return min(room, longest(config.hf_text_config) or room)

    @cached_property
    def tokenizer(self) -> Any:
        """The engine's own; None where it was started without."""
        if self.llm.llm_engine.vllm_config.model_config.skip_tokenizer_init:
            return None
        return self.llm.get_tokenizer()

    def ids(self, text: str) -> list[int]:
        """The token ids of a text, as the engine reads it."""
        if self.tokenizer is None:
            raise ModelError("this engine has no tokenizer: start it without skip_tokenizer_init, or give token ids.")
        return list(self.tokenizer(text)["input_ids"])

    def facts(self) -> dict[str, Any]:
        """What a result says of this engine, as `interp.provenance` has it of a model."""
        import vllm as package

        config = self.llm.llm_engine.vllm_config.model_config
        name = Path(config.model).name if Path(config.model).exists() else str(config.model)
        digests = self.llm.collective_rpc("interp_digest")
        return {
            "versions": {**dict(versions()), "vllm": package.__version__}, "model": (config.architectures or [name])[0],
            "model_hash": "-".join(digests), "served": name, "revision": config.revision, "inputs_hash": None,
            "attention": "vllm", "dtype": str(config.dtype).removeprefix("torch."),
        }  # fmt: skip

    def close(self) -> None:
        """Remove the hooks from the heads again."""
        self.llm.collective_rpc("interp_close")

    def run(
        self,
        prompts: str | Sequence[str] | Sequence[Sequence[int]],
        *,
        record: str | Iterable[str] | None = None,
        stats: str | Iterable[str] | None = None,
        heads: str | Iterable[str] = "L*.H*.z",
        positions: Any = "prompt",
        reduce: Reduce | None = None,
        edits: Any = None,
        max_new_tokens: int = 1,
        sampling: Any = None,
        logprobs: bool = False,
        chunk: int = 1024,
    ) -> Answers:
        """Run prompts (texts or token ids) through the engine, and say what their heads did.

        record: sites of z. stats: names of statistics, of `heads`. positions: "prompt", "last" (of the prompt),
        "generated", "all" or numbers, negative ones from the prompt's end. reduce: "mean", "sum" or "norm" (the mean of
        |z|) over them, in the worker; a mean is NaN where a request has none of them. edits: for all requests, or a
        list with each one's own (None for none). sampling: vLLM's own SamplingParams in the place of greedy decoding of
        `max_new_tokens`. logprobs: also the log-probability of every token of the prompts, under their edits. chunk:
        requests in flight whose records the worker holds together.
        """
        asked = _prompts(prompts)
        sets, of_each, values = self._edits(edits, len(asked))
        z = {} if record is None else self.shape.sites(record)
        looked = self.shape.sites(heads) if stats else {}
        where, names = positions_of(positions), statistics_of(stats, _reduced(reduce))
        plan = Plan("", 0, where, z, reduce, names, looked, sets)
        if plan.stats and reduce == "norm":
            raise InputsError("reduce='norm' is of z; statistics take 'mean' or 'sum'.")
        refuse_statistics(plan)
        if chunk < 1:
            raise InputsError(f"chunk is at least 1, got {chunk}.")
        how = self._sampling(sampling, max_new_tokens, logprobs)
        if where == "generated" and how.max_tokens == 1 and (z or names):
            raise InputsError(
                "the model never reads the last token that it generates: 'generated' needs two or more tokens."
            )
        found: list[Answer] = []
        for low in range(0, len(asked), chunk):
            found += self._chunk(plan, values, asked[low : low + chunk], of_each[low : low + chunk], how)
        return Answers(found, {"method": "served heads", "reduce": reduce, "positions": positions,
                               "stats": list(plan.stats), "workers": len(self.workers)})  # fmt: skip

    def _chunk(
        self, plan: Plan, values: Mapping[str, Tensor], prompts: Sequence[Any], edits: Sequence[int | None], how: Any
    ) -> Iterator[Answer]:
        """Some requests together: their plan goes to the workers, each request carries its key."""
        key = f"{id(self)}-{next(_KEYS)}"
        own = Plan(key, len(prompts), plan.positions, plan.z, plan.reduce, plan.stats, plan.stat_heads, plan.edits)
        self.llm.collective_rpc("interp_open", args=own.written(values))
        try:
            marked = [_marked(how, [key, row, of]) for row, of in enumerate(edits)]
            outputs = self.llm.generate(prompts, marked, use_tqdm=False)
        finally:
            parts = self.llm.collective_rpc("interp_take", args=(key,))
        taken = [(json.loads(text), load(data)) for text, data in parts]
        trouble = next((held["trouble"] for held, _ in taken if held["trouble"]), None)
        if trouble is not None:
            raise ModelError(
                f"the engine ran, and interp could not find which values belong to which request: {trouble}"
            )
        return _answers(own, taken, outputs)

    def _edits(
        self, edits: Any, count: int
    ) -> tuple[tuple[tuple[Change, ...], ...], list[int | None], dict[str, Tensor]]:
        """The different sets of edits, which of them each request has, and their tensors."""
        if edits is None:
            return (), [None] * count, {}
        each: list[Any] = list(edits) if isinstance(edits, Iterable) and not isinstance(edits, Edit) else [edits]
        if all(isinstance(one, Edit) for one in each):
            each = [each] * count
        if len(each) != count:
            raise InputsError(f"{len(each)} sets of edits for {count} requests: give each its own, None for none.")
        values: dict[str, Tensor] = {}
        known: dict[tuple[Edit, ...], int] = {}
        made: list[tuple[Change, ...]] = []
        of_each: list[int | None] = []
        for one in each:
            some = () if one is None else tuple(several(one))
            if some and some not in known:
                known[some] = len(made)
                made.append(changes(some, self.shape, values))
            of_each.append(known[some] if some else None)
        return tuple(made), of_each, values

    def _sampling(self, given: Any, max_new_tokens: int, logprobs: bool) -> Any:
        from vllm import SamplingParams

        if given is None and max_new_tokens < 1:
            raise InputsError(f"max_new_tokens is at least 1 in an engine, got {max_new_tokens}.")
        how = SamplingParams(temperature=0.0, max_tokens=max_new_tokens) if given is None else given
        if not isinstance(how, SamplingParams):
            raise InputsError(f"sampling is one vllm.SamplingParams for all requests, got {type(given).__name__}.")
        if how.n != 1:
            raise InputsError(f"sampling with n={how.n} makes several answers of one request: send it several times.")
        if logprobs:
            refuse_scores(self.llm.llm_engine.vllm_config)
            how = how.clone()
            how.prompt_logprobs = 1
        return how


def _prompts(given: Any) -> list[Any]:
    """Prompts as vLLM takes them."""
    each = [given] if isinstance(given, str) else list(given)
    if each and all(isinstance(n, int) for n in each):
        each = [each]
    if not each:
        raise InputsError("there are no prompts: give a text, texts, or lists of token ids.")
    return [_prompt(n, one) for n, one in enumerate(each)]


def _prompt(n: int, given: Any) -> Any:
    if isinstance(given, str) and given:
        return given
    ids = given.tolist() if isinstance(given, Tensor) else given
    if isinstance(ids, Sequence) and ids and all(isinstance(i, Integral) and int(i) >= 0 for i in ids):
        return {"prompt_token_ids": [int(i) for i in ids]}
    raise InputsError(f"prompt {n} is {given!r:.60}: expected a text that is not empty, or token ids.")


def _reduced(given: Any) -> Any:
    if given not in (None, "mean", "sum", "norm"):
        raise InputsError(f"reduce is 'mean', 'sum', 'norm' or None, got {given!r}.")
    return given


def _marked(sampling: Any, mark: list[Any]) -> Any:
    """Sampling parameters that tell the workers whose request it is."""
    own = sampling.clone()
    own.extra_args = {**(own.extra_args or {}), "interp": mark}
    return own


def _answers(plan: Plan, taken: Sequence[tuple[dict[str, Any], dict[str, Tensor]]], outputs: Any) -> Iterator[Answer]:
    """What all workers hold, by request."""
    z = {layer: _joined(taken, "z", layer, f"z.{layer}") for layer in plan.z}
    names = [*plan.stats, *(f"{s}.keys" for s in plan.stats if s.startswith("topk"))]
    first = taken[0][1]
    count = first["count"].long().tolist() if "count" in first else [0] * plan.rows
    for row, out in enumerate(outputs):
        said = out.outputs[0]
        at, positions = _of_row(plan, first, row)
        yield Answer(
            said.text, tuple(said.token_ids), tuple(out.prompt_token_ids),
            {f"L{n}": _row_of(plan, x, row, at, count[row]) for n, x in z.items() if x is not None},
            {name: found for name in names if (found := _statistics(plan, taken, name, row, count[row]))},
            {f"L{n}": heads for n, heads in plan.z.items()}, {f"L{n}": h for n, h in plan.stat_heads.items()},
            positions, count[row], *_scored(out.prompt_token_ids, out.prompt_logprobs),
        )  # fmt: skip


def _scored(ids: Sequence[int], found: Sequence[Any] | None) -> tuple[Tensor | None, tuple[int, ...]]:
    """Log-probabilities of a prompt's tokens after the first, and the likeliest tokens there."""
    if found is None:
        return None, ()
    places = list(zip(ids[1:], found[1:], strict=True))
    likeliest = tuple(min(here, key=lambda one: here[one].rank) for _, here in places)
    return torch.tensor([here[one].logprob for one, here in places], dtype=torch.double), likeliest


def _of_row(plan: Plan, tensors: Mapping[str, Tensor], row: int) -> tuple[Tensor | None, tuple[int, ...]]:
    """Where a request's tokens are among all that were kept, in the order of their positions."""
    if "owner" not in tensors:
        return None, ()
    mine = (tensors["owner"] == row).nonzero().flatten()
    mine = mine[tensors["position"][mine].argsort()]
    return mine, tuple(tensors["position"][mine].tolist())


def _row_of(plan: Plan, x: Tensor, row: int, at: Tensor | None, count: int) -> Tensor:
    if at is not None:
        return x[at]
    return x[row] if plan.reduce == "sum" else x[row] / count if count else torch.full_like(x[row], torch.nan)


def _statistics(plan: Plan, taken: Any, name: str, row: int, count: int) -> dict[str, Tensor]:
    """One statistic of one request, by layer."""
    found = {}
    for layer in plan.stat_heads:
        if plan.reduce is None:
            value = _joined(taken, "stats", layer, f"s.{layer}.{name}.{row}", dim=0)
        else:
            value = _joined(taken, "stats", layer, f"s.{layer}.{name}")
            value = None if value is None else _row_of(plan, value, row, None, count)
        if value is not None:
            found[f"L{layer}"] = value
    return found


def _joined(taken: Any, kind: str, layer: int, name: str, dim: int = 1) -> Tensor | None:
    """The heads of all workers, in the order of their numbers."""
    parts = [(held[kind][str(layer)], tensors[name]) for held, tensors in taken if name in tensors]
    if not parts:
        return None
    order = torch.tensor([h for heads, _ in parts for h in heads]).argsort()
    return torch.cat([x for _, x in parts], dim).index_select(dim, order)
