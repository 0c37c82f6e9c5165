"""Relevance rules: another backward pass through the same forward pass, put on a model and taken off again.

Each rule changes what the gradient is multiplied by at one kind of module and leaves every value of the forward pass
as it is, bit for bit (Ali et al. 2022, arXiv 2202.07304; AttnLRP, 2402.05602; RelP, 2508.21258):

    ln         norms: the scale counts as a constant, so the coefficient is centring and gain / scale
    identity   activations: act(x) / x in its analytic form (sigmoid for SiLU, Phi for GELU); ReLU keeps its own
    half       gated MLPs, act(g) u: half of the gradient to each factor
    gate       gated MLPs: none to act(g), all to u
    attention  no gradient to q and k, all of it to v
    uniform    a quarter of the gradient to q and to k, half to v
    tempered   as uniform, with the softmax differentiated at twice its temperature (Edin et al. 2025, 2505.17630)

A rule counts how often it acted on the way forward and on the way back, and a run in which one was silent is an error.
LXT's authors state that LRP is patented technology, free for personal and scientific use.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from threading import get_ident
from typing import Any

import torch
from torch import Tensor, nn

from interp.hooks.anatomy.towers import Anatomy, Layer
from interp.hooks.errors import ModelError, NotFired
from interp.hooks.slopes.tempered import tempered
from interp.hooks.stand.call import Call, Tap
from interp.hooks.stand.ports import stand_at
from interp.hooks.stand.standpoints import watch

RULES = ("ln", "identity", "half", "gate", "attention", "uniform", "tempered")
AT_ATTENTION = ("attention", "uniform", "tempered")


class _By(torch.autograd.Function):
    """The value of the first tensor; the gradient goes to the second one, times a factor, and the rule is noted."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, path: Tensor, factor: float, note: Callable[[], None]) -> Tensor:
        ctx.factor, ctx.note = factor, note
        return value.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[None, Tensor, None, None]:
        ctx.note()
        return None, grad * ctx.factor if ctx.factor != 1 else grad, None, None


