"""Who wrote what into the residual: the last residual of a run as a sum of embedding, heads, MLPs and biases.

A head's write is `z_h W_O[h]`, carried through the modules between the output projection and the residual: nothing, a
multiplier, a layer scale, or a norm, which is held at the scale of the run (`hooks/anatomy/norms.py`). That the parts
add up to the last residual is checked; towers that normalise after adding, or get something added between blocks, do
not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from interp.hooks.anatomy.norms import frozen
from interp.hooks.anatomy.towers import Anatomy, Layer, Tower
from interp.hooks.errors import ModelError
from interp.hooks.run.tape import Tape
from interp.hooks.sites import Site
from interp.hooks.stand.ports import head_results

Map = Callable[[Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class Carry:
    """From an attention's output to its write: as the model does it, and as the linear map it was in the run."""

    exact: Map
    linear: Map
    shift: Tensor | float = 0.0


def spelled(anatomy: Anatomy, tower: Tower) -> str | None:
    """The tower's name as sites spell it."""
    return None if len(anatomy.towers) == 1 else tower.name


class Writes:
    """The writes of one recorded run of one tower, float64, worked out when asked for."""

    def __init__(self, module: nn.Module, tape: Tape, tower: Tower) -> None:
        self.module, self.tape, self.tower = module, tape, tower
        self.name = spelled(tape.anatomy, tower)
        self._carries: dict[Site, Carry] = {}

    @staticmethod
    def sites(anatomy: Anatomy, tower: Tower) -> list[Site]:
        """What has to be recorded."""
        name, found = spelled(anatomy, tower), []
        for owner, layer in attentions(anatomy, tower):
            if layer.readers:
                raise ModelError(
                    f"{owner.name} layer {layer.index}: its z has several readers, or one that reads other numbers too,"
                    " so the writes of its heads are not those of all positions."
                )
            for component in ("z", "attn_out", "attn_write", "mlp_write"):
                if component == "mlp_write" and (owner is not tower or layer.missing.get(component) == "it has no MLP"):
                    continue
                if component in layer.missing or (component != "z" and component not in layer.ports):
                    why = layer.missing.get(component, "it was not found in its block")
                    raise ModelError(
                        f"{owner.name} layer {layer.index} has no {component}: {why}; its writes cannot be told apart."
                    )
                found.append(Site(spelled(anatomy, owner), layer.index, component))
        last = tower.layers[-1].index
        return [Site(name, None, "embed"), *found, Site(name, last, "resid_post")]

    @cached_property
    def parts(self) -> tuple[Site, ...]:
        """Every part that has a name: the embedding, each head, each MLP, in the order they write."""
        found = [Site(self.name, None, "embed")]
        for owner, layer in attentions(self.tape.anatomy, self.tower):
            name = spelled(self.tape.anatomy, owner)
            found += [Site(name, layer.index, "result", (head,)) for head in range(layer.heads)]
            if (mlp := Site(name, layer.index, "mlp_write")) in self.tape.sites:
                found.append(mlp)
        return tuple(found)

    def heads(self, site: Site, heads: tuple[int, ...] | None = None) -> Tensor:
        """What the site's heads wrote [b, position, head, d]."""
        layer = self.tape.anatomy.layer(site)
        result = self.results(site, heads if heads is not None else tuple(range(layer.heads)))
        return self.carry(site).linear(result.movedim(2, 0)).movedim(0, 2)

    def results(self, site: Site, heads: tuple[int, ...]) -> Tensor:
        """`z W_O` of some heads [b, position, head, d], before the carry."""
        layer = self.tape.anatomy.layer(site)
        assert layer.out is not None
        z = self.tape[Site(site.tower, site.layer, "z")]
        with torch.no_grad():
            return head_results(self.module.get_submodule(layer.out), z, heads).double()

    def walk(self) -> Iterator[tuple[Site, Tensor]]:
        """Each part with its write [b, position, d] where the last residual is, one layer's heads at a time."""
        last: tuple[Site, Tensor] | None = None
        home = self.final.device
        for part in self.parts:
            if part.heads is None:
                yield part, self.tape[part].double().to(home)
                continue
            if last is None or last[0] != part.whole:
                last = part.whole, self.heads(part).to(home)
            yield part, last[1][:, :, part.heads[0]]

    def carry(self, site: Site) -> Carry:
        """The map between this layer's attention output and its write."""
        key = Site(site.tower, site.layer, "attn_write")
        if key not in self._carries:
            self._carries[key] = self._found(site)
        return self._carries[key]

    def _found(self, site: Site) -> Carry:
        layer = self.tape.anatomy.layer(site)
        out, write = (self.tape[Site(site.tower, site.layer, name)] for name in ("attn_out", "attn_write"))
        out = out.reshape(write.shape)
        if torch.equal(out, write):
            return Carry(lambda x: x, lambda x: x)
        factor = multiplier(out.double(), write.double(), torch.finfo(write.dtype).eps)
        if factor is not None:
            return Carry(lambda x: (x * factor).to(x.dtype), lambda x: x * factor)
        port = layer.ports["attn_write"]
        if port.minus is not None or port.key is not None or port.side != "out":
            raise ModelError(
                f"{site}: the module between attn_out and attn_write is not known, so heads have no write."
            )
        between = self.module.get_submodule(port.module)
        held = frozen(between, out, name=port.module)
        return Carry(between, held.linear, held.shift)

    def bias(self, site: Site) -> Tensor:
        """What a layer's attention writes in addition to its heads."""
        out = self.tape[Site(site.tower, site.layer, "attn_out")].double()
        heads = self.results(site, tuple(range(self.tape.anatomy.layer(site).heads)))
        carry = self.carry(site)
        return carry.linear(out.reshape(heads[:, :, 0].shape) - heads.sum(2)) + carry.shift

    @cached_property
    def biases(self) -> Tensor:
        """What all attentions wrote in addition to their heads [b, position, d]."""
        wholes = dict.fromkeys(part.whole for part in self.parts if part.heads is not None)
        return torch.stack([self.bias(site).to(self.final.device) for site in wholes]).sum(0)

    @property
    def final(self) -> Tensor:
        """The last residual."""
        value: Tensor = self.tape[Site(self.name, self.tower.layers[-1].index, "resid_post")]
        return value

    def check(self) -> None:
        """Raise where the parts do not add up to the last residual."""
        total, size = self.biases.clone(), self.biases.abs()
        for _, write in self.walk():
            total += write
            size += write.abs()
        bound = 16 * len(self.tower.layers) * torch.finfo(self.final.dtype).eps * float(size.max()) + 1e-12
        gap = float((total - self.final.double()).abs().max())
        if not gap <= bound:
            raise ModelError(
                f"the writes of the tower {self.tower.name!r} do not add up to its last residual (off by {gap:.3g}):"
                " it normalises after adding, or something else is added between its blocks."
            )


def attentions(anatomy: Anatomy, tower: Tower) -> Iterator[tuple[Tower, Layer]]:
    """The tower's attentions, with those that a cross tower has in the same blocks, in the order they run."""
    cross = anatomy.towers.get("cross")
    beside = {layer.run: layer for layer in cross.layers} if cross is not None and cross is not tower else {}
    for layer in tower.layers:
        yield tower, layer
        if layer.run in beside and cross is not None:
            yield cross, beside[layer.run]


def multiplier(out: Tensor, write: Tensor, eps: float) -> Tensor | None:
    """The number, or numbers per channel, that make the write of the output, if there are any."""
    axes = tuple(range(out.ndim))
    for over in (axes, axes[:-1]):
        factor = (write * out).sum(over, keepdim=True) / out.square().sum(over, keepdim=True).clamp(min=1e-300)
        if bool(((factor * out - write).abs() <= 64 * eps * float(write.abs().max())).all()):
            return factor
    return None
