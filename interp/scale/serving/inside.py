"""Reading and changing the heads of a model that a serving engine runs, in the engine's own process.

vLLM's transformers backend calls the same attention interface as transformers does (`hooks/stand/interface.py`), with
the tokens of all running requests as one row. Who they belong to is read off the engine, once a step: the request ids
of the batch that its model runner has made and how far each had come, `query_start_loc` of the attention's metadata,
and, from what the scheduler sent, which request carries which plan. A step whose parts do not fit together is recorded
for nobody, and `take` says so. What acts and what is kept is a plan's own affair (`work.py`).
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from interp.hooks.errors import ModelError
from interp.hooks.stand.call import Call, Tap
from interp.hooks.stand.interface import Switch
from interp.provenance import model_hash
from interp.scale.serving.packed import PackedError, Taken, segments
from interp.scale.serving.plans import Plan
from interp.scale.serving.work import Local, Tapping


@dataclass(frozen=True)
class _Found:
    """The attention of one layer: the module that calls the interface, and vLLM's own inside of it."""

    module: Any
    own: Any


class Inside:
    """The plans of one worker, and the requests that they are about."""

    def __init__(self, worker: Any) -> None:
        self.worker = worker
        self.layers = _layers(worker.model_runner.get_model())
        self.works: dict[str, Tapping] = {}
        self.requests: dict[str, tuple[Tapping, Taken]] = {}
        self.stepping = self.stepped = False
        self.taps = {layer: _LayerTap(self, layer) for layer in self.layers}
        self.undo = [_around(worker, "execute_model", self._step)]
        for layer, found in self.layers.items():
            Switch.watch(found.module, self.taps[layer])

    def close(self) -> None:
        """Put everything back."""
        for layer, found in self.layers.items():
            Switch.forget(found.module, self.taps[layer])
        for one in self.undo:
            one()
        self.works, self.requests = {}, {}

    @property
    def ranks(self) -> tuple[int, int]:
        """This worker's place among those that share the heads, and how many they are."""
        from vllm.distributed import get_tensor_model_parallel_rank, get_tensor_model_parallel_world_size

        return get_tensor_model_parallel_rank(), get_tensor_model_parallel_world_size()

    def described(self) -> str:
        rank, of = self.ranks
        layers = {n: [found.own.num_heads, _width(found.own)] for n, found in self.layers.items()}
        return json.dumps({"rank": rank, "of": of, "layers": layers, "runner": type(self.worker.model_runner).__name__})

    def digest(self) -> str:
        """What tells these weights from others."""
        return model_hash(self.worker.model_runner.get_model())

    def begin(self, text: str, values: bytes) -> None:
        plan, tensors = Plan.read(text, values)
        rank, _ = self.ranks
        here = {n: Local(rank * f.own.num_heads, f.own.num_heads, f.own.sliding_window) for n, f in self.layers.items()}
        self.works[plan.key] = Tapping(plan, tensors, here)

    def take(self, key: str) -> tuple[str, bytes]:
        if key not in self.works:
            raise ModelError(f"no plan {key!r} in this worker: it was taken before, or the engine was started anew.")
        work = self.works.pop(key)
        self.requests = {name: found for name, found in self.requests.items() if found[0] is not work}
        return work.taken()

    def wants(self, layer: int) -> bool:
        """Whether anything is done in this layer in the step that runs."""
        return self.stepping and bool(self.requests) and any(layer in work.layers for work in self.works.values())

    def act(self, layer: int, call: Call) -> None:
        """Change z, then read it."""
        if not self.stepped:
            self.stepped = True
            self._cut(layer, call.q.shape[2], call.q.device)
        for work in self.works.values():
            work.act(layer, call)

    def _step(self, run: Callable[..., Any], scheduled: Any, *args: Any, **kwargs: Any) -> Any:
        """A step of the engine, with what the scheduler says of its requests."""
        for name in scheduled.finished_req_ids:
            self.requests.pop(name, None)
        for new in scheduled.scheduled_new_reqs:
            self._meet(new)
        for work in self.works.values():
            work.idle()
        self.stepping, self.stepped = bool(self.requests), False
        try:
            return run(scheduled, *args, **kwargs)
        finally:
            self.stepping = False

    def _meet(self, new: Any) -> None:
        """A request the scheduler has not sent before, or sends anew after it was preempted."""
        mark = ((new.sampling_params and new.sampling_params.extra_args) or {}).get("interp")
        if mark is None or new.req_id in self.requests:
            return
        key, row, edits = mark
        if key in self.works:
            self.requests[new.req_id] = self.works[key], Taken(row, len(new.prompt_token_ids or ()), edits)

    def _cut(self, layer: int, tokens: int, device: Any) -> None:
        """Say to every plan which tokens of this step are whose."""
        try:
            names, starts, bounds = self._metadata(layer)
            held = [self.requests[name][1] if name in self.requests else None for name in names]
            found = list(segments(held, starts, bounds, tokens))
        except PackedError as error:
            for work in self.works.values():
                work.trouble = work.trouble or str(error)
            return
        mine = {id(one): work for work, one in self.requests.values()}
        for work in self.works.values():
            work.step([s for s in found if mine[id(s.held)] is work], device)

    def _metadata(self, layer: int) -> tuple[list[str], list[int], list[int]]:
        """Request ids in the order of the batch, how many tokens of each were there before, and where each begins."""
        from vllm.forward_context import get_forward_context

        metadata = get_forward_context().attn_metadata
        own = metadata.get(self.layers[layer].own.layer_name) if isinstance(metadata, dict) else None
        bounds = getattr(own, "query_start_loc", None)
        if bounds is None:
            raise PackedError(
                f"the engine's attention metadata ({type(own or metadata).__name__}) has no query_start_loc, so tokens"
                " cannot be told apart: choose another attention backend, without micro-batches."
            )
        batch = self.worker.model_runner.input_batch
        names = list(batch.req_ids)
        starts = batch.num_computed_tokens_cpu[: len(names)]
        return names, [int(n) for n in starts], bounds.tolist()


