"""What one run recorded."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from interp.hooks.anatomy import Anatomy
from interp.hooks.errors import InputsError, InterpError, SiteError
from interp.hooks.inputs import Inputs, Positions
from interp.hooks.shelf import Shelf
from interp.hooks.sites import CALL, HEAD, KV, TRANSFORMER_LENS, Site


class Tape(Mapping[str, Any]):
    """Recorded tensors by site, with the inputs they belong to.

    `tape["L5.z"]` is that tensor, `tape["L*.z"]` a dict by site. Head axes keep their place whether one head was asked for
    or all: z is [batch, position, head, d_head] with as many heads as recorded.
    """

    def __init__(
        self, anatomy: Anatomy, inputs: Inputs | None, tensors: Mapping[Site, Tensor], *, meta: Mapping[str, Any]
    ) -> None:
        self.anatomy = anatomy
        self.inputs = inputs
        self.meta = dict(meta)
        self._tensors = tensors

    def __getitem__(self, spelled: str | Site) -> Any:
        sites = self.anatomy.sites(spelled)
        if len(sites) == 1:
            return self._one(sites[0])
        return {str(site): self._one(site) for site in sites}

    def __iter__(self) -> Any:
        return (str(site) for site in self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    def __repr__(self) -> str:
        rows = [f"  {site}: {list(t.shape)} {str(t.dtype).removeprefix('torch.')}" for site, t in self._tensors.items()]
        return "\n".join([f"Tape of {len(self)} sites, {self.bytes / 2**20:.1f} MiB", *rows])

    @property
    def sites(self) -> tuple[Site, ...]:
        """What was recorded."""
        return tuple(self._tensors)

    @property
    def bytes(self) -> int:
        """Memory of what was recorded."""
        return sum(t.numel() * t.element_size() for t in self._tensors.values())

    def _one(self, site: Site) -> Tensor:
        if site in self._tensors:
            return self._tensors[site]
        for have, tensor in self._tensors.items():
            if have.whole == site.whole and (picked := self._heads(have, site, tensor)) is not None:
                return picked
        raise SiteError(f"{str(site)!r} was not recorded; this tape has {', '.join(self) or 'nothing'}.")

    def _heads(self, have: Site, want: Site, tensor: Tensor) -> Tensor | None:
        """The wanted heads out of a recording that holds them."""
        layer = self.anatomy.layer(have)
        heads = have.heads if have.heads is not None else tuple(range(layer.head_count(have.component)))
        wanted = want.heads if want.heads is not None else tuple(range(layer.head_count(want.component)))
        if want.query_heads:
            wanted = tuple(h // layer.group for h in wanted)
        if not set(wanted) <= set(heads):
            return None
        return tensor.index_select(
            head_axis(want.component), torch.tensor([heads.index(h) for h in wanted], device=tensor.device)
        )

    def at(self, positions: Positions, site: str | Site | None = None) -> Any:
        """Only these positions: `tape.at("last")["L5.z"]` is [batch, head, d_head] at each row's last real token."""
        if self.inputs is None:
            raise InputsError("this tape does not know its inputs, so positions cannot be looked up.")
        picked = {s: self._pick(s, t, positions) for s, t in self._tensors.items()}
        found = Tape(self.anatomy, self.inputs, picked, meta=self.meta | {"positions": str(positions)})
        return found if site is None else found[site]

    def _pick(self, site: Site, tensor: Tensor, positions: Positions) -> Tensor:
        assert self.inputs is not None
        mask = tower_inputs(self.inputs, site).mask(positions).to(tensor.device)
        return select(
            tensor,
            mask,
            axis=2 if site.component in ("pattern", "scores") else 1,
            squeeze=isinstance(positions, (str, int)),
        )

    def grad(
        self,
        metric: Callable[..., Tensor] | Tensor,
        sites: str | Site | Iterable[str | Site] = "*",
        *,
        keep_graph: bool = False,
    ) -> dict[str, Tensor]:
        """Gradients of a metric's sum over the batch at recorded sites; needs a run with `grad=True`.

        A metric is `f(logits, inputs) -> [batch]`, or its value.
        """
        wanted = (
            list(self._tensors) if sites == "*" else [s for text in _listed(sites) for s in self.anatomy.sites(text)]
        )
        wanted = [s for s in wanted if s.component != "logits"]
        value = metric if torch.is_tensor(metric) else metric(self["logits"], self.inputs)
        if not value.requires_grad:
            raise InterpError(
                "the metric carries no gradient: record with m.run(..., grad=True), and do not detach in the metric."
            )
        missing = [str(s) for s in wanted if s not in self._tensors]
        if missing:
            raise SiteError(
                f"{', '.join(missing)} not recorded exactly so; gradients are those of recorded tensors: {', '.join(self)}."
            )
        grads = torch.autograd.grad(
            value.sum(), [self._tensors[s] for s in wanted], retain_graph=keep_graph, allow_unused=True
        )
        unused = [str(s) for s, g in zip(wanted, grads, strict=True) if g is None]
        if unused:
            raise InterpError(
                f"the metric does not depend on {', '.join(unused)}: patterns, scores and results are computed beside the model, and a layer whose output is dropped has no gradient; leave them out of sites=."
            )
        return {str(s): g for s, g in zip(wanted, grads, strict=True) if g is not None}

    def to_transformer_lens(self) -> Any:
        """The same tensors under TransformerLens' names, as its ActivationCache where it is installed, else a dict."""
        reverse = {ours: theirs for theirs, ours in TRANSFORMER_LENS.items()}
        named = {}
        for site, tensor in self._tensors.items():
            if site.layer is not None and site.component in reverse:
                stack = f"{site.tower}_" if site.tower in ("encoder", "decoder") else ""
                named[f"{stack}blocks.{site.layer}.{reverse[site.component]}"] = tensor
            elif site.component == "embed":
                named["hook_embed"] = tensor
        return named

    def save(self, directory: str | Path) -> Path:
        """Write a directory that `interp.open` reads back site by site."""
        shelf = (
            self._tensors
            if isinstance(self._tensors, Shelf) and self._tensors.folder == Path(directory)
            else Shelf(directory)
        )
        for site, tensor in self._tensors.items():
            if site not in shelf:
                shelf[site] = tensor
        shelf.close(self.anatomy, self.inputs, {k: v for k, v in self.meta.items() if _plain(v)})
        return shelf.folder


