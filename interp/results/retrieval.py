"""How much each head retrieves: scores per head and needle, with intervals, curves, and the published files."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from interp.hooks.head_names import head_place
from interp.kernels.errors import InterpError
from interp.results.figures.figure import Figure
from interp.results.figures.marks import Heatmap
from interp.results.heads_table import HeadResult, HeadTable
from interp.results.intervals import mean_interval
from interp.saving import renamed

Mode = Literal["event", "set", "r2", "query"]
CONVENTION = 0.1
"""What Wu et al. call a retrieval head: a convention, not a finding; `curve()` shows what other thresholds give."""


@dataclass(frozen=True, eq=False)
class RetrievalHeads(HeadResult):
    """`scores` [head, needle]: how much of each needle's answer a head copied, or what else `mode` says of it."""

    STEM, TITLE = "retrieval", "retrieval score"

    sites: tuple[str, ...]
    """The head of each row, such as "L5.H3"."""
    scores: Tensor
    """[head, needle]."""
    kept: Tensor
    """[needle]: the model answers, so that the needle counts; the others are left out of every mean."""
    recall: Tensor
    """[needle]: the share of the answer that the model says."""
    mode: Mode | None
    """How the scores were computed, as in `mode=`."""
    cells: tuple[Mapping[str, Any], ...] = ()
    """What is known about each needle, such as length and depth."""
    meta: Mapping[str, Any] = field(default_factory=dict)
    """How it was computed, by name: method, metric, model, settings."""

    @property
    def counted(self) -> Tensor:
        """The scores [head, needle] of the needles that count."""
        return self.scores[:, self.kept]

    @property
    def mean(self) -> Tensor:
        """The retrieval score of each head: the mean over needles."""
        return self.counted.mean(1)

    @property
    def frequency(self) -> Tensor:
        """The share of needles of which the head copied at least one token; far above the mean, it depends on the
        text."""
        return (self.counted > 0).double().mean(1)

    def interval(self, level: float = 0.95, *, draws: int = 1000, seed: int = 0) -> tuple[Tensor, Tensor]:
        """Bootstrap interval of each head's score over needles."""
        return mean_interval(self.counted, level, draws=draws, seed=seed)

    def tables(self) -> tuple[HeadTable, ...]:
        """The scores over the needles that count, and how often a head copied anything."""
        method = f"retrieval:{self.mode}" if self.mode else "retrieval"
        towers = tuple(head_place(site).tower or "text" for site in self.sites)
        return (HeadTable(self.sites, self.counted, method, towers, more={"frequency": self.frequency}),)

    def curve(self, thresholds: Sequence[float] | None = None) -> Any:
        """How many heads, and what share of them, score at least each threshold (0.05 to 1 unless given)."""
        import pandas

        at = [n / 20 for n in range(1, 21)] if thresholds is None else list(thresholds)
        heads = [int((self.mean >= one).sum()) for one in at]
        return pandas.DataFrame({"threshold": at, "heads": heads, "share": [n / len(self.sites) for n in heads]})

    def grid(self, site: str | None = None) -> Any:
        """Lengths x depths (xarray): a head's score there, or without a site the model's own recall of all needles."""
        import pandas

        if site is not None and site not in self.sites:
            raise InterpError(f"no scores of {site!r}; there are those of {', '.join(self.sites)}.")
        if not self.cells or not all({"length", "depth"} <= set(cell) for cell in self.cells):
            raise InterpError("length and depth of these needles are not known; interp.tasks.needle knows them.")
        values = self.recall if site is None else self.scores[self.sites.index(site)].where(self.kept, torch.nan)
        table = {name: [cell[name] for cell in self.cells] for name in ("length", "depth")}
        return pandas.DataFrame({**table, "score": values}).groupby(["length", "depth"])["score"].mean().to_xarray()

    def _figure(self, *, by: Literal["head", "length"] = "head", site: str | None = None) -> Figure:
        """Scores as a map of layers x heads, or (`by="length"`) a head's score at each length and depth, the model's
        recall where no head is named."""
        if by == "head":
            return self._map()
        if by != "length":
            raise InterpError(f"by is 'head' or 'length', got {by!r}.")
        table = self.grid(site).transpose("depth", "length")
        rows, columns = [f"{value:g}" for value in table["depth"].values], [f"{v:g}" for v in table["length"].values]
        name = "recall" if site is None else f"score of {site}"
        return Figure([Heatmap(table.values, rows, columns, x="length in tokens", y="depth", name=name, scale="size",
                            bound=1.0)])  # fmt: skip

    def save_json(self, path: str | Path) -> Path:
        """Write the needles that count in the published form: `{"layer-head": [score, ...]}` on one line as
        Retrieval_Head does, and `[["layer-head", score], ...]`, highest first, where the mode is "query" (QRHead)."""
        file = Path(path)
        file.parent.mkdir(parents=True, exist_ok=True)
        places = [head_place(site) for site in self.sites]
        found = {f"{p.layer}-{p.head}": row for p, row in zip(places, self.counted.tolist(), strict=True)}
        ranked = sorted(zip(found, self.mean.tolist(), strict=True), key=lambda pair: -pair[1])
        renamed(file, (json.dumps(ranked if self.mode == "query" else found) + "\n").encode())
        return file

    def __repr__(self) -> str:
        best, above = int(self.mean.argmax()), int((self.mean >= CONVENTION).sum())
        named = (
            f"; {above} at {CONVENTION} or more, which is a convention" if self.mode in (None, "event", "set") else ""
        )
        return (
            f"RetrievalHeads of {len(self.sites)} heads on {int(self.kept.sum())} of {len(self.kept)} needles; highest"
            f" {self.sites[best]} {float(self.mean[best]):.3g}{named}"
        )
