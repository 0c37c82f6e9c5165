"""The blocks of one recorded run, run one by one on other residuals, with every head frozen to what it gave there.

With attention frozen each position goes its own way, and what is left of a block is its MLP: so the tokens that moved,
of many versions of the run, go through it together, and attention is not computed but handed out as recorded. That this
gives the run's own residuals is tried on every block; one where it does not is run whole, version by version. Whole
blocks get the arguments of the run itself, in its own batch shape, so an unchanged residual gives the run's values bit
for bit.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor, nn

from interp.hooks.anatomy.family import Family
from interp.hooks.anatomy.norms import Frozen, frozen, identity
from interp.hooks.anatomy.towers import Anatomy, Tower
from interp.hooks.drive.recording import Block, CannotDrive, record
from interp.hooks.edits.edits import Edit, Set
from interp.hooks.errors import ModelError
from interp.hooks.run.keeper import Wish
from interp.hooks.run.session import Session
from interp.hooks.run.writes import attentions, spelled
from interp.hooks.sites import Site
from interp.hooks.survey.dissect import outer_tensor

FIELDS = ("prompts", "columns", "hidden")


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
        self._outputs: dict[int, dict[str, Any]] = {}
        self._tried: dict[int, bool] = {}

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

    def advance(self, layer: int, versions: Sequence[Tokens]) -> list[Tokens]:
        """What a block makes of the moved tokens of several versions, every head frozen."""
        if not versions:
            return []
        if not self._packs(layer):
            return [self._whole(layer, one) for one in versions]
        prompts, columns, hidden = (torch.cat([getattr(v, name) for v in versions]) for name in FIELDS)
        made = self._packed(layer, prompts, columns, hidden).split([len(v.hidden) for v in versions])
        return [replace(v, hidden=part) for v, part in zip(versions, made, strict=True)]

    def _whole(self, layer: int, one: Tokens) -> Tokens:
        out = self.run(layer, one.into(self.blocks[layer].entered))
        return replace(one, hidden=out[one.prompts, one.columns])

    def _packs(self, layer: int) -> bool:
        """Whether tokens can go through the block by themselves: tried on all tokens of the run."""
        if layer not in self._tried:
            entered, left = self.blocks[layer].entered, self._left(layer)
            every = torch.ones(entered.shape[:2], dtype=torch.bool, device=entered.device)
            prompts, columns = every.nonzero(as_tuple=True)
            outputs = [outer_tensor(output)[1] for output in self._attended(layer).values()]
            self._tried[layer] = all(made.shape[:2] == entered.shape[:2] for made in outputs) and _near(
                self._packed(layer, prompts, columns, entered[every]), left[every]
            )
        return self._tried[layer]

    def _left(self, layer: int) -> Tensor:
        """What a block gave in the run."""
        above = self.layers[self.layers.index(layer) + 1 :]
        return self.blocks[above[0]].entered if above else self.left

    def _packed(self, layer: int, prompts: Tensor, columns: Tensor, hidden: Tensor) -> Tensor:
        """The block on [1, token, d], its attentions giving what they gave those tokens."""
        if not len(hidden):
            return hidden
        with ExitStack() as undo:
            for name, output in self._attended(layer).items():
                undo.callback(_giving(self.module.get_submodule(name), _at(output, prompts, columns, self.left.shape)))
            made: Tensor = self._called(layer, hidden[None], (), None)[0][0]
            return made

    def _attended(self, layer: int) -> dict[str, Any]:
        """What each attention module of the block returned in the run."""
        if layer not in self._outputs:
            block, found = self.blocks[layer], {}
            names = [one.attention for _, one in attentions(self.anatomy, self.tower) if one.block == block.layer.block]

            def keep(name: str, _: nn.Module, args: tuple[Any, ...], output: Any) -> None:
                found[name] = output

            with ExitStack() as undo:
                for name in names:
                    handle = self.module.get_submodule(name).register_forward_hook(partial(keep, name))
                    undo.callback(handle.remove)
                self._called(layer, block.entered, (), None)
            self._outputs[layer] = found
        return self._outputs[layer]

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


def _at(output: Any, prompts: Tensor, columns: Tensor, shape: Sequence[int]) -> Any:
    """What was returned for some tokens, as for one prompt; what has no entry per token stays as it is."""
    if isinstance(output, (tuple, list)):
        return tuple(_at(value, prompts, columns, shape) for value in output)
    if torch.is_tensor(output) and tuple(output.shape[:2]) == tuple(shape[:2]):
        return output[prompts, columns][None]
    return output


def _giving(module: nn.Module, output: Any) -> Callable[[], None]:
    """Let a module return this without running; returns what undoes it."""
    own = vars(module).get("forward")
    module.forward = lambda *args, **kwargs: output

    def undo() -> None:
        if own is None:
            del module.forward
        else:
            module.forward = own

    return undo


def _near(got: Tensor, expected: Tensor) -> bool:
    """Equal but for the rounding of another batch shape."""
    bound = 256 * torch.finfo(expected.dtype).eps * max(1.0, float(expected.abs().max()))
    return bool(((got - expected).abs() <= bound).all())
