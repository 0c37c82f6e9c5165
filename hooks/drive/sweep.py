"""Many patches of the same prompts, each answered exactly, by replay where the model can be driven and else in full
passes.

A cell is a question: these values at these places. Answers come back per cell and prompt as the logits that are read.
Cells that change nothing, by comparison with the base run, are not run; their answer is the base's own.
"""

from __future__ import annotations

import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from interp.hooks.anatomy.family import Family
from interp.hooks.anatomy.towers import Anatomy, Tower
from interp.hooks.drive.blocks import called, keeps
from interp.hooks.drive.faster import fused, products, quicker
from interp.hooks.drive.questions import Answer, Cell, Reads, differs, rows_of
from interp.hooks.drive.recording import CannotDrive
from interp.hooks.drive.replay import Replay
from interp.hooks.drive.versions import Version
from interp.hooks.edits.edits import Set
from interp.hooks.errors import BudgetError, CheckFailed, InputsError, ModelError
from interp.hooks.inputs.inputs import Inputs
from interp.hooks.run.keeper import Wish
from interp.hooks.run.session import Session, edits_on
from interp.hooks.run.size import free_memory
from interp.hooks.run.tape import tower_inputs
from interp.hooks.sites import Site
from interp.hooks.stand.output import logits_of, no_logits

__all__ = ["Answer", "Cell", "Reads", "Sweep", "differs"]

SHARE, MOST = 4, 2**31
"""The rows under way together take at most this part of the free memory, and this many bytes, unless said."""


OWN_WAY = "its blocks raise an error on packed rows:"
"""What a model's own code raises there is a reason to go in full passes; what ours does, a mistake."""


class ReplayDiffers(CheckFailed):
    """An answer of a replay that is not what a full pass gives."""

    def __init__(self, cell: Cell, message: str) -> None:
        super().__init__(message)
        self.tower = cell.site.tower


