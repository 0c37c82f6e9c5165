"""Where in the picture are a prompt's words, for each head, layer and step of a denoiser?

    m[w, i] = sum_{j in w} A[i, j]      for cells i of the picture, the weight that a cell gives to a word's tokens w,

taken in every call of the denoiser while a pipeline runs, by the kernels' masses on key sets: no pattern is made, and
what `per` does not name is averaged on the spot, so memory does not grow with steps. `reads="word"` is the other
direction, which joint attention alone has: what the word's tokens give to each cell, as RefAM (arXiv 2509.22650) reads
it. Rows are those of the branch with the prompt. Cost: no call of the denoiser in addition to the pipeline's own; in
each of them about one more attention a layer. Limits: a map is of attention and says not yet what the word does;
smaller pictures inside a U-Net are laid over the largest, cell by cell; linear attention has none.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from threading import get_ident
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from interp.diffusion.denoiser import NOT_HERE, refuse_other
from interp.hooks.anatomy.towers import Layer
from interp.hooks.denoisers.guidance import branches
from interp.hooks.denoisers.layout import Layout, layout
from interp.hooks.edits.edits import in_steps, last_of
from interp.hooks.errors import InputsError, NotFired
from interp.hooks.head_names import head_name
from interp.hooks.sites import Site
from interp.hooks.stand.attention import by_numbers, fused_part, pattern_of
from interp.hooks.stand.call import Call, Tap
from interp.hooks.stand.standpoints import watch
from interp.kernels.attention import attend
from interp.provenance import about
from interp.records import Method, register
from interp.results.figures.figure import Figure
from interp.results.figures.over_image import heat_over
from interp.results.saved import Saved

if TYPE_CHECKING:
    from interp.model import Model


@dataclass(frozen=True, eq=False)
class Maps(Saved):
    """Maps of words, averaged over what they were not asked for by."""

    STEM, TABLE = "maps", "parquet"

    values: Tensor
    """[group, example, word, frame, row, column]: the weight, 0 to 1, as `reads` says."""
    words: tuple[str, ...]
    """The words that have maps, in the order of `values`."""
    steps: tuple[int, ...]
    """By group, the call of the denoiser; -1 for all of them."""
    places: tuple[str, ...]
    """By group: "L3.H1", "L3" for all its heads, "" for all."""
    reads: str
    """What a value is: "cell" for the weight that a cell gives to the word, "word" for what the word gives to the
    cell."""
    meta: Mapping[str, Any] = field(default_factory=dict)

    def of(self, word: str, *, place: str | None = None, step: int | None = None) -> Tensor:
        """The map of a word [example, frame, row, column], the mean over groups at a place ("L3.H1", with the tower's
        name or without it) and step, or over all."""
        if word not in self.words:
            raise InputsError(f"no map of {word!r}; there are {', '.join(self.words)}.")
        chosen = [
            n
            for n, (own, at) in enumerate(zip(self.places, self.steps, strict=True))
            if (place is None or place in (own, _untowered(own))) and (step is None or at == step)
        ]
        if not chosen:
            raise InputsError(
                f"no maps at place={place!r}, step={step!r}; places are {', '.join(dict.fromkeys(self.places))}, steps"
                f" {list(dict.fromkeys(self.steps))}."
            )
        return self.values[chosen, :, self.words.index(word)].mean(0)

    def peak(self, word: str, **which: Any) -> Tensor:
        """[example, 3]: frame, row and column of the cell where the map of a word is highest."""
        found = self.of(word, **which)
        at = found.flatten(1).argmax(1)
        rows, columns = found.shape[2:]
        return torch.stack([at // (rows * columns), at // columns % rows, at % columns], 1)

    def to_frame(self) -> Any:
        """One row a group, word and example: the mean of the map, its highest cell and the weight there."""
        import pandas

        found = []
        for group, (place, step) in enumerate(zip(self.places, self.steps, strict=True)):
            for number, word in enumerate(self.words):
                for example, one in enumerate(self.values[group, :, number]):
                    frame, row, column = (int(n) for n in torch.unravel_index(one.argmax(), one.shape))
                    found.append(
                        {"place": place, "step": step, "word": word, "example": example, "mean": float(one.mean()),
                         "highest": float(one.max()), "frame": frame, "row": row, "column": column}
                    )  # fmt: skip
        return pandas.DataFrame(found)

    def _figure(self, word: str, picture: Any = None, *, example: int = 0, frame: int = 0, **which: Any) -> Figure:
        """A map of a word, over the generated picture (PIL or [row, column, 3]) if it is given."""
        grid = self.of(word, **which)[example, frame]
        return heat_over(grid.float().cpu(), picture, title=f"weight of {word!r}", scale="weight")

    def __repr__(self) -> str:
        frames, rows, columns = self.values.shape[3:]
        size = f"{rows} x {columns} cells" + (f" in {frames} frames" if frames > 1 else "")
        return f"Maps of {', '.join(self.words)}: {len(self.places)} groups, {self.values.shape[1]} examples, {size}"


def maps(
    model: Model,
    run: Callable[[], Any],
    *,
    words: Mapping[str, Sequence[int]],
    heads: str | None = None,
    steps: int | str | None = None,
    per: Sequence[str] = ("layer", "head"),
    reads: str = "cell",
) -> Maps:
    """Maps of words while `run()` samples; `words` says the columns of each word's tokens (`columns` finds them)."""
    refuse_other(model)
    _refuse(words, per, reads)
    in_steps(steps, 0)
    anatomy = model.ready()
    tower = "cross" if "cross" in anatomy.towers else anatomy.main
    pattern = heads or (f"{tower}.L*" if len(anatomy.towers) > 1 else "L*")
    sites = anatomy.sites(f"{pattern.removesuffix('.z')}.z")
    taking = _Taking(model, {word: tuple(at) for word, at in words.items()}, steps, tuple(per), reads)
    with ExitStack() as undo:
        undo.callback(model.module.register_forward_pre_hook(taking.begin, with_kwargs=True).remove)
        for site in sites:
            layer = anatomy.layer(site)
            if not layer.seen:
                raise InputsError(
                    f"{site}: its attention has no pattern: it is linear, or interp does not see its call."
                )
            undo.callback(watch(model.module, layer, _WordTap(taking, site, layer)))
        run()
    return taking.result(about(model.module, None))