class Rules:
    """Some rules for one model; `with rules.on():` they hold."""

    def __init__(self, module: nn.Module, anatomy: Anatomy, names: Sequence[str]) -> None:
        self.module, self.anatomy = module, anatomy
        self.names = tuple(dict.fromkeys(names))
        self.forward: Counter[str] = Counter()
        self.expected: Counter[str] = Counter()
        self.backward: Counter[str] = Counter()
        self._norms: dict[int, Callable[[Tensor], Tensor]] = {}
        _refuse_names(self.names)

    def __repr__(self) -> str:
        return f"Rules({', '.join(self.names)})"

    @contextmanager
    def on(self) -> Iterator[None]:
        """The rules hold while inside. Enter before whatever records, which then sees what comes out of the rules."""
        for count in (self.forward, self.expected, self.backward):
            count.clear()
        with ExitStack() as undo:
            if "ln" in self.names:
                for name, norm in norms(self.module):
                    undo.callback(norm.register_forward_hook(self._norm(name)).remove)
            if {"identity", "half", "gate"} & set(self.names):
                for layer in _with_mlp(self.anatomy):
                    self._stand_at_mlp(layer, undo)
                for activation in _between(self.module, self.anatomy):
                    undo.callback(activation.register_forward_hook(self._activation(None)).remove)
            if set(AT_ATTENTION) & set(self.names):
                self._stand_at_attention(undo)
            yield
            self._check_fired()

    def _check_fired(self) -> None:
        silent = [name for name in self.names if not self.forward[name]]
        if silent:
            raise NotFired(
                f"the rule{'s' * (len(silent) > 1)} {', '.join(silent)} did not act in this run: no module fits."
            )

    def check_used(self) -> None:
        """Raise for a rule that no gradient has passed since it was put on."""
        silent = [name for name in self.names if self.expected[name] and not self.backward[name]]
        if silent:
            raise NotFired(
                f"the rule {silent[0]!r} was set in the forward pass and no gradient passed through it, so the result"
                " would not follow the rule."
            )

    def _by(self, rule: str, value: Tensor, path: Tensor, factor: float = 1.0) -> Tensor:
        self.forward[rule] += 1
        self.expected[rule] += path.requires_grad
        made: Tensor = _By.apply(value.detach(), path, factor, lambda: self.backward.update([rule]))
        return made

    def _norm(self, name: str) -> Callable[..., Tensor | None]:
        def hook(norm: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor | None:
            x = args[0].to(output.device)
            if id(norm) not in self._norms:
                self._norms[id(norm)] = linear_norm(name, norm, x, output)
            if not x.requires_grad:
                self.forward["ln"] += 1
                return None
            return self._by("ln", output, self._norms[id(norm)](x).to(output.dtype))

        return hook

    def _stand_at_mlp(self, layer: Layer, undo: ExitStack) -> None:
        found = activations(self.module, layer)
        if not found or "neurons" not in layer.ports:
            why = layer.missing.get("neurons", "no activation module was found in it")
            raise ModelError(
                f"the MLP of {layer.block} does not show its activation and product at the border of a module ({why}),"
                " so the identity, half and gate rules cannot act there: use rules=('ln',), or method='atp'."
            )
        for _, activation in found:
            undo.callback(activation.register_forward_hook(self._activation(layer)).remove)
        if "half" in self.names:
            port = replace(layer.ports["neurons"], nth=None)  # one rule for all passes of a module
            undo.callback(stand_at(self.module, port, self._product(layer), batch=lambda: None).remove)

    def _activation(self, layer: Layer | None) -> Callable[..., Tensor]:
        def hook(activation: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
            x = args[0]
            if "gate" in self.names and layer is not None and gated(self.module, layer):
                self.forward.update(["gate", "identity"])
                return output.detach()
            if "identity" not in self.names:
                return output
            return self._by("identity", output, x * coefficient(activation, x, output))

        return hook

    def _product(self, layer: Layer) -> Callable[[Tensor], Tensor]:
        def halve(p: Tensor) -> Tensor:
            if not gated(self.module, layer):
                return p
            return self._by("half", p, p, 0.5)

        return halve

    def _stand_at_attention(self, undo: ExitStack) -> None:
        for tower in self.anatomy.towers.values():
            for layer in tower.layers:
                if not layer.seen:
                    raise ModelError(
                        f"the attention call of {layer.attention} is not seen, so the rules"
                        f" {', '.join(AT_ATTENTION)} cannot act at its q, k and v: use method='relp', which needs none."
                    )
                undo.callback(watch(self.module, layer, _AttentionRule(self)))


class _AttentionRule(Tap):
    """What q, k and v get of the gradient. It has a part in attending, so that those who record q, k and v see the
    rule; heads with programs are under it too."""

    def __init__(self, rules: Rules) -> None:
        self.rules, self.thread = rules, get_ident()

    def __str__(self) -> str:
        return f"the relevance rule {next(name for name in self.rules.names if name in AT_ATTENTION)!r}"

    def attends(self) -> bool:
        return True

    def attend(self, call: Call, inner: Callable[[], None]) -> None:
        rule = next(name for name in self.rules.names if name in AT_ATTENTION)
        given = call.q, call.k, call.v
        if rule == "attention":
            self.rules.forward[rule] += 1
            call.q, call.k = call.q.detach(), call.k.detach()
        else:
            by = {"q": 0.25, "k": 0.25, "v": 0.5}
            q, k, v = (self.rules._by(rule, getattr(call, n), getattr(call, n), by[n]) for n in "qkv")
            call.q, call.k, call.v = q, k, v
        if rule == "tempered":
            tempered(call)
        else:
            inner()
        call.q, call.k, call.v = given


def _refuse_names(names: Sequence[str]) -> None:
    unknown = [name for name in names if name not in RULES]
    if unknown:
        raise ModelError(f"no relevance rule {unknown[0]!r}; there are {', '.join(RULES)}.")
    for pair in (("half", "gate"), ("attention", "uniform"), ("attention", "tempered"), ("uniform", "tempered")):
        if set(pair) <= set(names):
            raise ModelError(f"the rules {pair[0]!r} and {pair[1]!r} say different things about one place: choose one.")


def norms(module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Every layer norm and RMS norm, by name."""
    for name, child in module.named_modules():
        kind = type(child).__name__
        if next(child.children(), None) is None and (
            isinstance(child, (nn.LayerNorm, nn.RMSNorm)) or re.search(r"(Layer|RMS)_?Norm|L2Norm$", kind)
        ):
            yield name, child


def linear_norm(name: str, norm: nn.Module, x: Tensor, output: Tensor) -> Callable[[Tensor], Tensor]:
    """The norm as a linear map of x once its scale is a constant: the form whose value is what the module makes, of x
    and of a ramp on top of it, since x itself may have no mean, or be 0, and then tells nothing."""
    eps = next((float(e) for n in ("eps", "variance_epsilon", "epsilon") if (e := getattr(norm, n, None))), 0.0)
    weight, bias = getattr(norm, "weight", None), getattr(norm, "bias", None)
    gains = [1.0] if weight is None else [weight.detach(), 1.0 + weight.detach()]
    forms = [partial(_normed, eps=eps, centred=c, gain=g, bias=bias) for c in (False, True) for g in gains]
    with torch.no_grad():
        ramp = torch.linspace(0.5, 1.5, x.shape[-1], dtype=torch.float64) * max(1.0, float(x.abs().max()))
        other = x.detach() + ramp.to(x)
        asked = [(x, output), (other, norm.forward(other))]
        gaps = [max(float((form(one).double() - made).abs().max()) for one, made in asked) for form in forms]
        size = max(float(made.abs().max()) for _, made in asked) or 1.0
    best = min(range(len(forms)), key=lambda n: gaps[n])
    if gaps[best] <= max(4 * torch.finfo(output.dtype).eps, 1e-5) * size:
        return forms[best]
    raise ModelError(
        f"the norm {name} ({type(norm).__name__}) is neither a layer norm nor an RMS norm with gain w or 1 + w, so the"
        " ln rule does not know its scale: leave 'ln' out with rules=, or use method='atp'."
    )


def _normed(x: Tensor, *, eps: float, centred: bool, gain: Any, bias: Tensor | None) -> Tensor:
    wide = x if x.dtype == torch.float64 else x.float()
    wide = wide - wide.mean(-1, keepdim=True) if centred else wide
    scale = torch.rsqrt(wide.detach().square().mean(-1, keepdim=True) + eps)
    made = wide * scale * (gain.to(wide) if torch.is_tensor(gain) else gain)
    return made if bias is None else made + bias.to(wide)


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": torch.sigmoid,
    "gelu": lambda x: 0.5 * (1 + torch.erf(x / 2**0.5)),
    "gelu_tanh": lambda x: 0.5 * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (x + 0.044715 * x**3))),
    "quick_gelu": lambda x: torch.sigmoid(1.702 * x),
    "relu": lambda x: (x > 0).to(x.dtype),
    "relu2": torch.relu,
}
"""act(x) / x of the activations there are, with the right limit at 0."""
_KINDS = re.compile(r"gelu|silu|swish|relu|activation", re.IGNORECASE)


def coefficient(activation: nn.Module, x: Tensor, output: Tensor) -> Tensor:
    """act(x) / x, by the formula that gives what the module made."""
    with torch.no_grad():
        wide = x if x.dtype == torch.float64 else x.float()
        found = {name: formula(wide) for name, formula in ACTIVATIONS.items()}
        gaps = {name: float((wide * c - output).abs().max()) for name, c in found.items()}
        best = min(gaps, key=lambda name: gaps[name])
        scale = max(1.0, float(output.abs().max()))
        if gaps[best] > max(4 * torch.finfo(output.dtype).eps, 1e-5) * scale:
            raise ModelError(
                f"{type(activation).__name__} is none of {', '.join(ACTIVATIONS)}, so the identity rule has no formula"
                " for act(x) / x: leave 'identity' out with rules=, or use method='atp'."
            )
        return found[best].to(x.dtype)


def activations(module: nn.Module, layer: Layer) -> list[tuple[str, nn.Module]]:
    """The activation modules of a block's MLP."""
    inside = module.get_submodule(layer.block)
    return [
        (name, child)
        for name, child in inside.named_modules(prefix=layer.block)
        if next(child.children(), None) is None
        and _KINDS.search(type(child).__name__)
        and not name.startswith(layer.attention + ".")
    ]


def _between(module: nn.Module, anatomy: Anatomy) -> Iterator[nn.Module]:
    """Activations in no block: those of connectors and heads."""
    blocks = tuple(f"{layer.block}." for tower in anatomy.towers.values() for layer in tower.layers)
    for name, child in module.named_modules():
        inner = name.startswith(blocks) or next(child.children(), None) is not None
        if not inner and _KINDS.search(type(child).__name__):
            yield child


def _with_mlp(anatomy: Anatomy) -> Iterator[Layer]:
    seen: set[str] = set()
    for tower in anatomy.towers.values():
        for layer in tower.layers:
            if layer.missing.get("mlp_out") != "it has no MLP" and layer.block not in seen:
                seen.add(layer.block)
                yield layer


def gated(module: nn.Module, layer: Layer) -> bool:
    """Whether the MLP multiplies its activation by a second projection: two matrices read, or one twice as wide."""
    port = layer.ports.get("neurons")
    if port is None:
        return False
    down = module.get_submodule(port.module)
    parent = module.get_submodule(port.module.rpartition(".")[0])
    inner = _width(down)[0]
    readers = [c for c in parent.children() if c is not down and getattr(c, "weight", None) is not None and _width(c)]
    wide = sum(_width(c)[1] for c in readers if _width(c)[1] in (inner, 2 * inner))
    return wide >= 2 * inner


def _width(matrix: nn.Module) -> tuple[int, int]:
    """What a matrix reads and makes."""
    if hasattr(matrix, "in_features"):
        return int(matrix.in_features), int(matrix.out_features)  # type: ignore[arg-type]
    weight = matrix.weight
    return (int(weight.shape[0]), int(weight.shape[1])) if weight.ndim == 2 else (0, 0)  # type: ignore[index]


def gated_layers(module: nn.Module, anatomy: Anatomy) -> list[Layer]:
    """The layers whose MLP is gated."""
    return [layer for layer in _with_mlp(anatomy) if gated(module, layer)]


def applicable(module: nn.Module, anatomy: Anatomy, names: Sequence[str]) -> list[str]:
    """Those rules that have something to act on in this model."""
    has = {
        "ln": next(norms(module), None) is not None,
        "identity": next(_with_mlp(anatomy), None) is not None,
        "half": bool(gated_layers(module, anatomy)),
        "gate": bool(gated_layers(module, anatomy)),
    }
    return [name for name in names if has.get(name, True)]
