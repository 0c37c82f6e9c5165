"""How heads attend, as numbers per row and per key, at any length.

Entropy, the largest weight and its key, mass on the first token or on a role, attention received: each is taken layer
by layer while the model runs, from the queries and keys of the call, in memory linear in the number of tokens. A long
prompt is read in chunks with the KV cache, and the statistics of the chunks are merged exactly. Cost: one forward
pass, plus about one more attention per layer (none with `impl=`, where one pass gives both). Limits: models whose
attention goes through transformers' interface; chunks need a causal model with a cache.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from interp.held import Held
from interp.hooks.anatomy.unwrap import forced_eager
from interp.hooks.errors import InputsError, SiteError
from interp.hooks.head_names import layer_name
from interp.hooks.html import block, folded, line, table
from interp.hooks.inputs.inputs import Inputs, Positions
from interp.hooks.run.statistics import Keys, Request, StatTap, stream
from interp.hooks.sites import Site
from interp.kernels.stats import parse


@dataclass(frozen=True, eq=False)
class AttentionStats:
    """Statistics by site: per row [batch, head, row], per key [batch, head, key]."""

    values: Mapping[Site, Mapping[str, Tensor]]
    """By site and by the name of the statistic."""
    heads: Mapping[Site, tuple[int, ...]]
    """By site, the heads of its head axis."""
    inputs: Inputs
    """The inputs that were measured."""
    impl: tuple[str, ...]
    """Which kernels computed them."""
    keys: Keys = "seen"
    """Whether of the weights on all keys the model sees or, renormalised, on those that are no padding."""

    def __repr__(self) -> str:
        over = "the keys the model sees" if self.keys == "seen" else "real keys"
        by = ", ".join(self.impl)
        return f"AttentionStats({', '.join(self.names)}; {len(self.values)} layers; over {over}; computed by {by})"

    def _repr_html_(self) -> str:
        rows = [
            {"place": layer_name(site), "heads": len(self.heads[site]),
             **{name: list(found[name].shape) for name in self.names}} for site, found in self.values.items()
        ]  # fmt: skip
        return block(line(repr(self)), table(rows, of=len(rows)), *self._means())

    def _means(self) -> list[str]:
        """Tables of layers by heads, of the statistics that have one number at each position."""
        made = []
        for name in self.names if len(set(self.heads.values())) == 1 else ():
            one = next(iter(self.values.values()))[name]
            if one.ndim == 3 and one.shape[2] == self._valid.shape[1] and not parse(name.removesuffix(".keys")).per_key:
                found = self.mean(name).to_pandas()
                rows = [{"layer": str(at), **{f"H{head}": float(v) for head, v in row.items()}} for at, row in
                        found.iterrows()]  # fmt: skip
                made.append(folded(f"{name}, averaged over examples and real positions", table(rows, most=len(rows))))
        return made

    @property
    def names(self) -> tuple[str, ...]:
        """The statistics there are."""
        return tuple(next(iter(self.values.values())))

    def at(self, site: str, name: str) -> Tensor:
        """One layer's statistic."""
        for have, found in self.values.items():
            if str(have).removesuffix(".attention") == site.removesuffix(".attention"):
                return found[name]
        raise SiteError(f"no statistics of {site!r}; there are those of {', '.join(map(str, self.values))}.")

    def __getitem__(self, name: str) -> Any:
        """A labelled array [layer, example, head, position or key, ...] (xarray); layers must have the same heads."""
        import xarray

        self._known(name)
        if len(set(self.heads.values())) > 1:
            raise SiteError("layers have different heads, so they do not fit one array: use .at(site, name).")
        stacked = torch.stack([found[name].cpu() for found in self.values.values()])
        last = "key" if parse(name.removesuffix(".keys")).per_key else "position"
        dims = ["layer", "example", "head", last, "rank"][: stacked.ndim]
        layers = [layer_name(site) for site in self.values]
        heads = next(iter(self.heads.values()))
        return xarray.DataArray(stacked.numpy(), dims=dims, coords={"layer": layers, "head": list(heads)}, name=name)

    def _known(self, name: str) -> None:
        if name not in self.names:
            raise SiteError(f"no statistic {name!r} was taken; there are {', '.join(self.names)}.")

    @cached_property
    def _valid(self) -> Tensor:
        return self.inputs.valid.cpu()

    def mean(self, name: str) -> Any:
        """Per layer and head, over examples and real positions."""
        array = self[name]
        weights = self._valid.float()
        if array.sizes[array.dims[3]] != weights.shape[1]:
            raise InputsError(f"{name!r} was taken at some rows or in another tower; average .at(site, name) yourself.")
        labelled = array.copy(data=array.values)
        total = (labelled.values * weights[None, :, None].numpy()).sum((1, 3)) / float(weights.sum())
        return labelled.isel(example=0, **{array.dims[3]: 0}, drop=True).copy(data=total)


