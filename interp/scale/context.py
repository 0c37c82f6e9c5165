"""Statistics of attention over a text that is cut over processes: its keys go round in a ring.

Process r runs the tokens of its own part through the whole model. In every layer the keys and values of the others come
by in pieces, each row is put together exactly (`kernels/cpu/ring.py`), and the model goes on with that z: so later
layers are those of the whole text, and no process holds more than its own part, a piece that is here and one that is on
its way. What is said of rows is gathered at the end, what is said of keys is added up; every process has the result
that `m.attention` would give in one.

Before the text a few of its tokens are run in both ways and compared, since what moves between tokens outside of
attention (a convolution, a recurrence, positions that a model counts itself) would be cut off without a word.
Limits: torch.distributed is there and all processes call with the same ids; one tower of self-attention seen at its
call, which is causal, causal with a sliding window, or full; no padding, no biases on the scores, no edits, no tensor
parallel plan, no rotary frequencies that depend on the length; under a causal mask the last process has the most to
do. A process that stops leaves the others waiting until the group's timeout. torch's own context parallel covers
neither a CPU nor statistics. Cost: one forward pass cut in so many; q.k once more for `received`.
"""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from threading import get_ident
from typing import Any

import torch
from torch import Tensor

from interp.attention import AttentionStats
from interp.held import Held
from interp.hooks.anatomy.towers import Layer
from interp.hooks.anatomy.unwrap import forced_eager
from interp.hooks.errors import InputsError, ModelError
from interp.hooks.inputs.inputs import Inputs
from interp.hooks.run.statistics import Request
from interp.hooks.sites import Site
from interp.hooks.stand.call import Call, Tap, visible
from interp.hooks.stand.standpoints import watch
from interp.kernels.cpu.ring import Circle, KeyPart, attend_ring
from interp.kernels.masks.symbols import Causal, Full, Mask, Window
from interp.kernels.stats import KINDS, parse, ratio, reduce_groups

PIECE = 4096
"""How many keys arrive at a time."""
TRIED = 8
"""Tokens a process has in the comparison with the model in one process."""
NEAR = {torch.float64: 1e-6, torch.float32: 1e-3}
"""How far that may be off, over the largest number; 0.05 in half precision."""
COMPARED = 1024
"""Rows of a call's own mask that are looked at together."""