def _refuse(words: Mapping[str, Sequence[int]], per: Sequence[str], reads: str) -> None:
    if not words or not all(len(at) for at in words.values()):
        raise InputsError("words= says which columns each word has, {'cat': [3, 4]}, at least one for each.")
    if unknown := [one for one in per if one not in ("step", "layer", "head")]:
        raise InputsError(f"per= names 'step', 'layer' and 'head', got {unknown[0]!r}.")
    if reads not in ("cell", "word"):
        raise InputsError(f"reads= is 'cell' (what cells give to words) or 'word', got {reads!r}.")


@dataclass(eq=False)
class _Taking:
    """The sums so far, and the call that runs."""

    model: Model
    words: Mapping[str, tuple[int, ...]]
    steps: int | str | None
    per: tuple[str, ...]
    reads: str
    calls: int = 0
    tokens: Layout | None = None
    rows: list[int] = field(default_factory=list)
    sums: dict[tuple[int, str], list[tuple[Tensor, int]]] = field(default_factory=dict)
    shape: tuple[int, int, int] | None = None
    thread: int = field(default_factory=get_ident)

    def begin(self, module: Any, args: Any, kwargs: Mapping[str, Any]) -> None:
        if get_ident() != self.thread:
            return
        call = {"hidden_states": args[0], **kwargs} if args else dict(kwargs)
        step, self.calls = self.calls, self.calls + 1
        self.tokens = None
        if not in_steps(self.steps, step):
            return
        tokens = layout(module, call)
        if tokens.words is None:
            raise InputsError(f"{type(module).__name__} was called without words (encoder_hidden_states).")
        for word, at in self.words.items():
            if bad := [n for n in at if not 0 <= n < tokens.words.shape[1]]:
                raise InputsError(
                    f"{word!r}: there is no word {bad[0]}, the call has {tokens.words.shape[1]}, from 0 on."
                )
        self.tokens = tokens
        self.rows = [n for n, branch in enumerate(branches(module, call)) if branch == "cond"]
        if self.shape is None or tokens.shape[1] * tokens.shape[2] > self.shape[1] * self.shape[2]:
            self.shape = tokens.shape

    def add(self, site: Site, heads: Sequence[int], taken: Tensor) -> None:
        """[example, head, word, cell] of one call, into its groups."""
        assert site.layer is not None
        step = self.calls - 1 if "step" in self.per else -1
        for n, head in enumerate(heads):
            name = head_name(site.tower, site.layer, head)
            layer, _, number = name.rpartition(".")
            place = name if {"layer", "head"} <= set(self.per) else layer if "layer" in self.per else ""
            place = number if "head" in self.per and "layer" not in self.per else place
            held = self.sums.setdefault((step, place), [])
            new = taken[:, n].float().cpu()
            for at, (total, count) in enumerate(held):
                if total.shape == new.shape:
                    held[at] = total + new, count + 1
                    break
            else:
                held.append((new, 1))

    def result(self, meta: Mapping[str, Any]) -> Maps:
        """The means."""
        if not self.calls:
            raise NotFired("the denoiser was never called: does run() call the pipeline that was attached?")
        if self.steps is not None and last_of(self.steps) >= self.calls:
            raise NotFired(f"steps={self.steps!r} asks for call {last_of(self.steps)}, and there were {self.calls}.")
        assert self.shape is not None
        values = [_mean([(_laid(total, self.shape), count) for total, count in held]) for held in self.sums.values()]
        return Maps(
            torch.stack(values), tuple(self.words), tuple(step for step, _ in self.sums),
            tuple(place for _, place in self.sums), self.reads, {**meta, "method": "maps", "calls": self.calls},
        )  # fmt: skip