def attention(
    model: Held,
    inputs: Any,
    *,
    stats: Sequence[str] | str = ("entropy", "first", "received_mean"),
    heads: str = "L*",
    rows: Positions | None = None,
    impl: str | None = None,
    chunk: int | None = None,
    reduce_groups: Any = None,
    keys: Keys = "seen",
) -> AttentionStats:
    """Statistics of the heads a site pattern means, such as "L*", "vision.L*" or "L3-5.H0,2".

    `keys="real"` leaves out keys that are padding where the model sees those too, as Whisper does.
    """
    anatomy = model.ready()
    x = model.inputs(inputs)
    sites = [Site(s.tower, s.layer, "attention", s.heads) for s in anatomy.sites(_pattern(heads))]
    request = Request.of(stats, rows, impl, reduce_groups, keys)
    progress = _Progress(model, x, chunk)
    with forced_eager():
        taps = stream(model.module, anatomy, sites, request, x, progress.run, lambda: progress.offset)
    return _read(taps, x, keys)


def _pattern(heads: str) -> str:
    return heads if ".z" in heads else f"{heads}.z"


def _read(taps: Mapping[Site, StatTap], x: Inputs, keys: Keys) -> AttentionStats:
    values = {site: {name: value.cpu() for name, value in tap.merged().items()} for site, tap in taps.items()}
    heads = {site: _labels(tap) for site, tap in taps.items()}
    return AttentionStats(values, heads, x, tuple(sorted({name for tap in taps.values() for name in tap.ran})), keys)


def _labels(tap: StatTap) -> tuple[int, ...]:
    if tap.request.reduce_groups is not None:
        return tuple(range(tap.layer.kv_heads))
    return tap.site.heads or tuple(range(tap.layer.heads))


class _Progress:
    """The forward passes of one prompt: one, or one a chunk with the cache between them."""

    def __init__(self, model: Held, x: Inputs, chunk: int | None) -> None:
        self.model, self.x, self.chunk, self.offset = model, x, chunk, 0
        if chunk is not None:
            self._allow(chunk)

    def _allow(self, chunk: int) -> None:
        extra = [n for n in self.x.kwargs if n not in ("input_ids", "attention_mask", "position_ids")]
        if (
            chunk < 1
            or extra
            or self.model.anatomy.main is None
            or self.model.anatomy.tower(None, text="chunk").bidirectional
        ):
            raise InputsError(
                "chunk= reads a text in pieces of at least one token through a causal model's cache; got"
                f" chunk={chunk}" + (f" and {', '.join(extra)}." if extra else ".")
            )

    def run(self) -> None:
        kwargs = self.model.called_with(self.x.kwargs)
        with torch.no_grad():
            if self.chunk is None:
                self.model.module(**kwargs)
            else:
                self._in_chunks(kwargs, self.chunk)

    def _in_chunks(self, kwargs: dict[str, Any], chunk: int) -> None:
        cache, length = None, kwargs["input_ids"].shape[1]
        for start in range(0, length, chunk):
            end = min(start + chunk, length)
            part = {
                name: value[:, :end] if name == "attention_mask" else value[:, start:end]
                for name, value in kwargs.items()
            }
            self.offset = start
            out = self.model.module(**part, past_key_values=cache, use_cache=True, **self.model.last_logits_only())
            cache = out.past_key_values
