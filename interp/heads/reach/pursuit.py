"""Which words a head speaks of: a few directions of the unembedding that explain what it writes.

Head Pursuit, Basile et al. 2025 (arXiv 2510.21518): what a head writes over many rows, less its mean, H [n, d], is
decomposed by simultaneous orthogonal matching pursuit over the rows of the unembedding, each of unit length: at each
step the word j with the largest sum over rows of |<d_j, left>| is taken, then all chosen ones are fitted by least
squares. The share of variance explained, 1 - |left|^2 / |H|^2, says how far those words are what the head is about;
with the words of one concept (`words=`) it is the head's score for that concept, and the heads with the largest can be
scaled or turned round (`.edits(factor=-1)`, one per cent of all heads unless told otherwise). `method="textspan"` is
the greedy basis of Gandelsman et al. 2023 (arXiv 2310.05916) instead, which takes the direction of most variance and
takes it out of both sides: their texts are CLIP's, here any `dictionary`, such as the class rows of a ViT (concept
heads). Cost: a recorded pass; for each head and atom a product of dictionary and rows: name heads of large models.
Limits: words are those of the output; what the final norm divides by is left out, its gain is folded in; a share is
high for any head of few directions, so hold a concept against words drawn at random (`random`)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from interp.finite import finite
from interp.heads.kinds.reading import head_names, head_sites, heads_of, tower_of
from interp.heads.reach.atoms import pursued, spanned
from interp.heads.weights.matrices import HeadMatrices
from interp.hooks.drive.tail import last_tower
from interp.hooks.edits.edits import Scale
from interp.hooks.errors import InputsError
from interp.hooks.inputs.inputs import Positions
from interp.hooks.run.tape import tower_inputs
from interp.hooks.run.writes import Writes
from interp.hooks.sites import Site
from interp.metrics.judge import answer_ids
from interp.provenance import about
from interp.records import Method, Trial, register
from interp.results.heads_table import HeadResult, HeadTable

if TYPE_CHECKING:
    from interp.hooks.inputs.inputs import Inputs
    from interp.model import Model

METHODS = {"somp": pursued, "textspan": spanned}


@dataclass(frozen=True, eq=False)
class Pursuit(HeadResult):
    """`values` [head, example]: the share of its rows that the words explain; the estimate is that of all together."""

    STEM = "pursuit"
    TITLE = "explained by the words"

    sites: tuple[str, ...]
    values: Tensor
    """[head, example]: the share of the variance of what the head writes that its words explain, 0 to 1."""
    explained: Tensor
    """Share of variance after each word [head, atom]."""
    atoms: Tensor
    """Ids (or rows of the dictionary), in the order they were chosen [head, atom]."""
    random: Tensor
    """With as many words drawn at random in the place of `words` [head, draw]; empty without."""
    names: Mapping[int, str] = field(default_factory=dict)
    """By id, the text of the words; empty where a dictionary was given."""
    meta: Mapping[str, Any] = field(default_factory=dict)

    def tables(self) -> list[HeadTable]:
        """Shares, with the words of each head."""
        whole = self.explained[:, -1]
        more: dict[str, Any] = {"words": [", ".join(self.words(site)) for site in self.sites]}
        if self.random.numel():
            more["random"] = self.random.mean(1)
        return [HeadTable(self.sites, self.values, str(self.meta["method"]), estimate=whole, more=more)]

    def words(self, site: str) -> list[str]:
        """The words of one head, the first first."""
        if site not in self.sites:
            raise InputsError(f"no words of {site!r}; there are those of {', '.join(self.sites)}.")
        return [self.names.get(int(i), str(int(i))) for i in self.atoms[self.sites.index(site)]]

    def edits(self, *, factor: float = -1.0, heads: int | None = None) -> list[Scale]:
        """The heads with the largest shares scaled: 0 silences, -1 turns round; one per cent if not said."""
        count = max(1, round(0.01 * len(self.sites))) if heads is None else heads
        if not 1 <= count <= len(self.sites):
            raise InputsError(f"heads= is 1 to {len(self.sites)}, got {heads}.")
        best = self.explained[:, -1].argsort(descending=True, stable=True)[:count]
        return [Scale(f"{self.sites[int(n)]}.z", factor) for n in best]

    @classmethod
    def restored(cls, facts: dict[str, Any], tensors: dict[str, Tensor]) -> Pursuit:
        """Words by number again."""
        return super().restored({**facts, "names": {int(i): n for i, n in facts["names"].items()}}, tensors)

    def __repr__(self) -> str:
        best = int(self.explained[:, -1].argmax())
        said = ", ".join(self.words(self.sites[best])[:5])
        return (
            f"Pursuit of {len(self.sites)} heads: {self.sites[best]} is explained most,"
            f" {float(self.explained[best, -1]):.0%} by {said}"
        )


def pursuit(
    model: Model,
    inputs: Any,
    heads: str | None = None,
    *,
    words: Sequence[str | int] | None = None,
    dictionary: Tensor | None = None,
    atoms: int = 10,
    positions: Positions = "all",
    method: str = "somp",
    draws: int = 0,
    seed: int = 0,
) -> Pursuit:
    """The words of heads over the rows that `positions` selects in all inputs.

    `words` restricts the dictionary to some words or ids, `dictionary` [row, d] replaces it.
    """
    if method not in METHODS:
        raise InputsError(f"method is one of {', '.join(METHODS)}, got {method!r}.")
    stack = last_tower(model.ready(), None)
    prefix = "" if len(model.anatomy.towers) == 1 else f"{stack.name}."
    sites = head_sites(model, f"{prefix}L*" if heads is None else heads)
    if tower_of(model, sites) is not stack:
        raise InputsError(f"heads={heads!r}: words are spoken by the tower {stack.name!r}, whose end makes the logits.")
    x = model.inputs(inputs)
    every = _dictionary(model, sites, dictionary)
    known = None if words is None else sorted({i for row in answer_ids(model, [[w] for w in words]) for i in row})
    chosen = every if known is None else every[known]
    if not 1 <= atoms <= len(chosen) or draws < 0:
        raise InputsError(
            f"atoms is 1 to the {len(chosen)} rows of the dictionary, draws 0 or more; got {atoms} and {draws}."
        )
    random = torch.Generator().manual_seed(seed)
    drawn = [every[torch.randperm(len(every), generator=random)[: len(chosen)]] for _ in range(draws)]
    found, controls = [], []
    mask = _rows(x, sites[0], positions)
    owner = mask.nonzero()[:, 0].cpu()
    for vectors in _vectors(model, x, sites, mask):
        found.append(_explained(*METHODS[method](vectors, chosen, atoms), vectors, owner))
        controls.append([_explained(*METHODS[method](vectors, one, atoms), vectors, owner)[1][-1] for one in drawn])
    ids, shares, values = (torch.stack(part) for part in zip(*found, strict=True))
    ids = ids if known is None else torch.tensor(known)[ids]
    meta = {**about(model.module, x), "method": {"somp": "head pursuit"}.get(method, method), "seed": seed}
    return Pursuit(
        head_names(model, sites), values, shares, ids, torch.tensor(controls) if draws else torch.zeros(0),
        _names(model, ids, own=dictionary is None), meta,
    )  # fmt: skip


def _dictionary(model: Model, sites: Sequence[Site], given: Tensor | None) -> Tensor:
    """Rows of unit length [row, d], those of nothing left as they are."""
    if given is None:
        given = HeadMatrices(model, tower_of(model, sites)).unembedding.T
    width = tower_of(model, sites).width
    if given.ndim != 2 or given.shape[1] != width or not bool(torch.isfinite(given).all()):
        raise InputsError(f"a dictionary is finite and [row, {width}] for this tower, got {list(given.shape)}.")
    rows = given.detach().float().cpu()
    return rows / rows.norm(dim=1, keepdim=True).clamp(min=1e-30)


def _rows(x: Inputs, site: Site, positions: Positions) -> Tensor:
    """The chosen positions [example, position]."""
    mine = tower_inputs(x, site)
    mask = mine.valid if isinstance(positions, str) and positions == "all" else mine.mask(positions)
    if int(mask.sum()) < 2:
        raise InputsError(f"a decomposition needs at least two rows, and {positions!r} selects {int(mask.sum())}.")
    return mask


def _vectors(model: Model, x: Inputs, sites: Sequence[Site], mask: Tensor) -> Iterator[Tensor]:
    """What each head writes at the chosen positions, less the mean [n, d], float64."""
    stack = last_tower(model.anatomy, None)
    tape = model.run(x, record=Writes.sites(model.anatomy, stack))
    writes = Writes(model.module, tape, stack)
    for site in sites:
        for head in heads_of(model, site):
            write = writes.heads(Site(site.tower, site.layer, "result"), (head,))[:, :, 0]
            rows = finite(write[mask.to(write.device)], f"{site} writes").double().cpu()
            yield rows - rows.mean(0)


def _explained(chosen: Tensor, left: Tensor, vectors: Tensor, owner: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The ids, the share of variance after each, and of each example after all; of a head that writes nothing, 0."""
    whole, tiny = vectors.square().sum(), 1e-20
    shares = torch.where(whole > tiny, 1 - left.square().sum((1, 2)) / whole.clamp(min=tiny), 0.0)
    nothing = vectors.new_zeros(int(owner.max()) + 1)
    rows, rest = (nothing.index_add(0, owner, one.square().sum(1)) for one in (vectors, left[-1]))
    each = torch.where(rows > tiny, 1 - rest / rows.clamp(min=tiny), 0.0)
    return chosen, shares, each


def _names(model: Model, ids: Tensor, *, own: bool) -> dict[int, str]:
    if not own:
        return {}
    known = [int(i) for i in torch.unique(ids)]
    if hasattr(model.tokenizer, "convert_ids_to_tokens"):
        return {i: str(model.tokenizer.decode([i])) for i in known}
    labels = getattr(model.config, "id2label", None) or {}
    return {i: str(labels[i]) for i in known if i in labels}


def _trial(t: Trial) -> Pursuit:
    return pursuit(t.model, t.base, atoms=2, positions="all")


register(
    Method(
        "interp.heads.pursuit",
        number="share of the variance of what a head writes that a few words explain, 0 to 1",
        shown="map",
        signed=False,
        papers=("2510.21518", "2310.05916"),
        passes=lambda t: 8,
        example=_trial,
    )
)
