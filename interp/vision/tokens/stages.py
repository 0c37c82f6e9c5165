"""Image tokens that a layer no longer sees, stage by stage, and tokens recycled into those that stay.

From VFlowOpt's stage s on (a layer), the share R_1 ... R_s of the image tokens stays, those of most importance; the
others are hidden from every row of every later layer (`MaskKeys`), so that nothing after it depends on what they hold
there, and their positions stay as they were. Before the first stage's layer, pruned tokens are recycled on cells of a x
a tokens of their grid: sum I_i t_i / sum I_i over the pruned tokens of a cell takes the place of the one with most
importance, which stays in place of a kept token, so that the share holds. Mean retention over L layers (5):

    R = (R_1 L_1 + R_1 R_2 L_2 + ...) / L,   L_s the layers of stage s

Cost: that of the edits, no less than the whole model: hidden tokens are still computed. `shorter` takes those of the
first stage out of the call where that is before the first layer, and that saves their time; the result is the same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool
from torch import Tensor

from interp.hooks.edits.edits import Edit, MaskKeys
from interp.hooks.edits.merge import MergeTokens
from interp.hooks.errors import InputsError, ModelError
from interp.results.figures.figure import Figure
from interp.results.figures.marks import Lines, Trace
from interp.results.saved import Saved

if TYPE_CHECKING:
    from interp.model import Model


@dataclass(frozen=True, eq=False)
class TokenImportance(Saved):
    """I of each image token."""

    STEM = "token_importance"

    values: Tensor
    """[example, position]: the importance of each image token; 0 for what is no image token."""
    image: Tensor
    """Bool [example, position]: the image tokens."""
    places: Tensor
    """[example, position, 4]: tile, frame, row and column of a token's cell; -1 for what is none."""
    depth: int
    """How many layers the text tower has."""
    prefix: str
    """The start of the names of the text's sites, such as "text."."""
    meta: Mapping[str, Any] = field(default_factory=dict)

    def kept(self, share: float, *, of: Tensor | None = None) -> Bool[Tensor, "example position"]:
        """The share of image tokens (of those in `of`) with most importance; ties go to the first."""
        if not 0 < share <= 1:
            raise InputsError(f"a retention is a share, above 0 and at most 1; got {share}.")
        among = self.image if of is None else of
        order = self.values.masked_fill(~among, -1.0).argsort(dim=1, descending=True, stable=True).argsort(1)
        return among & (order < (share * among.sum(1, keepdim=True)).round().clamp(min=1))

    def stages(self, retention: Sequence[float], *, cell: float | None = None) -> tuple[list[Tensor], Tensor | None]:
        """The tokens kept from each stage on, and the lines (row, source, target) of what is recycled at the first."""
        if not retention:
            raise InputsError("retention= is the share kept at each stage, at least one.")
        if cell is None:
            kept, lines = self.kept(retention[0]), None
        else:
            kept, lines = self._recycled(retention[0], cell)
        found = [kept]
        for share in retention[1:]:
            found.append(self.kept(share, of=found[-1]))
        return found, lines

    def _recycled(self, share: float, cell: float) -> tuple[Tensor, Tensor]:
        if not cell >= 1:
            raise InputsError(f"cell= is the side of a cell in tokens, at least 1; got {cell}.")
        kept, rows = torch.zeros_like(self.image), []
        for row in range(len(self.values)):
            budget = max(1, round(share * int(self.image[row].sum())))
            order = self.values[row].masked_fill(~self.image[row], -1.0).argsort(descending=True, stable=True).tolist()
            order = order[: int(self.image[row].sum())]
            alone = budget
            while alone > 0 and alone + len(self._cells(row, order[alone:], cell)) > budget:
                alone -= 1
            merged = self._cells(row, order[alone:], cell)
            most = sorted(merged.values(), key=lambda some: -float(self.values[row, some[0]]))[: budget - alone]
            kept[row, order[:alone]] = True
            for some in most:
                kept[row, some[0]] = True
                rows += [(row, source, some[0]) for source in some]
        return kept, torch.tensor(rows, dtype=torch.long).reshape(-1, 3)

    def _cells(self, row: int, pruned: Sequence[int], cell: float) -> dict[tuple[int, ...], list[int]]:
        """Pruned tokens by cell, those of most importance first."""
        found: dict[tuple[int, ...], list[int]] = {}
        for n in pruned:
            tile, frame, down, across = self.places[row, n].tolist()
            if down >= 0:
                found.setdefault((tile, frame, int(down // cell), int(across // cell)), []).append(n)
        return found

    def pruned(
        self, retention: Sequence[float], *, layers: Sequence[int] = (0,), cell: float | None = None
    ) -> tuple[Edit, ...]:
        """Edits for `m.run`, `m.edited` and `m.generate`: from `layers[s]` on, what stage s prunes is hidden."""
        if len(layers) != len(retention) or list(layers) != sorted(set(layers)) or layers[0] < 0:
            raise InputsError(f"layers= are where stages begin, rising, one a retention; got {layers} and {retention}.")
        if layers[-1] >= self.depth:
            raise InputsError(f"the text has layers 0 to {self.depth - 1}; got a stage at {layers[-1]}.")
        kept, lines = self.stages(retention, cell=cell)
        ends = [*layers[1:], self.depth]
        found: list[Edit] = []
        if lines is not None and len(lines):
            weights = self._weights(lines)
            found.append(MergeTokens(f"{self.prefix}L{layers[0]}.resid_pre", lines, weights, phase="prefill"))
        for mine, start, end in zip(kept, layers, ends, strict=True):
            gone = self.image & ~mine
            if bool(gone.any()):
                found.append(MaskKeys(f"{self.prefix}L{start}-{end - 1}.H*", keys=gone))
        return tuple(found)

    def _weights(self, lines: Tensor) -> Tensor:
        """I_i over the sum of its cell; alike where all are 0."""
        row, source, target = lines.unbind(1)
        mine = self.values[row, source]
        cells = row * self.values.shape[1] + target
        total = torch.zeros(self.values.numel(), dtype=mine.dtype).index_add_(0, cells, mine)[cells]
        count = torch.bincount(cells, minlength=self.values.numel())[cells]
        return torch.where(total > 0, mine / total.clamp(min=1e-30), 1 / count)

    def mean_retention(self, retention: Sequence[float], layers: Sequence[int] = (0,)) -> float:
        """The share of image tokens that a layer sees, mean over layers; those before the first stage see all."""
        share, total, before = 1.0, 0.0, 0
        for keep, start in zip(retention, layers, strict=True):
            total += share * (start - before)
            share, before = share * keep, start
        return (total + share * (self.depth - before)) / self.depth

    def shorter(self, model: Model, inputs: Any, share: float, *, cell: float | None = None) -> dict[str, Any]:
        """The call without the tokens that one stage before the first layer prunes: embeddings and positions of the
        others, for `m.run` and `model.module(**call)`."""
        x = model.inputs(inputs)
        kept, lines = self.stages([share], cell=cell)
        stay = x.valid.cpu() & ~(self.image & ~kept[0])
        if len({int(n) for n in stay.sum(1)}) > 1:
            raise InputsError("rows keep different numbers of tokens; give rows of equal length, or one at a time.")
        if "position_ids" in x.kwargs or "image_grid_thw" in x.kwargs:
            raise ModelError(
                "this family counts positions by picture rows and columns, so a call without some tokens is not written"
                " here: use .pruned, which hides them."
            )
        embedded = model.run(x, record=f"{self.prefix}L0.resid_pre")[f"{self.prefix}L0.resid_pre"]
        if lines is not None and len(lines):
            embedded = MergeTokens("embed", lines, self._weights(lines)).change(embedded, None)
        numbers = (x.valid.long().cumsum(1) - 1).clamp(min=0).cpu()
        at = stay.nonzero()[:, 1].reshape(x.batch, -1)
        rows = torch.arange(x.batch)[:, None]
        return {
            "inputs_embeds": embedded[rows, at.to(embedded.device)],
            "position_ids": numbers[rows, at].to(embedded.device),
            "attention_mask": torch.ones_like(at).to(embedded.device),
        }

    def to_frame(self) -> Any:
        """One row an image token: example, position, tile, frame, row, column, importance."""
        import pandas

        example, position = self.image.nonzero().unbind(1)
        places = self.places[example, position]
        names = ("tile", "frame", "row", "column")
        return pandas.DataFrame(
            {"example": example.numpy(), "position": position.numpy(),
             **{name: places[:, n].numpy() for n, name in enumerate(names)},
             "importance": self.values[example, position].numpy()}
        )  # fmt: skip

    def _figure(self) -> Figure:
        """How importance is spread over the tokens of each example."""
        rows = [row[here].sort(descending=True).values for row, here in zip(self.values, self.image, strict=True)]
        lines = [Trace(f"example {n}", range(len(one)), one.tolist()) for n, one in enumerate(rows)]
        return Figure([Lines(lines, x="image tokens, most important first", y="importance")])

    def __repr__(self) -> str:
        counts = self.image.sum(1)
        half = self.values.sort(1, descending=True).values.cumsum(1)
        need = (half < half[:, -1:] / 2).sum(1) + 1
        return (
            f"TokenImportance of {int(counts.sum())} image tokens in {len(counts)} examples: half of it is on"
            f" {float((need / counts).mean()):.0%} of the tokens"
        )
