"""The logit lens: what the model would say if it stopped at a layer, or if a head alone spoke.

nostalgebraist 2020: an intermediate residual goes through the final norm and the head. `norm="final"` is the model's
norm with the vector's own statistics; `"frozen"` holds the scale of this run's last residual, and leaves the norm's
shift out of what heads, attention and MLPs add, which makes their lenses shares of the answer; `"none"` leaves the norm
out. Per place and position come the top tokens, and of an answer
its log-probability and rank (0 is first). Cost: one forward pass, then the head's matrix product per place and position
asked for; only one place's logits are in memory at a time. Limits: early layers may write in another basis than the
last (a tuned lens is not fitted here); lenses of heads are not effects.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from interp.finite import finite
from interp.hooks.drive.sweep import Reads
from interp.hooks.drive.tail import How, Tail, last_tower
from interp.hooks.errors import InputsError, SiteError
from interp.hooks.inputs.inputs import Inputs, Positions
from interp.hooks.run.tape import Tape, tower_inputs
from interp.hooks.sites import Site, parse
from interp.hooks.stand.ports import head_results
from interp.metrics.judge import answer_ids
from interp.records import Method, register
from interp.results.saved import Saved

if TYPE_CHECKING:
    from interp.hooks.anatomy.towers import Tower
    from interp.model import Model

PARTS = ("result", "attn_out", "mlp_out", "attn_write", "mlp_write")
WIDE = ("embed", "resid_pre", "resid_mid", "resid_mid2", "resid_post", "attn_out", "attn_write", "mlp_out", "mlp_write")


@dataclass(frozen=True, eq=False)
class Lens(Saved):
    """What each place says [place, example, read], and what of it the answer is."""

    STEM, ABOUT, TABLE = "lens", "run.json", None

    sites: tuple[str, ...]
    positions: Tensor
    """Columns that were read [example, read]; 0 for class logits."""
    top: Tensor
    """The ids with the largest logits [place, example, read, k]."""
    top_logprobs: Tensor
    logprob: Tensor | None
    """Of the answer, where one was given (the best of several)."""
    rank: Tensor | None
    names: Mapping[int, str] = field(default_factory=dict)
    meta: Mapping[str, Any] = field(default_factory=dict)

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

    def plot(self) -> Any:
        """The answer's log-probability, averaged over examples: places by positions read (plotly)."""
        if self.logprob is None:
            raise InputsError("this lens has no answer to plot: call lens with answers=.")
        import plotly.graph_objects as go

        figure = go.Figure(go.Heatmap(z=self.logprob.mean(1).numpy(), y=list(self.sites), colorbar_title="log p"))
        return figure.update_layout(xaxis_title="position read", yaxis_title="place")

    @classmethod
    def restored(cls, facts: dict[str, Any], tensors: dict[str, Tensor]) -> Lens:
        """There need not be an answer; tokens are numbers again."""
        names = {int(i): name for i, name in facts["names"].items()}
        return super().restored({"logprob": None, "rank": None, **facts, "names": names}, tensors)

    def __repr__(self) -> str:
        says = ", ".join(self.names.get(int(i), str(int(i))) for i in self.top[-1, 0, -1])
        return f"Lens at {len(self.sites)} places on {self.top.shape[1]} examples; {self.sites[-1]} says {says}"


