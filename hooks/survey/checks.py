"""Hold what the hook layer says about a model against what the model does.

(a) off       hooks off, and hooks that only record, give the same logits bit for bit
(b) sum       the heads' results and the projection's bias add up to attn_out
(c) zero      zeroing a head's z gives the attn_out that its projection makes with the matching columns at zero
(d) fired     every site was seen, with finite values
(e) pattern   the recomputed pattern times v is z, and no row looks where the model's mask forbids
(f) residual  the residual sites add up: what is written is what the next site holds more

Each line passes, fails with the site and the difference, or does not apply, with the reason; that is never counted as a
pass. A note says what the model does by no choice of its own: `causal`, where attention hides later keys because a
class does not say `is_causal`. Tolerances are multiples of the dtype's rounding at the size of the numbers compared.
Cost: 2 + towers forward passes on the example inputs, once, one more for a tower with gates behind its attentions, and
where something is off. Inputs cannot be made smaller than a picture or a recording is, so what is held position by
position is held at some of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor, nn

from interp.hooks import html
from interp.hooks.anatomy.family import Family
from interp.hooks.anatomy.quantised import rounds_its_input
from interp.hooks.anatomy.spread import layer_here
from interp.hooks.anatomy.towers import Anatomy, Layer, Tower
from interp.hooks.edits.edits import Scale
from interp.hooks.errors import CheckFailed
from interp.hooks.run.keeper import Wish
from interp.hooks.run.session import Session
from interp.hooks.sites import Site
from interp.hooks.stand.call import Call, Tap, visible
from interp.hooks.stand.output import outer_tensor
from interp.hooks.stand.ports import head_results, projected
from interp.hooks.stand.standpoints import watch
from interp.hooks.survey.answers import answer, gap, same
from interp.hooks.survey.capabilities import Capabilities
from interp.hooks.survey.cut import plain_weight, without_head
from interp.hooks.survey.readers import Read, disagreement, without

Verdict = Literal["pass", "fail", "n/a", "note"]
RECORDED = (
    "resid_pre",
    "resid_mid",
    "resid_mid2",
    "resid_post",
    "attn_in",
    "attn_out",
    "attn_write",
    "mlp_in",
    "mlp_out",
    "mlp_write",
    "neurons",
)


PLACES = 64
"""Positions at which sums of heads and patterns are compared with what the model has there."""


@dataclass(frozen=True)
class Line:
    """One check."""

    name: str
    """The name of the check."""
    verdict: Verdict
    """"pass", "fail", "n/a" where the check has no meaning, or "note"."""
    note: str = ""
    """What was measured, or why the check failed."""

    def __str__(self) -> str:
        return f"{self.name:<10} {self.verdict:<5} {self.note}".rstrip()


@dataclass(frozen=True)
class Report:
    """The table of checks of one model."""

    model: str
    """The name of the model's class."""
    lines: tuple[Line, ...]
    """The checks, in the order in which they were made."""
    ask: Callable[[], Capabilities] | None = field(default=None, repr=False, compare=False)
    """How to find out what can be done with the model: when the report is printed, since it takes forward passes."""

    @cached_property
    def capabilities(self) -> Capabilities | None:
        """What can be done with the model as it is held; tried now, once."""
        return None if self.ask is None else self.ask()

    @property
    def passed(self) -> bool:
        """Whether nothing failed."""
        return all(line.verdict != "fail" for line in self.lines)

    def raise_failed(self) -> None:
        """Raise the first failure."""
        for line in self.lines:
            if line.verdict == "fail":
                raise CheckFailed(
                    f"{self.model}: the check {line.name!r} failed: {line.note}. Nothing measured on this model can"
                    " be trusted; m.check() prints the table."
                )

    def __str__(self) -> str:
        table = [] if self.capabilities is None else ["", str(self.capabilities)]
        return "\n".join([self.model, *map(str, self.lines), *table])

    def _repr_html_(self) -> str:
        rows = [{"check": one.name, "verdict": one.verdict, "note": one.note} for one in self.lines]
        more = html.line(str(self.capabilities)) if self.capabilities is not None else ""
        told = html.folded("what can be done with it", more) if more else ""
        return html.block(html.line(f"Checks of {self.model}"), html.table(rows, most=len(rows)), told)


