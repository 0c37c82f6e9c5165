"""What one plan does in one worker: edits of z in their requests, and what is kept of z and of the weights.

Everything is reduced where it is read. Keys that statistics need are kept for as long as their request asks for more
rows, so statistics are the same whether a prompt came at once or in chunks, and go on while the request generates:
each chunk's rows meet all keys so far, and `interp.kernels.stats.concat` puts the chunks together exactly.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from safetensors.torch import save
from torch import Tensor

from interp.hooks.edits.edits import ValueEdit
from interp.hooks.stand.call import Call
from interp.kernels.attention import attend
from interp.kernels.masks.symbols import Causal, Mask, Window
from interp.kernels.stats import concat
from interp.scale.serving.packed import PackedError, PackedRows, Segment, Where, chosen, gathered, last_wanted
from interp.scale.serving.plans import Change, Heads, Plan
from interp.scale.serving.uniform import Running


@dataclass(frozen=True)
class Local:
    """The heads of a layer that this worker holds: the first one's number, how many, and the layer's window."""

    first: int
    count: int
    window: int | None = None

    def local(self, heads: Sequence[int]) -> list[tuple[int, int]]:
        """Of some heads, those held here: place in the given order, and place in the worker's own."""
        return [(n, h - self.first) for n, h in enumerate(heads) if self.first <= h < self.first + self.count]

    @property
    def mask(self) -> Mask:
        return Causal() if self.window is None else Causal() & Window(self.window)


class Keys:
    """The keys of one request in one layer, in a buffer that grows by doubling."""

    def __init__(self) -> None:
        self.buffer: Tensor | None = None
        self.length = 0

    def add(self, k: Float[Tensor, "kv n d"], start: int) -> Float[Tensor, "kv m d"]:
        """Put keys at `start`, over those of an earlier time; all up to the last of them."""
        end = start + k.shape[1]
        if self.buffer is None or self.buffer.shape[1] < end:
            grown = k.new_empty(k.shape[0], max(end, 2 * self.length), k.shape[2])
            if self.buffer is not None:
                grown[:, :start] = self.buffer[:, :start]
            self.buffer = grown
        self.buffer[:, start:end] = k
        self.length = end
        return self.buffer[:, :end]


@dataclass(frozen=True)
class _Asked:
    """The rows of a segment whose statistics are taken now, and whether its request asks for more later."""

    segment: Segment
    rows: Tensor
    more: bool


@dataclass(frozen=True)
class _Acting:
    """A change in the heads of a layer that are held here: of which set of edits, and which heads by their places in
    the change and in the worker."""

    edits: int
    change: Change
    places: Sequence[tuple[int, int]]
    edit: ValueEdit | None
    """None where it depends on the position."""

    @property
    def heads(self) -> list[int]:
        """The worker's own numbers."""
        return [local for _, local in self.places]

    def at(self, values: Mapping[str, Tensor], positions: Tensor) -> ValueEdit:
        """The edit of the tokens that stand there in their requests."""
        if self.edit is not None:
            return self.edit
        own = values[self.change.value]
        rows = own[positions.to(own.device).clamp(max=len(own) - 1)]  # a prompt that is longer was complained of
        return _made(self.change, self.places, {self.change.value: rows})


def _made(change: Change, places: Sequence[tuple[int, int]], values: Mapping[str, Tensor]) -> ValueEdit:
    made = change.at([a for a, _ in places], values)
    assert isinstance(made, ValueEdit)
    return made