def lens(
    model: Model,
    inputs: Any,
    *,
    sites: str | Iterable[str] = "L*.resid_post",
    positions: Positions = "last",
    answers: Any = None,
    norm: How = "final",
    top: int = 5,
) -> Lens:
    """The lens at residuals, writes (`L*.attn_out`, `L*.mlp_out`) or heads (`L*.H*.result`) of the last tower."""
    if norm not in ("final", "frozen", "none"):
        raise InputsError(f"norm is 'final', 'frozen' or 'none', got {norm!r}.")
    anatomy = model.ready()
    x = model.inputs(inputs)
    stack = last_tower(anatomy, None)
    places = _places(model, stack, [sites] if isinstance(sites, str) else list(sites))
    record = [Site(s.tower, s.layer, "z") if s.component == "result" else s for s in places]
    end = Site(places[0].tower, stack.layers[-1].index, "resid_post")
    tape = model.run(x, record=[*dict.fromkeys(site.whole for site in record), end])
    logits = tape["logits"]
    reads = Reads(_columns(x, logits, positions, stack), None)
    wanted = None if answers is None else _answers(model, answers, len(logits))
    if not 1 <= top <= logits.shape[-1]:
        raise InputsError(f"top is 1 to {logits.shape[-1]} tokens, got {top}.")
    tail = Tail(model.module, stack, model.called_with(x.kwargs), left=tape[end], logits=logits)
    vectors = zip(places, _vectors(model, tape, places), strict=True)
    found = [_said(tail, _normed(tail, v, norm, site.component in PARTS), reads, wanted, top) for site, v in vectors]
    best, logprobs, chance, rank = zip(*found, strict=True)
    ids, chances = torch.stack(best), finite(torch.stack(logprobs), "log-probabilities")
    return Lens(
        tuple(map(str, places)), reads.positions, ids, chances,
        None if wanted is None else torch.stack(chance), None if wanted is None else torch.stack(rank),
        _names(model, ids), {**tape.meta, "method": "logit lens", "norm": norm},
    )  # fmt: skip


def _places(model: Model, tower: Tower, spelled: list[str]) -> list[Site]:
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


def _columns(x: Inputs, logits: Tensor, positions: Positions, tower: Tower) -> Tensor:
    if logits.ndim == 2:
        return torch.zeros(len(logits), 1, dtype=torch.long)
    mask = tower_inputs(x, Site(tower.name, None, "embed")).mask(positions).cpu()
    counts = mask.sum(1)
    if bool((counts != counts[0]).any()):
        raise InputsError(f"rows select different numbers of positions ({counts.tolist()}); select equally many.")
    return mask.nonzero()[:, 1].reshape(len(mask), -1)


def _answers(model: Model, answers: Any, rows: int) -> list[tuple[int, ...]]:
    wanted = list(answer_ids(model, answers))
    if len(wanted) != rows or not all(wanted):
        raise InputsError(f"answers needs at least one token for each of the {rows} rows, got {len(wanted)} rows.")
    return wanted


def _vectors(model: Model, tape: Tape, places: list[Site]) -> Iterator[Tensor]:
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


Said = tuple[Tensor, Tensor, Tensor | None, Tensor | None]


def _normed(tail: Tail, vector: Tensor, norm: How, part: bool) -> Tensor:
    vector = vector.reshape(tail.left.shape)
    with torch.no_grad():
        if part and norm == "frozen":
            return tail.frozen.linear(vector).to(vector.dtype)
        return tail.normed(vector, norm)


def _said(tail: Tail, normed: Tensor, reads: Reads, wanted: list[tuple[int, ...]] | None, top: int) -> Said:
    with torch.no_grad():
        logprobs = tail.logits(normed, reads).float().log_softmax(-1)
    best = logprobs.topk(top, -1)
    if wanted is None:
        return best.indices.cpu(), best.values.cpu(), None, None
    each = torch.stack([row[:, list(ids)].amax(-1) for row, ids in zip(logprobs, wanted, strict=True)])
    rank = (logprobs > each[..., None]).sum(-1)
    return best.indices.cpu(), best.values.cpu(), each.cpu(), rank.cpu()


def _names(model: Model, ids: Tensor) -> dict[int, str]:
    """How the tokens or classes that were said are spelled."""
    known = [int(i) for i in torch.unique(ids)]
    if hasattr(model.tokenizer, "convert_ids_to_tokens"):
        return {i: str(model.tokenizer.decode([i])) for i in known}
    labels = getattr(model.config, "id2label", None) or {}
    return {i: str(labels[i]) for i in known if i in labels}


register(
    Method(
        "interp.lens",
        number="log-probability of the words that a residual or a head says, as if the model stopped there",
        shown="table",
        passes=lambda t: 2,
        values="top_logprobs",
        examples=1,
        example=lambda t: lens(t.model, t.base, sites=f"{t.tower}L*.resid_post", top=2),
    )
)