@dataclass(frozen=True, eq=False)
class Around:
    """The processes of a group, and which positions of a sequence each has."""

    group: Any
    number: int
    of: int
    length: int

    @classmethod
    def here(cls, group: Any, length: int) -> Around:
        """Of a group of torch.distributed; None is all processes."""
        import torch.distributed as dist

        if not (dist.is_available() and dist.is_initialized()):
            raise ModelError(
                "a text is cut over the processes of torch.distributed, and this one was started alone: start several"
                " (torchrun --nproc-per-node=2 script.py) and call init_process_group first, or use m.attention."
            )
        group = group if group is not None else dist.group.WORLD
        return cls(group, dist.get_rank(group), dist.get_world_size(group), length)

    @property
    def spans(self) -> list[tuple[int, int]]:
        """The positions [a, b) of each process."""
        return list(pairwise(n * self.length // self.of for n in range(self.of + 1)))

    @property
    def own(self) -> tuple[int, int]:
        return self.spans[self.number]

    def pieces(self) -> Iterator[list[tuple[int, int]]]:
        """Runs of positions that are on their way together, one of each process."""
        count = max(1, -(-max(b - a for a, b in self.spans) // PIECE))
        for n in range(count):
            yield [(a + n * (b - a) // count, a + (n + 1) * (b - a) // count) for a, b in self.spans]

    def once(self, k: Tensor, v: Tensor) -> Iterator[KeyPart]:
        """The keys and values of all processes, piece by piece, from the own ones."""
        start = self.own[0]
        for spans in self.pieces():
            a, b = spans[self.number]
            held = [x[:, :, a - start : b - start].contiguous() for x in (k, v)]
            for step in range(self.of):
                owner = (self.number - step) % self.of
                coming = (owner - 1) % self.of
                wait, room = self._exchanged(held, spans[coming]) if step + 1 < self.of else ((), held)
                yield KeyPart(spans[owner][0], *held)
                for one in wait:
                    one.wait()
                held = room

    def _exchanged(self, held: Sequence[Tensor], span: tuple[int, int]) -> tuple[Sequence[Any], list[Tensor]]:
        """What is here goes to the next process, and what the one before has comes."""
        import torch.distributed as dist

        room = [x.new_empty(*x.shape[:2], span[1] - span[0], x.shape[3]) for x in held]
        after, before = (dist.get_global_rank(self.group, (self.number + n) % self.of) for n in (1, -1))
        sent = [dist.P2POp(dist.isend, x, after, self.group) for x in held]
        return dist.batch_isend_irecv(sent + [dist.P2POp(dist.irecv, x, before, self.group) for x in room]), room

    def joined(self, name: str, x: Tensor) -> Tensor:
        """A statistic of the rows here as that of all rows."""
        import torch.distributed as dist

        x = x.contiguous()
        if KINDS[parse(name.removesuffix(".keys")).kind].per == "key":
            dist.all_reduce(x, group=self.group)
            return x
        sizes = [b - a for a, b in self.spans]
        wide = x.new_zeros(*x.shape[:2], max(sizes), *x.shape[3:])
        wide[:, :, : x.shape[2]] = x
        parts = [torch.empty_like(wide) for _ in sizes]
        dist.all_gather(parts, wide, group=self.group)
        return torch.cat([part[:, :, :n] for part, n in zip(parts, sizes, strict=True)], 2)

    def worst(self, x: float, device: torch.device) -> float:
        """The largest of every process' number."""
        import torch.distributed as dist

        found = torch.tensor([x], dtype=torch.float32, device=device)
        dist.all_reduce(found, dist.ReduceOp.MAX, group=self.group)
        return float(found)


@dataclass
class RingTap(Tap):
    """Attends in the place of one layer, to the keys of all processes."""

    around: Around
    layer: Layer
    stats: Sequence[str] = ()
    key_sets: Mapping[str, Tensor] = field(default_factory=dict)
    found: dict[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.thread = get_ident()

    def attends(self) -> bool:
        return True

    def attend(self, call: Call, inner: Callable[[], None]) -> None:
        if call.bias is not None:
            raise ModelError(
                f"{self.layer.attention} adds a bias to its scores, and each process knows the bias of its own rows"
                " only: use m.attention in one process."
            )
        a, b = self.around.own
        if (call.q.shape[2], call.k.shape[2]) != (b - a, b - a):
            raise ModelError(
                f"{self.layer.attention} attends with {call.q.shape[2]} queries to {call.k.shape[2]} keys where"
                f" {b - a} tokens were given, so it is not known which token each of them is."
            )
        asked = Circle.of(
            call.q, start=a, keys=self.around.length, mask=_of_whole(call, self.layer), scale=call.scale,
            softcap=call.softcap, sinks=call.sinks, stats=self.stats, key_sets=self.key_sets,
        )  # fmt: skip
        z, _, self.found = attend_ring(call.q, partial(self.around.once, call.k, call.v), asked)
        assert z is not None
        call.z = z.transpose(1, 2).to(call.v.dtype).contiguous()
        call.heed()


def _of_whole(call: Call, layer: Layer) -> Mask:
    """The mask over the whole sequence, of which the call has its own rows and keys."""
    here, n = visible(call) or Full(), call.q.shape[2]
    at = torch.arange(n, device=call.q.device)
    causal = not bool(here.visible(at[:1], at[1:2]).any())
    window = call.arguments.get("sliding_window")
    whole: Mask = Causal() if causal else Full()
    if window is not None:
        whole = whole & Window(int(window))
    if type(here) is type(whole):
        return whole
    for rows in at.split(COMPARED):
        added = here.additive(rows, at)
        seen = here.visible(rows, at)
        if bool((seen != whole.visible(rows, at)).any()) or (added is not None and bool((added * seen != 0).any())):
            raise ModelError(
                f"the mask of {layer.attention} is neither causal nor full, nor a causal sliding window, so it is not"
                " known which keys of other processes its rows see: use m.attention in one process."
            )
    return whole


def ring_attention(
    model: Held,
    inputs: Any,
    *,
    stats: Sequence[str] | str = ("entropy", "first", "received_mean"),
    heads: str = "L*",
    reduce_groups: Any = None,
    group: Any = None,
) -> AttentionStats:
    """`m.attention` of a text that is cut over the processes of a group, all of which call it with the same inputs.

    Every process gets the statistics of the whole text.
    """
    anatomy, x = model.ready(), model.inputs(inputs)
    around = Around.here(group, x.length)
    layers = _layers(model)
    ids = _ids(model, x, around)
    sites = [Site(s.tower, s.layer, "attention", s.heads) for s in anatomy.sites(f"{heads.removesuffix('.z')}.z")]
    request = Request.of(stats, None, None, reduce_groups)
    sets = {s.argument: x.valid.logical_not() if s.argument == "pad" else x.mask(s.argument)
            for s in request.stats if s.kind == "mass"}  # fmt: skip
    wanted = {id(anatomy.layer(site)) for site in sites}
    compare(model, ids, layers, around)
    taps = {id(one): RingTap(around, one, [n for n in request.names if n != "received_mean"], sets)
            if id(one) in wanted else RingTap(around, one) for one in layers}  # fmt: skip
    _run(model, ids, list(taps.values()), around)
    found = {id_: _whole(tap, request) for id_, tap in taps.items() if id_ in wanted}
    return _read(model, sites, found, request, x)


def _read(
    model: Held, sites: Sequence[Site], found: Mapping[int, Mapping[str, Tensor]], request: Request, x: Inputs
) -> AttentionStats:
    values, heads, how = {}, {}, request.reduce_groups
    for site in sites:
        layer = model.anatomy.layer(site)
        some = list(range(layer.heads) if site.heads is None else site.heads)
        stats = {name: value[:, some].cpu() for name, value in found[id(layer)].items()}
        values[site] = reduce_groups(stats, layer.kv_heads, how) if how is not None else stats
        heads[site] = tuple(range(layer.kv_heads) if how is not None else some)
    return AttentionStats(values, heads, x, ("ring",))


def _whole(tap: RingTap, request: Request) -> dict[str, Tensor]:
    """The statistics of a layer, of all rows and keys."""
    found = {name: tap.around.joined(name, value) for name, value in tap.found.items()}
    if "received_mean" in request.names:
        found["received_mean"] = ratio(found["received"], found["seen"])
    order = [n for s in request.names for n in (s, f"{s}.keys") if n in found]
    return {name.replace("mass:first", "first"): found[name] for name in order}


def _ids(model: Held, x: Inputs, around: Around) -> Tensor:
    """The ids of the whole text, the same in all processes."""
    more = [name for name in x.kwargs if name not in ("input_ids", "attention_mask")]
    if x.ids is None or more or not bool(x.valid.all()):
        what = f"also has {', '.join(more)}" if more else "has no ids" if x.ids is None else "has padding"
        raise InputsError(f"a text that is divided over processes must be ids of one length, and this input {what}.")
    if x.length < 2 * around.of:
        raise InputsError(f"each of {around.of} processes needs two tokens at least; the text has {x.length}.")
    ids = x.ids.to(model.device)
    mark = int.from_bytes(hashlib.sha256(ids.cpu().numpy().tobytes() + str(ids.shape).encode()).digest()[:3])
    high, low = around.worst(mark, model.device), -around.worst(-mark, model.device)
    if high != low:
        raise InputsError("the processes were given different ids: each must call with the whole text.")
    return ids


def _layers(model: Held) -> list[Layer]:
    """All layers, of a model whose tokens interact only where this reads them."""
    anatomy, config = model.anatomy, getattr(model.module, "config", None)
    layers = [layer for tower in anatomy.towers.values() for layer in tower.layers]
    name = type(model.module).__name__
    wrong = [one.attention for one in layers if one.kind != "self" or not one.seen or one.share is not None]
    if len(anatomy.towers) != 1 or wrong:
        raise ModelError(
            f"{name} is not one tower of self-attention that is seen at its call ({', '.join(wrong) or 'several'}), so"
            " its text cannot be divided over processes: use m.attention."
        )
    if "position_ids" not in inspect.signature(model.module.forward).parameters:
        raise ModelError(f"{name} takes no position_ids, so a part of a text would start at position 0.")
    rope = getattr(config, "rope_parameters", None) or {}
    kinds = {str(one.get("rope_type")) for one in (rope, *rope.values()) if isinstance(one, Mapping)}
    if kinds & {"dynamic", "longrope"} or getattr(config, "attention_chunk_size", None):
        raise ModelError(
            f"{name} has rotary frequencies or a mask that depend on the length of a text ({sorted(kinds)},"
            f" attention_chunk_size={getattr(config, 'attention_chunk_size', None)}): a part of the text would get"
            " other ones."
        )
    if model.handles():
        raise ModelError("the model has edits, and they would see a part of the text only: remove them first.")
    return layers


def _run(model: Held, ids: Tensor, taps: Sequence[RingTap], around: Around, *, last: bool = True) -> Any:
    """One forward pass of the own part."""
    a, b = around.own
    at = torch.arange(a, b, device=ids.device).expand(len(ids), -1)
    less = model.last_logits_only() if last else {}
    with ExitStack() as undo, forced_eager(), torch.no_grad():
        for tap in taps:
            undo.callback(watch(model.module, tap.layer, tap))
        return model.module(input_ids=ids[:, a:b], position_ids=at, **less)


def compare(model: Held, ids: Tensor, layers: Sequence[Layer], around: Around) -> None:
    """Raise unless some tokens give the same cut over the processes and whole in each."""
    some = ids[:1, : TRIED * around.of]
    small = Around(around.group, around.number, around.of, some.shape[1])
    a, b = small.own
    with torch.no_grad():
        whole = model.module(input_ids=some)[0][:, a:b].float()
    cut = _run(model, some, [RingTap(small, one) for one in layers], small, last=False)[0].float()
    same = cut.shape == whole.shape
    off = float((cut - whole).abs().max() / whole.abs().max().clamp(min=1e-30)) if same else torch.inf
    off = around.worst(off if off == off else torch.inf, ids.device)
    if not off <= NEAR.get(model.dtype, 0.05):
        raise ModelError(
            f"{type(model.module).__name__} gives other numbers for a text that is divided over processes (off by"
            f" {off:.2g} of the largest): its tokens also interact outside of attention, or it counts positions"
            " itself. Use m.attention in one process, with chunk= for a long text."
        )
