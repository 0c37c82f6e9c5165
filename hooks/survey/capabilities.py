"""What can be done with a model as it is held: tried on one example, never read off a class name.

Idea: a model is rarely plain. accelerate keeps its weights on another device or on disk, a quantiser has packed them,
PEFT has added adapters to them, torch.compile has wrapped it. Each row of the table is an attempt:
record    z of every layer is seen, finite, just what the output projection reads, and the logits stay the same bits;
edit      zeroing one head's z through the hook layer gives what zeroing it in the projection's own input gives;
gradient  the gradient of a random reading of the logits at a middle z agrees with a central difference along it; where
          the logits have none there (a tower behind gates at zero, a part that runs without gradients), which torch's
          own hooks have to find too, that of a later z, or of what the tower's last block gives.
Nothing is moved, merged, dequantised or cast to find out, and what was loaded for a call goes back after it.
Cost: seven forward passes and a backward one. Limits: said of the example's inputs, of one tower and one head; in half
precision and behind projections that round what they read a difference cannot judge a gradient, so that row then only
says that it is finite and not zero.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from interp.hooks.anatomy.family import Family, family_of
from interp.hooks.anatomy.quantised import quantised, rounds_its_input
from interp.hooks.anatomy.spread import cut_weight, everyones
from interp.hooks.anatomy.towers import Anatomy, Layer
from interp.hooks.anatomy.unwrap import forced_eager, unwrap
from interp.hooks.edits.edits import Add, Scale
from interp.hooks.errors import ModelError
from interp.hooks.examples.example import example
from interp.hooks.run.keeper import Wish
from interp.hooks.run.session import Session
from interp.hooks.sites import Site, layer_of, pass_of
from interp.hooks.survey.answers import answer, gap, same
from interp.hooks.survey.cut import without
from interp.hooks.survey.trace import trace
from interp.kernels.errors import InterpError

Answer = Literal["yes", "no"]
FAILS = (InterpError, RuntimeError, NotImplementedError, TypeError)
"""What torch, a quantiser or an offloader raises where it cannot do something; anything else is a mistake of ours."""


@dataclass(frozen=True)
class Capability:
    """One thing one may want to do, and whether it works here."""

    what: str
    answer: Answer
    note: str = ""

    def __str__(self) -> str:
        return f"{self.what:<10} {self.answer:<3} {self.note}".rstrip()


@dataclass(frozen=True)
class Capabilities:
    """How a model is held, and what can be done with it so."""

    held: tuple[str, ...]
    """How the model is held, in words: "plain", or quantised, offloaded, compiled and so on."""
    rows: tuple[Capability, ...]
    """What was tried, with yes or no: record, edit and gradient."""

    def __getitem__(self, what: str) -> Capability:
        for row in self.rows:
            if row.what == what:
                return row
        raise KeyError(f"no row {what!r}; there are {', '.join(row.what for row in self.rows)}")

    def __str__(self) -> str:
        return "\n".join([f"held: {', '.join(self.held)}", *map(str, self.rows)])


def capabilities(
    module: Any,
    *,
    anatomy: Anatomy | None = None,
    inputs: Mapping[str, Any] | None = None,
    family: Family | None = None,
    how: str = "",
) -> Capabilities:
    """Try to record, edit and differentiate `module` on its example inputs."""
    unwrapped = unwrap(module)
    root = unwrapped.module
    family = family or unwrapped.family or family_of(root)
    kwargs = dict(inputs) if inputs is not None else example(root)
    with forced_eager():
        attempt = _Attempt(root, anatomy or trace(root, kwargs, family=family), kwargs, family)
        rows = [_tried(name, getattr(attempt, name)) for name in ("record", "edit", "gradient")]
    return Capabilities(held(root, how or unwrapped.how), tuple(rows))


def _tried(name: str, attempt: Callable[[], str]) -> Capability:
    try:
        return Capability(name, "yes", attempt())
    except FAILS as reason:
        return Capability(name, "no", f"{type(reason).__name__}: {str(reason).splitlines()[0]:.200}")


class _Attempt:
    """The attempts on one model."""

    def __init__(self, root: nn.Module, anatomy: Anatomy, kwargs: Mapping[str, Any], family: Family | None) -> None:
        self.root, self.anatomy, self.kwargs, self.family = root, anatomy, dict(kwargs), family
        largest = max(anatomy.towers, key=lambda one: len(anatomy.towers[one].layers))
        name = anatomy.main or largest
        self.tower = anatomy.towers[name]
        self.layer = self.tower.layers[len(self.tower.layers) // 2]
        with torch.no_grad():
            self.plain = self._forward()

    def _forward(self) -> Tensor:
        return answer(self.root(**self.kwargs))

    def _site(self, layer: Layer, heads: tuple[int, ...] | None = None) -> Site:
        return Site(None if len(self.anatomy.towers) == 1 else self.tower.name, layer.index, "z", heads)

    def _under(self, **how: Any) -> tuple[Session, Tensor]:
        session = Session(self.root, self.anatomy, family=self.family, **how)
        with session:
            made = self._forward()
        session.check_fired()
        return session, made

    def record(self) -> str:
        """Record every z together with what the projections read."""
        read: dict[int, list[Tensor]] = defaultdict(list)
        sites = {layer.index: self._site(layer) for layer in self.tower.layers}
        with torch.no_grad(), self._reading(read):
            session, made = self._under(wish=Wish(list(sites.values())))
        seen = session.recorded()
        if not same(made, self.plain):
            raise ModelError("recording changed the logits")
        for index, site in sites.items():
            if not bool(torch.isfinite(seen[site]).all()):
                raise ModelError(f"{site} is not finite")
            if not _among(read[layer_of(index)], seen[site], pass_of(index)):
                raise ModelError(f"{site} is not what its output projection reads")
        held_against = sum(bool(read[layer_of(index)]) for index in sites)
        what = f"{len(sites)} {'passes' if self.tower.passes else 'layers'}"
        return f"{what}, {held_against} of them compared with what their output projection reads"

    @contextmanager
    def _reading(self, read: dict[int, list[Tensor]]) -> Iterator[None]:
        """Plain torch hooks at the output projections, in no way ours."""

        def keep(layer: Layer) -> Callable[..., None]:
            return lambda _, args: read[layer_of(layer.index)].append(everyones(layer, args[0].detach().clone()))

        found = {layer.out: layer for layer in self.tower.layers if layer.out is not None}
        hooks = [self.root.get_submodule(out).register_forward_pre_hook(keep(layer)) for out, layer in found.items()]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def edit(self) -> str:
        """Zero one head twice: through the hook layer, and by hand at the projection."""
        head, mine = self.layer.heads - 1, layer_of(self.layer.index)
        passes = [layer for layer in self.tower.layers if layer_of(layer.index) == mine]
        with torch.no_grad():
            edited = self._under(edits=[Scale(str(self._site(one, (head,))), 0.0) for one in passes])[1]
            if self.layer.out is None:
                return "no output projection was found to compare with"
            by_hand = self._zeroed(self.layer.out, head)
        if not same(edited, by_hand):
            raise ModelError(f"zeroing head {head} is not what zeroing it in the input of {self.layer.out} is")
        where = f"L{mine}.H{head}{' in every pass' * (len(passes) > 1)}"
        if same(edited, self.plain):
            return f"{where} zeroed changes nothing, by hand neither: it writes nothing here"
        return f"{where} zeroed moves the logits by {gap(edited, self.plain):.2g}, as by hand"

    def _zeroed(self, out: str, head: int) -> Tensor:
        own = range(self.layer.heads) if self.layer.share is None else self.layer.share.own(self.layer.heads)
        at = (head - own.start) * self.layer.d_value if head in own else 0
        columns = slice(at, at + self.layer.d_value * (head in own))
        if isinstance(self.root.get_submodule(out.rpartition(".")[0]), nn.MultiheadAttention):
            with without(self.root, self.layer, head), torch.no_grad():
                return (
                    self._forward()
                )  # torch's own attention never calls its projection: its weight is what can change

        def zero(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
            cut = args[0].clone()
            cut[..., columns] = 0
            return cut, *args[1:]

        hook = self.root.get_submodule(out).register_forward_pre_hook(zero)
        try:
            return self._forward()
        finally:
            hook.remove()

    def gradient(self) -> str:
        """Differentiate a random reading of the logits at z, and hold it against a difference. Where none of them is
        reached, which differentiating at the projection by hand has to find too, the tower's last residual is read."""
        site, why = self._site(self.layer), ""
        z, slope, reading = self._slope(site, None)
        read: Site | None = None
        if slope is None or not bool(slope.any()):
            self._as_by_hand(site, slope)
            site, read, why = self._reached()
            z, slope, reading = self._slope(site, read)
        if slope is None or not bool(slope.any()) or not bool(torch.isfinite(slope).all()):
            found = "zero" if slope is None or bool((slope == 0).all()) else "not finite"
            raise ModelError(f"the gradient at {site} is {found}")
        if (reason := self._not_smooth(reading.dtype)) is not None:
            return f"finite and not zero; {reason}{why}"
        return self._against_difference(site, z.detach(), slope, read) + why

    def _slope(self, site: Site, read: Site | None) -> tuple[Tensor, Tensor | None, Tensor]:
        """z at a site, the gradient of what is read there (the logits, else a site), and that."""
        with torch.enable_grad():
            session, made = self._under(wish=Wish([site] if read is None else [site, read], grad=True))
            seen = session.recorded()
            made = made if read is None else seen[read]
            if made.grad_fn is None:
                return seen[site], None, made
            weighed = (made.double() * _weights(made)).sum()
            return seen[site], torch.autograd.grad(weighed, seen[site], allow_unused=True)[0], made

    def _reached(self) -> tuple[Site, Site | None, str]:
        """Where a gradient can be tried instead, what is read for it, and why: in a later layer the logits, else in the
        same one the last residual."""
        later = self.tower.layers[self.tower.layers.index(self.layer) + 1 :]
        for site in map(self._site, later):
            slope = self._slope(site, None)[1]
            if slope is not None and bool(slope.any()):
                return site, None, f"; none reaches {self._site(self.layer)} from the logits, by hand neither"
        last = self.tower.layers[-1]
        if "resid_post" not in last.ports:
            raise ModelError(f"the logits have no gradient at {self._site(self.layer)}, and no residual is known after")
        read = replace(self._site(last), component="resid_post")
        return self._site(self.layer), read, f" of {read}; the logits have none there, by hand neither"

    def _as_by_hand(self, site: Site, slope: Tensor | None) -> None:
        """Whether torch finds no gradient at the projection's input either."""
        found = f"the gradient at {site} is {'zero' if slope is not None else 'not there'}"
        if self.layer.out is None:
            raise ModelError(f"{found}, and no output projection is known to hold that against")
        nth, leaves = pass_of(self.layer.index), list[Tensor]()

        def cut(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
            leaves.append(args[0].detach().requires_grad_())
            return (leaves[-1] if nth is None or nth == len(leaves) - 1 else args[0]), *args[1:]

        handle = self.root.get_submodule(self.layer.out).register_forward_pre_hook(cut)
        try:
            with torch.enable_grad():
                made = self._forward()
        finally:
            handle.remove()
        if not leaves:
            raise ModelError(f"{found}, and {self.layer.out} does not run as a module to hold that against")
        if made.grad_fn is None:
            return
        tried = leaves if nth is None else leaves[nth : nth + 1]
        slopes = torch.autograd.grad((made.double() * _weights(made)).sum(), tried, allow_unused=True)
        if any(one is not None and bool(one.any()) for one in slopes):
            raise ModelError(f"{found}; computed by hand, at the input of {self.layer.out}, it is not")

    def _not_smooth(self, dtype: torch.dtype) -> str | None:
        if dtype not in (torch.float32, torch.float64):
            return f"{str(dtype).removeprefix('torch.')} is too coarse for a difference to judge it"
        rounding = [name for name, child in self.root.named_modules() if rounds_its_input(child)]
        return f"straight through the rounding of {rounding[0]} and {len(rounding) - 1} more" if rounding else None

    def _against_difference(self, site: Site, z: Tensor, slope: Tensor, read: Site | None) -> str:
        along = slope / slope.double().norm()
        step = 0.01 * (float(z.double().std()) or 1.0)
        wish = None if read is None else Wish([read])
        with torch.no_grad():
            runs = [self._under(edits=[Add(str(site), along * by)], wish=wish) for by in (step, -step)]
            ends = [(made if read is None else session.recorded()[read]).double() for session, made in runs]
        reading = _weights(ends[0])
        found = float(((ends[0] - ends[1]) * reading).sum()) / (2 * step)
        expected = float((slope.double() * along).sum())
        off = abs(found - expected) / max(abs(expected), torch.finfo(torch.float64).tiny)
        size = (
            torch.finfo(z.dtype).eps * ends[0].abs() + torch.finfo(z.dtype).tiny
        )  # numbers that underflow are rounded
        rounded = float((size * reading.abs()).sum()) / step
        if off > 0.05 and abs(found - expected) < 4 * rounded:
            return f"at {site}, as far as a difference can judge it: rounding moves it by {rounded:.2g}"
        if off > 0.05:
            raise ModelError(f"the gradient at {site} differs from a central difference by {off:.0%}")
        return f"at {site}, within {off:.1g} of a central difference"


def _weights(made: Tensor) -> Tensor:
    """The same random numbers every time."""
    return torch.randn(made.shape, generator=torch.Generator().manual_seed(0)).to(made.device)


def _among(read: list[Tensor], z: Tensor, nth: int | None) -> bool:
    """Whether a projection that ran these times read z the time it is about; nothing speaks against it where the
    projection was not seen."""
    at = nth if nth is not None else len(read) - 1
    return not read or torch.equal(read[at], z.reshape(read[at].shape))


def held(root: nn.Module, how: str = "") -> tuple[str, ...]:
    """How a model is held, in words: in what, compiled, offloaded, quantised, adapted; `plain` if none of these."""
    inside = [how.strip(" ()")] if how else []
    found = [*inside, *_compiled(root), *_offloaded(root), *_quantised(root), *_adapted(root), *_spread(root)]
    return tuple(found) or ("plain",)


def _spread(root: nn.Module) -> Iterator[str]:
    cut = {p.device_mesh.size() for p in root.parameters() if cut_weight(p)}  # type: ignore[attr-defined]
    if cut:
        yield f"over {max(cut)} processes, each with some of the heads (tensor parallel)"


def _compiled(root: nn.Module) -> Iterator[str]:
    if any(child._compiled_call_impl is not None for child in root.modules()):
        yield "compiled in place; run eagerly while something is on it"


def _offloaded(root: nn.Module) -> Iterator[str]:
    hooked = [child for child in root.modules() if hasattr(child, "_hf_hook")]
    away = sum(p.device.type == "meta" for p in root.parameters())
    if hooked:
        yield f"by accelerate, {away} of {sum(1 for _ in root.parameters())} parameters offloaded"


def _quantised(root: nn.Module) -> Iterator[str]:
    kinds = Counter(kind for child in root.modules() if (kind := quantised(child)) is not None)
    for kind, count in sorted(kinds.items()):
        yield f"quantised: {kind} in {count} projections"


def _adapted(root: nn.Module) -> Iterator[str]:
    layers: list[Any] = [c for c in root.modules() if hasattr(c, "base_layer") and hasattr(c, "active_adapters")]
    states: Counter[str] = Counter()
    for child in layers:
        states["merged" if getattr(child, "merged", False) else f"{', '.join(child.active_adapters)} attached"] += 1
    for state, count in sorted(states.items()):
        yield f"adapters (PEFT): {state} in {count} projections"
