"""What lenses have in common: places that one reads, the words a place says, and the result that holds them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from interp.finite import finite
from interp.hooks.drive.sweep import Reads
from interp.hooks.drive.tail import Tail
from interp.hooks.errors import InputsError, SiteError
from interp.hooks.inputs.inputs import Inputs, Positions
from interp.hooks.run.tape import Tape, tower_inputs
from interp.hooks.sites import Site, parse
from interp.hooks.stand.ports import head_results
from interp.metrics.judge import answer_ids
from interp.results.figures.figure import Figure
from interp.results.figures.marks import Heatmap
from interp.results.saved import Saved

if TYPE_CHECKING:
    from interp.hooks.anatomy.towers import Tower
    from interp.model import Model

PARTS = ("result", "attn_out", "mlp_out", "attn_write", "mlp_write")
WIDE = ("embed", "resid_pre", "resid_mid", "resid_mid2", "resid_post", "attn_out", "attn_write", "mlp_out", "mlp_write")
Said = tuple[Tensor, Tensor, Tensor | None, Tensor | None]


@dataclass(frozen=True, eq=False)
class Lens(Saved):
    """What each place says [place, example, read], and what of it the answer is."""

    STEM, ABOUT, TABLE = "lens", "run.json", None

    sites: tuple[str, ...]
    """The place of each row."""
    positions: Tensor
    """Columns that were read [example, read]; 0 for class logits."""
    top: Tensor
    """The ids with the largest logits [place, example, read, k]."""
    top_logprobs: Tensor
    """Their log-probabilities [place, example, read, k]."""
    logprob: Tensor | None
    """Of the answer, where one was given (the best of several)."""
    rank: Tensor | None
    """How many words have a larger logit than the answer [place, example, read]."""
    names: Mapping[int, str] = field(default_factory=dict)
    """The text of each id that occurs in the result."""
    meta: Mapping[str, Any] = field(default_factory=dict)
    """How it was computed, by name: method, metric, model, settings."""

    def to_frame(self) -> Any:
        """One row per place, example and position read: the first tokens, the answer's log-probability and rank."""
        import pandas

        rows = []
        for n, site in enumerate(self.sites):
            where = parse(site)
            for b, at in ((b, at) for b in range(self.top.shape[1]) for at in range(self.top.shape[2])):
                said = [self.names.get(i, str(i)) for i in self.top[n, b, at].tolist()]
                row: dict[str, Any] = {
                    "site": site,
                    "layer": None if where.layers is None else int(where.layers),
                    "head": None if where.heads is None else int(where.heads),
                    "example": b,
                    "position": int(self.positions[b, at]),
                    "top": said,
                }
                if self.logprob is not None and self.rank is not None:
                    row |= {"logprob": float(self.logprob[n, b, at]), "rank": int(self.rank[n, b, at])}
                rows.append(row)
        return pandas.DataFrame(rows)

    def _figure(self) -> Figure:
        """The answer's log-probability, averaged over examples: places by positions read."""
        if self.logprob is None:
            raise InputsError("this lens has no answer to plot: call lens with answers=.")
        values = self.logprob.mean(1).numpy()
        columns = [str(n) for n in self.positions[0].tolist()] if len(self.positions) == 1 else ()
        grid = Heatmap(values, self.sites, columns, x="position read", y="place", name="log p", scale="signed")
        return Figure([grid])

    @classmethod
    def restored(cls, facts: dict[str, Any], tensors: dict[str, Tensor]) -> Lens:
        """There need not be an answer; tokens are numbers again."""
        names = {int(i): name for i, name in facts["names"].items()}
        return super().restored({"logprob": None, "rank": None, **facts, "names": names}, tensors)

    def __repr__(self) -> str:
        says = ", ".join(self.names.get(int(i), str(int(i))) for i in self.top[-1, 0, -1])
        return f"Lens at {len(self.sites)} places on {self.top.shape[1]} examples; {self.sites[-1]} says {says}"


def places_of(model: Model, tower: Tower, spelled: list[str]) -> list[Site]:
    found: list[Site] = []
    for text in spelled:
        for site in model.anatomy.sites(text):
            if site.component not in (*WIDE, "result"):
                raise SiteError(f"{text!r} is not of the residual's width: a lens reads {', '.join(WIDE)} and result.")
            if model.anatomy.tower(site.tower, text=text) is not tower:
                raise SiteError(f"{text!r}: a lens reads the tower {tower.name!r}, whose end the logits are made from.")
            heads = None if site.component != "result" else site.heads or range(model.anatomy.layer(site).heads)
            found += [site] if heads is None else [Site(site.tower, site.layer, "result", (h,)) for h in heads]
    if not found:
        raise SiteError("no sites were selected: name at least one, such as sites='L*.resid_post'.")
    return list(dict.fromkeys(found))