def check(module: nn.Module, anatomy: Anatomy, kwargs: Mapping[str, Any], *, family: Family | None = None) -> Report:
    """Run every check on one example."""
    seen = _Seen(module, anatomy, kwargs, family)
    lines = [seen.off(), seen.fired(), *seen.causal()]
    lines += [Line("passes", "note", said) for tower in anatomy.towers.values() if (said := tower.often())]
    lines += [Line("heads", "note", said) for said in anatomy.left_out()]
    for tower in anatomy.towers.values():
        for name, one in (
            ("sum", seen.sums),
            ("zero", seen.zeroed),
            ("pattern", seen.patterns),
            ("residual", seen.residuals),
        ):
            label = name if len(anatomy.towers) == 1 else f"{tower.name}.{name}"
            lines.append(_line(label, one, tower))
    return Report(type(module).__name__, tuple(lines))


def _line(label: str, one: Callable[[Tower], str | None], tower: Tower) -> Line:
    try:
        reason = one(tower)
    except _Wrong as wrong:
        return Line(label, "fail", str(wrong))
    return Line(label, "pass" if reason is None else "n/a", reason or "")


class _Wrong(Exception):
    """A check that found a difference."""


class _Attended(Tap):
    """Keeps the attention calls of one run, to recompute from."""

    def __init__(self) -> None:
        self.calls: dict[tuple[int, int | None], list[Call]] = {}

    def record(self, call: Call) -> None:
        self.calls.setdefault((id(call.module), call.nth), []).append(call)

    def of(self, root: nn.Module, layer: Layer) -> list[Call]:
        """The calls of one layer."""
        nth = None if layer.nth is None else layer.nth.number
        return self.calls.get((id(root.get_submodule(layer.attention)), nth), [])


class _Without(_Attended):
    """Takes the last head out of what the attention gives."""

    def after(self, call: Call) -> None:
        call.z = call.z.clone()
        call.z[:, :, -1] = 0


