"""Where heads rest: attention sinks, first-token and later ones, and the massive activations that come with them.

Gu et al., ICLR 2025 (When Attention Sink Emerges): alpha_k = mean of A[i, k] over the rows i that see key k, so early
keys are not favoured; a head has a sink on the first token where alpha_1 > epsilon (0.3 there, with 64 tokens and per
sequence), and `metric` is the share of heads that do. The number falls with length: compare at one length only.
Sun et al., COLM 2024 (Massive Activations): |x| above 100 and above 1,000 times the median magnitude of the residual
stream; which dimensions carry them is found, never assumed. The median here is that of the tokens' medians.
Darcet et al., ICLR 2024 (Vision Transformers Need Registers, arXiv 2309.16588): tokens of high norm in places that say
little, and registers that take their part. Norms are compared within their own layer (`outliers`), never with a number
from elsewhere, and `by_kind` says how much attention patches, class token and registers draw.
Cost: that of `m.attention`, one forward pass, in memory linear in length (`chunk=` reads long texts through the cache).
Limits: self-attention of one tower a call; at most the four largest dimensions of a token are looked at; a sink is
where attention rests, not a proof that the head does nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from threading import get_ident
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from interp.finite import finite
from interp.hooks.anatomy.lengths import longest
from interp.hooks.errors import InputsError, SiteError
from interp.hooks.head_names import heads_at
from interp.hooks.inputs.inputs import Inputs
from interp.hooks.inputs.labels import KINDS
from interp.hooks.run.tape import tower_inputs
from interp.hooks.sites import Site
from interp.hooks.stand.ports import stand_at
from interp.kernels.stats import ratio
from interp.provenance import about
from interp.records import Method, register
from interp.results.sinks import Sinks

if TYPE_CHECKING:
    from interp.hooks.anatomy.towers import Layer
    from interp.model import Model

LARGEST = 4
"""Dimensions of a token that are looked at for massive activations."""
STATS = ("first", "received_mean", "sink")
MARKS = ("cls", "register", "distillation", "newline", "separator")
"""Tags that say more of a token than its role does."""


def sinks(
    model: Model,
    inputs: Any,
    *,
    heads: str = "L*",
    least: int = 8,
    activations: bool = True,
    chunk: int | None = None,
    impl: str | None = None,
) -> Sinks:
    """How much each head rests on the first token and on others, and which activations are massive.

    `heads` is a site pattern of one tower ("L*", "vision.L*"). Keys seen by fewer than `least` rows are left out: the
    last token is seen only by its own row, and would look like a sink. `activations=False` leaves the residual stream
    out.
    """
    if least < 1:
        raise InputsError(f"least= is the number of rows that must see a key, at least 1; got {least}.")
    x = model.inputs(inputs)
    name, layers = _layers(model, heads)
    tower = tower_inputs(x, Site(name, layers[0].index, "z"))
    _long_enough(tower)
    _room(model, x)
    own = get_ident()
    if lost := next((layer for layer in layers if activations and "resid_post" not in layer.ports), None):
        why = lost.missing.get("resid_post", "it was not found in its block")
        raise SiteError(f"layer {lost.index} has no resid_post, so no activations: {why}. Use activations=False.")
    taps = {str(Site(name, layer.index, "resid_post")): _Largest() for layer in layers} if activations else {}
    with ExitStack() as undo:
        for layer, tap in zip(layers, taps.values(), strict=True) if taps else ():
            handle = stand_at(
                model.module, layer.ports["resid_post"], tap, batch=lambda: x.batch, live=lambda: get_ident() == own
            )
            undo.callback(handle.remove)
        found = model.attention(x, stats=STATS, heads=heads, chunk=chunk, impl=impl)
    valid = tower.valid.cpu()
    parts = [_of_layer(values, valid, least) for values in found.values.values()]
    first, mass, learned, received = (torch.cat([part[n] for part in parts]) for n in range(4))
    finite(torch.cat([first, mass]), "weights on the first token")
    names = [name for site, some in found.heads.items() for name in heads_at(site, some)]
    kind, kinds = _kinds(tower)
    meta = {**about(model.module, x), "method": "sinks", "least": least, "length": tower.length, "impl": found.impl}
    return Sinks(
        tuple(names), first, mass, learned, received, valid.int().argmax(1), kind, kinds,
        norms={site: tap.lengths(valid) for site, tap in taps.items()},
        activations={site: tap.found(valid) for site, tap in taps.items()},
        meta=meta,
    )  # fmt: skip


def _layers(model: Model, heads: str) -> tuple[str | None, list[Layer]]:
    sites = model.ready().sites(heads if ".z" in heads else f"{heads}.z")
    towers = {site.tower for site in sites}
    if len(towers) > 1:
        raise SiteError(f"sinks reads one tower a call, and {heads!r} means {', '.join(sorted(map(str, towers)))}.")
    name = towers.pop()
    tower = model.anatomy.tower(name, text=heads)
    layers = [tower.layer(site.layer) for site in sites if site.layer is not None]
    if crossed := [layer.index for layer in layers if layer.kind == "cross"]:
        raise SiteError(
            f"sinks are places in a head's own sequence; layers {crossed} of {heads!r} are cross-attention."
        )
    return name, layers


def _long_enough(x: Inputs) -> None:
    short = [n for n, length in enumerate(x.valid.sum(1).tolist()) if length < 2]
    if short:
        raise InputsError(f"a sink needs at least two tokens to show; examples {short} have fewer. Give longer inputs.")


def _room(model: Model, x: Inputs) -> None:
    """Learned positions end somewhere; rotary ones do not."""
    room, most = longest(model.config, learned=True), int(x.valid.sum(1).max())
    if room is not None and most > room:
        raise InputsError(f"this model has positions for {room} tokens, and a text here has {most}: cut it.")


def _of_layer(found: Mapping[str, Tensor], valid: Tensor, least: int) -> Sequence[Tensor]:
    """alpha_1, mass on the first over all rows, learned sink, alpha_k: head first."""
    start, rows = valid.int().argmax(1), valid[:, None].double()
    held = {name: value.cpu().double() for name, value in found.items()}
    alpha = ratio(held["received"], held["seen"]) * valid[:, None]
    first = alpha.gather(2, start[:, None, None].expand(-1, alpha.shape[1], 1)).squeeze(2)
    count = rows.sum(2)
    mass, learned = ((held[name] * rows).sum(2) / count for name in ("first", "sink"))
    known = torch.where(held["seen"] >= least, alpha, 0.0)
    return [part.transpose(0, 1) for part in (first, mass, learned, known)]


def _kinds(x: Inputs) -> tuple[Tensor, tuple[str, ...]]:
    """What each token is, [example, position] as an index into the names that occur; -1 for padding."""
    code = torch.where(x.valid, x.roles.kind, -1).cpu()
    names = list(KINDS)
    for tag in MARKS:
        here = x.roles.where(tag).cpu() & x.valid.cpu()
        code[here] = len(names)
        names.append(tag)
    present = code[code >= 0].unique()
    return torch.where(code >= 0, torch.searchsorted(present, code), -1), tuple(names[n] for n in present.tolist())


class _Largest:
    """Sees one layer's residual, call by call; keeps each token's largest magnitudes, its median and its norm."""

    def __init__(self) -> None:
        self.parts: list[tuple[Tensor, Tensor, Tensor]] = []
        self.norms: list[Tensor] = []

    def __call__(self, value: Tensor) -> Tensor:
        size = value.detach().float().abs()
        top = size.topk(min(LARGEST, size.shape[-1]), dim=-1)
        self.parts.append((top.values.cpu(), top.indices.cpu(), size.median(-1).values.cpu()))
        self.norms.append(size.double().norm(dim=-1).float().cpu())
        return value

    def lengths(self, valid: Tensor) -> Tensor:
        """Each token's norm [example, position], 0 at padding."""
        return torch.cat(self.norms, 1) * valid

    def found(self, valid: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Over all calls: magnitudes (0 at padding), dimensions, median of the real tokens' medians."""
        top, dims, middle = (torch.cat(piece, 1) for piece in zip(*self.parts, strict=True))
        median = torch.stack([row[real].median() for row, real in zip(middle, valid, strict=True)])
        return top * valid[..., None], dims, median


register(
    Method(
        "interp.sinks",
        number="mean weight on the first token over the rows that see it (attention sink)",
        shown="map",
        label="sink",
        signed=False,
        papers=("2410.10781",),
        passes=lambda t: 2,
        values="first",
        example=lambda t: sinks(t.model, t.base, heads=f"{t.tower}L*", least=2),
    )
)
