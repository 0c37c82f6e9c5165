"""Models whose heads are in several processes: which are in this one, and how the others are reached.

Tensor parallel plans of transformers cut the projections of an attention by heads: of H heads and n processes, process
r computes heads r H/n to (r + 1) H/n - 1, and the kv heads that these read. Its attention call, its z and its part of
the output projection know nothing of the others. What the model's layers are called and how many heads they have is
said of the whole model (`Layer.share` says which part is here), so that a head has one name in every process; `here`
is the same anatomy as one process sees it.

What is read off the weight of the output projection: it is a DTensor of the whole width, cut along what it reads. All
processes must take the same steps in the same order, as the model itself demands.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from interp.hooks.anatomy.towers import Anatomy, Layer, Share
from interp.hooks.errors import EditError, ModelError
from interp.hooks.sites import CALL, KV, Site

CUT = CALL | {"result"}
"""Components with a head axis of which each process has its own heads."""


def cut_weight(weight: Any) -> bool:
    """Whether a parameter is a tensor of several processes."""
    return hasattr(weight, "full_tensor") and hasattr(weight, "placements")


def whole(weight: Any) -> Any:
    """A parameter as one process would have it: gathered where it is cut, which all processes have to ask for."""
    return weight.full_tensor() if cut_weight(weight) else weight


def refuse_cut(module: nn.Module, what: str) -> None:
    """Raise where weights that are to be changed or copied are in several processes."""
    found = next((name for name, p in module.named_parameters() if cut_weight(p)), None)
    if found is not None:
        raise ModelError(f"{found} is divided over several processes, so {what}: load the model in one process.")


def some_values(weight: Any, most: int) -> Tensor:
    """At most so many values of a parameter that is cut, from the first to the last, without putting it together."""
    import torch.distributed as dist
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    last, count = weight.numel() - 1, min(most, weight.numel())
    flat = torch.arange(count) * last // max(1, count - 1)
    mesh, local = weight.device_mesh, weight.to_local().detach()
    shape, start = compute_local_shape_and_global_offset(weight.shape, mesh, weight.placements)
    at = [axis - first for axis, first in zip(torch.unravel_index(flat, weight.shape), start, strict=True)]
    mine = torch.stack([(axis >= 0) & (axis < size) for axis, size in zip(at, shape, strict=True)]).all(0)
    found = torch.full((count,), -torch.inf, dtype=torch.float64)
    found[mine] = local[tuple(axis[mine].to(local.device) for axis in at)].double().cpu()
    found = found.to(local.device)
    for axis in range(mesh.ndim):
        dist.all_reduce(found, dist.ReduceOp.MAX, group=mesh.get_group(axis))
    return found.cpu()


def fitting_part(weight: Any, width: int) -> Any:
    """Of a weight [out, in] that reads `width` numbers: this process' own part where it is cut so, else all of it."""
    if not cut_weight(weight):
        return weight
    mine = weight.to_local()
    return mine if mine.shape[-1] == width else weight.full_tensor()


def own_columns(weight: Any, x: Tensor) -> Tensor:
    """What this process' part of a weight [out, in] reads of x, which has all of it or that part."""
    if not cut_weight(weight) or x.shape[-1] != weight.shape[-1]:
        return x
    width = weight.to_local().shape[-1]
    cut = [n for n, p in enumerate(weight.placements) if p.is_shard(weight.ndim - 1)]
    return x if not cut else x.narrow(-1, weight.device_mesh.get_local_rank(cut[0]) * width, width)


def spread(module: nn.Module, anatomy: Anatomy) -> Anatomy:
    """The anatomy of the whole model, where what was traced is one process' part of it."""
    towers = {
        name: replace(tower, layers=tuple(_lifted(module, layer) for layer in tower.layers))
        for name, tower in anatomy.towers.items()
    }
    return replace(anatomy, towers=towers)


def refuse_stages(module: nn.Module) -> None:
    """Raise for a model of which this process has some layers only."""
    absent = [name for name, child in module.named_modules() if type(child).__name__ == "PipelineIdentityLayer"]
    if absent or hasattr(module, "_pp_stage"):
        first = absent[0] if absent else "its last layers"
        raise ModelError(
            f"{type(module).__name__} is a stage of a pipeline: {first} is in another process, so a site would be a"
            " layer in one process and nothing in the others. Load it with a tensor parallel plan"
            " (DistributedConfig(tp_size=...)), or with device_map='auto' in one process."
        )


def _lifted(module: nn.Module, layer: Layer) -> Layer:
    share = _share(module, layer)
    if share is None:
        return layer
    return replace(layer, heads=layer.heads * share.of, kv_heads=layer.kv_heads * share.of, share=share)