class Sweep:
    """The engine of exact patching on one base batch."""

    def __init__(
        self,
        module: nn.Module,
        anatomy: Anatomy,
        base: Inputs,
        kwargs: Mapping[str, Any],
        *,
        family: Family | None = None,
        product: str | None = None,
        budget: int | None = None,
        tell: Callable[[int], object] = lambda done: None,
    ) -> None:
        self.module, self.anatomy, self.base, self.kwargs, self.family = module, anatomy, base, dict(kwargs), family
        self.product = product or quicker(activations(module, anatomy))
        self.replays: dict[str, Replay | str] = {}
        self.budget = budget if budget is not None else min(free_memory() // SHARE, MOST)
        self.tell = tell
        """Is told of tokens times layers that have been driven."""
        self.passes = 0
        self.halvings = 0
        """How often memory ran out and a chunk was run in halves."""
        self._logits: tuple[Tensor, Tensor | None] | None = None

    def engine(self, tower: str | None) -> Replay | str:
        """The tower's replay, or why it has none."""
        name = self._driver(tower)
        if name not in self.replays:
            self.replays[name] = self._make(name, None, None)
        return self.replays[name]

    def _driver(self, tower: str | None) -> str:
        """The tower whose blocks hold this one's attentions."""
        name = self.anatomy.tower(tower, text=str(tower)).name
        return "decoder" if name == "cross" and "decoder" in self.anatomy.towers else name

    def _make(self, name: str, kept: Tensor | None, beside: Session | None) -> Replay | str:
        tower, onward = self.anatomy.towers[name], None
        valid = self._valid(name)
        try:
            _refuse_rows(tower, self.module)
            if (
                name == "vision"
                and len(self.anatomy.towers) > 1
                and (self.anatomy.main or "text") in self.anatomy.towers
            ):
                _read_by_its_end(tower, self.anatomy, self.module)
                _one_image_each(tower, self.base)
                above = self.engine(self.anatomy.main or "text")
                onward = above if isinstance(above, Replay) else None
            with torch.no_grad(), products(self.product), fused(self.module):
                replay = Replay(
                    self.module, self.anatomy, tower, self.kwargs, valid, kept=kept, beside=beside, onward=onward,
                    depth=None if onward is None else _depth(self.module, tower), product=self.product,
                )  # fmt: skip
                if replay.prompts != self.base.batch:
                    reason = f"{replay.prompts} rows of tiles do not belong to {self.base.batch} prompts one by one"
                    raise CannotDrive(tower, reason)
                replay.check_onward()
        except CannotDrive as refused:
            _say_in_full(self.module, name, refused.reason)
            return refused.reason
        self.passes += 1
        self._logits = replay.base.logits, replay.base.kept
        return replay

    def _valid(self, name: str) -> Tensor | None:
        """A tower's real positions, where they are known."""
        try:
            return tower_inputs(self.base, Site(name, None, "embed")).valid
        except InputsError:
            return None

    @property
    def logits(self) -> Tensor:
        """What the base run was recorded with: all its logits, or those of some columns."""
        if self._logits is None:
            raise ModelError("nothing was recorded yet.")
        return self._logits[0]

    def record(self, sites: Sequence[Site], kept: Tensor | None = None) -> Mapping[Site, Tensor]:
        """The base run's values at some sites, from the pass that the replay goes on from."""
        name = self._driver(sites[0].tower)
        session = self._session(self, self.base, sites)
        self.replays[name] = self._make(name, kept, session)
        if isinstance(self.replays[name], Replay):
            return session.recorded()
        found, logits = self.observe(self.base, self.kwargs, sites, kept)
        self._logits = logits, keeps(self.module, kept)
        return found

    def observe(
        self,
        x: Inputs,
        kwargs: Mapping[str, Any],
        sites: Sequence[Site],
        kept: Tensor | None = None,
        *,
        other: Sweep | None = None,
    ) -> tuple[Mapping[Site, Tensor], Tensor]:
        """What a run has at some sites, and its logits (of the `kept` columns where the model can do that); `other`
        is the sweep of another model of the same shape."""
        owner = other or self
        session = self._session(owner, x, sites)
        with session, torch.no_grad(), products(self.product), fused(owner.module):
            logits = logits_of(owner.module(**called(owner.module, kwargs, keeps(owner.module, kept))))
        self.passes += 1
        if logits is None:
            raise no_logits(owner.module)
        return session.recorded(), logits

    @staticmethod
    def _session(owner: Sweep, x: Inputs, sites: Sequence[Site]) -> Session:
        wish = Wish(list(sites), budget=free_memory() // 2)
        return Session(owner.module, owner.anatomy, wish=wish, inputs=x, family=owner.family)

    def run(self, cells: Sequence[Cell], reads: Reads) -> Iterator[Answer]:
        """Every cell's answer, chunk by chunk; within a chunk those that are driven come first."""
        for low, high in self.chunks(cells, reads):
            for answer in self.chunk(cells[low:high], reads):
                yield replace(answer, number=answer.number + low)

    def chunks(self, cells: Sequence[Cell], reads: Reads) -> list[tuple[int, int]]:
        """Stretches of cells that keep within the memory budget together."""
        found, low, held = [], 0, 0
        for n, cell in enumerate(cells):
            engine = self._driven(cell)
            need = 0 if engine is None else sum(engine.bytes(one, reads) for one in engine.versions(n, cell))
            if n > low and held + need > self.budget:
                found.append((low, n))
                low, held = n, 0
            held += need
        return [*found, (low, len(cells))] if cells else []

    def cost(self, cells: Sequence[Cell]) -> int:
        """Tokens times layers that a sweep drives, which is what its time goes into; a full pass counts as that."""
        total = 0
        for n, cell in enumerate(cells):
            engine = self._driven(cell)
            if engine is not None:
                total += sum(map(engine.cost, engine.versions(n, cell)))
            elif bool(cell.changed.any()):
                total += self.cost_of_pass(cell)
        return total

    def cost_of_pass(self, cell: Cell) -> int:
        """The same of a full pass through the cell's tower."""
        return len(self.anatomy.tower(cell.site.tower, text=str(cell.site)).layers) * self.base.valid.numel()

    def _driven(self, cell: Cell) -> Replay | None:
        """The replay that answers a cell, if one can."""
        engine = self.engine(cell.site.tower)
        return engine if isinstance(engine, Replay) and engine.can(cell) else None

    def chunk(self, cells: Sequence[Cell], reads: Reads) -> Iterator[Answer]:
        """Every answer of cells that go together."""
        by_engine: dict[Replay | None, list[int]] = defaultdict(list)
        for n, cell in enumerate(cells):
            by_engine[self._driven(cell)].append(n)
        rest = by_engine.pop(None, [])
        for engine, mine in by_engine.items():
            assert engine is not None
            answered = set()
            try:
                for answer in self._replayed(engine, cells, mine, reads):
                    answered.add(answer.number)
                    yield answer
            except CannotDrive as refused:
                self._in_full_from_now(
                    next(name for name, one in self.replays.items() if one is engine), refused.reason
                )
                rest += [n for n in mine if n not in answered]
        yield from self._in_full(cells, sorted(rest), reads)

    def distrust(self, reads: Reads, why: ReplayDiffers) -> None:
        """Answer a tower's cells in full passes from now on, since its replay gave other numbers; raises where the
        model gives other numbers each time."""
        if not torch.equal(self._forward([], reads), self._forward([], reads)):
            raise why
        self._in_full_from_now(self._driver(why.tower), str(why))

    def _in_full_from_now(self, tower: str, reason: str) -> None:
        self.replays[tower] = reason
        _say_in_full(self.module, tower, reason)

    def _replayed(self, engine: Replay, cells: Sequence[Cell], mine: Sequence[int], reads: Reads) -> Iterator[Answer]:
        """The answers of some cells together; where memory runs out, of one half and then the other."""
        made = self._together(engine, [one for n in mine for one in engine.versions(n, cells[n])], reads)
        if made is None and len(mine) == 1:
            raise BudgetError(
                f"memory ran out on a single cell, {cells[mine[0]].site}: patch fewer prompts at a time, or let the"
                " metric say which positions and columns it reads."
            )
        if made is None:
            self.halvings += 1
            for half in (mine[: len(mine) // 2], mine[len(mine) // 2 :]):
                yield from self._replayed(engine, cells, half, reads)
            return
        plain = self.plain(reads) if len(made) < len(mine) * engine.prompts else None
        for n in mine:
            pairs = [made.pop((n, b), None) for b in range(engine.prompts)]
            both = [pair if pair is not None else (_given(plain)[b],) * 2 for b, pair in enumerate(pairs)]
            logits, unchanged = (torch.stack([pair[i] for pair in both]) for i in (0, 1))
            yield Answer(n, logits, unchanged, torch.tensor([pair is not None for pair in pairs]))

    def _together(
        self, engine: Replay, versions: Sequence[Version], reads: Reads
    ) -> dict[tuple[int, int], tuple[Tensor, Tensor]] | None:
        """By cell and prompt, the version's logits and those of its prompt unchanged; None where memory ran out."""
        if not versions:
            return {}
        try:
            both = [*versions, *engine.unchanged(versions)]
            made = engine.run(both, reads.positions, reads.columns, tell=self.tell)
        except RuntimeError as error:
            if isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error):
                return None  # torch's own class on an accelerator, on a CPU a message
            raise CannotDrive(engine.base.tower, f"{OWN_WAY} {error}") from error
        except (TypeError, ValueError, LookupError, AttributeError) as error:
            raise CannotDrive(engine.base.tower, f"{OWN_WAY} {error}") from error
        return {(one.number, one.prompt): (made[n], made[len(versions) + one.prompt]) for n, one in enumerate(versions)}

    def _in_full(self, cells: Sequence[Cell], mine: Sequence[int], reads: Reads) -> Iterator[Answer]:
        unchanged = self._forward([], reads) if mine else torch.empty(0)
        for number in mine:
            changed = cells[number].changed
            if len(changed) != len(reads.positions):  # images or tiles that are not prompts
                changed = changed.any().expand(len(reads.positions))
            self.tell(self.cost_of_pass(cells[number]) * bool(changed.any()))
            made = self.full(cells[number], reads) if bool(changed.any()) else unchanged
            yield Answer(number, made, unchanged, changed)

    def plain(self, reads: Reads) -> Tensor:
        """The base's own logits: those of the recorded run, or of a plain forward pass."""
        if self._logits is None:
            return self._forward([], reads)
        logits, kept = self._logits
        if kept is not None and not bool(torch.isin(reads.positions, kept).all()):
            return self._forward([], reads)
        return reads.of(logits, kept)

    def full(self, cell: Cell, reads: Reads) -> Tensor:
        """One cell in a full forward pass with an edit: the naive loop's step, and the oracle of the replay."""
        return self._forward(cell.edits(), reads)

    def _forward(self, edits: Sequence[Set], reads: Reads) -> Tensor:
        self.passes += 1
        kept = keeps(self.module, torch.unique(reads.positions))
        with Session(self.module, self.anatomy, edits=edits, inputs=self.base, family=self.family), torch.no_grad():
            logits = logits_of(self.module(**called(self.module, self.kwargs, kept)))
        if logits is None:
            raise no_logits(self.module)
        return reads.of(logits, kept if logits.ndim == 3 else None)

    def compare(self, cell: Cell, answer: Answer, reads: Reads) -> float:
        """How far an answer is from a full forward pass; raises where rounding does not explain it."""
        if not bool(answer.changed.any()):
            return 0.0
        whole = self.full(cell, reads)
        return _gap(cell, whole[answer.changed], answer.logits[answer.changed])

    def inspect(self, looked: Sequence[tuple[Cell, Answer]], reads: Reads) -> float:
        """`compare` for some answers on one prompt each, in one full pass that has them as its rows; those that came
        from full passes cannot be compared with others."""
        looked = [(cell, answer) for cell, answer in looked if self._driven(cell) and bool(answer.changed.any())]
        prompts = [int(answer.changed.int().argmax()) for _, answer in looked]
        alone = looked and not hasattr(self.module, "logit_scale")  # which would compare each row with all others
        kwargs = rows_of(self.kwargs, self.base, prompts) if alone else None
        if kwargs is None:
            return max((self.compare(cell, answer, reads) for cell, answer in looked), default=0.0)
        x = self.base.called(kwargs, config=getattr(self.module, "config", None))
        few = Sweep(self.module, self.anatomy, x, kwargs, family=self.family, product=self.product)
        asked = [(cell, n, b) for n, ((cell, _), b) in enumerate(zip(looked, prompts, strict=True))]
        whole = few._forward([e for cell, n, b in asked for e in cell.alone(b, n, len(asked))], reads.take(prompts))
        self.passes += 1
        gaps = [_gap(cell, whole[n], looked[n][1].logits[b]) for cell, n, b in asked]
        return max(gaps)


def _say_in_full(module: nn.Module, tower: str, reason: str) -> None:
    warnings.warn(
        f"{type(module).__name__}: {reason}; the {tower} tower is patched in full forward passes.", stacklevel=3
    )


def _refuse_rows(tower: Tower, module: nn.Module) -> None:
    """Tokens of many rows run at once, so what the model runs under must be the same for each of them."""
    other = next((edit for edit in edits_on(module) if not edit.tokenwise), None)
    if other is not None:
        raise CannotDrive(tower, f"the model runs under {other!r}, which does not do the same to every token")
    for layer in tower.layers:
        for name, child in module.get_submodule(layer.block).named_modules():
            if isinstance(child, nn.modules.conv._ConvNd) and max(child.kernel_size) > 1:
                raise CannotDrive(
                    tower, f"{layer.block}.{name} mixes positions outside of the attention (a convolution)"
                )


def _depth(module: nn.Module, tower: Tower) -> int:
    """After how many blocks a vision tower is read; LLaVA takes the output of the last but one."""
    read = getattr(getattr(module, "config", None), "vision_feature_layer", -1)
    if not isinstance(read, int):
        raise CannotDrive(tower, f"the text reads the vision layers {read} at once")
    return read if read >= 0 else len(tower.layers) + 1 + read


def _read_by_its_end(tower: Tower, anatomy: Anatomy, module: nn.Module) -> None:
    """What a vision tower ends with has to enter the text as its first residual: Mllama's text looks at it by
    cross-attention, and at layers before its last."""
    above = anatomy.towers.get(anatomy.main or "text")
    if above is None or not any(layer.kind == "cross" for layer in above.layers):
        return
    more = getattr(getattr(module.config, "vision_config", None), "intermediate_layers_indices", None)
    layers = f", and its layers {list(more)} besides its last" if more else ""
    raise CannotDrive(tower, f"the text reads the {tower.name} tower by cross-attention{layers}")


def _one_image_each(tower: Tower, x: Inputs) -> None:
    """A row of the vision tower is an image; it can be used as a prompt where each has exactly one."""
    counts = (x.roles.image.amax(1) + 1).tolist()
    if counts != [1] * len(counts):
        raise CannotDrive(
            tower, f"the prompts have {counts} images, and interp needs one image in each prompt to know which is whose"
        )


def _given(x: Tensor | None) -> Tensor:
    assert x is not None
    return x


def _gap(cell: Cell, whole: Tensor, found: Tensor) -> float:
    gap = float((whole - found).abs().max())
    eps = max(torch.finfo(whole.dtype).eps, torch.finfo(torch.float32).eps)  # norms and softmax are float32 in float64
    bound = 2048 * eps * max(1.0, float(whole.abs().max()))
    if gap > bound:
        raise ReplayDiffers(
            cell,
            f"{cell.site}: replay and a full forward pass differ by {gap:.3g} logits, more than the {bound:.3g} that"
            " rounding explains; m.check(again=True) shows whether the model is deterministic and understood.",
        )
    return gap


def activations(module: nn.Module, anatomy: Anatomy) -> Tensor:
    """None of them, as wide and of the type that the model's widest tower has."""
    width = max(tower.width for tower in anatomy.towers.values())
    kind = next((p.dtype for p in module.parameters() if p.is_floating_point()), torch.float32)
    return torch.empty(0, width, dtype=kind)