def _untowered(place: str) -> str:
    """A place without the name of its tower, where it has one."""
    tower, _, rest = place.partition(".")
    return rest if tower.isalnum() and tower[:1].islower() else place


def _mean(parts: Sequence[tuple[Tensor, int]]) -> Tensor:
    return torch.stack([total for total, _ in parts]).sum(0) / sum(count for _, count in parts)


def _laid(maps: Tensor, shape: tuple[int, int, int]) -> Tensor:
    """[example, word, cell] on the grid of the largest picture; a smaller one's cells cover several of it."""
    frames, rows, columns = shape
    cells = maps.shape[-1]
    side = round((frames * rows * columns / cells) ** 0.5)
    if cells * side * side != frames * rows * columns or rows % side or columns % side:
        raise InputsError(f"{cells} cells are no smaller picture of {rows} x {columns} cells in {frames} frames.")
    small = maps.unflatten(-1, (frames, rows // side, columns // side))
    return small.repeat_interleave(side, -2).repeat_interleave(side, -1)


class _WordTap(Tap):
    """Takes one layer's maps."""

    def __init__(self, taking: _Taking, site: Site, layer: Layer) -> None:
        self.taking, self.site, self.layer, self.thread = taking, site, layer, taking.thread

    def record(self, call: Call) -> None:
        tokens = self.taking.tokens
        if tokens is None:
            return
        heads = self.site.heads or tuple(range(self.layer.heads))
        first, cells = _starts(tokens, call, cross=self.layer.kind == "cross")
        sets = {}
        for word, at in self.taking.words.items():
            mine = torch.zeros(len(call.q), call.k.shape[2], dtype=torch.bool, device=call.q.device)
            mine[:, [first + n for n in at]] = True
            sets[word] = mine
        taken = self._by_cell(call, heads, sets) if self.taking.reads == "cell" else self._by_word(call, heads, sets)
        taken = taken[self.taking.rows][..., cells]
        self.taking.add(self.site, heads, taken)

    @staticmethod
    def _by_cell(call: Call, heads: tuple[int, ...], sets: Mapping[str, Tensor]) -> Tensor:
        """[row, head, word, query]: the weight on each word."""
        if by_numbers(call, heads):
            weights = pattern_of(call, "pattern", heads, None)
            return torch.stack([(weights * mine[:, None, None]).sum(-1) for mine in sets.values()], 2)
        part, edits = fused_part(call, heads)
        names = [f"mass:{n}" for n in range(len(sets))]
        keys = {str(n): mine for n, mine in enumerate(sets.values())}
        stats = attend(part.q, part.k, None, edits=edits, stats=names, key_sets=keys, **part.arguments).stats
        return torch.stack([stats[name] for name in names], 2)

    def _by_word(self, call: Call, heads: tuple[int, ...], sets: Mapping[str, Tensor]) -> Tensor:
        """[row, head, word, key]: what the word's tokens give to each key, their mean."""
        if call.q.shape[2] != call.k.shape[2]:
            raise InputsError(f"{self.site}: words do not look at cells in cross-attention; leave reads= out.")
        return torch.stack([pattern_of(call, "pattern", heads, mine).mean(2) for mine in sets.values()], 2)


def _starts(tokens: Layout, call: Call, *, cross: bool) -> tuple[int, slice]:
    """Where words start among the keys, and which queries are cells."""
    if cross:
        return 0, slice(None)
    start, words, cells = 0, None, slice(None)
    for kind, count in tokens.runs:
        words = start if kind == "words" else words
        cells = slice(start, start + count) if kind == "cells" else cells
        start += count
    if words is None or call.k.shape[2] != tokens.length:
        raise InputsError(
            f"{call.k.shape[2]} keys here are not the {tokens.length} tokens of the call: cells attend to no words in"
            " this layer. With heads= name layers in which cells attend to words."
        )
    return words, cells


register(
    Method(
        name="interp.diffusion.maps",
        number="share of a cell's attention on a word's tokens, or share of the word's attention on the cell",
        example=lambda t: maps(t.model, lambda: t.model.run(t.base), words={"word": [0]}),
        passes=lambda t: 1,
        shown="none",
        values=None,
        signed=False,
        unfit=NOT_HERE,
    )
)
