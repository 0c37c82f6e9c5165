"""What the weights of heads say: copying, tokens promoted and suppressed, composition; as tables, maps, files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from interp.kernels.errors import InterpError
from interp.results.figures.figure import Figure
from interp.results.figures.marks import Bars, Heatmap, Series
from interp.results.heads_table import HeadResult, HeadTable

VOCABULARY, RESIDUAL = "copying eigenvalues (vocabulary)", "copying eigenvalues (residual)"
ROOMS = ("scores", "eigenvalues", "pairs", "composition", "baseline")
"""The fields that hold tensors by name."""


@dataclass(frozen=True, eq=False)
class HeadCircuits(HeadResult):
    """`scores[method]` [head]; `composition[side]` [sender, receiver], 0 where the sender is not earlier."""

    STEM = "circuits"

    sites: tuple[str, ...]
    scores: Mapping[str, Tensor]
    """By score: [head]."""
    eigenvalues: Mapping[str, Tensor]
    """By method, complex [head, d_head]."""
    pairs: Mapping[str, Tensor] = field(default_factory=dict)
    """"promoted" and "suppressed": (source id, target id, value) [head, rank, 3]."""
    own: Tensor | None = None
    """Per head, the share of words that raise themselves most."""
    composition: Mapping[str, Tensor] = field(default_factory=dict)
    """By side ("q", "k", "v"): [sender, receiver]; 0 where the sender is not earlier."""
    baseline: Mapping[str, Tensor] = field(default_factory=dict)
    """By side the mean of random matrices of the same shapes [sender, receiver]."""
    names: Mapping[int, str] = field(default_factory=dict)
    """The text of each id that occurs in the result."""
    left_out: Mapping[str, str] = field(default_factory=dict)
    """What has no meaning in this model, and why."""
    meta: Mapping[str, Any] = field(default_factory=dict)
    """How it was computed, by name: method, metric, model, settings."""

    def tables(self) -> list[HeadTable]:
        """One a score. Weights have no examples, so n is 0 and the interval is the value."""
        scores = dict(self.scores) | ({} if self.own is None else {"raises itself most": self.own})
        return [
            HeadTable(self.sites, value[:, None], name, estimate=value, ends=(value, value), n=0)
            for name, value in scores.items()
        ]

    def tokens(self, site: str | None = None) -> Any:
        """What a head promotes and suppresses most: source token, target token, logit less the mean over the
        vocabulary."""
        import pandas

        if not self.pairs:
            why = self.left_out.get("tokens", "ask for them with top=10")
            raise InterpError(f"the tokens of these heads were not looked up: {why}.")
        chosen = range(len(self.sites)) if site is None else [self._index(site)]
        rows = [
            {"site": self.sites[n], "sign": sign, "source": self._name(source), "target": self._name(target),
             "logit": value}
            for n in chosen for sign, found in self.pairs.items() for source, target, value in found[n].tolist()
        ]  # fmt: skip
        return pandas.DataFrame(rows)

    def _index(self, site: str) -> int:
        if site not in self.sites:
            raise InterpError(f"no weights of {site!r}; there are those of {', '.join(self.sites)}.")
        return self.sites.index(site)

    def _name(self, token: float) -> str:
        return self.names.get(int(token), str(int(token)))

    def pairings(self, n: int = 20) -> Any:
        """The pairs of heads that compose most beyond random matrices: sender, receiver, side, score, baseline,
        excess."""
        import pandas

        if not self.composition:
            raise InterpError(f"no composition scores: {self.left_out.get('composition', 'ask for several layers')}.")
        rows = [
            {"sender": self.sites[a], "receiver": self.sites[b], "side": side, "score": float(values[a, b]),
             "baseline": float(self.baseline[side][a, b]), "excess": float(values[a, b] - self.baseline[side][a, b])}
            for side, values in self.composition.items() for a, b in values.nonzero().tolist()
        ]  # fmt: skip
        frame = pandas.DataFrame(rows, columns=["sender", "receiver", "side", "score", "baseline", "excess"])
        return frame.sort_values("excess", ascending=False, kind="stable", ignore_index=True).head(n)

    def _figure(self, side: str | None = None) -> Figure:
        """The scores as bars, or one side's composition beyond random matrices as a map of senders by receivers."""
        if side is None:
            series = [Series(name, values.tolist()) for name, values in self.scores.items()]
            return Figure([Bars(self.sites, series, y="copying score", limits=(-1, 1))])
        if side not in self.composition:
            raise InterpError(f"no composition by {side!r}; there is {', '.join(self.composition) or 'none'}.")
        values = (self.composition[side] - self.baseline[side]).where(self.composition[side] != 0, torch.nan)
        return Figure([Heatmap(values.numpy(), self.sites, self.sites, x="receiver", y="sender", name="beyond random")])

    def tensors(self) -> dict[str, Tensor]:
        """By room and name; complex numbers as pairs."""
        found = {f"{room}/{name}": _plain(value) for room in ROOMS for name, value in getattr(self, room).items()}
        return found | super().tensors()

    def facts(self) -> dict[str, Any]:
        """With the order of what is in each room."""
        return {**super().facts(), "order": {room: list(getattr(self, room)) for room in ROOMS}}

    @classmethod
    def restored(cls, facts: dict[str, Any], tensors: dict[str, Tensor]) -> HeadCircuits:
        """Tensors by room again."""
        held = {room: {name: tensors[f"{room}/{name}"] for name in facts["order"][room]} for room in ROOMS}
        held["eigenvalues"] = {name: torch.view_as_complex(value) for name, value in held["eigenvalues"].items()}
        known = {int(i): name for i, name in facts["names"].items()}
        return super().restored({**facts, **held, "names": known, "own": tensors.get("own")}, {})

    def __repr__(self) -> str:
        name, values = next(iter(self.scores.items()))
        best, worst = int(values.argmax()), int(values.argmin())
        return (
            f"HeadCircuits of {len(self.sites)} heads: {name} highest {self.sites[best]} {float(values[best]):+.2f},"
            f" lowest {self.sites[worst]} {float(values[worst]):+.2f}"
        )


def _plain(value: Tensor) -> Tensor:
    return torch.view_as_real(value) if value.is_complex() else value
