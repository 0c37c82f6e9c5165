"""How much each text of a corpus needs certain heads: scores, the ranking they give, and what random heads say."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from interp.results.figures.figure import Figure
from interp.results.figures.marks import Lines, Trace
from interp.results.saved import Saved
from interp.saving import renamed


@dataclass(frozen=True, eq=False)
class Influence(Saved):
    """Losses per text [text]: bare, with the heads masked, and with sets of random heads masked [draw, text]."""

    STEM = "influence"

    base: Tensor
    """Of the whole model, [text], in nats a token."""
    masked: Tensor
    """With the heads masked, [text]."""
    random: Tensor
    """With each set of random heads masked, [draw, text]."""
    tokens: Tensor
    """How many tokens of the text were read, [text]."""
    cut: Tensor
    """Whether the text was longer than the model reads."""
    heads: tuple[str, ...]
    """The heads that were masked."""
    random_heads: tuple[tuple[str, ...], ...] = ()
    """The heads of each random set."""
    meta: Mapping[str, Any] = field(default_factory=dict)

    @property
    def score(self) -> Tensor:
        """(masked - base) / base for each text; NaN where there is no loss, or none to lose."""
        return _relative(self.masked, self.base)

    @property
    def random_score(self) -> Tensor:
        """The same of random heads, averaged over draws."""
        return _relative(self.random, self.base).mean(0)

    @property
    def agreement(self) -> float:
        """Spearman's correlation of the score with that of random heads: near 1, the ranking is not about the heads."""
        found = self.to_frame()[["estimate", "random"]].rank()
        return float(found["estimate"].corr(found["random"]))

    def to_frame(self) -> Any:
        """One row a text, in the order of the corpus: tokens, cut, both losses, estimate (the score), random."""
        import pandas

        lone = torch.full_like(self.base, torch.nan)
        return pandas.DataFrame(
            {"text": range(len(self.base)), "tokens": self.tokens, "cut": self.cut, "base": self.base,
             "masked": self.masked, "estimate": self.score,
             "random": self.random_score if len(self.random) else lone}
        )  # fmt: skip

    def top(self, n: int | None = None, *, share: float = 0.2) -> Any:
        """The n texts with the highest scores, or that share of the corpus (the paper's is 20%)."""
        ranked = self.to_frame().sort_values("estimate", ascending=False, kind="stable")
        return ranked.head(round(share * len(ranked)) if n is None else n)

    def ranking(self, path: str | Path) -> Path:
        """Write JSONL, highest first: `{"text": its number in the corpus, "score": ..., "tokens": ...}`."""
        file = Path(path)
        file.parent.mkdir(parents=True, exist_ok=True)
        lines = []
        for row in self.top(len(self.base)).itertuples():
            score = float(row.estimate)
            kept = {"text": int(row.text), "score": score if score == score else None, "tokens": int(row.tokens)}
            lines.append(json.dumps(kept) + "\n")
        renamed(file, "".join(lines).encode())
        return file

    def _figure(self) -> Figure:
        """Each text's score against that of random heads."""
        frame = self.to_frame()
        names = [str(one) for one in frame["text"]]
        dots = Trace("texts", frame["random"].tolist(), frame["estimate"].tolist(), kind="points", labels=names)
        return Figure([Lines([dots], x="score of random heads", y="score of these heads", square=True)])

    def __repr__(self) -> str:
        score, short = self.score, int((self.tokens < 2).sum())
        notes = [f"{int(self.cut.sum())} cut"] * bool(self.cut.any()) + [f"{short} without a loss"] * bool(short)
        beside = f", random heads {float(self.random_score.nanmean()):+.3g}" if len(self.random) else ""
        said = f" ({', '.join(notes)})" if notes else ""
        mean = f"mean score {float(score.nanmean()):+.3g}{beside}"
        return f"Influence of {len(self.heads)} heads on {len(score)} texts{said}: {mean}"


def _relative(masked: Tensor, base: Tensor) -> Tensor:
    return torch.where(base > 0, (masked - base) / base, torch.nan)
