"""The blocks of one recorded run, run one by one on other residuals, with every head frozen to what it gave there.

With attention frozen each position goes its own way, and what is left of a block is its MLP: so the tokens that moved,
of many versions of the run, go through it together, and attention is not computed but handed out as recorded. That this
gives the run's own residuals is tried on every block; one where it does not is run whole, version by version. Whole
blocks get the arguments of the run itself, in its own batch shape, so an unchanged residual gives the run's values bit
for bit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor, nn

from interp.hooks.anatomy.family import Family
from interp.hooks.anatomy.norms import Frozen, frozen, identity
from interp.hooks.anatomy.towers import Anatomy, Tower
from interp.hooks.drive.blocks import Blocks
from interp.hooks.drive.intercept import Intercept
from interp.hooks.edits.edits import Edit, Set
from interp.hooks.errors import ModelError
from interp.hooks.run.writes import attentions, spelled
from interp.hooks.sites import Site
from interp.hooks.stand.output import outer_tensor


@dataclass(frozen=True, eq=False)
class Tokens:
    """The tokens of one version of the run that are not as they were: prompts and columns [token], residuals [token,
    d]."""

    prompts: Tensor
    columns: Tensor
    hidden: Tensor

    @classmethod
    def between(cls, new: Tensor, old: Tensor) -> Tokens:
        """Where two residuals [prompt, position, d] differ."""
        prompts, columns = (new != old).any(-1).nonzero(as_tuple=True)
        return cls(prompts, columns, new[prompts, columns])

    def into(self, old: Tensor) -> Tensor:
        """The whole residual again."""
        new = old.clone()
        new[self.prompts, self.columns] = self.hidden
        return new


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
        self.module, self.anatomy, self.tower = module, anatomy, tower
        self.blocks = Blocks(module, anatomy, tower, family=family)
        self.base = self.blocks.record(kwargs, heads=True)
        self._plain: dict[tuple[int, str], Tensor] = {}
        self._norms: dict[tuple[int, str], Frozen] = {}
        self._outputs: dict[int, dict[nn.Module, Any]] = {}
        self._tried: dict[int, bool] = {}

    @property
    def left(self) -> Tensor:
        """The last block's output."""
        return self.base.left

    @property
    def layers(self) -> list[int]:
        """In order."""
        return self.blocks.layers

    @cached_property
    def z(self) -> dict[int, list[Set]]:
        """By layer, the edits that hold every head of its block, cross-attention included, to what it gave."""
        found: dict[int, list[Set]] = {layer: [] for layer in self.layers}
        index = {layer.run: layer.index for layer in self.tower.layers}
        for owner, layer in attentions(self.anatomy, self.tower):
            site, block = Site(spelled(self.anatomy, owner), layer.index, "z"), index[layer.run]
            called = self.blocks.run(self.base, block, self.base.entered[block], record=[site])
            found[block].append(Set(str(site), called.at[str(site)]))
        return found

    def run(self, layer: int, hidden: Tensor, *, edits: Sequence[Edit] = ()) -> Tensor:
        """A block's output for another residual, its heads frozen but for the edits."""
        with torch.no_grad():
            return self.blocks.run(self.base, layer, hidden, edits=(*self.z[layer], *edits)).whole

    def advance(self, layer: int, versions: Sequence[Tokens]) -> list[Tokens]:
        """What a block makes of the moved tokens of several versions, every head frozen."""
        if not versions:
            return []
        if not self._packs(layer):
            return [self._whole(layer, one) for one in versions]
        all_tokens = Tokens(*(torch.cat([getattr(v, field.name) for v in versions]) for field in fields(Tokens)))
        made = self._packed(layer, all_tokens).split([len(v.hidden) for v in versions])
        return [replace(v, hidden=part) for v, part in zip(versions, made, strict=True)]

    def _whole(self, layer: int, one: Tokens) -> Tokens:
        out = self.run(layer, one.into(self.base.entered[layer]))
        return replace(one, hidden=out[one.prompts, one.columns])

    def _packs(self, layer: int) -> bool:
        """Whether tokens can go through the block one by one: tried on all tokens of the run."""
        if layer not in self._tried:
            entered, left = self.base.entered[layer], self._left(layer)
            every = Tokens.between(entered, torch.full_like(entered, torch.nan))
            outputs = [outer_tensor(output)[1] for output in self._attended(layer).values()]
            whole = all(made.shape[:2] == entered.shape[:2] for made in outputs)
            self._tried[layer] = whole and _near(self._packed(layer, every), left[every.prompts, every.columns])
        return self._tried[layer]

    def _left(self, layer: int) -> Tensor:
        """What a block gave in the run."""
        above = [n for n in self.layers if n > layer]
        return self.base.entered[above[0]] if above else self.left

    def _packed(self, layer: int, tokens: Tokens) -> Tensor:
        """What the block makes of some tokens [token, d], its attentions giving what they gave those."""
        if not len(tokens.hidden):
            return tokens.hidden
        with Intercept(self.module) as put, torch.no_grad():
            for attention, output in self._attended(layer).items():
                put.instead(attention, partial(_giving, self.base.of_tokens(output, tokens)))
            made = self.blocks.call(self.base, self.base.block(layer), tokens.hidden[None], tokens)
        assert made is not None
        return made[0]

    def _attended(self, layer: int) -> dict[nn.Module, Any]:
        """What each attention module of the block returned in the run."""
        if layer not in self._outputs:
            found: dict[nn.Module, Any] = {}
            with Intercept(self.module) as put:
                for one in self.blocks.attending(layer):
                    module = self.blocks.attention(one)
                    put.after(module, partial(_note, found, module))
                self.blocks.run(self.base, layer, self.base.entered[layer])
            self._outputs[layer] = found
        return self._outputs[layer]

    def read(self, layer: int, component: str, hidden: Tensor, *, edits: Sequence[Edit] = ()) -> Tensor:
        """What the block has at a component (q, k, v, mlp_in, resid_mid) for another residual, its heads frozen."""
        return self._at(layer, component, hidden, (*self.z[layer], *edits))

    def _at(self, layer: int, component: str, hidden: Tensor, edits: Sequence[Edit]) -> Tensor:
        return self.blocks.run(self.base, layer, hidden, edits=edits, record=[component]).at[component]

    def plain(self, layer: int, component: str) -> Tensor:
        """What the run itself has there."""
        if component == "resid_pre":
            return self.base.entered[layer]
        key = layer, component
        if key not in self._plain:
            self._plain[key] = self.read(layer, component, self.base.entered[layer])
        return self._plain[key]

    def reads_from(self, layer: int, component: str) -> str:
        """The residual that a component is made from."""
        sequential = "resid_mid" in self.tower.by_index[layer].ports
        return "resid_mid" if component == "mlp_in" and sequential else "resid_pre"

    def read_held(self, layer: int, component: str, more: Tensor) -> Tensor:
        """What the block has at a component with `more` in its residual and the norm in front held at its scale."""
        behind = "mlp_in" if component == "mlp_in" else "attn_in"
        held = self._norm(layer, behind)
        base = self.plain(layer, behind)
        moved = (base.double() + held.linear(more).reshape(base.shape)).to(base.dtype)
        if component == "mlp_in":
            return moved
        put = Set(str(self.blocks.site(layer, behind)), moved)
        return self._at(layer, component, self.base.entered[layer], [put])

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

        block = self.module.get_submodule(self.tower.by_index[layer].block)
        with Intercept(self.module) as put:
            for child in block.modules():
                if child is not block:
                    put.after(child, partial(look, child))
            self.run(layer, self.base.entered[layer])
        site = self.blocks.site(layer, behind)
        if not seen:
            raise ModelError(
                f"{site}: no module makes it from the residual alone, so its norm cannot be held fixed; use"
                " ln='recompute'."
            )
        return frozen(seen[-1], before, name=f"the norm before {site}")


def _note(into: dict[nn.Module, Any], module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
    into[module] = output


def _giving(output: Any, /, *args: Any, **kwargs: Any) -> Any:
    return output


def _near(got: Tensor, expected: Tensor) -> bool:
    """Equal but for the rounding of another batch shape."""
    bound = 256 * torch.finfo(expected.dtype).eps * max(1.0, float(expected.abs().max()))
    return bool(((got - expected).abs() <= bound).all())