@dataclass
class Tapping:
    """A plan with what it has brought so far."""

    plan: Plan
    values: Mapping[str, Tensor]
    here: Mapping[int, Local]
    trouble: str | None = None
    sums: dict[str, Tensor] = field(default_factory=dict)
    """Sums over positions [row, ...] by name."""
    kept: dict[int, list[Tensor]] = field(default_factory=dict)
    parts: dict[tuple[int, int], list[dict[str, Tensor]]] = field(default_factory=dict)
    """Statistics of the chunks of a request in a layer."""
    keys: dict[tuple[int, int], Keys] = field(default_factory=dict)
    running: dict[tuple[int, int], Running] = field(default_factory=dict)
    """Sums of values of the requests, in layers whose heads attend alike."""
    tokens: list[PackedRows] = field(default_factory=list)
    asked: list[_Asked] = field(default_factory=list)
    now: PackedRows | None = None
    found: Sequence[Segment] = ()

    def __post_init__(self) -> None:
        found = {layer: self._changes(layer) for layer in self.here}
        self.even = {layer: [a for a in some if a.change.kind == "uniform"] for layer, some in found.items()}
        self.edits = {layer: [a for a in some if a.change.kind != "uniform"] for layer, some in found.items()}
        self.z = {layer: self._mine(self.plan.z, layer) for layer in self.here}
        self.attending = {layer: self._mine(self.plan.stat_heads, layer) for layer in self.here}
        self.layers = {n for n in self.here if found[n] or self.z[n] or self.attending[n]}
        self._where: dict[tuple[int, Where], PackedRows] = {}
        self._index: dict[int, Tensor] = {}

    def _mine(self, heads: Heads, layer: int) -> list[int]:
        return [local for _, local in self.here[layer].local(heads.get(layer, ()))]

    def _changes(self, layer: int) -> list[_Acting]:
        """The changes of heads that are held here."""
        found = []
        for n, some in enumerate(self.plan.edits):
            for change in (c for c in some if c.layer == layer):
                places = self.here[layer].local(change.heads)
                fixed = change.kind != "uniform" and self.values[change.value].ndim == 2
                if places:
                    found.append(_Acting(n, change, places, _made(change, places, self.values) if fixed else None))
        return found

    def idle(self) -> None:
        """Nothing of it runs, until `step` says what does."""
        self.found, self.now, self.asked, self._where = (), None, [], {}

    def step(self, found: Sequence[Segment], device: torch.device) -> None:
        """What runs now; from here on it counts as taken."""
        self.found = found
        for one in found:
            if one.start > one.held.done and self.trouble is None:
                self.trouble = (
                    f"tokens {one.held.done} to {one.start - 1} of request {one.held.row} did not run in this engine:"
                    " they were read from a cache."
                )
            self._check_length(one)
        if self.plan.z or self.plan.stats:
            self.now = gathered(found, self.plan.positions, device)
            self._count(self.now)
        if self.plan.stats:
            self.asked = [a for one in found if (a := self._ask(one, device)) is not None]
        for one in found:
            one.held.done = max(one.held.done, one.start + one.high - one.low)

    def _check_length(self, one: Segment) -> None:
        """Values for every position are as many as the prompt has."""
        for change in () if one.held.edits is None else self.plan.edits[one.held.edits]:
            value = self.values[change.value]
            if value.ndim == 3 and len(value) != one.held.prompt and self.trouble is None:
                self.trouble = (
                    f"an edit has values for {len(value)} positions, and the prompt of request {one.held.row} has"
                    f" {one.held.prompt} tokens."
                )

    def _ask(self, one: Segment, device: torch.device) -> _Asked | None:
        last, end = last_wanted(self.plan.positions, one.held.prompt), one.start + one.high - one.low
        if last is not None and one.held.done > last:
            return None
        rows = gathered([one], self.plan.positions, device).index - one.low
        return _Asked(one, rows, last is None or end <= last)

    def _count(self, rows: PackedRows) -> None:
        """Which positions of each request are taken, or only how many where they are reduced."""
        count = self._sum("count", torch.Size(), rows.owner)
        count.index_add_(0, rows.owner, torch.ones_like(rows.owner, dtype=count.dtype))
        if self.plan.reduce is None:
            self.tokens.append(rows)

    def _sum(self, name: str, shape: torch.Size, like: Tensor) -> Tensor:
        if name not in self.sums:
            self.sums[name] = torch.zeros(self.plan.rows, *shape, dtype=torch.float32, device=like.device)
        return self.sums[name]

    def act(self, layer: int, call: Call) -> None:
        """Edit z, then keep of it what is asked for."""
        if not self.found or layer not in self.layers:
            return
        z = call.z.view(call.q.shape[2], call.q.shape[1], -1)
        if self.even[layer]:
            self._level(layer, call, z)
        for one in self.edits[layer]:
            self._change(z, self._rows(one.edits, one.change.positions, z.device), one)
        if self.z[layer] and self.now is not None:
            self._keep(layer, z, self.now)
        if self.attending[layer]:
            for asked in self.asked:
                self._attend(layer, call, asked)

    def _level(self, layer: int, call: Call, z: Float[Tensor, "token head d"]) -> None:
        """Heads that see all alike: z is the mean of the values that a row sees."""
        if call.sinks is not None:
            self.trouble = self.trouble or (
                f"L{layer} has learned sinks, which keep their weight where heads attend alike; a mean of values is not"
                " z there. Use interp.Zero in its place, or a model in this process: m = interp.load(...)."
            )
            return
        group = call.q.shape[1] // call.k.shape[1]
        for one in self.found:
            mine = [a for a in self.even[layer] if a.edits == one.held.edits]
            if not mine:
                continue
            try:
                known = self.running.setdefault((one.held.row, layer), Running(self.here[layer].window))
                means = known.means(call.v[0, :, one.low : one.high], one.start).transpose(0, 1)
            except PackedError as why:
                self.trouble = self.trouble or str(why)
                return
            for acting in mine:
                rows = chosen(acting.change.positions, one.positions(z.device), one.held.prompt).nonzero().flatten()
                heads = torch.tensor(acting.heads, device=z.device)
                z[(rows + one.low)[:, None], heads[None]] = means[rows[:, None], heads[None] // group].to(z.dtype)

    def _rows(self, edits: int, where: Where, device: torch.device) -> PackedRows:
        """The tokens of this step that a set of edits touches, however often they were computed."""
        if (edits, where) not in self._where:
            mine = [s for s in self.found if s.held.edits == edits]
            self._where[edits, where] = gathered(mine, where, device, fresh=False)
        return self._where[edits, where]

    def _change(self, z: Float[Tensor, "token head d"], rows: PackedRows, acting: _Acting) -> None:
        if len(rows):
            at = rows.index[:, None], torch.tensor(acting.heads, device=z.device)[None]
            z[at] = acting.at(self.values, rows.position).change(z[at][None], None)[0].to(z.dtype)

    def _keep(self, layer: int, z: Float[Tensor, "token head d"], rows: PackedRows) -> None:
        some = z if len(self.z[layer]) == z.shape[1] else z.index_select(1, self._heads(layer, z.device))
        if self.plan.reduce is None:
            self.kept.setdefault(layer, []).append(some.index_select(0, rows.index))
            return
        if len(rows) < len(z):  # rows are distinct and in the batch's order, so as many as there are is all of them
            some = some.index_select(0, rows.index)
        some = some.float().norm(dim=-1) if self.plan.reduce == "norm" else some.float()
        # as a matrix: on a CPU torch adds rows of more dimensions several times as slowly
        sums = self._sum(f"z.{layer}", some.shape[1:], some).flatten(1)
        sums.index_add_(0, rows.owner, some.flatten(1))

    def _heads(self, layer: int, device: torch.device) -> Tensor:
        """Numbers of the heads whose z is kept, where z is."""
        if layer not in self._index:
            self._index[layer] = torch.tensor(self.z[layer], device=device)
        return self._index[layer]

    def _attend(self, layer: int, call: Call, one: _Asked) -> None:
        """Statistics of the rows asked for, and the keys for those to come."""
        heads, row = self.attending[layer], one.segment.held.row
        some, group = slice(one.segment.low, one.segment.high), call.q.shape[1] // call.k.shape[1]
        shared = sorted({h // group for h in heads})
        held = self.keys.setdefault((row, layer), Keys())
        k = held.add(call.k[0, shared, some], one.segment.start)
        if len(one.rows):
            each = [shared.index(h // group) for h in heads]
            q = call.q[0, heads, some]
            found = attend(
                q[None], k[each][None], None, mask=self.here[layer].mask, scale=call.scale, softcap=call.softcap,
                sinks=None if call.sinks is None else call.sinks.flatten()[heads], stats=self.plan.stats,
                rows=None if len(one.rows) == q.shape[1] else one.rows,
            )  # fmt: skip
            self._note(layer, row, {name: x[0] for name, x in found.stats.items()})
        if not one.more:
            del self.keys[row, layer]

    def _note(self, layer: int, row: int, found: dict[str, Tensor]) -> None:
        if self.plan.reduce is None:
            self.parts.setdefault((row, layer), []).append({name: x[None] for name, x in found.items()})
            return
        for name, x in found.items():
            self._sum(f"s.{layer}.{name}", x.shape[:1], x)[row] += x.float().sum(1)

    def taken(self) -> tuple[str, bytes]:
        """Everything, with the numbers of the heads that it is of."""
        tensors = dict(self.sums)
        if self.tokens:
            tensors["owner"] = torch.cat([r.owner for r in self.tokens])
            tensors["position"] = torch.cat([r.position for r in self.tokens])
            for layer, parts in self.kept.items():
                tensors[f"z.{layer}"] = torch.cat(parts)
                if len(tensors[f"z.{layer}"]) != len(tensors["owner"]) and self.trouble is None:
                    self.trouble = f"layer {layer} did not run in every step: the engine skips it for some tokens."
        for (row, layer), chunks in self.parts.items():
            tensors |= {f"s.{layer}.{name}.{row}": x[0] for name, x in concat(chunks).items()}
        held = {"z": self._numbers(self.z), "stats": self._numbers(self.attending), "trouble": self.trouble}
        return json.dumps(held), save({name: x.detach().cpu().contiguous() for name, x in tensors.items()})

    def _numbers(self, local: Mapping[int, Sequence[int]]) -> dict[int, list[int]]:
        return {layer: [h + self.here[layer].first for h in heads] for layer, heads in local.items() if heads}
