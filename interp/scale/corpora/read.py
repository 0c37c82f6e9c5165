"""What heads do over a corpus: a number a head and measure, with its interval, and the documents with the largest
values."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from interp.hooks.errors import InputsError
from interp.hooks.head_names import is_head
from interp.hooks.sites import nearest
from interp.kernels.errors import InterpError
from interp.results.heads_table import HeadResult, HeadTable
from interp.results.saved import tupled
from interp.scale.corpora import sketch
from interp.scale.corpora.state import Added

Z = 1.959963984540054
"""Of a normal interval of 95 %."""
PLAIN = ("mean", "least", "most")


@dataclass(frozen=True)
class Reduction:
    """What is kept of each number."""

    names: tuple[str, ...]
    quantiles: tuple[float, ...] = ()
    top: int = 0


def reductions(names: Sequence[str] | str) -> Reduction:
    """ "mean", "least", "most", "quantile:0.5" and "top:10" as what they ask for."""
    given = tuple(dict.fromkeys([names] if isinstance(names, str) else names))
    shares, top = [], 0
    for name in given:
        kind, _, argument = str(name).partition(":")
        if kind == "quantile" and re.fullmatch(r"0?\.\d+|0|1|0\.0|1\.0", argument):
            shares.append(float(argument))
        elif kind == "top" and argument.isdecimal() and int(argument):
            top = max(top, int(argument))
        elif name not in PLAIN:
            raise InputsError(
                f"no reduction {name!r}.{nearest(str(name), PLAIN)} There are {', '.join(PLAIN)}, 'quantile:0.5' with a"
                " share from 0 to 1, and 'top:10'."
            )
    return Reduction(given or ("mean",), tuple(shares), top)


@dataclass(frozen=True, eq=False)
class CorpusHeads(HeadResult):
    """By measure: `mean` over rows and its standard `error` [label], the `count` of documents, the least and most
    document, quantiles over documents [label, share], and the `best` documents [label, n]."""

    STEM = "corpus"
    TITLE = "mean over the corpus"

    labels: Mapping[str, tuple[str, ...]]
    """By measure, what its numbers are of: heads, layers or the model."""
    values: Mapping[str, Tensor]
    """"MEASURE/mean", "MEASURE/error" and so on."""
    counts: Mapping[str, int]
    """How many documents and tokens were measured, and how many texts were cut or too short."""
    quantiles: tuple[float, ...] = ()
    """The shares of documents of which quantiles were taken."""
    documents: Mapping[str, tuple[tuple[tuple[str, str, float], ...], ...]] = field(default_factory=dict)
    """By measure and label, the documents with the largest values: where, how it begins, the value."""
    bad: tuple[tuple[str, str], ...] = ()
    """What could not be read, where and why: the first hundred."""
    meta: Mapping[str, Any] = field(default_factory=dict)
    """How it was computed, by name: method, metric, model, settings."""

    @classmethod
    def of(
        cls, state: Added, labels: Mapping[str, Sequence[str]], kept: Reduction, meta: Mapping[str, Any]
    ) -> CorpusHeads:
        """From what was added up."""
        values: dict[str, Tensor] = {}
        documents = {}
        for name in labels:
            if name not in state.tally.names:
                raise InputsError(
                    "no document of this corpus could be measured: "
                    + ", ".join(f"{n} {k}" for k, n in state.counts.items())
                )
            mean, error = state.tally.mean(name)
            values |= {f"{name}/mean": mean, f"{name}/error": error}
            values |= {f"{name}/{part}": state.tally.part(name, part) for part in ("count", "least", "most")}
            if kept.quantiles:
                counts = state.tally.part(name, "sketch")
                values[f"{name}/quantiles"] = torch.stack([sketch.quantile(counts, q) for q in kept.quantiles], 1)
            if kept.top:
                best, where = state.tally.part(name, "best"), state.tally.part(name, "where")
                documents[name] = tuple(
                    tuple((*state.said[block, n], v) for v, (block, n) in zip(vs, at, strict=True) if block >= 0)
                    for vs, at in zip(best.tolist(), where.tolist(), strict=True)
                )
        named = {name: tuple(every) for name, every in labels.items()}
        return cls(named, values, dict(state.counts), kept.quantiles, documents, state.bad, dict(meta))

    def tensors(self) -> dict[str, Tensor]:
        """The numbers, by name."""
        return dict(self.values)

    def facts(self) -> dict[str, Any]:
        """All else."""
        return {name: getattr(self, name) for name in ("labels", "counts", "quantiles", "documents", "bad", "meta")}

    @classmethod
    def restored(cls, facts: dict[str, Any], tensors: dict[str, Tensor]) -> CorpusHeads:
        """From what `tensors` and `facts` gave."""
        labels, documents = ({n: tupled(v) for n, v in facts[which].items()} for which in ("labels", "documents"))
        return cls(
            labels, tensors, facts["counts"], tupled(facts["quantiles"]), documents, tupled(facts["bad"]), facts["meta"]
        )

    @property
    def sites(self) -> tuple[str, ...]:  # type: ignore[override]
        """The labels of the first measure."""
        return next(iter(self.labels.values()))

    @property
    def measures(self) -> tuple[str, ...]:
        """What was measured."""
        return tuple(self.labels)

    def __getitem__(self, name: str) -> Tensor:
        """The mean of one measure [label]."""
        return self._part(name, "mean")

    def _part(self, name: str, part: str) -> Tensor:
        if name not in self.labels:
            raise InterpError(
                f"no measure {name!r}.{nearest(name, self.measures)} There are {', '.join(self.measures)}."
            )
        return self.values[f"{name}/{part}"]

    def examples(self, name: str, label: str) -> tuple[tuple[str, str, float], ...]:
        """The documents with the largest values of a head: where each is, how it begins, the value."""
        self._part(name, "mean")
        if name not in self.documents:
            raise InterpError("no documents were kept: ask for reduce=['mean', 'top:10'].")
        if label not in self.labels[name]:
            raise InterpError(f"no {label!r} here.{nearest(label, self.labels[name])}")
        return self.documents[name][self.labels[name].index(label)]

    def tables(self) -> list[HeadTable]:
        """The table of each measure whose numbers are of heads."""
        return [self._table(name) for name, labels in self.labels.items() if all(map(is_head, labels))]

    def _table(self, name: str) -> HeadTable:
        mean, error = self._part(name, "mean"), self._part(name, "error")
        more: dict[str, Any] = {part: self._part(name, part).tolist() for part in ("least", "most")}
        if self.quantiles:
            shares = self._part(name, "quantiles")
            more |= {f"quantile {share:g}": shares[:, n].tolist() for n, share in enumerate(self.quantiles)}
        return HeadTable(self.labels[name], mean[:, None], name, estimate=mean,
                         ends=(mean - Z * error, mean + Z * error), n=self._part(name, "count"), more=more)  # fmt: skip

    def __repr__(self) -> str:
        c = self.counts
        notes = [
            f"{c[name]:,} {said}"
            for name, said in (("cut", "cut"), ("short", "too short"), ("bad", "not read"))
            if c[name]
        ]
        best = [f"{name} {self._most(name)}" for name in self.measures]
        more = f" ({', '.join(notes)})" if notes else ""
        return f"CorpusHeads of {c['documents']:,} documents, {c['tokens']:,} tokens{more}: {'; '.join(best)}"

    def _most(self, name: str) -> str:
        mean = self[name]
        at = int(mean.nan_to_num(-torch.inf).argmax())
        return f"{self.labels[name][at]} {float(mean[at]):.3g}"
