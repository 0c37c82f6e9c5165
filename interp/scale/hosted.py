"""A model that others host: recordings and edits as one nnsight trace, without its weights here.

`hosted(LanguageModel(NAME))`, which is on the meta device, builds a skeleton of the same class with as many layers and
heads and a few numbers in each, and finds there what the layers are called and in which order they run. A run is then
one trace of the hosted model: plain operations at the borders of modules, of which nothing refers to this package, so
that the server needs nothing but torch and nnsight. Cost: one forward pass of the hosted model a run, whatever is
recorded and edited.

Limits: what is the input or output of a module (z, the residual stream, what blocks read and write, logits) and edits
that are a multiple plus a constant (Scale, Zero, Set, Add, Mean with a value). Patterns, q, k, v, results, edits of how
heads attend, gradients, and every method that runs the model itself need the weights here: they are refused.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from interp.hooks.anatomy.towers import Anatomy, Layer, Port
from interp.hooks.edits.edits import Add, Edit, Mean, Scale, Set, several
from interp.hooks.edits.placing import places
from interp.hooks.errors import EditError, InputsError, ModelError, SiteError
from interp.hooks.inputs.inputs import Inputs, Positions
from interp.hooks.run.tape import Tape, site_inputs
from interp.hooks.sites import Site
from interp.hooks.stand.output import logits_of
from interp.model import Model, attach

NARROW = 4
"""Numbers of a head in the skeleton."""
Step = tuple[str, str, Any, Any, Any, Any, Any]
"""In a trace: a module, its side, which element, the columns, and a multiple, a constant and where (None: record)."""


class Hosted:
    """A model that runs elsewhere. Made by `hosted`."""

    def __init__(self, envoy: Any, skeleton: Model, anatomy: Anatomy, remote: bool | str) -> None:
        self.envoy, self.skeleton, self.anatomy, self.remote = envoy, skeleton, anatomy, remote
        self._order = _order(skeleton)

    def __repr__(self) -> str:
        return f"Hosted {type(self.skeleton.module).__name__}, run by nnsight (remote={self.remote!r})\n{self.anatomy}"

    def sites(self, pattern: str = "L*.z") -> list[str]:
        """The sites a pattern means in this model; a run can be asked for those at borders of modules."""
        return [str(site) for site in self.anatomy.sites(pattern)]

    def prepare(self, given: Any, **how: Any) -> Inputs:
        """Text, chat messages or ids as frozen `Inputs`."""
        return self.skeleton.prepare(given, **how)

    def run(
        self, inputs: Any, *, record: str | Iterable[str] = (), edits: Edit | Iterable[Edit] = (),
        positions: Positions | None = None,
    ) -> Tape:  # fmt: skip
        """One trace of the hosted model with edits; the tape holds the logits and what was asked for, on the CPU."""
        x = self.skeleton.inputs(inputs)
        sites = [site for one in ([record] if isinstance(record, str) else record) for site in self.anatomy.sites(one)]
        steps = [self._edit(edit, site, x) for edit in several(edits) for site in places(self.anatomy, edit)]
        steps += [*dict.fromkeys(map(self._record, sites))]
        steps.sort(key=lambda step: (self._order[step[:2]], step[4] is None))
        kwargs = {name: value for name, value in x.kwargs.items() if torch.is_tensor(value)}
        kept, logits = _traced(self.envoy, kwargs, steps, self.remote)
        found = dict(zip((step[:3] for step in steps if step[4] is None), kept, strict=True))
        tensors = {site: self._cut(site, found[self._record(site)[:3]], x, positions) for site in sites}
        meta = {"model": type(self.skeleton.module).__name__, "remote": str(self.remote)}
        return Tape(self.anatomy, x, {**tensors, Site(None, None, "logits"): logits}, meta=meta)

    def _cut(self, site: Site, value: Tensor, x: Inputs, positions: Positions | None) -> Tensor:
        if site.component == "z":
            layer = self.anatomy.layer(site)
            value = value.unflatten(-1, (layer.heads, layer.d_value))
            value = value if site.heads is None else value[:, :, list(site.heads)]
        if positions is None:
            return value
        mask = site_inputs(self.anatomy, x, site).mask(positions)
        if len(set(mask.sum(1).tolist())) > 1:
            raise InputsError("rows select different numbers of positions; select equally many, or record all.")
        return value[mask].unflatten(0, (len(value), -1))

    def _port(self, site: Site) -> Port:
        layer = self.anatomy.layer(site) if site.layer is not None else None
        tower = self.anatomy.tower(site.tower, text=str(site))
        port: Port | None = None
        if layer is not None and site.component == "z" and layer.out is not None and not layer.gated:
            port = Port(layer.out, "in", 0)
        elif layer is not None:
            port = layer.ports.get(site.component)
        elif site.component in ("embed", "final_norm"):
            port = tower.layers[0].ports.get("resid_pre") if site.component == "embed" else tower.final_norm
        first = port is None or port.side == "out" or port.key in (0, None, "hidden_states")
        if port is None or port.minus is not None or port.nth is not None or port.folded or not first:
            raise SiteError(
                f"{site} is not at the border of a module, and a hosted model is read and changed there alone: z,"
                " resid_pre, resid_mid, resid_post, attn_in, attn_out, mlp_in, mlp_out, neurons, embed, final_norm."
                " Load the weights here for the rest."
            )
        return port

    def _record(self, site: Site) -> Step:
        port = self._port(site)
        return port.module, port.side, port.key, None, None, None, None

    def _edit(self, edit: Edit, site: Site, x: Inputs) -> Step:
        port, (times, plus) = self._port(site), _affine(edit)
        if edit.rows is not None or edit.step is not None or edit.steps is not None or edit.phase != "both":
            raise EditError(f"{edit!r}: rows=, phase= and steps are not done in a hosted model.")
        columns, shape = None, None
        if site.component == "z":
            layer = self.anatomy.layer(site)
            heads = site.heads if site.heads is not None else tuple(range(layer.heads))
            columns = torch.tensor([h * layer.d_value + i for h in heads for i in range(layer.d_value)])
            shape = (len(heads), layer.d_value)
        where = None if edit.positions is None else site_inputs(self.anatomy, x, site).mask(edit.positions)[..., None]
        flat = [_flat(value, shape) for value in (times, plus)]
        return port.module, port.side, port.key, columns, flat[0], flat[1], where


def _affine(edit: Edit) -> tuple[Any, Any]:
    """new = times * x + plus; times None where x has no part in it."""
    if isinstance(edit, Scale):
        return edit.factor, 0.0
    if isinstance(edit, Add):
        return 1.0, torch.as_tensor(edit.vector) * edit.amount
    if isinstance(edit, (Set, Mean)) and edit.value is not None:
        return "none", edit.value
    raise EditError(
        f"{edit!r} is not a multiple plus a constant, which is what a hosted model does: Scale, Zero, Set, Add, or Mean"
        " with a value. Load the weights here for the rest."
    )


def _flat(value: Any, shape: tuple[int, int] | None) -> Any:
    """A value that broadcasts to [row, position, head, d] as one that does to [row, position, head * d]."""
    if isinstance(value, str) or shape is None or torch.as_tensor(value).ndim == 0:
        return value
    given = torch.as_tensor(value)
    return given.expand(*given.shape[:-2], *shape).flatten(-2)


def _traced(
    envoy: Any, kwargs: Mapping[str, Tensor], steps: Sequence[Step], remote: bool | str
) -> tuple[list[Tensor], Tensor]:
    """What the block does is sent unchanged: plain operations, and nothing of this package."""
    with torch.no_grad(), envoy.trace(**kwargs, remote=remote):
        kept = [].save()  # type: ignore[attr-defined]
        for module, side, key, columns, times, plus, where in steps:
            place = envoy.get(module)
            value = place.input if side == "in" else place.output
            if side == "out" and key is not None:
                value = value[key]
            if times is None:
                kept.append(value.detach().clone().cpu())
                continue
            old = value if columns is None else value[..., columns.to(value.device)]
            new = torch.as_tensor(plus, dtype=value.dtype, device=value.device)
            if not isinstance(times, str):
                new = old * torch.as_tensor(times, dtype=value.dtype, device=value.device) + new
            new = new.expand(old.shape)
            if where is not None:
                new = torch.where(where.to(value.device), new, old)
            if columns is None:
                value[:] = new
            else:
                value[..., columns.to(value.device)] = new
        answer = envoy.output.save()
    logits = logits_of(answer)
    assert logits is not None
    return list(kept), logits.detach().cpu()


def hosted(envoy: Any, processor: Any = None, *, remote: bool | str = True) -> Hosted:
    """A nnsight language model that runs elsewhere (`LanguageModel(NAME)`, whose weights are not loaded).

    `remote` is nnsight's: True for its service, the address of a server, or "local" for the same way of doing it here.
    """
    module = getattr(envoy, "_module", None)
    if type(envoy).__module__.partition(".")[0] != "nnsight" or not isinstance(module, nn.Module):
        raise ModelError(f"expected an nnsight model, such as LanguageModel(NAME), got {type(envoy).__name__}.")
    tokenizer = getattr(envoy, "tokenizer", None) if processor is None else processor
    skeleton = attach(_skeleton(module), tokenizer)
    return Hosted(envoy, skeleton, _sized(module, skeleton.anatomy), remote)


def _skeleton(module: Any) -> nn.Module:
    """The same class with as many layers and heads, and little in them."""
    config = copy.deepcopy(module.config)
    heads = getattr(config, "num_attention_heads", None)
    if heads is None or getattr(config, "is_encoder_decoder", False) or getattr(config, "sub_configs", None):
        raise ModelError(f"{type(module).__name__} is no plain decoder: a hosted model has one stack of layers.")
    config.hidden_size = heads * NARROW
    for name, value in (("head_dim", NARROW), ("intermediate_size", 2 * NARROW), ("n_inner", 2 * NARROW)):
        if getattr(config, name, None) is not None:
            setattr(config, name, value)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return type(module)(config).float().eval()


def _sized(module: nn.Module, anatomy: Anatomy) -> Anatomy:
    """The anatomy with the sizes of the hosted model."""
    towers = {
        name: replace(tower, width=module.config.hidden_size, layers=tuple(_layer(module, one) for one in tower.layers))  # type: ignore[union-attr,arg-type]
        for name, tower in anatomy.towers.items()
    }
    return replace(anatomy, towers=towers)


def _layer(module: nn.Module, layer: Layer) -> Layer:
    if layer.out is None:
        raise ModelError(f"{layer.attention}: its output projection was not found, so z is not known.")
    out: Any = module.get_submodule(layer.out)
    width = out.in_features if hasattr(out, "in_features") else out.weight.shape[0]
    return replace(layer, d_head=width // layer.heads, d_value=width // layer.heads)


def _order(skeleton: Model) -> dict[tuple[str, str], int]:
    """When each border of a module is passed in a run: nnsight takes them in this order."""
    found: dict[tuple[str, str], int] = {}
    handles = []
    for name, child in skeleton.module.named_modules():
        enters, leaves = (_noting(found, (name, side)) for side in ("in", "out"))
        handles += [child.register_forward_pre_hook(enters), child.register_forward_hook(leaves)]
    try:
        with torch.no_grad():
            skeleton.module(**skeleton.called_with(skeleton.example()))
    finally:
        for handle in handles:
            handle.remove()
    return found


def _noting(found: dict[tuple[str, str], int], where: tuple[str, str]) -> Any:
    def note(*_: Any) -> None:
        found.setdefault(where, len(found))

    return note