def _share(module: nn.Module, layer: Layer) -> Share | None:
    if layer.out is None:
        if any(cut_weight(p) for p in module.get_submodule(layer.block).parameters()):
            raise ModelError(
                f"the weights of {layer.block} are divided over several processes and no output projection was found,"
                " so it is not known which heads this process has."
            )
        return None
    weight: Any = getattr(module.get_submodule(layer.out), "weight", None)
    width = layer.heads * layer.d_value
    if not cut_weight(weight):
        _refuse_packed(module, layer)
        return None
    if weight.shape[-1] == width:  # every process attends with all heads
        return None
    cut = [n for n, p in enumerate(weight.placements) if p.is_shard(weight.ndim - 1)]
    mesh = weight.device_mesh
    if len(cut) != 1 or width * mesh.size(cut[0]) != weight.shape[-1]:
        raise ModelError(
            f"{layer.out} reads {weight.shape[-1]} numbers over {mesh.size()} processes, and this one attends with"
            f" {layer.heads} heads of {layer.d_value}: heads are not divided evenly, so it is not known which heads"
            " this process has."
        )
    of = mesh.size(cut[0])
    _refuse_common_keys(module, layer, of)
    port = layer.ports.get("neurons")
    units = port is not None and cut_weight(getattr(module.get_submodule(port.module), "weight", None))
    return Share(mesh.get_local_rank(cut[0]), of, mesh.get_group(cut[0]).group_name, units)


def _refuse_packed(module: nn.Module, layer: Layer) -> None:
    """A quantised weight that is cut is a plain tensor of one process."""
    out: Any = module.get_submodule(str(layer.out))
    if getattr(module, "_tp_size", None) not in (None, 1) and getattr(out, "_hf_quantized_needs_local_tp", False):
        raise ModelError(
            f"{layer.out} is quantised and divided over processes, and its weight does not say how: load the model"
            " without quantisation, or on one device."
        )


def _refuse_common_keys(module: nn.Module, layer: Layer, of: int) -> None:
    config: Any = getattr(module, "config", None)
    config = config.get_text_config() if hasattr(config, "get_text_config") else config
    heads, kv = (getattr(config, f"num_{name}_heads", None) for name in ("attention", "key_value"))
    if heads == layer.heads * of and kv == layer.kv_heads:
        raise ModelError(
            f"{layer.attention}: each of {of} processes has {layer.heads} of {heads} heads and all {kv} kv heads,"
            " which is not supported: load the model over fewer processes."
        )


def here(anatomy: Anatomy) -> Anatomy:
    """The anatomy as this process' attention calls have it."""
    if not divided(anatomy):
        return anatomy
    towers = {
        name: replace(tower, layers=tuple(map(layer_here, tower.layers))) for name, tower in anatomy.towers.items()
    }
    return replace(anatomy, towers=towers)


def divided(anatomy: Anatomy) -> bool:
    """Whether heads are in several processes."""
    return any(layer.share is not None for tower in anatomy.towers.values() for layer in tower.layers)