def columns_of(x: Inputs, logits: Tensor, positions: Positions, tower: Tower) -> Tensor:
    if logits.ndim == 2:
        return torch.zeros(len(logits), 1, dtype=torch.long)
    mask = tower_inputs(x, Site(tower.name, None, "embed")).mask(positions).cpu()
    counts = mask.sum(1)
    if bool((counts != counts[0]).any()):
        raise InputsError(f"rows select different numbers of positions ({counts.tolist()}); select equally many.")
    return mask.nonzero()[:, 1].reshape(len(mask), -1)


def wanted_of(model: Model, answers: Any, rows: int) -> list[tuple[int, ...]]:
    wanted = list(answer_ids(model, answers))
    if len(wanted) != rows or not all(wanted):
        raise InputsError(f"answers needs at least one token for each of the {rows} rows, got {len(wanted)} rows.")
    return wanted


def vectors_of(model: Model, tape: Tape, places: list[Site]) -> Iterator[Tensor]:
    """Each place's vectors [b, position, d], one at a time."""
    for site in places:
        if site.component != "result":
            yield tape[site]
            continue
        assert site.heads is not None
        out = model.anatomy.layer(site).out
        if out is None:
            raise SiteError(f"{site}: the output projection of this layer was not found.")
        z = tape[Site(site.tower, site.layer, "z")]
        with torch.no_grad():
            yield head_results(model.module.get_submodule(out), z, site.heads)[:, :, 0]


@dataclass(frozen=True, eq=False)
class LensReader:
    """What a lens asks at every place of one run: where, which answers, and how many words."""

    tail: Tail
    reads: Reads
    wanted: list[tuple[int, ...]] | None
    top: int

    @classmethod
    def of(
        cls,
        model: Model,
        x: Inputs,
        tape: Tape,
        end: Site,
        tower: Tower,
        *,
        positions: Positions,
        answers: Any,
        top: int,
    ) -> LensReader:
        """From a run that recorded `end`, the residual that its logits were made from."""
        logits = tape["logits"]
        reads = Reads(columns_of(x, logits, positions, tower), None)
        wanted = None if answers is None else wanted_of(model, answers, len(logits))
        if not 1 <= top <= logits.shape[-1]:
            raise InputsError(f"top is 1 to {logits.shape[-1]} tokens, got {top}.")
        tail = Tail(model.module, tower, model.called_with(x.kwargs), left=tape[end], logits=logits)
        return cls(tail, reads, wanted, top)

    def lens(self, model: Model, sites: Sequence[str], normed: Iterable[Tensor], meta: Mapping[str, Any]) -> Lens:
        """What the vectors of each place, behind the norm, say."""
        with torch.no_grad():
            best, logprobs, chance, rank = zip(*map(self._said, normed), strict=True)
        ids, asked = torch.stack(best), self.wanted is not None
        return Lens(
            tuple(sites), self.reads.positions, ids, finite(torch.stack(logprobs), "log-probabilities"),
            torch.stack(chance) if asked else None, torch.stack(rank) if asked else None, names_of(model, ids), meta,
        )  # fmt: skip

    def _said(self, normed: Tensor) -> Said:
        logprobs = self.tail.logits(normed, self.reads).float().log_softmax(-1)
        best = logprobs.topk(self.top, -1)
        if self.wanted is None:
            return best.indices.cpu(), best.values.cpu(), None, None
        each = torch.stack([row[:, list(ids)].amax(-1) for row, ids in zip(logprobs, self.wanted, strict=True)])
        rank = (logprobs > each[..., None]).sum(-1)
        return best.indices.cpu(), best.values.cpu(), each.cpu(), rank.cpu()


def names_of(model: Model, ids: Tensor) -> dict[int, str]:
    """How the tokens or classes that were said are spelled."""
    known = [int(i) for i in torch.unique(ids)]
    if hasattr(model.tokenizer, "convert_ids_to_tokens"):
        return {i: str(model.tokenizer.decode([i])) for i in known}
    labels = getattr(model.config, "id2label", None) or {}
    return {i: str(labels[i]) for i in known if i in labels}
