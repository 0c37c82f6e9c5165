"""What one run recorded."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from interp.hooks.anatomy.spread import CUT, Order, gathered, labelled
from interp.hooks.anatomy.towers import Anatomy, Layer
from interp.hooks.errors import InputsError, SiteError
from interp.hooks.html import Told
from interp.hooks.inputs.inputs import Inputs, Positions
from interp.hooks.inputs.positions import real
from interp.hooks.run.shelf import Shelf
from interp.hooks.sites import CALL, HEAD, KV, TRANSFORMER_LENS, Site, cached
from interp.kernels.errors import InterpError


class Tape(Told, Mapping[str, Any]):
    """Recorded tensors by site, with the inputs they belong to.

    `tape["L5.z"]` is that tensor, `tape["L*.z"]` a dict by site. Head axes keep their place whether one head was asked
    for or all: z is [batch, position, head, d_head] with as many heads as recorded.
    """

    def __init__(
        self, anatomy: Anatomy, inputs: Inputs | None, tensors: Mapping[Site, Tensor], *, meta: Mapping[str, Any]
    ) -> None:
        self.anatomy = anatomy
        self.inputs = inputs
        self.meta = dict(meta)
        self._tensors = tensors

    def __getitem__(self, spelled: str | Site | tuple[str, int]) -> Any:
        sites = self.anatomy.sites(cached(*spelled) if isinstance(spelled, tuple) else spelled)
        if len(sites) == 1:
            return self._one(sites[0])
        return {str(site): self._one(site) for site in sites}

    def __iter__(self) -> Any:
        return (str(site) for site in self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    def __repr__(self) -> str:
        return "\n".join([f"Tape of {len(self)} sites", *(f"  {site}: {self._shown(site)}" for site in self._tensors)])

    def _shown(self, site: Site) -> str:
        try:
            tensor = self._tensors[site]
        except InputsError as reason:
            return str(reason)
        return f"{list(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}"

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
        hint = "; a model without a head has none, and interp.metrics.Similarity reads other places"
        more = hint if site.component == "logits" else ""
        raise SiteError(f"{str(site)!r} was not recorded; this tape has {', '.join(self) or 'nothing'}{more}.")

    def _heads(self, have: Site, want: Site, tensor: Tensor) -> Tensor | None:
        """The wanted heads out of a recording that holds them."""
        layer = self.anatomy.layer(have)
        heads, wanted = layer.heads_of(have), layer.heads_of(want)
        if not set(wanted) <= set(heads):
            return None
        return tensor.index_select(
            head_axis(want.component), torch.tensor([heads.index(h) for h in wanted], device=tensor.device)
        )

    def at(self, positions: Positions, site: str | Site | None = None) -> Any:
        """Only these positions: `tape.at("last")["L5.z"]` is [batch, head, d_head] at each row's last real token."""
        if self.inputs is None:
            raise InputsError("this tape does not know its inputs, so positions cannot be looked up.")
        picked = _Lazy(self._tensors, lambda one, tensor: self._pick(one, tensor, positions))
        found = Tape(self.anatomy, self.inputs, picked, meta=self.meta | {"positions": str(positions)})
        return found if site is None else found[site]

    def _pick(self, site: Site, tensor: Tensor, positions: Positions) -> Tensor:
        assert self.inputs is not None
        mask = site_inputs(self.anatomy, self.inputs, site).mask(positions).to(tensor.device)
        axis = 2 if site.component in ("pattern", "scores") else 1
        return select(tensor, mask, axis=axis, squeeze=isinstance(positions, (str, int)))

    @torch.enable_grad()
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
                "the metric carries no gradient: record with m.run(..., grad=True), and do not detach, nor index logits"
                " under torch.no_grad(): a metric as a function is called with gradients on."
            )
        missing = [str(s) for s in wanted if s not in self._tensors]
        if missing:
            raise SiteError(
                f"{', '.join(missing)} not recorded exactly so; gradients are those of recorded tensors:"
                f" {', '.join(self)}."
            )
        grads = torch.autograd.grad(
            value.sum(), [self._tensors[s] for s in wanted], retain_graph=keep_graph, allow_unused=True
        )
        unused = [str(s) for s, g in zip(wanted, grads, strict=True) if g is None]
        if unused:
            raise InterpError(
                f"the metric does not depend on {', '.join(unused)}: patterns, scores and results are computed outside"
                " of the model's graph, and a layer whose output is dropped has no gradient; leave them out of"
                " sites=."
            )
        return {str(s): g for s, g in zip(wanted, grads, strict=True) if g is not None}

    def gathered(self) -> Tape:
        """With the heads of all processes, where a recording with `gather=False` holds this one's; every process has to
        ask, and each gets all of them."""
        found = dict[Site, Tensor]()
        for site, tensor in self._tensors.items():
            layer = None if site.layer is None else self.anatomy.layer(site)
            if layer is None or layer.share is None:
                found[site] = tensor
            elif site.component == "neurons" and layer.share.units:
                found[site] = torch.cat(gathered(tensor, layer.share), -1)
            elif site.component in CUT:
                self._whole_only(site, layer)
                axis = head_axis(site.component)
                found[site.whole] = Order.of(layer, site.whole).gathered(tensor, axis)
            else:
                found[site] = tensor
        return Tape(self.anatomy, self.inputs, found, meta=self.meta)

    @staticmethod
    def _whole_only(site: Site, layer: Layer) -> None:
        if labelled(layer, site.whole) != site:
            raise SiteError(
                f"{site} is some of the heads of this process: record whole layers with gather=False, or these heads"
                " with gather=True."
            )

    def to_transformer_lens(self) -> Any:
        """The same tensors under TransformerLens' names, as its ActivationCache where it is installed, else a dict."""
        named = {name: tensor for site, tensor in self._tensors.items() if (name := self._lens_name(site)) is not None}
        try:
            from transformer_lens import ActivationCache
        except ImportError:
            return named
        return ActivationCache(named, model=None)

    def _lens_name(self, site: Site) -> str | None:
        """TransformerLens' name of a site; None where it has none."""
        if site.heads is not None and len(site.heads) < self.anatomy.layer(site).head_count(site.component):
            raise SiteError(
                f"{site} holds some of the heads, and TransformerLens' caches hold all: record '{site.whole}'."
            )
        if site.layer is None:
            return {"embed": "hook_embed", "final_norm": "ln_final.hook_normalized"}.get(site.component)
        reverse = {ours: theirs for theirs, ours in TRANSFORMER_LENS.items()}
        stack = f"{site.tower}_" if site.tower in ("encoder", "decoder") else ""
        return f"{stack}blocks.{site.layer}.{reverse[site.component]}" if site.component in reverse else None

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