def _plain(value: Any) -> bool:
    return isinstance(value, (str, int, float, bool, type(None), list, tuple, dict))


def _listed(sites: str | Site | Iterable[str | Site]) -> Sequence[str | Site]:
    return [sites] if isinstance(sites, (str, Site)) else list(sites)


def head_axis(component: str) -> int:
    """Which axis of a recorded tensor counts heads."""
    if component in ("pattern", "scores"):
        return 1
    if component in HEAD | KV | CALL:
        return 2
    raise SiteError(f"{component!r} has no heads.")


def tower_inputs(inputs: Inputs, site: Site) -> Inputs:
    """The positions a site's position axis counts: cross-attention's queries are the decoder's, its keys the encoder's."""
    name = site.tower
    if name == "cross":
        name = "encoder" if site.component in KV else "decoder"
    return inputs if name is None else inputs.tower(name)


def select(tensor: Tensor, mask: Tensor, *, axis: int, squeeze: bool = False) -> Tensor:
    """The masked positions of each row, which must be equally many: [batch, n, ...] in place of [batch, position, ...]."""
    if mask.shape[0] != tensor.shape[0] or mask.shape[1] != tensor.shape[axis]:
        raise InputsError(
            f"positions for {list(mask.shape)} [batch, position], but the site has batch {tensor.shape[0]} and {tensor.shape[axis]} positions."
        )
    counts = mask.sum(1).tolist()
    if len(set(counts)) > 1:
        raise InputsError(
            f"rows select different numbers of positions ({counts}); select equally many, or record all and use tape.inputs.mask(...)."
        )
    moved = tensor.movedim(axis, 1)
    picked = moved[mask].unflatten(0, (tensor.shape[0], counts[0] if counts else 0)).movedim(1, axis)
    return picked.squeeze(axis) if squeeze and counts and counts[0] == 1 else picked


def open_tape(directory: str | Path) -> Tape:
    """Read a saved tape; a tensor is read from disk when it is asked for."""
    shelf, anatomy, inputs, meta = Shelf.open(directory)
    return Tape(anatomy, inputs, shelf, meta=meta)