class _LayerTap(Tap):
    """Where one layer's attention of the engine passes by."""

    def __init__(self, inside: Inside, layer: int) -> None:
        self.inside, self.layer = inside, layer

    def live(self) -> bool:
        return self.inside.wants(self.layer)

    def after(self, call: Call) -> None:
        self.inside.act(self.layer, call)


def _layers(model: Any) -> dict[int, _Found]:
    """By number, every layer whose attention goes through transformers' interface to vLLM's."""
    found = {}
    for module in model.modules():
        own, layer = getattr(module, "attn", None), getattr(module, "layer_idx", None)
        if isinstance(layer, int) and hasattr(own, "layer_name") and hasattr(own, "num_heads"):
            found[layer] = _Found(module, own)
    if not found:
        raise ModelError(
            f"{type(model).__name__} has no attention that uses transformers' interface: start the engine with"
            " model_impl='transformers' (see interp.scale.vllm_arguments())."
        )
    if any(type(f.own).__name__.startswith("MLA") for f in found.values()):
        raise ModelError(
            "multi-head latent attention has no z per head before its projection in vLLM, so it cannot be read."
        )
    return dict(sorted(found.items()))


def _width(own: Any) -> int:
    """How wide a head's z is."""
    return int(getattr(own, "head_size_v", 0) or own.head_size)


def _around(thing: Any, name: str, around: Callable[..., Any]) -> Callable[[], None]:
    """Send the calls of a method of one object through `around`; returns what puts it back."""
    original = getattr(thing, name)

    def call(*args: Any, **kwargs: Any) -> Any:
        return around(original, *args, **kwargs)

    setattr(thing, name, call)

    def undo() -> None:
        if vars(thing).get(name) is call:
            delattr(thing, name)

    return undo
