"""Attribution patching with the gradient of relevance propagation in place of the plain one.

`est = <a(source) - a(base), C>` where C is what reaches a site on a backward pass with other rules at norms,
activations and gated products (`hooks/slopes/rules.py`); the forward pass is the model's own.

    relp      ln, identity, half; the attention rule is off, as in the paper's experiments (arXiv 2508.21258)
    attnlrp   ln, identity, half, uniform (2402.05602, in its gradient-times-input form)
    cp-lrp    ln, identity, gate, attention (Ali et al. 2022, 2202.07304, as the library LXT has it)
    gim       ln, half, tempered (2505.17630)

Rules for gated MLPs are left out where there is none; `rules=` names them oneself, and then each must find something to
act on. On first use of a model the forward pass under the rules is compared with the plain one, bit for bit, and a
gradient that did not change is said so. Cost: two forward passes and one backward. Limits: models whose MLPs hide
their activation (mixtures of experts) are refused, and no set of rules is best for every kind of site: see
`experiments/relp_vs_atp.py`.
LXT's authors state that LRP is patented technology, free for personal and scientific use.
"""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from interp.attribution.pair import Pair, Setting, contributions
from interp.hooks.errors import CheckFailed, ModelError
from interp.hooks.sites import Site
from interp.hooks.slopes.rules import Rules, applicable, gated_layers
from interp.records import Variant, register

SETS: dict[str, tuple[str, ...]] = {
    "relp": ("ln", "identity", "half"),
    "attnlrp": ("ln", "identity", "half", "uniform"),
    "cp-lrp": ("ln", "identity", "gate", "attention"),
    "gim": ("ln", "half", "tempered"),
}
Seen = tuple[tuple[str, ...], tuple[str | None, ...]]
"""Rules, and the towers whose gradients were looked at."""
_CHECKED: weakref.WeakKeyDictionary[nn.Module, set[Seen]] = weakref.WeakKeyDictionary()


def estimate(pair: Pair, names: Sequence[str], *, strict: bool) -> Tensor:
    """[cell, row]; `strict` says that every rule named must act."""
    rules = rules_for(pair, names, strict=strict)
    found = pair.run(rules=rules)
    slopes = found.gradients()
    pair.notes["rules"] = rules.names
    _check(pair, rules, found.logits, slopes)
    return pair.cells(contributions(pair.change(found.values), slopes))


def rules_for(pair: Pair, names: Sequence[str], *, strict: bool) -> Rules:
    """The rules of a set that mean something in this model."""
    module, anatomy = pair.model.module, pair.model.anatomy
    if strict and {"half", "gate"} & set(names) and not gated_layers(module, anatomy):
        raise ModelError(
            f"{type(module).__name__} has no gated MLP, so the half and gate rules cannot act: leave them out of"
            " rules=, or give method= without rules=, which takes the rules that apply."
        )
    found = list(names) if strict else applicable(module, anatomy, names)
    if not found:
        raise ModelError(
            f"{type(module).__name__} has no norm, activation or gated product for the rules {', '.join(names)} to act"
            " on: use method='atp'."
        )
    return Rules(module, anatomy, found)


def _check(pair: Pair, rules: Rules, logits: Tensor, slopes: Mapping[Site, Tensor]) -> None:
    """Until it has been seen once: the forward pass is the plain one bit for bit, and the gradient is another."""
    known = _CHECKED.setdefault(pair.model.module, set())
    asked = tuple(rules.names), tuple(dict.fromkeys(site.tower for site in slopes))
    if asked in known:
        return
    plain = pair.run(first_order=False)
    if not torch.equal(plain.logits, logits):
        gap = float((plain.logits - logits).detach().abs().max())
        raise CheckFailed(
            f"the forward pass under {rules!r} differs from the plain one by {gap:.3g}: a rule changes the forward"
            " pass, and it must not."
        )
    if all(torch.equal(one, slopes[site]) for site, one in plain.gradients().items()):
        pair.notes["gradient"] = "as without rules"
        warnings.warn(
            f"{rules!r} acted, and the gradient at these sites is equal to the plain gradient, bit for bit (linear"
            " norms, ReLU, or a gradient of 0): the result is plain attribution patching.",
            stacklevel=4,
        )
        return
    known.add(asked)


def by(name: str) -> Callable[[Pair, Setting], Tensor]:
    """The estimate of a set of rules, or of those that the caller puts in their place."""

    def run(pair: Pair, setting: Setting) -> Tensor:
        strict = setting.rules is not None
        return estimate(pair, SETS[name] if setting.rules is None else setting.rules, strict=strict)

    return run


CITED = {
    "relp": ("2508.21258", "2310.10348"), "attnlrp": ("2402.05602",), "cp-lrp": ("2202.07304",),
    "gim": ("2505.17630",),
}  # fmt: skip
for _order, _name in enumerate(SETS):
    register(
        Variant(
            "interp.attribute",
            _name,
            number="estimate of patching from one backward pass with relevance rules",
            run=by(_name),
            order=3 + _order,
            passes=lambda t: 3,
            how={"rules": True},
            papers=CITED[_name],
        )
    )