class _Lazy(Mapping[Site, Tensor]):
    """A mapping whose values are worked out when they are asked for."""

    def __init__(self, whole: Mapping[Site, Tensor], change: Callable[[Site, Tensor], Tensor]) -> None:
        self._whole, self._change = whole, change

    def __getitem__(self, site: Site) -> Tensor:
        return self._change(site, self._whole[site])

    def __iter__(self) -> Iterator[Site]:
        return (site for site in self._whole if site.component not in ("logits", "out") or self._whole[site].ndim == 3)

    def __len__(self) -> int:
        return sum(1 for _ in self)


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


def head_index(anatomy: Anatomy, site: Site, device: torch.device) -> Tensor | None:
    """A site's heads as indices into its tensor; None for all of them."""
    return None if site.heads is None else torch.tensor(anatomy.layer(site).heads_of(site), device=device)


def crosses(anatomy: Anatomy, site: Site) -> bool:
    """Whether a site is in a cross-attention layer."""
    return site.layer is not None and anatomy.layer(site).kind == "cross"


def tower_inputs(inputs: Inputs, site: Site, *, cross: bool = False) -> Inputs:
    """The positions a site's position axis counts; `cross` says that its layer is a cross-attention.

    There queries are a decoder's and keys its encoder's, or, without a decoder, queries a Q-Former's (in a tower of
    their own) or the text's, and keys the image's.
    """
    name, two = site.tower or inputs.unnamed, inputs.main == "decoder"
    if inputs.main == "denoiser":
        return inputs.tower("text" if (cross or name == "cross") and site.component in KV else name or "denoiser")
    if (cross or name == "cross") and site.component in KV:
        name = "encoder" if two and ("encoder" in inputs.towers or "vision" not in inputs.towers) else "vision"
    elif name == "cross":
        name = "decoder" if two else "cross" if "cross" in inputs.towers else "qformer"
    return inputs if name is None else inputs.tower(name)