class _Seen:
    """One plain run, one recorded run, and what they say."""

    def __init__(self, module: nn.Module, anatomy: Anatomy, kwargs: Mapping[str, Any], family: Family | None) -> None:
        self.module, self.anatomy, self.kwargs, self.family = module, anatomy, dict(kwargs), family
        self.sites = [
            site
            for tower in anatomy.towers.values()
            for layer in tower.layers
            for site in _sites_of(anatomy, tower, layer)
        ]
        self.plain = self._forward()
        self.session = Session(module, anatomy, wish=Wish(self.sites), family=family)
        self.calls, self.read = _Attended(), Read()
        every = [layer for tower in anatomy.towers.values() for layer in tower.layers]
        with self.session, self.read.on(module, every), ExitStack() as undo:
            once = {
                (layer.attention, layer.nth): layer for layer in every if layer.seen
            }  # streams have theirs in common
            for layer in once.values():
                undo.callback(watch(module, layer_here(layer), self.calls))
            self.recorded_logits = self._forward()
        self.missing = [str(s) for s in self.sites if s not in self.session.pieces]
        self.session.wish.sites = [s for s in self.sites if s in self.session.pieces]
        self.values = dict(self.session.recorded())

    def _forward(self) -> Tensor:
        with torch.no_grad():
            output = self.module(**self.kwargs)
        return answer(output)

    def off(self) -> Line:
        if same(self.plain, self.recorded_logits):
            torchs = any(isinstance(module, nn.MultiheadAttention) for module in self.module.modules())
            return Line("off", "pass", "without torch's fast path for its own layers, off in all of interp" * torchs)
        if not same(self.plain, self._forward()):
            return Line("off", "fail", "two plain runs differ: the model is not deterministic")
        return Line("off", "fail", f"recording changed the logits by {gap(self.plain, self.recorded_logits):.3g}")

    def fired(self) -> Line:
        if self.missing:
            return Line("fired", "fail", f"never seen: {', '.join(self.missing[:5])}")
        bad = [str(site) for site, value in self.values.items() if not bool(torch.isfinite(value).all())]
        if bad:
            return Line("fired", "fail", f"not finite: {', '.join(bad[:5])}")
        return Line("fired", "pass", f"{len(self.values)} sites")

    def causal(self) -> list[Line]:
        """transformers' sdpa takes a class that does not say `is_causal` as causal wherever no mask is passed."""
        found: dict[str, list[Call]] = {}
        for calls in self.calls.calls.values():
            said = hasattr(calls[0].module, "is_causal") or "is_causal" in calls[0].arguments
            if calls[0].implementation == "sdpa" and not said:
                found.setdefault(type(calls[0].module).__name__, []).extend(calls)
        return [Line("causal", "note", _unsaid(name, calls)) for name, calls in found.items()]

    def _get(self, tower: Tower, layer: Layer, component: str) -> Tensor | None:
        return self.values.get(_site(self.anatomy, tower, layer, component))

    def sums(self, tower: Tower) -> str | None:
        """(b)"""
        self._gated(tower)
        checked, rounding = 0, ""
        for layer in tower.layers:
            z, out = self._get(tower, layer, "z"), self._get(tower, layer, "attn_out")
            if layer.readers and z is not None:
                self._readers_agree(tower, layer, z)
                checked += 1
            if layer.out is None or z is None or out is None:
                continue
            if rounds_its_input(projection := self.module.get_submodule(layer.out)):
                rounding = self._reads(tower, layer, projection, z, out)
                continue
            out, z = _some(out.reshape(*z.shape[:2], -1)), _some(z)
            parts, bias = self._results(layer, z)
            size = self._terms(projection, z, parts) + bias.abs() + out.double().abs().reshape(parts[:, :, 0].shape)
            total = (parts.sum(2) + bias).reshape(out.shape)
            _close(total, out, size.reshape(out.shape), f"{tower.name} L{layer.index}: sum of head results")
            checked += 1
        return None if checked else rounding or "no output projection was found"

    def _readers_agree(self, tower: Tower, layer: Layer, z: Tensor) -> None:
        wrong = disagreement(self.module, layer, z, self.read, _close)
        if wrong is not None:
            raise _Wrong(f"{tower.name} L{layer.index}: {wrong}")

    @staticmethod
    def _terms(projection: nn.Module, z: Tensor, parts: Tensor) -> Tensor:
        """The size of what was summed: all products of z and the weight where that is plain, else the results."""
        weight = projection._parameters.get("weight")
        if type(weight) is not nn.Parameter or type(projection) is not nn.Linear or weight.device != z.device:
            return parts.abs().sum(2)
        return (z.flatten(-2).double().abs() @ weight.detach().T.double().abs()).reshape(parts[:, :, 0].shape)

    def _reads(self, tower: Tower, layer: Layer, projection: nn.Module, z: Tensor, out: Tensor) -> str:
        """Of a projection that rounds its input only this can be asked: that z is what it reads."""
        with torch.no_grad():
            made = projected(projection, z).reshape(out.shape)
        _close(made, out, out.abs().max(), f"{tower.name} L{layer.index}: the projection of z")
        return f"{type(projection).__name__} rounds its input too, so head results do not add up; z is what it reads"

    def _results(self, layer: Layer, z: Tensor) -> tuple[Tensor, Tensor]:
        assert layer.out is not None
        projection = self.module.get_submodule(layer.out)
        with torch.no_grad():
            parts = head_results(projection, z, tuple(range(layer.heads)))
            return parts.double(), projected(projection, torch.zeros_like(z[:1, :1])).double()

    def zeroed(self, tower: Tower) -> str | None:
        """(c)"""
        layers = [layer for layer in tower.layers if layer.readers or layer.out] or tower.layers
        layer = layers[len(layers) // 2]
        if layer.readers:
            self._zeroed_for_readers(tower, layer)
            return None
        if layer.out is None:
            return "no output projection was found"
        projection = self.module.get_submodule(layer.out)
        if plain_weight(getattr(projection, "_original_component", projection)) is None:
            return "the output projection has no plain weight to compare with"
        z, out = self._get(tower, layer, "z"), self._get(tower, layer, "attn_out")
        if z is None or out is None:
            return "its z or what its output projection makes was not seen"
        head = layer.heads - 1
        site, made = (_site(self.anatomy, tower, layer, *where) for where in (("z", (head,)), ("attn_out",)))
        edits, wish = [Scale(str(site), 0.0)], Wish([made])
        session = Session(self.module, self.anatomy, edits=edits, wish=wish, family=self.family)
        with session:
            self._forward()
        edited = session.recorded()[made]
        with torch.no_grad():
            expected = outer_tensor(without_head(self.module, layer, head)(z.flatten(-2)))[1].reshape(out.shape)
        _close(edited, expected, float(expected.abs().max()), f"{site} = 0 against zeroed columns of {layer.out}")
        return None

    def _zeroed_for_readers(self, tower: Tower, layer: Layer) -> None:
        site = _site(self.anatomy, tower, layer, "z", (layer.heads - 1,))
        session = Session(self.module, self.anatomy, edits=[Scale(str(site), 0.0)], family=self.family)
        with session, Read().on(self.module, [layer]) as edited:
            self._forward()
        without(self.module, layer, self.read, edited, layer.heads - 1, _close)

    def patterns(self, tower: Tower) -> str | None:
        """(e)"""
        reasons = {layer.missing["pattern"] for layer in tower.layers if "pattern" in layer.missing}
        if reasons:
            return reasons.pop()
        for layer in tower.layers:
            weights, v = (self._get(tower, layer, name) for name in ("pattern", "v"))
            z = self._attended(layer) if layer.gated else self._get(tower, layer, "z")
            if weights is None or v is None or z is None:
                return "it was not seen"  # which `fired` fails for
            self._allowed(tower, layer, weights)
            weights, z = _some(weights, 2), _some(z)
            values = v.double().repeat_interleave(layer.group, 2)
            made, size = (torch.einsum("bhij,bjhd->bihd", weights.double(), x) for x in (values, values.abs()))
            sees = weights.sum(-1).gt(0).all(1)[:, :, None, None]
            what, least = f"{tower.name} L{layer.index}: pattern times v", _softmax_dtype(layer, z)
            _close(made * sees, z * sees, self._steepness(layer) * (size + z.abs().max()), what, least=least)
        return None

    def _steepness(self, layer: Layer) -> float:
        """How far rounding a score moves a weight, in units of rounding: scores are as large as |q| |k| scale."""
        calls = self.calls.of(self.module, layer)
        sizes = (float(c.q.norm(dim=-1).max() * c.k.norm(dim=-1).max()) * c.scale for c in calls)
        return 1 + max(sizes, default=0.0)

    def _attended(self, layer: Layer) -> Tensor:
        """What the attention gives to the gate behind it."""
        return torch.cat([call.z for call in self.calls.of(self.module, layer)], dim=1)

    def _gated(self, tower: Tower) -> None:
        """The module between the attention and z keeps heads apart: without a head's output its z is zero."""
        layers = [layer for layer in tower.layers if layer.gated]
        if not layers:
            return
        without = _Without()
        sites = [_site(self.anatomy, tower, layer, "z") for layer in layers]
        with ExitStack() as undo:
            session = undo.enter_context(Session(self.module, self.anatomy, wish=Wish(sites), family=self.family))
            for layer in layers:
                undo.callback(watch(self.module, layer_here(layer), without))
            self._forward()
        for site, z in session.recorded().items():
            if bool(z[:, :, -1].any()):
                raise _Wrong(
                    f"{site} depends on more than its own head's attention, and not through a gate, so heads have no z"
                    " here"
                )

    def _allowed(self, tower: Tower, layer: Layer, weights: Tensor) -> None:
        calls = self.calls.of(self.module, layer)
        if len(calls) != 1:
            return
        mask = visible(calls[0])
        if mask is None:
            return
        dense = mask.dense(weights.shape[2], weights.shape[3], device=weights.device)
        if bool((weights.masked_fill(dense, 0) != 0).any()):
            raise _Wrong(f"{tower.name} L{layer.index}: a row of the pattern looks where the mask forbids")

    def residuals(self, tower: Tower) -> str | None:
        """(f)"""
        reasons = set()
        for layer in tower.layers:
            stages = [
                ("attn_write", "resid_pre", "resid_mid"),
                ("mlp_write", "resid_mid2" if "resid_mid2" in layer.ports else "resid_mid", "resid_post"),
            ]
            for write, before, after in stages:
                values = [self._get(tower, layer, name) for name in (before, write, after)]
                if any(value is None for value in values):
                    reasons.add(
                        layer.missing.get(write)
                        or layer.missing.get(before)
                        or layer.missing.get(after)
                        or f"no {write}"
                    )
                    continue
                r, w, s = values
                assert r is not None
                assert w is not None
                assert s is not None
                if self._post_norm(layer):
                    reasons.add("the block normalises after adding, so the sum is not a site")
                    continue
                r, w = r.double().to(s.device), w.double().to(s.device).reshape(r.shape)
                _close(
                    r + w,
                    s,
                    r.abs() + w.abs(),
                    f"{tower.name} L{layer.index}: {before} + {write} = {after}",
                )
        return reasons.pop() if len(reasons) == 1 else None

    def _post_norm(self, layer: Layer) -> bool:
        """Whether the residual between the stages is a norm's output."""
        port = layer.ports.get("resid_mid")
        if port is None or port.side != "out":
            return False
        called = f"{port.module.rpartition('.')[2]} {type(self.module.get_submodule(port.module)).__name__}"
        return "norm" in called.lower()


def _some(x: Tensor, axis: int = 1) -> Tensor:
    """Some of the positions, the first and the last among them."""
    count = x.shape[axis]
    if count <= PLACES:
        return x
    return x.index_select(axis, torch.linspace(0, count - 1, PLACES).round().long().to(x.device))


def _unsaid(name: str, calls: Sequence[Call]) -> str:
    bare = sum(call.causal for call in calls)
    here = f"{bare} of {len(calls)} calls here were causal for that" if bare else "every call here passed one"
    return f"{name} does not say is_causal, so sdpa hides later keys wherever no mask is passed: {here}"


def _site(anatomy: Anatomy, tower: Tower, layer: Layer, component: str, heads: tuple[int, ...] | None = None) -> Site:
    return Site(None if len(anatomy.towers) == 1 else tower.name, layer.index, component, heads)


def _sites_of(anatomy: Anatomy, tower: Tower, layer: Layer) -> list[Site]:
    names = [n for n in RECORDED if n in layer.ports and n not in layer.missing]
    names += [
        n
        for n in ("q", "k", "v", "z", "pattern")
        if n not in layer.missing and (layer.seen or n in layer.ports or n == "pattern")
    ]
    return [_site(anatomy, tower, layer, name) for name in names]


def _softmax_dtype(layer: Layer, z: Tensor) -> torch.dtype:
    """transformers' own eager attention takes its softmax in float32 even where the model is in float64."""
    return torch.float32 if z.dtype == torch.float64 and layer.implementation == "eager" else z.dtype


def _close(got: Tensor, expected: Tensor, size: Tensor | float, what: str, *, least: torch.dtype | None = None) -> None:
    """Equal up to rounding: eight units in the last place of the terms that were summed, element by element."""
    bound = 8 * torch.finfo(least or expected.dtype).eps * size + 1e-12
    off = (got.double() - expected.double()).abs()
    if not bool((off <= bound).all()):
        raise _Wrong(f"{what} is off by {float(off.max()):.3g}, more than rounding explains")
