"""The blocks of one recorded run, run one by one on other residuals, with every head frozen to what it gave there.

With attention frozen each position goes its own way, and what is left of a block is its MLP. Blocks get the arguments
of the run itself, in its own batch shape, so an unchanged residual gives the run's values bit for bit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from interp.hooks.anatomy import Anatomy, Tower
from interp.hooks.dissect import outer_tensor
from interp.hooks.edits import Edit, Set
from interp.hooks.errors import ModelError
from interp.hooks.family import Family
from interp.hooks.norms import Frozen, frozen, identity
from interp.hooks.recording import Block, CannotDrive, record
from interp.hooks.session import Session, Wish
from interp.hooks.sites import Site
from interp.hooks.writes import attentions, spelled


class Chain:
    """One tower's run, block by block."""

    def __init__(
        self,
        module: nn.Module,
        anatomy: Anatomy,
        tower: Tower,
        kwargs: Mapping[str, Any],
        *,
        family: Family | None = None,
    ) -> None:
        self.module, self.anatomy, self.tower, self.family = module, anatomy, tower, family
        try:
            self.base = record(module, anatomy, tower, kwargs)
        except CannotDrive as reason:
            raise ModelError(
                f"paths are followed block by block, which this model does not allow: {reason}."
            ) from reason
        self.blocks: dict[int, Block] = {block.layer.index: block for block in self.base.blocks}
        self.name = spelled(anatomy, tower)
        self._plain: dict[tuple[int, str], Tensor] = {}
        self._norms: dict[tuple[int, str], Frozen] = {}

    @property
    def left(self) -> Tensor:
        """The last block's output."""
        return self.base.left

    @property
    def layers(self) -> list[int]:
        """In order."""
        return list(self.blocks)

    @property
    def first(self) -> int:
        """The lowest layer."""
        return self.layers[0]

    @property
    def last(self) -> int:
        """The highest layer."""
        return self.layers[-1]

    def site(self, layer: int, component: str) -> Site:
        """A site of this tower."""
        return Site(self.name, layer, component)

    @cached_property
    def z(self) -> dict[int, list[Set]]:
        """By layer, the edits that hold every head of its block, cross-attention included, to what it gave."""
        found: dict[int, list[Set]] = {layer: [] for layer in self.blocks}
        for owner, layer in attentions(self.anatomy, self.tower):
            index = self.index(layer.block)
            site = Site(spelled(self.anatomy, owner), layer.index, "z")
            found[index].append(Set(str(site), self._called(index, self.blocks[index].entered, (), site)[1]))
        return found

    def index(self, block: str) -> int:
        """The layer of a block."""
        return next(layer for layer, one in self.blocks.items() if one.layer.block == block)

    def run(self, layer: int, hidden: Tensor, *, edits: Sequence[Edit] = ()) -> Tensor:
        """A block's output for another residual, its heads frozen but for the edits."""
        return self._called(layer, hidden, (*self.z[layer], *edits), None)[0]

    def read(self, layer: int, component: str, hidden: Tensor, *, edits: Sequence[Edit] = ()) -> Tensor:
        """What the block has at a component (q, k, v, mlp_in, resid_mid) for another residual, its heads frozen."""
        return self._called(layer, hidden, (*self.z[layer], *edits), self.site(layer, component))[1]

    def plain(self, layer: int, component: str) -> Tensor:
        """What the run itself has there."""
        if component == "resid_pre":
            return self.blocks[layer].entered
        key = layer, component
        if key not in self._plain:
            self._plain[key] = self.read(layer, component, self.blocks[layer].entered)
        return self._plain[key]

    def entered(self, site: Site) -> Tensor:
        """The residual with which the site's block began."""
        assert site.layer is not None
        return self.blocks[site.layer].entered

    def reads_from(self, layer: int, component: str) -> str:
        """The residual that a component is made from."""
        sequential = "resid_mid" in self.blocks[layer].layer.ports
        return "resid_mid" if component == "mlp_in" and sequential else "resid_pre"

    def read_held(self, layer: int, component: str, more: Tensor) -> Tensor:
        """What the block has at a component with `more` in its residual and the norm in front held at its scale."""
        behind = "mlp_in" if component == "mlp_in" else "attn_in"
        held = self._norm(layer, behind)
        base = self.plain(layer, behind)
        moved = (base.double() + held.linear(more).reshape(base.shape)).to(base.dtype)
        if component == "mlp_in":
            return moved
        put = Set(str(self.site(layer, behind)), moved)
        return self._called(layer, self.blocks[layer].entered, (put,), self.site(layer, component))[1]

    def _called(self, layer: int, hidden: Tensor, edits: Sequence[Edit], wanted: Site | None) -> tuple[Tensor, Tensor]:
        block = self.blocks[layer]
        key = block.layer.ports["resid_pre"].key
        args = tuple(hidden if n == key else _no_cache(value) for n, value in enumerate(block.args))
        kwargs = {name: hidden if name == key else _no_cache(value) for name, value in block.kwargs.items()}
        wish = Wish([wanted] if wanted is not None else [])
        session = Session(self.module, self.anatomy, edits=edits, wish=wish, family=self.family)
        session.moment.begin((), {"hidden_states": hidden})
        with session, torch.no_grad():
            out = outer_tensor(self.module.get_submodule(block.layer.block)(*args, **kwargs))[1]
        return out, next(iter(session.recorded().values())) if wanted is not None else out

    def _norm(self, layer: int, behind: str) -> Frozen:
        """The norm between a residual and what is read from it, held at the run's scale."""
        if (layer, behind) not in self._norms:
            self._norms[layer, behind] = self._found(layer, behind)
        return self._norms[layer, behind]

    def _found(self, layer: int, behind: str) -> Frozen:
        before, after = self.plain(layer, self.reads_from(layer, behind)), self.plain(layer, behind)
        if torch.equal(before, after.reshape(before.shape)):
            return identity(before)
        seen: list[nn.Module] = []

        def look(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            given = args[0] if args else None
            if not (torch.is_tensor(output) and torch.is_tensor(given)):
                return
            if torch.equal(given, before) and torch.equal(output, after.reshape(before.shape)):
                seen.append(module)

        block = self.module.get_submodule(self.blocks[layer].layer.block)
        handles = [child.register_forward_hook(look) for child in block.modules() if child is not block]
        try:
            self.run(layer, self.blocks[layer].entered)
        finally:
            for handle in handles:
                handle.remove()
        if not seen:
            raise ModelError(
                f"{self.site(layer, behind)}: no module makes it from the residual alone, so its norm cannot be held"
                " fixed; use ln='recompute'."
            )
        return frozen(seen[-1], before, name=f"the norm before {self.site(layer, behind)}")


def _no_cache(value: Any) -> Any:
    """A cache of the recorded run would give the block its own keys a second time."""
    return None if hasattr(value, "get_seq_length") else value