def layer_here(layer: Layer) -> Layer:
    """A layer as this process' attention call has it."""
    of = 1 if layer.share is None else layer.share.of
    return replace(layer, heads=layer.heads // of, kv_heads=layer.kv_heads // of, share=None)


def _count(layer: Layer, site: Site) -> int:
    """How many of the heads that a site is written with the layer has."""
    return layer.kv_heads if site.component in KV and not site.query_heads else layer.heads


def held(layer: Layer, site: Site) -> Site | None:
    """What of a site is in this process, numbered as its attention call does; None where nothing does."""
    if layer.share is None or site.component not in CUT:
        return site
    own = layer.share.own(_count(layer, site))
    if site.heads is None:
        return site
    mine = tuple(head - own.start for head in site.heads if head in own)
    return replace(site, heads=mine) if mine else None


def labelled(layer: Layer, site: Site) -> Site | None:
    """The same under its name in the whole model."""
    if layer.share is None or site.component not in CUT:
        return site
    own = layer.share.own(_count(layer, site))
    mine = tuple(head for head in (own if site.heads is None else site.heads) if head in own)
    return replace(site, heads=mine) if mine else None


def axis_of(layer: Layer, site: Site) -> tuple[int, ...] | None:
    """Which heads of the attention call a recording of the site takes; None for all. A process that has none of them
    takes its first, so that it has something of the right shape to send."""
    if layer.share is None:
        return None if site.heads is None else layer.heads_of(site)
    mine = held(layer, site)
    if mine is None:
        return (0,)
    return None if mine.heads is None else layer_here(layer).heads_of(mine)


@dataclass(frozen=True)
class Order:
    """How the heads of a site are divided over the processes: how many each has, and where each belongs."""

    share: Share
    counts: tuple[int, ...]
    places: tuple[int, ...]
    """The number of each gathered head among those of the site."""

    @classmethod
    def of(cls, layer: Layer, site: Site) -> Order:
        """Of a site of a layer that is divided."""
        share = layer.share
        assert share is not None
        every = layer.heads_of(site)
        per = (layer.kv_heads if site.component in KV else layer.heads) // share.of
        by_process = [[n for n, head in enumerate(every) if head // per == r] for r in range(share.of)]
        return cls(share, tuple(map(len, by_process)), tuple(n for some in by_process for n in some))

    def mine(self, x: Tensor, axis: int) -> Tensor:
        """The heads of this process without the one that is a placeholder."""
        return x.narrow(axis, 0, self.counts[self.share.number])

    def gathered(self, x: Tensor, axis: int) -> Tensor:
        """All heads of the site in their order, from what each process has of them."""
        most = max(self.counts)
        x = self.mine(x, axis).transpose(0, axis)
        wide = torch.cat([x, x.new_zeros(most - len(x), *x.shape[1:])]) if len(x) < most else x
        parts = gathered(wide, self.share)
        joined = torch.cat([part[:n] for part, n in zip(parts, self.counts, strict=True)])
        return joined[torch.tensor(self.places, device=x.device).argsort()].transpose(0, axis).contiguous()

    def own(self, x: Tensor, axis: int) -> Tensor:
        """This process' heads out of all of them."""
        start = sum(self.counts[: self.share.number])
        mine = self.places[start : start + self.counts[self.share.number]]
        return x.index_select(axis, torch.tensor(mine, dtype=torch.long, device=x.device))


def gathered(x: Tensor, share: Share) -> list[Tensor]:
    """A tensor of every process, all of one shape; every process has to ask."""
    import torch.distributed as dist
    from torch.distributed.distributed_c10d import _resolve_process_group  # type: ignore[attr-defined]

    mine = x.detach().contiguous()
    parts = [torch.empty_like(mine) for _ in range(share.of)]
    dist.all_gather(parts, mine, group=_resolve_process_group(share.group))  # type: ignore[arg-type]
    return parts


def everyones(layer: Layer, x: Tensor) -> Tensor:
    """What each process' output projection reads, side by side."""
    return x if layer.share is None else torch.cat(gathered(x, layer.share), -1)


class Whole(torch.autograd.Function):
    """All heads, of which the own ones carry their gradient on."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, order: Order, axis: int) -> Tensor:
        ctx.order, ctx.axis, ctx.shape = order, axis, x.shape
        return order.gathered(x, axis)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        mine = ctx.order.own(grad, ctx.axis)
        if mine.shape != ctx.shape:  # the placeholder
            mine = grad.new_zeros(ctx.shape)
        return mine, None, None


class Own(torch.autograd.Function):
    """The own heads of all of them; on the way back every process gets the gradients of all."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, order: Order, axis: int) -> Tensor:
        ctx.order, ctx.axis = order, axis
        return order.own(x, axis)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return ctx.order.gathered(grad, ctx.axis), None, None


@dataclass(frozen=True)
class Lift:
    """Applies a change of a site's heads where some of them are elsewhere: it sees all of them, and those that are not
    here are no numbers, so that one which lets heads meet is found out."""

    count: int
    places: tuple[int, ...]
    """Where the own heads are among those of the site."""
    axis: int

    @classmethod
    def of(cls, layer: Layer, site: Site) -> Lift | None:
        """For an edit at a site of a layer; None where all it concerns is here."""
        share = layer.share
        if share is None or site.component not in CUT:
            return None
        own = share.own(_count(layer, site))
        every = site.heads if site.heads is not None else tuple(range(_count(layer, site)))
        return cls(len(every), tuple(n for n, head in enumerate(every) if head in own), _axis(site))

    def around(self, change: Callable[..., Tensor], what: object) -> Callable[[Tensor, Tensor | None], Tensor]:
        """The change for the own heads alone."""

        def lifted(x: Tensor, valid: Tensor | None) -> Tensor:
            at = torch.tensor(self.places, device=x.device)
            wide = list(x.shape)
            wide[self.axis] = self.count
            new = change(x.new_full(wide, torch.nan).index_copy(self.axis, at, x), valid).index_select(self.axis, at)
            if bool((new.isnan() & ~x.isnan()).any()):
                raise EditError(
                    f"{what!r} computes heads from one another, and some of them are in other processes: name heads of"
                    " one process, or run the model in one process."
                )
            return new

        return lifted


def _axis(site: Site) -> int:
    return 1 if site.component in ("pattern", "scores") else 2
