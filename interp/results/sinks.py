"""Where heads rest and which tokens are large: values per head, token and layer, as tables, a map and files."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from interp.hooks.errors import InputsError
from interp.hooks.head_names import head_place, layer_number
from interp.hooks.sites import pass_of
from interp.results.heads_table import HeadResult, HeadTable, largest, of_method
from interp.results.intervals import mean_interval

EPSILON = 0.3
"""What Gu et al. call a sink: a convention for 64 tokens, not a finding."""
RANKED = ("estimate", "share", "first_mass", "learned", "later")


@dataclass(frozen=True, eq=False)
class Sinks(HeadResult):
    """Sink strength per head and example, token norms and the largest activations per layer."""

    STEM, TITLE = "sinks", "weight on the first token"

    sites: tuple[str, ...]
    """The head of each row, such as "L5.H3"."""
    first: Tensor
    """alpha_1 [head, example]: mean weight on the first real token over the rows that see it."""
    first_mass: Tensor
    """The same over all real rows; smaller where a window has lost the first token."""
    learned: Tensor
    """Mean probability of a learned sink [head, example]; 0 in models without one."""
    received: Tensor
    """alpha_k [head, example, key]; 0 for padding and for keys that fewer than `least` rows see."""
    start: Tensor
    """The column of each example's first real token."""
    kind: Tensor
    """What each token is [example, position], as an index into `kinds`; -1 for padding."""
    kinds: tuple[str, ...]
    """The names of the kinds of tokens."""
    norms: Mapping[str, Tensor] = field(default_factory=dict)
    """By residual site: each token's Euclidean norm [example, position]; 0 for padding."""
    activations: Mapping[str, tuple[Tensor, Tensor, Tensor]] = field(default_factory=dict)
    """By residual site: largest magnitudes [example, position, k], their dimensions, and the median per example."""
    meta: Mapping[str, Any] = field(default_factory=dict)
    """How it was computed, by name: method, metric, model, settings."""

    def metric(self, epsilon: float = EPSILON) -> float:
        """Gu et al.: the share of heads with alpha_1 > epsilon, judged per example and averaged."""
        return float((self.first > epsilon).double().mean())

    def interval(self, level: float = 0.95, *, draws: int = 1000, seed: int = 0) -> tuple[Tensor, Tensor]:
        """Bootstrap interval of each head's alpha_1 over examples."""
        return mean_interval(self.first, level, draws=draws, seed=seed)

    def mask(self, epsilon: float = EPSILON) -> Tensor:
        """Bool [head, example, key]: the tokens each head rests on, alpha_k > epsilon, the first one and later ones."""
        first = self.start[None, :, None] == torch.arange(self.received.shape[2])
        return torch.where(first, self.first[..., None] > epsilon, self.received > epsilon)

    def later(self, epsilon: float = EPSILON) -> Any:
        """One row per head, example and key after the first with alpha_k > epsilon, strongest first."""
        import pandas

        other = self._others()
        rows = [
            {"site": self.sites[n], "example": b, "position": k, "received": float(other[n, b, k])}
            for n, b, k in (other > epsilon).nonzero().tolist()
        ]
        frame = pandas.DataFrame(rows, columns=["site", "example", "position", "received"])
        return frame.sort_values("received", ascending=False, kind="stable", ignore_index=True)

    def _others(self) -> Tensor:
        first = self.start[None, :, None].expand(len(self.sites), -1, 1)
        return self.received.scatter(2, first, 0.0)

    def massive(self, *, magnitude: float = 100.0, times: float = 1000.0) -> Any:
        """One row per activation above `magnitude` and above `times` the layer's median: where, which dimension."""
        import pandas

        rows = []
        for site, (top, dims, median) in self.activations.items():
            bound = (times * median).clamp(min=magnitude)[:, None, None]
            for b, s, k in (top > bound).nonzero().tolist():
                value = float(top[b, s, k])
                rows.append((site, b, s, int(dims[b, s, k]), value, value / max(float(median[b]), 1e-30)))
        return pandas.DataFrame(rows, columns=["site", "example", "position", "dim", "magnitude", "times_median"])

    def outliers(self, *, fence: float = 3.0, times: float = 2.0) -> Any:
        """One row per token whose norm is extreme in its layer, the largest first.

        The bound is each layer's own: Tukey's outer fence, `fence` quartile distances above the upper quartile, over
        the logarithms of the norms of its words or patches, and at least `times` their median. `received` is alpha_k in
        the layer that reads the token there, averaged over heads, times the number of keys: 1 is an even share.
        """
        import pandas

        rows = []
        for site, norms in self.norms.items():
            bound, median = self._bound(norms, fence, times)
            drawn = self._drawn(self._after(site))
            for b, s in ((norms > bound) & (self.kind >= 0)).nonzero().tolist():
                value, got = float(norms[b, s]), math.nan if drawn is None else float(drawn[b, s])
                rows.append((site, b, s, self.kinds[int(self.kind[b, s])], value, value / median, got))
        columns = ["site", "example", "position", "kind", "norm", "times_median", "received"]
        return pandas.DataFrame(rows, columns=columns).sort_values("norm", ascending=False, ignore_index=True)

    def _bound(self, norms: Tensor, fence: float, times: float) -> tuple[float, float]:
        plain = [n for n, name in enumerate(self.kinds) if name not in ("cls", "register", "special", "bos")]
        found = norms[torch.isin(self.kind, torch.tensor(plain))].double().clamp(min=1e-30).log()
        if not len(found):
            raise InputsError(f"these inputs have no words and no patches to compare with: {', '.join(self.kinds)}.")
        low, middle, high = found.quantile(torch.tensor([0.25, 0.5, 0.75], dtype=torch.double)).tolist()
        median = math.exp(middle)
        return max(math.exp(high + fence * (high - low)), times * median), median

    def _after(self, site: str) -> int | None:
        """The layer behind the one whose end this is; where layers have passes, the one that runs next."""
        layer, layers = layer_number(site), [layer_number(one) for one in self.norms]
        if pass_of(layer) is None and all(pass_of(one) is None for one in layers):
            return layer + 1
        return next(iter(layers[layers.index(layer) + 1 :]), None)

    def _drawn(self, layer: int | None) -> Tensor | None:
        at = [n for n, site in enumerate(self.sites) if head_place(site).layer == layer]
        if not at:
            return None
        return self.received[at].mean(0) * (self.kind >= 0).sum(1, keepdim=True)

    def by_kind(self) -> Any:
        """One row per head and kind of token (patch, cls, register, word): the share of all attention it draws, and
        what its number alone would give it."""
        import pandas

        rows, total = [], self.received.sum(2)
        for code, name in enumerate(self.kinds):
            here = (self.kind == code)[None]
            count, real = here.sum(2).double(), (self.kind >= 0).sum(1).double()
            share = ((self.received * here).sum(2) / total.clamp(min=1e-30)).mean(1)
            even = float((count / real).mean())
            rows += [
                (site, name, float(count.mean()), float(s), even) for site, s in zip(self.sites, share, strict=True)
            ]
        return pandas.DataFrame(rows, columns=["site", "kind", "tokens", "share", "even"])

    def to_frame(self, epsilon: float = EPSILON) -> Any:
        """One row per head: alpha_1 averaged over examples (`estimate`) with its interval, the share of examples above
        epsilon, mass over all rows, the learned sink, and the strongest later key."""
        return self._table(epsilon).frame()

    def tables(self) -> tuple[HeadTable, ...]:
        """The one of alpha_1."""
        return (self._table(EPSILON),)

    def _table(self, epsilon: float) -> HeadTable:
        more = {
            "share": (self.first > epsilon).double().mean(1), "first_mass": self.first_mass.mean(1),
            "learned": self.learned.mean(1), "later": self._others().amax(2).mean(1),
        }  # fmt: skip
        return HeadTable(self.sites, self.first, "sink", more=more)

    def top(self, n: int = 10, *, by: str = "estimate", method: str | None = None) -> Any:
        """The n heads with the most of one column of the table."""
        if by not in RANKED:
            raise InputsError(f"heads are ranked by {', '.join(RANKED)}; got by={by!r}.")
        return largest(of_method(self.to_frame(), method), n, column=by, by="high")

    def tensors(self) -> dict[str, Tensor]:
        """Norms and activations by their site."""
        found = super().tensors() | {f"norms {site}": value for site, value in self.norms.items()}
        for site, parts in self.activations.items():
            found |= {f"activations {n} {site}": part for n, part in enumerate(parts)}
        return found

    def facts(self) -> dict[str, Any]:
        """With the layers that have norms."""
        return {**super().facts(), "layers": list(self.norms)}

    @classmethod
    def restored(cls, facts: dict[str, Any], tensors: dict[str, Tensor]) -> Sinks:
        """Norms and activations by site again."""
        own = {name: value for name, value in tensors.items() if " " not in name}
        norms = {site: tensors[f"norms {site}"] for site in facts["layers"]}
        largest_of = {site: tuple(tensors[f"activations {n} {site}"] for n in range(3)) for site in facts["layers"]}
        return super().restored({**facts, "norms": norms, "activations": largest_of}, own)

    def __repr__(self) -> str:
        best = int(self.first.mean(1).argmax())
        return (
            f"Sinks of {len(self.sites)} heads on {self.first.shape[1]} examples; {self.metric():.0%} above {EPSILON};"
            f" strongest {self.sites[best]} {float(self.first[best].mean()):.3f}"
        )