def fitting(inputs: Inputs, length: int) -> Inputs:
    """The positions that a site has; of a denoiser with joint attention the residual has those of its cells alone."""
    cells = inputs.towers.get("cells") if inputs.main == "denoiser" and inputs.length != length else None
    return cells if isinstance(cells, Inputs) and cells.length == length else inputs


def site_inputs(anatomy: Anatomy, inputs: Inputs, site: Site) -> Inputs:
    """The positions a site's position axis counts, in this model."""
    return tower_inputs(inputs, site, cross=crosses(anatomy, site))


def real_positions(anatomy: Anatomy, inputs: Inputs, site: Site, shape: Sequence[int]) -> Bool[Tensor, "row position"]:
    """Which positions of a recorded site of this shape [row, position] are real; refused where that is not known."""
    if site.tower == "qformer" or (site.tower == "cross" and site.component not in KV and "qformer" in anatomy.towers):
        return _queries(inputs, site, shape)
    if site.component in KV and "aspect_ratio_mask" in inputs.kwargs and anatomy.layer(site).kind == "cross":
        return _tiles(inputs, site, shape)
    return real(fitting(site_inputs(anatomy, inputs, site), shape[1]).valid, shape, site)


def _queries(inputs: Inputs, site: Site, shape: Sequence[int]) -> Tensor:
    """Of a Q-Former's positions: its queries are never padding, the instruction that it may also read can be."""
    words = inputs.kwargs.get("qformer_attention_mask")
    if site.tower == "qformer" and words is not None and not bool(words.all()):
        raise InputsError(
            f"{site}: the Q-Former reads instructions with padding, and which of its positions are real is not known;"
            " run prompts whose instructions have the same length."
        )
    return torch.ones(*shape, dtype=torch.bool)


def _tiles(inputs: Inputs, site: Site, shape: Sequence[int]) -> Tensor:
    """Of the keys of Mllama's cross-attentions, which are the patches of all tiles without the tower's filler."""
    if not bool(inputs.kwargs["aspect_ratio_mask"].all()):
        raise InputsError(
            f"{site}: some tiles are padding, and its keys have no positions in these inputs to leave them out by; run"
            " pictures that have equally many tiles."
        )
    return torch.ones(*shape, dtype=torch.bool)


def key_columns(inputs: Inputs, site: Site) -> Int[Tensor, " key"]:
    """Which positions of the tower that a cross-attention looks at are its keys, in order: all but Mllama's filler."""
    keys = tower_inputs(inputs, Site(site.tower, site.layer, "k"), cross=True)
    filler = keys.roles.tags.get("filler")
    if filler is None:
        return torch.arange(keys.length, device=keys.valid.device)
    _tiles(inputs, site, keys.valid.shape)
    return (~filler[0]).nonzero().flatten().to(keys.valid.device)


def select(tensor: Tensor, mask: Tensor, *, axis: int, squeeze: bool = False) -> Tensor:
    """The masked positions of each row, which must be equally many: [batch, n, ...] in place of [batch, position,
    ...]."""
    if mask.shape[0] != tensor.shape[0] or mask.shape[1] != tensor.shape[axis]:
        raise InputsError(
            f"positions for {list(mask.shape)} [batch, position], but the site has batch {tensor.shape[0]} and"
            f" {tensor.shape[axis]} positions."
        )
    counts = mask.sum(1).tolist()
    if len(set(counts)) > 1:
        raise InputsError(
            f"rows select different numbers of positions ({counts}); select equally many, or record all and use"
            " tape.inputs.mask(...)."
        )
    moved = tensor.movedim(axis, 1)
    picked = moved[mask].unflatten(0, (tensor.shape[0], counts[0] if counts else 0)).movedim(1, axis)
    return picked.squeeze(axis) if squeeze and counts and counts[0] == 1 else picked


def open_tape(directory: str | Path) -> Tape:
    """Read a saved tape; a tensor is read from disk when it is asked for."""
    shelf, anatomy, inputs, meta = Shelf.open(directory)
    return Tape(anatomy, inputs, shelf, meta=meta)
