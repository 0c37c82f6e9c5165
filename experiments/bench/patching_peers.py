"""The sweeps of `patching.py` as others would write them; each ends with the same grid of mean effects.

Every peer is set up outside the clock and starts from the two batches of ids. `z` of a head is its slice of what enters
GPT-2's output projection.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn

RIGHT, WRONG = 464, 262
Sweep = Callable[[Tensor, Tensor, str, int], Tensor]
"""Base ids, source ids, "head" or "resid", first column that differs: [layer, head or position]."""


def difference(logits: Tensor) -> Tensor:
    """Logit difference at the last position, by row."""
    return logits[:, -1, RIGHT] - logits[:, -1, WRONG]


def peers(module: Any) -> dict[str, Sweep]:
    """Every peer that is installed here, on a copy of its own: what some of them leave on a model slows the others."""
    found: dict[str, Sweep] = {"hook_loop": HookLoop(copy.deepcopy(module))}
    for name, package, make in (
        ("transformer_lens", "transformer_lens", TransformerLens),
        ("nnsight", "nnsight", NNsightLoop),
        ("nnsight_batched", "nnsight", NNsightBatched),
        ("pyvene", "pyvene", Pyvene),
    ):
        if find_spec(package) is None:
            print(f"{name}: not installed, left out")
        else:
            found[name] = make(copy.deepcopy(module))
    return found


class TransformerLens:
    """`get_act_patch_attn_head_out_all_pos` and `get_act_patch_resid_pre` on a bridge around the model."""

    def __init__(self, module: Any) -> None:
        from transformer_lens.model_bridge.sources._bridge_builder import build_bridge_from_module

        module.set_attn_implementation("eager")
        self.bridge = build_bridge_from_module(module, "GPT2LMHeadModel", hf_config=module.config)

    def __call__(self, base: Tensor, source: Tensor, kind: str, first: int) -> Tensor:
        from transformer_lens import patching

        sweep = patching.get_act_patch_attn_head_out_all_pos if kind == "head" else patching.get_act_patch_resid_pre
        with torch.no_grad():
            _, cache = self.bridge.run_with_cache(source)
            plain = difference(self.bridge(base)).mean()
            found = sweep(self.bridge, base, cache, lambda logits: difference(logits).mean())
            return torch.as_tensor(found).double() - float(plain)


class HookLoop:
    """One forward pass a layer, all of its patches as rows of one batch, positions that agree left out."""

    def __init__(self, module: Any) -> None:
        self.module = module
        self.layers, self.heads = module.config.n_layer, module.config.n_head

    def places(self, kind: str, base: Tensor, first: int) -> list[int]:
        """Heads, or positions that differ."""
        return list(range(self.heads)) if kind == "head" else list(range(first, base.shape[1]))

    def at(self, layer: int, kind: str) -> nn.Module:
        """The module whose input is patched."""
        block: Any = self.module.transformer.h[layer]
        projection: nn.Module = block.attn.c_proj
        return projection if kind == "head" else block

    def __call__(self, base: Tensor, source: Tensor, kind: str, first: int) -> Tensor:
        places, width = self.places(kind, base, first), self.module.config.n_embd // self.heads
        found = torch.zeros(self.layers, self.heads if kind == "head" else base.shape[1], dtype=torch.float64)
        with torch.no_grad():
            kept = list(self._inputs(source, kind))
            plain = difference(self.module(base, logits_to_keep=1).logits)
            for layer in range(self.layers):
                mask = torch.zeros(len(places), *base.shape, kept[layer].shape[-1], dtype=torch.bool)
                for n, place in enumerate(places):
                    part = (slice(None), slice(None), slice(place * width, (place + 1) * width))
                    mask[n][part if kind == "head" else (slice(None), place)] = True
                made = self._patched(layer, kind, base.repeat(len(places), 1), mask.flatten(0, 1), kept[layer])
                gap = made.view(len(places), -1) - plain
                found[layer, places] = gap.mean(1).double()
        return found

    def _inputs(self, ids: Tensor, kind: str) -> Iterator[Tensor]:
        seen: dict[int, Tensor] = {}
        handles = [
            self.at(n, kind).register_forward_pre_hook(lambda _, args, n=n: seen.update({n: args[0]}))
            for n in range(self.layers)
        ]
        self.module(ids, logits_to_keep=1)
        for handle in handles:
            handle.remove()
        return (seen[n] for n in range(self.layers))

    def _patched(self, layer: int, kind: str, ids: Tensor, mask: Tensor, value: Tensor) -> Tensor:
        def put(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
            return (torch.where(mask, value.repeat(len(mask) // len(value), 1, 1), args[0]), *args[1:])

        handle = self.at(layer, kind).register_forward_pre_hook(put)
        made = difference(self.module(ids, logits_to_keep=1).logits)
        handle.remove()
        return made


class NNsightLoop:
    """One trace a patch."""

    def __init__(self, module: Any) -> None:
        from nnsight import NNsight

        self.traced = NNsight(module)
        self.layers, self.heads, self.width = module.config.n_layer, module.config.n_head, module.config.n_embd

    def source(self, ids: Tensor, kind: str) -> list[Tensor]:
        """What is patched in, by layer."""
        found = []
        with torch.no_grad(), self.traced.trace(ids):
            for block in self.traced.transformer.h:
                found.append((block.attn.c_proj.input if kind == "head" else block.input).save())  # noqa: PERF401
        return found

    def plain(self, ids: Tensor) -> Tensor:
        """The metric of a plain run."""
        with torch.no_grad(), self.traced.trace(ids):
            logits = self.traced.lm_head.output[:, -1:].save()
        return difference(logits)

    def __call__(self, base: Tensor, source: Tensor, kind: str, first: int) -> Tensor:
        kept, plain, d = self.source(source, kind), self.plain(base), self.width // self.heads
        places = range(self.heads) if kind == "head" else range(first, base.shape[1])
        found = torch.zeros(self.layers, self.heads if kind == "head" else base.shape[1], dtype=torch.float64)
        for layer in range(self.layers):
            block, value = self.traced.transformer.h[layer], kept[layer]
            for place in places:
                with torch.no_grad(), self.traced.trace(base):
                    if kind == "head":
                        block.attn.c_proj.input[:, :, place * d : (place + 1) * d] = value[
                            :, :, place * d : (place + 1) * d
                        ]
                    else:
                        block.input[:, place] = value[:, place]
                    logits = self.traced.lm_head.output[:, -1:].save()
                found[layer, place] = float((difference(logits) - plain).mean())
        return found


class NNsightBatched(NNsightLoop):
    """One trace a layer, a patch an invoke."""

    def __init__(self, module: Any) -> None:
        from nnsight import NNsight

        class Batching(NNsight):
            """NNsight leaves it to the model class to say how invokes make a batch."""

            def _batch_size(self, *inputs: Any, **kwargs: Any) -> int:
                return len(inputs[0]) if inputs else 0

            def _batch(self, invokes: list[Any], fn: Any) -> tuple[Any, Any]:
                return (torch.cat([inputs[0] for inputs, _ in invokes]),), {}

        super().__init__(module)
        self.traced = Batching(module)

    def __call__(self, base: Tensor, source: Tensor, kind: str, first: int) -> Tensor:
        kept, plain, d = self.source(source, kind), self.plain(base), self.width // self.heads
        places = range(self.heads) if kind == "head" else range(first, base.shape[1])
        found = torch.zeros(self.layers, self.heads if kind == "head" else base.shape[1], dtype=torch.float64)
        for layer in range(self.layers):
            block, value, made = self.traced.transformer.h[layer], kept[layer], {}
            with torch.no_grad(), self.traced.trace() as tracer:
                for place in places:
                    with tracer.invoke(base):
                        if kind == "head":
                            block.attn.c_proj.input[:, :, place * d : (place + 1) * d] = value[
                                :, :, place * d : (place + 1) * d
                            ]
                        else:
                            block.input[:, place] = value[:, place]
                        made[place] = self.traced.lm_head.output[:, -1:].save()
            for place, logits in made.items():
                found[layer, place] = float((difference(logits) - plain).mean())
        return found


class Pyvene:
    """One intervenable model a layer and place, `VanillaIntervention` on heads or on the block's input."""

    def __init__(self, module: Any) -> None:
        self.module = module

    def __call__(self, base: Tensor, source: Tensor, kind: str, first: int) -> Tensor:
        import pyvene

        config, length = self.module.config, base.shape[1]
        places = range(config.n_head) if kind == "head" else range(first, length)
        found = torch.zeros(config.n_layer, config.n_head if kind == "head" else length, dtype=torch.float64)
        with torch.no_grad():
            plain = difference(self.module(base).logits)
            for layer in range(config.n_layer):
                component, unit = ("head_attention_value_output", "h.pos") if kind == "head" else ("block_input", "pos")
                wanted = pyvene.IntervenableConfig(
                    [{"layer": layer, "component": component, "unit": unit}], pyvene.VanillaIntervention
                )
                model = pyvene.IntervenableModel(wanted, self.module)
                for place in places:
                    at: Any = place if kind != "head" else [[[[place]] * len(base), [list(range(length))] * len(base)]]
                    where = {"sources->base": at if kind != "head" else (at, at)}
                    _, out = model({"input_ids": base}, [{"input_ids": source}], where)
                    found[layer, place] = float((difference(out.logits) - plain).mean())
        return found
